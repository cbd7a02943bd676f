//! What the lowerings of all backends share: a step's tensors, the checks on them, and the dispatch over operations.

use crate::graph::{Place, Plan, Step};
use crate::ops::{
    Accumulate, AdamW, Attention, AttentionGrad, Concat, CrossEntropy, Dropout, Epilogue, GlobalNorm,
    LayerNorm, LayerNormGrad, LogSoftmax, LogSoftmaxGrad, Lora, LoraGrad, MatMul, Op, QuantMatMul,
    QuantMatMulGrad, Reduce, RmsNorm, RmsNormGrad, Rope, Sample, Softmax, SoftmaxGrad, TopK, Unslice,
};
use crate::tensor::{DType, Layout};
use crate::{Error, Result};

/// A tensor of a step: the address of its buffer, its element type, and its layout in the buffer.
#[derive(Debug, Clone)]
pub(super) struct Tensor<A> {
    pub(super) address: A,
    pub(super) dtype: DType,
    pub(super) layout: Layout,
}

impl<A> Tensor<A> {
    /// Number of rows: the product of all axes but the last.
    pub(super) fn rows(&self) -> usize {
        self.layout.shape.rows()
    }

    /// Length of the last axis.
    pub(super) fn last(&self) -> usize {
        self.layout.shape.last()
    }

    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.layout.shape.elements()
    }

    /// Elements from row to row. Operations that need it accept row-strided layouts only.
    pub(super) fn row_stride(&self) -> usize {
        self.layout.row_stride().expect("the operation accepts row-strided layouts only")
    }
}

/// A step with its located tensors: what an operation needs to be lowered.
#[derive(Debug)]
pub(super) struct StepContext<'a, A> {
    /// Name of the device, for messages.
    pub(super) device: &'static str,
    pub(super) step: &'a Step,
    pub(super) inputs: Vec<Tensor<A>>,
    /// `None` for an output that nothing reads.
    pub(super) outputs: Vec<Option<Tensor<A>>>,
    /// Address of the scratch memory, as much as the backend has asked for.
    pub(super) scratch: A,
}

impl<A: Clone> StepContext<'_, A> {
    /// Returns an output, or `None` if nothing reads it.
    pub(super) fn output(&self, index: usize) -> Option<Tensor<A>> {
        self.outputs[index].clone()
    }

    /// Returns the error that the operation has no kernel for a dtype on this device.
    pub(super) fn unsupported(&self, dtype: DType, advice: &str) -> Error {
        let device = self.device.to_owned();
        Error::Unsupported { op: self.step.op.name(), dtype, device, advice: advice.to_owned() }
    }

    /// Returns an error if a tensor's dtype is not `dtype`.
    pub(super) fn expect(&self, tensor: &Tensor<A>, dtype: DType) -> Result<()> {
        if tensor.dtype == dtype {
            return Ok(());
        }
        Err(self.unsupported(tensor.dtype, &format!("cast it to {dtype}, as the other inputs")))
    }
}

/// Returns an error if a step of a plan updates a parameter that is not writable.
pub(super) fn check_updates(plan: &Plan, writable: impl Fn(usize) -> bool) -> Result<()> {
    for step in &plan.steps {
        for output in step.outputs.iter().flatten() {
            if let Place::Parameter(index) = output.place
                && !writable(index)
            {
                let message = format!("is updated by {}, but is frozen host memory", step.op.name());
                return Err(Error::invalid(plan.parameters[index].name(), message));
            }
        }
    }
    Ok(())
}

/// Lowers operations, one method for each kind.
pub(super) trait Lower {
    /// What an operation becomes.
    type Output;

