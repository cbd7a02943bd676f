//! Lowers a plan to commands: the table of operations, in order of the plan's steps.

use super::address::Address;
use super::command::{Command, Work, place_barriers};
use super::driver::Driver;
use super::op::{Allocations, IndexCheck, OpContext, Target, Tensor, check_sizes};
use super::{
    accumulate, adamw, attention, attention_grad, cost, cross_entropy, dropout, elementwise, embedding,
    epilogue, global_norm, kv_write, layer_norm, layout, lora, matmul, quant_matmul, reduce, rms_norm, rope,
    sample, silu_mul, softmax, top_k,
};
use crate::backend::decompose::{self, decompose};
use crate::backend::lowering::{Lower, StepContext, check_updates};
use crate::backend::profile::StepCost;
use crate::error::DeviceFault;
use crate::graph::{self, Operand, Place, Plan, Step};
use crate::ops::{
    Accumulate, AdamW, Attention, AttentionGrad, Concat, CrossEntropy, Dropout, Epilogue, GlobalNorm,
    LayerNorm, LayerNormGrad, LogSoftmax, LogSoftmaxGrad, Lora, LoraGrad, MatMul, Op, QuantMatMul,
    QuantMatMulGrad, Reduce, RmsNorm, RmsNormGrad, Rope, Sample, Softmax, SoftmaxGrad, TopK, Unslice,
};
use crate::tensor::TensorSpec;
use crate::{Error, Result};

/// What plans for a GPU depend on is the same for all drivers: the shared kernels.
impl<D: Driver> graph::Target for D {
    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
        let of_part = |op: &Op, inputs: &[Operand], _: &[TensorSpec]| scratch_of_part(self, op, inputs);
        decompose::scratch(op, inputs, outputs, &of_part).unwrap_or_else(|| scratch_of_part(self, op, inputs))
    }

    fn supports_epilogue(&self, product: &Op, inputs: &[TensorSpec]) -> bool {
        epilogue::supports(self, product, inputs)
    }

    fn supports_rope_kv_write(&self) -> bool {
        true
    }

    fn fuses(&self) -> bool {
        true
    }
}

fn scratch_of_part(driver: &dyn Driver, op: &Op, inputs: &[Operand]) -> usize {
    match op {
        Op::Attention(op) => attention::scratch(driver, op, inputs),
        Op::AttentionGrad(_) => attention_grad::scratch(inputs),
        Op::CrossEntropy(op) => cross_entropy::scratch(op, inputs),
        Op::GlobalNorm(_) => global_norm::scratch(inputs),
        Op::LayerNormGrad(_) => layer_norm::grad_scratch(inputs),
        Op::Lora(op) => lora::scratch(op, inputs),
        Op::LoraGrad(op) => lora::grad_scratch(op, inputs),
        Op::QuantMatMul(op) => quant_matmul::scratch(op, false, inputs),
        Op::QuantMatMulGrad(op) => quant_matmul::scratch(&op.of, true, inputs),
        Op::RmsNormGrad(_) => rms_norm::grad_scratch(inputs),
        _ => 0,
    }
}

/// The table of operations.
impl Lower for OpContext<'_, '_> {
    type Output = ();

