//! Python's methods of text.

use std::collections::HashSet;
use std::sync::OnceLock;

use super::arguments::{Args, int, int_or, str, str_or_none};
use super::lexer::is_space;
use super::value::{Text, Value};
use super::{Result, TemplateError, limits, repr};

/// Names of the methods that Python's text has.
pub(super) const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Methods whose result depends neither on whether the text is marked as safe nor on other text.
const MARKUP_METHODS: [&str; 5] = ["upper", "lower", "strip", "lstrip", "rstrip"];

/// Calls a method of a text. `format` and `format_map` are the interpreter's.
pub(super) fn call(text: &Text, name: &str, args: Args) -> Result<Value> {
    let s: &str = &text.text;
    if text.is_markup && !MARKUP_METHODS.contains(&name) && !returns_number(name) {
        return Err(TemplateError::new(format!(
            "{name}() of a text that is marked as safe is not supported"
        )));
    }
    let same_kind = |result: String| Ok(Value::Str(Text { text: result.into(), is_markup: text.is_markup }));
    match name {
        "upper" => args.none(name).and_then(|()| same_kind(s.to_uppercase())),
        "lower" => args.none(name).and_then(|()| same_kind(s.to_lowercase())),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, [""], 0)?;
            same_kind(strip(s, name, str_or_none(name, chars)?.as_deref()).to_owned())
        }
        "capitalize" => args.none(name).map(|()| capitalize(s).into()),
        "title" => args.none(name).map(|()| title(s).into()),
        "swapcase" => args.none(name).map(|()| swapcase(s).into()),
        "casefold" => args.none(name).and_then(|()| Ok(casefold(s)?.into())),
        "split" | "rsplit" => {
            let [separator, count] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = str_or_none(name, separator)?;
            split(s, name == "rsplit", separator.as_deref(), int_or(name, count, -1)?)
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            let lines = split_lines(s, keep.is_some_and(|keep| keep.is_true()))?;
            Ok(Value::list(lines.into_iter().map(Value::from).collect()))
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, [""], 1)?;
            partition(s, name, str(name, &required(separator))?)
        }
        "join" => {
            let [items] = args.bind(name, [""], 1)?;
            join(s, &required(items))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["", "", ""], 2)?;
            let (old, new) = (required(old), required(new));
            Ok(replace(s, str(name, &old)?, str(name, &new)?, int_or(name, count, -1)?)?.into())
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, [""], 1)?;
            let affix = required(affix);
            let affix = str(name, &affix)?;
            let rest = if name == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
            Ok(rest.unwrap_or(s).into())
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = args.bind(name, ["", "", ""], 1)?;
            has_affix(s, name, &required(affix), start, end)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [part, start, end] = args.bind(name, ["", "", ""], 1)?;
            search(s, name, str(name, &required(part))?, start, end)
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["", ""], 1)?;
            justify(s, name, int(name, &required(width))?, fill)
        }
        "zfill" => {
            let [width] = args.bind(name, [""], 1)?;
            let missing = missing(s, int(name, &required(width))?)?;
            let sign = usize::from(s.starts_with(['+', '-']));
            Ok(format!("{}{}{}", &s[..sign], "0".repeat(missing), &s[sign..]).into())
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            expand_tabs(s, int_or(name, size, 8)?)
        }
        "encode" => Err(TemplateError::new("encode() is not supported: templates have no use for bytes")),
        _ => match predicate(s, name)? {
            Some(result) => args.none(name).map(|()| Value::Bool(result)),
            None => Err(TemplateError::new(format!("the method {name}() of text is not supported"))),
        },
    }
}

fn returns_number(name: &str) -> bool {
    name.starts_with("is")
        || matches!(name, "startswith" | "endswith" | "find" | "rfind" | "count" | "index" | "rindex")
}

/// A bound argument that the binding has required.
pub(super) fn required(value: Option<Value>) -> Value {
    value.unwrap_or(Value::None)
}

/// `strip`, `lstrip` or `rstrip`.
pub(super) fn strip<'s>(text: &'s str, name: &str, chars: Option<&str>) -> &'s str {
    let set: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
    let is_stripped = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    match name {
        "lstrip" => text.trim_start_matches(is_stripped),
        "rstrip" => text.trim_end_matches(is_stripped),
        _ => text.trim_matches(is_stripped),
    }
}

