//! The output folder of a run: one process writes into it at a time, and a run that is refused leaves no trace.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::atomic::WRITING;
use crate::durable::{self, OutputFile};
use crate::{Error, Result};

const LOCK: &str = ".lock";

/// An output folder that this process holds. The system releases the lock when the process ends, however it ends.
///
/// Folders that had to be created are removed again when it is dropped, unless [`RunFolder::keep`] was called.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The locked file; `None` until it is locked.
    lock: Option<File>,
    /// Folders that did not exist before, the outermost first.
    created: Vec<PathBuf>,
    kept: bool,
}

impl RunFolder {
    /// Creates the folder if it is missing and locks it for this process.
    ///
    /// Fails if the folder cannot be written to or if another run holds it. On a file system without locks the folder is
    /// held without one.
    pub fn claim(path: &Path) -> Result<Self> {
        let mut folder = Self { path: path.to_owned(), lock: None, created: Vec::new(), kept: false };
        folder.create().map_err(|source| Error::io(path, "write", source))?;
        folder.lock()?;
        Ok(folder)
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder when it is released: the run has begun.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Returns true while the folder is there and locked by this process; false after somebody deleted it.
    pub fn is_held(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| same_file(lock, &self.path.join(LOCK)))
    }

    fn create(&mut self) -> std::io::Result<()> {
        let missing: Vec<&Path> = self
            .path
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
            .collect();
        for folder in missing.into_iter().rev() {
            match durable::create_dir(folder) {
                Ok(()) => self.created.push(folder.to_owned()),
                // Another process was faster.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<()> {
        let path = self.path.join(LOCK);
        let failed = |source| Error::io(&self.path, "write", source);
        loop {
            let file = OutputFile::append(&path).map_err(failed)?.into_file();
            match file.try_lock() {
                Ok(()) => {
                    // This process is the only one that writes here; a killed one may have left an unfinished file.
                    if same_file(&file, &path) {
                        durable::sweep(&self.path, &[WRITING]).map_err(failed)?;
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    let message = "another run is writing into this folder; wait until it ends, or choose another folder";
                    return Err(Error::file(&self.path, message));
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!("{}: cannot be locked against a second run: {error}", self.path.display());
                }
            }
            // Another run may have removed the file between opening and locking; that lock would hold nobody off.
            if same_file(&file, &path) {
                self.lock = Some(file);
                return Ok(());
            }
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // A file of the same name in a folder that was deleted and made again is another run's.
        if self.is_held() {
            // Removed while it is locked, so that nobody holds the file that is removed.
            drop(durable::remove_file(&self.path.join(LOCK)));
        }
        self.lock = None;
        if !self.kept {
            for folder in self.created.iter().rev() {
                // A folder that is no longer empty belongs to somebody else, too.
                if durable::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
    }
}

/// Returns true if an open file is the one that has this path now.
#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |data: std::fs::Metadata| (data.dev(), data.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(opened), Ok(named)) => identity(opened) == identity(named),
        _ => false,
    }
}

/// Other systems do not remove a file that is open.
#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_refused_run_leaves_nothing_and_a_kept_one_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("adapters/mine");
        drop(RunFolder::claim(&out).unwrap());
        assert_eq!(names(root.path()), [] as [&str; 0]);
        let mut folder = RunFolder::claim(&out).unwrap();
        assert_eq!(folder.path(), out);
        folder.keep();
        drop(folder);
        assert_eq!(names(&out), [] as [&str; 0]);
    }

    #[test]
    fn folders_and_files_of_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("a/b");
        let folder = RunFolder::claim(&out).unwrap();
        std::fs::write(root.path().join("a/note"), "x").unwrap();
        drop(folder);
        assert_eq!(names(root.path()), ["a"]);
        assert_eq!(names(&root.path().join("a")), ["note"]);
        drop(RunFolder::claim(root.path()).unwrap());
        assert!(root.path().exists(), "a folder that was there before is not removed");
    }

    #[test]
    fn a_folder_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let first = RunFolder::claim(root.path()).unwrap();
        let error = RunFolder::claim(root.path()).unwrap_err().to_string();
        assert!(error.contains("another run is writing into this folder"), "{error}");
        assert!(root.path().join(LOCK).exists(), "the refused one leaves the lock of the first");
        drop(first);
        RunFolder::claim(root.path()).unwrap();
    }

    /// A run whose folder was deleted removed the lock of the run that had taken its place.
    #[cfg(unix)]
    #[test]
    fn a_deleted_folder_is_noticed_and_the_next_holder_keeps_its_lock() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let first = RunFolder::claim(&out).unwrap();
        assert!(first.is_held());
        std::fs::remove_dir_all(&out).unwrap();
        assert!(!first.is_held());
        let second = RunFolder::claim(&out).unwrap();
        assert!(second.is_held() && !first.is_held());
        drop(first);
        assert!(second.is_held() && RunFolder::claim(&out).is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for out in [file.clone(), file.join("inside")] {
            let error = RunFolder::claim(&out).unwrap_err().to_string();
            assert!(error.contains("file") && error.contains("cannot write"), "{error}");
        }
        assert_eq!(names(root.path()), ["file"]);
    }
}
