//! The folder that a merge writes.
//!
//! Files are written into a temporary folder inside it and moved up once the merged model has been verified, `config.json`
//! last. An interrupted merge therefore leaves no folder that opens as a model.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::models::ModelFiles;
use crate::{Error, Result};

/// First letters of the temporary folder's name.
const UNFINISHED: &str = ".merging-";
/// The file without which a folder is no model.
const LAST: &str = "config.json";

/// A folder that is new or was empty. Dropping it unfinished removes everything that it created.
#[derive(Debug)]
pub(super) struct MergeFolder<'a> {
    out: &'a Path,
    /// `None` only while it is being dropped.
    unfinished: Option<TempDir>,
    /// Folders that did not exist before, the innermost first.
    created: Vec<PathBuf>,
}

impl<'a> MergeFolder<'a> {
    /// Creates the folder. Refuses a place that cannot be written, that is the base's, or that holds other files.
    pub(super) fn create(files: &ModelFiles, out: &'a Path) -> Result<Self> {
        if out.as_os_str().is_empty() {
            return Err(Error::invalid(
                "the merged model's folder",
                "has no name; choose one, such as merged",
            ));
        }
        if out.exists() {
            check_existing(files, out)?;
        } else if out.symlink_metadata().is_ok() {
            let message =
                "is a link to a place that does not exist; choose another folder or remove the link";
            return Err(Error::file(out, message));
        }
        let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let created: Vec<PathBuf> = out.ancestors().take_while(is_new).map(Path::to_owned).collect();
        // From here on, dropping it removes what was created.
        let mut folder = Self { out, unfinished: None, created };
        std::fs::create_dir_all(out).map_err(|source| Error::io(out, "create", source))?;
        let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(out);
        folder.unfinished = Some(unfinished.map_err(|source| Error::io(out, "write into", source))?);
        Ok(folder)
    }

    /// The folder to write into.
    pub(super) fn path(&self) -> &Path {
        self.unfinished.as_ref().map_or(self.out, TempDir::path)
    }

    /// Moves the written files to their place.
    pub(super) fn finish(mut self) -> Result<()> {
        let entries = std::fs::read_dir(self.path()).map_err(|e| Error::io(self.path(), "read", e))?;
        let mut names: Vec<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.sort_by_key(|name| name == LAST);
        for name in names {
            let place = self.out.join(&name);
            std::fs::rename(self.path().join(&name), &place)
                .map_err(|source| Error::io(&place, "create", source))?;
        }
        self.created.clear();
        Ok(())
    }
}

impl Drop for MergeFolder<'_> {
    fn drop(&mut self) {
        drop(self.unfinished.take());
        for folder in &self.created {
            // Only empty folders can be removed, so that nobody else's files are lost.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// Refuses a file, the base's folder, and a folder that holds other files.
fn check_existing(files: &ModelFiles, out: &Path) -> Result<()> {
    if !out.is_dir() {
        return Err(Error::file(out, "is a file; choose a new or an empty folder"));
    }
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let base = real(&files.path);
    let folder_of_base =
        if files.path.is_dir() { base } else { base.and_then(|p| p.parent().map(Path::to_owned)) };
    if folder_of_base == real(out) {
        let message = "holds the base model, which a merge must not replace; choose another folder";
        return Err(Error::file(out, message));
    }
    let mut entries = std::fs::read_dir(out).map_err(|source| Error::io(out, "read", source))?;
    let Some(entry) = entries.next() else { return Ok(()) };
    let name = entry.map_err(|source| Error::io(out, "read", source))?.file_name();
    let name = name.to_string_lossy();
    let message = if name.starts_with(UNFINISHED) && entries.next().is_none() {
        format!("holds {name} of a merge that is running or was interrupted; remove it if none is running")
    } else {
        "holds files already; choose a new or an empty folder, or remove them first".to_owned()
    };
    Err(Error::file(out, message))
}
