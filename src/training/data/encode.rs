//! Rows as the sequences of tokens that are trained.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::mask::{MaskedChat, MaskedText, Masker, Span};
use super::{Encoder, Example, Record, Row, TrainOn};
use crate::{Error, Result};

/// Why nothing of a row is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// It has no answer of the assistant.
    NoAnswer,
    /// Its text is empty, or a single token.
    Empty,
    /// Its prompt is as long as the maximum length, or longer.
    TooLong,
    /// Its only answers are calls of tools, and the chat template leaves them out.
    CallsNotWritten,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no assistant answer to train",
            Self::Empty => "empty",
            Self::TooLong => "the prompt alone reaches the maximum length",
            Self::CallsNotWritten => "the chat template leaves out the tool calls that are its only answers",
        })
    }
}

/// A row as it is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// Its sequences: one, or several where the chat template renders earlier answers differently once others follow.
    pub samples: Vec<Example>,
    /// Number of sequences that were cut to the maximum length.
    pub truncated: usize,
    /// Why nothing of it is trained, if so.
    pub left_out: Option<LeftOut>,
    /// Number of answers that got a token which ends them because the chat template writes none there.
    pub ends_added: usize,
    /// Number of answers whose calls of tools the chat template leaves out, so that only their text is trained.
    pub calls_left_out: usize,
}

/// The sequences of a data set, and what became of its rows.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// The sequences.
    pub examples: Vec<Example>,
    /// Number of rows read.
    pub rows: usize,
    /// Number of rows that became several sequences.
    pub split_rows: usize,
    /// Number of sequences that were cut to the maximum length.
    pub truncated: usize,
    /// Number of rows left out, because nothing of them is trained.
    pub dropped: usize,
    /// Number of rows left out for each reason, with the place of the first one.
    pub left_out: BTreeMap<LeftOut, (usize, String)>,
    /// Number of answers that got an end token because the chat template writes none there.
    pub ends_added: usize,
    /// Number of answers whose calls of tools the chat template leaves out, so that only their text is trained.
    pub calls_left_out: usize,
}

impl Examples {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.tokens.len()).sum()
    }

    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.examples.iter().map(Example::trained).sum()
    }
}

/// Turns rows into sequences, for one model and maximum length.
pub struct RowEncoder<'a> {
    encoder: &'a dyn Encoder,
    /// Texts of the special tokens by id.
    special: HashMap<u32, String>,
    masker: Masker<'a>,
    train_on: TrainOn,
    max_length: usize,
}

impl<'a> RowEncoder<'a> {
    /// Prepares sequences of at most `max_length` tokens.
    pub fn new(encoder: &'a dyn Encoder, train_on: TrainOn, max_length: usize) -> Result<Self> {
        if max_length < 2 {
            let message = format!("is {max_length}; it must be at least 2");
            return Err(Error::invalid("maximum length", message));
        }
        let special = encoder.special_tokens().into_iter().filter(|(text, _)| !text.is_empty());
        let special = special.map(|(text, id)| (id, text)).collect();
        Ok(Self { encoder, special, masker: Masker::new(encoder), train_on, max_length })
    }

    /// Encodes a row. Every error names the row's file and place.
    pub fn encode(&self, row: &Row) -> Result<EncodedRow> {
        self.record(&row.record).map_err(|error| row.error(error.to_string()))
    }

    fn record(&self, record: &Record) -> Result<EncodedRow> {
        let (mut ends_added, mut calls_left_out) = (0, 0);
        let mut made = Vec::new();
        let mut take = |chat: MaskedChat| {
            calls_left_out += chat.calls_left_out;
            self.chat(chat.texts, &mut ends_added)
        };
        match record {
            Record::Text(text) => made.push(self.plain(text, 0)?),
            Record::Completion { prompt, completion } => {
                let messages = [
                    json!({"role": "user", "content": prompt}),
                    json!({"role": "assistant", "content": completion}),
                ];
                match self.masked(&messages, None)? {
                    Some(chat) => made = take(chat)?,
                    None => made.push(self.plain(&format!("{prompt}{completion}"), prompt.len())?),
                }
            }
            Record::Chat { messages, tools } => {
                let Some(chat) = self.masked(messages, tools.as_ref())? else {
                    let message =
                        "the model has no chat template; write rows of prompt and completion, or of text";
                    return Err(Error::invalid("chat", message));
                };
                made = take(chat)?;
            }
        }
        let mut row = self.finish(made);
        (row.ends_added, row.calls_left_out) = (ends_added, calls_left_out);
        if calls_left_out > 0 && row.left_out == Some(LeftOut::NoAnswer) {
            row.left_out = Some(LeftOut::CallsNotWritten);
        }
        Ok(row)
    }

    fn masked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MaskedChat>> {
        match self.train_on {
            TrainOn::All => self.masker.whole(messages, tools),
            TrainOn::Completion => self.masker.answers(messages, tools),
        }
    }

