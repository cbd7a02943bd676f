//! Command buffers: opened when there is something to encode, committed early within a budget, and waited for once.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue, MTLComputeCommandEncoder,
    MTLDevice, MTLDispatchType, MTLEvent, MTLSharedEvent,
};

use super::device::Gpu;
use super::encode::EncodedDispatch;
use super::error::{failed, kind};
use super::memory::Memory;
use super::pipeline::Pipeline;
use crate::backend::gpu::command::Load;
use crate::error::DeviceFault;
use crate::{Error, Result};

/// How long the host polls for the end of a run before it blocks. Waking a blocked thread takes longer than many decoding
/// steps.
const SPIN: Duration = Duration::from_micros(100);
/// Time limit for the status of a command buffer to change after its work has ended.
const SETTLING: Duration = Duration::from_millis(100);
/// How often to check for failed command buffers while waiting, in milliseconds (a failed one may never signal the event).
const PATIENCE_MS: u64 = 100;

/// A command buffer.
pub(super) type RawCommands = Retained<ProtocolObject<dyn MTLCommandBuffer>>;
type Encoder = Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>;

/// Maximum work of one command buffer. The first one of a run gets half, so that the GPU starts while the host encodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CommandBufferBudget {
    /// Number of dispatches, as MLX allows on chips of this class.
    pub(super) dispatches: usize,
    /// Estimated milliseconds on the GPU; the display watchdog stops work of several seconds.
    pub(super) milliseconds: f64,
    /// Bytes read and written.
    pub(super) bytes: u64,
}

impl CommandBufferBudget {
    /// Returns half of the budget, for use after a timeout.
    pub(super) fn halved(self) -> Self {
        Self {
            dispatches: (self.dispatches / 2).max(1),
            milliseconds: self.milliseconds / 2.0,
            bytes: self.bytes / 2,
        }
    }
}

/// The command buffers of a run, each with the number of its first item.
#[derive(Default)]
pub(super) struct Submissions {
    buffers: Vec<(RawCommands, usize)>,
}

impl Submissions {
    /// Returns the items of every command buffer, and when the GPU started and ended it, on its own clock. All must have ended.
    pub(super) fn times(&self, items: usize) -> Vec<(std::ops::Range<usize>, f64, f64)> {
        let end = |index: usize| self.buffers.get(index + 1).map_or(items, |(_, next)| *next);
        let times = |(index, (commands, first)): (usize, &(RawCommands, usize))| {
            (*first..end(index), commands.GPUStartTime(), commands.GPUEndTime())
        };
        self.buffers.iter().enumerate().map(times).collect()
    }
}

/// A command buffer that failed.
pub(super) struct FailedSubmission {
    /// The first item of the command buffer.
    pub(super) first: usize,
    /// The first item of the next command buffer.
    pub(super) end: usize,
    pub(super) fault: DeviceFault,
    message: String,
}

impl FailedSubmission {
    pub(super) fn into_error(self, what: String) -> Error {
        failed(what, self.fault, self.message)
    }
}

/// A command buffer without an open encoder, into which Metal Performance Shaders open their own.
pub(in crate::backend) struct NoEncoder<'a> {
    commands: &'a ProtocolObject<dyn MTLCommandBuffer>,
    device: &'a ProtocolObject<dyn MTLDevice>,
}

impl NoEncoder<'_> {
    pub(in crate::backend) fn commands(&self) -> &ProtocolObject<dyn MTLCommandBuffer> {
        self.commands
    }

    pub(in crate::backend) fn device(&self) -> &ProtocolObject<dyn MTLDevice> {
        self.device
    }
}

/// A run that is being encoded.
pub(super) struct Commands<'a> {
    gpu: &'a Gpu,
    memory: Memory<'a>,
    budget: CommandBufferBudget,
    submissions: &'a mut Submissions,
    open: Option<RawCommands>,
    encoder: Option<Encoder>,
    pipeline: Option<Pipeline>,
    dispatches: usize,
    load: Load,
    first_item: usize,
    item: usize,
}

