//! The tokens of a text of which some ranges are trained.

use std::collections::HashMap;

use super::mask::Span;
use super::{Encoder, Example};
use crate::Result;

/// Encodes texts for one tokenizer.
pub(super) struct TokenMasker<'a> {
    encoder: &'a dyn Encoder,
    /// Texts of the special tokens by id.
    special: HashMap<u32, String>,
}

impl<'a> TokenMasker<'a> {
    pub(super) fn new(encoder: &'a dyn Encoder) -> Self {
        let special = encoder.special_tokens().into_iter().filter(|(text, _)| !text.is_empty());
        Self { encoder, special: special.map(|(text, id)| (id, text)).collect() }
    }

    /// Text of a token that is never split.
    pub(super) fn special_text(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }

    /// The tokens of a text, those of the given spans trained.
    ///
    /// The text is encoded as a whole, as it is when a model reads it. Encoding its parts would give other tokens where
    /// they meet: tokenizers join line breaks, and SentencePiece begins every text with a space. Only an answer that would
    /// share a token with the prompt before it, as in `ASSISTANT: yes`, begins a part of its own: a model that is given
    /// the prompt's tokens goes on with those of the answer alone. So does the text after an answer that would share a
    /// token with it: a model that ends its answer does not produce the beginning of what follows.
    pub(super) fn encode(&self, text: &str, spans: &[Span], special: bool) -> Result<Example> {
        let mut parts = vec![(0, self.part(text, special, "")?)];
        for span in spans {
            if !span.whole_first_token {
                self.cut(&mut parts, text, span.bytes.start)?;
            }
            if span.bytes.end < text.len() {
                self.cut(&mut parts, text, span.bytes.end)?;
            }
        }
        let mut made = Example { tokens: Vec::new(), supervised: Vec::new() };
        for (from, part) in parts {
            let to = from + part.text.len();
            let base = made.tokens.len();
            made.supervised.resize(base + part.tokens.len(), false);
            for span in spans.iter().filter(|span| (from..to.max(from + 1)).contains(&span.bytes.start)) {
                let first = self.boundary(&part, span.bytes.start - from)?.0;
                // A token across the end belongs to what follows.
                let last = match span.bytes.end == to {
                    true => part.tokens.len(),
                    false => self.boundary(&part, span.bytes.end - from)?.0,
                };
                made.supervised[base + first..base + last.max(first)].fill(true);
            }
            made.tokens.extend(part.tokens);
        }
        Ok(made)
    }

    /// Divides the last part of a text at a place that is inside of one of its tokens, if the tokenizer can.
    fn cut<'t>(&self, parts: &mut Vec<(usize, Part<'t>)>, text: &'t str, place: usize) -> Result<()> {
        let Some((from, part)) = parts.last().filter(|(from, _)| *from < place) else { return Ok(()) };
        let (from, special, lead) = (*from, part.special, part.lead);
        if self.boundary(part, place - from)?.1 {
            return Ok(());
        }
        if let Some(rest) = self.part_alone(&text[place..])? {
            let mut before = self.part(&text[from..place], special, lead)?;
            if special && before.tokens.last().is_some_and(|&id| self.encoder.is_eos(id)) {
                before.tokens.pop();
            }
            parts.pop();
            parts.extend([(from, before), (place, rest)]);
        }
        Ok(())
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
