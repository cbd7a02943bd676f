//! A second reading of a library, by rules that Apple's compiler has and C++ with empty address spaces has not.
//!
//! [`check_rules`] applies the rules of [`msl::rules`], then checks the types of every template instantiation with clang,
//! where `device`, `constant`, `threadgroup` and `thread` are distinct address spaces. [`check_layouts`] compares structs
//! of a library with layouts that a host expects.

mod conversions;
mod translate;

use std::fmt::Write;

use msl::rules::Finding;
use msl::{Library, Location, Source};

pub use msl::rules::Requirements;

use crate::cache;
use crate::compiler::{Compiler, DIALECT};
use crate::error::CompileError;
use crate::library::{CompileOptions, without_includes};

/// Declarations that stand for Metal's standard library.
const STANDARD: &str =
    concat!(include_str!("../../prelude/shared.h"), include_str!("../../prelude/dialect.h"));

/// The name under which they appear in messages.
const STANDARD_NAME: &str = "standard library";

/// Everything here that decides what is found.
const OWN: [&str; 5] = [
    STANDARD,
    include_str!("mod.rs"),
    include_str!("conversions.rs"),
    include_str!("translate.rs"),
    include_str!("../translate.rs"),
];

/// Every rule that the library `source` breaks; empty if it breaks none.
///
/// # Errors
/// There is no clang, or the source cannot be preprocessed.
pub fn check_rules(
    source: &str,
    options: &CompileOptions,
    requirements: Requirements,
) -> Result<Vec<Finding>, CompileError> {
    let preprocessed = preprocess(source, options)?;
    let tokens = Source::lex(&preprocessed)?;
    let mut findings = includes(source, options, requirements);
    findings.extend(msl::rules::check(&tokens, requirements));
    if findings.iter().any(|finding| finding.rule == "readable") {
        return Ok(findings);
    }
    let library = Library::from_tokens(&tokens)?;
    let text = translate::translate(&tokens, &library);
    if let Err(report) = compile(&text, options)? {
        findings.extend(read_report(&report, &preprocessed));
    }
    Ok(findings)
}

/// The layout that a host expects of a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructLayout {
    /// Its name in the library.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// Names and offsets of its fields.
    pub fields: Vec<(String, usize)>,
}

/// Every difference between `layouts` and the structs of these names in the library `source`.
///
/// # Errors
/// As [`check_rules`]; or the library itself breaks a rule of types.
pub fn check_layouts(
    source: &str,
    options: &CompileOptions,
    layouts: &[StructLayout],
) -> Result<Vec<Finding>, CompileError> {
    let preprocessed = preprocess(source, options)?;
    let tokens = Source::lex(&preprocessed)?;
    let library = Library::from_tokens(&tokens)?;
    let mut text = translate::translate(&tokens, &library);
    text.push_str("\n# 1 \"layouts\"\n");
    for StructLayout { name, size, fields } in layouts {
        let _ = writeln!(text, "static_assert(sizeof({name}) == {size}, \"size of {name} in the host\");");
        for (field, offset) in fields {
            let _ = writeln!(
                text,
                "static_assert(__builtin_offsetof({name}, {field}) == {offset}, \"offset of {name}::{field} in the host\");"
            );
        }
    }
    let report = compile(&text, options)?.err().unwrap_or_default();
    let mut findings = read_report(&report, &preprocessed);
    for finding in &mut findings {
        if finding.location.file == "layouts" {
            finding.rule = "layout";
            finding.construct = "struct".into();
        }
    }
    Ok(findings)
}

fn preprocess(source: &str, options: &CompileOptions) -> Result<String, CompileError> {
    let compiler = Compiler::find()?;
    let definitions: Vec<String> = options.macros.iter().map(|(n, v)| format!("-D{n}={v}")).collect();
    let text = format!("#line 1 \"{}\"\n{}", name(options).replace('"', "'"), without_includes(source));
    compiler.preprocess(&text, &definitions).map_err(|e| CompileError::from_clang("preprocessor", "", e))
}

fn name(options: &CompileOptions) -> &str {
    if options.name.is_empty() { "library.metal" } else { &options.name }
}

/// Headers of later versions. The preprocessor does not see Metal's own headers.
fn includes(source: &str, options: &CompileOptions, requirements: Requirements) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let Some(header) = line.trim_start().strip_prefix('#').map(str::trim_start) else { continue };
        let Some(header) = header.strip_prefix("include") else { continue };
        let header = header.trim().trim_matches(['<', '>', '"']);
        let part = |name: &str| header.split(['/', '.']).any(|part| part == name);
        if let Some((name, since)) =
            msl::rules::NEWER.iter().find(|(n, v)| *v > requirements.version && part(n))
        {
            findings.push(Finding {
                location: Location { file: crate::dialect::name(options).into(), line: index as u32 + 1 },
                construct: format!("#include <{header}>"),
                rule: "newer",
                reason: format!("`{name}` needs MSL {}.{}", since / 100, since / 10 % 10),
            });
        }
    }
    findings
}

