//! `MPSMatrixFindTopK`: up to 16 of the largest elements of each row, with their indices. Larger numbers are computed by our
//! kernel (`backend/gpu/top_k.rs`).

use super::call::{MpsCall, matrix};
use super::guard::{self, Refusal};
use super::kernels;
use crate::Result;
use crate::backend::gpu::library::Matrix;
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::memory::Memory;
use crate::tensor::DType;

/// A call, ready to be encoded.
struct TopK {
    x: Matrix,
    indices: Matrix,
    values: Matrix,
}

impl MpsCall for TopK {
    fn encode(&self, target: NoEncoder<'_>, memory: Memory<'_>) -> Result<()> {
        let kernel = kernels::top_k(target.device(), self.values.columns);
        let [x, indices, values] = [&self.x, &self.indices, &self.values].map(|side| matrix(side, memory));
        kernel.encode(&target, &x?, &indices?, &values?)
    }
}

/// Returns the call of the search.
pub(super) fn top_k(
    x: Matrix,
    values: Matrix,
    indices: Matrix,
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    guard::top_k(x.dtype, x.rows, x.columns, values.columns)?;
    if ![&x, &values, &indices].iter().all(|operand| operand.fits())
        || values.dtype != x.dtype
        || indices.dtype != DType::U32
    {
        return Err(Refusal::Layout);
    }
    Ok(Box::new(TopK { x, indices, values }))
}
