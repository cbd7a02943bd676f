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

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Value, json};

use super::Encoder;
use crate::{Error, Result};

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
    /// Whether a token that begins before the range and ends in it is trained. It is not where the range begins after
    /// the generation prompt: a model that was given the prompt does not produce such a token.
    pub(super) whole_first_token: bool,
}

/// An answer in the text of its conversation up to and including it.
struct Turn {
    text: String,
    span: Span,
    end: Option<EndToken>,
}

/// A special token by its text and id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EndToken {
    text: String,
    id: u32,
}

/// What a template writes after an answer.
#[derive(Debug, Clone)]
struct Ending {
    tail: String,
    /// Whether a generation prompt changes nothing: the template always or never writes one.
    ignores_prompt: bool,
    end: End,
}

#[derive(Debug, Clone)]
enum End {
    /// So many bytes of the tail, the last of which are the token that ends the turn, or a marker that is no token.
    InTail(usize),
    /// A token that the template writes only when messages follow.
    Later(EndToken),
    /// None: this many bytes of the tail are a marker, and the model's own token follows.
    Missing(usize),
}

/// Finds the loss masks of chats for one tokenizer and chat template.
pub(super) struct Masker<'a> {
    encoder: &'a dyn Encoder,
    special: Vec<EndToken>,
    /// What follows answers, by whether there are tools and by the role of the message before.
    endings: RefCell<HashMap<(bool, String), Option<Ending>>>,
}

/// A rendered chat, `None` for a model without a chat template.
type Masked = Option<Vec<MaskedText>>;

impl<'a> Masker<'a> {
    pub(super) fn new(encoder: &'a dyn Encoder) -> Self {
        let special = encoder.special_tokens().into_iter().filter(|(text, _)| !text.is_empty());
        Self {
            encoder,
            special: special.map(|(text, id)| EndToken { text, id }).collect(),
            endings: RefCell::default(),
        }
    }

