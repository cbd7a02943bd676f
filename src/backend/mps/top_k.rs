//! `MPSMatrixFindTopK`: up to 16 of the greatest elements of each row, with their indices. More are for a kernel of ours
//! (`backend/metal/top_k.rs`).

use super::guard::{self, Refusal};
use super::kernels;
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;
use crate::tensor::DType;

/// A call, ready to be encoded.
struct TopK {
    x: Operand,
    indices: Operand,
    values: Operand,
}

impl Shaders for TopK {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let kernel = kernels::top_k(idle.device(), self.values.columns);
        kernel.encode(
            &idle,
            &self.x.matrix(arena)?,
            &self.indices.matrix(arena)?,
            &self.values.matrix(arena)?,
        )
    }
}

/// The item of the search.
pub(in crate::backend) fn top_k(
    op: &'static str,
    x: Operand,
    values: Operand,
    indices: Operand,
) -> std::result::Result<Item, Refusal> {
    guard::top_k(x.dtype, x.rows, x.columns, values.columns)?;
    if ![&x, &values, &indices].iter().all(|operand| operand.fits())
        || values.dtype != x.dtype
        || indices.dtype != DType::U32
    {
        return Err(Refusal::Layout);
    }
    let touches = Touches { reads: vec![x.span()], writes: vec![values.span(), indices.span()] };
    Ok(Item::shaders(op, Box::new(TopK { x, indices, values }), touches))
}
