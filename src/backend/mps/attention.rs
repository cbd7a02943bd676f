//! Attention as a chain of calls: scores by a product, `MPSMatrixSoftMax`, a product with the values.
//!
//! The scores go through memory, four times their size, and every head takes three calls; the fused kernel of
//! `backend/metal/attention.rs` needs neither. So the chain is for long sequences on chips whose neural accelerators
//! multiply several times faster ([`crate::backend::select::Choices::attention`]).

use super::guard::Refusal;
use super::matrix::Operand;
use super::{product, softmax};
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::Item;

/// One head's matrices: q `[t, d]`, k and v `[s, d]`, out `[t, d]`.
pub(in crate::backend) struct Head {
    pub(in crate::backend) q: Operand,
    pub(in crate::backend) k: Operand,
    pub(in crate::backend) v: Operand,
    pub(in crate::backend) out: Operand,
}

/// The items of `out = softmax(scale·q·kᵀ + scores)·v` of a head, where `scores` holds the mask (0 or −∞) if `masked`,
/// and is overwritten; `weights` takes the softmax.
pub(in crate::backend) fn attention(
    gpu: &Gpu,
    op: &'static str,
    head: &Head,
    (scores, weights): (&Operand, &Operand),
    scale: f32,
    masked: bool,
) -> std::result::Result<[Item; 3], Refusal> {
    let beta = if masked { 1.0 } else { 0.0 };
    Ok([
        product(gpu, op, (head.q.clone(), false), (head.k.clone(), true), scores, (scale, beta))?,
        softmax(op, scores.clone(), weights.clone(), false)?,
        product(gpu, op, (weights.clone(), false), (head.v.clone(), false), &head.out, (1.0, 0.0))?,
    ])
}
