//! Rows of CSV files.

use std::path::Path;

use serde_json::Value;

use super::Place;
use super::text::line_of;
use crate::{Error, Result};

/// Reads the rows of a CSV file. Cells are texts as they are, spaces included, and an empty cell is an absent value.
pub(super) fn rows(path: &Path, text: &str) -> Result<Vec<(Place, Value)>> {
    let first = text.lines().next().unwrap_or_default();
    let count = |delimiter: u8| first.bytes().filter(|&byte| byte == delimiter).count();
    // Spreadsheets of many countries write semicolons.
    let delimiter = [b',', b';', b'\t'].into_iter().rev().max_by_key(|&d| count(d)).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let names = header(path, &mut reader, text)?;
    if let Some((at, message)) = wrong_quotes(text, delimiter) {
        return Err(Error::file_at(path, format!("line {}", line_of(&text.as_bytes()[..at])), message));
    }
    let mut values = Vec::new();
    let (mut line, mut counted) = (1, 0);
    for record in reader.records() {
        let record = record.map_err(|error| refused(path, text, &error))?;
        let start = record_start(text, record.position());
        line += text[counted..start].matches('\n').count();
        counted = start;
        // CSV cannot tell an empty text from an absent one.
        let cells = names.iter().zip(record.iter()).filter(|(_, cell)| !cell.is_empty());
        let row = cells.map(|(name, cell)| (name.clone(), cell.into())).collect();
        values.push((Place::Line(line), Value::Object(row)));
    }
    Ok(values)
}

/// The names of the columns.
fn header(path: &Path, reader: &mut csv::Reader<&[u8]>, text: &str) -> Result<Vec<String>> {
    let header = reader.headers().map_err(|error| refused(path, text, &error))?;
    let names: Vec<String> = header.iter().map(str::to_owned).collect();
    for (index, name) in names.iter().enumerate() {
        let wrong = |message: String| Err(Error::file_at(path, "line 1", message));
        if name.trim() != name {
            // Who writes spaces here writes them in the rows, too, where they would be trained.
            return wrong(format!(
                "the name of the column '{name}' begins or ends with a space; spaces are part of a cell, so remove those \
                 around the delimiters in every line"
            ));
        }
        if names[..index].contains(name) {
            return wrong(format!("the column '{name}' appears twice"));
        }
    }
    Ok(names)
}

/// Explains an error of the reader.
fn refused(path: &Path, text: &str, error: &csv::Error) -> Error {
    let start = record_start(text, error.position());
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let cells = if *len == 1 { "cell" } else { "cells" };
            format!(
                "has {len} {cells}, but the header has {expected_len}; quote cells that contain the delimiter"
            )
        }
        _ => format!("is not valid CSV: {error}"),
    };
    Error::file_at(path, format!("line {}", line_of(&text.as_bytes()[..start])), message)
}

/// Byte at which a record begins. The reader's position is where it went on reading, before line ends that belong to
/// the record before and before empty lines.
fn record_start(text: &str, position: Option<&csv::Position>) -> usize {
    let from = position.map_or(0, |position| position.byte() as usize).min(text.len());
    let rest = &text[from..];
    text.len() - rest.trim_start_matches(['\r', '\n']).len()
}

/// The first quote that does not enclose a cell, with what is wrong. The reader takes such quotes as they come, and a
/// cell then swallows the rows up to the next quote.
fn wrong_quotes(text: &str, delimiter: u8) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let ends_cell = |byte: u8| byte == delimiter || byte == b'\n' || byte == b'\r';
    let mut at = 0;
    while at < bytes.len() {
        let spaces = bytes[at..].iter().take_while(|&&byte| byte == b' ').count();
        if bytes.get(at + spaces) == Some(&b'"') {
            let opened = at + spaces;
            if spaces > 0 {
                let message = "a cell begins with a space before its quote, so that both would be part of its text; remove \
                               the space";
                return Some((opened, message.to_owned()));
            }
            let Some(closed) = closing_quote(bytes, opened) else {
                return Some((opened, "a quote opens here and is never closed".to_owned()));
            };
            at = closed + 1;
            if bytes.get(at).is_some_and(|&byte| !ends_cell(byte)) {
                let message = format!(
                    "a quote opens here, and more text follows the next quote, on line {}; write a quote inside a cell as \
                     \"\", and nothing between a closing quote and the delimiter",
                    line_of(&bytes[..closed])
                );
                return Some((opened, message));
            }
        }
        at += bytes[at..].iter().take_while(|&&byte| !ends_cell(byte)).count() + 1;
    }
    None
}

/// The quote that closes the one at a place; doubled quotes are part of the cell.
fn closing_quote(bytes: &[u8], opened: usize) -> Option<usize> {
    let mut at = opened + 1;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == b'"')?;
        if bytes.get(at + 1) != Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}