    fn accumulate(&mut self, op: &Accumulate) -> Result<Self::Output>;
    fn adamw(&mut self, op: &AdamW) -> Result<Self::Output>;
    fn arg_max(&mut self) -> Result<Self::Output>;
    fn attention(&mut self, op: &Attention) -> Result<Self::Output>;
    fn attention_grad(&mut self, op: &AttentionGrad) -> Result<Self::Output>;
    fn concat(&mut self, op: &Concat) -> Result<Self::Output>;
    /// Copies with or without a change of dtype.
    fn copy(&mut self) -> Result<Self::Output>;
    fn cross_entropy(&mut self, op: &CrossEntropy) -> Result<Self::Output>;
    fn dropout(&mut self, op: &Dropout) -> Result<Self::Output>;
    /// Affine, binary, fill, scale, unary, and gradients of unary operations.
    fn elementwise(&mut self) -> Result<Self::Output>;
    fn embedding(&mut self) -> Result<Self::Output>;
    fn embedding_grad(&mut self) -> Result<Self::Output>;
    fn epilogue(&mut self, op: &Epilogue) -> Result<Self::Output>;
    fn global_norm(&mut self, op: &GlobalNorm) -> Result<Self::Output>;
    fn kv_write(&mut self) -> Result<Self::Output>;
    fn layer_norm(&mut self, op: &LayerNorm) -> Result<Self::Output>;
    fn layer_norm_grad(&mut self, op: &LayerNormGrad) -> Result<Self::Output>;
    fn log_softmax(&mut self, op: &LogSoftmax) -> Result<Self::Output>;
    fn log_softmax_grad(&mut self, op: &LogSoftmaxGrad) -> Result<Self::Output>;
    fn lora(&mut self, op: &Lora) -> Result<Self::Output>;
    fn lora_grad(&mut self, op: &LoraGrad) -> Result<Self::Output>;
    fn matmul(&mut self, op: &MatMul) -> Result<Self::Output>;
    fn quant_matmul(&mut self, op: &QuantMatMul) -> Result<Self::Output>;
    fn quant_matmul_grad(&mut self, op: &QuantMatMulGrad) -> Result<Self::Output>;
    fn reduce(&mut self, op: &Reduce) -> Result<Self::Output>;
    fn rms_norm(&mut self, op: &RmsNorm) -> Result<Self::Output>;
    fn rms_norm_grad(&mut self, op: &RmsNormGrad) -> Result<Self::Output>;
    fn rope(&mut self, op: &Rope) -> Result<Self::Output>;
    fn rope_kv_write(&mut self) -> Result<Self::Output>;
    fn sample(&mut self, op: &Sample) -> Result<Self::Output>;
    fn silu_mul(&mut self) -> Result<Self::Output>;
    fn silu_mul_grad(&mut self) -> Result<Self::Output>;
    fn softmax(&mut self, op: &Softmax) -> Result<Self::Output>;
    fn softmax_grad(&mut self, op: &SoftmaxGrad) -> Result<Self::Output>;
    fn top_k(&mut self, op: &TopK) -> Result<Self::Output>;
    fn unslice(&mut self, op: &Unslice) -> Result<Self::Output>;

    /// Lowers an operation by the method of its kind.
    ///
    /// # Errors
    /// The operation is a view, or the method fails.
    fn lower(&mut self, op: &Op) -> Result<Self::Output> {
        match op {
            Op::Accumulate(op) => self.accumulate(op),
            Op::AdamW(op) => self.adamw(op),
            Op::Affine(_) | Op::Binary(_) | Op::Fill(_) | Op::Scale(_) | Op::Unary(_) | Op::UnaryGrad(_) => {
                self.elementwise()
            }
            Op::ArgMax(_) => self.arg_max(),
            Op::Attention(op) => self.attention(op),
            Op::AttentionGrad(op) => self.attention_grad(op),
            Op::Cast(_) | Op::Copy(_) => self.copy(),
            Op::Concat(op) => self.concat(op),
            Op::CrossEntropy(op) => self.cross_entropy(op),
            Op::Dropout(op) => self.dropout(op),
            Op::Embedding(_) => self.embedding(),
            Op::EmbeddingGrad(_) => self.embedding_grad(),
            Op::Epilogue(op) => self.epilogue(op),
            Op::GlobalNorm(op) => self.global_norm(op),
            Op::KvWrite(_) => self.kv_write(),
            Op::LayerNorm(op) => self.layer_norm(op),
            Op::LayerNormGrad(op) => self.layer_norm_grad(op),
            Op::LogSoftmax(op) => self.log_softmax(op),
            Op::LogSoftmaxGrad(op) => self.log_softmax_grad(op),
            Op::Lora(op) => self.lora(op),
            Op::LoraGrad(op) => self.lora_grad(op),
            Op::MatMul(op) => self.matmul(op),
            Op::QuantMatMul(op) => self.quant_matmul(op),
            Op::QuantMatMulGrad(op) => self.quant_matmul_grad(op),
            Op::Reduce(op) => self.reduce(op),
            Op::RmsNorm(op) => self.rms_norm(op),
            Op::RmsNormGrad(op) => self.rms_norm_grad(op),
            Op::Rope(op) => self.rope(op),
            Op::RopeKvWrite(_) => self.rope_kv_write(),
            Op::Sample(op) => self.sample(op),
            Op::SiluMul(_) => self.silu_mul(),
            Op::SiluMulGrad(_) => self.silu_mul_grad(),
            Op::Softmax(op) => self.softmax(op),
            Op::SoftmaxGrad(op) => self.softmax_grad(op),
            Op::TopK(op) => self.top_k(op),
            Op::Unslice(op) => self.unslice(op),
            Op::Broadcast(_) | Op::Permute(_) | Op::Reshape(_) | Op::Slice(_) => {
                Err(Error::invalid(op.name(), "is a view, which a plan has no step for"))
            }
        }
    }
}
