//! What was encoded and run, for tests that hold a number of command buffers or barriers to a bound.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts since the last [`take`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Command buffers that were committed.
    pub command_buffers: u64,
    /// Compute and blit encoders that were opened.
    pub encoders: u64,
    /// Dispatches by the kernel's name; blits and MPS kernels by theirs.
    pub commands: BTreeMap<String, u64>,
    /// Memory barriers.
    pub barriers: u64,
    /// Waits of the host for a command buffer or an event.
    pub host_waits: u64,
    /// Compute pipelines that were made.
    pub pipelines: u64,
    /// Functions that were added to binary archives.
    pub archived: u64,
    /// Pipelines whose function a binary archive of their descriptor had.
    pub archive_hits: u64,
    /// Pipelines whose function no binary archive of their descriptor had.
    pub archive_misses: u64,
    /// Dispatches that did nothing because their threadgroups were larger than the pipeline allows, by kernel.
    pub dropped: BTreeMap<String, u64>,
    /// Command buffers that the GPU killed.
    pub killed: u64,
    /// Libraries that were compiled from source, by language version; `default` where no version was asked for.
    pub languages: BTreeMap<String, u64>,
    /// Calls of `MPSSupportsMTLDevice`.
    pub mps_support_queries: u64,
    /// Bytes given by `setBytes`.
    pub bytes_set: u64,
    /// Bytes of buffers that were bound, from the offset to the end, as often as they were bound.
    pub bytes_bound: u64,
    /// Bytes of buffers that were made.
    pub bytes_allocated: u64,
}

static COUNTERS: Mutex<Option<Counters>> = Mutex::new(None);

fn counters() -> MutexGuard<'static, Option<Counters>> {
    COUNTERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the counts.
pub(crate) fn count(change: impl FnOnce(&mut Counters)) {
    change(counters().get_or_insert_default());
}

/// The counts so far, which then begin at zero.
pub fn take() -> Counters {
    counters().take().unwrap_or_default()
}
