//! The loss mask of a template that marks the assistant's words itself.

use std::ops::Range;

use super::endings::End;
use super::join::join;
use super::turns::Turn;
use super::{Chat, EndToken, MaskedText, Masker, Span, is_answer};
use crate::{Error, Result};

impl Masker<'_> {
    /// The ranges of the template's own marks. An answer that no token ends gets the model's own.
    pub(super) fn by_blocks(
        &self,
        chat: &Chat<'_>,
        mut blocks: Vec<Range<usize>>,
        trained: &[usize],
    ) -> Result<Vec<MaskedText>> {
        let messages = chat.messages;
        let mut answers: Vec<usize> =
            (0..messages.len()).filter(|&index| is_answer(&messages[index])).collect();
        let is_one_each = blocks.len() == answers.len();
        if trained.len() < answers.len() {
            let untrained =
                answers.iter().find(|index| !trained.contains(index)).map_or(0, |index| index + 1);
            if !is_one_each {
                let message = "is not to be trained, but the chat template does not mark each answer by one {% generation %} \
                               block, so the answer cannot be told apart";
                return Err(Error::invalid(format!("message {untrained} (assistant)"), message));
            }
            (blocks, answers) =
                blocks.into_iter().zip(answers).filter(|(_, answer)| trained.contains(answer)).unzip();
        }
        let text = chat.whole;
        let span = |bytes: Range<usize>| Span { bytes, whole_first_token: false };
        let end = |block: &Range<usize>, answer: usize| {
            let has_token =
                self.special.iter().any(|token| text[block.clone()].trim_end().ends_with(&token.text));
            let is_missing =
                || self.ending(chat, answer).is_some_and(|ending| matches!(ending.end, End::Missing(_)));
            if has_token || !is_missing() { None } else { self.eos() }
        };
        let count = blocks.len();
        let mut ended = Vec::new();
        for (index, block) in blocks.into_iter().enumerate().filter(|(_, block)| !block.is_empty()) {
            // Of several blocks per answer only the last one of the chat is known to end its answer.
            let answer = match is_one_each {
                true => Some(answers[index]),
                false => answers.last().copied().filter(|_| index + 1 == count),
            };
            let end = answer.and_then(|answer| end(&block, answer));
            ended.push((block, end));
        }
        if ended.iter().any(|(_, end)| end.is_some()) {
            let turn = |(block, end): (Range<usize>, Option<EndToken>)| Turn {
                text: text[..block.end].to_owned(),
                span: span(block),
                end,
            };
            return Ok(join(ended.into_iter().map(turn).collect()));
        }
        let spans = ended.into_iter().map(|(block, _)| span(block)).collect();
        Ok(vec![MaskedText { text: text.to_owned(), spans, end: None }])
    }
}
