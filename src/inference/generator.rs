//! Prefill by buckets, then one replayed decode step a token.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::{Sampler, SamplingOptions};
use crate::backend::Program;
use crate::counts::counted;
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder, KvCache, Tokenizer};
use crate::tensor::{DType, HostTensor, TensorSpec};
use crate::{Error, Result};

/// A prompt is taken in pieces of at most this many tokens.
const LONGEST_PIECE: usize = 512;
/// Pieces are padded to a multiple of this.
const PIECE_STEP: usize = 32;
/// The smallest cache, in tokens; others are powers of two times this.
const SMALLEST_CACHE: usize = 256;

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// How many new tokens at the most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Texts that end the answer and are not part of it. They may hold special tokens, such as `<|im_end|>`.
    pub stop: Vec<String>,
    /// Tokens that end the answer; those of the model if `None`.
    pub eos: Option<Vec<u32>>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 256, sampling: SamplingOptions::default(), stop: Vec::new(), eos: None }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model ended its answer.
    EndOfText,
    /// A stop text came.
    Stop,
    /// The most tokens asked for, or the context, are reached.
    Length,
    /// The caller asked to stop.
    Cancelled,
}

/// What was generated.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new text, without stop text and special tokens.
    pub text: String,
    /// The new tokens, the one that ended the answer included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were computed (not found in the cache).
    pub prompt_tokens: usize,
    /// Seconds until the prompt was read.
    pub prefill_seconds: f64,
    /// Seconds for the new tokens after the first.
    pub decode_seconds: f64,
}

/// A model with a cache that remembers the tokens it holds, so that a conversation goes on where it stood.
pub struct Generator<'a> {
    model: Cow<'a, Decoder>,
    adapter: Option<AdapterParameters>,
    cache: KvCache,
    cache_dtype: DType,
    /// The tokens whose keys and values the cache holds.
    held: Vec<u32>,
    /// Programs by the number of tokens that they take.
    programs: HashMap<usize, Step>,
    /// The program that ran last; its output holds the present logits.
    latest: usize,
}

/// A compiled step with its input and output tensors.
struct Step {
    program: Program,
    ids: HostTensor,
    positions: HostTensor,
    pos: HostTensor,
    last: HostTensor,
    outputs: Vec<HostTensor>,
}

impl<'a> Generator<'a> {
    /// A generator with an empty cache.
    pub fn new(model: &'a Decoder, adapter: Option<&AdapterParameters>) -> Result<Self> {
        Self::with_model(Cow::Borrowed(model), adapter)
    }

    fn with_model(model: Cow<'a, Decoder>, adapter: Option<&AdapterParameters>) -> Result<Self> {
        let cache = model.cache(SMALLEST_CACHE.min(model.config().context), DType::F32)?;
        Ok(Self {
            model,
            adapter: adapter.cloned(),
            cache,
            cache_dtype: DType::F32,
            held: Vec::new(),
            programs: HashMap::new(),
            latest: 0,
        })
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.held.clear();
    }

    /// Exchanges the adapter, or takes it away. The base model stays as it is. The tokens so far are forgotten: their
    /// keys and values are the old adapter's. Programs of an adapter that comes back are found in the device's cache.
    pub fn set_adapter(&mut self, adapter: Option<&AdapterParameters>) {
        self.adapter = adapter.cloned();
        self.programs.clear();
        self.reset();
    }

    /// Generates from the tokens of a prompt. `on_text` gets each piece of text as it comes and returns whether to
    /// go on. A prompt that begins with tokens of the last call computes only what is new.
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation> {
        self.generate_while(tokenizer, prompt, options, on_text, &|| true)
    }

