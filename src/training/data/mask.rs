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
//! A call of a tool that the template leaves out is not trained, and counted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Value, json};

use super::{Encoder, rows};
use crate::{Error, Result};

mod alike;
mod endings;
mod join;
mod turns;

use endings::Ending;

/// Stands for an answer, and no template changes it.
const ANSWER: &str = "Zq7AnswerSentinelQz";
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
}

/// The texts of a chat. Without a trained answer there are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MaskedChat {
    pub(super) texts: Vec<MaskedText>,
    /// Number of answers with calls of tools that the template leaves out.
    pub(super) calls_left_out: usize,
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
        }
    }

    /// The text of a chat, all of it trained.
    pub(super) fn whole(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, _) = without_weights(messages)?;
        let text = self.encoder.render(&messages, tools, false)?;
        Ok(text.map(|text| {
            let span = Span { bytes: 0..text.len(), whole_first_token: true };
            MaskedChat { texts: vec![MaskedText { spans: vec![span], text, end: None }], calls_left_out: 0 }
        }))
    }

    /// The texts of a chat with its answers trained.
    pub(super) fn answers(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, mut trained) = without_weights(messages)?;
        let Some(marked) = self.encoder.render_marked(&messages, tools)? else { return Ok(None) };
        let chat = Chat { messages: &messages, tools, whole: &marked.text };
        let mut calls_left_out = 0;
        for index in std::mem::take(&mut trained) {
            let written = !has_calls(&messages[index]) || self.writes_calls(&chat, index);
            calls_left_out += usize::from(!written);
            if written || has_text(&messages[index]) {
                self.check_text(&chat, index)?;
                trained.push(index);
            }
        }
        let texts = match marked.generation {
            _ if trained.is_empty() => Vec::new(),
            Some(blocks) => self.by_blocks(chat.whole.to_owned(), blocks, &messages, &trained)?,
            None => join::join(self.turns(&chat, &trained)?),
        };
        Ok(Some(MaskedChat { texts, calls_left_out }))
    }

    /// Refuses an answer whose text the template leaves out, as those do that read content in a form of their own.
    fn check_text(&self, chat: &Chat<'_>, index: usize) -> Result<()> {
        let message = &chat.messages[index];
        // An ending is known only where the sentinel is written.
        if !has_text(message) || has_calls(message) || self.ending(chat, index).is_some() {
            return Ok(());
        }
        let text = self.render(&chat.up_to(index, &[answer(ANSWER)]), chat.tools, false);
        if text.is_none_or(|text| text.contains(ANSWER)) {
            return Ok(());
        }
        let message = "has text that the chat template leaves out, so the model would learn to answer nothing; use a chat \
                       template that writes it, or leave the row out";
        Err(Error::invalid(format!("message {} (assistant)", index + 1), message))
    }

    /// Returns whether the template writes calls of tools at this place of a conversation.
    fn writes_calls(&self, chat: &Chat<'_>, index: usize) -> bool {
        let key = chat.place(index);
        if let Some(known) = self.writes_calls.borrow().get(&key) {
            return *known;
        }
        let mut silent = chat.messages[index].clone();
        if let Some(fields) = silent.as_object_mut() {
            fields.shift_remove("tool_calls");
        }
        let render = |message: Value| self.render(&chat.up_to(index, &[message]), chat.tools, false);
        let with = render(chat.messages[index].clone());
        let written = with.is_none() || with != render(silent);
        self.writes_calls.borrow_mut().insert(key, written);
        written
    }

    /// The ranges of the template's own marks.
    fn by_blocks(
        &self,
        text: String,
        mut blocks: Vec<Range<usize>>,
        messages: &[Value],
        trained: &[usize],
    ) -> Result<Vec<MaskedText>> {
        let answers: Vec<usize> = (0..messages.len()).filter(|&index| is_answer(&messages[index])).collect();
        if trained.len() < answers.len() {
            let untrained =
                answers.iter().find(|index| !trained.contains(index)).map_or(0, |index| index + 1);
            if blocks.len() != answers.len() {
                let message = "is not to be trained, but the chat template does not mark each answer by one {% generation %} \
                               block, so the answer cannot be told apart";
                return Err(Error::invalid(format!("message {untrained} (assistant)"), message));
            }
            let kept = blocks.into_iter().zip(answers).filter(|(_, answer)| trained.contains(answer));
            blocks = kept.map(|(block, _)| block).collect();
        }
        blocks.retain(|block| !block.is_empty());
        let spans = blocks.into_iter().map(|bytes| Span { bytes, whole_first_token: false }).collect();
        Ok(vec![MaskedText { text, spans, end: None }])
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

fn has_calls(message: &Value) -> bool {
    message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
}

/// Messages without the keys that say whether they are trained, and the trained ones of the assistant's.
fn without_weights(messages: &[Value]) -> Result<(Vec<Value>, Vec<usize>)> {
    let mut trained = Vec::new();
    let mut cleaned = messages.to_vec();
    for (index, message) in cleaned.iter_mut().enumerate() {
        let Some(object) = message.as_object_mut() else { continue };
        if rows::is_trained(object)
            .map_err(|cause| Error::invalid(format!("message {}", index + 1), cause))?
        {
            trained.push(index);
        }
        rows::WEIGHTS.into_iter().chain(["train_detail"]).for_each(|key| drop(object.shift_remove(key)));
    }
    Ok((cleaned, trained))
}

/// Length of the longest common prefix of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}
