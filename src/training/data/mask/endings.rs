//! The text that a chat template writes after an answer, with the token that ends the turn.

use serde_json::{Value, json};

use super::{ANSWER, Chat, EndToken, Masker, QUESTION, answer, common_prefix};

/// Text that a template writes after an answer.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) tail: String,
    /// Set if a generation prompt changes nothing: the template always or never writes one.
    pub(super) ignores_prompt: bool,
    pub(super) end: End,
}

#[derive(Debug, Clone)]
pub(super) enum End {
    /// So many bytes of the tail, the last of which are the token that ends the turn, or a marker that is no token.
    InTail(usize),
    /// A token that the template writes only when messages follow.
    Later(EndToken),
    /// None: this many bytes of the tail are a marker, and the model's own token follows.
    Missing(usize),
}

impl Masker<'_> {
    /// The text that the template writes after an answer at this place of a conversation.
    pub(super) fn ending(&self, chat: &Chat<'_>, index: usize) -> Option<Ending> {
        let key = chat.place(index);
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
}
