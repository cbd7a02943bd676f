//! From a plan to kernel calls: every step becomes a closure that knows its addresses, sizes and steps.

use std::sync::{Arc, Mutex, PoisonError};

use super::memory::{Arena, CpuBuffer};
use super::number::Number;
use super::pool::Pool;
use super::{
    accumulate, adamw, attention, attention_grad, cross_entropy, dropout, elementwise, embedding, kv_write,
    layer_norm, layout, lora, matmul, quant_matmul, reduce, rms_norm, rope, sample, silu_mul, softmax, top_k,
};
use crate::backend::{Executable, Io, profile};
use crate::graph::{Operand, Place, Plan, Step};
use crate::ops::Op;
use crate::tensor::{DType, Layout, Parameter, TensorSpec};
use crate::{Error, Result};

/// Evaluates an expression for the Rust type of a float dtype.
macro_rules! real {
    ($dtype:expr, |$T:ident| $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::tensor::DType::U32 => unreachable!("shape rules refuse integers here"),
        }
    };
}
pub(super) use real;

/// What a kernel call needs when it runs.
pub(super) struct Run<'a> {
    pub(super) pool: &'a Pool,
    arena: *mut u8,
    /// The first bytes of the plan's inputs, then of its outputs.
    given: &'a [*mut u8],
}

/// One step, ready to run.
pub(super) type Call = Box<dyn Fn(&Run<'_>) -> Result<()> + Send + Sync>;

/// Where something is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    /// At a byte of the arena.
    Arena(usize),
    /// In a parameter's buffer, which the executable keeps alive.
    Fixed(*mut u8),
    /// In memory of the caller's: the number of an input, or behind them of an output.
    Given(usize),
}

// SAFETY: an address is used only by the calls of the executable that owns what it points to, under the arena's lock.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Run<'_> {
    /// # Safety
    /// The address belongs to the plan that runs.
    pub(super) unsafe fn at<T>(&self, address: Address) -> *mut T {
        match address {
            // SAFETY: the planner's offsets lie within the arena.
            Address::Arena(offset) => unsafe { self.arena.add(offset).cast() },
            Address::Fixed(pointer) => pointer.cast(),
            Address::Given(index) => self.given[index].cast(),
        }
    }
}

/// A tensor of a step.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) address: Address,
    pub(super) dtype: DType,
    pub(super) layout: Layout,
}

impl Tensor {
    /// Its first element.
    ///
    /// # Safety
    /// The tensor belongs to the plan that runs, and T is its dtype or bytes.
    pub(super) unsafe fn at<T>(&self, run: &Run<'_>) -> *mut T {
        // SAFETY: the layout's first element lies within its buffer.
        unsafe { run.at::<u8>(self.address).add(self.layout.offset * self.dtype.size()).cast() }
    }

    pub(super) fn rows(&self) -> usize {
        self.layout.shape.rows()
    }

    /// The length of the last axis.
    pub(super) fn last(&self) -> usize {
        self.layout.shape.last()
    }

    pub(super) fn elements(&self) -> usize {
        self.layout.shape.elements()
    }

    /// The step between rows of the last axis; operations that ask for it accept only such layouts.
    pub(super) fn row_stride(&self) -> usize {
        self.layout.row_stride().expect("the operation accepts row-strided layouts only")
    }
}

/// Bytes of scratch for [`vector_f32`].
pub(super) fn vector_scratch(operand: &Operand) -> usize {
    if operand.dtype == DType::F32 { 0 } else { (4 * operand.layout.shape.elements()).next_multiple_of(64) }
}

/// A contiguous vector in f32: where it is, or converted into the scratch.
///
/// # Safety
/// The tensor belongs to the plan that runs; `scratch` is valid for [`vector_scratch`] bytes.
pub(super) unsafe fn vector_f32(vector: &Tensor, cx: &Run<'_>, scratch: *mut f32) -> *const f32 {
    if vector.dtype == DType::F32 {
        // SAFETY: as the caller promises.
        return unsafe { vector.at(cx) };
    }
    real!(vector.dtype, |T| {
        for i in 0..vector.elements() {
            // SAFETY: as the caller promises.
            unsafe { scratch.add(i).write(vector.at::<T>(cx).add(i).read().get()) };
        }
    });
    scratch
}

