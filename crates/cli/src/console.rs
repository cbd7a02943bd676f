//! Everything that the tool writes to a person: standard error and standard output.
//!
//! `eprintln!` and `println!` panic where the stream cannot be written: the terminal is gone, the reader of a pipe has
//! ended (`| head -4`), the disk behind a redirection is full. A training run of many hours must not end for that, so
//! what goes to standard error is lost silently, and a result on standard output is an error that is returned after the
//! files of the run are complete. Clippy refuses the macros in the whole crate.

use std::io::{ErrorKind, Write};

use crate::failure::{Code, Failure};

/// Writes text to standard error. What cannot be written is dropped.
pub(crate) fn note(text: &str) {
    drop(Notes.write_all(text.as_bytes()));
}

/// Writes text and a line end to standard error. What cannot be written is dropped.
pub(crate) fn note_line(text: &str) {
    // One write for the whole line, so that lines of several threads are not mixed.
    note(&format!("{text}\n"));
}

/// Standard error as a writer that never fails.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Notes;

impl Write for Notes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        drop(std::io::stderr().lock().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a result to standard output.
///
/// A reader that has left (`| head`) ends the tool quietly and with success, as Unix tools end; a run has written its
/// files before it prints its result, so nothing is lost by it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            let cause = format!("standard output: cannot write the result: {error}");
            let advice =
                "free space where the output goes, or send it elsewhere; files of the command are complete";
            Err(Failure::new(Code::Run, cause, advice).into())
        }
    }
}

/// Writes a result and a line end to standard output.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}
