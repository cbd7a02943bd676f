//! Threadgroup variables that kernels declare in their bodies.

use std::ops::Range;

use crate::argument::split;
use crate::lexer::{Source, TokenKind};

/// `threadgroup T name[n];` in the body of a kernel: memory that all threads of a threadgroup share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadgroupVariable {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub ty: String,
    /// Extents of its dimensions, as written; empty for a single value.
    pub extents: Vec<String>,
    /// Line of the declaration.
    pub line: u32,
    /// Bytes of the word `threadgroup`, which a translator replaces by a storage class.
    pub keyword: Range<usize>,
    /// Bytes of the whole declaration, from that word to its `;`; variables of one declaration share them.
    pub declaration: Range<usize>,
    /// Whether it has an initializer.
    pub initialized: bool,
}

/// The variables declared between the braces at tokens `open` and `close`.
pub(crate) fn read_variables(source: &Source<'_>, open: usize, close: usize) -> Vec<ThreadgroupVariable> {
    let mut variables = Vec::new();
    for index in open + 1..close {
        if source.at(index) == "threadgroup" && starts_statement(source, index) {
            variables.extend(read_declaration(source, index, close));
        }
    }
    variables
}

fn starts_statement(source: &Source<'_>, index: usize) -> bool {
    let mut before = index - 1;
    while matches!(source.at(before), "static" | "volatile" | "const") {
        before -= 1;
    }
    // `]` ends an attribute, `)` an alignas or the macro-made head of a statement, `:` a label.
    matches!(source.at(before), ";" | "{" | "}" | "]" | ")" | ":")
}

/// The variables of one declaration; none where it declares a pointer or a reference.
fn read_declaration(source: &Source<'_>, keyword: usize, close: usize) -> Vec<ThreadgroupVariable> {
    let mut end = keyword;
    while end < close && source.at(end) != ";" {
        end = match source.at(end) {
            "(" | "[" | "{" => source.close(end).unwrap_or(end) + 1,
            _ => end + 1,
        };
    }
    let (mut ty, mut variables) = (String::new(), Vec::new());
    for (position, part) in split(source, keyword + 1..end).into_iter().enumerate() {
        let mut stop = part.start;
        while stop < part.end && !matches!(source.at(stop), "[" | "=" | "{" | "*" | "&" | "(") {
            stop = match source.at(stop) {
                "<" => source.close(stop).unwrap_or(stop) + 1,
                _ => stop + 1,
            };
        }
        if matches!(source.at(stop), "*" | "&" | "(") && stop < part.end {
            return Vec::new();
        }
        let name = stop - 1;
        if name < part.start || source.tokens()[name].kind != TokenKind::Word {
            return Vec::new();
        }
        if position == 0 {
            if name == part.start {
                return Vec::new();
            }
            ty = source.join(part.start..name);
        }
        let mut extents = Vec::new();
        while stop < part.end && source.at(stop) == "[" {
            let Some(end) = source.close(stop) else { break };
            if source.at(stop + 1) != "[" {
                extents.push(source.join(stop + 1..end));
            }
            stop = end + 1;
        }
        variables.push(ThreadgroupVariable {
            name: source.at(name).to_string(),
            ty: ty.clone(),
            extents,
            line: source.tokens()[keyword].line,
            keyword: source.tokens()[keyword].span.clone(),
            declaration: source.span(keyword, end.min(close)),
            initialized: stop < part.end,
        });
    }
    variables
}