/// A step with its tensors, for whoever compiles it.
pub(super) struct Site<'a> {
    pub(super) step: &'a Step,
    pub(super) inputs: Vec<Tensor>,
    outputs: Vec<Option<Tensor>>,
    pub(super) scratch: Address,
    pub(super) threads: usize,
}

impl Site<'_> {
    /// An output, if anything reads it.
    pub(super) fn output(&self, index: usize) -> Option<Tensor> {
        self.outputs[index].clone()
    }

    /// That the operation has no kernel for a dtype.
    pub(super) fn unsupported(&self, dtype: DType, advice: &str) -> Error {
        let device = "cpu".to_owned();
        Error::Unsupported { op: self.step.op.name(), dtype, device, advice: advice.to_owned() }
    }

    /// Refuses a tensor of another dtype than `dtype`.
    pub(super) fn expect(&self, tensor: &Tensor, dtype: DType) -> Result<()> {
        if tensor.dtype == dtype {
            return Ok(());
        }
        Err(self.unsupported(tensor.dtype, &format!("cast it to {dtype}, as the other inputs")))
    }
}

/// Working memory that a step wants, in bytes.
pub(super) fn scratch(pool: &Pool, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
    let threads = pool.threads();
    match op {
        Op::MatMul(op) => matmul::scratch(op, inputs, &outputs[0], threads),
        Op::Lora(op) => lora::scratch(op, inputs, outputs, threads),
        Op::LoraGrad(op) => lora::grad_scratch(op, inputs, outputs, threads),
        Op::CrossEntropy(op) => cross_entropy::scratch(op, inputs, threads),
        Op::Attention(op) => attention::scratch(op, inputs, threads),
        Op::AttentionGrad(_) => attention_grad::scratch(inputs, threads),
        Op::RmsNorm(_) => rms_norm::scratch(inputs),
        Op::RmsNormGrad(_) => rms_norm::grad_scratch(inputs),
        Op::LayerNorm(_) => layer_norm::scratch(inputs),
        Op::LayerNormGrad(_) => layer_norm::grad_scratch(inputs),
        Op::GlobalNorm(_) => reduce::norm_scratch(inputs),
        _ => 0,
    }
}

