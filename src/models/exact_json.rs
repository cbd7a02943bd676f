//! JSON whose integers keep all of their digits, as Python's do.

use std::sync::OnceLock;

use serde_json::Value as Json;

/// Reads JSON as [`ChatTemplate`](super::ChatTemplate) renders it: an integer beyond 64 bits keeps all of its digits.
///
/// Such an integer becomes an object with one private field, which templates see as the integer.
///
/// # Errors
///
/// The error of `serde_json` for a text that is not JSON.
pub fn parse_json(text: &str) -> serde_json::Result<Json> {
    super::jinja::parse_json(text)
}

/// Returns the digits of an integer beyond 64 bits as [`parse_json`] returns it; `None` for any other value.
pub fn big_integer(value: &Json) -> Option<&str> {
    static FIELD: OnceLock<String> = OnceLock::new();
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    let field = FIELD.get_or_init(|| {
        let integer = parse_json("18446744073709551616").unwrap_or_default();
        integer.as_object().and_then(|fields| fields.keys().next().cloned()).unwrap_or_default()
    });
    fields.get(field)?.as_str()
}

/// Writes JSON as [`parse_json`] reads it, on one line or, if `pretty`, with one item on each line.
pub fn write_json(value: &Json, pretty: bool) -> String {
    let mut text = String::new();
    write_value(&mut text, value, pretty.then_some(0));
    text
}

fn write_value(out: &mut String, value: &Json, depth: Option<usize>) {
    let inner = depth.map(|depth| depth + 1);
    let line = |out: &mut String, depth: Option<usize>| {
        if let Some(depth) = depth {
            out.push('\n');
            out.push_str(&"  ".repeat(depth));
        }
    };
    let separator = if depth.is_some() { ": " } else { ":" };
    if let Some(digits) = big_integer(value) {
        out.push_str(digits);
        return;
    }
    match value {
        Json::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                out.push(if index == 0 { '[' } else { ',' });
                line(out, inner);
                write_value(out, item, inner);
            }
            line(out, depth);
            out.push(']');
        }
        Json::Object(fields) if !fields.is_empty() => {
            for (index, (key, item)) in fields.iter().enumerate() {
                out.push(if index == 0 { '{' } else { ',' });
                line(out, inner);
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(separator);
                write_value(out, item, inner);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_length_are_written_as_they_were_read() {
        let text = r#"{"a":[18446744073709551616,-1],"b":{},"c":[],"d":"\n"}"#;
        let value = parse_json(text).unwrap();
        assert_eq!(write_json(&value, false), text);
        let pretty = "{\n  \"a\": [\n    18446744073709551616,\n    -1\n  ],\n  \"b\": {},\n  \"c\": [],\n  \"d\": \"\\n\"\n}";
        assert_eq!(write_json(&value, true), pretty);
        assert_eq!(big_integer(&value["a"][0]), Some("18446744073709551616"));
        assert_eq!(big_integer(&value["a"][1]), None);
    }
}