    /// Text without a template, trained from a byte on, with the token that ends a text.
    fn plain(&self, text: &str, from: usize) -> Result<Example> {
        let span = Span { bytes: from..text.len(), whole_first_token: from == 0 };
        let mut example = self.tokens(text, &[span], true)?;
        let ended = example.tokens.last().is_some_and(|&id| self.encoder.is_eos(id));
        if let Some(eos) = self.encoder.eos().filter(|_| !ended) {
            example.tokens.push(eos);
            example.supervised.push(true);
        }
        Ok(example)
    }

    fn chat(&self, texts: Vec<MaskedText>, ends_added: &mut usize) -> Result<Vec<Example>> {
        let one = |masked: MaskedText| {
            let mut example = self.tokens(&masked.text, &masked.spans, false)?;
            if let Some(end) = masked.end {
                example.tokens.push(end);
                example.supervised.push(true);
                *ends_added += 1;
            }
            Ok(example)
        };
        texts.into_iter().map(one).collect()
    }

    /// Cuts sequences to the maximum length and leaves out those of which nothing is trained.
    fn finish(&self, made: Vec<Example>) -> EncodedRow {
        let mut row = EncodedRow {
            samples: Vec::new(),
            truncated: 0,
            left_out: None,
            ends_added: 0,
            calls_left_out: 0,
        };
        let mut reason = LeftOut::NoAnswer;
        for mut example in made {
            if self.train_on == TrainOn::All {
                example.supervised.fill(true);
            }
            if let Some(first) = example.supervised.first_mut() {
                *first = false;
            }
            let too_long = example.tokens.len() > self.max_length;
            if example.tokens.len() < 2 {
                reason = LeftOut::Empty;
            } else if too_long && example.trained() > 0 {
                reason = LeftOut::TooLong;
            }
            example.tokens.truncate(self.max_length);
            example.supervised.truncate(self.max_length);
            if example.trained() > 0 {
                row.truncated += usize::from(too_long);
                row.samples.push(example);
            }
        }
        row.left_out = row.samples.is_empty().then_some(reason);
        row
    }

    /// The tokens of a text, those of the given spans trained.
    ///
    /// The text is encoded as a whole, as it is when a model reads it. Encoding its parts would give other tokens where
    /// they meet: tokenizers join line breaks, and SentencePiece begins every text with a space. Only an answer that would
    /// share a token with the prompt before it, as in `ASSISTANT: yes`, begins a part of its own: a model that is given
    /// the prompt's tokens goes on with those of the answer alone.
    fn tokens(&self, text: &str, spans: &[Span], special: bool) -> Result<Example> {
        let mut parts = vec![(0, self.part(text, special, "")?)];
        for start in spans.iter().filter(|span| !span.whole_first_token).map(|span| span.bytes.start) {
            let Some((from, part)) = parts.last().filter(|(from, _)| *from < start) else { continue };
            let (from, special, lead) = (*from, part.special, part.lead);
            if self.boundary(part, start - from)?.1 {
                continue;
            }
            if let Some(rest) = self.part_alone(&text[start..])? {
                let mut before = self.part(&text[from..start], special, lead)?;
                if special && before.tokens.last().is_some_and(|&id| self.encoder.is_eos(id)) {
                    before.tokens.pop();
                }
                parts.pop();
                parts.extend([(from, before), (start, rest)]);
            }
        }
        let mut made = Example { tokens: Vec::new(), supervised: Vec::new() };
        for (from, part) in parts {
            let to = from + part.text.len();
            let base = made.tokens.len();
            made.supervised.resize(base + part.tokens.len(), false);
            for span in spans.iter().filter(|span| (from..to.max(from + 1)).contains(&span.bytes.start)) {
                let first = self.first_token_from(&part, span.bytes.start - from, true)?;
                let last = match span.bytes.end == to {
                    true => part.tokens.len(),
                    false => self.first_token_from(&part, span.bytes.end - from, false)?,
                };
                made.supervised[base + first..base + last.max(first)].fill(true);
            }
            made.tokens.extend(part.tokens);
        }
        Ok(made)
    }

    /// Encodes a text that follows `lead`, which is not part of it.
    fn part<'t>(&self, text: &'t str, special: bool, lead: &'static str) -> Result<Part<'t>> {
        let tokens = self.encode_after(lead, text, special)?.0;
        Ok(self.with_anchors(text, tokens, special, lead))
    }

