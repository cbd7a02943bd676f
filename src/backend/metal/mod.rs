//! The Metal backend: a plan becomes a list of dispatches of our own kernels and of calls of Metal Performance
//! Shaders, encoded anew at every run into as few command buffers as their bound allows, and waited for once.
//!
//! One arena of shared storage holds all intermediate results. Buffers are hazard-tracked, so Metal orders encoders of
//! the queue (Metal Performance Shaders opens encoders of its own); within an encoder, which is concurrent, barriers
//! are placed when a plan is compiled, where two dispatches touch the same bytes and one of them writes.
//!
//! Sources: Apple, "Resource synchronization", MTLCommandBuffer, MTLComputeCommandEncoder, MTLSharedEvent.

mod archive;
pub(super) mod buffer;
pub(super) mod commands;
pub(super) mod device;
pub(super) mod executor;
pub(super) mod fault;
pub(super) mod foreign;
pub(super) mod kernel_files;
pub(super) mod launch;
mod pipeline;
mod site;
mod strided;
pub(super) mod system;

mod attention;
mod attention_grad;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod gemv;
mod kv_write;
mod layer_norm;
mod layout;
mod lora;
mod many;
mod matmul;
mod quant_matmul;
mod reduce;
mod rms_norm;
mod rope;
mod sample;
mod silu_mul;
mod softmax;
mod top_k;

use std::sync::Arc;

use super::profile::Peak;
use super::select::Choices;
use super::{Backend, Executable};
use crate::Result;
use crate::graph::{Operand, Plan};
use crate::ops::{BinaryFn, Op};
use crate::tensor::{Buffer, HostTensor, TensorSpec};
use buffer::{Arena, MetalBuffer};
use device::Gpu;

/// The Metal backend.
pub(super) struct Metal {
    gpu: Arc<Gpu>,
    arena: Arena,
}

impl Metal {
    /// On the system's default GPU.
    pub(super) fn new(choices: Choices) -> Result<Self> {
        let gpu = Arc::new(Gpu::new(choices)?);
        Ok(Self { arena: Arena::new(&gpu), gpu })
    }
}

impl Backend for Metal {
    fn name(&self) -> String {
        "metal".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(MetalBuffer::new(&self.gpu, bytes, "weights and states", &self.arena)?))
    }

    fn adopt(&self, tensor: &HostTensor) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(MetalBuffer::adopt(&self.gpu, tensor, &self.arena)?))
    }

    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
        executor::scratch(&self.gpu, op, inputs, outputs)
    }

    fn together(&self, first: &Op, second: &Op) -> bool {
        let follows = match second {
            Op::SiluMul(_) => true,
            Op::Binary(op) => op.function == BinaryFn::Add,
            _ => false,
        };
        follows && matches!(first, Op::MatMul(_) | Op::Lora(_))
    }

    fn peak(&self) -> Option<Peak> {
        let chip = self.gpu.chip;
        let source = format!("the peaks of {}, by others' figures; not measured", chip.name);
        Some(Peak { flops: 1e12 * chip.teraflops, bytes: 1e9 * chip.gigabytes, source })
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        objc2::rc::autoreleasepool(|_| {
            self.arena.reserve(&self.gpu, plan.arena_bytes)?;
            let executable = executor::compile(&self.gpu, &self.arena, plan);
            self.gpu.pipelines.store();
            executable
        })
    }
}
