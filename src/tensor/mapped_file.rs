//! A file as memory, which is checked for changes while it is in use.
//!
//! Weights that a file stores in the dtype of the run (embedding, head, norms) are used where the file is mapped; all
//! others are copied or converted when a model is loaded. A mapped file that another program changes changes those
//! weights, and one that is cut off has no bytes any more where the process reads: the system then sends SIGBUS.
//! [`MappedFile::check`] finds both. It compares size and time of last change with those at the opening, and a handler
//! of SIGBUS ([`fault`]) puts zeros where the bytes are missing and notes the file, so that the process goes on until its
//! next check. A file that is replaced by name, as every tool that writes models does it, stays mapped as it was.

#[cfg(unix)]
mod fault;

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::{Error, Result};

/// A whole file, mapped read-only. Cloning shares the map.
#[derive(Debug, Clone)]
pub struct MappedFile {
    path: PathBuf,
    shared: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    /// Dropped before the map, whose addresses it watches.
    #[cfg(unix)]
    watch: fault::Watch,
    map: Mmap,
    file: File,
    opened: Stamp,
}

/// Size and time of last change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    changed: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), changed: metadata.modified().ok() }
    }
}

impl MappedFile {
    /// Maps a file. Errors name it: it cannot be opened, is no regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        if metadata.len() == 0 {
            return Err(Error::file(path, "is empty; fetch it again"));
        }
        // SAFETY: the map is read-only and private. Its bytes are only ever read as numbers, for which every bit pattern
        // is valid; a change of the file is found by `check`, and missing bytes read as zeros (`fault`).
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let mapping = Mapping {
            #[cfg(unix)]
            watch: fault::Watch::new(&map),
            opened: Stamp::of(&metadata),
            map,
            file,
        };
        Ok(Self { path: path.to_owned(), shared: Arc::new(mapping) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if the mapped file was changed or cut off since it was opened: what was read from it since the last check
    /// cannot be trusted. A file that took its name in the meantime does not count.
    pub fn check(&self) -> Result<()> {
        let changed = |what: String| Err(Error::Changed { path: self.path.clone(), what });
        let metadata = self.shared.file.metadata().map_err(|e| Error::io(&self.path, "read", e))?;
        let (was, is) = (self.shared.opened, Stamp::of(&metadata));
        if is.bytes != was.bytes {
            return changed(format!("its size changed from {} to {} bytes", was.bytes, is.bytes));
        }
        #[cfg(unix)]
        if self.shared.watch.faulted() {
            return changed("the system could not read a part of it".to_owned());
        }
        if is.changed != was.changed {
            return changed("it was written to".to_owned());
        }
        Ok(())
    }

    /// Lets the pages of a range leave memory, so that what was copied out of the file does not count twice. Reading
    /// them again loads them again; only speed and memory change.
    pub fn release(&self, range: Range<usize>) {
        if range.end > self.len() || range.is_empty() {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: nothing ever writes to a private read-only map, so a page that is dropped comes back from the
            // file with the same bytes, as far as the file is the same.
            let advised = unsafe {
                self.shared.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            if let Err(error) = advised {
                tracing::debug!(path = %self.path.display(), %error, "pages stay in memory");
            }
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.shared.map
    }
}

#[cfg(test)]
mod tests;
