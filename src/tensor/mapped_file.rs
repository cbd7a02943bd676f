//! A file as memory.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// A whole file, mapped read-only. Cloning shares the map.
#[derive(Debug, Clone)]
pub struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
}

impl MappedFile {
    /// Maps a file. Errors name it: it cannot be opened, is no regular file, or is empty.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        if metadata.len() == 0 {
            return Err(Error::file(path, "is empty; fetch it again"));
        }
        // SAFETY: the map is read-only and private. The file must not be truncated or rewritten in place while
        // the model is in use; model files are replaced as a whole, by name, by every tool that writes them.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the pages of a range leave memory, so that what was copied out of the file does not count twice. Reading
    /// them again loads them again; only speed and memory change.
    pub fn release(&self, range: Range<usize>) {
        if range.end > self.map.len() || range.is_empty() {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: nothing ever writes to a private read-only map, so a page that is dropped comes back from the
            // file with the same bytes, as far as mapping it was sound at all.
            let advised = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
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
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_and_odd_ranges_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..100_000_u32).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(&file[..], &content[..]);
        for range in [0..100_000, 5000..5001, 12_345..99_999, 7..7, 99_999..100_001] {
            file.release(range);
            assert_eq!(&file[..], &content[..]);
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert!(MappedFile::open(&empty).unwrap_err().to_string().contains("is empty"));
        assert!(MappedFile::open(folder.path()).unwrap_err().to_string().contains("is not a file"));
        let missing = MappedFile::open(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none"), "{missing}");
    }
}
