//! Faults on demand: what a test asks the device to do wrong.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    *killing() = None;
}

/// Ways in which macOS ends a command buffer that is running. The error is `MTLCommandBufferErrorDomain` 1, and the one
/// that underlies it has the domain `IOGPUCommandQueueErrorDomain` and this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(isize)]
pub enum Kill {
    /// The command buffer made the GPU hang.
    Hang = 3,
    /// Another process's command buffer made the GPU fail.
    InnocentVictim = 5,
    /// The command buffer held the GPU for so long that the screen stood still.
    ImpactingInteractivity = 14,
}

impl Kill {
    /// Every kill.
    pub const ALL: [Self; 3] = [Self::Hang, Self::InnocentVictim, Self::ImpactingInteractivity];

    /// The text of the error, as macOS 15 words it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Hang => "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
            Self::InnocentVictim => {
                "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"
            }
            Self::ImpactingInteractivity => {
                "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
            }
        }
    }
}

/// The command buffers that are killed. Commands that ran before have done what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// The one that is committed after the next `skipped`, once, when so many of its commands have run.
    Next {
        /// Command buffers before it.
        skipped: u32,
        /// Commands of it that run.
        commands: u64,
    },
    /// All with more than this many commands, when these have run.
    Longer(u64),
    /// All whose dispatches have more than this many threads together, when the next would be too many.
    Larger(u64),
}

static KILLING: Mutex<Option<(Kill, Victims)>> = Mutex::new(None);

fn killing() -> MutexGuard<'static, Option<(Kill, Victims)>> {
    KILLING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the killing when it is dropped.
#[must_use = "the killing ends when the guard is dropped"]
#[derive(Debug)]
pub struct Killing(());

impl Drop for Killing {
    fn drop(&mut self) {
        *killing() = None;
    }
}

/// Kills command buffers until the guard is dropped.
pub fn kill(how: Kill, which: Victims) -> Killing {
    *killing() = Some((how, which));
    Killing(())
}

/// What is decided about one command buffer.
#[derive(Debug)]
pub(crate) struct Sentence {
    kill: Option<Kill>,
    /// Commands that may still run.
    commands: u64,
    /// Threads that may still run.
    threads: u64,
    /// Whether it is killed even if it comes to its end.
    certain: bool,
}

impl Sentence {
    /// A command of so many threads is about to run.
    pub(crate) fn before(&mut self, threads: u64) -> Result<(), Kill> {
        let Some(kill) = self.kill else { return Ok(()) };
        let left = self.commands.checked_sub(1).zip(self.threads.checked_sub(threads));
        (self.commands, self.threads) = left.ok_or(kill)?;
        Ok(())
    }

    /// Every command has run.
    pub(crate) fn after_all(&self) -> Result<(), Kill> {
        self.kill.filter(|_| self.certain).map_or(Ok(()), Err)
    }
}

/// The sentence of the next command buffer.
pub(crate) fn sentence() -> Sentence {
    let free = Sentence { kill: None, commands: u64::MAX, threads: u64::MAX, certain: false };
    let mut killing = killing();
    let Some((kill, which)) = *killing else { return free };
    let kill = Some(kill);
    match which {
        Victims::Longer(commands) => Sentence { kill, commands, ..free },
        Victims::Larger(threads) => Sentence { kill, threads, ..free },
        Victims::Next { skipped: 0, commands } => {
            *killing = None;
            Sentence { kill, commands, certain: true, ..free }
        }
        Victims::Next { skipped, commands } => {
            let next = Victims::Next { skipped: skipped - 1, commands };
            *killing = kill.map(|kill| (kill, next));
            free
        }
    }
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

pub(crate) fn command_buffer_error() -> Option<CommandBufferError> {
    if LOST.load(Ordering::SeqCst) {
        return Some(CommandBufferError::DeviceRemoved);
    }
    let code = due(&COMMAND_BUFFER).then(|| CODE.load(Ordering::SeqCst))?;
    CommandBufferError::ALL.into_iter().find(|error| *error as u64 == code)
}

pub(crate) fn delay() -> Duration {
    Duration::from_micros(DELAY_MICROSECONDS.load(Ordering::SeqCst))
}
