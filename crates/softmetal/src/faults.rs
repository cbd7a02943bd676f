//! Faults on demand: what a test asks the device to do wrong.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// The allocation that fails, counted from the next one; below zero none.
static ALLOCATION: AtomicI64 = AtomicI64::new(-1);
/// The pipeline whose creation fails.
static PIPELINE: AtomicI64 = AtomicI64::new(-1);
/// The commit after which a command buffer ends in an error, and its code.
static COMMAND_BUFFER: AtomicI64 = AtomicI64::new(-1);
static CODE: AtomicU64 = AtomicU64::new(0);
static DELAY_MICROSECONDS: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicBool = AtomicBool::new(false);

/// Codes of MTLCommandBufferError.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum CommandBufferError {
    /// The device failed in itself.
    Internal = 1,
    /// The command buffer ran for too long.
    Timeout = 2,
    /// A command touched memory that is not mapped.
    PageFault = 3,
    /// The process may not use the GPU any more.
    AccessRevoked = 4,
    /// The process may not use the GPU.
    NotPermitted = 7,
    /// There was not enough memory to run it.
    OutOfMemory = 8,
    /// A resource was gone.
    InvalidResource = 9,
    /// A memoryless attachment did not fit.
    Memoryless = 10,
    /// The device was removed.
    DeviceRemoved = 11,
    /// A kernel's stack was too small.
    StackOverflow = 12,
}

impl CommandBufferError {
    /// Every error.
    pub const ALL: [Self; 10] = [
        Self::Internal,
        Self::Timeout,
        Self::PageFault,
        Self::AccessRevoked,
        Self::NotPermitted,
        Self::OutOfMemory,
        Self::InvalidResource,
        Self::Memoryless,
        Self::DeviceRemoved,
        Self::StackOverflow,
    ];
}

/// The allocation after the next `n` fails.
pub fn fail_allocation_after(n: u32) {
    ALLOCATION.store(n.into(), Ordering::SeqCst);
}

/// The creation of a pipeline after the next `n` fails.
pub fn fail_pipeline_after(n: u32) {
    PIPELINE.store(n.into(), Ordering::SeqCst);
}

/// The command buffer that is committed after the next `n` ends in an error without running.
pub fn fail_command_buffer_after(n: u32, error: CommandBufferError) {
    CODE.store(error as u64, Ordering::SeqCst);
    COMMAND_BUFFER.store(n.into(), Ordering::SeqCst);
}

/// Every command buffer completes so much later.
pub fn delay_completion(delay: Duration) {
    DELAY_MICROSECONDS.store(delay.as_micros() as u64, Ordering::SeqCst);
}

/// Every command buffer from now on ends with the device removed.
pub fn lose_device() {
    LOST.store(true, Ordering::SeqCst);
}

/// No more faults.
pub fn clear() {
    for counter in [&ALLOCATION, &PIPELINE, &COMMAND_BUFFER] {
        counter.store(-1, Ordering::SeqCst);
    }
    DELAY_MICROSECONDS.store(0, Ordering::SeqCst);
    LOST.store(false, Ordering::SeqCst);
}

/// Counts down; `true` when it is this one's turn.
fn due(counter: &AtomicI64) -> bool {
    let turn = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| left - 1));
    turn == Ok(0)
}

pub(crate) fn allocation_fails() -> bool {
    due(&ALLOCATION)
}

pub(crate) fn pipeline_fails() -> bool {
    due(&PIPELINE)
}

pub(crate) fn command_buffer_error() -> Option<u64> {
    if LOST.load(Ordering::SeqCst) {
        return Some(CommandBufferError::DeviceRemoved as u64);
    }
    due(&COMMAND_BUFFER).then(|| CODE.load(Ordering::SeqCst))
}

pub(crate) fn delay() -> Duration {
    Duration::from_micros(DELAY_MICROSECONDS.load(Ordering::SeqCst))
}
