//! What a model's folder in the cache holds, so that a file damaged since is noticed and fetched again.
//!
//! `.record.json` beside the files keeps each one's size, SHA-256 and time of last change, as they were when its sum
//! was checked. A file whose size and time are still those is taken as it is, which costs nothing; any other is
//! hashed. `pull` hashes in every case, since a failing disk changes bytes and not times.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::download;
use crate::hub::is_sha256;

const NAME: &str = ".record.json";

/// The files of one folder.
#[derive(Debug, Default)]
pub(crate) struct Record {
    folder: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// True if the files are a whole model, rather than some files of one.
    whole: bool,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
    /// Nanoseconds since 1970.
    changed: u64,
}

/// How a file compares with its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Sound,
    Absent,
    /// It is there, but not as it was stored.
    Damaged,
}

impl Record {
    /// The record of a folder; an empty one if there is none that can be read, which costs no more than hashing.
    pub(crate) fn read(folder: &Path) -> Self {
        let content =
            std::fs::read(folder.join(NAME)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut content: Content = content.unwrap_or_default();
        // A sum that is none would let any content pass.
        content.files.retain(|_, entry| is_sha256(&entry.sha256));
        Self { folder: folder.to_owned(), content }
    }

    /// Notes a file whose sum has just been checked.
    pub(crate) fn add(&mut self, file: &str, sha256: &str) -> std::io::Result<()> {
        let (bytes, changed) = stamp(&self.folder.join(file))?;
        self.content.files.insert(file.to_owned(), Entry { bytes, sha256: sha256.to_owned(), changed });
        self.write()
    }

    /// Notes that the model has every file that it needs.
    pub(crate) fn complete(&mut self) -> std::io::Result<()> {
        self.content.whole = true;
        self.write()
    }

    /// The names of all recorded files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.content.files.keys().map(String::as_str)
    }

    /// The recorded files, if they are a whole model.
    pub(crate) fn whole(&self) -> Option<Vec<&str>> {
        self.content.whole.then(|| self.content.files.keys().map(String::as_str).collect())
    }

    /// Compares a file with `pinned`, or else with what was recorded of it; `thorough` hashes it in every case.
    pub(crate) fn health(&mut self, file: &str, pinned: Option<&str>, thorough: bool) -> Health {
        let path = self.folder.join(file);
        let Ok((bytes, changed)) = stamp(&path) else { return Health::Absent };
        let entry = self.content.files.get(file);
        let Some(expected) = pinned.or(entry.map(|e| e.sha256.as_str())) else { return Health::Damaged };
        let as_recorded = |e: &Entry| e.sha256 == expected && e.bytes == bytes;
        if !thorough && entry.is_some_and(|e| as_recorded(e) && e.changed == changed) {
            return Health::Sound;
        }
        if pinned.is_none() && entry.is_some_and(|e| e.bytes != bytes) {
            return Health::Damaged;
        }
        let expected = expected.to_owned();
        if download::sha256(&path).is_ok_and(|found| found == expected) {
            // A cache that cannot be written to (a shared one, say) only costs hashing again the next time.
            drop(self.add(file, &expected));
            return Health::Sound;
        }
        Health::Damaged
    }

    fn write(&self) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&self.content)?;
        metal_candle::atomic::write(&self.folder.join(NAME), &bytes).map_err(std::io::Error::other)
    }
}

/// Size and time of last change of a file.
fn stamp(path: &Path) -> std::io::Result<(u64, u64)> {
    let data = std::fs::metadata(path)?;
    let changed = data.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    Ok((data.len(), changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn folder_with(file: &str, text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        folder
    }

    /// Rewrites a file and gives it back its time, as a failing disk would.
    fn rot(path: &Path, text: &str) {
        let time = std::fs::metadata(path).unwrap().modified().unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_recorded_file_is_sound_until_it_changes() {
        let folder = folder_with("m", "abc");
        Record::read(folder.path()).add("m", ABC).unwrap();
        let health = |thorough| Record::read(folder.path()).health("m", None, thorough);
        assert_eq!([health(false), health(true)], [Health::Sound; 2]);
        rot(&folder.path().join("m"), "abd");
        assert_eq!([health(false), health(true)], [Health::Sound, Health::Damaged]);
        std::fs::write(folder.path().join("m"), "ab").unwrap();
        assert_eq!(health(false), Health::Damaged);
        std::fs::remove_file(folder.path().join("m")).unwrap();
        assert_eq!(health(false), Health::Absent);
    }

    #[test]
    fn a_touched_file_is_hashed_once() {
        let folder = folder_with("m", "abc");
        let mut record = Record::read(folder.path());
        record.add("m", ABC).unwrap();
        let file = std::fs::File::options().write(true).open(folder.path().join("m")).unwrap();
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(9)).unwrap();
        assert_eq!(record.health("m", None, false), Health::Sound);
        assert_eq!(Record::read(folder.path()).content.files["m"].changed, 9_000_000_000);
    }

    #[test]
    fn a_pinned_sum_needs_no_record_and_wins_over_one() {
        let folder = folder_with("m", "abc");
        assert_eq!(Record::read(folder.path()).health("m", None, false), Health::Damaged);
        assert_eq!(Record::read(folder.path()).health("m", Some(ABC), false), Health::Sound);
        assert_eq!(Record::read(folder.path()).health("m", Some("00"), false), Health::Damaged);
    }

    #[test]
    fn an_entry_without_a_sum_counts_as_none() {
        let folder = folder_with("m", "abc");
        Record::read(folder.path()).add("m", "").unwrap();
        assert_eq!(Record::read(folder.path()).health("m", None, false), Health::Damaged);
    }

    #[test]
    fn a_folder_is_whole_when_it_is_said_to_be() {
        let folder = folder_with("m", "abc");
        let mut record = Record::read(folder.path());
        record.add("m", ABC).unwrap();
        assert_eq!(record.whole(), None);
        record.complete().unwrap();
        assert_eq!(Record::read(folder.path()).whole(), Some(vec!["m"]));
    }
}
