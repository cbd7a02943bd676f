//! Files of rows: JSON lines, JSON lists, CSV and Parquet.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value};

#[cfg(feature = "parquet")]
use super::parquet::rows as parquet;
use super::{Place, Row, json, rows, text};
use crate::{Error, Result};

/// Format of a data file, decided by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line: `.jsonl`, `.ndjson`.
    JsonLines,
    /// A JSON list of objects, or JSON lines: `.json`.
    Json,
    /// Comma-separated values with a header: `.csv`, `.tsv`.
    Csv,
    /// `.parquet`.
    Parquet,
}

impl Format {
    /// Returns the format that a file's name announces, in any letter case; `None` for other files, such as prose.
    pub fn of(path: &Path) -> Option<Self> {
        match extension(path).as_str() {
            "jsonl" | "ndjson" | "jsonlines" => Some(Self::JsonLines),
            "json" => Some(Self::Json),
            "csv" | "tsv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    /// Refuses a file that holds rows in a form that is not read. Files of other kinds, such as prose, pass.
    pub fn check(path: &Path) -> Result<()> {
        let message = match extension(path).as_str() {
            "gz" | "zst" | "bz2" | "xz" | "zip" | "tar" | "tgz" => "is compressed; unpack it first",
            "arrow" | "feather" => {
                "is an Arrow file, which is not read; save it as Parquet: datasets.Dataset.from_file(…).to_parquet(…)"
            }
            "xlsx" | "xls" | "ods" => "is a spreadsheet, which is not read; save it as CSV",
            "yaml" | "yml" | "xml" | "pkl" | "pickle" | "npy" | "db" | "sqlite" => {
                "is of a kind that is not read; save the rows as JSON lines"
            }
            _ => return Ok(()),
        };
        Err(Error::file(path, message))
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Names that a data set has for its columns, such as `prompt=question,completion=answer`.
///
/// With any of them, only the named columns are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, String)>);

impl Columns {
    /// Names of columns that rows can be made of.
    const KNOWN: [&str; 9] =
        ["messages", "prompt", "completion", "text", "tools", "system", "instruction", "input", "output"];

    /// Renames the columns of a row.
    fn apply(&self, value: Value) -> std::result::Result<Value, String> {
        let Value::Object(mut row) = value else { return Ok(value) };
        if self.0.is_empty() {
            return Ok(Value::Object(row));
        }
        let mut renamed = Map::new();
        for (ours, theirs) in &self.0 {
            let Some(value) = row.remove(theirs) else {
                let names: Vec<&str> = row.keys().map(String::as_str).collect();
                return Err(format!("has no column '{theirs}'; it has [{}]", names.join(", ")));
            };
            renamed.insert(ours.clone(), value);
        }
        Ok(Value::Object(renamed))
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

/// Reads the rows of a data file. The first row that cannot be used is an error with file and place; so is a file
/// without rows.
pub fn read_rows(path: &Path, columns: &Columns) -> Result<Vec<Row>> {
    let format = match Format::of(path) {
        Some(format) => format,
        None => {
            Format::check(path)?;
            return Err(Error::file(
                path,
                "is not a file of rows; its name must end in .jsonl, .ndjson, .json, .csv or .parquet",
            ));
        }
    };
    let values = match format {
        Format::Parquet => parquet(path)?,
        Format::JsonLines | Format::Json => json_values(path, &text::read(path)?, format)?,
        Format::Csv => csv_values(path, &text::read(path)?)?,
    };
    let path: Arc<Path> = Arc::from(path);
    let row = |(place, value): (Place, Value)| {
        let record = columns.apply(value).and_then(rows::record);
        match record {
            Ok(record) => Ok(Row { record, path: path.clone(), place }),
            Err(message) => Err(Error::file_at(&path, place.to_string(), message)),
        }
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

fn json_values(path: &Path, text: &str, format: Format) -> Result<Vec<(Place, Value)>> {
    let located = |wrong: json::Wrong| {
        Error::file_at(path, format!("line {}", wrong.line), format!("is not valid JSON: {}", wrong.cause))
    };
    if text.trim_start().starts_with('[') {
        let items = json::parse_list(text).map_err(located)?;
        return Ok(items.into_iter().map(|(line, value)| (Place::Line(line), value)).collect());
    }
    if format == Format::Json
        && let Ok(value) = json::parse(text)
    {
        return Ok(of_one_object(text, value));
    }
    let lines = text::lines(text).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(line, text)| {
            let value = json::parse(text).map_err(|wrong| {
                let hint = match wrong.cause.starts_with("EOF") {
                    true => "; a row must be on one line, or the file a JSON list",
                    false => "",
                };
                located(json::Wrong { line, cause: wrong.cause + hint })
            })?;
            Ok((Place::Line(line), value))
        })
        .collect()
}

/// The rows of a file with one JSON object: those of its only list of objects, as in `{"data": […]}`, or itself.
fn of_one_object(text: &str, value: Value) -> Vec<(Place, Value)> {
    let is_rows = |value: &Value| {
        value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
    };
    if let Value::Object(map) = &value {
        let named = ["data", "rows", "train", "examples", "instances"];
        if let Some(list) = named.iter().find_map(|name| map.get(*name).filter(|value| is_rows(value))) {
            let rows = list.as_array().into_iter().flatten().cloned().enumerate();
            return rows.map(|(index, row)| (Place::Row(index + 1), row)).collect();
        }
    }
    let line = text::line_of(&text.as_bytes()[..text.len() - text.trim_start().len()]);
    vec![(Place::Line(line), value)]
}

fn csv_values(path: &Path, text: &str) -> Result<Vec<(Place, Value)>> {
    let first = text.lines().next().unwrap_or_default();
    let count = |delimiter: u8| first.bytes().filter(|&byte| byte == delimiter).count();
    // Spreadsheets of many countries write semicolons.
    let delimiter = [b',', b';', b'\t'].into_iter().rev().max_by_key(|&d| count(d)).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let refused = |error: &csv::Error| {
        let start = record_start(text, error.position());
        let line = 1 + text[..start].matches('\n').count();
        let message = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!(
                    "has {len} cells, but the header has {expected_len}; quote cells that contain the delimiter"
                )
            }
            _ => format!("is not valid CSV: {error}"),
        };
        Error::file_at(path, format!("line {line}"), message)
    };
    let header = reader.headers().map_err(|error| refused(&error))?.clone();
    let names: Vec<&str> = header.iter().map(str::trim).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(Error::file_at(path, "line 1", format!("the column '{name}' appears twice")));
        }
    }
    let mut values = Vec::new();
    let (mut line, mut counted) = (1, 0);
    for record in reader.records() {
        let record = record.map_err(|error| refused(&error))?;
        let start = record_start(text, record.position());
        line += text[counted..start].matches('\n').count();
        counted = start;
        // An empty cell is an absent value: CSV cannot tell the two apart.
        let cells = names.iter().zip(record.iter()).filter(|(_, cell)| !cell.is_empty());
        let row = cells.map(|(name, cell)| ((*name).to_owned(), cell.into())).collect();
        values.push((Place::Line(line), Value::Object(row)));
    }
    Ok(values)
}

/// Byte at which a record begins. The reader's position is where it went on reading, before line ends that belong to
/// the record before and before empty lines.
fn record_start(text: &str, position: Option<&csv::Position>) -> usize {
    let from = position.map_or(0, |position| position.byte() as usize).min(text.len());
    let rest = &text[from..];
    text.len() - rest.trim_start_matches(['\r', '\n']).len()
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path) -> Result<Vec<(Place, Value)>> {
    Err(Error::file(
        path,
        "is a Parquet file, which this build does not read; build with the feature 'parquet'",
    ))
}
