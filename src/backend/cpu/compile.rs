//! Compiles a plan to kernel calls: the table of operations, and the calls in order of the plan's steps.

use std::sync::{Arc, Mutex, PoisonError};

use super::memory::{Arena, CpuBuffer};
use super::op::{Address, Call, OpContext, Run, Tensor};
use super::pool::Pool;
use super::{
    accumulate, adamw, attention, attention_grad, cross_entropy, dropout, elementwise, embedding, kv_write,
    layer_norm, layout, lora, matmul, quant_matmul, reduce, rms_norm, rope, sample, silu_mul, softmax, top_k,
};
use crate::backend::decompose::{self, decompose};
use crate::backend::lowering::{Lower, StepContext, check_updates};
use crate::backend::{Executable, Io, profile};
use crate::graph::{Operand, Place, Plan};
use crate::ops::{
    Accumulate, AdamW, Attention, AttentionGrad, Concat, CrossEntropy, Dropout, Epilogue, GlobalNorm,
    LayerNorm, LayerNormGrad, LogSoftmax, LogSoftmaxGrad, Lora, LoraGrad, MatMul, Op, QuantMatMul,
    QuantMatMulGrad, Reduce, RmsNorm, RmsNormGrad, Rope, Sample, Softmax, SoftmaxGrad, TopK, Unslice,
};
use crate::tensor::{Parameter, TensorSpec};
use crate::{Error, Result};

/// Returns the bytes of scratch memory that a step needs.
pub(super) fn scratch(pool: &Pool, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
    let of_part =
        |op: &Op, inputs: &[Operand], outputs: &[TensorSpec]| scratch_of_part(pool, op, inputs, outputs);
    decompose::scratch(op, inputs, outputs, &of_part).unwrap_or_else(|| of_part(op, inputs, outputs))
}

