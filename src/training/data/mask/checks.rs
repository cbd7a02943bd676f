//! What a chat template leaves out, changes or writes in another order.

use serde_json::{Value, json};

use super::{ANSWER, Chat, MaskedText, Masker, QUESTION, REASONING, answer, has_calls, has_text, reasoning};
use crate::{Error, Result};

impl Masker<'_> {
    /// Refuses a template that writes an answer before its question, as one does that goes through a chat backwards: a
    /// model cannot learn an answer from what follows it.
    pub(super) fn check_order(&self) -> Result<()> {
        let in_order = *self.in_order.get_or_init(|| {
            let texts = [QUESTION, ANSWER, "Zq7NextQuestionSentinelQz", "Zq7NextAnswerSentinelQz"];
            let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
            let messages: Vec<Value> = texts
                .iter()
                .enumerate()
                .map(|(index, text)| json!({"role": role(index), "content": text}))
                .collect();
            let Some(written) = self.render(&messages, None, false) else { return true };
            texts.iter().filter_map(|text| written.find(text)).is_sorted()
        });
        if in_order {
            return Ok(());
        }
        let message = "writes the messages of a chat in another order than they come, so that a question would follow its \
                       answer; use a chat template that writes them in order";
        Err(Error::invalid("chat template", message))
    }

    /// Explains an error of the template that comes from a message without content.
    pub(super) fn explain(&self, error: Error, messages: &[Value], tools: Option<&Value>) -> Error {
        let Some(index) = messages.iter().position(|message| !message["content"].is_string()) else {
            return error;
        };
        let mut filled = messages.to_vec();
        for message in &mut filled {
            if !message["content"].is_string() {
                message["content"] = "".into();
            }
        }
        if self.render(&filled, tools, false).is_none() {
            return error;
        }
        let place =
            format!("message {} ({})", index + 1, messages[index]["role"].as_str().unwrap_or_default());
        let message = "has no 'content', which this chat template needs in every message; write \"content\": \"\" beside its \
                       tool calls";
        Error::invalid(place, message)
    }

    /// Refuses an answer whose text the template leaves out, as those do that read content in a form of their own, or
    /// changes, so that it cannot be found. Blocks mark it nevertheless.
    pub(super) fn check_text(&self, chat: &Chat<'_>, index: usize, has_blocks: bool) -> Result<()> {
        let message = &chat.messages[index];
        // An ending is known only where the sentinel is written.
        if !has_text(message) || has_calls(message) || self.ending(chat, index).is_some() {
            return Ok(());
        }
        let render = |text: &str| self.render(&chat.up_to(index, &[answer(text)]), chat.tools, false);
        let text = render(ANSWER);
        if text.as_ref().is_none_or(|text| text.contains(ANSWER)) {
            return Ok(());
        }
        let is_changed = text != render(QUESTION);
        if is_changed && has_blocks {
            return Ok(());
        }
        let message = match is_changed {
            true => {
                "has text that the chat template changes, to upper case for example, so it cannot be found in what the \
                 template writes, and the loss mask is unknown; use a chat template that writes it as it is"
            }
            false => {
                "has text that the chat template leaves out, so the model would learn to answer nothing; use a chat \
                 template that writes it, or leave the row out"
            }
        };
        Err(Error::invalid(format!("message {} (assistant)", index + 1), message))
    }

    /// Returns whether the template writes calls of tools at this place of a conversation.
    pub(super) fn writes_calls(&self, chat: &Chat<'_>, index: usize) -> bool {
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

    /// Returns whether the text of a chat is the same without its descriptions of tools.
    pub(super) fn leaves_out_tools(&self, messages: &[Value], tools: Option<&Value>, text: &str) -> bool {
        tools.is_some() && self.render(messages, None, false).is_some_and(|without| without == text)
    }

    /// Number of answers whose reasoning is in none of the trained texts.
    pub(super) fn reasoning_left_out(
        &self,
        messages: &[Value],
        trained: &[usize],
        texts: &[MaskedText],
    ) -> usize {
        let is_left_out = |index: &&usize| {
            let Some(thought) = reasoning(&messages[**index]) else { return false };
            let spans =
                texts.iter().flat_map(|text| text.spans.iter().map(|span| &text.text[span.bytes.clone()]));
            !spans.into_iter().any(|span| span.contains(thought)) && !self.writes_reasoning(messages, **index)
        };
        trained.iter().filter(is_left_out).count()
    }

    /// Returns whether the template writes the reasoning of a message in a changed form.
    fn writes_reasoning(&self, messages: &[Value], index: usize) -> bool {
        let with = |text: &str| {
            let mut changed = messages[..=index].to_vec();
            for key in REASONING {
                if changed[index][key].is_string() {
                    changed[index][key] = text.into();
                }
            }
            self.render(&changed, None, false)
        };
        let text = with(ANSWER);
        text.as_ref().is_some_and(|text| !text.contains(ANSWER)) && text != with(QUESTION)
    }
}
