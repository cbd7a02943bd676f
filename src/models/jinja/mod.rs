//! Templates as Python's Jinja2 runs them for chats: a lexer, a parser and an interpreter whose values behave as
//! Python's.
//!
//! What Jinja2 renders is rendered to the same text, or is an error. Blocks remove the newline after them and the
//! space before them (`trim_blocks`, `lstrip_blocks`), values cannot change (the immutable sandbox), and
//! `tojson`, `raise_exception`, `strftime_now`, `{% break %}` and `{% generation %}` are those of transformers.

mod arguments;
mod ast;
mod attributes;
mod evaluate;
mod expressions;
mod filters;
mod functions;
mod interpreter;
mod json;
mod lexer;
mod limits;
#[cfg(test)]
mod limits_tests;
mod loops;
mod markup;
mod number_format;
mod operators;
mod parser;
mod percent;
mod predicates;
mod pretty;
mod repr;
mod scope;
mod sequence_filters;
mod strings;
#[cfg(test)]
mod tests;
mod time;
mod value;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Zoned;
use serde_json::Value as Json;

pub(super) use json::parse as parse_json;

/// Stack of the thread that renders templates with macros, recursive loops or long chains, which may nest deeply.
const STACK_BYTES: usize = 64 << 20;

/// Maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 2000;

/// An error of a template, with its line where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TemplateError {
    pub(super) message: String,
    pub(super) line: Option<usize>,
}

type Result<T> = std::result::Result<T, TemplateError>;

impl TemplateError {
    fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        // Messages quote what a template built, which may be long.
        if message.len() > MAX_MESSAGE {
            let boundary = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at));
            message.truncate(boundary.unwrap_or(0));
            message.push('…');
        }
        Self { message, line: None }
    }

    fn at(message: impl Into<String>, line: usize) -> Self {
        Self { line: Some(line), ..Self::new(message) }
    }

    fn with_line(self, line: usize) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    body: Vec<ast::Stmt>,
    has_generation_blocks: bool,
    may_recurse: bool,
}

impl Template {
    /// Compiles a template.
    pub(super) fn new(source: &str) -> Result<Self> {
        if source.len() > limits::MAX_SOURCE {
            let (length, limit) = (source.len(), limits::MAX_SOURCE);
            let message = format!("the template has {length} bytes; the limit is {limit}");
            return Err(TemplateError::at(message, 1));
        }
        let parsed = parser::parse(source)?;
        Ok(Self {
            body: parsed.body,
            has_generation_blocks: parsed.has_generation_blocks,
            may_recurse: parsed.may_recurse,
        })
    }

    /// Returns `true` if the template has `{% generation %}` blocks.
    pub(super) fn has_generation_blocks(&self) -> bool {
        self.has_generation_blocks
    }

    /// Renders the template. `marks` are put around the text of `{% generation %}` blocks. The rendering fails soon
    /// after `stop` is set.
    pub(super) fn render(
        &self,
        variables: &[(&str, Json)],
        marks: Option<[char; 2]>,
        stop: Option<Arc<AtomicBool>>,
    ) -> Result<String> {
        let run = || {
            limits::begin(stop);
            let now = |format: &str| {
                let now = Zoned::now();
                time::strftime(format, now.datetime(), now.timestamp().as_second())
            };
            let variables =
                variables.iter().map(|(name, value)| ((*name).to_owned(), json::from_json(value)));
            interpreter::Interpreter::new(marks, &now).render(&self.body, variables.collect())
        };
        if !self.may_recurse {
            return run();
        }
        std::thread::scope(|threads| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(threads, run);
            let thread = thread.map_err(|e| TemplateError::new(format!("no thread to render on: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(TemplateError::new("the renderer has failed")))
        })
    }
}
