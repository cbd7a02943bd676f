//! Rules of Apple's compiler that a C++ compiler with empty address spaces does not have.
//!
//! [`check`] reads a preprocessed library and reports every declaration that Apple's compiler refuses, or that this project
//! forbids, by rule. [`RULES`] lists the rules; README.md gives the source of each.

mod attributes;
mod bindings;
mod functions;
mod language;
mod limits;
mod scopes;

use std::fmt;

use crate::error::{Error, Location};
use crate::kernel::Kernel;
use crate::lexer::Source;
use crate::library::Library;

pub use language::NEWER;
pub use limits::{MAX_BUFFER_INDEX, MAX_THREADGROUP_BYTES, MAX_THREADS};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line on which the declaration begins.
    pub location: Location,
    /// The declaration, for example ``kernel `add` ``.
    pub construct: String,
    /// Name of the rule, as in [`RULES`].
    pub rule: &'static str,
    /// What is wrong, and what to write instead.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { location, construct, rule, reason } = self;
        write!(f, "{location}: {construct}: {reason} [{rule}]")
    }
}

/// What a library is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// Language version that the library is compiled for: 310 is MSL 3.1.
    pub version: u32,
    /// Whether every kernel must declare its maximum number of threads.
    pub max_threads: bool,
    /// Whether every kernel template must be instantiated.
    pub instantiated: bool,
}

impl Default for Requirements {
    /// MSL 3.1, without this project's own requirements.
    fn default() -> Self {
        Requirements { version: 310, max_threads: false, instantiated: false }
    }
}

/// Names of the rules that [`check`] applies, in the order of README.md.
pub const RULES: &[&str] = &[
    "readable",
    "position-width",
    "builtin-type",
    "builtin-by-value",
    "one-role",
    "attribute-twice",
    "kernel-attribute",
    "buffer-index",
    "buffer-unique",
    "buffer-space",
    "buffer-by-value",
    "pointer-to-pointer",
    "threadgroup-index",
    "threadgroup-unique",
    "threadgroup-space",
    "threadgroup-binding",
    "condition",
    "constant-index",
    "constant-type",
    "host-name",
    "instantiated",
    "max-threads",
    "threadgroup-scope",
    "threadgroup-initializer",
    "program-scope",
    "constant-initializer",
    "local-static",
    "local-space",
    "pointer-space",
    "language",
    "lambda",
    "main",
    "newer",
];

/// Every broken rule of a preprocessed library, in the order of its lines.
pub fn check(source: &Source<'_>, requirements: Requirements) -> Vec<Finding> {
    let mut findings = Vec::new();
    match Library::from_tokens(source) {
        Ok(library) => {
            let mut kernels: Vec<&Kernel> = Vec::new();
            // Instantiations of one template share its arguments.
            for kernel in library.kernels.iter().chain(&library.uninstantiated) {
                if !kernels.iter().any(|k| k.span == kernel.span) {
                    kernels.push(kernel);
                }
            }
            for kernel in kernels {
                attributes::check(kernel, &mut findings);
                bindings::check(kernel, &library, &mut findings);
                limits::check(kernel, requirements, &mut findings);
            }
            bindings::check_constants(&library, source, &mut findings);
            if requirements.instantiated {
                limits::check_instantiated(&library, &mut findings);
            }
        }
        Err(error) => findings.push(unreadable(error)),
    }
    functions::check(source, &mut findings);
    scopes::check(source, &mut findings);
    language::check(source, requirements.version, &mut findings);
    findings.sort_by(|a, b| (&a.location.file, a.location.line).cmp(&(&b.location.file, b.location.line)));
    findings.dedup();
    findings
}

fn unreadable(error: Error) -> Finding {
    Finding { location: error.location, construct: error.construct, rule: "readable", reason: error.reason }
}

/// A finding about `kernel`, on `line` of its file.
fn about(kernel: &Kernel, line: u32, rule: &'static str, reason: impl Into<String>) -> Finding {
    Finding {
        location: Location { line, ..kernel.location.clone() },
        construct: format!("kernel `{}`", kernel.function),
        rule,
        reason: reason.into(),
    }
}

/// A finding about token `index`.
fn at(
    source: &Source<'_>,
    index: usize,
    construct: impl Into<String>,
    rule: &'static str,
    reason: impl Into<String>,
) -> Finding {
    Finding { location: source.location(index), construct: construct.into(), rule, reason: reason.into() }
}
