//! From a plan to launches with barriers between them, and their replay.

use std::sync::{Arc, Mutex, PoisonError};

use objc2::rc::autoreleasepool;
use objc2_metal::MTLBuffer;

use super::buffer::{Arena, MetalBuffer, Raw};
use super::commands::{Bound, Commands, Failed, Idle, Load};
use super::device::Gpu;
use super::fault::failed;
use super::launch::{Address, Launch, Span, Touches};
use super::site::{IndexCheck, Site, Tensor};
use super::{
    attention, attention_grad, cross_entropy, dropout, elementwise, embedding, kv_write, layer_norm, layout,
    lora, many, matmul, quant_matmul, reduce, rms_norm, rope, sample, silu_mul, softmax, top_k,
};
use crate::backend::metal_chip::Chip;
use crate::backend::{Executable, Io, profile};
use crate::error::DeviceFault;
use crate::graph::{Operand, Place, Plan, Step};
use crate::ops::Op;
use crate::tensor::{Parameter, TensorSpec};
use crate::{Error, Result};

/// How often a run is tried again with smaller command buffers after the system stopped it for taking too long.
const RETRIES: usize = 6;

/// A call that opens its own encoders.
pub(in crate::backend) trait Shaders: Send + Sync {
    /// Encodes it into a command buffer without an open encoder.
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()>;
}

/// Estimated GPU time of a command buffer: far below the display's watchdog, since estimates err.
const MILLISECONDS: f64 = 50.0;
/// Bytes that a command buffer may touch, each dispatch counted for itself.
const BYTES: u64 = 512 << 20;

/// What is encoded.
enum Work {
    Launch(Launch),
    Shaders(Box<dyn Shaders>),
}

/// One piece of work of a plan.
pub(in crate::backend) struct Item {
    work: Work,
    touches: Touches,
    op: &'static str,
    load: Load,
    /// Doing it twice gives another result than doing it once.
    once: bool,
}

impl Item {
    /// Whether it writes any of these bytes.
    pub(super) fn writes(&self, span: &Span) -> bool {
        self.touches.writes.iter().any(|other| other.meets(span))
    }

    pub(super) fn launch(launch: Launch, touches: Touches) -> Self {
        Self { op: launch.op, work: Work::Launch(launch), touches, load: Load::default(), once: false }
    }

    pub(in crate::backend) fn shaders(op: &'static str, shaders: Box<dyn Shaders>, touches: Touches) -> Self {
        Self { op, work: Work::Shaders(shaders), touches, load: Load::default(), once: false }
    }
}

/// Working memory that a step wants, in bytes.
pub(super) fn scratch(gpu: &Gpu, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
    let _ = outputs;
    match op {
        Op::Attention(op) => attention::scratch(gpu, op, inputs),
        Op::AttentionGrad(_) => attention_grad::scratch(inputs),
        Op::CrossEntropy(op) => cross_entropy::scratch(op, inputs),
        Op::GlobalNorm(_) => many::norm_scratch(inputs),
        Op::LayerNormGrad(_) => layer_norm::grad_scratch(inputs),
        Op::Lora(op) => lora::scratch(op, inputs),
        Op::LoraGrad(op) => lora::grad_scratch(op, inputs),
        Op::QuantMatMul(op) => quant_matmul::scratch(op, false, inputs),
        Op::QuantMatMulGrad(op) => quant_matmul::scratch(&op.of, true, inputs),
        Op::RmsNormGrad(_) => rms_norm::grad_scratch(inputs),
        _ => 0,
    }
}

