//! Softmax of candle's Metal tensors by `MPSMatrixSoftMax`, on our own queue and between two waits, as products in `mps.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

use super::CustomMetalOps;
use super::mps::{Buffers, run_call};
use super::op::wrap;
use crate::Error;
use crate::backend::gpu::library::{LibraryCall, Matrix};
use crate::backend::mps::guard::Refusal;
use crate::backend::select::Preference;
use crate::tensor::DType;

const NAME: &str = "fast_softmax";

/// Returns true if the level asks for Metal Performance Shaders: `mps` does, along the last axis. Either implementation
/// reads and writes every element once, so no estimate finds a gain that pays for two waits.
pub(super) fn prefers_mps(x: &Tensor, axis: usize, preference: Preference) -> bool {
    let rows = axis + 1 == x.rank() && x.elem_count() > 0;
    x.device().is_metal() && preference == Preference::Mps && rows
}

/// Softmax along the last axis, with a gradient by `MPSMatrixSoftMaxGradient`. What the guard refuses goes to our kernel.
pub(super) fn softmax_mps(x: &Tensor) -> Result<Tensor> {
    let refused = Arc::new(AtomicBool::new(false));
    match x.contiguous()?.apply_op1(Rows { refused: Arc::clone(&refused) }) {
        Err(_) if refused.load(Ordering::Relaxed) => x.softmax_fused(x.rank() - 1),
        result => result,
    }
}

fn only_on_metal() -> candle_core::Error {
    wrap(Error::invalid(NAME, "this call is for Metal tensors; on the CPU use softmax_fused"))
}

/// A contiguous tensor as the framework reads it: one matrix, with the last axis as its columns.
fn rows(storage: &MetalStorage, layout: &Layout, buffers: &mut Buffers) -> Result<Matrix> {
    let dtype = DType::from_candle(NAME, storage.dtype()).map_err(wrap)?;
    let columns = layout.dims().last().copied().unwrap_or(1);
    let rows = layout.shape().elem_count() / columns.max(1);
    Ok(Matrix::single(buffers.add_tensor(storage, layout), dtype, (rows, columns), columns))
}

struct Rows {
    /// Set when the guard refuses the call.
    refused: Arc<AtomicBool>,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(only_on_metal())
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let mut buffers = Buffers::default();
        let x = rows(storage, layout, &mut buffers)?;
        let elements = layout.shape().elem_count();
        let call = |address| LibraryCall::Softmax { x, y: Matrix { address, ..x }, logarithm: false };
        let (what, size) = ((NAME, "a softmax"), (elements, storage.dtype()));
        let y = run_call(storage.device(), what, size, buffers, call, |refusal| {
            self.refused.store(true, Ordering::Relaxed);
            tracing::debug!(%refusal, "fast_softmax falls back to our kernel");
            wrap(Error::invalid(NAME, refusal.to_string()))
        })?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &RowsGrad)?))
    }
}

/// `dx = y ⊙ (dy − Σ dy ⊙ y)`. The guard takes the same sizes and types as for the forward pass.
struct RowsGrad;

impl CustomOp2 for RowsGrad {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(only_on_metal())
    }

    fn metal_fwd(
        &self,
        dy: &MetalStorage,
        dy_layout: &Layout,
        y: &MetalStorage,
        y_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let mut buffers = Buffers::default();
        let (upstream, result) = (rows(dy, dy_layout, &mut buffers)?, rows(y, y_layout, &mut buffers)?);
        let elements = dy_layout.shape().elem_count();
        let call = |address| LibraryCall::SoftmaxGrad {
            dy: upstream,
            y: result,
            dx: Matrix { address, ..upstream },
            logarithm: false,
        };
        let (what, size) = ((NAME, "a softmax's gradient"), (elements, dy.dtype()));
        let refused = |refusal: Refusal| wrap(Error::invalid(NAME, refusal.to_string()));
        let dx = run_call(dy.device(), what, size, buffers, call, refused)?;
        Ok((dx, dy_layout.shape().clone()))
    }
}
