//! The user's cache folder: where models are kept between runs.
//!
//! `METAL_CANDLE_CACHE`, or the system's cache folder with `metal-candle` in it (`~/.cache/metal-candle` on Linux,
//! `~/Library/Caches/metal-candle` on a Mac). Models lie under `models/`, the built-in data set under `data/`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use metal_candle::atomic::WRITING;
use metal_candle::durable::{self, OutputFile};
use metal_candle::models::files_of_model;

use crate::failure::{Code, Failure};
use crate::record::Record;
use crate::session::Session;

/// What `tune` measured, in the cache folder.
pub(crate) const TABLE: &str = "tune.json";

/// Beginnings of the names of files and folders from the Python package that are not finished.
pub(crate) const PART: &str = ".part-";
pub(crate) const PIP: &str = ".pip-";
/// Prefixes of the names that a killed process may leave in a folder. Downloads from the hub have other names, since
/// they are continued.
const UNFINISHED: [&str; 3] = [WRITING, PART, PIP];

/// The cache folder.
pub(crate) fn root() -> Result<PathBuf, Failure> {
    if let Some(folder) = std::env::var_os("METAL_CANDLE_CACHE").filter(|f| !f.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    dirs::cache_dir().map(|folder| folder.join("metal-candle")).ok_or_else(|| {
        Failure::input(
            "there is no cache folder for this user",
            "set METAL_CANDLE_CACHE to a folder that may be written",
        )
    })
}

/// The folder of the models.
pub(crate) fn models() -> Result<PathBuf, Failure> {
    Ok(root()?.join("models"))
}

/// Returns true if the user has forbidden network access.
pub(crate) fn offline() -> bool {
    flag("METAL_CANDLE_OFFLINE")
}

/// Returns true if an environment variable says yes, as the hub's own tools read them.
pub(crate) fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// Creates a folder of the cache.
pub(crate) fn create(folder: &Path) -> Result<(), Failure> {
    durable::create_dir_all(folder).map_err(|e| {
        Failure::new(
            Code::Input,
            format!("{}: cannot create the cache folder: {e}", folder.display()),
            "set METAL_CANDLE_CACHE to a folder that may be written",
        )
    })
}

/// Holds a model's folder for this process until dropped; a second process waits for the first and then finds its
/// result. Where the file system knows no locks the work goes on unlocked: temporary names are unique and sums are
/// checked, so the worst is a download made twice.
pub(crate) fn lock(folder: &Path, session: &Session) -> Result<File, Failure> {
    let file = open_lock(folder)?;
    loop {
        match file.try_lock() {
            Ok(()) => {
                clean(folder);
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {
                session.once("waiting for another metal-candle that is fetching this model");
                std::thread::sleep(std::time::Duration::from_millis(200));
                session.check_interrupt("waiting for another process")?;
            }
            Err(TryLockError::Error(e)) => {
                tracing::debug!("{} cannot be locked: {e}", folder.display());
                return Ok(file);
            }
        }
    }
}

/// Holds a folder for the moment in which small files are written.
pub(crate) fn hold(folder: &Path) -> Result<File, Failure> {
    let file = open_lock(folder)?;
    match file.lock() {
        Ok(()) => clean(folder),
        Err(e) => tracing::debug!("{} cannot be locked: {e}", folder.display()),
    }
    Ok(file)
}

fn open_lock(folder: &Path) -> Result<File, Failure> {
    create(folder)?;
    let path = folder.join(".lock");
    OutputFile::append(&path).map(OutputFile::into_file).map_err(|e| {
        Failure::input(
            format!("{}: cannot write: {e}", path.display()),
            "set METAL_CANDLE_CACHE to a folder that may be written",
        )
    })
}

/// Removes what killed processes left in a folder that this process holds. What cannot be removed only takes space.
pub(crate) fn clean(folder: &Path) {
    drop(durable::sweep(folder, &UNFINISHED));
}

/// Returns true if a folder contains files that are being written, or were when their process was killed.
pub(crate) fn has_unfinished(folder: &Path) -> bool {
    let is_one = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        UNFINISHED.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(is_one)
}

/// A model in the cache.
pub(crate) struct Cached {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Every GGUF file and every complete model folder in the cache.
pub(crate) fn list() -> Vec<Cached> {
    let mut found = Vec::new();
    if let Ok(folder) = models() {
        walk(&folder, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(folder: &Path, found: &mut Vec<Cached>) {
    if folder.join("config.json").is_file() {
        // An unfinished download is no model yet.
        if Record::read(folder).whole().is_none() {
            return;
        }
        found.push(Cached { path: folder.to_owned(), bytes: size_of(folder) });
        return;
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "gguf") {
            let names = files_of_model(&path.to_string_lossy());
            // A split model is listed once, by its first file.
            if path.to_str() == names.first().map(String::as_str) {
                let bytes = names.iter().map(|name| Path::new(name).metadata().map_or(0, |m| m.len())).sum();
                found.push(Cached { bytes, path });
            }
        }
    }
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter_map(|e| std::fs::metadata(e.path()).ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}