/// The title case of a character, which differs from the upper case of ligatures.
fn push_title(out: &mut String, c: char) {
    let digraph = match u32::from(c) {
        0x1c4..=0x1c6 => Some('\u{1c5}'),
        0x1c7..=0x1c9 => Some('\u{1c8}'),
        0x1ca..=0x1cc => Some('\u{1cb}'),
        0x1f1..=0x1f3 => Some('\u{1f2}'),
        _ => None,
    };
    if let Some(digraph) = digraph {
        out.push(digraph);
        return;
    }
    let mut upper = c.to_uppercase();
    if c == '\u{149}' {
        out.extend(upper);
        return;
    }
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

pub(super) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        push_title(&mut out, first);
    }
    out + &chars.as_str().to_lowercase()
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || matches!(u32::from(c), 0x1c5 | 0x1c8 | 0x1cb | 0x1f2)
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_cased = false;
    for c in text.chars() {
        if after_cased {
            out.extend(c.to_lowercase());
        } else {
            push_title(&mut out, c);
        }
        after_cased = is_cased(c);
    }
    out
}

fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

/// Case folding by upper and lower case, which is right but for a few letters, which are refused.
fn casefold(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            0..=0x7f => out.push(c.to_ascii_lowercase()),
            0x130 | 0x131 | 0x13a0..=0x13ff | 0xab70..=0xabbf => {
                return Err(TemplateError::new(format!("casefold() of {c:?} is not supported")));
            }
            _ => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
        }
    }
    Ok(out)
}

fn split(text: &str, from_right: bool, separator: Option<&str>, count: i64) -> Result<Value> {
    // One part more than a list can have is enough to refuse it.
    let limit = usize::try_from(count).unwrap_or(usize::MAX).min(limits::MAX_ITEMS + 1);
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(TemplateError::new("empty separator")),
        Some(separator) if from_right => {
            parts.extend(text.rsplitn(limit.saturating_add(1), separator));
            parts.reverse();
        }
        Some(separator) => parts.extend(text.splitn(limit.saturating_add(1), separator)),
        None if from_right => {
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let start = if parts.len() == limit { 0 } else { last_space(rest) };
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            parts.reverse();
        }
        None => {
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end =
                    if parts.len() == limit { rest.len() } else { rest.find(is_space).unwrap_or(rest.len()) };
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
        }
    }
    limits::items(parts.len())?;
    Ok(Value::list(parts.into_iter().map(Value::from).collect()))
}

/// Position after the last space of a text.
fn last_space(text: &str) -> usize {
    text.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8())
}

/// The lines of a text, as Python separates them.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Result<Vec<&str>> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
        if lines.len() > limits::MAX_ITEMS {
            break;
        }
    }
    limits::items(lines.len())?;
    Ok(lines)
}

fn partition(text: &str, name: &str, separator: &str) -> Result<Value> {
    if separator.is_empty() {
        return Err(TemplateError::new("empty separator"));
    }
    let parts = match name {
        "partition" => match text.split_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => [text, "", ""],
        },
        _ => match text.rsplit_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => ["", "", text],
        },
    };
    Ok(Value::tuple(parts.into_iter().map(Value::from).collect()))
}

fn join(separator: &str, items: &Value) -> Result<Value> {
    let mut out = String::new();
    for (index, item) in items.items()?.iter().enumerate() {
        let Value::Str(text) = item else {
            return Err(TemplateError::new(format!(
                "sequence item {index}: expected str instance, {} found",
                item.type_name()
            )));
        };
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(&text.text);
        limits::text(out.len())?;
    }
    Ok(out.into())
}

/// Replaces the first `count` parts, or all if it is negative.
pub(super) fn replace(text: &str, old: &str, new: &str, count: i64) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(count);
    limits::spend((text.len() + old.len()) / 32)?;
    limits::text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}

/// Byte range of the characters from `start` to `end`, as slices count them. `None` if it is before its start.
fn byte_range(text: &str, name: &str, bounds: [Option<Value>; 2]) -> Result<Option<(usize, usize, usize)>> {
    let length = text.chars().count() as i64;
    let [start, end] = bounds.map(|bound| bound.filter(|bound| !matches!(bound, Value::None)));
    let clamp = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let start = clamp(int_or(name, start, 0)?);
    let end = clamp(int_or(name, end, i64::MAX)?).min(length);
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| {
        text.char_indices().nth(usize::try_from(at).unwrap_or(0)).map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some((byte(start), byte(end), usize::try_from(start).unwrap_or(0))))
}

