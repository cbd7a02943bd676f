//! Files that are either the old one or the new one, whatever happens in between.

use std::io::Write;
use std::path::Path;

use crate::durable::{self, OutputFile, folder_of};
use crate::{Error, Result};

/// Beginning of the names of files and folders that are being written. What a killed process left under such a name
/// may be removed.
pub const WRITING: &str = ".writing-";

/// Replaces a file: the bytes go to a temporary file in the same folder, to the disk, and then take the name. The
/// folder is made if it is missing.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || {
        let folder = folder_of(path);
        durable::create_dir_all(folder)?;
        let (mut file, part) = durable::temporary_file(folder, WRITING)?.into_parts();
        file.write_all(bytes)?;
        // Dropped before the rename, the file would be deleted; dropped after it, there is nothing to delete.
        finish(file, &part, path)
    };
    attempt().map_err(|source| Error::io(path, "write", source))
}

/// Gives a finished file of the same folder its name, after its bytes are on the disk.
pub fn rename(part: &Path, path: &Path) -> std::io::Result<()> {
    finish(OutputFile::open(part)?, part, path)
}

fn finish(file: OutputFile, part: &Path, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; what is made of them is as readable as any other file.
        file.file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.sync()?;
    drop(file);
    durable::rename(part, path)?;
    durable::sync_folder(folder_of(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/x.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, b"").unwrap();
        let error = write(&blocked.join("run.toml"), b"x").unwrap_err().to_string();
        assert!(error.contains("run.toml") && error.contains("cannot write"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), b"kept").unwrap();
        assert!(write(&path, b"x").is_err());
        assert_eq!(std::fs::read(path.join("inside")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