    /// The text of a chat, all of it trained.
    pub(super) fn whole(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, _) = without_weights(messages);
        let text = self.encoder.render(&messages, tools, false)?;
        Ok(text.map(|text| {
            let span = Span { bytes: 0..text.len(), whole_first_token: true };
            vec![MaskedText { spans: vec![span], text, end: None }]
        }))
    }

    /// The texts of a chat with its answers trained. Empty if it has none.
    pub(super) fn answers(&self, messages: &[Value], tools: Option<&Value>) -> Result<Masked> {
        let (messages, trained) = without_weights(messages);
        let Some(marked) = self.encoder.render_marked(&messages, tools)? else { return Ok(None) };
        if trained.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let chat = Chat { messages: &messages, tools, whole: &marked.text };
        for &index in &trained {
            if let Some(what) = self.left_out(&chat, index) {
                let message = format!(
                    "has {what} that the chat template leaves out, so the model would learn to answer nothing; use a \
                     chat template that writes it, or leave the row out"
                );
                return Err(Error::invalid(format!("message {} (assistant)", index + 1), message));
            }
        }
        if let Some(blocks) = marked.generation {
            return self.by_blocks(chat.whole.to_owned(), blocks, &messages, &trained).map(Some);
        }
        let turns = trained.iter().map(|&index| self.turn(&chat, index)).collect::<Result<Vec<_>>>()?;
        Ok(Some(join(turns)))
    }

    /// What the template leaves out of an answer, so that nothing is left of it: its text, as templates of vision models
    /// do that read content only as a list of parts, or a tool call without text.
    fn left_out(&self, chat: &Chat<'_>, index: usize) -> Option<&'static str> {
        let message = &chat.messages[index];
        let has_text = message["content"].as_str().is_some_and(|text| !text.trim().is_empty());
        let has_calls = message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
        let render = |message| self.render(&chat.up_to(index, &[message]), chat.tools, false);
        match (has_text, has_calls) {
            // An ending is known only where the sentinel is written.
            (true, false) if self.ending(chat, index).is_none() => {
                render(answer(ANSWER)).filter(|text| !text.contains(ANSWER)).map(|_| "text")
            }
            (false, true) => {
                let mut silent = message.clone();
                silent.as_object_mut()?.shift_remove("tool_calls");
                let text = render(message.clone())?;
                (render(silent)? == text).then_some("a tool call")
            }
            _ => None,
        }
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
            if blocks.len() != answers.len() {
                let message = "has a weight of 0, but the chat template does not mark each answer by one {% generation %} \
                               block, so the answer cannot be told apart";
                return Err(Error::invalid("message", message));
            }
            let kept = blocks.into_iter().zip(answers).filter(|(_, answer)| trained.contains(answer));
            blocks = kept.map(|(block, _)| block).collect();
        }
        blocks.retain(|block| !block.is_empty());
        let spans = blocks.into_iter().map(|bytes| Span { bytes, whole_first_token: true }).collect();
        Ok(vec![MaskedText { text, spans, end: None }])
    }

    /// One answer, in the text that ends with it.
    fn turn(&self, chat: &Chat<'_>, index: usize) -> Result<Turn> {
        let text = match index + 1 == chat.messages.len() {
            true => Some(chat.whole.to_owned()),
            false => self.render(&chat.messages[..=index], chat.tools, false),
        };
        let prompt = self.render(&chat.messages[..index], chat.tools, true);
        let ending = self.ending(chat, index);
        let found = match text {
            Some(text) => self.turn_in(chat, index, text, prompt, ending.as_ref()),
            // Some templates refuse the beginning of a conversation that they accept as a whole.
            None => self.turn_in(chat, index, chat.whole.to_owned(), None, None),
        };
        found.filter(|turn| turn.span.bytes.start <= turn.span.bytes.end).ok_or_else(|| {
            let message = "cannot be found in the text that the chat template makes of the conversation, so the loss mask is \
                           unknown; train with --train-on all, or write the answer as prompt and completion";
            Error::invalid(format!("message {} (assistant)", index + 1), message)
        })
    }

    fn turn_in(
        &self,
        chat: &Chat<'_>,
        index: usize,
        text: String,
        prompt: Option<String>,
        ending: Option<&Ending>,
    ) -> Option<Turn> {
        let (start, whole_first_token) = self.start(chat, index, &text, prompt.as_deref(), ending)?;
        let known = ending.filter(|ending| {
            let answer_end = text.len().checked_sub(ending.tail.len());
            answer_end.is_some_and(|end| end >= start) && text.ends_with(&ending.tail)
        });
        let (to, end) = match known {
            Some(ending) => {
                let answer_end = text.len() - ending.tail.len();
                match &ending.end {
                    End::InTail(length) => (answer_end + length, None),
                    End::Later(token) => (answer_end, Some(token.clone())),
                    End::Missing(marker) => (answer_end + marker, self.eos()),
                }
            }
            None => self.end_of_call(chat, index, &text, start)?,
        };
        Some(Turn { span: Span { bytes: start..to, whole_first_token }, text, end })
    }

    /// Where an answer begins, and whether a token across that place is the answer's.
    fn start(
        &self,
        chat: &Chat<'_>,
        index: usize,
        text: &str,
        prompt: Option<&str>,
        ending: Option<&Ending>,
    ) -> Option<(usize, bool)> {
        if let Some(prompt) = prompt.filter(|prompt| text.starts_with(prompt)) {
            let ignored = ending.is_some_and(|ending| ending.ignores_prompt);
            // A template without a generation prompt writes the header with the answer.
            let header = ignored.then(|| self.before_answer(chat, index)).flatten();
            let header = header.map(|before| common_prefix(text, &before));
            return match header.filter(|&at| at > prompt.len()) {
                Some(at) => Some((self.outside_tokens(text, at), true)),
                None => Some((prompt.len(), false)),
            };
        }
        if let Some(before) = self.before_answer(chat, index).filter(|before| text.starts_with(before)) {
            return Some((before.len(), true));
        }
        if let Some(found) =
            self.with_sentinel(chat, index, text).filter(|(before, _)| text.starts_with(before))
        {
            return Some((found.0.len(), true));
        }
        // The generation prompt and the answer part ways somewhere in the header.
        let prompt = prompt?;
        let earlier = self.render(&chat.messages[..index], chat.tools, false)?;
        let at = self.outside_tokens(text, common_prefix(text, prompt));
        (at >= common_prefix(&earlier, prompt)).then_some((at, true))
    }

    /// The text before an answer: that before a sentinel in its place.
    fn before_answer(&self, chat: &Chat<'_>, index: usize) -> Option<String> {
        let text = self.render(&chat.up_to(index, &[answer(ANSWER)]), chat.tools, false)?;
        text.rsplit_once(ANSWER).map(|(before, _)| before.to_owned())
    }

    /// What is around an answer and its reasoning in a text, which is that of the whole conversation or of the messages
    /// up to the answer, found by sentinels in their place.
    fn with_sentinel(&self, chat: &Chat<'_>, index: usize, text: &str) -> Option<(String, String)> {
        chat.messages[index]["content"].as_str()?;
        let messages = if text == chat.whole { chat.messages } else { &chat.messages[..=index] };
        let mut changed = messages.to_vec();
        for key in ["content", "reasoning", "reasoning_content", "thinking"] {
            if changed[index][key].is_string() {
                changed[index][key] = ANSWER.into();
            }
        }
        let text = self.render(&changed, chat.tools, false)?;
        let (before, _) = text.split_once(ANSWER)?;
        let (_, after) = text.rsplit_once(ANSWER)?;
        Some((before.to_owned(), after.to_owned()))
    }

    /// The end of an answer that does not end as a plain one does, such as a call of a tool.
    fn end_of_call(
        &self,
        chat: &Chat<'_>,
        index: usize,
        text: &str,
        start: usize,
    ) -> Option<(usize, Option<EndToken>)> {
        if index + 1 < chat.messages.len() && text == chat.whole {
            let (_, after) = self.with_sentinel(chat, index, text)?;
            let answer_end = text.len().checked_sub(after.len()).filter(|&end| end >= start)?;
            let (at, token) = self.first_special(&text[answer_end..])?;
            return (self.encoder.is_eos(token.id) && text.ends_with(&after))
                .then_some((answer_end + at + token.text.len(), None));
        }
        let trimmed = text.trim_end();
        if trimmed.len() < start {
            return Some((start, self.eos()));
        }
        let mut rest = trimmed;
        // Of several tokens at the end the first one ends the turn, as in <|end|><|endoftext|>.
        let mut to = None;
        while let Some(token) = self.special.iter().find(|token| rest.ends_with(&token.text)) {
            if rest.len() - token.text.len() < start {
                break;
            }
            to = Some(rest.len());
            rest = rest[..rest.len() - token.text.len()].trim_end();
        }
        Some(match to {
            Some(to) => (to, None),
            None => (trimmed.len(), self.eos()),
        })
    }

    /// What the template writes after an answer at this place of a conversation.
    fn ending(&self, chat: &Chat<'_>, index: usize) -> Option<Ending> {
        let role =
            index.checked_sub(1).map_or("", |before| chat.messages[before]["role"].as_str().unwrap_or(""));
        let key = (chat.tools.is_some(), role.to_owned());
        if let Some(known) = self.endings.borrow().get(&key) {
            return known.clone();
        }
        let found = self.find_ending(chat, index);
        self.endings.borrow_mut().insert(key, found.clone());
        found
    }

    fn find_ending(&self, chat: &Chat<'_>, index: usize) -> Option<Ending> {
        let after_answer = |more: &[Value], prompt: bool| {
            let text = self.render(&chat.up_to(index, more), chat.tools, prompt)?;
            text.rsplit_once(ANSWER).map(|(_, after)| after.to_owned())
        };
        let tail = after_answer(&[answer(ANSWER)], false)?;
        let with = self.render(&chat.messages[..index], chat.tools, true);
        let without = self.render(&chat.messages[..index], chat.tools, false);
        let ignores_prompt = with.is_some() && with == without;
        let question = json!({"role": "user", "content": QUESTION});
        let next_question = after_answer(&[answer(ANSWER), question], false)
            .and_then(|text| text.split_once(QUESTION).map(|(before, _)| before.to_owned()));
        let next_answer = after_answer(&[answer(ANSWER)], true);
        // What precedes both a question and an answer belongs to the turn that ends.
        let shared = match (&next_question, &next_answer) {
            (Some(question), Some(answer)) => &question[..common_prefix(question, answer)],
            _ => "",
        };
        let header = match (&with, &without) {
            (Some(with), Some(without)) => &with[common_prefix(with, without)..],
            _ => "",
        };
        // A header's first token comes alone before both; an end token has the header's after it.
        let one_shared =
            self.special.iter().map(|token| shared.matches(&token.text).count()).sum::<usize>() < 2;
        let in_header = |token: &EndToken| {
            one_shared && header.trim_start().starts_with(&token.text) && !self.encoder.is_eos(token.id)
        };
        let end = match self.first_special(&tail) {
            Some((at, token))
                if self.encoder.is_eos(token.id)
                    || (!ignores_prompt && !in_header(token))
                    || (ignores_prompt
                        && shared.len() >= at + token.text.len()
                        && tail[..at] == shared[..at]) =>
            {
                End::InTail(at + token.text.len())
            }
            _ => match self.first_special(shared).filter(|(_, token)| !in_header(token)) {
                Some((_, token)) => End::Later(token.clone()),
                None => {
                    let marker = tail.trim_end();
                    let is_marker =
                        !ignores_prompt && next_question.is_some_and(|next| next.starts_with(marker));
                    End::Missing(if is_marker { marker.len() } else { 0 })
                }
            },
        };
        Some(Ending { tail, ignores_prompt, end })
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
}

