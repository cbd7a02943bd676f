//! Text to tokens, each with the line that line markers give it.

use std::ops::Range;

use crate::error::{Error, Location};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An identifier or keyword.
    Word,
    /// A number with its suffix.
    Number,
    /// A string or character literal with its quotes.
    Literal,
    /// One character of punctuation; `::` and `->` are single tokens, `>>` is two, since it often closes two
    /// template lists.
    Punctuation,
}

/// One token of a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Its bytes in the text.
    pub span: Range<usize>,
    /// Line in the author's file, counted from 1.
    pub line: u32,
    file: u32,
}

/// A preprocessed text with its tokens.
#[derive(Debug)]
pub struct Source<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    files: Vec<String>,
}

impl<'a> Source<'a> {
    /// Splits `text` into tokens; comments and lines that start with `#` are skipped.
    ///
    /// # Errors
    /// A literal or comment that does not end.
    pub fn lex(text: &'a str) -> Result<Self, Error> {
        let mut source = Source { text, tokens: Vec::new(), files: vec![String::new()] };
        let (mut at, mut line, mut file) = (0, 1, 0u32);
        let bytes = text.as_bytes();
        let mut line_start = true;
        while at < bytes.len() {
            let byte = bytes[at];
            if byte == b'\n' {
                (at, line, line_start) = (at + 1, line + 1, true);
                continue;
            }
            if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            if line_start && byte == b'#' {
                let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
                if let Some((number, name)) = marker(&text[at..end]) {
                    // The marker names the line that follows it.
                    line = number.wrapping_sub(1);
                    file = source.file_index(name);
                }
                at = end;
                continue;
            }
            line_start = false;
            let begin = (at, line);
            let kind = match byte {
                b'/' if text[at..].starts_with("//") => {
                    at = text[at..].find('\n').map_or(text.len(), |n| at + n);
                    continue;
                }
                b'/' if text[at..].starts_with("/*") => {
                    let end = text[at + 2..]
                        .find("*/")
                        .ok_or_else(|| source.unterminated("comment", line, file))?;
                    let end = at + 2 + end + 2;
                    line += newlines(&text[at..end]);
                    at = end;
                    continue;
                }
                b'"' | b'\'' => {
                    at = literal_end(bytes, at).ok_or_else(|| source.unterminated("literal", line, file))?;
                    line += newlines(&text[begin.0..at]);
                    TokenKind::Literal
                }
                b'0'..=b'9' => {
                    at = number_end(bytes, at);
                    TokenKind::Number
                }
                b'.' if bytes.get(at + 1).is_some_and(u8::is_ascii_digit) => {
                    at = number_end(bytes, at);
                    TokenKind::Number
                }
                _ if is_word(byte) => {
                    while at < bytes.len() && is_word(bytes[at]) {
                        at += 1;
                    }
                    TokenKind::Word
                }
                _ => {
                    let two = text[at..].starts_with("::") || text[at..].starts_with("->");
                    at += if two { 2 } else { 1 };
                    TokenKind::Punctuation
                }
            };
            source.tokens.push(Token { kind, span: begin.0..at, line: begin.1, file });
        }
        Ok(source)
    }

