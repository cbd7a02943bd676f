//! Formats of data files, by name and by content.

use std::io::Read;
use std::path::Path;

use super::text;
use crate::{Error, Result};

/// Number of bytes that decide on the format of a file whose name does not.
const SNIFFED: u64 = 1 << 16;
const COMPRESSED: &str = "is compressed; unpack it first";

/// Format of a data file.
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

    /// Returns the format that a file's name announces or, for a name that announces none, its first bytes: Parquet's mark,
    /// an object or a list of objects of JSON, or a header of CSV with the columns of a row. `None` for other files, such
    /// as prose.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds rows in a form that is not read.
    pub fn detect(path: &Path) -> Result<Option<Self>> {
        if let Some(format) = Self::of(path) {
            return Ok(Some(format));
        }
        Self::check(path)?;
        let mut start = Vec::new();
        let file = std::fs::File::open(path).map_err(|source| Error::io(path, "read", source))?;
        file.take(SNIFFED).read_to_end(&mut start).map_err(|source| Error::io(path, "read", source))?;
        let packed: [&[u8]; 5] = [b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
        if packed.iter().any(|mark| start.starts_with(mark)) {
            return Err(Error::file(path, COMPRESSED));
        }
        Ok(match start.starts_with(b"PAR1") {
            true => Some(Self::Parquet),
            false => of_text(&text::decode_start(&start)),
        })
    }

    /// Refuses a file that holds rows in a form that is not read. Files of other kinds, such as prose, pass.
    pub fn check(path: &Path) -> Result<()> {
        let message = match extension(path).as_str() {
            "gz" | "zst" | "bz2" | "xz" | "zip" | "tar" | "tgz" => COMPRESSED,
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

/// The format of a text by how it begins.
fn of_text(start: &str) -> Option<Format> {
    let start = start.trim_start();
    let is_object = |text: &str| {
        text.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with(['"', '}']))
    };
    if is_object(start) || start.strip_prefix('[').is_some_and(is_object) {
        return Some(Format::Json);
    }
    let header = start.lines().next().unwrap_or_default();
    let is_header = [',', ';', '\t'].into_iter().any(|delimiter| {
        let names: Vec<&str> = header.split(delimiter).map(|name| name.trim().trim_matches('"')).collect();
        let pairs = [["prompt", "completion"], ["instruction", "output"], ["instruction", "response"]];
        pairs.iter().any(|pair| pair.iter().all(|name| names.contains(name)))
    });
    is_header.then_some(Format::Csv)
}