impl<'a> Commands<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        memory: Memory<'a>,
        budget: CommandBufferBudget,
        submissions: &'a mut Submissions,
    ) -> Self {
        submissions.buffers.clear();
        Self {
            gpu,
            memory,
            budget,
            submissions,
            open: None,
            encoder: None,
            pipeline: None,
            dispatches: 0,
            load: Load::default(),
            first_item: 0,
            item: 0,
        }
    }

    fn commands(&mut self) -> Result<RawCommands> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        let missing = || failed("a run", DeviceFault::Unavailable, "the queue gives no command buffer");
        let commands = self.gpu.queue.commandBuffer().ok_or_else(missing)?;
        self.first_item = self.item;
        self.open = Some(commands.clone());
        Ok(commands)
    }

    /// Accounts for an item. Commits the open command buffer first if the item would exceed its budget.
    fn admit(&mut self, load: Load) {
        let first = self.submissions.buffers.is_empty();
        let budget = if first { self.budget.halved() } else { self.budget };
        let full = self.dispatches >= budget.dispatches
            || self.load.milliseconds + load.milliseconds > budget.milliseconds
            || self.load.bytes + load.bytes > budget.bytes;
        if full && self.dispatches > 0 {
            self.commit();
        }
        self.dispatches += 1;
        self.load.milliseconds += load.milliseconds;
        self.load.bytes += load.bytes;
    }

    /// Encodes a dispatch.
    pub(super) fn dispatch(&mut self, dispatch: &EncodedDispatch, load: Load) -> Result<()> {
        self.admit(load);
        if self.encoder.is_none() {
            let missing =
                || failed(dispatch.op, DeviceFault::Unavailable, "the command buffer gives no encoder");
            let commands = self.commands()?;
            let encoder = commands.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent);
            self.encoder = Some(encoder.ok_or_else(missing)?);
        }
        let encoder = self.encoder.as_ref().expect("opened above");
        dispatch.encode(encoder, self.memory, self.pipeline.as_ref());
        if !self.pipeline.as_ref().is_some_and(|pipeline| pipeline.same(&dispatch.pipeline)) {
            self.pipeline = Some(dispatch.pipeline.clone());
        }
        self.item += 1;
        Ok(())
    }

    /// Encodes work that opens its own encoders.
    pub(super) fn without_encoder(
        &mut self,
        load: Load,
        encode: impl FnOnce(NoEncoder<'_>, Memory<'_>) -> Result<()>,
    ) -> Result<()> {
        self.admit(load);
        self.end_encoder();
        let commands = self.commands()?;
        encode(NoEncoder { commands: &commands, device: &self.gpu.device }, self.memory)?;
        self.item += 1;
        Ok(())
    }

    fn end_encoder(&mut self) {
        if let Some(encoder) = self.encoder.take() {
            encoder.endEncoding();
        }
        self.pipeline = None;
    }

    /// Commits the open command buffer.
    pub(super) fn commit(&mut self) {
        self.end_encoder();
        if let Some(commands) = self.open.take() {
            commands.commit();
            self.submissions.buffers.push((commands, self.first_item));
        }
        self.dispatches = 0;
        self.load = Load::default();
    }

    /// Commits the open command buffer and waits for all. `run` must exceed the event's current value.
    pub(super) fn finish(
        mut self,
        run: u64,
        label: &str,
    ) -> Result<std::result::Result<(), FailedSubmission>> {
        self.end_encoder();
        let commands = self.commands()?;
        if cfg!(debug_assertions) {
            commands.setLabel(Some(&NSString::from_str(label)));
        }
        let event: &ProtocolObject<dyn MTLEvent> = ProtocolObject::from_ref(&*self.gpu.event);
        commands.encodeSignalEvent_value(event, run);
        self.commit();
        Ok(wait(&self.gpu.event, run, &self.submissions.buffers, self.item))
    }
}

impl Drop for Commands<'_> {
    /// Ends the encoder and waits, so that nothing runs while others use the arena after an error.
    fn drop(&mut self) {
        self.end_encoder();
        let running = self.submissions.buffers.iter().filter(|(commands, _)| !over(commands));
        running.for_each(|(commands, _)| commands.waitUntilCompleted());
    }
}

fn over(commands: &ProtocolObject<dyn MTLCommandBuffer>) -> bool {
    matches!(commands.status(), MTLCommandBufferStatus::Completed | MTLCommandBufferStatus::Error)
}

fn wait(
    event: &ProtocolObject<dyn MTLSharedEvent>,
    run: u64,
    buffers: &[(RawCommands, usize)],
    items: usize,
) -> std::result::Result<(), FailedSubmission> {
    let begun = Instant::now();
    let mut signalled = false;
    while !signalled && begun.elapsed() < SPIN {
        signalled = event.signaledValue() >= run;
        spin_loop();
    }
    while !signalled {
        signalled = event.waitUntilSignaledValue_timeoutMS(run, PATIENCE_MS);
        if buffers.iter().any(|(commands, _)| commands.status() == MTLCommandBufferStatus::Error) {
            break;
        }
    }
    for (index, (commands, first)) in buffers.iter().enumerate() {
        // The GPU signals the event; the status changes within microseconds.
        let begun = Instant::now();
        while !over(commands) && begun.elapsed() < SETTLING {
            std::thread::yield_now();
        }
        if !over(commands) {
            commands.waitUntilCompleted();
        }
        if commands.status() == MTLCommandBufferStatus::Error {
            let error = commands.error();
            let message = match &error {
                Some(error) => error.localizedDescription().to_string(),
                None => "Metal gives no reason".to_owned(),
            };
            let end = buffers.get(index + 1).map_or(items, |(_, next)| *next);
            let fault = kind(error.as_deref());
            // Later command buffers run on the same queue; they must end before the host continues.
            buffers[index + 1..].iter().filter(|(commands, _)| !over(commands)).for_each(|(commands, _)| {
                commands.waitUntilCompleted();
            });
            return Err(FailedSubmission { first: *first, end, fault, message });
        }
    }
    Ok(())
}
