//! Bytes from a reader into a file, with their SHA-256, a bar, and Ctrl-C.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use metal_candle::durable::OutputFile;

use crate::failure::Failure;
use crate::session::Session;

/// Advice for a file that differs from the one that was asked for.
pub(crate) const WRONG_FILE: &str = "fetch it again; if it repeats, something on the way changes the file: get it elsewhere and pass --model FILE";

/// A file that grows and is hashed as it grows.
pub(crate) struct Sink<'a> {
    file: OutputFile,
    hash: Sha256,
    written: u64,
    session: &'a Session,
}

/// Why copying ended early.
pub(crate) enum Stopped {
    /// The source broke off; what was written so far may be continued.
    Source(std::io::Error),
    /// The disk refused, or the user asked to stop.
    Fatal(Failure),
    /// The source has more than it should.
    TooLong,
}

impl<'a> Sink<'a> {
    /// A new file, or the continuation of `path` as an earlier run left it.
    pub(crate) fn open(path: &Path, session: &'a Session) -> std::io::Result<Self> {
        let mut file = OutputFile::open(path)?;
        let mut hash = Sha256::new();
        let written = absorb(&mut file, &mut hash)?;
        Ok(Self { file, hash, written, session })
    }

    /// Forgets what is there.
    pub(crate) fn restart(&mut self) -> std::io::Result<()> {
        self.file.truncate(0)?;
        self.hash = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// How many bytes there are.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Appends everything that `reader` gives. With a `limit`, it stops at the first byte beyond it.
    pub(crate) fn fill(
        &mut self,
        mut reader: impl Read,
        label: &str,
        total: u64,
        limit: Option<u64>,
    ) -> Result<(), Stopped> {
        let mut meter = self.session.progress.bytes(label, total);
        let mut block = vec![0; 1 << 16];
        loop {
            // Whole blocks are written, however the bytes arrive. One byte beyond the limit is enough to notice it.
            let room = limit.map_or(usize::MAX as u64, |limit| limit.saturating_sub(self.written) + 1);
            let size = block.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (filled, end) = self.fill_block(&mut reader, &mut block[..size], label);
            let within = limit.is_none_or(|limit| self.written + filled as u64 <= limit);
            if within {
                self.append(&block[..filled]).map_err(|e| Stopped::Fatal(disk(label, &e)))?;
                meter.set(self.written);
            }
            match end {
                _ if !within => return Err(Stopped::TooLong),
                Some(end) => return end,
                None => {}
            }
        }
    }

    /// Reads until a block is full or the reader ends. Returns the number of bytes and, if the reader has ended, how.
    fn fill_block(
        &self,
        reader: &mut impl Read,
        block: &mut [u8],
        label: &str,
    ) -> (usize, Option<Result<(), Stopped>>) {
        let mut filled = 0;
        while filled < block.len() {
            if let Err(stopped) = self.session.check_interrupt(&format!("fetching {label}")) {
                return (filled, Some(Err(Stopped::Fatal(stopped))));
            }
            match reader.read(&mut block[filled..]) {
                Ok(0) => return (filled, Some(Ok(()))),
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return (filled, Some(Err(Stopped::Source(e)))),
            }
        }
        (filled, None)
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Syncs the file and tells its SHA-256.
    pub(crate) fn finish(self) -> std::io::Result<String> {
        self.file.sync()?;
        Ok(hex(&self.hash.finalize()))
    }
}

/// The SHA-256 of a file.
pub(crate) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    absorb(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Size and sum as they should be; the error names both.
pub(crate) fn verify(
    what: &str,
    found: (u64, &str),
    size: Option<u64>,
    sum: Option<&str>,
) -> Result<(), Failure> {
    let advice = WRONG_FILE;
    if let Some(expected) = size.filter(|&s| s != found.0) {
        return Err(Failure::unreachable(
            format!("{what}: {} bytes arrived, {expected} expected", found.0),
            advice,
        ));
    }
    if let Some(expected) = sum.filter(|&s| s != found.1) {
        return Err(Failure::unreachable(
            format!("{what}: the SHA-256 is {}, but {expected} is expected", found.1),
            advice,
        ));
    }
    Ok(())
}

/// The disk's refusal of a write into the cache.
pub(crate) fn disk(what: &str, error: &std::io::Error) -> Failure {
    Failure::input(
        format!("{what}: cannot write: {error}"),
        "free space in the cache folder, or set METAL_CANDLE_CACHE to another one",
    )
}

/// Hashes all that is left of a file and counts it.
fn absorb(file: &mut impl Read, hash: &mut Sha256) -> std::io::Result<u64> {
    let mut block = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(bytes),
            n => {
                hash.update(&block[..n]);
                bytes += n as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::progress::Progress;

    // FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_continued_file_has_the_sum_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let session = Session::new(Interrupt::default(), Progress::new(true));
        std::fs::write(&path, b"ab").unwrap();
        let mut sink = Sink::open(&path, &session).unwrap();
        assert_eq!(sink.written(), 2);
        assert!(sink.fill(&b"c"[..], "abc", 3, Some(3)).is_ok());
        assert_eq!(sink.finish().unwrap(), ABC);
        assert_eq!(sha256(&path).unwrap(), ABC);
        let mut sink = Sink::open(&path, &session).unwrap();
        assert!(matches!(sink.fill(&b"de"[..], "abc", 4, Some(4)), Err(Stopped::TooLong)));
        assert_eq!(sink.written(), 3, "nothing of a block that does not fit is written");
    }

    #[test]
    fn a_mismatch_names_both_sums() {
        assert!(verify("m.gguf", (3, ABC), Some(3), Some(ABC)).is_ok());
        let error = verify("m.gguf", (3, ABC), None, Some("00ff")).unwrap_err();
        assert!(error.cause.contains(ABC) && error.cause.contains("00ff"), "{error}");
        let error = verify("m.gguf", (3, ABC), Some(4), None).unwrap_err();
        assert_eq!(error.cause, "m.gguf: 3 bytes arrived, 4 expected");
    }
}
