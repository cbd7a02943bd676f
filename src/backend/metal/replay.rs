//! Runs the commands of a lowered plan: encodes them anew at every run, and waits once.

use std::sync::{Arc, Mutex, PoisonError};

use objc2::rc::autoreleasepool;
use objc2_metal::MTLBuffer;

use super::backend::Metal;
use super::buffer::{Arena, first_word, of_metal};
use super::commands::{CommandBufferBudget, Commands, FailedSubmission};
use super::device::Gpu;
use super::encode::EncodedDispatch;
#[cfg(mps)]
use super::memory::Raw;
use super::memory::{Buffers, Memory};
use crate::backend::gpu::command::{Dispatch, Load, Work};
use crate::backend::gpu::cost::MILLISECONDS;
use crate::backend::gpu::lower::{Lowered, lower};
use crate::backend::gpu::op::{Allocations, IndexCheck, Tensor};
#[cfg(mps)]
use crate::backend::mps::MpsCall;
use crate::backend::{Executable, Io, profile};
use crate::error::DeviceFault;
use crate::graph::Plan;
use crate::tensor::Parameter;
use crate::{Error, Result};

/// How often a run is tried again with smaller command buffers after the system stopped it for taking too long.
const RETRIES: usize = 6;

/// Bytes that a command buffer may access, each dispatch counted separately.
const BYTES: u64 = 512 << 20;

/// A command, ready to be encoded.
enum Encodable {
    Dispatch(EncodedDispatch),
    #[cfg(mps)]
    Library(Box<dyn MpsCall>),
}

/// A command of a compiled plan.
struct Item {
    work: Encodable,
    op: &'static str,
    load: Load,
    /// True if running the command twice gives another result than running it once.
    accumulates: bool,
}

impl Item {
    fn encode(&self, commands: &mut Commands<'_>) -> Result<()> {
        match &self.work {
            Encodable::Dispatch(dispatch) => commands.dispatch(dispatch, self.load),
            #[cfg(mps)]
            Encodable::Library(call) => {
                commands.without_encoder(self.load, |target, memory| call.encode(target, memory))
            }
        }
    }
}

/// Returns a dispatch with its compiled kernel.
pub(super) fn encodable(gpu: &Gpu, dispatch: Dispatch, barrier: bool) -> Result<EncodedDispatch> {
    let Dispatch { op, kernel, arguments, groups, threads } = dispatch;
    Ok(EncodedDispatch { op, pipeline: gpu.pipelines.get(&kernel)?, arguments, groups, threads, barrier })
}

/// Compiles a plan.
pub(super) fn compile(metal: &Metal, plan: &Plan) -> Result<Box<dyn Executable>> {
    let Lowered { commands, costs, checks, inputs, outputs, allocations } = lower(metal, plan)?;
    let mut items = Vec::with_capacity(commands.len());
    for command in commands {
        let work = match command.work {
            Work::Dispatch(dispatch) => {
                Encodable::Dispatch(encodable(&metal.gpu, dispatch, command.barrier)?)
            }
            #[cfg(mps)]
            Work::Library(call) => Encodable::Library(
                crate::backend::mps::prepare(&metal.gpu, &call)
                    .map_err(|refusal| Error::invalid(command.op, refusal.to_string()))?,
            ),
            #[cfg(not(mps))]
            Work::Library(_) => return Err(Error::invalid(command.op, "this build has no such library")),
        };
        let (op, load, accumulates) = (command.op, command.load, command.accumulates);
        items.push(Item { work, op, load, accumulates });
    }
    Ok(Box::new(Replay {
        gpu: Arc::clone(&metal.gpu),
        arena: metal.arena.clone(),
        items,
        costs,
        checks,
        inputs,
        outputs,
        budget: Mutex::new(budget(&metal.gpu)),
        buffers: Buffers::new(
            allocations.buffers.iter().map(|buffer| of_metal(&**buffer).raw().clone()).collect(),
        ),
        _allocations: allocations,
        _parameters: plan.parameters.clone(),
    }))
}

/// Returns how much a command buffer may hold on a GPU.
fn budget(gpu: &Gpu) -> CommandBufferBudget {
    CommandBufferBudget { dispatches: gpu.chip.dispatches(), milliseconds: MILLISECONDS, bytes: BYTES }
}