/// Adds the launches of one step.
fn compile_step(site: &mut Site<'_>) -> Result<()> {
    match &site.step.op {
        Op::Accumulate(_) => many::accumulate(site),
        Op::AdamW(op) => many::adamw(op, site),
        Op::Affine(_) | Op::Binary(_) | Op::Fill(_) | Op::Scale(_) | Op::Unary(_) | Op::UnaryGrad(_) => {
            elementwise::compile(site)
        }
        Op::ArgMax(_) => top_k::compile_arg_max(site),
        Op::Attention(op) => attention::compile(op, site),
        Op::AttentionGrad(op) => attention_grad::compile(op, site),
        Op::Cast(_) | Op::Copy(_) => layout::compile_copy(site),
        Op::Concat(op) => layout::compile_concat(op, site),
        Op::CrossEntropy(op) => cross_entropy::compile(op, site),
        Op::Dropout(op) => dropout::compile(op, site),
        Op::Embedding(_) => embedding::compile(site),
        Op::EmbeddingGrad(_) => embedding::compile_grad(site),
        Op::GlobalNorm(_) => many::global_norm(site),
        Op::KvWrite(_) => kv_write::compile(site),
        Op::LayerNorm(op) => layer_norm::compile(op, site),
        Op::LayerNormGrad(op) => layer_norm::compile_grad(op, site),
        Op::LogSoftmax(op) => softmax::compile(op.axis, true, site),
        Op::LogSoftmaxGrad(op) => softmax::compile_grad(op.axis, true, site),
        Op::Lora(op) => lora::compile(op, site),
        Op::LoraGrad(op) => lora::compile_grad(op, site),
        Op::MatMul(op) => matmul::compile(op, site),
        Op::QuantMatMul(op) => quant_matmul::compile(op, site),
        Op::QuantMatMulGrad(op) => quant_matmul::compile_grad(&op.of, site),
        Op::Reduce(op) => reduce::compile(op, site),
        Op::RmsNorm(op) => rms_norm::compile(op, site),
        Op::RmsNormGrad(op) => rms_norm::compile_grad(op, site),
        Op::Rope(op) => rope::compile(op, site),
        Op::Sample(op) => sample::compile(op, site),
        Op::SiluMul(_) => silu_mul::compile(site),
        Op::SiluMulGrad(_) => silu_mul::compile_grad(site),
        Op::Softmax(op) => softmax::compile(op.axis, false, site),
        Op::SoftmaxGrad(op) => softmax::compile_grad(op.axis, false, site),
        Op::TopK(op) => top_k::compile(op, site),
        Op::Unslice(op) => layout::compile_unslice(op, site),
        Op::Broadcast(_) | Op::Permute(_) | Op::Reshape(_) | Op::Slice(_) => {
            Err(Error::invalid(site.step.op.name(), "is a view, which a plan has no step for"))
        }
    }
}

