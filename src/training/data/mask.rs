//! The loss mask of a chat: which parts of the text that a chat template renders are the assistant's.
//!
//! A template with `{% generation %}` blocks marks them itself. For any other one, an answer begins where the messages
//! before it end when they are rendered with a generation prompt, and ends with the token that ends the turn. What a
//! template writes after every answer is found by rendering a sentinel as the answer: the token that ends the turn is the
//! first special token there which is not the beginning of the next header. A template without such a token gets the
//! model's end-of-text token.
//!
//! Where the template renders an answer differently once other messages follow (it drops earlier thoughts, or moves the
//! list of tools), that answer becomes a sample of its own: the text that the model is given at inference.
//!
//! What the template leaves out, such as a call of a tool, is not trained, and counted. A template that writes messages in
//! another order than they come is refused.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Value, json};

use super::{Encoder, RowNotes, messages as message_keys};
use crate::{Error, Result};

mod alike;
mod blocks;
mod checks;
mod endings;
mod join;
mod turns;

use endings::Ending;

/// Stands for an answer, and no template changes it.
const ANSWER: &str = "Zq7AnswerSentinelQz";
/// Keys of the assistant's reasoning.
const REASONING: [&str; 3] = ["reasoning", "reasoning_content", "thinking"];
/// Stands for the question after it.
const QUESTION: &str = "Zq7QuestionSentinelQz";

/// A text with the ranges of bytes that are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MaskedText {
    pub(super) text: String,
    pub(super) spans: Vec<Span>,
    /// Token that is added to the text and trained.
    pub(super) end: Option<u32>,
}

/// A trained range of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    /// Set if a token that begins before the range and ends in it is trained. It is not where the range begins after the
    /// generation prompt, or where a template marks it: a model that was given the text before does not produce such a token.
    pub(super) whole_first_token: bool,
}

/// A special token by its text and id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EndToken {
    text: String,
    id: u32,
}

/// Finds the loss masks of chats for one tokenizer and chat template.
pub(super) struct Masker<'a> {
    encoder: &'a dyn Encoder,
    special: Vec<EndToken>,
    /// Text after answers, by the presence of tools and the role of the message before.
    endings: RefCell<HashMap<(bool, String), Option<Ending>>>,
    /// Set where calls of tools are written, by the same.
    writes_calls: RefCell<HashMap<(bool, String), bool>>,
    /// Set if the template writes the messages of a chat in their order.
    in_order: OnceCell<bool>,
}

/// The texts of a chat. Without a trained answer there are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MaskedChat {
    pub(super) texts: Vec<MaskedText>,
    pub(super) notes: RowNotes,
}

/// A rendered chat, `None` for a model without a chat template.
type Masked = Option<MaskedChat>;

impl<'a> Masker<'a> {
    pub(super) fn new(encoder: &'a dyn Encoder) -> Self {
        let special = encoder.special_tokens().into_iter().filter(|(text, _)| !text.is_empty());
        Self {
            encoder,
            special: special.map(|(text, id)| EndToken { text, id }).collect(),
            endings: RefCell::default(),
            writes_calls: RefCell::default(),
            in_order: OnceCell::new(),
        }
    }

