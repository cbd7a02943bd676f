//! What every command shares: how it reports and how it is stopped.

use std::collections::BTreeSet;
use std::sync::Mutex;

pub(crate) use crate::console::{print, print_line};
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