fn compile_step(site: &Site<'_>) -> Result<Call> {
    match &site.step.op {
        Op::Accumulate(_) => accumulate::compile(site),
        Op::AdamW(op) => adamw::compile(op, site),
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
        Op::GlobalNorm(_) => reduce::compile_norm(site),
        Op::KvWrite(_) => kv_write::compile(site),
        Op::LayerNorm(op) => layer_norm::compile(op, site),
        Op::LayerNormGrad(op) => layer_norm::compile_grad(op, site),
        Op::LogSoftmax(op) => softmax::compile(op.axis, true, site),
        Op::LogSoftmaxGrad(op) => softmax::compile_grad(op.axis, true, site),
        Op::Lora(op) => lora::compile(op, site),
        Op::LoraGrad(op) => lora::compile_grad(op, site),
        Op::MatMul(op) => matmul::compile(op, site),
        Op::QuantMatMul(op) => quant_matmul::compile(op, false, site),
        Op::QuantMatMulGrad(op) => quant_matmul::compile(&op.of, true, site),
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

/// Turns a plan into kernel calls.
pub(super) fn compile(pool: &Arc<Pool>, arena: &Arena, plan: &Plan) -> Result<Box<dyn Executable>> {
    let mut parameters = Vec::with_capacity(plan.parameters.len());
    for parameter in &plan.parameters {
        let (buffer, offset) = parameter.location();
        let Some(buffer) = buffer.as_any().downcast_ref::<CpuBuffer>() else {
            return Err(Error::invalid(parameter.name(), "lives on another device than the cpu"));
        };
        // SAFETY: the parameter lies within its buffer.
        parameters.push((unsafe { buffer.start().add(offset) }, buffer.writable()));
    }
    let tensor = |operand: &Operand| Tensor {
        address: match operand.place {
            Place::Arena(offset) => Address::Arena(offset),
            Place::Parameter(index) => Address::Fixed(parameters[index].0),
            Place::Input(index) => Address::Given(index),
            Place::Output(index) => Address::Given(plan.inputs.len() + index),
        },
        dtype: operand.dtype,
        layout: operand.layout.clone(),
    };
    let mut calls = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        for output in step.outputs.iter().flatten() {
            if let Place::Parameter(index) = output.place
                && !parameters[index].1
            {
                let message = format!("is updated by {}, but is frozen host memory", step.op.name());
                return Err(Error::invalid(plan.parameters[index].name(), message));
            }
        }
        calls.push(compile_step(&Site {
            step,
            inputs: step.inputs.iter().map(tensor).collect(),
            outputs: step.outputs.iter().map(|output| output.as_ref().map(tensor)).collect(),
            scratch: Address::Arena(step.scratch.0),
            threads: pool.threads(),
        })?);
    }
    // Two outputs of one value share a place, and the second is copied from the first.
    let direct = |index: usize, output: &Operand| output.place == Place::Output(index);
    let outputs = plan.outputs.iter().enumerate();
    let outputs = outputs.map(|(index, output)| (!direct(index, output)).then(|| tensor(output)));
    Ok(Box::new(Calls {
        calls,
        costs: profile::costs(plan),
        inputs: plan.inputs.len(),
        outputs: outputs.collect(),
        given: Mutex::new(Given(Vec::with_capacity(plan.inputs.len() + plan.outputs.len()))),
        arena_bytes: plan.arena_bytes,
        pool: Arc::clone(pool),
        arena: arena.clone(),
        _parameters: plan.parameters.clone(),
    }))
}

struct Calls {
    calls: Vec<Call>,
    costs: Vec<profile::StepCost>,
    inputs: usize,
    /// Those that are not written in place.
    outputs: Vec<Option<Tensor>>,
    given: Mutex<Given>,
    arena_bytes: usize,
    pool: Arc<Pool>,
    arena: Arena,
    /// Keeps the buffers that calls point into.
    _parameters: Vec<Parameter>,
}

/// Memory of the caller's, kept between runs for its capacity only.
struct Given(Vec<*mut u8>);

// SAFETY: the pointers are used within the run that collected them only.
unsafe impl Send for Given {}

impl Executable for Calls {
    fn launches(&self) -> usize {
        self.calls.len()
    }

    fn run(&self, io: &mut dyn Io) -> Result<()> {
        let mut memory = self.arena.lock();
        assert!(memory.bytes() >= self.arena_bytes, "the arena never shrinks");
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.0.clear();
        given.0.extend((0..self.inputs).map(|index| io.input(index).as_ptr().cast_mut()));
        given.0.extend((0..self.outputs.len()).map(|index| io.output_memory(index)));
        let run = Run { pool: &self.pool, arena: memory.start(), given: &given.0 };
        let awake = self.pool.awake();
        match profile::run() {
            None => self.calls.iter().try_for_each(|call| call(&run))?,
            Some(mut times) => {
                times.mark();
                for call in &self.calls {
                    call(&run)?;
                    times.lap();
                }
                times.finish(&self.costs);
            }
        }
        drop(awake);
        for (index, output) in self.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            let bytes = output.elements() * output.dtype.size();
            // SAFETY: the output is contiguous, and the lock is held.
            io.output(index, unsafe { std::slice::from_raw_parts(output.at(&run), bytes) });
        }
        Ok(())
    }
}
