//! Files of rows: JSON lines, JSON lists, CSV and Parquet.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value};

#[cfg(feature = "parquet")]
use super::parquet::rows as parquet;
use super::rows::Used;
use super::{Format, Place, Row, csv, json, rows, text};
use crate::{Error, Result};

/// Names that a data set has for its columns, such as `prompt=question,completion=answer`.
///
/// With any of them, only the named columns are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, String)>);

impl Columns {
    /// Names of columns that rows can be made of.
    const KNOWN: [&str; 9] =
        ["messages", "prompt", "completion", "text", "tools", "system", "instruction", "input", "output"];

    /// The record of a row, its columns renamed.
    fn record(&self, value: Value) -> std::result::Result<Used, String> {
        let Value::Object(mut row) = value else { return rows::record(value) };
        if self.0.is_empty() {
            return rows::record(Value::Object(row));
        }
        let all: Vec<String> = row.keys().cloned().collect();
        let mut renamed = Map::new();
        for (ours, theirs) in &self.0 {
            let Some(value) = row.remove(theirs) else {
                return Err(format!("has no column '{theirs}'; it has [{}]", all.join(", ")));
            };
            renamed.insert(ours.clone(), value);
        }
        rows::record(Value::Object(renamed)).map_err(|message| match row.is_empty() {
            true => message,
            false => format!(
                "{message}; with --columns only the columns that it names are read, and the row also has [{}]",
                row.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

impl FromStr for Columns {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let wrong = |message: String| {
                Error::invalid("columns", format!("{message}, as in prompt=question,completion=answer"))
            };
            let Some((ours, theirs)) = item.split_once('=') else {
                return Err(wrong(format!("'{item}' is not OURS=THEIRS")));
            };
            let (ours, theirs) = (ours.trim(), theirs.trim());
            if !Self::KNOWN.contains(&ours) || theirs.is_empty() {
                return Err(wrong(format!("'{item}' must name one of {}", Self::KNOWN.join(", "))));
            }
            pairs.push((ours.to_owned(), theirs.to_owned()));
        }
        Ok(Self(pairs))
    }
}

/// Splits of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    Train,
    Valid,
    Test,
}

impl Split {
    /// The split that a file or a key is named after.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name.to_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "valid" | "validation" | "val" | "dev" => Some(Self::Valid),
            "test" => Some(Self::Test),
            _ => None,
        }
    }
}

/// Reads the rows of a data file, those of every split of it. The first row that cannot be used is an error with file and
/// place; so is a file without rows.
pub fn read_rows(path: &Path, columns: &Columns) -> Result<Vec<Row>> {
    Ok(read_splits(path, columns)?.into_iter().map(|(_, row)| row).collect())
}

/// Reads the rows of a data file with the split that each belongs to: `Train`, unless a JSON file has a list per split.
pub(super) fn read_splits(path: &Path, columns: &Columns) -> Result<Vec<(Split, Row)>> {
    let Some(format) = Format::detect(path)? else {
        let message = "is not a file of rows: its name does not end in .jsonl, .ndjson, .json, .csv or .parquet, and it does \
                       not begin as one of these; to train on prose, write rows of {\"text\": …}";
        return Err(Error::file(path, message));
    };
    let of_train = |rows: Vec<(Place, Value)>| {
        rows.into_iter().map(|(place, value)| (Split::Train, place, value)).collect::<Vec<_>>()
    };
    let values = match format {
        Format::Parquet => of_train(parquet(path)?),
        Format::JsonLines | Format::Json => json_values(path, &text::read(path)?, format)?,
        Format::Csv => of_train(csv::rows(path, &text::read(path)?)?),
    };
    let path: Arc<Path> = Arc::from(path);
    // Rows of a file mostly have the same columns.
    let mut known: Arc<[String]> = Arc::from([]);
    let row = |(split, place, value): (Split, Place, Value)| match columns.record(value) {
        Ok((record, unused)) => {
            if *known != *unused {
                known = unused.into();
            }
            Ok((split, Row { record, path: path.clone(), place, unused: known.clone() }))
        }
        Err(message) => Err(Error::file_at(&path, place.to_string(), message)),
    };
    let rows = values.into_iter().map(row).collect::<Result<Vec<_>>>()?;
    if rows.is_empty() {
        return Err(Error::file(&path, "contains no rows"));
    }
    Ok(rows)
}

