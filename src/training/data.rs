//! Training data: rows from files of every common form, and the tokens and loss masks made of them.
//!
//! [`DataSet::open`] reads a folder or a file ([`Format`]); [`examples`] turns its rows into tokens.
//!
//! A row is one of
//!
//! | form | columns |
//! |---|---|
//! | chat | `messages` (OpenAI's form, with `tools`), or ShareGPT's `conversations` of `from` and `value` |
//! | pair | `prompt`, `completion`: two texts, or two lists of messages |
//! | Alpaca, Dolly | `instruction`, `output` or `response`, optionally `input` or `context`, `history` |
//! | text | `text` |
//!
//! A `system` or `system_prompt` column becomes the first message. Null columns are absent, [`Row::unused`] lists the other
//! columns, and [`Columns`] renames those of other data sets. Of chats and pairs the assistant's messages are trained, except those with `"weight": 0`,
//! `"train": false` or `"loss": false`.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::models::ModelFiles;
use crate::{Error, Result};

mod csv;
mod dataset;
mod encode;
mod examples;
mod files;
mod format;
mod json;
mod mask;
mod messages;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;
mod text;
mod tokens;

pub use dataset::{DataSet, ValidationSize};
pub use encode::RowEncoder;
pub use examples::{EncodedRow, Examples, LeftOut, RowNotes, examples};
pub use files::{Columns, read_rows, read_text};
pub use format::Format;

/// Content of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Text as it is.
    Text(String),
    /// A question and its answer. They become a chat of two messages if the model has a chat template.
    Completion {
        /// Text that the model is given.
        prompt: String,
        /// Text that it learns.
        completion: String,
    },
    /// A conversation.
    Chat {
        /// Objects with `role` and `content`.
        messages: Vec<Value>,
        /// Descriptions of functions that may be called.
        tools: Option<Value>,
    },
}

/// Place of a row in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Line on which it begins, blank lines counted, from 1.
    Line(usize),
    /// Number of the row, from 1, in files without lines.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// A record and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its content.
    pub record: Record,
    /// Its file.
    pub path: Arc<Path>,
    /// Its place in the file.
    pub place: Place,
    /// Names of its columns that are not used though they have a value.
    pub unused: Arc<[String]>,
}

impl Row {
    /// An error about this row.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::file_at(&self.path, self.place.to_string(), message)
    }
}

/// Selects the trained tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainOn {
    /// Completions and the assistant's turns, with the token that ends them; of plain text everything.
    Completion,
    /// Every token but the first.
    All,
}

/// A sequence of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Loss mask: `true` where the token is to be predicted from those before it.
    pub supervised: Vec<bool>,
}

impl Example {
    /// Number of trained tokens. The first token has nothing before it and is never trained.
    pub fn trained(&self) -> usize {
        self.supervised.iter().skip(1).filter(|&&trained| trained).count()
    }
}

/// The text of a chat, and the parts of it that the template marks as the assistant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedText {
    /// The text.
    pub text: String,
    /// Byte ranges of `{% generation %}` blocks; `None` for a template without such blocks.
    pub generation: Option<Vec<Range<usize>>>,
}

/// Turns text into tokens: a model's tokenizer and chat template.
pub trait Encoder {
    /// Returns the tokens of a text; `special` adds those that begin and end a sequence.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>>;
    /// Returns the text of a conversation; `None` if the model has no chat template.
    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>>;
    /// Returns the text of a conversation with the template's own marks; `None` if the model has no chat template.
    fn render_marked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MarkedText>> {
        let text = self.render(messages, tools, false)?;
        Ok(text.map(|text| MarkedText { text, generation: None }))
    }
    /// Returns the token that ends a text.
    fn eos(&self) -> Option<u32>;
    /// Returns `true` for tokens after which generation ends.
    fn is_eos(&self, token: u32) -> bool {
        self.eos() == Some(token)
    }
    /// Returns the number of tokens that the model has embeddings for; `None` if it is unknown.
    fn embeddings(&self) -> Option<usize> {
        None
    }
    /// Returns the texts and ids of tokens that are never split, among them those that end turns.
    fn special_tokens(&self) -> Vec<(String, u32)> {
        Vec::new()
    }
}

impl Encoder for ModelFiles {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, special)
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>> {
        self.chat_template
            .as_ref()
            .map(|template| template.render(&template.readable(messages), tools, generation_prompt))
            .transpose()
    }

    fn render_marked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MarkedText>> {
        let Some(template) = &self.chat_template else { return Ok(None) };
        let messages = template.readable(messages);
        let rendered = template.render_marked(&messages, tools, false, &serde_json::Map::new())?;
        let generation = template.marks_answers(tools.is_some()).then_some(rendered.generation);
        Ok(Some(MarkedText { text: rendered.text, generation }))
    }

    fn eos(&self) -> Option<u32> {
        self.tokenizer.eos_ids().first().copied()
    }

    fn is_eos(&self, token: u32) -> bool {
        self.tokenizer.eos_ids().contains(&token)
    }

    fn embeddings(&self) -> Option<usize> {
        Some(self.config.vocab)
    }

    fn special_tokens(&self) -> Vec<(String, u32)> {
        self.tokenizer.added_tokens()
    }
}

/// A number and what it counts, in the plural unless it is one.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod tests;