    fn accumulate(&mut self, _: &Accumulate) -> Result<()> {
        accumulate::lower(self)
    }
    fn adamw(&mut self, op: &AdamW) -> Result<()> {
        adamw::lower(op, self)
    }
    fn arg_max(&mut self) -> Result<()> {
        top_k::lower_arg_max(self)
    }
    fn attention(&mut self, op: &Attention) -> Result<()> {
        attention::lower(op, self)
    }
    fn attention_grad(&mut self, op: &AttentionGrad) -> Result<()> {
        attention_grad::lower(op, self)
    }
    fn concat(&mut self, op: &Concat) -> Result<()> {
        layout::lower_concat(op, self)
    }
    fn copy(&mut self) -> Result<()> {
        layout::lower_copy(self)
    }
    fn cross_entropy(&mut self, op: &CrossEntropy) -> Result<()> {
        cross_entropy::lower(op, self)
    }
    fn dropout(&mut self, op: &Dropout) -> Result<()> {
        dropout::lower(op, self)
    }
    fn elementwise(&mut self) -> Result<()> {
        elementwise::lower(self)
    }
    fn embedding(&mut self) -> Result<()> {
        embedding::lower(self)
    }
    fn embedding_grad(&mut self) -> Result<()> {
        embedding::lower_grad(self)
    }
    fn epilogue(&mut self, op: &Epilogue) -> Result<()> {
        epilogue::lower(op, self)
    }
    fn global_norm(&mut self, _: &GlobalNorm) -> Result<()> {
        global_norm::lower(self)
    }
    fn kv_write(&mut self) -> Result<()> {
        kv_write::lower(self)
    }
    fn layer_norm(&mut self, op: &LayerNorm) -> Result<()> {
        layer_norm::lower(op, self)
    }
    fn layer_norm_grad(&mut self, op: &LayerNormGrad) -> Result<()> {
        layer_norm::lower_grad(op, self)
    }
    fn log_softmax(&mut self, op: &LogSoftmax) -> Result<()> {
        softmax::lower(op.axis, true, self)
    }
    fn log_softmax_grad(&mut self, op: &LogSoftmaxGrad) -> Result<()> {
        softmax::lower_grad(op.axis, true, self)
    }
    fn lora(&mut self, op: &Lora) -> Result<()> {
        lora::lower(op, self)
    }
    fn lora_grad(&mut self, op: &LoraGrad) -> Result<()> {
        lora::lower_grad(op, self)
    }
    fn matmul(&mut self, op: &MatMul) -> Result<()> {
        matmul::lower(op, self)
    }
    fn quant_matmul(&mut self, op: &QuantMatMul) -> Result<()> {
        quant_matmul::lower(op, self)
    }
    fn quant_matmul_grad(&mut self, op: &QuantMatMulGrad) -> Result<()> {
        quant_matmul::lower_grad(&op.of, self)
    }
    fn reduce(&mut self, op: &Reduce) -> Result<()> {
        reduce::lower(op, self)
    }
    fn rms_norm(&mut self, op: &RmsNorm) -> Result<()> {
        rms_norm::lower(op, self)
    }
    fn rms_norm_grad(&mut self, op: &RmsNormGrad) -> Result<()> {
        rms_norm::lower_grad(op, self)
    }
    fn rope(&mut self, op: &Rope) -> Result<()> {
        rope::lower(op, self)
    }
    fn rope_kv_write(&mut self) -> Result<()> {
        rope::lower_kv_write(self)
    }
    fn sample(&mut self, op: &Sample) -> Result<()> {
        sample::lower(op, self)
    }
    fn silu_mul(&mut self) -> Result<()> {
        silu_mul::lower(self)
    }
    fn silu_mul_grad(&mut self) -> Result<()> {
        silu_mul::lower_grad(self)
    }
    fn softmax(&mut self, op: &Softmax) -> Result<()> {
        softmax::lower(op.axis, false, self)
    }
    fn softmax_grad(&mut self, op: &SoftmaxGrad) -> Result<()> {
        softmax::lower_grad(op.axis, false, self)
    }
    fn top_k(&mut self, op: &TopK) -> Result<()> {
        top_k::lower(op, self)
    }
    fn unslice(&mut self, op: &Unslice) -> Result<()> {
        layout::lower_unslice(op, self)
    }
}

/// A plan as commands for a driver.
pub(in crate::backend) struct Lowered {
    /// Commands in order, with barriers.
    pub(in crate::backend) commands: Vec<Command>,
    /// Cost of each command, for a profile.
    pub(in crate::backend) costs: Vec<StepCost>,
    pub(in crate::backend) checks: Vec<IndexCheck>,
    /// The inputs of the plan.
    pub(in crate::backend) inputs: Vec<Tensor>,
    /// The outputs of the plan.
    pub(in crate::backend) outputs: Vec<Tensor>,
    pub(in crate::backend) allocations: Allocations,
}