/// What clang reports about `text`: nothing, or its errors. Both are kept on disk.
fn compile(text: &str, options: &CompileOptions) -> Result<Result<(), String>, CompileError> {
    let compiler = Compiler::find()?;
    let folder = options.cache.clone().unwrap_or_else(cache::folder);
    let flags = DIALECT.join(" ");
    let key = cache::key(&[&[text, &flags, &compiler.version][..], &OWN[..]].concat());
    let path = folder.join(format!("{key}.rules"));
    let report = match std::fs::read_to_string(&path) {
        Ok(report) => report,
        Err(_) => {
            let report = match compiler.check_dialect(text) {
                Ok(tree) => conversions::errors(&tree),
                Err(report) => report,
            };
            cache::place(&path, |part| std::fs::write(part, &report))?;
            report
        }
    };
    Ok(if report.is_empty() { Ok(()) } else { Err(report) })
}

/// The errors of clang's report, each once. A note that names an instantiation is added to the error before it.
fn read_report(report: &str, text: &str) -> Vec<Finding> {
    let (mut findings, mut understood): (Vec<Finding>, bool) = (Vec::new(), report.trim().is_empty());
    for line in report.lines() {
        let message = ["error", "fatal error", "note"].iter().find_map(|kind| {
            let (place, message) = line.split_once(&format!(": {kind}: "))?;
            let mut parts = place.rsplitn(3, ':');
            let (_column, line) = (parts.next()?, parts.next()?.parse::<u32>().ok()?);
            Some((*kind, Location { file: parts.next()?.to_string(), line }, message))
        });
        match message {
            Some(("note", _, message)) => {
                let of = message.strip_prefix("in instantiation of function template specialization ");
                let of = of.and_then(|of| of.split('\'').nth(1));
                if let (Some(of), Some(last)) = (of, findings.last_mut())
                    && !last.reason.contains("in `")
                {
                    let _ = write!(last.reason, ", in `{of}`");
                }
            }
            Some((_, _, message)) if clang_only(message) => understood = true,
            Some((_, location, message)) => {
                let construct = crate::error::enclosing(text, &location).unwrap_or_else(|| "library".into());
                findings.push(Finding {
                    construct,
                    rule: rule_of(message),
                    reason: message.into(),
                    location,
                });
            }
            None => {}
        }
    }
    if findings.is_empty() && !understood {
        findings.push(Finding {
            location: Location::default(),
            construct: "library".into(),
            rule: "types",
            reason: report.trim().into(),
        });
    }
    findings
}

/// Whether clang refuses here what Metal has: conversions between half and bfloat, casts of vectors from one element type to
/// another, the product of a vector and a wider scalar, one value for a vector in braces, and temporary objects, which are
/// a thread's.
fn clang_only(message: &str) -> bool {
    let elements =
        |text: &str| text.split("(vector of ").nth(1).and_then(|t| t.split(' ').next().map(str::to_string));
    let halves =
        message.contains("'half'") && message.contains("'__bf16'") && message.ends_with("is not allowed");
    let (from, to) = message.split_once(" to vector ").unwrap_or_default();
    let vectors = message.starts_with("C-style cast from vector")
        && elements(from).is_some_and(|n| elements(to) == Some(n));
    let temporary = message.starts_with("reference of type 'const __private ")
        && message.ends_with("cannot bind to a temporary object because of address space mismatch");
    let braces =
        message.starts_with("too few elements in vector initialization") && message.ends_with("have 1)");
    halves
        || vectors
        || temporary
        || braces
        || message.starts_with("scalar operand type has greater rank than the type of the vector element")
}

/// The rule that an error of clang's breaks.
fn rule_of(message: &str) -> &'static str {
    let spaces = [
        "address space",
        "device ",
        "constant ",
        "threadgroup ",
        "thread ",
        "__global",
        "__constant",
        "__local",
        "__private",
    ];
    if message == conversions::MESSAGE {
        "bfloat-conversion"
    } else if message.contains("softmetal: threadgroup memory") {
        "threadgroup-memory"
    } else if message.contains("softmetal: maximum of threads") {
        "max-threads"
    } else if spaces.iter().any(|space| message.contains(space)) {
        "address-space"
    } else {
        "types"
    }
}