fn has_affix(
    text: &str,
    name: &str,
    affix: &Value,
    start: Option<Value>,
    end: Option<Value>,
) -> Result<Value> {
    let range = byte_range(text, name, [start, end])?;
    let matches = |affix: &str| {
        range.is_some_and(|(start, end, _)| {
            let part = &text[start..end];
            if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) }
        })
    };
    match affix {
        Value::Tuple(affixes) | Value::Group(affixes) => {
            for affix in affixes.iter() {
                limits::spend(1 + affix.cost())?;
                if matches(str(name, affix)?) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        affix => Ok(Value::Bool(matches(str(name, affix)?))),
    }
}

fn search(text: &str, name: &str, part: &str, start: Option<Value>, end: Option<Value>) -> Result<Value> {
    let Some((from, to, first)) = byte_range(text, name, [start, end])? else {
        return match name {
            "count" => Ok(0.into()),
            "index" | "rindex" => Err(TemplateError::new("substring not found")),
            _ => Ok(Value::Int((-1).into())),
        };
    };
    let range = &text[from..to];
    if name == "count" {
        return Ok(range.matches(part).count().into());
    }
    match if name.starts_with('r') { range.rfind(part) } else { range.find(part) } {
        Some(at) => Ok((first + range[..at].chars().count()).into()),
        None if name.ends_with("find") => Ok(Value::Int((-1).into())),
        None => Err(TemplateError::new("substring not found")),
    }
}

/// Number of characters that a text lacks to a width.
fn missing(text: &str, width: i64) -> Result<usize> {
    let width = usize::try_from(width).unwrap_or(0);
    limits::text(width)?;
    Ok(width.saturating_sub(text.chars().count()))
}

fn justify(text: &str, name: &str, width: i64, fill: Option<Value>) -> Result<Value> {
    let fill = fill.map_or(Ok(" ".to_owned()), |fill| str(name, &fill).map(str::to_owned))?;
    if fill.chars().count() != 1 {
        return Err(TemplateError::new("The fill character must be exactly one character long"));
    }
    let missing = missing(text, width)?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd character to the left of texts whose width is odd.
        _ => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// `center` with spaces.
pub(super) fn center(text: &str, width: i64) -> Result<Value> {
    justify(text, "center", width, None)
}

fn expand_tabs(text: &str, size: i64) -> Result<Value> {
    let size = usize::try_from(size).unwrap_or(0);
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        if c == '\t' {
            let width = if size > 0 { size - column % size } else { 0 };
            limits::text(out.len().saturating_add(width))?;
            out.push_str(&" ".repeat(width));
            column += width;
        } else {
            out.push(c);
            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
        }
    }
    Ok(out.into())
}

/// The methods that ask about a text. `None` for other names.
fn predicate(text: &str, name: &str) -> Result<Option<bool>> {
    static LETTERS: OnceLock<Option<fancy_regex::Regex>> = OnceLock::new();
    static DECIMALS: OnceLock<Option<fancy_regex::Regex>> = OnceLock::new();
    let class = |cell: &'static OnceLock<Option<fancy_regex::Regex>>, class: &str, c: char| {
        repr::has_class(cell, class, c) == Some(true)
    };
    let is_letter =
        |c: char| if c.is_ascii() { c.is_ascii_alphabetic() } else { class(&LETTERS, r"\p{L}", c) };
    let is_decimal = |c: char| if c.is_ascii() { c.is_ascii_digit() } else { class(&DECIMALS, r"\p{Nd}", c) };
    let all = |test: &dyn Fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    // Digits beyond the decimal ones, such as superscripts, and numerals of other scripts.
    let is_other_number = |c: char| !c.is_ascii() && c.is_numeric() && !is_decimal(c);
    let has_cased = text.chars().any(is_cased);
    Ok(Some(match name {
        "isalpha" => all(&is_letter),
        "isdecimal" => all(&is_decimal),
        "isdigit" | "isnumeric" | "isalnum" => {
            let accepts = |c: char| is_decimal(c) || (name == "isalnum" && is_letter(c));
            if name != "isalnum" && text.chars().any(is_letter) {
                // Ideographs for numbers are letters.
                if !text.is_ascii() && name == "isnumeric" {
                    return Err(TemplateError::new("isnumeric() of other scripts is not supported"));
                }
                return Ok(Some(false));
            }
            if text.chars().any(is_other_number) {
                return Err(TemplateError::new(format!(
                    "{name}() of numerals such as ² or ½ is not supported"
                )));
            }
            all(&accepts)
        }
        "isascii" => text.is_ascii(),
        "isspace" => all(&is_space),
        "isprintable" => text.chars().all(repr::is_printable),
        "isidentifier" => {
            let mut chars = text.chars();
            let starts = chars.next().is_some_and(|c| c == '_' || is_letter(c));
            starts && chars.all(|c| c == '_' || c.is_alphanumeric())
        }
        "islower" => has_cased && !text.chars().any(|c| is_cased(c) && !c.is_lowercase()),
        "isupper" => has_cased && !text.chars().any(|c| is_cased(c) && !c.is_uppercase()),
        "istitle" => is_title(text),
        _ => return Ok(None),
    }))
}

/// Returns true if upper case follows what has no case only, and lower case what has one.
fn is_title(text: &str) -> bool {
    let (mut after_cased, mut found) = (false, false);
    for c in text.chars() {
        let is_cased = is_cased(c);
        if is_cased {
            if c.is_lowercase() != after_cased {
                return false;
            }
            found = true;
        }
        after_cased = is_cased;
    }
    found
}