    /// The text of a chat, all of it trained.
    pub(super) fn whole(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, trained) = without_weights(messages)?;
        let rendered = self.encoder.render(&messages, tools, false);
        let text = rendered.map_err(|error| self.explain(error, &messages, tools))?;
        Ok(text.map(|text| {
            let span = Span { bytes: 0..text.len(), whole_first_token: true };
            let tools_left_out = usize::from(self.leaves_out_tools(&messages, tools, &text));
            let texts = vec![MaskedText { spans: vec![span], text, end: None }];
            let reasoning_left_out = self.reasoning_left_out(&messages, &trained, &texts);
            let notes = RowNotes { tools_left_out, reasoning_left_out, ..RowNotes::default() };
            MaskedChat { texts, notes }
        }))
    }

    /// The texts of a chat with its answers trained.
    pub(super) fn answers(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, mut trained) = without_weights(messages)?;
        let rendered = self.encoder.render_marked(&messages, tools);
        let Some(marked) = rendered.map_err(|error| self.explain(error, &messages, tools))? else {
            return Ok(None);
        };
        self.check_order()?;
        let chat = Chat { messages: &messages, tools, whole: &marked.text };
        let mut notes = RowNotes::default();
        for index in std::mem::take(&mut trained) {
            let message = &messages[index];
            let written = !has_calls(message) || self.writes_calls(&chat, index);
            notes.calls_left_out += usize::from(!written);
            notes.empty_answers +=
                usize::from(!has_calls(message) && !has_text(message) && reasoning(message).is_none());
            if written || has_text(message) {
                self.check_text(&chat, index, marked.generation.is_some())?;
                trained.push(index);
            }
        }
        let texts = match marked.generation {
            _ if trained.is_empty() => Vec::new(),
            Some(blocks) => self.by_blocks(&chat, blocks, &trained)?,
            None => join::join(self.turns(&chat, &trained)?),
        };
        notes.reasoning_left_out = self.reasoning_left_out(&messages, &trained, &texts);
        notes.tools_left_out = usize::from(self.leaves_out_tools(&messages, tools, chat.whole));
        notes.unanswered = usize::from(messages.last().is_some_and(|last| last["role"] == "user"));
        Ok(Some(MaskedChat { texts, notes }))
    }

    fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Option<String> {
        self.encoder.render(messages, tools, prompt).ok().flatten()
    }

    fn eos(&self) -> Option<EndToken> {
        self.encoder.eos().map(|id| EndToken { text: String::new(), id })
    }

    /// The first special token of a text, the longest one of those at the same place.
    fn first_special(&self, text: &str) -> Option<(usize, &EndToken)> {
        let found = self.special.iter().filter_map(|token| Some((text.find(&token.text)?, token)));
        found.min_by_key(|(at, token)| (*at, usize::MAX - token.text.len()))
    }

    /// A place in a text, or the beginning of the special token that it is inside of.
    fn outside_tokens(&self, text: &str, place: usize) -> usize {
        let around = |token: &EndToken| {
            let near = text[..place].char_indices().rev().map(|(at, _)| at);
            near.take_while(|at| place - at < token.text.len())
                .find(|at| text[*at..].starts_with(&token.text))
        };
        self.special.iter().filter_map(around).min().unwrap_or(place)
    }
}

/// A conversation and its text.
struct Chat<'a> {
    messages: &'a [Value],
    tools: Option<&'a Value>,
    whole: &'a str,
}

impl Chat<'_> {
    /// The messages before one, and others after them.
    fn up_to(&self, index: usize, more: &[Value]) -> Vec<Value> {
        [&self.messages[..index], more].concat()
    }

    /// Role of a message, or nothing before the first one.
    fn role(&self, index: Option<usize>) -> &str {
        index.and_then(|index| self.messages.get(index)?["role"].as_str()).unwrap_or_default()
    }

    /// Context on which a template's writing of a message can depend: the presence of tools, and the role of the message
    /// before.
    fn place(&self, index: usize) -> (bool, String) {
        (self.tools.is_some(), self.role(index.checked_sub(1)).to_owned())
    }
}

fn answer(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

fn is_answer(message: &Value) -> bool {
    message["role"] == "assistant"
}

fn has_text(message: &Value) -> bool {
    message["content"].as_str().is_some_and(|text| !text.trim().is_empty())
}

/// The assistant's reasoning, in the key that transformers has for it or in one of its other names.
fn reasoning(message: &Value) -> Option<&str> {
    let texts = REASONING.into_iter().filter_map(|key| message[key].as_str());
    texts.map(str::trim).find(|text| !text.is_empty())
}

fn has_calls(message: &Value) -> bool {
    message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
}

/// Messages without the keys that say whether they are trained, and the trained ones of the assistant's.
fn without_weights(messages: &[Value]) -> Result<(Vec<Value>, Vec<usize>)> {
    let mut trained = Vec::new();
    let mut cleaned = messages.to_vec();
    for (index, message) in cleaned.iter_mut().enumerate() {
        let Some(object) = message.as_object_mut() else { continue };
        if message_keys::is_trained(object)
            .map_err(|cause| Error::invalid(format!("message {}", index + 1), cause))?
        {
            trained.push(index);
        }
        message_keys::WEIGHTS
            .into_iter()
            .chain(["train_detail"])
            .for_each(|key| drop(object.shift_remove(key)));
    }
    Ok((cleaned, trained))
}

/// Length of the longest common prefix of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}
