//! Changes to files and folders that must survive a crash: the one layer through which everything that is kept is
//! written, renamed, removed and synced.
//!
//! [`crate::atomic`] builds on it. With the feature `fault-injection`, which the tests of the tool enable and builds of
//! the tool do not, a test counts these operations, and fails one of them or stops the process at it (`fault`).

#[cfg(feature = "fault-injection")]
pub mod fault;

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Seek, Write};
use std::path::{Path, PathBuf};

/// Kind of an operation of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A file is created or opened for writing.
    Open,
    /// Bytes are written, or a file is cut.
    Write,
    /// A file's bytes are synced to the disk.
    Sync,
    /// A file or folder gets another name.
    Rename,
    /// A file or an empty folder is removed.
    Remove,
    /// A folder is created.
    CreateFolder,
    /// The names in a folder are synced to the disk.
    SyncFolder,
}

/// Without fault injection every operation is let through.
#[cfg(not(feature = "fault-injection"))]
mod fault {
    use super::{File, Operation, Path, Result};

    pub(super) fn before(_: Operation, _: &Path) -> Result<()> {
        Ok(())
    }
    pub(super) fn before_write(_: &mut File, _: &Path, _: &[u8]) -> Result<()> {
        Ok(())
    }
    pub(super) fn before_rename(_: &Path, _: &Path) -> Result<()> {
        Ok(())
    }
    pub(super) fn before_remove(_: &Path) -> Result<()> {
        Ok(())
    }
    pub(super) fn cut(_: &File, _: u64) {}
    pub(super) fn created(_: &Path) {}
    pub(super) fn synced(_: &File) {}
    pub(super) fn synced_folder(_: &Path) {}
}

/// A file that is written to.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    path: PathBuf,
}

impl OutputFile {
    /// Creates a file that must not exist.
    pub fn create_new(path: &Path) -> Result<Self> {
        Self::open_with(path, File::options().read(true).write(true).create_new(true))
    }

    /// Opens a file for reading and writing from its beginning; it is created if it is missing and not cut.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, File::options().read(true).write(true).create(true).truncate(false))
    }

    /// Opens a file to append to it; it is created if it is missing.
    pub fn append(path: &Path) -> Result<Self> {
        Self::open_with(path, File::options().append(true).create(true))
    }

    fn open_with(path: &Path, options: &std::fs::OpenOptions) -> Result<Self> {
        fault::before(Operation::Open, path)?;
        let is_new = !path.exists();
        let file = options.open(path)?;
        if is_new {
            fault::created(path);
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Cuts the file to `length` bytes and continues to write there.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        fault::before(Operation::Write, &self.path)?;
        fault::cut(&self.file, length);
        self.file.set_len(length)?;
        self.file.seek(std::io::SeekFrom::Start(length)).map(|_| ())
    }

    /// Syncs the file's bytes to the disk.
    pub fn sync(&self) -> Result<()> {
        fault::before(Operation::Sync, &self.path)?;
        self.file.sync_all()?;
        fault::synced(&self.file);
        Ok(())
    }

    /// The open file, for locks and permissions.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The open file without the layer, for a lock that is held.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        fault::before_write(&mut self.file, &self.path, bytes)?;
        self.file.write_all(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

impl Read for OutputFile {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.file.read(bytes)
    }
}

/// Creates an empty file with a unique name. It is removed when it is dropped, unless it is renamed.
pub fn temporary_file(folder: &Path, prefix: &str) -> Result<tempfile::NamedTempFile<OutputFile>> {
    tempfile::Builder::new().prefix(prefix).suffix(".tmp").make_in(folder, OutputFile::create_new)
}

/// Creates a folder with a unique name. It is removed with its content when it is dropped, unless it is kept.
pub fn temporary_folder(folder: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    fault::before(Operation::CreateFolder, folder)?;
    let made = tempfile::Builder::new().prefix(prefix).tempdir_in(folder)?;
    fault::created(made.path());
    Ok(made)
}

/// A folder that grows under a temporary name while this process holds it.
#[derive(Debug)]
pub struct UnfinishedFolder {
    folder: tempfile::TempDir,
    /// The system releases it when the process ends, however it ends.
    _lock: Option<File>,
}

impl UnfinishedFolder {
    /// Creates a folder with a unique name, and removes those of the same prefix whose processes were killed.
    pub fn create(parent: &Path, prefix: &str) -> Result<Self> {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_one = entry.file_name().to_string_lossy().starts_with(prefix) && path.is_dir();
            // A folder that cannot be locked may be in use.
            if let Some(_lock) = is_one.then(|| locked(&path)).flatten() {
                remove_dir_all(&path)?;
            }
        }
        let folder = temporary_folder(parent, prefix)?;
        let lock = locked(folder.path());
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives up the folder, which is no longer removed.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// An exclusive lock on a folder; `None` if another process has it, or where folders cannot be locked.
fn locked(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok().map(|()| file)
}

/// Creates a folder, whose name lasts after a crash.
pub fn create_dir(path: &Path) -> Result<()> {
    fault::before(Operation::CreateFolder, path)?;
    std::fs::create_dir(path)?;
    fault::created(path);
    sync_folder(folder_of(path))
}

/// Creates a folder and those above it that are missing; their names last after a crash.
pub fn create_dir_all(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match create_dir(folder) {
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Gives a file or folder another name. A file of that name is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::before_rename(from, to)?;
    std::fs::rename(from, to)
}

/// Removes a file.
pub fn remove_file(path: &Path) -> Result<()> {
    fault::before_remove(path)?;
    std::fs::remove_file(path)
}

/// Removes an empty folder.
pub fn remove_dir(path: &Path) -> Result<()> {
    fault::before_remove(path)?;
    std::fs::remove_dir(path)
}

/// Removes a folder with everything in it, file by file. Links are removed and not followed.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    let mut inside = std::fs::read_dir(path)?.collect::<Result<Vec<_>>>()?;
    inside.sort_by_key(std::fs::DirEntry::file_name);
    for entry in inside {
        match entry.file_type()?.is_dir() {
            true => remove_dir_all(&entry.path())?,
            false => remove_file(&entry.path())?,
        }
    }
    remove_dir(path)
}

/// Removes what processes that were killed left in a folder: everything whose name begins with one of `prefixes`. Call it
/// only while no other process can be writing there.
pub fn sweep(folder: &Path, prefixes: &[&str]) -> Result<()> {
    let mut left: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
        })
        .map(|entry| entry.path())
        .collect();
    left.sort();
    for path in left {
        let is_folder = std::fs::symlink_metadata(&path)?.is_dir();
        if is_folder { remove_dir_all(&path)? } else { remove_file(&path)? }
    }
    Ok(())
}

