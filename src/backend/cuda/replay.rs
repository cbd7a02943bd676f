//! Runs the commands of a lowered plan: a graph that is recorded at the first run and replayed at each run.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;

use super::backend::Cuda;
use super::device::Gpu;
use super::error::failed;
use super::graph::{Event, Graph, Launch};
use super::memory::{Arena, Staging, of_cuda};
use crate::backend::gpu::address::Address;
use crate::backend::gpu::command::{Dispatch, Work};
use crate::backend::gpu::lower::{Lowered, lower};
use crate::backend::gpu::op::{Allocations, IndexCheck, Tensor};
use crate::backend::profile::{self, StepCost};
use crate::backend::{Executable, Io};
use crate::error::DeviceFault;
use crate::graph::Plan;
use crate::tensor::{Buffer, Parameter};
use crate::{Error, Result};

/// Copies between host and device begin at multiples of this in page-locked memory.
const ALIGNMENT: usize = 256;

/// A copy of a tensor between page-locked memory and the device.
struct Transfer {
    address: Address,
    /// Offset in page-locked memory.
    offset: usize,
    bytes: usize,
}

/// A flag that a run leaves for the host.
struct Flag {
    address: CUdeviceptr,
    offset: usize,
}

struct Replay {
    /// The recorded launches, which are dropped before the memory that they access.
    graph: Mutex<Option<Graph>>,
    gpu: Arc<Gpu>,
    arena: Arena,
    launches: Vec<Launch>,
    costs: Vec<StepCost>,
    checks: Vec<IndexCheck>,
    inputs: Vec<Transfer>,
    outputs: Vec<Transfer>,
    flags: Vec<Flag>,
    staging: Staging,
    /// Address of each allocation.
    addresses: Vec<CUdeviceptr>,
    _allocations: Allocations,
    /// Keeps the buffers of unread parameters.
    _parameters: Vec<Parameter>,
}

/// Compiles a plan.
///
/// # Errors
/// A kernel does not compile, or there is not enough memory.
pub(super) fn compile(cuda: &Cuda, plan: &Plan) -> Result<Box<dyn Executable>> {
    let Lowered { commands, costs, checks, inputs, outputs, allocations, .. } = lower(cuda, plan)?;
    let kernels = commands.iter().filter_map(|command| match &command.work {
        Work::Dispatch(dispatch) => Some(&dispatch.kernel),
        Work::Library(_) => None,
    });
    cuda.gpu.modules.load(kernels)?;
    let mut launches = Vec::with_capacity(commands.len());
    for command in commands {
        match command.work {
            Work::Dispatch(dispatch) => launches.push(launch(&cuda.gpu, dispatch)?),
            Work::Library(_) => return Err(Error::invalid(command.op, "this build has no such library")),
        }
    }
    let mut bytes = 0;
    let mut place = |size: usize| {
        let offset = bytes;
        bytes = (bytes + size).next_multiple_of(ALIGNMENT);
        offset
    };
    let mut transfer = |tensor: &Tensor| {
        let bytes = tensor.elements() * tensor.dtype.size();
        Transfer { address: tensor.first(), offset: place(bytes), bytes }
    };
    let inputs = inputs.iter().map(&mut transfer).collect();
    let outputs = outputs.iter().map(&mut transfer).collect();
    let flags = checks
        .iter()
        .filter_map(IndexCheck::flag)
        .map(|flag| Flag { address: of_cuda(flag).address(), offset: place(4) })
        .collect();
    Ok(Box::new(Replay {
        gpu: Arc::clone(&cuda.gpu),
        arena: cuda.arena.clone(),
        launches,
        costs,
        checks,
        inputs,
        outputs,
        flags,
        staging: Staging::new(&cuda.gpu, bytes)?,
        graph: Mutex::new(None),
        addresses: allocations.buffers.iter().map(|buffer| of_cuda(&**buffer).allocation()).collect(),
        _allocations: allocations,
        _parameters: plan.parameters.clone(),
    }))
}

/// Returns the launch of a dispatch, whose kernel is loaded.
fn launch(gpu: &Gpu, dispatch: Dispatch) -> Result<Launch> {
    let Dispatch { op, kernel, arguments, groups, threads } = dispatch;
    let function = gpu.modules.get(&kernel)?;
    // The driver reads as many arguments as the kernel has.
    let buffers = gpu.modules.buffers(&kernel)?;
    if arguments.len() != buffers {
        let message = format!("it takes {buffers} arguments and is given {}", arguments.len());
        return Err(failed(format!("kernel '{}' of {op}", kernel.function), DeviceFault::Kernel, message));
    }
    // The driver allows 2^31 - 1 blocks along x, and 65,535 along y and z.
    let limits = [i32::MAX as usize, 65_535, 65_535];
    if groups.iter().zip(limits).any(|(&count, limit)| count > limit) {
        let message =
            format!("{groups:?} threadgroups are more than the GPU allows, {limits:?}; use smaller batches");
        return Err(failed(format!("kernel '{}' of {op}", kernel.function), DeviceFault::Kernel, message));
    }
    let narrow = |sizes: [usize; 3]| sizes.map(|size| size as u32);
    Ok(Launch { op, function, arguments, groups: narrow(groups), threads: narrow(threads) })
}

impl Replay {
    /// Address on the device; `arena` is that of the arena.
    fn resolve(&self, arena: CUdeviceptr, address: Address) -> CUdeviceptr {
        match address {
            Address::Arena(offset) => arena + offset as CUdeviceptr,
            Address::Allocated(allocation, offset) => {
                self.addresses[allocation.index] + offset as CUdeviceptr
            }
            Address::External(..) => {
                unreachable!("plans of this backend have no in-place inputs and outputs")
            }
        }
    }

