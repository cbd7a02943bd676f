//! The lexer: splits a template into text, tags and the tokens of their expressions.
//!
//! Blocks remove the newline after them and the space before them on their line, as transformers sets it up
//! (`trim_blocks`, `lstrip_blocks`).

use num_bigint::BigInt;

use super::{Result, TemplateError, limits};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Text(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Str(String),
    Int(BigInt),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Longer operators come before their prefixes.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Returns `true` for what Python's `str.isspace` calls space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Splits a template into tokens with their lines.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    let mut lexer =
        Lexer { source: &text, position: 0, line: 1, counted: 0, starts_line: true, tokens: Vec::new() };
    lexer.template()?;
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    position: usize,
    line: usize,
    /// Position up to which newlines are counted.
    counted: usize,
    /// True if the last token ended a line.
    starts_line: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.position..]
    }

    fn push(&mut self, token: Token) {
        let newlines = self.source[self.counted..self.position].matches('\n').count();
        self.line += newlines;
        self.counted = self.position;
        self.tokens.push((token, self.line));
    }

    fn fail<T>(&mut self, message: impl Into<String>) -> Result<T> {
        let line = self.line + self.source[self.counted..self.position].matches('\n').count();
        Err(TemplateError::at(message, line))
    }

    fn advance(&mut self, length: usize) {
        self.starts_line = self.source[..self.position + length].ends_with('\n');
        self.position += length;
    }

    /// Text up to a tag, without the space that the tag removes before it.
    fn push_text(&mut self, text: &str, sign: Option<char>, is_variable: bool) {
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            Some(_) => text,
            None if is_variable => text,
            None => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let is_blank = text[line..].chars().all(is_space);
                if (line > 0 || self.starts_line) && is_blank { &text[..line] } else { text }
            }
        };
        if !kept.is_empty() {
            self.push(Token::Text(kept.to_owned()));
        }
    }

    fn template(&mut self) -> Result<()> {
        loop {
            let rest = self.rest();
            let tag = rest
                .match_indices('{')
                .map(|(at, _)| at)
                .find(|at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some(at) = tag else {
                self.push_text(rest, Some('+'), false);
                self.position = self.source.len();
                return Ok(());
            };
            let kind = rest.as_bytes()[at + 1];
            let sign = rest[at + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let text = &rest[..at];
            self.push_text(text, sign, kind == b'{');
            let length = at + 2 + sign.map_or(0, char::len_utf8);
            match kind {
                b'{' => {
                    self.advance(length);
                    self.push(Token::VariableBegin);
                    self.expression(false)?;
                }
                b'#' => {
                    self.advance(length);
                    self.comment()?;
                }
                _ => match raw_begin(&rest[length..]) {
                    Some(begin) => {
                        self.advance(length + begin);
                        self.raw()?;
                    }
                    None => {
                        self.advance(length);
                        self.push(Token::BlockBegin);
                        self.expression(true)?;
                    }
                },
            }
        }
    }

    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else { return self.fail("a comment has no end: add #}") };
        let after = end + 2;
        let length = if rest[..end].ends_with('-') {
            after + space(&rest[after..])
        } else if rest[..end].ends_with('+') {
            after
        } else {
            after + usize::from(rest[after..].starts_with('\n'))
        };
        self.advance(length);
        Ok(())
    }

    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let tag = &rest[at + 2..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let after_sign = &tag[sign.map_or(0, char::len_utf8)..];
            let name = &after_sign[space(after_sign)..];
            let Some(after) = name.strip_prefix("endraw") else { continue };
            let after = &after[space(after)..];
            let Some(end) = block_end(after) else { continue };
            self.push_text(&rest[..at], sign, false);
            let length = rest.len() - after.len() + end;
            self.advance(length);
            return Ok(());
        }
        self.fail("a raw block has no end: add {% endraw %}")
    }

    /// The tokens of a tag up to its end.
    fn expression(&mut self, is_block: bool) -> Result<()> {
        let mut open = Vec::new();
        loop {
            let rest = self.rest();
            if open.is_empty() {
                let end = if is_block { block_end(rest) } else { variable_end(rest) };
                if let Some(length) = end {
                    self.push(if is_block { Token::BlockEnd } else { Token::VariableEnd });
                    self.advance(length);
                    return Ok(());
                }
            }
            let Some(c) = rest.chars().next() else { return self.fail("a tag has no end") };
            if is_space(c) {
                self.advance(space(rest));
            } else if c.is_ascii_digit() {
                let (token, length) = number(rest, self.source[..self.position].ends_with('.'))
                    .map_err(|e| e.with_line(self.line))?;
                self.push(token);
                self.advance(length);
            } else if c == '_' || c.is_alphanumeric() {
                let length = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                self.push(Token::Name(rest[..length].to_owned()));
                self.advance(length);
            } else if c == '\'' || c == '"' {
                let Some(length) = string_length(rest, c) else {
                    return self.fail("a text has no closing quote");
                };
                match unescape(&rest[1..length - 1]) {
                    Ok(text) => self.push(Token::Str(text)),
                    Err(message) => return self.fail(message),
                }
                self.advance(length);
            } else {
                let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) else {
                    return self.fail(format!("unexpected character {c:?}"));
                };
                match *operator {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    close @ (")" | "]" | "}") if open.pop() != Some(close) => {
                        return self.fail(format!("unexpected {close:?}"));
                    }
                    _ => {}
                }
                self.push(Token::Operator(operator));
                self.advance(operator.len());
            }
        }
    }
}

