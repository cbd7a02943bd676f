//! The launches of a program, and the CUDA graph that they are recorded into.
//!
//! Copies between host and device are not in the graph. With copies recorded, `cuGraphLaunch` crashed or results were wrong
//! as soon as a process had released the memory of other programs (driver 580.159.04, H100); the cause is not known.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUgraphExec, CUstreamCaptureMode_enum};
use cudarc::driver::{result, sys};

use super::device::{Gpu, changes};
use super::module::Function;
use crate::Result;
use crate::backend::gpu::address::Address;
use crate::backend::gpu::command::Argument;

/// Values of a launch's arguments, each at a multiple of 16 bytes.
type Word = [u64; 2];

/// A launch of a kernel.
pub(super) struct Launch {
    /// Name of the operation that it computes.
    pub(super) op: &'static str,
    pub(super) function: Function,
    pub(super) arguments: Vec<Argument>,
    pub(super) groups: [u32; 3],
    pub(super) threads: [u32; 3],
}

impl Launch {
    /// Submits the launch; `resolve` returns the address of a buffer argument.
    ///
    /// # Errors
    /// The driver rejects it.
    pub(super) fn submit(&self, gpu: &Gpu, resolve: impl Fn(Address) -> CUdeviceptr) -> Result<()> {
        let mut words: Vec<Word> = Vec::new();
        let mut starts = Vec::with_capacity(self.arguments.len());
        for argument in &self.arguments {
            starts.push(words.len());
            match argument {
                Argument::Buffer(address) => words.push([resolve(*address), 0]),
                Argument::Bytes(bytes) => {
                    for chunk in bytes.chunks(size_of::<Word>()) {
                        let mut word: Word = [0; 2];
                        bytemuck::bytes_of_mut(&mut word)[..chunk.len()].copy_from_slice(chunk);
                        words.push(word);
                    }
                }
                Argument::Unbound => words.push([0; 2]),
            }
        }
        let base = words.as_mut_ptr();
        // SAFETY: each start is within the words, or one past them for a struct without bytes.
        let mut parameters: Vec<*mut c_void> =
            starts.iter().map(|&start| unsafe { base.add(start) }.cast()).collect();
        let [gx, gy, gz] = self.groups;
        let [x, y, z] = self.threads;
        // SAFETY: the kernel takes these arguments, by the lowering that made them; the driver copies their values.
        let launched = unsafe {
            result::launch_kernel(self.function.0, (gx, gy, gz), (x, y, z), 0, gpu.stream, &mut parameters)
        };
        gpu.checked(self.op, launched)
    }
}

/// A point in the stream's work, with the time at which the GPU reached it.
pub(super) struct Event {
    gpu: Arc<Gpu>,
    raw: sys::CUevent,
}

impl Event {
    /// Records an event behind what was submitted.
    ///
    /// # Errors
    /// The driver rejects it.
    pub(super) fn record(gpu: &Arc<Gpu>) -> Result<Self> {
        let raw = gpu.checked("an event", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        let event = Self { gpu: Arc::clone(gpu), raw };
        // SAFETY: the event was created above, and the stream lives as long as the GPU.
        gpu.checked("an event", unsafe { result::event::record(raw, gpu.stream) })?;
        Ok(event)
    }

    /// Seconds on the GPU from this event to a later one; both were reached.
    ///
    /// # Errors
    /// The driver rejects it.
    pub(super) fn seconds_until(&self, later: &Self) -> Result<f64> {
        // SAFETY: both events exist and were recorded.
        let milliseconds = unsafe { result::event::elapsed(self.raw, later.raw) };
        Ok(f64::from(self.gpu.checked("an event", milliseconds)?) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event was created by `record` and is destroyed once.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

/// A recorded graph, ready to be replayed.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    executable: CUgraphExec,
    /// Address of the arena that the graph was recorded with.
    pub(super) arena: CUdeviceptr,
}

// SAFETY: a graph may be launched from any thread; launches are under the arena's lock.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `submit` submits to the stream.
    ///
    /// # Errors
    /// The driver rejects the recording.
    pub(super) fn record(
        gpu: &Arc<Gpu>,
        arena: CUdeviceptr,
        submit: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let what = "the recording of a graph";
        let _changes = changes();
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the GPU and is not recording.
        gpu.checked(what, unsafe { result::stream::begin_capture(gpu.stream, mode) })?;
        let submitted = submit();
        // SAFETY: the recording was begun above; it ends whatever was submitted.
        let graph = unsafe { result::stream::end_capture(gpu.stream) };
        submitted?;
        let graph = gpu.checked(what, graph)?;
        let mut executable: CUgraphExec = std::ptr::null_mut();
        // SAFETY: the graph was recorded above; the place is valid for a write.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }.result();
        // SAFETY: the executable graph does not depend on the graph.
        let destroyed = unsafe { result::graph::destroy(graph) };
        gpu.checked(what, made)?;
        gpu.checked(what, destroyed)?;
        Ok(Self { gpu: Arc::clone(gpu), executable, arena })
    }

    /// Submits the graph to the stream.
    ///
    /// # Errors
    /// The driver rejects it.
    pub(super) fn launch(&self) -> Result<()> {
        // SAFETY: the graph and the stream live, and the buffers of the graph are kept by its program.
        let launched = unsafe { result::graph::launch(self.executable, self.gpu.stream) };
        self.gpu.checked("a graph", launched)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.activate().is_ok() {
            let _changes = changes();
            // SAFETY: the graph was made above, and every run has waited for its end.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