/// Reads a text file as it is, with line feeds as line ends.
pub fn read_text(path: &Path) -> Result<String> {
    Format::check(path)?;
    let text = text::read(path)?;
    if text.trim().is_empty() {
        return Err(Error::file(path, "contains no text"));
    }
    Ok(text.replace("\r\n", "\n"))
}

fn json_values(path: &Path, text: &str, format: Format) -> Result<Vec<(Split, Place, Value)>> {
    let located = |wrong: json::Wrong| {
        Error::file_at(path, format!("line {}", wrong.line), format!("is not valid JSON: {}", wrong.cause))
    };
    if text.trim_start().starts_with('[') {
        return list(text, 0..text.len(), Split::Train).map_err(located);
    }
    if format == Format::Json
        && let Ok(value) = json::parse(text)
    {
        return of_one_object(text, value).map_err(located);
    }
    let lines = text::lines(text).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(line, text)| {
            let value = json::parse(text).map_err(|wrong| {
                let hint = match wrong.cause.as_str() {
                    cause if cause.starts_with("EOF") => {
                        "; a row must be on one line, or the file a JSON list"
                    }
                    _ if text.trim_end().ends_with("},") => "; JSON lines have no comma at their end",
                    _ => "",
                };
                located(json::Wrong { line, cause: wrong.cause + hint })
            })?;
            Ok((Split::Train, Place::Line(line), value))
        })
        .collect()
}

/// The items of a JSON list. Their places are lines or, of a list on one line, numbers of rows.
fn list(
    text: &str,
    range: Range<usize>,
    split: Split,
) -> std::result::Result<Vec<(Split, Place, Value)>, json::Wrong> {
    let before = text::line_of(&text.as_bytes()[..range.start]) - 1;
    let items = json::parse_list(&text[range])
        .map_err(|wrong| json::Wrong { line: wrong.line + before, cause: wrong.cause })?;
    let is_one_line = items.len() > 1 && items.first().map(|item| item.0) == items.last().map(|item| item.0);
    let place = |index: usize, line: usize| match is_one_line {
        true => Place::Row(index + 1),
        false => Place::Line(line + before),
    };
    let placed = |(index, (line, value)): (usize, (usize, Value))| (split, place(index, line), value);
    Ok(items.into_iter().enumerate().map(placed).collect())
}

/// The rows of a file with one JSON object: those of its lists by the names of splits, those of its list of objects, as in
/// `{"data": […]}`, or itself.
fn of_one_object(text: &str, value: Value) -> std::result::Result<Vec<(Split, Place, Value)>, json::Wrong> {
    let is_rows = |name: &str| {
        let list = value.get(name).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
    };
    let fields = json::fields(text).unwrap_or_default();
    let range = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, range)| range.clone());
    let splits = fields.iter().filter_map(|(key, range)| Some((Split::of(key)?, key, range)));
    let splits: Vec<_> = splits.filter(|(_, key, _)| is_rows(key)).collect();
    if !splits.is_empty() {
        let mut rows = Vec::new();
        for (split, _, range) in splits {
            rows.extend(list(text, range.clone(), split)?);
        }
        return Ok(rows);
    }
    let named = ["data", "rows", "examples", "instances"];
    if let Some(range) = named.into_iter().find(|name| is_rows(name)).and_then(range) {
        return list(text, range, Split::Train);
    }
    let line = text::line_of(&text.as_bytes()[..text.len() - text.trim_start().len()]);
    Ok(vec![(Split::Train, Place::Line(line), value)])
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path) -> Result<Vec<(Place, Value)>> {
    Err(Error::file(
        path,
        "is a Parquet file, which this build does not read; build with the feature 'parquet'",
    ))
}
