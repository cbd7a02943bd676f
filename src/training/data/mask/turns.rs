//! The place of each answer in the text of its conversation.

use super::endings::{End, Ending};
use super::{ANSWER, Chat, EndToken, Masker, REASONING, Span, answer, common_prefix};
use crate::{Error, Result};

/// An answer in the text of its conversation up to and including it.
pub(super) struct Turn {
    pub(super) text: String,
    pub(super) span: Span,
    pub(super) end: Option<EndToken>,
}

impl Masker<'_> {
    /// One answer, in the text that ends with it.
    pub(super) fn turn(&self, chat: &Chat<'_>, index: usize) -> Result<Turn> {
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

    /// The beginning of an answer, and whether a token across that place is the answer's.
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

    /// The text before and after an answer and its reasoning, found by sentinels in their place. The text is that of the
    /// whole conversation or of the messages up to the answer.
    fn with_sentinel(&self, chat: &Chat<'_>, index: usize, text: &str) -> Option<(String, String)> {
        chat.messages[index]["content"].as_str()?;
        let messages = if text == chat.whole { chat.messages } else { &chat.messages[..=index] };
        let mut changed = messages.to_vec();
        for key in REASONING.into_iter().chain(["content"]) {
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
}