/// Runs one call of Metal Performance Shaders on the device's own queue and waits for it. A call that the system discarded
/// for another's fault is run again: its result does not depend on the previous content of its output.
#[cfg(mps)]
pub(super) fn run_alone(
    gpu: &Gpu,
    arena: &Arena,
    op: &'static str,
    call: &dyn MpsCall,
    buffers: &[Raw],
) -> Result<()> {
    arena.reserve(gpu, 16)?;
    let mut state = arena.lock();
    let arena = state.memory();
    let memory = Memory { arena: &arena, allocations: buffers };
    for attempt in 0.. {
        state.runs += 1;
        let run = state.runs;
        let mut commands = Commands::new(gpu, memory, budget(gpu), &mut state.submissions);
        commands.without_encoder(Load::default(), |target, memory| call.encode(target, memory))?;
        let Err(failed) = commands.finish(run, "metal-candle")? else { break };
        if failed.fault != DeviceFault::Discarded || attempt >= RETRIES {
            return Err(failed.into_error(op.to_owned()));
        }
    }
    Ok(())
}

struct Replay {
    gpu: Arc<Gpu>,
    arena: Arena,
    items: Vec<Item>,
    costs: Vec<profile::StepCost>,
    checks: Vec<IndexCheck>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    budget: Mutex<CommandBufferBudget>,
    /// The Metal buffer of each allocation.
    buffers: Buffers,
    _allocations: Allocations,
    /// Keeps the buffers of unread parameters.
    _parameters: Vec<Parameter>,
}

impl Replay {
    fn budget(&self) -> CommandBufferBudget {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the names of the operations of a failed command buffer.
    fn names(&self, failed: &FailedSubmission) -> String {
        let mut names: Vec<&str> = self.items[failed.first..failed.end].iter().map(|item| item.op).collect();
        names.dedup();
        let more = names.len().saturating_sub(6);
        names.truncate(6);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!(
            "{}{rest} (dispatches {}..{} of {})",
            names.join(", "),
            failed.first,
            failed.end,
            self.items.len()
        )
    }

    /// Returns true if the run may be repeated from its inputs: no command updates a state in place.
    fn repeatable(&self, failed: &FailedSubmission) -> bool {
        let passing = matches!(failed.fault, DeviceFault::Timeout | DeviceFault::Discarded);
        passing && !self.items.iter().any(|item| item.accumulates)
    }
}

impl Executable for Replay {
    fn launches(&self) -> usize {
        self.items.len()
    }

    fn run(&self, io: &mut dyn Io) -> Result<()> {
        for check in &self.checks {
            check.before(io)?;
        }
        autoreleasepool(|_| {
            let mut state = self.arena.lock();
            let arena = state.memory();
            let memory = Memory { arena: &arena, allocations: self.buffers.raw() };
            let at = |tensor: &Tensor| {
                let (buffer, offset) = memory.resolve(tensor.first());
                // SAFETY: the planner's and the parameters' offsets are within their buffers, which are shared.
                unsafe { buffer.contents().as_ptr().cast::<u8>().add(offset) }
            };
            for attempt in 0.. {
                for (index, input) in self.inputs.iter().enumerate() {
                    let bytes = io.input(index);
                    // SAFETY: the planner gave the input these bytes of the arena, and the lock is held.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at(input), bytes.len()) };
                }
                if self.items.is_empty() {
                    break;
                }
                state.runs += 1;
                let (run, budget) = (state.runs, self.budget());
                let profiled = profile::run();
                let alone = profiled.as_ref().is_some_and(profile::Run::alone);
                let limit = if alone { CommandBufferBudget { dispatches: 1, ..budget } } else { budget };
                let mut commands = Commands::new(&self.gpu, memory, limit, &mut state.submissions);
                for item in &self.items {
                    item.encode(&mut commands)?;
                }
                let Err(failed) = commands.finish(run, "metal-candle")? else {
                    if let Some(times) = profiled {
                        times.finish_gpu(&self.costs, &state.submissions.times(self.items.len()));
                    }
                    break;
                };
                if failed.fault == DeviceFault::Timeout {
                    // Also if this run cannot be repeated: the next one must end in time.
                    *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = budget.halved();
                }
                if attempt >= RETRIES || !self.repeatable(&failed) {
                    let what = self.names(&failed);
                    return Err(failed.into_error(what));
                }
                tracing::warn!(attempt, fault = %failed.fault, "the system stopped a command buffer; the run is repeated");
            }
            for check in &self.checks {
                check.after(first_word)?;
            }
            for (index, output) in self.outputs.iter().enumerate() {
                let bytes = output.elements() * output.dtype.size();
                // SAFETY: the output is contiguous, and the lock is held.
                io.output(index, unsafe { std::slice::from_raw_parts(at(output), bytes) });
            }
            Ok(())
        })
    }
}
