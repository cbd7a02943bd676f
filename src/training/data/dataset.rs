//! Data sets: a folder with files of rows, or one file.

use std::path::{Path, PathBuf};

use super::files::{Columns, Split, read_rows, read_splits};
use super::{Format, Row, counted};
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
    /// readable format, also in shards such as `train-00000-of-00002.parquet`, directly or in its folder `data`. So has a
    /// JSON file with a list per split. Of a single file without splits, some rows are used for validation as by
    /// [`DataSet::split_off_validation`].
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        Self::open_with(path, columns, None)
    }

    /// Opens a folder or a file as [`DataSet::open`] does, and takes a chosen number of rows for validation.
    pub fn open_with(path: &Path, columns: &Columns, validation: Option<ValidationSize>) -> Result<Self> {
        let (mut set, is_one_file) = Self::read(path, columns)?;
        if set.train.is_empty() {
            return Err(match path.is_dir() {
                true => no_train(path)?,
                false => Error::file(path, "has no rows of 'train'; it is a file of rows to evaluate"),
            });
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

    /// Reads a folder or a file. The flag is set for a single file without splits.
    fn read(path: &Path, columns: &Columns) -> Result<(Self, bool)> {
        if !path.is_dir() {
            return Self::from_file(path, columns);
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
            (_, [only]) => Self::from_file(only, columns),
            _ => Err(no_train(path)?),
        }
    }

    fn from_file(path: &Path, columns: &Columns) -> Result<(Self, bool)> {
        let mut set = Self::default();
        for (split, row) in read_splits(path, columns)? {
            match split {
                Split::Train => set.train.push(row),
                Split::Valid => set.valid.push(row),
                Split::Test => set.test.push(row),
            }
        }
        let is_whole = set.valid.is_empty() && set.test.is_empty();
        Ok((set, is_whole))
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
                "cannot be chosen, because the data has {} for validation already; leave it out, or remove them",
                counted(self.valid.len(), "row")
            ));
        }
        if count >= all {
            return refused(format!(
                "takes {count} of {}, so that none is left to train; choose a smaller one",
                counted(all, "row")
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
    Ok([
        split_of(folder, files, Split::Train)?,
        split_of(folder, files, Split::Valid)?,
        split_of(folder, files, Split::Test)?,
    ])
}

/// The error for a folder without a train file. A file that would be one in another form is named with its reason.
fn no_train(folder: &Path) -> Result<Error> {
    let mut files = all_files(folder)?;
    let is_train = |file: &&PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().starts_with("train"))
    };
    if let Some(error) = files.iter().filter(is_train).find_map(|file| Format::check(file).err()) {
        return Ok(error);
    }
    files.retain(|file| file.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    let names = files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.take(9).collect();
    if names.len() > 8 {
        names[8] = "…".to_owned();
    }
    let found = if names.is_empty() { "no files".to_owned() } else { names.join(", ") };
    let message = format!(
        "contains no train file: expected train.jsonl (or .ndjson, .json, .csv, .parquet), and optionally valid and test \
         files; found {found}"
    );
    Ok(Error::file(folder, message))
}

/// The files of rows in a folder, by name. A file that is named after a split only needs the content of one.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_data = |file: &PathBuf| {
        let is_named = Split::of(&split_name(file).0).is_some();
        Format::of(file).is_some() || is_named && matches!(Format::detect(file), Ok(Some(_)))
    };
    Ok(all_files(folder)?.into_iter().filter(is_data).collect())
}

fn all_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, "read", source))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// The files of a split: one file, or shards of one format.
fn split_of(folder: &Path, files: &[PathBuf], split: Split) -> Result<Vec<PathBuf>> {
    let found: Vec<PathBuf> =
        files.iter().filter(|file| Split::of(&split_name(file).0) == Some(split)).cloned().collect();
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
