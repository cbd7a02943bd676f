//! JSON as training data needs it: a key that appears twice is an error, errors say what is there instead of JSON, and
//! integers keep all of their digits.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::text::line_of;
use crate::models::parse_json;

/// Mistake in a JSON text, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Line, counted from 1.
    pub(super) line: usize,
    /// Cause, with the column.
    pub(super) cause: String,
}

/// Parses one JSON value.
pub(super) fn parse(text: &str) -> Result<Value, Wrong> {
    match serde_json::from_str::<Strict>(text) {
        Ok(Strict(value)) if !has_unusual_integers(text) => Ok(value),
        Ok(_) => parse_json(text).map_err(|error| wrong(text, &error)),
        Err(error) => {
            // An integer of more than 308 digits is beyond the range of floats, too.
            let exact = error.to_string().starts_with("number out of range").then(|| parse_json(text));
            exact.and_then(Result::ok).ok_or_else(|| wrong(text, &error))
        }
    }
}

/// Returns `true` if a text may contain an integer beyond 64 bits, or `-0`, which is an integer in Python.
fn has_unusual_integers(text: &str) -> bool {
    let long = |digits: &[u8]| digits.len() >= 19 && digits[0].is_ascii_digit();
    let mut runs = text.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit());
    text.contains("-0") || runs.any(long)
}

/// Parses a JSON list and returns each item with the line it begins on.
pub(super) fn parse_list(text: &str) -> Result<Vec<(usize, Value)>, Wrong> {
    let mut items = Vec::new();
    let mut at = skip_space(text, 0);
    let mut counted = (0, 1);
    let mut line_at = |place: usize| {
        counted = (place, counted.1 + line_of(&text.as_bytes()[counted.0..place]) - 1);
        counted.1
    };
    at = skip_space(text, at + 1);
    if text[at..].starts_with(']') {
        return Ok(items);
    }
    loop {
        let line = line_at(at);
        let inside = |inner: Wrong| Wrong { line: line + inner.line - 1, cause: inner.cause };
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<IgnoredAny>();
        let end = match stream.next() {
            Some(Ok(_)) => at + stream.byte_offset(),
            Some(Err(error)) => return Err(inside(wrong(&text[at..], &error))),
            None => return Err(Wrong { line, cause: "the list ends without a closing ]".into() }),
        };
        items.push((line, parse(&text[at..end]).map_err(inside)?));
        at = skip_space(text, end);
        let line = line_at(at);
        match text.as_bytes().get(at) {
            Some(b',') => at = skip_space(text, at + 1),
            Some(b']') => break,
            Some(_) => return Err(Wrong { line, cause: "a comma is missing between two items".into() }),
            None => return Err(Wrong { line, cause: "the list ends without a closing ]".into() }),
        }
        if text[at..].starts_with(']') {
            return Err(Wrong { line: line_at(at), cause: "a comma follows the last item".into() });
        }
    }
    let rest = skip_space(text, at + 1);
    match rest == text.len() {
        true => Ok(items),
        false => Err(Wrong {
            line: line_at(rest),
            cause: "more text follows the list; a file is one list, or has an object on each line".into(),
        }),
    }
}

/// The keys of a JSON object and the byte ranges of their values; `None` for other texts.
pub(super) fn fields(text: &str) -> Option<Vec<(String, Range<usize>)>> {
    let value_end = |at: usize| {
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<IgnoredAny>();
        stream.next()?.ok().map(|_| at + stream.byte_offset())
    };
    let mut fields = Vec::new();
    let mut at = skip_space(text, 0);
    let mut before = b'{';
    while text.as_bytes().get(at) == Some(&before) {
        let key = skip_space(text, at + 1);
        let key_end = value_end(key)?;
        let name: String = serde_json::from_str(&text[key..key_end]).ok()?;
        let value = skip_space(text, skip_space(text, key_end) + 1);
        let end = value_end(value)?;
        fields.push((name, value..end));
        (at, before) = (skip_space(text, end), b',');
    }
    text[at..].starts_with('}').then_some(fields)
}

fn skip_space(text: &str, from: usize) -> usize {
    text.len() - text[from.min(text.len())..].trim_start().len()
}

/// Explains an error of the parser.
fn wrong(text: &str, error: &serde_json::Error) -> Wrong {
    let message = error.to_string();
    let cause = message.split(" at line ").next().unwrap_or(&message);
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let cause = match word_at(line, error.column().saturating_sub(1)) {
        word @ ("NaN" | "Infinity" | "-Infinity" | "nan" | "inf" | "-inf") => {
            format!("{word} is not JSON; write null or a number")
        }
        word @ ("None" | "True" | "False") => {
            format!("{word} is Python, not JSON; write the file with json.dumps")
        }
        _ if cause.starts_with("key must be a string") && line.contains('\'') => {
            "a key must be in double quotes; a Python dictionary is not JSON, write the file with json.dumps"
                .to_owned()
        }
        _ if cause.contains("surrogate") || cause.contains("unexpected end of hex escape") => {
            "half a surrogate pair (\\ud800 to \\udfff) is not a character; remove it".to_owned()
        }
        _ => cause.to_owned(),
    };
    Wrong { line: error.line().max(1), cause: format!("{cause} (column {})", error.column()) }
}

