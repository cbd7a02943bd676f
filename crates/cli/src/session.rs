//! What every command shares: how it reports and how it is stopped.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// One run of the tool.
pub(crate) struct Session {
    pub(crate) interrupt: Interrupt,
    pub(crate) progress: Progress,
    said: Mutex<BTreeSet<String>>,
}

impl Session {
    pub(crate) fn new(interrupt: Interrupt, progress: Progress) -> Self {
        Self { interrupt, progress, said: Mutex::default() }
    }

    /// A line on stderr about what is being done; silent with `--quiet`.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        self.progress.note(text.as_ref());
    }

    /// The same, once in this run.
    pub(crate) fn once(&self, text: &str) {
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.insert(text.to_owned()) {
            self.note(text);
        }
    }

    /// An error when the user has asked to stop.
    pub(crate) fn check_interrupt(&self, during: &str) -> Result<(), Failure> {
        if self.interrupt.requested() {
            return Err(Failure::interrupted(format!("interrupted while {during}")));
        }
        Ok(())
    }
}

/// Writes a result to stdout. A reader that has left (`| head`) ends the run quietly, as Unix tools do.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Writes a result and a line end to stdout.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}