fn scratch_of_part(pool: &Pool, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
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

/// The table of operations.
impl Lower for OpContext<'_> {
    type Output = Call;

    fn accumulate(&mut self, _: &Accumulate) -> Result<Call> {
        accumulate::compile(self)
    }
    fn adamw(&mut self, op: &AdamW) -> Result<Call> {
        adamw::compile(op, self)
    }
    fn arg_max(&mut self) -> Result<Call> {
        top_k::compile_arg_max(self)
    }
    fn attention(&mut self, op: &Attention) -> Result<Call> {
        attention::compile(op, self)
    }
    fn attention_grad(&mut self, op: &AttentionGrad) -> Result<Call> {
        attention_grad::compile(op, self)
    }
    fn concat(&mut self, op: &Concat) -> Result<Call> {
        layout::compile_concat(op, self)
    }
    fn copy(&mut self) -> Result<Call> {
        layout::compile_copy(self)
    }
    fn cross_entropy(&mut self, op: &CrossEntropy) -> Result<Call> {
        cross_entropy::compile(op, self)
    }
    fn dropout(&mut self, op: &Dropout) -> Result<Call> {
        dropout::compile(op, self)
    }
    fn elementwise(&mut self) -> Result<Call> {
        elementwise::compile(self)
    }
    fn embedding(&mut self) -> Result<Call> {
        embedding::compile(self)
    }
    fn embedding_grad(&mut self) -> Result<Call> {
        embedding::compile_grad(self)
    }
    fn epilogue(&mut self, _: &Epilogue) -> Result<Call> {
        unreachable!("a step with an epilogue was decomposed")
    }
    fn global_norm(&mut self, _: &GlobalNorm) -> Result<Call> {
        reduce::compile_norm(self)
    }
    fn kv_write(&mut self) -> Result<Call> {
        kv_write::compile(self)
    }
    fn layer_norm(&mut self, op: &LayerNorm) -> Result<Call> {
        layer_norm::compile(op, self)
    }
    fn layer_norm_grad(&mut self, op: &LayerNormGrad) -> Result<Call> {
        layer_norm::compile_grad(op, self)
    }
    fn log_softmax(&mut self, op: &LogSoftmax) -> Result<Call> {
        softmax::compile(op.axis, true, self)
    }
    fn log_softmax_grad(&mut self, op: &LogSoftmaxGrad) -> Result<Call> {
        softmax::compile_grad(op.axis, true, self)
    }
    fn lora(&mut self, op: &Lora) -> Result<Call> {
        lora::compile(op, self)
    }
    fn lora_grad(&mut self, op: &LoraGrad) -> Result<Call> {
        lora::compile_grad(op, self)
    }
    fn matmul(&mut self, op: &MatMul) -> Result<Call> {
        matmul::compile(op, self)
    }
    fn quant_matmul(&mut self, op: &QuantMatMul) -> Result<Call> {
        quant_matmul::compile(op, false, self)
    }
    fn quant_matmul_grad(&mut self, op: &QuantMatMulGrad) -> Result<Call> {
        quant_matmul::compile(&op.of, true, self)
    }
    fn reduce(&mut self, op: &Reduce) -> Result<Call> {
        reduce::compile(op, self)
    }
    fn rms_norm(&mut self, op: &RmsNorm) -> Result<Call> {
        rms_norm::compile(op, self)
    }
    fn rms_norm_grad(&mut self, op: &RmsNormGrad) -> Result<Call> {
        rms_norm::compile_grad(op, self)
    }
    fn rope(&mut self, op: &Rope) -> Result<Call> {
        rope::compile(op, self)
    }
    fn rope_kv_write(&mut self) -> Result<Call> {
        unreachable!("a rotation with writes to a cache was decomposed")
    }
    fn sample(&mut self, op: &Sample) -> Result<Call> {
        sample::compile(op, self)
    }
    fn silu_mul(&mut self) -> Result<Call> {
        silu_mul::compile(self)
    }
    fn silu_mul_grad(&mut self) -> Result<Call> {
        silu_mul::compile_grad(self)
    }
    fn softmax(&mut self, op: &Softmax) -> Result<Call> {
        softmax::compile(op.axis, false, self)
    }
    fn softmax_grad(&mut self, op: &SoftmaxGrad) -> Result<Call> {
        softmax::compile_grad(op.axis, false, self)
    }
    fn top_k(&mut self, op: &TopK) -> Result<Call> {
        top_k::compile(op, self)
    }
    fn unslice(&mut self, op: &Unslice) -> Result<Call> {
        layout::compile_unslice(op, self)
    }
}

/// Compiles a plan.
pub(super) fn compile(pool: &Arc<Pool>, arena: &Arena, plan: &Plan) -> Result<Box<dyn Executable>> {
    let mut parameters = Vec::with_capacity(plan.parameters.len());
    for parameter in &plan.parameters {
        let (buffer, offset) = parameter.location();
        let Some(buffer) = buffer.as_any().downcast_ref::<CpuBuffer>() else {
            return Err(Error::invalid(parameter.name(), "is on another device than the cpu"));
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
    check_updates(plan, |parameter| parameters[parameter].1)?;
    let mut calls = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let of_part =
            |op: &Op, inputs: &[Operand], outputs: &[TensorSpec]| scratch_of_part(pool, op, inputs, outputs);
        let parts = decompose(step, &of_part);
        let mut compiled = Vec::new();
        for step in parts.as_deref().unwrap_or(std::slice::from_ref(step)) {
            let base = StepContext {
                device: "cpu",
                step,
                inputs: step.inputs.iter().map(tensor).collect(),
                outputs: step.outputs.iter().map(|output| output.as_ref().map(tensor)).collect(),
                scratch: Address::Arena(step.scratch.0),
            };
            compiled.push(OpContext { base, threads: pool.threads() }.lower(&step.op)?);
        }
        calls.push(match compiled.len() {
            1 => compiled.remove(0),
            _ => Box::new(move |run: &Run<'_>| compiled.iter().try_for_each(|call| call(run))),
        });
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
