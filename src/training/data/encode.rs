//! Rows as the sequences of tokens that are trained.

use serde_json::{Value, json};

use super::mask::{MaskedChat, MaskedText, Masker, Span};
use super::tokens::TokenMasker;
use super::{EncodedRow, Encoder, Example, LeftOut, Record, Row, RowNotes, TrainOn};
use crate::{Error, Result};

/// Turns rows into sequences, for one model and maximum length.
pub struct RowEncoder<'a> {
    encoder: &'a dyn Encoder,
    tokens: TokenMasker<'a>,
    masker: Masker<'a>,
    train_on: TrainOn,
    max_length: usize,
}

impl<'a> RowEncoder<'a> {
    /// Prepares sequences of at most `max_length` tokens.
    pub fn new(encoder: &'a dyn Encoder, train_on: TrainOn, max_length: usize) -> Result<Self> {
        if max_length < 2 {
            let message = format!("is {max_length}; it must be at least 2");
            return Err(Error::invalid("maximum length", message));
        }
        let (tokens, masker) = (TokenMasker::new(encoder), Masker::new(encoder));
        Ok(Self { encoder, tokens, masker, train_on, max_length })
    }

    /// Encodes a row. Every error names the row's file and place.
    pub fn encode(&self, row: &Row) -> Result<EncodedRow> {
        self.record(&row.record).map_err(|error| row.error(error.to_string()))
    }

    fn record(&self, record: &Record) -> Result<EncodedRow> {
        let mut notes = RowNotes::default();
        let mut made = Vec::new();
        let mut take = |chat: MaskedChat| {
            notes += chat.notes;
            self.chat(chat.texts, &mut notes)
        };
        match record {
            Record::Text(text) => made.push(self.plain(text, 0)?),
            Record::Completion { prompt, completion } => {
                let messages = [
                    json!({"role": "user", "content": prompt}),
                    json!({"role": "assistant", "content": completion}),
                ];
                match self.masked(&messages, None)? {
                    Some(chat) => made = take(chat)?,
                    None => {
                        notes.empty_answers += usize::from(completion.trim().is_empty());
                        made.push(self.plain(&format!("{prompt}{completion}"), prompt.len())?);
                    }
                }
            }
            Record::Chat { messages, tools } => {
                let Some(chat) = self.masked(messages, tools.as_ref())? else {
                    let message =
                        "the model has no chat template; write rows of prompt and completion, or of text";
                    return Err(Error::invalid("chat", message));
                };
                made = take(chat)?;
            }
        }
        made.iter().try_for_each(|example| self.check_ids(example))?;
        let mut row = self.finish(made);
        row.notes = notes;
        if row.left_out == Some(LeftOut::NoAnswer) {
            row.left_out = Some(match notes {
                RowNotes { calls_left_out: 1.., .. } => LeftOut::CallsNotWritten,
                RowNotes { empty_answers: 1.., .. } => LeftOut::EmptyAnswer,
                _ => LeftOut::NoAnswer,
            });
        }
        if row.left_out.is_some() {
            // Nothing of it is trained, so there is nothing to remark on.
            row.notes = RowNotes::default();
        }
        Ok(row)
    }

    /// Refuses a token without an embedding.
    fn check_ids(&self, example: &Example) -> Result<()> {
        let Some(rows) = self.encoder.embeddings() else { return Ok(()) };
        let Some(id) = example.tokens.iter().find(|&&id| id as usize >= rows) else { return Ok(()) };
        let text = self.tokens.special_text(*id).map_or(String::new(), |text| format!(" ({text})"));
        let message = format!(
            "is {id}{text}, but the model has embeddings for {rows} tokens only; use the tokenizer that belongs to the model, \
             or leave the text of that token out"
        );
        Err(Error::invalid("token", message))
    }

    fn masked(&self, messages: &[Value], tools: Option<&Value>) -> Result<Option<MaskedChat>> {
        match self.train_on {
            TrainOn::All => self.masker.whole(messages, tools),
            TrainOn::Completion => self.masker.answers(messages, tools),
        }
    }

    /// Text without a template, trained from a byte on, with the token that ends a text.
    fn plain(&self, text: &str, from: usize) -> Result<Example> {
        let span = Span { bytes: from..text.len(), whole_first_token: from == 0 };
        let mut example = self.tokens.encode(text, &[span], true)?;
        let ended = example.tokens.last().is_some_and(|&id| self.encoder.is_eos(id));
        if let Some(eos) = self.encoder.eos().filter(|_| !ended) {
            example.tokens.push(eos);
            example.supervised.push(true);
        }
        Ok(example)
    }

    fn chat(&self, texts: Vec<MaskedText>, notes: &mut RowNotes) -> Result<Vec<Example>> {
        let one = |masked: MaskedText| {
            let mut example = self.tokens.encode(&masked.text, &masked.spans, false)?;
            if let Some(end) = masked.end {
                example.tokens.push(end);
                example.supervised.push(true);
                notes.ends_added += 1;
            }
            Ok(example)
        };
        texts.into_iter().map(one).collect()
    }

    /// Cuts sequences to the maximum length and leaves out those of which nothing is trained.
    fn finish(&self, made: Vec<Example>) -> EncodedRow {
        let mut row =
            EncodedRow { samples: Vec::new(), truncated: 0, left_out: None, notes: RowNotes::default() };
        let mut reason = LeftOut::NoAnswer;
        for mut example in made {
            if self.train_on == TrainOn::All {
                example.supervised.fill(true);
            }
            if let Some(first) = example.supervised.first_mut() {
                *first = false;
            }
            let too_long = example.tokens.len() > self.max_length;
            if example.tokens.len() < 2 {
                reason = LeftOut::Empty;
            } else if too_long && example.trained() > 0 {
                reason = LeftOut::TooLong;
            }
            example.tokens.truncate(self.max_length);
            example.supervised.truncate(self.max_length);
            if example.trained() > 0 {
                row.truncated += usize::from(too_long);
                row.samples.push(example);
            }
        }
        row.left_out = row.samples.is_empty().then_some(reason);
        row
    }
}