fn answer(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

fn is_answer(message: &Value) -> bool {
    message["role"] == "assistant"
}

/// Messages without the keys that say whether they are trained, and the trained ones of the assistant's: those without
/// OpenAI's `"weight": 0` and axolotl's `"train": false`.
fn without_weights(messages: &[Value]) -> (Vec<Value>, Vec<usize>) {
    let mut trained = Vec::new();
    let mut cleaned = messages.to_vec();
    for (index, message) in cleaned.iter_mut().enumerate() {
        let Some(object) = message.as_object_mut() else { continue };
        let weight = object.shift_remove("weight").and_then(|weight| weight.as_f64());
        let train = object.shift_remove("train").and_then(|train| train.as_bool());
        if is_answer(message) && weight != Some(0.0) && train != Some(false) {
            trained.push(index);
        }
    }
    (cleaned, trained)
}

/// Length of the longest common prefix of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Joins the answers that the text of a later one contains as they are; each other one is a text of its own.
fn join(turns: Vec<Turn>) -> Vec<MaskedText> {
    let mut texts: Vec<MaskedText> = Vec::new();
    // Texts grow with their turns, so the last one can contain those before it.
    for mut turn in turns.into_iter().rev() {
        let range = turn.span.bytes.clone();
        let host = texts.iter_mut().find(|host| {
            let free_to = host.spans.first().map_or(host.text.len(), |span| span.bytes.start);
            let fits = range.end <= free_to
                && host.text.as_bytes()[..range.end] == turn.text.as_bytes()[..range.end];
            fits && match &turn.end {
                None => true,
                Some(end) => !end.text.is_empty() && ends_there(&host.text, range.end, &end.text).is_some(),
            }
        });
        match host {
            Some(host) => {
                if let Some(end) = &turn.end {
                    turn.span.bytes.end = ends_there(&host.text, range.end, &end.text).unwrap_or(range.end);
                }
                host.spans.insert(0, turn.span);
            }
            None => {
                if turn.end.is_some() {
                    turn.text.truncate(range.end);
                }
                texts.push(MaskedText {
                    text: turn.text,
                    spans: vec![turn.span],
                    end: turn.end.map(|end| end.id),
                });
            }
        }
    }
    texts.reverse();
    texts
}

/// The place after a token that follows an answer, if it does.
fn ends_there(text: &str, at: usize, token: &str) -> Option<usize> {
    let rest = &text[at..];
    let space = rest.len() - rest.trim_start().len();
    rest[space..].starts_with(token).then(|| at + space + token.len())
}
