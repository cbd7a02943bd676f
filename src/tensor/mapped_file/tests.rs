use super::*;

fn file_of(bytes: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let content: Vec<u8> = (0..bytes as u32).map(|i| (i * 31 % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    (folder, path, content)
}

#[test]
fn released_pages_read_the_same_and_odd_ranges_do_no_harm() {
    let (_folder, path, content) = file_of(100_000);
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

/// Before there was a handler of SIGBUS, the first read past the new end killed the process.
#[cfg(unix)]
#[test]
fn a_file_that_is_cut_off_reads_as_zeros_and_is_named() {
    let (_folder, path, content) = file_of(1 << 20);
    let file = MappedFile::open(&path).unwrap();
    let other = file.clone();
    file.check().unwrap();
    File::options().write(true).open(&path).unwrap().set_len(10_000).unwrap();
    // Read by several threads at the same time.
    let sums = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| file.iter().skip(1 << 16).map(|&b| u64::from(b)).sum::<u64>()))
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<u64>>()
    });
    assert_eq!(sums, [0; 4]);
    assert_eq!(file[..4096], content[..4096], "what the file still has is read");
    let error = other.check().unwrap_err().to_string();
    assert!(
        error.contains("file: was changed while it was in use: its size changed from 1048576 to 10000 bytes"),
        "{error}"
    );
    // Growing back does not make the zeros right.
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let error = file.check().unwrap_err().to_string();
    assert!(error.contains("the system could not read a part of it"), "{error}");
    drop((file, other));
    // The addresses are free for other maps, which are sound.
    std::fs::write(&path, &content).unwrap();
    let file = MappedFile::open(&path).unwrap();
    assert_eq!(&file[..], &content[..]);
    file.check().unwrap();
}

#[test]
fn a_file_that_is_written_to_is_named_and_one_that_is_replaced_by_name_is_not() {
    use std::io::Write;
    let (folder, path, content) = file_of(10_000);
    let file = MappedFile::open(&path).unwrap();
    let new = folder.path().join("new");
    std::fs::write(&new, b"another").unwrap();
    // Other systems do not replace a file that is mapped.
    if cfg!(unix) {
        std::fs::rename(&new, &path).unwrap();
        file.check().unwrap();
        assert_eq!(&file[..], &content[..]);
    }
    let (_folder, path, content) = file_of(10_000);
    let file = MappedFile::open(&path).unwrap();
    // The clock of a file system may tick only every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(30));
    File::options().write(true).open(&path).unwrap().write_all(&content[1..]).unwrap();
    let error = file.check().unwrap_err().to_string();
    assert!(error.contains("was changed while it was in use: it was written to"), "{error}");
}