/// Makes the names in a folder last.
pub fn sync_folder(folder: &Path) -> Result<()> {
    fault::before(Operation::SyncFolder, folder)?;
    // Only Unix can open a folder to sync it.
    if cfg!(unix) {
        match File::open(folder).and_then(|opened| opened.sync_all()) {
            // A folder may be written but not read, or its file system syncs no folders: its names last a little later.
            Err(error) if ![ErrorKind::PermissionDenied, ErrorKind::InvalidInput].contains(&error.kind()) => {
                return Err(error);
            }
            _ => {}
        }
    }
    fault::synced_folder(folder);
    Ok(())
}

/// The folder that contains `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The error of an operation that a test makes fail: a full disk.
#[cfg(feature = "fault-injection")]
fn injected() -> std::io::Error {
    std::io::Error::new(ErrorKind::StorageFull, "no space left on device (a fault of the test)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_removed_with_everything_in_them_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        create_dir_all(&root.path().join("gone/deep")).unwrap();
        create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        std::fs::write(root.path().join("gone/deep/file"), "y").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&kept, root.path().join("gone/link")).unwrap();
        remove_dir_all(&root.path().join("gone")).unwrap();
        assert!(!root.path().join("gone").exists());
        assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"x");
    }

    #[test]
    fn a_sweep_removes_what_killed_processes_left_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(".writing-dir")).unwrap();
        for name in [".writing-dir/inside", ".writing-1.tmp", ".part-2", "model", ".writing"] {
            std::fs::write(root.path().join(name), "x").unwrap();
        }
        sweep(root.path(), &[".writing-"]).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".part-2", ".writing", "model"]);
    }

    #[cfg(unix)]
    #[test]
    fn folders_of_killed_processes_are_removed_and_those_in_use_stay() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join(".merging-dead");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("model"), "x").unwrap();
        let first = UnfinishedFolder::create(root.path(), ".merging-").unwrap();
        assert!(!dead.exists());
        let second = UnfinishedFolder::create(root.path(), ".merging-").unwrap();
        assert!(first.path().exists() && second.path().exists());
        let kept = first.keep();
        drop(second);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        assert!(kept.exists());
    }

    #[test]
    fn a_file_is_cut_and_continued() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("part");
        std::fs::write(&path, "abcdef").unwrap();
        let mut file = OutputFile::open(&path).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        file.truncate(2).unwrap();
        file.write_all(b"X").unwrap();
        file.sync().unwrap();
        assert_eq!((text.as_str(), std::fs::read(&path).unwrap().as_slice()), ("abcdef", &b"abX"[..]));
    }
}
