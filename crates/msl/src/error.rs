//! Where something stands in the author's text, and what is wrong there.

use std::fmt;

/// A line of the text that was preprocessed, as its line markers name it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Location {
    /// File of the nearest line marker above; empty where there is none.
    pub file: String,
    /// Line, counted from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            write!(f, "line {}", self.line)
        } else {
            write!(f, "{}:{}", self.file, self.line)
        }
    }
}

/// What could not be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Line on which the construct begins.
    pub location: Location,
    /// The construct, for example ``kernel `add` ``.
    pub construct: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.location, self.construct, self.reason)
    }
}

impl std::error::Error for Error {}
