//! Updates of fences that are committed and not over: what a wait on another queue has to wait for.
//!
//! A wait is for the updates that were committed before its own command buffer was; later ones it knows nothing of, and
//! without an earlier one it orders nothing. Source: Apple, "Synchronizing passes with a fence".

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::ordering::Number;

/// The number of the next update, and the updates that are not over: fence and number.
struct Outstanding {
    next: u64,
    updates: BTreeSet<(Number, u64)>,
}

static OUTSTANDING: Mutex<Outstanding> = Mutex::new(Outstanding { next: 1, updates: BTreeSet::new() });
static CHANGED: Condvar = Condvar::new();

fn outstanding() -> MutexGuard<'static, Outstanding> {
    OUTSTANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An update of a fence. It is over when this is dropped: after its encoder has run, or failed to.
pub(crate) struct Update {
    fence: Number,
    /// 0 until the commit.
    number: u64,
}

impl Update {
    pub(crate) fn new(fence: Number) -> Self {
        Self { fence, number: 0 }
    }

    pub(crate) fn fence(&self) -> Number {
        self.fence
    }

    pub(crate) fn commit(&mut self) {
        let mut outstanding = outstanding();
        self.number = outstanding.next;
        outstanding.next += 1;
        outstanding.updates.insert((self.fence, self.number));
    }
}

impl Drop for Update {
    fn drop(&mut self) {
        if outstanding().updates.remove(&(self.fence, self.number)) {
            CHANGED.notify_all();
        }
    }
}

/// A wait for a fence.
pub(crate) struct Wait {
    fence: Number,
    /// Updates with lower numbers were committed before; 0 until the commit.
    before: u64,
}

impl Wait {
    pub(crate) fn new(fence: Number) -> Self {
        Self { fence, before: 0 }
    }

    pub(crate) fn fence(&self) -> Number {
        self.fence
    }

    pub(crate) fn commit(&mut self) {
        self.before = outstanding().next;
    }

    /// Returns when the updates that were committed before are over.
    pub(crate) fn wait(&self) {
        let mut outstanding = outstanding();
        while outstanding.updates.range((self.fence, 0)..(self.fence, self.before)).next().is_some() {
            outstanding = CHANGED.wait(outstanding).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_for_updates_that_were_committed_before() {
        let fence = u64::MAX;
        let (mut early, mut wait, mut late) = (Update::new(fence), Wait::new(fence), Update::new(fence));
        // Nothing is committed: nothing to wait for.
        wait.wait();
        early.commit();
        wait.commit();
        late.commit();
        let (told, heard) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            wait.wait();
            told.send(()).expect("the test waits");
        });
        assert!(heard.recv_timeout(std::time::Duration::from_millis(20)).is_err(), "the update is not over");
        drop(early);
        heard.recv().expect("the wait ends although the later update is not over");
        waiter.join().expect("the thread ends");
        drop(late);
    }
}
