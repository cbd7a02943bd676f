//! The sequences of a data set, and what became of its rows.

use std::collections::BTreeMap;

use super::{Encoder, Example, Row, RowEncoder, TrainOn};
use crate::{Error, Result};

/// Why nothing of a row is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// It has no answer of the assistant.
    NoAnswer,
    /// Its only answers are empty, and the chat template writes nothing for them.
    EmptyAnswer,
    /// Its text is empty, or a single token.
    Empty,
    /// Its prompt is as long as the maximum length, or longer.
    TooLong,
    /// Its only answers are calls of tools, and the chat template leaves them out.
    CallsNotWritten,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no assistant answer to train",
            Self::EmptyAnswer => "its answer is empty",
            Self::Empty => "empty",
            Self::TooLong => "the prompt alone reaches the maximum length",
            Self::CallsNotWritten => "the chat template leaves out the tool calls that are its only answers",
        })
    }
}

/// A row as it is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// Its sequences: one, or several where the chat template renders earlier answers differently once others follow.
    pub samples: Vec<Example>,
    /// Number of sequences that were cut to the maximum length.
    pub truncated: usize,
    /// Why nothing of it is trained, if so.
    pub left_out: Option<LeftOut>,
    /// What is remarkable about it.
    pub notes: RowNotes,
}

/// What is remarkable about a row, or about several: parts of it that are not trained as one may expect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowNotes {
    /// Number of answers that got a token which ends them because the chat template writes none there.
    pub ends_added: usize,
    /// Number of answers whose calls of tools the chat template leaves out, so that only their text is trained.
    pub calls_left_out: usize,
    /// Number of answers whose reasoning the chat template leaves out.
    pub reasoning_left_out: usize,
    /// Number of answers without any text, of which only the end is trained.
    pub empty_answers: usize,
    /// Number of chats that end with a question of the user, which nothing answers.
    pub unanswered: usize,
    /// Number of rows with descriptions of tools that the chat template leaves out.
    pub tools_left_out: usize,
}

impl std::ops::AddAssign for RowNotes {
    fn add_assign(&mut self, other: Self) {
        self.ends_added += other.ends_added;
        self.calls_left_out += other.calls_left_out;
        self.reasoning_left_out += other.reasoning_left_out;
        self.empty_answers += other.empty_answers;
        self.unanswered += other.unanswered;
        self.tools_left_out += other.tools_left_out;
    }
}

/// The sequences of a data set, and what became of its rows.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// The sequences.
    pub examples: Vec<Example>,
    /// Number of rows read.
    pub rows: usize,
    /// Number of rows that became several sequences.
    pub split_rows: usize,
    /// Number of sequences that were cut to the maximum length.
    pub truncated: usize,
    /// Number of rows left out, because nothing of them is trained.
    pub dropped: usize,
    /// Number of rows left out for each reason, with the place of the first one.
    pub left_out: BTreeMap<LeftOut, (usize, String)>,
    /// What is remarkable about the rows.
    pub notes: RowNotes,
}

impl Examples {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.tokens.len()).sum()
    }

    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.examples.iter().map(Example::trained).sum()
    }
}

/// Turns rows into sequences of at most `max_length` tokens. Every error names the row's file and place.
pub fn examples(
    rows: &[Row],
    encoder: &dyn Encoder,
    train_on: TrainOn,
    max_length: usize,
) -> Result<Examples> {
    let row_encoder = RowEncoder::new(encoder, train_on, max_length)?;
    let mut result = Examples { rows: rows.len(), ..Examples::default() };
    for row in rows {
        let mut encoded = row_encoder.encode(row)?;
        result.truncated += encoded.truncated;
        result.split_rows += usize::from(encoded.samples.len() > 1);
        result.notes += encoded.notes;
        result.examples.append(&mut encoded.samples);
        if let Some(reason) = encoded.left_out {
            result.dropped += 1;
            result.left_out.entry(reason).or_insert_with(|| (0, row.place.to_string())).0 += 1;
        }
    }
    match rows.first() {
        Some(row) if result.examples.is_empty() => Err(nothing_trained(&result, row, max_length)),
        _ => Ok(result),
    }
}

/// The error for a file of which nothing is trained, with the advice that fits the cause.
fn nothing_trained(result: &Examples, row: &Row, max_length: usize) -> Error {
    let count = |reason| result.left_out.get(&reason).map_or(0, |(count, _)| *count);
    let long = count(LeftOut::TooLong);
    let advice = if count(LeftOut::CallsNotWritten) > 0 {
        "the chat template leaves out tool calls, and the rows have no other answers; use a model whose chat template writes \
         them"
        .to_owned()
    } else if long == result.rows && long == 1 {
        format!("its prompt alone reaches {max_length} tokens; raise the maximum length")
    } else if long > 0 {
        format!("the prompts of {long} alone reach {max_length} tokens; raise the maximum length")
    } else if count(LeftOut::NoAnswer) > 0 {
        "no row has an answer, which is a completion, or a message of the role 'assistant'".to_owned()
    } else if count(LeftOut::EmptyAnswer) > 0 {
        "every answer is empty".to_owned()
    } else {
        "every row is empty".to_owned()
    };
    let rows = match result.rows {
        1 => "its only row has no token to train".to_owned(),
        rows => format!("none of its {rows} rows has a token to train"),
    };
    Error::file(&row.path, format!("{rows}: {advice}"))
}
