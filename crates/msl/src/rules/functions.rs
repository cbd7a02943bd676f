//! Kernels and other functions as they are written: attributes, names, and pointers without an address space.

use std::ops::Range;

use crate::argument::{AddressSpace, split};
use crate::function::Function;
use crate::lexer::{Source, TokenKind};

use super::{Finding, at};

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    for function in source.functions() {
        let name = source.at(function.name);
        let construct =
            if function.is_kernel { format!("kernel `{name}`") } else { format!("function `{name}`") };
        if name == "main" {
            let reason = "Metal has no function of this name: rename it";
            findings.push(at(source, function.name, &construct, "main", reason));
        }
        if function.is_kernel {
            kernel_attributes(source, &function, &construct, findings);
        }
        parameters(source, &function, &construct, findings);
        result(source, &function, &construct, findings);
        casts(source, &function, &construct, findings);
        locals(source, &function, &construct, findings);
    }
    host_names(source, findings);
}

/// Where a kernel's attributes are, and which they are.
fn kernel_attributes(source: &Source<'_>, function: &Function, construct: &str, findings: &mut Vec<Finding>) {
    let mut report = |index: usize, rule: &'static str, reason: &str| {
        findings.push(at(source, index, construct, rule, reason));
    };
    if function.class.is_some() {
        report(function.name, "kernel-attribute", "a kernel cannot be a member function");
    }
    let attribute = |i: &usize| source.at(*i) == "[" && source.at(*i + 1) == "[";
    if let Some(index) = (function.parameters.1..function.body.0).find(attribute) {
        let reason = "an attribute after the parameters applies to the type: put it before `kernel`";
        report(index, "kernel-attribute", reason);
    }
    let keyword = (function.tokens.start..function.name)
        .find(|i| source.at(*i) == "kernel" && !matches!(source.at(*i + 1), "]" | ","));
    let between = keyword.into_iter().flat_map(|k| k..function.name).find(attribute);
    if let Some(index) = between {
        report(
            index,
            "kernel-attribute",
            "an attribute after `kernel` applies to the type: put it before `kernel`",
        );
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut index = function.tokens.start;
    while index < function.parameters.0 {
        if !attribute(&index) {
            index += 1;
            continue;
        }
        let end = source.close(index).unwrap_or(index + 1);
        for part in split(source, index + 2..end - 1) {
            let name = source.at(part.start);
            match name {
                "kernel"
                | "host_name"
                | "max_total_threads_per_threadgroup"
                | "visible"
                | "user_annotation" => {
                    if seen.contains(&name) {
                        report(part.start, "attribute-twice", &format!("[[{name}]] is written twice"));
                    }
                    seen.push(name);
                }
                _ => {
                    report(part.start, "kernel-attribute", &format!("[[{name}]] is no attribute of a kernel"))
                }
            }
        }
        index = end + 1;
    }
}

/// Host names that no kernel can have.
fn host_names(source: &Source<'_>, findings: &mut Vec<Finding>) {
    for index in 0..source.tokens().len() {
        if source.at(index) != "host_name" || source.at(index + 1) != "(" {
            continue;
        }
        let close = source.close(index + 1).unwrap_or(index + 1);
        let literals = (index + 2..close).all(|i| source.tokens()[i].kind == TokenKind::Literal);
        let name: String = (index + 2..close).map(|i| source.at(i).trim_matches('"')).collect();
        if !literals || name.is_empty() {
            let reason =
                format!("`{}` is not a name: a non-empty string is needed", source.join(index + 2..close));
            findings.push(at(source, index, "[[host_name]]", "host-name", reason));
        }
    }
}

fn has_space(source: &Source<'_>, range: Range<usize>) -> bool {
    range.into_iter().any(|i| AddressSpace::from_keyword(source.at(i)).is_some())
}

/// Parameters that are pointers or references without an address space. Those of kernels have a rule of their own.
fn parameters(source: &Source<'_>, function: &Function, construct: &str, findings: &mut Vec<Finding>) {
    if function.is_kernel {
        return;
    }
    let (open, close) = function.parameters;
    for part in split(source, open + 1..close) {
        let end = part.clone().find(|i| source.at(*i) == "=").unwrap_or(part.end);
        let mut index = part.start;
        let mut pointer = None;
        while index < end {
            match source.at(index) {
                "<" => index = source.close(index).filter(|c| *c < end).unwrap_or(index),
                "*" | "&" => pointer = pointer.or(Some(index)),
                _ => {}
            }
            index += 1;
        }
        if let Some(index) = pointer.filter(|_| !has_space(source, part.start..end)) {
            findings.push(at(
                source,
                index,
                construct,
                "pointer-space",
                no_space(&source.join(part.start..end)),
            ));
        }
    }
}

