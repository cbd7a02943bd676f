//! Long conversations: the places of answers that are written alike are found from a few of them.
//!
//! To find an answer, the conversation up to it is rendered, which for every answer takes time that is quadratic in their
//! number. In a long conversation, marks around the content of every message show in one rendering what is written
//! between two messages. Answers in the same place of a turn, with the same text before and after them, are masked like
//! the first, the middle and the last of them, which are found one by one and must be part of the whole text as they are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::join::ends_there;
use super::turns::Turn;
use super::{Chat, Masker, Span};
use crate::Result;

/// Conversations with fewer trained answers are masked answer by answer.
const MIN_ANSWERS: usize = 8;

/// Byte ranges of the content of messages in the text of their conversation; `None` for messages without text.
type Places = Vec<Option<(usize, usize)>>;

/// Context on which the text around an answer can depend: the roles before and after it, and its keys.
type Kind = (String, String, Vec<String>);

/// Text between the content of two messages and the trained range between them.
#[derive(Debug, PartialEq, Eq)]
struct Frame<'a> {
    /// Text from the content before to the trained range.
    header: &'a str,
    /// Text from the token that ends the trained range to the content after.
    trailer: &'a str,
    /// Length of that token.
    end: usize,
    whole_first_token: bool,
}

impl Masker<'_> {
    /// The places of all trained answers.
    pub(super) fn turns(&self, chat: &Chat<'_>, trained: &[usize]) -> Result<Vec<Turn>> {
        let alike = (trained.len() >= MIN_ANSWERS).then(|| self.places(chat)).flatten();
        let mut known = match alike {
            Some(places) => self.alike(chat, trained, &places)?,
            None => BTreeMap::new(),
        };
        trained.iter().map(|&index| known.remove(&index).map_or_else(|| self.turn(chat, index), Ok)).collect()
    }

    /// The content of each message in the text, if marks around it change nothing else.
    fn places(&self, chat: &Chat<'_>) -> Option<Places> {
        let mut unused = ('\u{f0000}'..='\u{ffffd}').filter(|mark| !chat.whole.contains(*mark));
        let [open, close] = [unused.next()?, unused.next()?];
        let mut marked = chat.messages.to_vec();
        for message in &mut marked {
            if let Some(content) = message["content"].as_str().filter(|content| !content.trim().is_empty()) {
                let core = content.trim();
                message["content"] = content.replacen(core, &format!("{open}{core}{close}"), 1).into();
            }
        }
        let text = self.render(&marked, chat.tools, false)?;
        let mut plain = String::with_capacity(text.len());
        let mut found = Vec::new();
        let mut start = None;
        for c in text.chars() {
            if c == open {
                start = Some(plain.len());
            } else if c == close {
                found.push((start.take()?, plain.len()));
            } else {
                plain.push(c);
            }
        }
        if plain != chat.whole {
            return None;
        }
        let mut found = found.into_iter();
        let mut places = Places::new();
        for message in chat.messages {
            let core = message["content"].as_str().unwrap_or_default().trim();
            let place = if core.is_empty() { None } else { Some(found.next()?) };
            if place.is_some_and(|(start, end)| &plain[start..end] != core) {
                return None;
            }
            places.push(place);
        }
        found.next().is_none().then_some(places)
    }

    /// The places of answers between two messages with text, of kinds with more than three answers.
    fn alike(&self, chat: &Chat<'_>, trained: &[usize], places: &Places) -> Result<BTreeMap<usize, Turn>> {
        let mut kinds: BTreeMap<Kind, Vec<(usize, usize, usize)>> = BTreeMap::new();
        for &index in trained.iter().filter(|&&index| index > 0 && index + 1 < chat.messages.len()) {
            if let (Some((_, before)), Some((after, _))) = (places[index - 1], places[index + 1]) {
                kinds.entry(kind(chat, index)).or_default().push((index, before, after));
            }
        }
        let mut turns = BTreeMap::new();
        for members in kinds.into_values().filter(|members| members.len() > 3) {
            let mut frames = Vec::new();
            for member in [0, members.len() / 2, members.len() - 1].map(|at| members[at]) {
                let turn = self.turn(chat, member.0)?;
                frames.push(self.frame(chat, &turn, member));
                turns.insert(member.0, turn);
            }
            let [Some(frame), rest @ ..] = frames.as_slice() else { continue };
            if rest.iter().any(|other| other.as_ref() != Some(frame)) {
                continue;
            }
            for (index, before, after) in members {
                let between = &chat.whole[before..after];
                let room = between.len() - frame.header.len().min(between.len());
                let fits = between.starts_with(frame.header)
                    && between.ends_with(frame.trailer)
                    && room >= frame.trailer.len();
                if fits && !turns.contains_key(&index) {
                    let end = after - frame.trailer.len() + frame.end;
                    let span = Span {
                        bytes: before + frame.header.len()..end,
                        whole_first_token: frame.whole_first_token,
                    };
                    turns.insert(index, Turn { text: chat.whole[..end].to_owned(), span, end: None });
                }
            }
        }
        Ok(turns)
    }

    /// The text around a turn; `None` if the text of the conversation does not contain the turn as it is.
    fn frame<'c>(
        &self,
        chat: &Chat<'c>,
        turn: &Turn,
        (_, before, after): (usize, usize, usize),
    ) -> Option<Frame<'c>> {
        let start = turn.span.bytes.start;
        if chat.whole.as_bytes().get(..turn.span.bytes.end) != turn.text.as_bytes().get(..turn.span.bytes.end)
        {
            return None;
        }
        let to = match &turn.end {
            None => turn.span.bytes.end,
            Some(end) if end.text.is_empty() => return None,
            Some(end) => ends_there(chat.whole, turn.span.bytes.end, &end.text)?,
        };
        let trained = chat.whole.get(start..to)?;
        let tokens = self.special.iter().filter(|token| trained.ends_with(&token.text));
        let end = tokens.map(|token| token.text.len()).max().unwrap_or(0);
        Some(Frame {
            header: chat.whole.get(before..start)?,
            trailer: chat.whole.get(to - end..after)?,
            end,
            whole_first_token: turn.span.whole_first_token,
        })
    }
}

fn kind(chat: &Chat<'_>, index: usize) -> Kind {
    let is_given = |value: &Value| !matches!(value, Value::Null) && *value != "";
    let fields = chat.messages[index].as_object().into_iter().flatten();
    let keys = fields.filter(|(_, value)| is_given(value)).map(|(key, _)| key.clone()).collect();
    (chat.role(index.checked_sub(1)).to_owned(), chat.role(Some(index + 1)).to_owned(), keys)
}
