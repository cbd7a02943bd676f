//! Why a library or a kernel could not be made.

use std::fmt;

use msl::Location;

/// A library that does not compile, a kernel that is not there, or a compiler that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// Line of the source, where the error has one.
    pub location: Option<Location>,
    /// What is being declared there, for example ``kernel `add` ``.
    pub construct: String,
    /// What is wrong.
    pub message: String,
    /// All that the compiler said; empty where it was not asked.
    pub details: String,
}

impl CompileError {
    pub(crate) fn new(construct: impl Into<String>, message: impl Into<String>) -> Self {
        let (construct, message) = (construct.into(), message.into());
        CompileError { location: None, construct, message, details: String::new() }
    }

    /// The first error among `details`, which is what clang wrote about preprocessed `text`.
    pub(crate) fn from_clang(construct: &str, text: &str, details: String) -> Self {
        let first = details.lines().find_map(|line| {
            let (place, message) =
                line.split_once(": error: ").or_else(|| line.split_once(": fatal error: "))?;
            let mut parts = place.rsplitn(3, ':');
            let (_column, line) = (parts.next()?, parts.next()?.parse().ok()?);
            Some((Location { file: parts.next()?.to_string(), line }, message.to_string()))
        });
        let Some((location, message)) = first else {
            return CompileError { details: details.clone(), ..Self::new(construct, details.trim()) };
        };
        let construct = enclosing(text, &location).unwrap_or_else(|| construct.to_string());
        CompileError { location: Some(location), construct, message, details }
    }
}

/// The function or type of `text` that `location` lies in.
pub(crate) fn enclosing(text: &str, location: &Location) -> Option<String> {
    let source = msl::Source::lex(text).ok()?;
    let items = source.items(0..source.tokens().len());
    let item = items.into_iter().find(|item| {
        let (first, last) = (source.location(item.tokens.start), source.location(item.tokens.end - 1));
        first.file == location.file && (first.line..=last.line).contains(&location.line)
    })?;
    let end = (item.head..item.tokens.end).find(|i| matches!(source.at(*i), "(" | "{" | "=" | ";"))?;
    let kernel = source.join(item.tokens.start..end).contains("kernel");
    let name = source.at(end.checked_sub(1)?);
    Some(if kernel { format!("kernel `{name}`") } else { format!("`{name}`") })
}

impl From<msl::Error> for CompileError {
    fn from(error: msl::Error) -> Self {
        CompileError { location: Some(error.location), ..Self::new(error.construct, error.reason) }
    }
}

impl From<std::io::Error> for CompileError {
    fn from(error: std::io::Error) -> Self {
        Self::new("cache of compiled kernels", error.to_string())
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        write!(f, "{}: {}", self.construct, self.message)
    }
}

impl std::error::Error for CompileError {}