/// A plan as work in order, without barriers.
struct Lowered {
    items: Vec<Item>,
    costs: Vec<profile::StepCost>,
    checks: Vec<IndexCheck>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

fn lower(gpu: &Arc<Gpu>, arena: &Arena, plan: &Plan) -> Result<Lowered> {
    let mut parameters = Vec::with_capacity(plan.parameters.len());
    for parameter in &plan.parameters {
        let (buffer, offset) = parameter.location();
        let Some(buffer) = buffer.as_any().downcast_ref::<MetalBuffer>() else {
            return Err(Error::invalid(parameter.name(), "lives on another device than metal"));
        };
        let (raw, start) = buffer.location();
        parameters.push((Address::Fixed(raw.clone(), start + offset), buffer.writable()));
    }
    let tensor = |operand: &Operand| Tensor {
        address: match operand.place {
            Place::Arena(offset) => Address::Arena(offset),
            Place::Parameter(index) => parameters[index].0.clone(),
            Place::Input(index) => Address::Given(index, 0),
            Place::Output(index) => Address::Given(plan.inputs.len() + index, 0),
        },
        dtype: operand.dtype,
        layout: operand.layout.clone(),
    };
    let mut items = Vec::with_capacity(plan.steps.len());
    let given: Vec<Tensor> = plan.inputs.iter().map(|input| tensor(&input.operand)).collect();
    let mut checks = Vec::new();
    for step in &plan.steps {
        check_sizes(step)?;
        for output in step.outputs.iter().flatten() {
            if let Place::Parameter(index) = output.place
                && !parameters[index].1
            {
                let message = format!("is updated by {}, but is frozen host memory", step.op.name());
                return Err(Error::invalid(plan.parameters[index].name(), message));
            }
        }
    }
    let mut index = 0;
    let mut costs = Vec::new();
    while let Some(step) = plan.steps.get(index) {
        let (first, from) = (items.len(), index);
        let mut site = Site {
            gpu,
            arena,
            step,
            inputs: step.inputs.iter().map(tensor).collect(),
            outputs: step.outputs.iter().map(|output| output.as_ref().map(tensor)).collect(),
            scratch: Address::Arena(step.scratch.0),
            rest: &plan.steps[index + 1..],
            done: 0,
            tensor: &tensor,
            given: &given,
            checks: &mut checks,
            items: &mut items,
        };
        compile_step(&mut site)?;
        index += 1 + site.done;
        let added = &mut items[first..];
        check_threads(added)?;
        let load = load(gpu.chip, step, added);
        let once =
            !step.op.contract().updates(step.inputs.len()).is_empty() && !matches!(step.op, Op::KvWrite(_));
        for item in added.iter_mut() {
            (item.load, item.once) = (load, once);
        }
        costs.extend(shares(&plan.steps[from..index], added));
    }
    let outputs = plan.outputs.iter().map(tensor).collect();
    Ok(Lowered { items, costs, checks, outputs, inputs: given })
}

/// A plan with direct inputs and outputs as launches for another's encoder, each with what it touches. Indices are not
/// checked.
pub(super) fn launches(gpu: &Arc<Gpu>, arena: &Arena, plan: &Plan) -> Result<Vec<(Launch, Touches)>> {
    let launch = |item: Item| match item.work {
        Work::Launch(launch) => Ok((launch, item.touches)),
        Work::Shaders(_) => Err(Error::invalid(item.op, "cannot be encoded into another's encoder")),
    };
    lower(gpu, arena, plan)?.items.into_iter().map(launch).collect()
}

/// Turns a plan into launches.
pub(super) fn compile(gpu: &Arc<Gpu>, arena: &Arena, plan: &Plan) -> Result<Box<dyn Executable>> {
    let Lowered { mut items, costs, checks, inputs, outputs } = lower(gpu, arena, plan)?;
    place_barriers(&mut items);
    Ok(Box::new(Replay {
        gpu: Arc::clone(gpu),
        arena: arena.clone(),
        items,
        costs,
        checks,
        inputs,
        outputs,
        bound: Mutex::new(Bound {
            dispatches: gpu.chip.dispatches(),
            milliseconds: MILLISECONDS,
            bytes: BYTES,
        }),
        _parameters: plan.parameters.clone(),
    }))
}

/// Kernels count in 32 bits.
fn check_sizes(step: &Step) -> Result<()> {
    for operand in step.inputs.iter().chain(step.outputs.iter().flatten()) {
        let dims = operand.layout.shape.dims();
        let last: usize = dims.iter().zip(&operand.layout.strides).map(|(dim, stride)| dim * stride).sum();
        if u32::try_from(last.max(operand.layout.shape.elements())).is_err() {
            let message = "has 2^32 elements or more, which Metal kernels do not count; use smaller batches";
            return Err(Error::shape(step.op.name(), message, &[&operand.layout.shape]));
        }
    }
    Ok(())
}

/// The steps' costs, a launch an equal share, for a profile.
fn shares(steps: &[Step], launches: &[Item]) -> Vec<profile::StepCost> {
    let count = launches.len().max(1) as u64;
    let sum = |of: fn(crate::ops::Cost) -> u64| steps.iter().map(|step| of(step.cost())).sum::<u64>() / count;
    let cost =
        crate::ops::Cost { flops: sum(|c| c.flops), read: sum(|c| c.read), written: sum(|c| c.written) };
    launches.iter().map(|launch| profile::StepCost { op: launch.op, cost }).collect()
}

/// Refuses launches whose threadgroups are larger than their pipelines allow: the GPU would skip them without an error.
fn check_threads(items: &[Item]) -> Result<()> {
    for item in items {
        let Work::Launch(launch) = &item.work else { continue };
        let (threads, most) = (launch.threads.iter().product::<usize>(), launch.pipeline.most_threads());
        if threads > most {
            let what = format!("kernel '{}' of {}", launch.pipeline.name(), launch.op);
            let message = format!("it needs {threads} threads per threadgroup, and the GPU allows {most}");
            return Err(failed(what, DeviceFault::Kernel, message));
        }
    }
    Ok(())
}

/// Estimated cost of each of a step's launches.
fn load(chip: Chip, step: &Step, launches: &[Item]) -> Load {
    let cost = step.cost();
    let (bytes, share) = (cost.read + cost.written, launches.len().max(1) as u64);
    Load { milliseconds: milliseconds(chip, step, launches) / share as f64, bytes: bytes / share }
}

/// Estimated milliseconds of a step on the GPU. Attention's do not depend on its launches.
fn milliseconds(chip: Chip, step: &Step, launches: &[Item]) -> f64 {
    let cost = step.cost();
    1e3 * chip.seconds_at(cost.flops, cost.read + cost.written, efficiency(step, launches))
}

/// Share of the chip's peak that a step's kernels are expected to reach. Command buffers are kept short by this
/// estimate, so it is the low end of what instruction counts of the kernels allow.
fn efficiency(step: &Step, launches: &[Item]) -> f64 {
    let general =
        |item: &Item| matches!(&item.work, Work::Launch(launch) if matmul::is_general(&launch.pipeline));
    let dtype = |input: usize| step.inputs.get(input).map(|operand| operand.dtype);
    let weight = match &step.op {
        Op::MatMul(_) => Some(1),
        Op::Lora(op) => Some(1 + usize::from(op.separate)),
        Op::LoraGrad(_) => Some(3),
        Op::CrossEntropy(op) => op.head.then_some(1),
        _ => None,
    };
    match &step.op {
        // Tiles without matrix units, with an address computed for each loaded element.
        Op::Attention(_) => 0.04,
        Op::AttentionGrad(_) => 0.03,
        // One load from threadgroup memory for each multiplication: products that MLX's kernel does not take.
        _ if launches.iter().any(general) => 0.1,
        // Few rows of two dtypes.
        _ if weight.is_some_and(|weight| dtype(weight) != dtype(0)) => 0.1,
        // Seven integer operations to decode each weight.
        Op::QuantMatMul(_) | Op::QuantMatMulGrad(_) => 0.1,
        _ => crate::backend::metal_chip::GOOD_KERNEL,
    }
}

/// Number of launches over which the blocks of an attention step are spread, so that none of them alone exceeds a
/// quarter of what a command buffer may take: halving command buffers cannot split a launch.
pub(super) fn attention_launches(gpu: &Gpu, step: &Step, blocks: usize) -> usize {
    // The estimate counts visible keys, and the last queries of a causal step see twice as many as the average one.
    let causal = match &step.op {
        Op::Attention(op) => op.causal,
        Op::AttentionGrad(op) => op.causal,
        _ => false,
    };
    let skew = if causal { 2.0 } else { 1.0 };
    let limit = gpu.choices.launch_milliseconds.unwrap_or(MILLISECONDS / 4.0);
    let wanted = skew * milliseconds(gpu.chip, step, &[]) / limit;
    (wanted.ceil() as usize).clamp(1, blocks.max(1))
}

/// A launch waits for those since the last barrier that touch the same bytes. Calls that open their own encoders order
/// everything.
fn place_barriers(items: &mut [Item]) {
    let mut since = Touches::default();
    for item in items {
        match &mut item.work {
            Work::Launch(launch) => {
                launch.barrier = since.conflicts(&item.touches);
                if launch.barrier {
                    since = Touches::default();
                }
                since.extend(&item.touches);
            }
            Work::Shaders(_) => since = Touches::default(),
        }
    }
}

/// Runs one call on the device's own queue and waits for it. A call that the system discarded for another's fault is run
/// again: the result of a call does not depend on what its output held before.
pub(super) fn run_alone(gpu: &Gpu, arena: &Arena, item: &Item) -> Result<()> {
    arena.reserve(gpu, 16)?;
    let mut state = arena.lock();
    let memory = state.memory();
    let bound = Bound { dispatches: gpu.chip.dispatches(), milliseconds: MILLISECONDS, bytes: BYTES };
    for attempt in 0.. {
        state.runs += 1;
        let run = state.runs;
        let mut commands = Commands::new(gpu, &memory, bound, &mut state.committed);
        match &item.work {
            Work::Launch(launch) => commands.launch(launch, item.load)?,
            Work::Shaders(call) => commands.idle(item.load, |idle, arena| call.encode(idle, arena))?,
        }
        let Err(failed) = commands.finish(run, "metal-candle")? else { break };
        if failed.fault != DeviceFault::Discarded || attempt >= RETRIES {
            return Err(failed.into_error(item.op.to_owned()));
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
    bound: Mutex<Bound>,
    /// Keeps the buffers that launches point into.
    _parameters: Vec<Parameter>,
}

impl Replay {
    fn bound(&self) -> Bound {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operations of a failed command buffer.
    fn names(&self, failed: &Failed) -> String {
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

    /// Whether the run may be done again from its inputs: nothing that adds to a state can have run.
    fn repeatable(&self, failed: &Failed) -> bool {
        let passing = matches!(failed.fault, DeviceFault::Timeout | DeviceFault::Discarded);
        passing && !self.items.iter().any(|item| item.once)
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
            let memory = state.memory();
            let start: *mut u8 = memory.contents().as_ptr().cast();
            let at = |tensor: &Tensor| match tensor.first() {
                // SAFETY: the planner's offsets lie within the arena.
                Address::Arena(offset) => unsafe { start.add(offset) },
                // SAFETY: the parameter lies within its buffer, which is shared.
                Address::Fixed(raw, offset) => unsafe { raw.contents().as_ptr().cast::<u8>().add(offset) },
                Address::Given(..) => unreachable!("plans of this backend have no direct inputs and outputs"),
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
                let (run, bound) = (state.runs, self.bound());
                let profiled = profile::run();
                let alone = profiled.as_ref().is_some_and(profile::Run::alone);
                let limit = if alone { Bound { dispatches: 1, ..bound } } else { bound };
                let mut commands = Commands::new(&self.gpu, &memory, limit, &mut state.committed);
                for item in &self.items {
                    match &item.work {
                        Work::Launch(launch) => commands.launch(launch, item.load)?,
                        Work::Shaders(call) => {
                            commands.idle(item.load, |idle, arena| call.encode(idle, arena))?;
                        }
                    }
                }
                let Err(failed) = commands.finish(run, "metal-candle")? else {
                    if let Some(times) = profiled {
                        times.finish_gpu(&self.costs, &state.committed.times(self.items.len()));
                    }
                    break;
                };
                if failed.fault == DeviceFault::Timeout {
                    // Also where this run cannot be done again: the next one is to end in time.
                    *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = bound.halved();
                }
                if attempt >= RETRIES || !self.repeatable(&failed) {
                    let what = self.names(&failed);
                    return Err(failed.into_error(what));
                }
                tracing::warn!(attempt, fault = %failed.fault, "the system stopped a command buffer; the run is repeated");
            }
            for check in &self.checks {
                check.after()?;
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

#[cfg(all(test, softmetal))]
mod tests {
    use super::*;
    use crate::backend::{Device, select::Preference};
    use crate::graph::{Graph, LazyTensor};
    use crate::ops::{Attention, MatMul, Real};
    use crate::tensor::DType;

    /// Milliseconds of the launches of a plan for an M1, which the software device's GPU counts as.
    fn estimate(y: impl FnOnce(&Graph) -> LazyTensor) -> f64 {
        let device = Device::metal_with(Preference::Metal).unwrap();
        let graph = Graph::new();
        let y = y(&graph);
        let program = device.compile(&graph, &[y], &[]).unwrap();
        let gpu = Arc::new(Gpu::new(Preference::Metal).unwrap());
        assert_eq!(gpu.chip, Chip::of("Apple M1"));
        let arena = Arena::new(&gpu);
        arena.reserve(&gpu, program.plan().arena_bytes).unwrap();
        lower(&gpu, &arena, program.plan()).unwrap().items.iter().map(|item| item.load.milliseconds).sum()
    }

    fn input(graph: &Graph, name: &str, dims: &[usize], dtype: DType) -> LazyTensor {
        graph.input(name, TensorSpec { shape: dims.to_vec().into(), dtype })
    }

    /// 2·512³ operations at 2.6 TFLOP/s take 0.103 ms at the peak.
    #[test]
    fn products_of_two_dtypes_are_estimated_at_what_their_kernels_reach() {
        let product = |dtype| {
            estimate(|graph| {
                let x = input(graph, "x", &[512, 512], DType::F32);
                x.linear(&input(graph, "w", &[512, 512], dtype)).unwrap()
            })
        };
        let (alike, mixed) = (product(DType::F32), product(DType::BF16));
        assert!((alike - 0.129).abs() < 0.001, "{alike}");
        assert!((mixed - 1.032).abs() < 0.001, "{mixed}");
    }

    /// MLX's kernel takes neither a factor without an addend nor an addend below a tile of rows.
    #[test]
    fn products_that_the_general_kernel_computes_are_estimated_at_what_it_reaches() {
        let product = |rows: usize, alpha: f32, addend: bool| {
            estimate(|graph| {
                let x = input(graph, "x", &[rows, 512], DType::F32);
                let w = input(graph, "w", &[512, 512], DType::F32);
                let c = input(graph, "c", &[rows, 512], DType::F32);
                let inputs = if addend { vec![&x, &w, &c] } else { vec![&x, &w] };
                let beta = Real(if addend { 1.0 } else { 0.0 });
                let op = MatMul { alpha: Real(alpha), beta, ..MatMul::new(false, true) };
                graph.record(op, &inputs).unwrap().remove(0)
            })
        };
        for (rows, alpha, addend, expected) in [
            (512, 1.0, false, 0.129),
            (512, 2.0, true, 0.129),
            (512, 2.0, false, 1.032),
            (500, 1.0, false, 0.126),
            (500, 1.0, true, 1.008),
        ] {
            let found = product(rows, alpha, addend);
            assert!((found - expected).abs() < 0.001, "{rows} {alpha} {addend}: {found}");
        }
    }

    /// 4·512·512·4·64 operations are 268 million: 0.129 ms for a good kernel, twenty times that for these.
    #[test]
    fn attention_is_estimated_at_what_its_kernel_reaches() {
        let milliseconds = estimate(|graph| {
            let x = |name| input(graph, name, &[1, 512, 4, 64], DType::F32);
            let op =
                Attention { scale: Real(0.1), causal: false, window: None, cached: false, segmented: false };
            x("q").attention(&x("k"), &x("v"), op, &[]).unwrap()
        });
        assert!((milliseconds - 2.58).abs() < 0.01, "{milliseconds}");
    }
}