    /// Submits the copies of all inputs to the device.
    fn copy_inputs(&self, arena: CUdeviceptr) -> Result<()> {
        for input in self.inputs.iter().filter(|input| input.bytes > 0) {
            let to = self.resolve(arena, input.address);
            // SAFETY: compiling has reserved these bytes of page-locked memory for the input.
            let from = unsafe { std::slice::from_raw_parts(self.staging.at(input.offset), input.bytes) };
            // SAFETY: the planner has reserved the input's bytes of the arena; the run ends before the memory is released.
            let copied = unsafe { result::memcpy_htod_async(to, from, self.gpu.stream) };
            self.gpu.checked("a copy of an input", copied)?;
        }
        Ok(())
    }

    /// Submits all launches; `between` is called before each one and after the last.
    fn submit(&self, arena: CUdeviceptr, mut between: impl FnMut() -> Result<()>) -> Result<()> {
        for launch in &self.launches {
            between()?;
            launch.submit(&self.gpu, |address| self.resolve(arena, address))?;
        }
        between()
    }

    /// Submits the copies of all outputs and flags to the host.
    fn copy_outputs(&self, arena: CUdeviceptr) -> Result<()> {
        let outputs = self.outputs.iter().map(|output| {
            let address = self.resolve(arena, output.address);
            (address, output.offset, output.bytes)
        });
        let flags = self.flags.iter().map(|flag| (flag.address, flag.offset, 4));
        for (address, offset, bytes) in outputs.chain(flags).filter(|&(_, _, bytes)| bytes > 0) {
            // SAFETY: compiling has reserved these bytes of page-locked memory.
            let into = unsafe { std::slice::from_raw_parts_mut(self.staging.at(offset), bytes) };
            // SAFETY: the tensor is contiguous at its address; the run ends before the memory is released.
            let copied = unsafe { result::memcpy_dtoh_async(into, address, self.gpu.stream) };
            self.gpu.checked("a copy of an output", copied)?;
        }
        Ok(())
    }

    /// Names of the operations, for an error that does not say which one failed.
    fn names(&self) -> String {
        let mut names: Vec<&str> = self.launches.iter().map(|launch| launch.op).collect();
        names.dedup();
        let more = names.len().saturating_sub(6);
        names.truncate(6);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{rest} ({} launches)", names.join(", "), self.launches.len())
    }

    /// Runs without a graph, with an event between launches, and reports the times of all launches.
    fn profiled(&self, arena: CUdeviceptr, run: profile::Run) -> Result<()> {
        let mut events = Vec::with_capacity(self.launches.len() + 1);
        let mut first = 0.0;
        self.submit(arena, || {
            if events.is_empty() {
                first = run.elapsed();
            }
            events.push(Event::record(&self.gpu)?);
            Ok(())
        })?;
        self.gpu.wait(|| self.names())?;
        let mut times = Vec::with_capacity(self.launches.len());
        let mut start = first;
        for pair in events.windows(2) {
            let end = start + pair[0].seconds_until(&pair[1])?;
            times.push((start, end));
            start = end;
        }
        run.finish_launches(&self.costs, &times);
        Ok(())
    }

    fn replay(&self, arena: CUdeviceptr) -> Result<()> {
        if self.launches.is_empty() {
            return Ok(());
        }
        let mut graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        if graph.as_ref().is_none_or(|graph| graph.arena != arena) {
            // The old one goes first: it refers to an arena that was released.
            *graph = None;
            *graph = Some(Graph::record(&self.gpu, arena, || self.submit(arena, || Ok(())))?);
        }
        graph.as_ref().expect("recorded above").launch()
    }
}

impl Executable for Replay {
    fn launches(&self) -> usize {
        self.launches.len()
    }

    fn run(&self, io: &mut dyn Io) -> Result<()> {
        for check in &self.checks {
            check.before(io)?;
        }
        let state = self.arena.lock();
        let arena = state.address().ok_or_else(|| {
            failed(
                self.names(),
                DeviceFault::OutOfMemory,
                "the memory for intermediate results could not be allocated",
            )
        })?;
        self.gpu.activate()?;
        for (index, input) in self.inputs.iter().enumerate() {
            let bytes = io.input(index);
            let count = bytes.len().min(input.bytes);
            // SAFETY: compiling has reserved these bytes of page-locked memory for the input, and the lock is held.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.staging.at(input.offset), count) };
        }
        self.copy_inputs(arena)?;
        match profile::run() {
            Some(run) => self.profiled(arena, run)?,
            None => self.replay(arena)?,
        }
        self.copy_outputs(arena)?;
        self.gpu.wait(|| self.names())?;
        let word = |buffer: &dyn Buffer| {
            let address = of_cuda(buffer).address();
            let flag =
                self.flags.iter().find(|flag| flag.address == address).expect("a flag of this program");
            // SAFETY: the run has written the flag's four bytes, which begin at a multiple of 256.
            unsafe { self.staging.at(flag.offset).cast::<u32>().read() }
        };
        for check in &self.checks {
            check.after(word)?;
        }
        for (index, output) in self.outputs.iter().enumerate() {
            // SAFETY: the run has written the output's bytes, and the lock is held.
            io.output(index, unsafe {
                std::slice::from_raw_parts(self.staging.at(output.offset), output.bytes)
            });
        }
        Ok(())
    }
}
