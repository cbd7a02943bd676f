//! Command buffers: opened when there is something to encode, committed early and bounded, waited for once.

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

/// How long the host looks for the end of a run before it lets the system wake it: waking takes longer than many
/// decode steps do.
const SPIN: Duration = Duration::from_micros(100);
/// How long the host gives a command buffer whose work is over to say so.
const SETTLING: Duration = Duration::from_millis(100);
/// After so long it looks whether a command buffer has failed: a failed one may never signal.
const PATIENCE_MS: u64 = 100;

/// A command buffer.
pub(super) type RawCommands = Retained<ProtocolObject<dyn MTLCommandBuffer>>;
type Encoder = Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>;

/// How much one command buffer may hold. The first of a run is small, so that the GPU begins while the host encodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bound {
    /// Dispatches, as many as MLX allows on chips of this class.
    pub(super) dispatches: usize,
    /// Estimated milliseconds on the GPU; the display's watchdog stops work of several seconds.
    pub(super) milliseconds: f64,
    /// Bytes touched.
    pub(super) bytes: u64,
}

impl Bound {
    /// Half of it, for after a timeout.
    pub(super) fn halved(self) -> Self {
        Self {
            dispatches: (self.dispatches / 2).max(1),
            milliseconds: self.milliseconds / 2.0,
            bytes: self.bytes / 2,
        }
    }
}

/// The command buffers of a run: which, from which item on, and whether a repetition would change its result.
#[derive(Default)]
pub(super) struct Committed {
    buffers: Vec<(RawCommands, usize)>,
}

impl Committed {
    /// The items of every command buffer, and when the GPU began and ended it, on its clock. All are over.
    pub(super) fn times(&self, items: usize) -> Vec<(std::ops::Range<usize>, f64, f64)> {
        let end = |index: usize| self.buffers.get(index + 1).map_or(items, |(_, next)| *next);
        let times = |(index, (commands, first)): (usize, &(RawCommands, usize))| {
            (*first..end(index), commands.GPUStartTime(), commands.GPUEndTime())
        };
        self.buffers.iter().enumerate().map(times).collect()
    }
}

/// A command buffer that failed.
pub(super) struct Failed {
    /// The first item in it.
    pub(super) first: usize,
    /// The first item of the next one.
    pub(super) end: usize,
    pub(super) fault: DeviceFault,
    message: String,
}

impl Failed {
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

/// A run being encoded.
pub(super) struct Commands<'a> {
    gpu: &'a Gpu,
    memory: Memory<'a>,
    bound: Bound,
    committed: &'a mut Committed,
    open: Option<RawCommands>,
    encoder: Option<Encoder>,
    pipeline: Option<Pipeline>,
    dispatches: usize,
    load: Load,
    first_item: usize,
    item: usize,
}

impl<'a> Commands<'a> {
    pub(super) fn new(gpu: &'a Gpu, memory: Memory<'a>, bound: Bound, committed: &'a mut Committed) -> Self {
        committed.buffers.clear();
        Self {
            gpu,
            memory,
            bound,
            committed,
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

    /// Accounts for an item, and commits what is open if it would pass the bound with it.
    fn admit(&mut self, load: Load) {
        let first = self.committed.buffers.is_empty();
        let bound = if first { self.bound.halved() } else { self.bound };
        let full = self.dispatches >= bound.dispatches
            || self.load.milliseconds + load.milliseconds > bound.milliseconds
            || self.load.bytes + load.bytes > bound.bytes;
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

    /// Commits what is open.
    pub(super) fn commit(&mut self) {
        self.end_encoder();
        if let Some(commands) = self.open.take() {
            commands.commit();
            self.committed.buffers.push((commands, self.first_item));
        }
        self.dispatches = 0;
        self.load = Load::default();
    }

    /// Commits the rest and waits until all is over. `run` is greater than the event's value so far.
    pub(super) fn finish(mut self, run: u64, label: &str) -> Result<std::result::Result<(), Failed>> {
        self.end_encoder();
        let commands = self.commands()?;
        if cfg!(debug_assertions) {
            commands.setLabel(Some(&NSString::from_str(label)));
        }
        let event: &ProtocolObject<dyn MTLEvent> = ProtocolObject::from_ref(&*self.gpu.event);
        commands.encodeSignalEvent_value(event, run);
        self.commit();
        Ok(wait(&self.gpu.event, run, &self.committed.buffers, self.item))
    }
}

impl Drop for Commands<'_> {
    /// After an error nothing is left open, and nothing runs on while others use the arena.
    fn drop(&mut self) {
        self.end_encoder();
        let running = self.committed.buffers.iter().filter(|(commands, _)| !over(commands));
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
) -> std::result::Result<(), Failed> {
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
        // The event is signalled by the GPU; the status follows within microseconds.
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
            // Those that come after run on the same queue; nothing of ours may go on while they do.
            buffers[index + 1..].iter().filter(|(commands, _)| !over(commands)).for_each(|(commands, _)| {
                commands.waitUntilCompleted();
            });
            return Err(Failed { first: *first, end, fault, message });
        }
    }
    Ok(())
}
