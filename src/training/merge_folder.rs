//! The folder that a merge writes.
//!
//! Files are written into a temporary folder beside it, which gets its name once the merged model has been verified. In an
//! empty folder that exists they are written into a temporary folder inside it and moved up, `config.json` last. An
//! interrupted merge therefore leaves no folder that opens as a model.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::durable::{self, UnfinishedFolder};
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
    /// The folder existed before, and may be the current one.
    existed: bool,
    /// `None` only while it is being dropped.
    unfinished: Option<UnfinishedFolder>,
    /// Folders above it that did not exist before, the innermost first.
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
        match out.symlink_metadata() {
            Ok(_) if out.exists() => check_existing(files, out)?,
            Ok(_) => {
                let message =
                    "is a link to a place that does not exist; choose another folder or remove the link";
                return Err(Error::file(out, message));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(out, "create", error)),
        }
        let existed = out.exists();
        let parent = if existed { out } else { durable::folder_of(out) };
        let created = parent.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        // From here on, dropping it removes what was created.
        let mut folder =
            Self { out, existed, unfinished: None, created: created.map(Path::to_owned).collect() };
        durable::create_dir_all(parent).map_err(|source| Error::io(parent, "create", source))?;
        let unfinished = UnfinishedFolder::create(parent, UNFINISHED);
        folder.unfinished = Some(unfinished.map_err(|source| Error::io(parent, "write into", source))?);
        if existed && names(out)?.len() > 1 {
            return Err(Error::file(out, "is being written by another merge; choose another folder"));
        }
        Ok(folder)
    }

    /// The folder to write into.
    pub(super) fn path(&self) -> &Path {
        self.unfinished.as_ref().map_or(self.out, UnfinishedFolder::path)
    }

    /// Gives the written folder its name, or moves its files up.
    pub(super) fn finish(mut self) -> Result<()> {
        let out = self.out;
        if self.existed {
            self.move_up()?;
        } else {
            make_readable(self.path());
            durable::rename(self.path(), out).map_err(|source| Error::io(out, "create", source))?;
            // What was renamed is no longer there to be removed.
            drop(self.unfinished.take().map(UnfinishedFolder::keep));
        }
        self.created.clear();
        let changed = if self.existed { out } else { durable::folder_of(out) };
        durable::sync_folder(changed).map_err(|source| Error::io(out, "create", source))
    }

    fn move_up(&self) -> Result<()> {
        let mut written = names(self.path())?;
        written.sort_by_key(|name| name == LAST);
        for name in written {
            if name == LAST {
                durable::sync_folder(self.out).map_err(|source| Error::io(self.out, "write into", source))?;
            }
            let place = self.out.join(&name);
            durable::rename(&self.path().join(&name), &place)
                .map_err(|source| Error::io(&place, "create", source))?;
        }
        Ok(())
    }
}

/// Returns the names in a folder.
fn names(folder: &Path) -> Result<Vec<OsString>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, "read", source))?;
    entries.map(|entry| Ok(entry.map_err(|source| Error::io(folder, "read", source))?.file_name())).collect()
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

/// A temporary folder is its owner's only; the result has the permissions of any new folder.
fn make_readable(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Where they cannot be changed the folder still serves its owner.
        drop(std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)));
    }
    #[cfg(not(unix))]
    let _ = folder;
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
    if names(out)?.iter().any(|name| !name.to_string_lossy().starts_with(UNFINISHED)) {
        let message = "holds files already; choose a new or an empty folder, or remove them first";
        return Err(Error::file(out, message));
    }
    Ok(())
}