    fn with_anchors<'t>(
        &self,
        text: &'t str,
        tokens: Vec<u32>,
        special: bool,
        lead: &'static str,
    ) -> Part<'t> {
        let anchors = if special { Vec::new() } else { self.anchors(text, &tokens) };
        Part { text, lead, tokens, special, anchors }
    }

    /// Encodes a text as the tokens that a model would add after other tokens; `None` if the tokenizer cannot.
    fn part_alone<'t>(&self, text: &'t str) -> Result<Option<Part<'t>>> {
        // SentencePiece puts a space before a text, but not after a line break within it.
        let (alone, after) = (self.encoder.encode("a", false)?, self.encoder.encode("\na", false)?);
        let lead = if alone.last() == after.last() { "" } else { "\n" };
        let (tokens, is_alone) = self.encode_after(lead, text, false)?;
        Ok(is_alone.then(|| self.with_anchors(text, tokens, false, lead)))
    }

    /// Encodes a text that follows `lead`. Returns false beside its tokens if the two share one.
    fn encode_after(&self, lead: &str, text: &str, special: bool) -> Result<(Vec<u32>, bool)> {
        if lead.is_empty() {
            return Ok((self.encoder.encode(text, special)?, true));
        }
        let front = self.encoder.encode(lead, false)?;
        let mut tokens = self.encoder.encode(&format!("{lead}{text}"), false)?;
        let is_alone = tokens.starts_with(&front);
        tokens.drain(..front.len().min(tokens.len()));
        Ok((tokens, is_alone))
    }

    /// Places of special tokens in a text, and their indices among its tokens. Tokenizers never join text across them.
    fn anchors(&self, text: &str, tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut anchors = Vec::new();
        let mut at = 0;
        for (index, id) in tokens.iter().enumerate() {
            let Some(token) = self.special.get(id) else { continue };
            let Some(place) = text[at..].find(token) else { break };
            anchors.push((at + place, index));
            at += place + token.len();
        }
        anchors
    }

    /// The first token that begins at or after a place in the text; with `across`, a token that only ends after the place
    /// counts, too.
    fn first_token_from(&self, part: &Part<'_>, place: usize, across: bool) -> Result<usize> {
        let (common, aligned) = self.boundary(part, place)?;
        Ok(if aligned || across { common } else { (common + 1).min(part.tokens.len()) })
    }

    /// The number of tokens that end before or at a place, and true if the next one begins there.
    fn boundary(&self, part: &Part<'_>, place: usize) -> Result<(usize, bool)> {
        let Part { text, lead, tokens, special, anchors } = part;
        if place == 0 && !special {
            return Ok((0, true));
        }
        // The text from a special token on is enough, if its tokens are those of the whole text there.
        let near = anchors.partition_point(|(at, index)| at + self.special[&tokens[*index]].len() <= place);
        if let Some(&(at, index)) = near.checked_sub(1).and_then(|near| anchors.get(near)) {
            let front = self.encoder.encode(&text[at..place], false)?;
            let common = common_prefix(&tokens[index..], &front);
            if common > 0 {
                return Ok((index + common, common == front.len()));
            }
        }
        let mut front = self.encode_after(lead, &text[..place], *special)?.0;
        if *special && front.last().is_some_and(|&id| self.encoder.is_eos(id)) {
            front.pop();
        }
        let common = common_prefix(tokens, &front);
        Ok((common, common == front.len()))
    }
}

/// A text and its tokens.
struct Part<'t> {
    text: &'t str,
    /// Text before it that its tokens depend on.
    lead: &'static str,
    tokens: Vec<u32>,
    /// Set if the tokens include those that begin and end a sequence.
    special: bool,
    anchors: Vec<(usize, usize)>,
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Turns rows into sequences of at most `max_length` tokens. Every error names the row's file and place.
pub fn examples(
    rows: &[Row],
    encoder: &dyn Encoder,
    train_on: TrainOn,
    max_length: usize,
) -> Result<Examples> {
    let row_encoder = RowEncoder::new(encoder, train_on, max_length)?;
    let mut result = Examples { rows: rows.len(), ..Examples::default() };
    for row in rows {
        let mut encoded = row_encoder.encode(row)?;
        result.truncated += encoded.truncated;
        result.split_rows += usize::from(encoded.samples.len() > 1);
        result.ends_added += encoded.ends_added;
        result.calls_left_out += encoded.calls_left_out;
        result.examples.append(&mut encoded.samples);
        if let Some(reason) = encoded.left_out {
            result.dropped += 1;
            result.left_out.entry(reason).or_insert_with(|| (0, row.place.to_string())).0 += 1;
        }
    }
    match rows.first() {
        Some(row) if result.examples.is_empty() => Err(nothing_trained(&result, row, max_length)),
        _ => Ok(result),
    }
}

/// The error for a file of which nothing is trained, with the advice that fits the cause.
fn nothing_trained(result: &Examples, row: &Row, max_length: usize) -> Error {
    let count = |reason| result.left_out.get(&reason).map_or(0, |(count, _)| *count);
    let (long, silent) = (count(LeftOut::TooLong), count(LeftOut::NoAnswer));
    let advice = match (long, silent) {
        _ if count(LeftOut::CallsNotWritten) > 0 => {
            "the chat template leaves out tool calls, and the rows have no other answers; use a model whose chat template \
             writes them"
                .to_owned()
        }
        (0, 0) => "every row is empty".to_owned(),
        (0, _) => "no row has an answer of the assistant; use --train-on all to train every token".to_owned(),
        _ => format!("the prompts of {long} rows alone reach {max_length} tokens; raise the maximum length"),
    };
    Error::file(&row.path, format!("none of the {} rows has a token to train: {advice}", result.rows))
}
