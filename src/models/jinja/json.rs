//! JSON: values from it, and `tojson` as transformers defines it by Python's `json.dumps`.

use num_bigint::BigInt;
use serde_json::Value as Json;

use super::arguments::{Args, str};
use super::limits::MAX_DIGITS;
use super::repr::{self, MAX_DEPTH};
use super::value::{Dict, Value};
use super::{Result, TemplateError, limits};

/// Name of the only field of an object that stands for an integer beyond 64 bits, which `serde_json` has not.
const BIG_INTEGER: &str = "\u{f8ff}integer";

/// A JSON value for a template.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int.into()),
            (_, Some(int)) => Value::Int(int.into()),
            _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::list(items.iter().map(from_json).collect()),
        Json::Object(fields) => {
            if let Some(int) = big_integer(fields) {
                return Value::Int(int);
            }
            let entries = fields.iter().map(|(key, value)| (Value::from(key.as_str()), from_json(value)));
            Value::Dict(entries.collect::<Dict>().into())
        }
    }
}

/// Reads JSON whose integers may be beyond 64 bits. Those become objects that templates read as integers.
pub(in super::super) fn parse(text: &str) -> serde_json::Result<Json> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let (mut copied, mut at, mut in_text) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            b'-' | b'0'..=b'9' if !in_text => {
                let is_part = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = at + bytes[at..].iter().take_while(|b| is_part(b)).count();
                let number = &text[at..end];
                let is_integer = number.bytes().skip(1).all(|b| b.is_ascii_digit());
                let fits = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
                if number == "-0" {
                    // An integer in Python, a float elsewhere.
                    out.push_str(&text[copied..at]);
                    copied = at + 1;
                } else if is_integer && !fits && (2..=MAX_DIGITS).contains(&number.len()) {
                    out.push_str(&text[copied..at]);
                    out.push_str(&format!("{{\"{BIG_INTEGER}\":\"{number}\"}}"));
                    copied = end;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    serde_json::from_str(&out)
}

fn big_integer(fields: &serde_json::Map<String, Json>) -> Option<BigInt> {
    if fields.len() != 1 {
        return None;
    }
    fields.get(BIG_INTEGER)?.as_str()?.parse().ok()
}

/// `json.dumps`, which leaves text beyond ASCII as it is unless told otherwise.
pub(super) fn tojson(value: &Value, args: Args) -> Result<String> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = args.bind("tojson", names, 0)?;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.text.to_string()),
        Some(width) => {
            let width = super::arguments::int("tojson: indent", &width)?;
            let width = usize::try_from(width).unwrap_or(0);
            limits::text(width)?;
            Some(" ".repeat(width))
        }
    };
    let (item, key) = match separators {
        None | Some(Value::None) => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some(pair) => match pair.items()?.as_slice() {
            [item, key] => (str("tojson", item)?.to_owned(), str("tojson", key)?.to_owned()),
            _ => return Err(TemplateError::new("tojson: separators must be two texts")),
        },
    };
    let writer =
        Writer { indent, item, key, sort_keys: is_true(sort_keys), ensure_ascii: is_true(ensure_ascii) };
    let mut out = String::new();
    writer.write(&mut out, value, 0)?;
    Ok(out)
}

struct Writer {
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Writer {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::new("tojson: the value is nested too deeply"));
        }
        limits::text(out.len())?;
        limits::spend(value.cost())?;
        match value {
            Value::Str(text) => self.text(out, &text.text),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                self.container(out, ('[', ']'), depth, items, |out, item| self.write(out, item, depth + 1))?;
            }
            Value::Dict(dict) => {
                let mut entries = dict.entries().to_vec();
                if self.sort_keys {
                    sort_keys(&mut entries)?;
                }
                self.container(out, ('{', '}'), depth, &entries, |out, (key, value)| {
                    match key {
                        Value::Str(text) => self.text(out, &text.text),
                        key => self.text(out, &scalar(key, "keys must be str, int, float, bool or None")?),
                    }
                    out.push_str(&self.key);
                    self.write(out, value, depth + 1)
                })?;
            }
            value => out.push_str(&scalar(value, "the value is not JSON serializable")?),
        }
        Ok(())
    }

    fn container<T>(
        &self,
        out: &mut String,
        (open, close): (char, char),
        depth: usize,
        items: &[T],
        mut write: impl FnMut(&mut String, &T) -> Result<()>,
    ) -> Result<()> {
        let line = |out: &mut String, depth: usize| -> Result<()> {
            if let Some(indent) = &self.indent {
                limits::text(out.len().saturating_add(indent.len().saturating_mul(depth)))?;
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
            Ok(())
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1)?;
            limits::text(out.len())?;
            write(out, item)?;
        }
        if !items.is_empty() {
            line(out, depth)?;
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        let quoted = Json::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if (' '..='~').contains(&c) {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

fn scalar(value: &Value, message: &str) -> Result<String> {
    Ok(match value {
        Value::None => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(int) => repr::integer(int)?,
        Value::Float(float) if float.is_nan() => "NaN".to_owned(),
        Value::Float(float) if float.is_infinite() => {
            (if *float > 0.0 { "Infinity" } else { "-Infinity" }).to_owned()
        }
        Value::Float(float) => repr::float(*float),
        _ => return Err(TemplateError::new(format!("tojson: {message} ({})", value.type_name()))),
    })
}

fn sort_keys(entries: &mut [(Value, Value)]) -> Result<()> {
    let mut failed = None;
    entries.sort_by(|(a, _), (b, _)| match a.compare(b, "<") {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(error) => {
            failed.get_or_insert(error);
            std::cmp::Ordering::Equal
        }
    });
    failed.map_or(Ok(()), Err)
}
