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

/// Number of rows that are taken from `train` for validation if a data set has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValidationSize {
    /// A share of the rows, from 0 to below 1.
    Share(f64),
    /// A number of rows, fewer than there are.
    Rows(usize),
}

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
    /// Opens a folder or a file for training.
    ///
    /// A folder has a `train` file and, if present, `valid` (or `validation`, `val`, `dev`) and `test` files in any
    /// readable format, also in shards such as `train-00000-of-00002.parquet`, directly or in its folder `data`. Of a
    /// single file, some rows are used for validation as by [`DataSet::split_off_validation`].
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        Self::open_with(path, columns, None)
    }

    /// Opens a folder or a file as [`DataSet::open`] does, and takes a chosen number of rows for validation.
    pub fn open_with(path: &Path, columns: &Columns, validation: Option<ValidationSize>) -> Result<Self> {
        let (mut set, is_one_file) = Self::read(path, columns)?;
        if set.train.is_empty() {
            return Err(no_train(path, &data_files(path)?));
        }
        match validation {
            Some(size) => set.split_off(size)?,
            None if is_one_file => set.split_off_validation(),
            None => {}
        }
        Ok(set)
    }

    /// Opens a folder or a file as [`DataSet::open`] does, but takes no rows for validation, and a folder need only have
    /// one of the three files.
    pub fn open_any(path: &Path, columns: &Columns) -> Result<Self> {
        Self::read(path, columns).map(|(set, _)| set)
    }

    /// Reads a folder or a file. The flag is set for a single file, which is no split of a data set.
    fn read(path: &Path, columns: &Columns) -> Result<(Self, bool)> {
        let one_file = |path: &Path| Ok((Self::from_files(&[path.to_owned()], &[], &[], columns)?, true));
        if !path.is_dir() {
            return one_file(path);
        }
        let files = data_files(path)?;
        let inner = path.join("data");
        let mut found = splits(path, &files)?;
        if found.iter().all(Vec::is_empty) && inner.is_dir() {
            found = splits(&inner, &data_files(&inner)?)?;
        }
        match (&found, files.as_slice()) {
            ([train, valid, test], _) if found.iter().any(|split| !split.is_empty()) => {
                Ok((Self::from_files(train, valid, test, columns)?, false))
            }
            (_, [only]) => one_file(only),
            _ => Err(no_train(path, &files)),
        }
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
        if count >= MIN_ROWS_TO_SPLIT && self.valid.is_empty() {
            self.take_for_validation((count / SPLIT).min(MAX_SPLIT));
        }
    }

    /// Takes rows from `train` for validation, at equal distances. A share that is above 0 is at least one row.
    ///
    /// # Errors
    ///
    /// The data set has rows for validation already, or no row would be left to train.
    pub fn split_off(&mut self, size: ValidationSize) -> Result<()> {
        let all = self.train.len();
        let refused = |message: String| Err(Error::invalid("validation size", message));
        let count = match size {
            ValidationSize::Rows(count) => count,
            ValidationSize::Share(share) if (0.0..1.0).contains(&share) => {
                (share * all as f64).ceil() as usize
            }
            ValidationSize::Share(share) => {
                return refused(format!(
                    "is {share}; it must be a share from 0 to below 1, or a number of rows"
                ));
            }
        };
        if count > 0 && !self.valid.is_empty() {
            return refused(format!(
                "cannot be chosen, because the data has {} rows for validation already; leave it out, or remove them",
                self.valid.len()
            ));
        }
        if count >= all {
            return refused(format!(
                "takes {count} of the {all} rows, so that none is left to train; choose a smaller one"
            ));
        }
        self.take_for_validation(count);
        Ok(())
    }

    fn take_for_validation(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        self.split_off = count;
        // Every row is in one of `count` groups of nearly equal size, and the one in the middle of each is taken.
        let all = self.train.len();
        let middle = |group: usize| (2 * group + 1) * all / (2 * count);
        for (index, row) in std::mem::take(&mut self.train).into_iter().enumerate() {
            let chosen = self.valid.len() < count && index == middle(self.valid.len());
            if chosen { self.valid.push(row) } else { self.train.push(row) }
        }
    }
}

/// The files of train, valid and test in a folder.
fn splits(folder: &Path, files: &[PathBuf]) -> Result<[Vec<PathBuf>; 3]> {
    let [train, valid, test] =
        [&["train", "training"][..], &["valid", "validation", "val", "dev"], &["test"]];
    Ok([split_of(folder, files, train)?, split_of(folder, files, valid)?, split_of(folder, files, test)?])
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

/// The split of a file by its name, and whether the file is a shard of it.
fn split_name(path: &Path) -> (String, bool) {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    match stem.split_once('-') {
        Some((name, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => (name.to_owned(), true),
        _ => (stem, false),
    }
}