/// Lowers a plan.
///
/// # Errors
/// A parameter belongs to another device or cannot be written, a tensor is too large, or an operation has no kernel.
pub(in crate::backend) fn lower(driver: &dyn Driver, plan: &Plan) -> Result<Lowered> {
    let mut allocations = Allocations::default();
    let mut parameters = Vec::with_capacity(plan.parameters.len());
    for parameter in &plan.parameters {
        let (buffer, offset) = parameter.location();
        let located = allocations.locate(driver, buffer, offset);
        let elsewhere =
            || Error::invalid(parameter.name(), format!("is on another device than {}", driver.name()));
        parameters.push(located.ok_or_else(elsewhere)?);
    }
    let tensor = |operand: &Operand| Tensor {
        address: match operand.place {
            Place::Arena(offset) => Address::Arena(offset),
            Place::Parameter(index) => parameters[index].0,
            Place::Input(index) => Address::External(index, 0),
            Place::Output(index) => Address::External(plan.inputs.len() + index, 0),
        },
        dtype: operand.dtype,
        layout: operand.layout.clone(),
    };
    plan.steps.iter().try_for_each(check_sizes)?;
    check_updates(plan, |parameter| parameters[parameter].1)?;
    let given = plan.inputs.iter().map(|input| tensor(&input.operand)).collect();
    let mut target = Target { driver, allocations, commands: Vec::new(), checks: Vec::new(), given };
    let mut costs = Vec::new();
    for step in &plan.steps {
        let of_part = |op: &Op, inputs: &[Operand], _: &[TensorSpec]| scratch_of_part(driver, op, inputs);
        let parts = if has_kernel(driver, step) { None } else { decompose(step, &of_part) };
        for step in parts.as_deref().unwrap_or(std::slice::from_ref(step)) {
            let first = target.commands.len();
            let base = StepContext {
                device: driver.name(),
                step,
                inputs: step.inputs.iter().map(tensor).collect(),
                outputs: step.outputs.iter().map(|output| output.as_ref().map(tensor)).collect(),
                scratch: Address::Arena(step.scratch.0),
            };
            OpContext { base, target: &mut target }.lower(&step.op)?;
            let added = &mut target.commands[first..];
            check_threads(driver, added)?;
            let load = cost::load(driver.chip(), step, added);
            // Writing the same keys and values again changes nothing.
            let updates = !step.op.contract().updates(step.inputs.len()).is_empty()
                && !matches!(step.op, Op::KvWrite(_) | Op::RopeKvWrite(_));
            for command in added.iter_mut() {
                (command.load, command.accumulates) = (load, updates);
            }
            costs.extend(cost::shares(step, added));
        }
    }
    let Target { mut commands, checks, given, allocations, .. } = target;
    place_barriers(&mut commands);
    let outputs = plan.outputs.iter().map(tensor).collect();
    Ok(Lowered { commands, costs, checks, inputs: given, outputs, allocations })
}

/// Returns true if one kernel computes a step. Steps without such a kernel have parts, or are of one part.
fn has_kernel(driver: &dyn Driver, step: &Step) -> bool {
    match &step.op {
        Op::Epilogue(op) => epilogue::has_kernel(driver, op, step),
        Op::RopeKvWrite(_) => step.outputs[0].is_some(),
        _ => true,
    }
}

/// Returns an error for a dispatch whose threadgroups are larger than its kernel allows, which a GPU would skip silently.
fn check_threads(driver: &dyn Driver, commands: &[Command]) -> Result<()> {
    for command in commands {
        let Work::Dispatch(dispatch) = &command.work else { continue };
        let (threads, most) =
            (dispatch.threads.iter().product::<usize>(), driver.max_threads(&dispatch.kernel)?);
        if threads > most {
            return Err(Error::Device {
                device: driver.name().to_owned(),
                what: format!("kernel '{}' of {}", dispatch.kernel.function, dispatch.op),
                fault: DeviceFault::Kernel,
                message: format!("it needs {threads} threads per threadgroup, and the GPU allows {most}"),
            });
        }
    }
    Ok(())
}