    /// All tokens, in order.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The text that was given to [`Source::lex`].
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The text of token `index`; empty past the end, so that looking ahead needs no bounds.
    pub fn at(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |t| &self.text[t.span.clone()])
    }

    /// Where token `index` stands in the author's files.
    pub fn location(&self, index: usize) -> Location {
        let token = self.tokens.get(index).or(self.tokens.last());
        token.map_or_else(Location::default, |t| Location {
            file: self.files[t.file as usize].clone(),
            line: t.line,
        })
    }

    /// The token that closes the bracket at token `open`: one of `(`, `[`, `{`, `<`.
    ///
    /// Within `<`, other brackets are matched first, so that `f<(a > b)>` closes where it should.
    pub fn close(&self, open: usize) -> Option<usize> {
        let mut stack = Vec::new();
        for index in open..self.tokens.len() {
            match self.at(index) {
                "(" => stack.push(")"),
                "[" => stack.push("]"),
                "{" => stack.push("}"),
                "<" if stack.is_empty() || stack.last() == Some(&">") => stack.push(">"),
                ">" if stack.last() == Some(&">") => {
                    stack.pop();
                }
                close @ (")" | "]" | "}") => {
                    // A `<` that was a comparison has no partner: it ends with what surrounds it.
                    while stack.last() == Some(&">") && stack.len() > 1 {
                        stack.pop();
                    }
                    if stack.pop() != Some(close) {
                        return None;
                    }
                }
                ";" if stack.last() == Some(&">") => return None,
                _ => {}
            }
            if stack.is_empty() {
                return Some(index);
            }
        }
        None
    }

    /// The text of tokens `range`, with whatever stands between two of them made a single space.
    pub fn join(&self, range: Range<usize>) -> String {
        let mut out = String::new();
        for index in range.clone() {
            if index > range.start && self.tokens[index - 1].span.end < self.tokens[index].span.start {
                out.push(' ');
            }
            out.push_str(self.at(index));
        }
        out
    }

    pub(crate) fn error(
        &self,
        index: usize,
        construct: impl Into<String>,
        reason: impl Into<String>,
    ) -> Error {
        Error { location: self.location(index), construct: construct.into(), reason: reason.into() }
    }

    /// Bytes from the start of token `from` to the end of token `to`.
    pub(crate) fn span(&self, from: usize, to: usize) -> Range<usize> {
        self.tokens[from].span.start..self.tokens[to].span.end
    }

    fn unterminated(&self, what: &str, line: u32, file: u32) -> Error {
        let location = Location { file: self.files[file as usize].clone(), line };
        Error { location, construct: what.into(), reason: "is not terminated".into() }
    }

    fn file_index(&mut self, name: String) -> u32 {
        let known = self.files.iter().position(|f| *f == name);
        known.unwrap_or_else(|| {
            self.files.push(name);
            self.files.len() - 1
        }) as u32
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|b| *b == b'\n').count() as u32
}

/// `# 12 "file"` and `#line 12 "file"`; other directives (`#pragma`) are none.
fn marker(line: &str) -> Option<(u32, String)> {
    let rest = line[1..].trim_start();
    let rest = rest.strip_prefix("line").unwrap_or(rest).trim_start();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number = rest[..digits].parse().ok()?;
    let name = rest[digits..].split('"').nth(1).unwrap_or("");
    Some((number, name.to_string()))
}

fn literal_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'\n' => return None,
            byte if byte == bytes[start] => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn number_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    let hexadecimal = bytes[start] == b'0' && matches!(bytes.get(start + 1), Some(b'x' | b'X'));
    while at < bytes.len() {
        let exponent = at > start && matches!(bytes[at - 1], b'e' | b'E') && !hexadecimal;
        let sign = matches!(bytes[at], b'+' | b'-') && exponent;
        let separator = bytes[at] == b'\'' && bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric);
        if !(is_word(bytes[at]) || bytes[at] == b'.' || sign || separator) {
            break;
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let source = Source::lex(text).unwrap();
        (0..source.tokens().len()).map(|i| source.at(i).to_string()).collect()
    }

    #[test]
    fn numbers_literals_and_punctuation() {
        assert_eq!(
            words(r#"a<b<c>>x->y 1.5e-3f .5h 0x1e+2 "a\"b" 'c' m::n"#),
            [
                "a",
                "<",
                "b",
                "<",
                "c",
                ">",
                ">",
                "x",
                "->",
                "y",
                "1.5e-3f",
                ".5h",
                "0x1e",
                "+",
                "2",
                r#""a\"b""#,
                "'c'",
                "m",
                "::",
                "n"
            ]
        );
    }

    #[test]
    fn lines_follow_markers_and_comments() {
        let source = Source::lex("a\n/* x\n */ b // c\n# 7 \"k.metal\" 2\nd\n\ne").unwrap();
        let lines: Vec<String> = (0..4).map(|i| source.location(i).to_string()).collect();
        assert_eq!(lines, ["line 1", "line 3", "k.metal:7", "k.metal:9"]);
    }

    #[test]
    fn brackets_close_across_comparisons() {
        let source = Source::lex("f<(a > b), g<1>>(x)").unwrap();
        assert_eq!(source.close(1), Some(12));
        let source = Source::lex("(i < n)").unwrap();
        assert_eq!(source.close(0), Some(4));
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        assert_eq!(Source::lex("\n\"abc\n").unwrap_err().to_string(), "line 2: literal: is not terminated");
        assert_eq!(Source::lex("/* abc").unwrap_err().to_string(), "line 1: comment: is not terminated");
    }
}
