//! Text in lines of a width: Python's `pprint.pformat` and `textwrap.wrap`.

use super::lexer::is_space;
use super::strings::split_lines;
use super::value::{Dict, Value};
use super::{Result, TemplateError, limits, repr};

const WIDTH: usize = 80;

/// `pformat` with its defaults.
pub(super) fn pformat(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(&mut out, &with_sorted_keys(value, 0)?, 0, 0, 1)?;
    Ok(out)
}

fn with_sorted_keys(value: &Value, depth: usize) -> Result<Value> {
    if depth > repr::MAX_DEPTH {
        return Err(TemplateError::new("pprint: the value is nested too deeply"));
    }
    limits::spend(4)?;
    let all =
        |items: &[Value]| items.iter().map(|item| with_sorted_keys(item, depth + 1)).collect::<Result<_>>();
    Ok(match value {
        Value::List(items) => Value::list(all(items)?),
        Value::Tuple(items) | Value::Group(items) => Value::tuple(all(items)?),
        Value::Dict(dict) => {
            let mut entries = dict.entries().to_vec();
            if entries.iter().any(|(key, _)| key.as_str().is_none()) {
                return Err(TemplateError::new("pprint of objects whose keys are no text is not supported"));
            }
            entries.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
            let mut sorted = Dict::default();
            for (key, value) in entries {
                sorted.insert(key, with_sorted_keys(&value, depth + 1)?)?;
            }
            Value::Dict(sorted.into())
        }
        other => other.clone(),
    })
}

/// Writes a value at an indent, with room for what comes after it on its line.
fn write(out: &mut String, value: &Value, indent: usize, allowance: usize, level: usize) -> Result<()> {
    let whole = repr::repr(value)?;
    let length = whole.chars().count() as i64;
    if length <= WIDTH as i64 - indent as i64 - allowance as i64 {
        out.push_str(&whole);
        return Ok(());
    }
    match value {
        Value::Dict(dict) if dict.len() > 0 => {
            out.push('{');
            let last = dict.len() - 1;
            for (index, (key, value)) in dict.entries().iter().enumerate() {
                let key = repr::repr(key)?;
                out.push_str(&key);
                out.push_str(": ");
                let inner = indent + 1 + key.chars().count() + 2;
                write(out, value, inner, if index == last { allowance + 1 } else { 1 }, level + 1)?;
                if index < last {
                    new_line(out, ",", indent + 1)?;
                }
            }
            out.push('}');
        }
        Value::List(items) => write_items(out, ("[", "]"), items, indent, allowance, level)?,
        Value::Tuple(items) => {
            let close = if items.len() == 1 { ",)" } else { ")" };
            write_items(out, ("(", close), items, indent, allowance, level)?;
        }
        Value::Str(text) if !text.text.is_empty() && !text.is_markup => {
            write_text(out, &text.text, indent, allowance, level)?;
        }
        Value::View(..) => return Err(TemplateError::new("pprint of a long view is not supported")),
        _ => out.push_str(&whole),
    }
    Ok(())
}

fn new_line(out: &mut String, before: &str, indent: usize) -> Result<()> {
    limits::text(out.len().saturating_add(indent))?;
    out.push_str(before);
    out.push('\n');
    out.push_str(&" ".repeat(indent));
    Ok(())
}

fn write_items(
    out: &mut String,
    (open, close): (&str, &str),
    items: &[Value],
    indent: usize,
    allowance: usize,
    level: usize,
) -> Result<()> {
    out.push_str(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            new_line(out, ",", indent + 1)?;
        }
        let after = if index + 1 == items.len() { allowance + close.len() } else { 1 };
        write(out, item, indent + 1, after, level + 1)?;
    }
    out.push_str(close);
    Ok(())
}

/// A long text in pieces, one a line.
fn write_text(out: &mut String, text: &str, indent: usize, allowance: usize, level: usize) -> Result<()> {
    let (indent, allowance) = if level == 1 { (indent + 1, allowance + 1) } else { (indent, allowance) };
    let width = WIDTH as i64 - indent as i64;
    let length = |text: &str| -> Result<i64> { Ok(repr::repr(&Value::from(text))?.chars().count() as i64) };
    let lines = split_lines(text, true)?;
    let mut pieces: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let is_last = index + 1 == lines.len();
        let room = width - if is_last { allowance as i64 } else { 0 };
        if length(line)? <= room {
            pieces.push((*line).to_owned());
            continue;
        }
        let parts = words(line);
        let mut current = String::new();
        for (at, part) in parts.iter().enumerate() {
            let room = width - if is_last && at + 1 == parts.len() { allowance as i64 } else { 0 };
            let candidate = format!("{current}{part}");
            if length(&candidate)? > room {
                if !current.is_empty() {
                    pieces.push(current);
                }
                current = (*part).to_owned();
            } else {
                current = candidate;
            }
        }
        if !current.is_empty() {
            pieces.push(current);
        }
    }
    let is_wrapped = pieces.len() > 1 && level == 1;
    if is_wrapped {
        out.push('(');
    }
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            new_line(out, "", indent)?;
        }
        out.push_str(&repr::repr(&Value::from(piece.as_str()))?);
    }
    if is_wrapped {
        out.push(')');
    }
    Ok(())
}

/// Words with the space after them.
fn words(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let end = rest[word..].find(|c: char| !is_space(c)).map_or(rest.len(), |space| word + space);
        parts.push(&rest[..end]);
        rest = &rest[end..];
    }
    parts
}

/// Lines of at most so many characters.
pub(super) fn wrap(line: &str, width: usize, break_long: bool, hyphens: bool) -> Result<Vec<String>> {
    let is_blank = |c: char| matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ');
    let mut chunks: Vec<Vec<char>> = Vec::new();
    for c in line.chars() {
        match chunks.last_mut() {
            Some(chunk) if is_blank(chunk[0]) == is_blank(c) => chunk.push(c),
            _ => chunks.push(vec![c]),
        }
    }
    if hyphens && chunks.iter().any(|chunk| chunk.len() > 1 && chunk.contains(&'-')) {
        return Err(TemplateError::new(
            "wordwrap of words with hyphens is not supported: add break_on_hyphens=false",
        ));
    }
    chunks.reverse();
    let mut lines: Vec<String> = Vec::new();
    while let Some(chunk) = chunks.last() {
        if is_blank(chunk[0]) && !lines.is_empty() {
            chunks.pop();
        }
        let mut current: Vec<char> = Vec::new();
        let mut ends_blank = 0;
        while let Some(chunk) = chunks.pop_if(|chunk| current.len() + chunk.len() <= width) {
            ends_blank = if is_blank(chunk[0]) { chunk.len() } else { 0 };
            current.extend(chunk);
        }
        if let Some(chunk) = chunks.last_mut()
            && chunk.len() > width
        {
            if break_long {
                let rest = chunk.split_off(width - current.len());
                ends_blank = 0;
                current.append(chunk);
                *chunk = rest;
            } else if current.is_empty() {
                current = chunks.pop().unwrap_or_default();
                ends_blank = 0;
            }
        }
        current.truncate(current.len() - ends_blank);
        if !current.is_empty() {
            lines.push(current.into_iter().collect());
        }
    }
    Ok(lines)
}
