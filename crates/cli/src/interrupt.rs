//! Ctrl-C: the first asks to stop, the second leaves at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Code;

/// A flag that Ctrl-C, SIGTERM and SIGHUP raise; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals. The second one exits with 130 before anything else can hold it up.
    ///
    /// A SIGHUP that is ignored already, as under `nohup`, stays ignored: the run is to go on without its terminal.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.0.clone();
        keeping_ignored_hangup(|| {
            ctrlc::set_handler(move || {
                if raised.swap(true, Ordering::SeqCst) {
                    std::process::exit(Code::Interrupted as i32);
                }
            })
        })?;
        Ok(interrupt)
    }

    /// Whether a stop was asked for.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Forgets a request that has been served: the chat goes on after an answer was stopped.
    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// The flag itself, for the trainer and the generator.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

/// Installs handlers, and restores what SIGHUP did before if it was ignored.
#[cfg(unix)]
#[allow(unsafe_code, reason = "no safe interface asks what a signal does")]
fn keeping_ignored_hangup<T>(install: impl FnOnce() -> T) -> T {
    let mut before = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query, which changes nothing; all fields of a sigaction may be zero, so that `before` is initialized even
    // if the query fails.
    let before = unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), before.as_mut_ptr());
        before.assume_init()
    };
    let result = install();
    if before.sa_sigaction == libc::SIG_IGN {
        // SAFETY: the action is one that the system returned, and ignoring runs no code of the process.
        unsafe { libc::sigaction(libc::SIGHUP, &before, std::ptr::null_mut()) };
    }
    result
}

/// Other systems have no SIGHUP.
#[cfg(not(unix))]
fn keeping_ignored_hangup<T>(install: impl FnOnce() -> T) -> T {
    install()
}
