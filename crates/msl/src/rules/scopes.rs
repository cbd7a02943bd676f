//! Variables at program scope.

use std::ops::Range;

use crate::item::{Item, ItemKind};
use crate::lexer::Source;

use super::{Finding, at};

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    scope(source, 0..source.tokens().len(), findings);
}

fn scope(source: &Source<'_>, range: Range<usize>, findings: &mut Vec<Finding>) {
    for item in source.items(range) {
        match (item.kind, item.body) {
            (ItemKind::Namespace, Some((open, close))) => scope(source, open + 1..close, findings),
            (ItemKind::Declaration, _) => declaration(source, &item, findings),
            _ => {}
        }
    }
}

fn declaration(source: &Source<'_>, item: &Item, findings: &mut Vec<Finding>) {
    const OTHERS: [&str; 11] = [
        "using",
        "typedef",
        "static_assert",
        "template",
        "struct",
        "class",
        "union",
        "enum",
        "friend",
        "namespace",
        "extern",
    ];
    let (start, end) = (item.head, item.tokens.end - 1);
    if start >= end || OTHERS.contains(&source.at(start)) {
        return;
    }
    if (start..end).any(|i| source.at(i) == "operator") {
        return;
    }
    // A parenthesis before the initializer makes it a function, and an attribute or array is skipped.
    let (mut index, mut stop) = (start, end);
    while index < end {
        match source.at(index) {
            "(" => return,
            "=" | "{" => {
                stop = index;
                break;
            }
            "[" | "<" => index = source.close(index).filter(|c| *c < end).unwrap_or(index) + 1,
            _ => index += 1,
        }
    }
    let name = (start..stop).take_while(|i| source.at(*i) != "[").last().map_or("", |i| source.at(i));
    let construct = format!("variable `{name}`");
    if !(start..stop).any(|i| source.at(i) == "constant") {
        let reason = "a variable at program scope must be `constant`";
        findings.push(at(source, start, construct, "program-scope", reason));
        return;
    }
    let of_host = (start..stop).any(|i| source.at(i) == "function_constant");
    match (of_host, stop < end) {
        (false, false) => {
            let reason = "a constant at program scope must be initialized";
            findings.push(at(source, start, construct, "constant-initializer", reason));
        }
        (true, true) => {
            let reason = "the host gives its value: a function constant has no initializer";
            findings.push(at(source, start, construct, "constant-initializer", reason));
        }
        _ => {}
    }
}