    /// [`Generator::generate`], where `wanted` is asked before every step whether to go on.
    pub(super) fn generate_while(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Generation> {
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let eos = options.eos.clone().unwrap_or_else(|| tokenizer.eos_ids().to_vec());
        let start = std::time::Instant::now();
        let (prompt_tokens, read) = self.read_while(prompt, options.max_tokens, wanted)?;
        let mut result = Generation {
            text: String::new(),
            tokens: Vec::new(),
            finish: if read { Finish::Length } else { Finish::Cancelled },
            prompt_tokens,
            prefill_seconds: start.elapsed().as_secs_f64(),
            decode_seconds: 0.0,
        };
        let mut text = StopFilter::new(&options.stop);
        let special = special_in(&options.stop, tokenizer);
        let mut stream = tokenizer.decode_stream();
        let mut seen = prompt.to_vec();
        let start = std::time::Instant::now();
        while read && result.tokens.len() < options.max_tokens {
            let token = sampler.sample(self.logits()?, &seen)?;
            seen.push(token);
            result.tokens.push(token);
            if eos.contains(&token) {
                result.finish = Finish::EndOfText;
                break;
            }
            let piece = stream.push(token)?;
            let hidden = special.get(&token);
            if piece.is_some() || hidden.is_some() {
                let mut stopped = text.push(&piece.unwrap_or_default());
                if let Some(hidden) = hidden.filter(|_| !stopped) {
                    stopped = text.push_hidden(hidden);
                }
                let ready = text.take();
                result.text.push_str(&ready);
                if !ready.is_empty() && !on_text(&ready) {
                    result.finish = Finish::Cancelled;
                    break;
                }
                if stopped {
                    result.finish = Finish::Stop;
                    break;
                }
            }
            if self.held.len() >= self.cache.capacity() || result.tokens.len() == options.max_tokens {
                break;
            }
            if !wanted() {
                result.finish = Finish::Cancelled;
                break;
            }
            self.step(&[token])?;
        }
        if result.finish != Finish::Stop {
            if let Some(piece) = stream.finish()? {
                text.push(&piece);
            }
            let rest = text.finish();
            if !rest.is_empty() {
                on_text(&rest);
                result.text.push_str(&rest);
            }
        }
        result.decode_seconds = start.elapsed().as_secs_f64();
        Ok(result)
    }

    /// Logits of the next token after all tokens read so far.
    pub fn next_logits(&mut self, prompt: &[u32]) -> Result<Vec<f32>> {
        self.read(prompt, 1)?;
        self.logits().map(<[f32]>::to_vec)
    }

    /// Reads a prompt, using what the cache already holds, with room for new tokens. Returns how many tokens were
    /// computed.
    pub fn read(&mut self, prompt: &[u32], room: usize) -> Result<usize> {
        Ok(self.read_while(prompt, room, &|| true)?.0)
    }

    /// [`Generator::read`], and whether all of it was read: before every piece `wanted` is asked.
    fn read_while(
        &mut self,
        prompt: &[u32],
        room: usize,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(usize, bool)> {
        let context = self.model.config().context;
        if prompt.is_empty() {
            return Err(Error::invalid("prompt", "is empty; give at least one token"));
        }
        if prompt.len() >= context {
            let message = format!(
                "has {}, the model's context is {context}; shorten it",
                counted(prompt.len(), "token")
            );
            return Err(Error::invalid("prompt", message));
        }
        let vocab = self.model.config().vocab;
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::invalid("prompt", format!("token {id} is outside the vocabulary of {vocab}")));
        }
        self.reserve(prompt.len().saturating_add(room))?;
        let known = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always computed: its logits are wanted.
        self.held.truncate(known.min(prompt.len() - 1));
        let known = self.held.len();
        for piece in prompt[known..].chunks(LONGEST_PIECE) {
            if !wanted() {
                return Ok((self.held.len() - known, false));
            }
            self.step(piece)?;
        }
        Ok((prompt.len() - known, true))
    }

    /// Makes the cache large enough, in powers of two. Growing empties it.
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        let context = self.model.config().context;
        let mut capacity = self.cache.capacity();
        while capacity < tokens.min(context) {
            capacity *= 2;
        }
        if capacity > self.cache.capacity() {
            self.programs.clear();
            self.held.clear();
            self.cache = self.model.cache(capacity.min(context), self.cache_dtype)?;
        }
        Ok(())
    }

    /// Runs the model on new tokens, appending them to the cache.
    fn step(&mut self, tokens: &[u32]) -> Result<()> {
        let width = if tokens.len() == 1 { 1 } else { tokens.len().next_multiple_of(PIECE_STEP) };
        if !self.programs.contains_key(&width) {
            let step = self.compile(width)?;
            self.programs.insert(width, step);
        }
        let step = self.programs.get_mut(&width).expect("inserted above");
        let start = self.held.len();
        let limit = self.model.config().context - 1;
        let ids = step.ids.as_mut_slice::<u32>()?;
        // What pads the piece comes after every real token and is overwritten by what follows.
        ids.fill(0);
        ids[..tokens.len()].copy_from_slice(tokens);
        for (index, position) in step.positions.as_mut_slice::<u32>()?.iter_mut().enumerate() {
            *position = (start + index).min(limit) as u32;
        }
        step.pos.as_mut_slice::<u32>()?[0] = start as u32;
        step.last.as_mut_slice::<u32>()?[0] = tokens.len() as u32 - 1;
        let inputs = [&step.ids, &step.positions, &step.pos, &step.last];
        step.program.run_into(&inputs, &mut step.outputs)?;
        self.model.check_files()?;
        self.held.extend_from_slice(tokens);
        self.latest = width;
        Ok(())
    }

    fn compile(&self, width: usize) -> Result<Step> {
        let graph = Graph::new();
        let ids = graph.input("ids", TensorSpec::u32([width]));
        let positions = graph.input("positions", TensorSpec::u32([width]));
        let pos = graph.input("pos", TensorSpec::u32([1]));
        let last = graph.input("last", TensorSpec::u32([1]));
        let hidden =
            self.model.record_cached(&graph, &ids, &positions, &pos, &self.cache, self.adapter.as_ref())?;
        let hidden = hidden.embedding(&last, DType::F32)?;
        let logits = self.model.record_logits(&graph, &hidden, self.adapter.as_ref())?;
        let (graph, fused) = graph.fused(&[logits])?;
        let program = self.model.device().compile(&graph, &fused, &[])?;
        let one = || HostTensor::zeros(TensorSpec::u32([1]));
        let many = || HostTensor::zeros(TensorSpec::u32([width]));
        Ok(Step {
            outputs: program.outputs(),
            program,
            ids: many(),
            positions: many(),
            pos: one(),
            last: one(),
        })
    }

    /// Logits after the last token read.
    fn logits(&self) -> Result<&[f32]> {
        let step = self.programs.get(&self.latest);
        let step = step.ok_or_else(|| Error::invalid("generator", "no prompt was read yet"))?;
        step.outputs[0].as_slice::<f32>()
    }
}

