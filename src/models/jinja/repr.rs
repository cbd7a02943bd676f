//! Values as Python's `str` and `repr` write them.

use std::sync::OnceLock;

use fancy_regex::Regex;

use super::value::{Value, View};
use super::{Result, TemplateError, limits};

/// Values nested deeper than this are refused, as the writers are recursive.
pub(super) const MAX_DEPTH: usize = 128;

/// Python's `str`.
pub(super) fn text(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_text(&mut out, value)?;
    Ok(out)
}

/// Writes a value as Python's `str` does.
pub(super) fn write_text(out: &mut String, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => {}
        Value::Str(text) => out.push_str(&text.text),
        _ => write_repr(out, value, 0)?,
    }
    limits::text(out.len())
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::new("the value is nested too deeply"));
    }
    limits::spend(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
        Value::Int(value) => out.push_str(&integer(value)?),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Str(text) => {
            limits::spend(text.text.len() / 8)?;
            if text.is_markup {
                out.push_str("Markup(");
            }
            write_quoted(out, &text.text);
            if text.is_markup {
                out.push(')');
            }
        }
        Value::List(items) => write_items(out, ("[", "]"), items, depth)?,
        Value::Tuple(items) | Value::Group(items) => {
            write_items(out, ("(", if items.len() == 1 { ",)" } else { ")" }), items, depth)?;
        }
        Value::Dict(dict) => {
            out.push('{');
            for (index, (key, value)) in dict.entries().iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, value, depth + 1)?;
            }
            out.push('}');
        }
        Value::View(view, _) => {
            out.push_str(match view {
                View::Keys => "dict_keys(",
                View::Values => "dict_values(",
                View::Items => "dict_items(",
            });
            write_items(out, ("[", "]"), &value.items()?, depth)?;
            out.push(')');
        }
        Value::Range(range) => {
            out.push_str(&format!("range({}, {}", range.start, range.stop));
            if range.step != 1 {
                out.push_str(&format!(", {}", range.step));
            }
            out.push(')');
        }
        Value::Namespace(namespace) => {
            out.push_str("<Namespace ");
            write_repr(out, &Value::Dict(namespace.borrow().clone().into()), depth + 1)?;
            out.push('>');
        }
        Value::Macro(node) => {
            out.push_str("<Macro ");
            match node.node.name.as_str() {
                "caller" => out.push_str("anonymous"),
                name => write_quoted(out, name),
            }
            out.push('>');
        }
        // Python writes their addresses.
        Value::Iterator(_)
        | Value::Loop(_)
        | Value::Method(_)
        | Value::Function(_)
        | Value::Joiner(_)
        | Value::Cycler(_) => {
            return Err(TemplateError::new(format!("a {} cannot be written as text", value.type_name())));
        }
    }
    limits::text(out.len())
}

fn write_items(out: &mut String, (open, close): (&str, &str), items: &[Value], depth: usize) -> Result<()> {
    out.push_str(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(out, item, depth + 1)?;
    }
    out.push_str(close);
    Ok(())
}

/// An integer. Python refuses to write those of more than 4300 digits.
pub(super) fn integer(value: &num_bigint::BigInt) -> Result<String> {
    if value.bits() > 14_400 {
        return Err(TemplateError::new("exceeds the limit (4300 digits) for integer string conversion"));
    }
    Ok(value.to_string())
}

/// A float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{x:?}")
}

/// Text in quotes: double ones if it has single ones only.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
                code @ ..0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for a character.
pub(super) fn is_printable(c: char) -> bool {
    static OTHER: OnceLock<Option<Regex>> = OnceLock::new();
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    has_class(&OTHER, r"[\p{C}\p{Z}]", c) == Some(false)
}

/// Returns true if a character is in a class, whose expression is compiled once.
pub(super) fn has_class(cell: &OnceLock<Option<Regex>>, class: &str, c: char) -> Option<bool> {
    let regex = cell.get_or_init(|| Regex::new(class).ok()).as_ref()?;
    regex.is_match(c.encode_utf8(&mut [0; 4])).ok()
}