/// The word around a byte of a line.
fn word_at(line: &str, at: usize) -> &str {
    let part = |c: char| c.is_ascii_alphabetic() || c == '-';
    let Some((before, after)) = line.split_at_checked(at.min(line.len())) else { return "" };
    let start = before.len() - before.chars().rev().take_while(|&c| part(c)).count();
    let end = before.len() + after.chars().take_while(|&c| part(c)).count();
    &line[start..end]
}

/// A value whose objects have no key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key '{key}' appears twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::big_integer;

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().cause
    }

    #[test]
    fn what_is_not_json_is_explained() {
        assert_eq!(refused(r#"{"a": NaN}"#), "NaN is not JSON; write null or a number (column 7)");
        assert!(refused(r#"{"a": -Infinity}"#).starts_with("-Infinity is not JSON"));
        assert!(refused(r#"{"a": None}"#).starts_with("None is Python, not JSON"));
        assert!(refused(r#"{"a": "\ud800"}"#).starts_with("half a surrogate pair"));
        assert!(refused(r#"{"a": "\ud800x"}"#).starts_with("half a surrogate pair"));
        assert!(refused(r#"{"a": "\udc00"}"#).starts_with("half a surrogate pair"));
        assert!(refused(r#"{"a": 1,}"#).starts_with("trailing comma"));
        assert!(refused(r#"{"a": {"b": 1, "b": 2}}"#).starts_with("the key 'b' appears twice"));
        assert!(refused("{'a': 1}").starts_with("a key must be in double quotes; a Python dictionary"));
        assert!(refused("{a: 1}").starts_with("key must be a string"));
        assert_eq!(parse(r#"{"a": ["\ud83d\ude00", 1.5, -2]}"#).unwrap(), json!({"a": ["😀", 1.5, -2]}));
    }

    #[test]
    fn integers_keep_their_digits() {
        let digits = "9".repeat(400);
        for number in ["18446744073709551616", "-9223372036854775809", digits.as_str()] {
            for text in
                [format!("{{\"a\": [{number}]}}"), format!("{{\"b\": \"{number}\", \"a\": [{number}]}}")]
            {
                let value = parse(&text).unwrap();
                assert_eq!(big_integer(&value["a"][0]), Some(number), "{text}");
                assert_eq!(parse_list(&format!("[1, {text}]")).unwrap()[1].1, value);
            }
        }
        assert_eq!(
            parse("[-0, 0, 9223372036854775807, -0.0, 1e3]").unwrap().to_string(),
            "[0,0,9223372036854775807,-0.0,1000.0]"
        );
        assert!(refused(r#"{"a": 18446744073709551616, "a": 1}"#).starts_with("the key 'a' appears twice"));
        assert!(refused("1e999").starts_with("number out of range"));
    }

    #[test]
    fn items_of_a_list_have_their_lines() {
        let items = parse_list("\n[ {\"a\":\n1},\n\n2 , \"x\"]\n").unwrap();
        assert_eq!(items, [(2, json!({"a": 1})), (5, json!(2)), (5, json!("x"))]);
        assert_eq!(parse_list(" [ ] ").unwrap(), []);
    }

    #[test]
    fn values_of_an_object_have_their_places() {
        let text = " {\"a\" : [1,\n2], \"b,}\": {\"c\": 1}}\n";
        let found = fields(text).unwrap();
        let values: Vec<_> = found.iter().map(|(key, range)| (key.as_str(), &text[range.clone()])).collect();
        assert_eq!(values, [("a", "[1,\n2]"), ("b,}", "{\"c\": 1}")]);
        for other in ["[1]", "{", "{\"a\": 1", "{\"a\": }", ""] {
            assert_eq!(fields(other), None, "{other}");
        }
    }

    #[test]
    fn errors_in_a_list_have_their_lines() {
        let line = |text: &str| parse_list(text).map_err(|wrong| (wrong.line, wrong.cause)).unwrap_err();
        assert_eq!(line("[1,\n2,\n]"), (3, "a comma follows the last item".into()));
        assert_eq!(line("[1\n2]"), (2, "a comma is missing between two items".into()));
        assert_eq!(line("[1,\n2\n"), (3, "the list ends without a closing ]".into()));
        assert_eq!(line("[1,"), (1, "the list ends without a closing ]".into()));
        assert_eq!(
            line("[1]\n[2]"),
            (2, "more text follows the list; a file is one list, or has an object on each line".into())
        );
        assert_eq!(line("[{},\n{\"a\":\n NaN}]").0, 3);
    }
}