/// A result that is a pointer or reference without an address space.
fn result(source: &Source<'_>, function: &Function, construct: &str, findings: &mut Vec<Finding>) {
    let end = function.parameters.0;
    let mut start = source.head(function.tokens.start);
    let first = start;
    let mut pointer = None;
    while start < end && source.at(start) != "operator" {
        match source.at(start) {
            "<" | "[" => start = source.close(start).filter(|c| *c < end).unwrap_or(start),
            "(" => break,
            "*" | "&" => pointer = pointer.or(Some(start)),
            _ => {}
        }
        start += 1;
    }
    if let Some(index) = pointer.filter(|_| !has_space(source, first..end)) {
        findings.push(at(
            source,
            index,
            construct,
            "pointer-space",
            no_space(&source.join(first..index + 1)),
        ));
    }
}

/// Casts to a pointer without an address space: `(float*)x` and `reinterpret_cast<float*>(x)`.
fn casts(source: &Source<'_>, function: &Function, construct: &str, findings: &mut Vec<Finding>) {
    let word = |i: usize| source.tokens().get(i).is_some_and(|t| t.kind == TokenKind::Word);
    for index in function.body.0..function.body.1 {
        let (text, before) = (source.at(index), source.at(index.wrapping_sub(1)));
        let named = text == "<" && before.ends_with("_cast");
        // A parenthesis behind a name is a call's.
        let plain =
            text == "(" && (!word(index - 1) || before == "return") && !matches!(before, ")" | "]" | ">");
        let Some(close) = source.close(index).filter(|c| (named || plain) && *c < function.body.1) else {
            continue;
        };
        let simple = (index + 1..close).all(|i| word(i) || matches!(source.at(i), "*" | "::" | "&"));
        if !simple || !matches!(source.at(close - 1), "*" | "&") || close < index + 3 {
            continue;
        }
        if !has_space(source, index + 1..close) {
            let text = source.join(index + 1..close);
            findings.push(at(source, index, construct, "pointer-space", no_space(&text)));
        }
    }
}

fn no_space(declaration: &str) -> String {
    format!("`{declaration}` needs an address space: `device`, `constant`, `threadgroup` or `thread`")
}

/// What is declared in a body.
fn locals(source: &Source<'_>, function: &Function, construct: &str, findings: &mut Vec<Finding>) {
    let (open, close) = function.body;
    for index in open + 1..close {
        let begins = matches!(source.at(index - 1), ";" | "{" | "}")
            || (source.at(index - 1) == "(" && source.at(index.wrapping_sub(2)) == "for");
        if !begins {
            continue;
        }
        let mut first = index;
        let mut is_static = false;
        while matches!(source.at(first), "const" | "constexpr" | "static" | "volatile") {
            is_static |= source.at(first) == "static";
            first += 1;
        }
        if is_static {
            let reason = "a variable in a function cannot be static";
            findings.push(at(source, index, construct, "local-static", reason));
            continue;
        }
        let space = AddressSpace::from_keyword(source.at(first));
        if space.is_some() {
            first += 1;
        }
        let Some((name, pointer)) = declared(source, first, close) else { continue };
        let text = source.join(index..name + 1);
        match space {
            Some(AddressSpace::Device | AddressSpace::Constant) if !pointer => {
                let reason = format!("`{text}`: a variable in a function cannot be in this address space");
                findings.push(at(source, index, construct, "local-space", reason));
            }
            Some(AddressSpace::Threadgroup) if !pointer && !function.is_kernel => {
                let reason =
                    format!("`{text}`: only a kernel can declare threadgroup memory; pass a pointer to it");
                findings.push(at(source, index, construct, "threadgroup-scope", reason));
            }
            None if pointer => findings.push(at(source, index, construct, "pointer-space", no_space(&text))),
            _ => {}
        }
    }
}

/// The name that a declaration at token `first` declares, and whether as a pointer or reference. `None` for expressions,
/// and for `auto`, whose address space is deduced.
fn declared(source: &Source<'_>, first: usize, limit: usize) -> Option<(usize, bool)> {
    let word = |i: usize| source.tokens().get(i).is_some_and(|t| t.kind == TokenKind::Word);
    const OTHERS: [&str; 15] = [
        "return", "else", "case", "goto", "delete", "new", "throw", "using", "typedef", "struct", "enum",
        "if", "auto", "do", "sizeof",
    ];
    let mut index = first;
    while matches!(source.at(index), "const" | "volatile" | "typename" | "unsigned" | "signed") {
        index += 1;
    }
    if !word(index) || OTHERS.contains(&source.at(index)) {
        return None;
    }
    loop {
        index += 1;
        if source.at(index) == "<" {
            index = source.close(index).filter(|c| *c < limit)? + 1;
        }
        if source.at(index) != "::" {
            break;
        }
        index += 1;
    }
    while AddressSpace::from_keyword(source.at(index)).is_some() || source.at(index) == "const" {
        index += 1;
    }
    let mut pointer = false;
    while matches!(source.at(index), "*" | "&" | "const" | "restrict" | "__restrict") {
        pointer |= matches!(source.at(index), "*" | "&");
        index += 1;
    }
    let ends = matches!(source.at(index + 1), "=" | ";" | "," | "[" | ":" | "{");
    (word(index) && ends).then_some((index, pointer))
}
