//! HTML in templates: escapes, tags and attributes.

use super::value::Value;
use super::{Result, TemplateError, limits, repr};

/// Escapes what HTML gives a meaning to, as MarkupSafe does.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// Removes comments and tags, joins runs of space and replaces entities.
pub(super) fn strip_tags(text: &str) -> Result<String> {
    let without_comments = remove(text, "<!--", "-->");
    let without_tags = remove(&without_comments, "<", ">");
    let words: Vec<&str> =
        without_tags.split(super::lexer::is_space).filter(|word| !word.is_empty()).collect();
    unescape(&words.join(" "))
}

/// Removes the shortest parts between two marks. A mark without the other stays.
fn remove(text: &str, open: &str, close: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        let Some(end) = rest[start + open.len()..].find(close) else { break };
        out.push_str(&rest[..start]);
        rest = &rest[start + open.len() + end + close.len()..];
    }
    out.push_str(rest);
    out
}

/// Replaces the entities that `escape` writes. Others are refused, as there are thousands.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let known =
            [("amp;", '&'), ("lt;", '<'), ("gt;", '>'), ("quot;", '"'), ("#34;", '"'), ("#39;", '\'')];
        match known.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, c)) => {
                out.push(*c);
                rest = &rest[name.len()..];
            }
            None if rest.starts_with(|c: char| c == '#' || c.is_alphanumeric()) => {
                return Err(TemplateError::new("striptags: only the entities of & < > \" ' are supported"));
            }
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Attributes of a tag, from an object.
pub(super) fn attributes(value: &Value, leading_space: bool) -> Result<String> {
    let Value::Dict(dict) = value else { return Err(TemplateError::new("xmlattr needs an object")) };
    let mut out = String::new();
    for (key, value) in dict.entries() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let name = key.as_str().ok_or_else(|| TemplateError::new("xmlattr: names must be text"))?;
        if name.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return Err(TemplateError::new(format!("Invalid character in attribute name: {name:?}")));
        }
        if leading_space || !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&format!("{}=\"{}\"", escape(name), escaped(value)?));
        limits::text(out.len())?;
    }
    Ok(out)
}

/// A value as HTML. Text marked as safe stays as it is.
pub(super) fn escaped(value: &Value) -> Result<String> {
    match value {
        Value::Str(text) if text.is_markup => Ok(text.text.to_string()),
        _ => Ok(escape(&repr::text(value)?)),
    }
}

/// Percent-encodes a text for a URL.
pub(super) fn quote(text: &str, in_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
