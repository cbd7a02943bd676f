//! The CPU backend: a flat list of kernel calls on arena offsets, run by threads that stay awake within a step.

mod accumulate;
mod adamw;
mod attention;
mod attention_grad;
mod compile;
mod cross_entropy;
mod dropout;
mod element;
mod elementwise;
mod embedding;
mod gemv;
mod kernel;
mod kv_write;
mod layer_norm;
mod layout;
mod lora;
mod math;
mod matmul;
mod memory;
mod microkernel;
mod op;
mod peak;
mod pool;
mod quant_matmul;
mod reduce;
mod rms_norm;
mod rope;
mod row_blocks;
mod sample;
mod silu_mul;
mod softmax;
mod strided;
mod swapped_gemm;
mod top_k;
mod vector;
#[cfg(target_arch = "x86_64")]
mod vector_x86;

use std::sync::Arc;

use super::profile::Peak;
use super::{Backend, Executable};
use crate::Result;
use crate::graph::{Operand, Plan, Target};
use crate::ops::Op;
use crate::tensor::{Buffer, HostTensor, TensorSpec};
use memory::{Arena, CpuBuffer};
use pool::Pool;
#[cfg(feature = "async-exec")]
pub(super) use pool::STACK;

/// The CPU backend.
pub struct Cpu {
    pool: Arc<Pool>,
    arena: Arena,
}

impl Cpu {
    /// With this many threads, the calling one among them.
    pub(super) fn new(threads: usize) -> Self {
        Self { pool: Arc::new(Pool::new(threads)), arena: Arena::default() }
    }
}

impl Target for Cpu {
    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
        compile::scratch(&self.pool, op, inputs, outputs)
    }

    fn in_place_io(&self) -> bool {
        true
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(CpuBuffer::new(bytes, &self.arena)?))
    }

    fn import(&self, tensor: &HostTensor) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(CpuBuffer::import(tensor, &self.arena)))
    }

    fn peak(&self) -> Option<Peak> {
        Some(peak::measure(&self.pool))
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        self.arena.reserve(plan.arena_bytes)?;
        compile::compile(&self.pool, &self.arena, plan)
    }
}
