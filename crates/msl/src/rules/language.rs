//! Words: what Metal leaves out of C++, and names of later versions.

use crate::lexer::{Source, TokenKind};

use super::{Finding, at};

/// Words of C++ that Metal does not have.
const ABSENT: [&str; 16] = [
    "goto",
    "virtual",
    "dynamic_cast",
    "typeid",
    "new",
    "delete",
    "try",
    "catch",
    "throw",
    "thread_local",
    "register",
    "double",
    "asm",
    "noexcept",
    "co_await",
    "co_yield",
];

/// Names that a later language version brought, with that version: 320 is MSL 3.2.
pub const NEWER: &[(&str, u32)] = &[
    ("coherent", 320),
    ("atomic_thread_fence", 320),
    ("memory_order_acquire", 320),
    ("memory_order_release", 320),
    ("memory_order_acq_rel", 320),
    ("memory_order_seq_cst", 320),
    ("thread_scope", 320),
    ("os_log", 320),
    ("os_log_default", 320),
    ("intersection_function_buffer_arguments", 400),
    ("metal_logging", 320),
    ("metal_tensor", 400),
    ("metal_cooperative_tensor", 400),
    ("tensor", 400),
    ("tensor_inline", 400),
    ("tensor_handle", 400),
    ("tensor_offset", 400),
    ("dextents", 400),
    ("extents", 400),
    ("cooperative_tensor", 400),
    ("tensor_ops", 400),
    ("matmul2d", 400),
    ("matmul2d_descriptor", 400),
    ("mpp", 400),
    ("MetalPerformancePrimitives", 400),
    ("execution_simdgroup", 400),
    ("execution_simdgroups", 400),
    ("execution_threadgroup", 400),
];

pub(super) fn check(source: &Source<'_>, version: u32, findings: &mut Vec<Finding>) {
    let tokens = source.tokens();
    for (index, token) in tokens.iter().enumerate() {
        let (word, before) = (source.at(index), source.at(index.wrapping_sub(1)));
        match token.kind {
            TokenKind::Word => {
                if matches!(before, "." | "->") {
                    continue;
                }
                // `= delete` is a declaration.
                if ABSENT.contains(&word) && !(word == "delete" && before == "=") {
                    let reason = format!("Metal does not have `{word}`");
                    findings.push(at(source, index, format!("`{word}`"), "language", reason));
                }
                if word == "long" && matches!(source.at(index + 1), "long" | "double") {
                    let reason = format!("Metal does not have `long {}`", source.at(index + 1));
                    findings.push(at(source, index, "`long`", "language", reason));
                }
                newer(source, index, version, findings);
            }
            TokenKind::Punctuation if word == "[" && version < 320 && is_lambda(source, index) => {
                let reason = "lambda expressions need MSL 3.2";
                findings.push(at(source, index, "lambda expression", "lambda", reason));
            }
            _ => {}
        }
    }
}

/// A name of a later version, unless the library declares one of its own.
fn newer(source: &Source<'_>, index: usize, version: u32, findings: &mut Vec<Finding>) {
    let word = source.at(index);
    let Some((_, since)) = NEWER.iter().find(|(name, since)| *name == word && *since > version) else {
        return;
    };
    // `tensor` and `extents` are words that people use: only a use as Metal's counts.
    let ordinary = matches!(word, "tensor" | "extents" | "coherent" | "thread_scope" | "mpp" | "os_log");
    let next = source.at(index + 1);
    let used = match word {
        "mpp" => next == "::",
        "coherent" => next == "(" || next == "device",
        "os_log" => next == "." || source.tokens().get(index + 1).is_some_and(|t| t.kind == TokenKind::Word),
        _ => matches!(next, "<" | "::"),
    };
    if ordinary && !used {
        return;
    }
    let (have, need) = ((version / 100, version / 10 % 10), (since / 100, since / 10 % 10));
    let reason =
        format!("it needs MSL {}.{}, and the library is compiled for {}.{}", need.0, need.1, have.0, have.1);
    findings.push(at(source, index, format!("`{word}`"), "newer", reason));
}

/// Whether the bracket at `index` begins a lambda expression and neither a subscript nor an attribute.
fn is_lambda(source: &Source<'_>, index: usize) -> bool {
    if source.at(index + 1) == "[" || source.at(index.wrapping_sub(1)) == "[" {
        return false;
    }
    let expression =
        matches!(source.at(index.wrapping_sub(1)), "=" | "(" | "," | "{" | ";" | "return" | "}" | "?" | ":");
    let after = source.close(index).map_or("", |close| source.at(close + 1));
    expression && matches!(after, "(" | "{" | "mutable")
}
