//! Data sets: a folder with files of rows, or one file.

use std::path::{Path, PathBuf};

use super::Row;
use super::files::{Columns, Format, read_rows};
use crate::{Error, Result};

/// A file needs this many rows before some are taken for validation.
const MIN_ROWS_TO_SPLIT: usize = 20;
/// One of this many rows is taken for validation, up to [`MAX_SPLIT`].
const SPLIT: usize = 20;
const MAX_SPLIT: usize = 100;

/// The rows of a data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSet {
    /// Rows to train on.
    pub train: Vec<Row>,
    /// Rows to validate on; empty without such a file.
    pub valid: Vec<Row>,
    /// Rows that are held out until after training; empty without such a file.
    pub test: Vec<Row>,
    /// Number of rows of `valid` that were taken from a single file of rows.
    pub split_off: usize,
}

impl DataSet {
    /// Opens a folder or a file.
    ///
    /// A folder has a `train` file and, if present, `valid` (or `validation`, `val`, `dev`) and `test` files in any
    /// readable format, also in shards such as `train-00000-of-00002.parquet`, directly or in its folder `data`. Of a
    /// single file, some rows are used for validation as by [`DataSet::split_off_validation`].
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        if path.is_dir() {
            return Self::from_folder(path, columns);
        }
        let mut set = Self::from_files(&[path.to_owned()], &[], &[], columns)?;
        set.split_off_validation();
        Ok(set)
    }

    /// Reads the files of each split.
    pub fn from_files(
        train: &[PathBuf],
        valid: &[PathBuf],
        test: &[PathBuf],
        columns: &Columns,
    ) -> Result<Self> {
        let read = |paths: &[PathBuf]| {
            let files = paths.iter().map(|path| read_rows(path, columns)).collect::<Result<Vec<_>>>()?;
            Ok(files.concat())
        };
        Ok(Self { train: read(train)?, valid: read(valid)?, test: read(test)?, split_off: 0 })
    }

    /// Takes every twentieth row, but at most 100, from `train` for validation. Does nothing if there are rows for
    /// validation, or fewer than 20 rows.
    pub fn split_off_validation(&mut self) {
        let count = self.train.len();
        if count < MIN_ROWS_TO_SPLIT || !self.valid.is_empty() {
            return;
        }
        self.split_off = (count / SPLIT).min(MAX_SPLIT);
        let stride = count / self.split_off;
        for (index, row) in std::mem::take(&mut self.train).into_iter().enumerate() {
            let chosen = index % stride == stride / 2 && self.valid.len() < self.split_off;
            if chosen { self.valid.push(row) } else { self.train.push(row) }
        }
    }

    fn from_folder(folder: &Path, columns: &Columns) -> Result<Self> {
        let files = data_files(folder)?;
        let split = |names: &[&str]| split_of(folder, &files, names);
        let train = split(&["train", "training"])?;
        if train.is_empty() {
            let inner = folder.join("data");
            if inner.is_dir() && !split_of(&inner, &data_files(&inner)?, &["train"])?.is_empty() {
                return Self::from_folder(&inner, columns);
            }
            return match files.as_slice() {
                [only] => Self::open(only, columns),
                _ => Err(no_train(folder, &files)),
            };
        }
        let valid = split(&["valid", "validation", "val", "dev"])?;
        Self::from_files(&train, &valid, &split(&["test"])?, columns)
    }
}

fn no_train(folder: &Path, files: &[PathBuf]) -> Error {
    let names: Vec<String> =
        files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into())).collect();
    let found = if names.is_empty() { "no data files".to_owned() } else { names.join(", ") };
    let message = format!(
        "contains no train file: expected train.jsonl (or .ndjson, .json, .csv, .parquet), and optionally valid and test \
         files; found {found}"
    );
    Error::file(folder, message)
}

/// The files of rows in a folder, by name.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, "read", source))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && Format::of(path).is_some())
        .collect();
    files.sort();
    Ok(files)
}

/// The files of a split: one file, or shards of one format.
fn split_of(folder: &Path, files: &[PathBuf], names: &[&str]) -> Result<Vec<PathBuf>> {
    let found: Vec<PathBuf> =
        files.iter().filter(|file| names.contains(&split_name(file).0.as_str())).cloned().collect();
    let several = found.len() > 1;
    if several && !found.iter().all(|file| split_name(file).1 && Format::of(file) == Format::of(&found[0])) {
        let listed: Vec<_> =
            found.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy()).collect();
        let message =
            format!("contains several files for one split: {}; keep one of them", listed.join(", "));
        return Err(Error::file(folder, message));
    }
    Ok(found)
}

/// The split that a file's name tells, and whether the file is a shard of it.
fn split_name(path: &Path) -> (String, bool) {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    match stem.split_once('-') {
        Some((name, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => (name.to_owned(), true),
        _ => (stem, false),
    }
}