impl Generator<'static> {
    /// A generator that owns a handle of the model, for threads and tasks. The handle shares the model's memory.
    pub fn owned(model: Decoder, adapter: Option<&AdapterParameters>) -> Result<Self> {
        Self::with_model(Cow::Owned(model), adapter)
    }
}

/// The special tokens that stop texts mention, with their texts: decoding leaves these out, so that a stop text would
/// never be found in what is decoded.
fn special_in(stops: &[String], tokenizer: &Tokenizer) -> HashMap<u32, String> {
    if stops.is_empty() {
        return HashMap::new();
    }
    let mentioned = |text: &str| stops.iter().any(|stop| stop.contains(text));
    tokenizer.special_tokens().filter(|(_, text)| mentioned(text)).collect()
}

/// Holds back text that may be the beginning of a stop text.
struct StopFilter<'a> {
    stops: &'a [String],
    held: String,
    /// The parts of `held` that are special tokens: they are compared with stop texts but not shown.
    hidden: Vec<Range<usize>>,
    stopped: bool,
}

impl<'a> StopFilter<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new(), hidden: Vec::new(), stopped: false }
    }

    /// Takes new text and returns true if a stop text is complete.
    fn push(&mut self, text: &str) -> bool {
        self.held.push_str(text);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops.filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
        }
        self.stopped
    }

    /// Takes the text of a special token.
    fn push_hidden(&mut self, text: &str) -> bool {
        self.hidden.push(self.held.len()..self.held.len() + text.len());
        self.push(text)
    }

    /// The text that is surely not part of a stop text.
    fn take(&mut self) -> String {
        if self.stopped {
            return self.finish();
        }
        let open = |stop: &String| {
            let longest = stop.len().min(self.held.len());
            (1..=longest).rev().find(|&len| stop.is_char_boundary(len) && self.held.ends_with(&stop[..len]))
        };
        let keep = self.stops.iter().filter_map(open).max().unwrap_or(0);
        self.show(self.held.len() - keep)
    }

    /// What was held back, when nothing more comes.
    fn finish(&mut self) -> String {
        self.show(self.held.len())
    }

    /// Takes the first `len` bytes and returns what is shown of them.
    fn show(&mut self, len: usize) -> String {
        let rest = self.held.split_off(len);
        let mut shown = std::mem::replace(&mut self.held, rest);
        for range in self.hidden.iter().rev().filter(|range| range.start < len) {
            shown.replace_range(range.start..range.end.min(len), "");
        }
        self.hidden.retain(|range| range.end > len);
        for range in &mut self.hidden {
            *range = range.start.saturating_sub(len)..range.end - len;
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::StopFilter;

    fn filtered(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let stopped = filter.push(piece);
            out.push(filter.take());
            if stopped {
                return (out, true);
            }
        }
        out.push(filter.finish());
        (out, false)
    }

    #[test]
    fn stop_texts_are_found_across_pieces_and_never_shown() {
        assert_eq!(
            filtered(&["###"], &["a#", "#b", "##", "#c"]),
            (vec!["a".into(), "##b".into(), "".into(), "".into()], true)
        );
        assert_eq!(
            filtered(&["END", "é!"], &["x é", "y"]),
            (vec!["x ".into(), "éy".into(), "".into()], false)
        );
        assert_eq!(filtered(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(filtered(&["bc", "abc"], &["abc"]), (vec!["".into()], true));
    }

    #[test]
    fn special_tokens_are_compared_with_stop_texts_and_never_shown() {
        let stops = ["<end>\nuser".to_owned(), "x<end>".to_owned()];
        let mut filter = StopFilter::new(&stops);
        assert!(!filter.push("a") && !filter.push_hidden("<end>"));
        assert_eq!(filter.take(), "a");
        // The token was no stop text after all: nothing of it appears.
        assert!(!filter.push("\nbx"));
        assert_eq!(filter.take(), "\nb");
        assert!(filter.push_hidden("<end>"));
        assert_eq!((filter.take(), filter.finish()), (String::new(), String::new()));

        let mut filter = StopFilter::new(&stops);
        assert!(!filter.push_hidden("<end>") && !filter.push("\nus"));
        assert_eq!(filter.take(), "");
        assert_eq!(filter.finish(), "\nus");
        let mut filter = StopFilter::new(&stops);
        assert!(!filter.push("é") && !filter.push_hidden("<end>") && filter.push("\nuser"));
        assert_eq!(filter.finish(), "é");
    }
}