/// Length of the space that a text begins with.
fn space(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

/// Length of the rest of `{% raw %}` after `{%` and its sign.
fn raw_begin(text: &str) -> Option<usize> {
    let name = &text[space(text)..];
    let after = name.strip_prefix("raw")?;
    let after = &after[space(after)..];
    let length = match after.strip_prefix("-%}") {
        Some(rest) => 3 + space(rest),
        None => after.strip_prefix("%}").map(|_| 2)?,
    };
    Some(text.len() - after.len() + length)
}

fn block_end(text: &str) -> Option<usize> {
    if text.starts_with("+%}") {
        Some(3)
    } else if let Some(rest) = text.strip_prefix("-%}") {
        Some(3 + space(rest))
    } else {
        text.strip_prefix("%}").map(|rest| 2 + usize::from(rest.starts_with('\n')))
    }
}

fn variable_end(text: &str) -> Option<usize> {
    match text.strip_prefix("-}}") {
        Some(rest) => Some(3 + space(rest)),
        None => text.strip_prefix("}}").map(|_| 2),
    }
}

/// Length of a quoted text, with its quotes.
fn string_length(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A run of digits, which underscores may separate. Returns its length.
fn digits(text: &str, is_digit: impl Fn(u8) -> bool) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    while length < bytes.len() {
        let next = if bytes[length] == b'_' && length > 0 { length + 1 } else { length };
        if !bytes.get(next).copied().is_some_and(&is_digit) {
            break;
        }
        length = next + 1;
    }
    length
}

fn number(text: &str, after_dot: bool) -> Result<(Token, usize)> {
    let decimal = |b: u8| b.is_ascii_digit();
    let whole = digits(text, decimal);
    let fraction = match text[whole..].strip_prefix('.').map(|rest| digits(rest, decimal)) {
        Some(length) if length > 0 => length + 1,
        _ => 0,
    };
    let after = &text[whole + fraction..];
    let exponent = match after.strip_prefix(['e', 'E']) {
        Some(rest) => {
            let sign = usize::from(rest.starts_with(['+', '-']));
            match digits(&rest[sign..], decimal) {
                0 => 0,
                length => 1 + sign + length,
            }
        }
        None => 0,
    };
    if fraction + exponent > 0 && !after_dot {
        let length = whole + fraction + exponent;
        let value =
            text[..length].replace('_', "").parse().map_err(|_| TemplateError::new("not a number"))?;
        return Ok((Token::Float(value), length));
    }
    if whole > limits::MAX_DIGITS {
        let limit = limits::MAX_DIGITS;
        return Err(TemplateError::new(format!("a number has {whole} digits; the limit is {limit}")));
    }
    let prefix = text.get(..2).unwrap_or_default().to_ascii_lowercase();
    for (name, radix) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        if prefix == name {
            let is_digit = |b: u8| char::from(b).is_digit(radix);
            let skip = usize::from(text[2..].starts_with('_'));
            let length = digits(&text[2 + skip..], is_digit);
            if length > limits::MAX_DIGITS {
                let limit = limits::MAX_DIGITS;
                return Err(TemplateError::new(format!(
                    "a number has {length} digits; the limit is {limit}"
                )));
            }
            if length > 0 {
                let end = 2 + skip + length;
                let value = BigInt::parse_bytes(text[2..end].replace('_', "").as_bytes(), radix);
                return Ok((Token::Int(value.unwrap_or_default()), end));
            }
        }
    }
    let length = if text.starts_with('0') { digits(text, |b| b == b'0') } else { whole };
    let value = BigInt::parse_bytes(text[..length].replace('_', "").as_bytes(), 10);
    Ok((Token::Int(value.unwrap_or_default()), length))
}

/// Replaces the escapes of Python's text literals.
fn unescape(text: &str) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return Err("\\ at the end of a text".to_owned()) };
        rest = &rest[c.len_utf8()..];
        let mut code = |length: usize| {
            let hex = rest.get(..length).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            let value = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
            rest = rest.get(length..).unwrap_or_default();
            value.ok_or_else(|| format!("the escape \\{c} needs {length} hexadecimal digits of a character"))
        };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'v' => out.push('\x0b'),
            'x' => out.push(code(2)?),
            'u' => out.push(code(4)?),
            'U' => out.push(code(8)?),
            'N' => return Err("the escape \\N{…} is not supported: write the character".to_owned()),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let octal = format!("{c}{}", &rest[..more]);
                rest = &rest[more..];
                out.extend(u32::from_str_radix(&octal, 8).ok().and_then(char::from_u32));
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}
