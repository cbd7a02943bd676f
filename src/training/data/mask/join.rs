//! Answers joined into as few texts as contain them as they are.

use super::MaskedText;
use super::turns::Turn;

/// Joins the answers that the text of a later one contains as they are; each other one is a text of its own.
pub(super) fn join(turns: Vec<Turn>) -> Vec<MaskedText> {
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
pub(super) fn ends_there(text: &str, at: usize, token: &str) -> Option<usize> {
    let rest = &text[at..];
    let space = rest.len() - rest.trim_start().len();
    rest[space..].starts_with(token).then(|| at + space + token.len())
}
