//! Attention as a chain of calls: scores by a product, `MPSMatrixSoftMax`, a product with the values.
//!
//! The scores go through memory, four times their size, and every head takes three calls; the fused kernel of
//! `backend/gpu/attention.rs` needs neither. So the chain is for long sequences on chips whose neural accelerators
//! multiply several times faster ([`crate::backend::select::Choices::attention`]).

use crate::backend::gpu::library::{LibraryCall, Matrix};

/// One head's matrices: q `[t, d]`, k and v `[s, d]`, out `[t, d]`.
pub(in crate::backend) struct Head {
    pub(in crate::backend) q: Matrix,
    pub(in crate::backend) k: Matrix,
    pub(in crate::backend) v: Matrix,
    pub(in crate::backend) out: Matrix,
}

/// Returns the calls of `out = softmax(scale·q·kᵀ + scores)·v` of a head, where `scores` holds the mask (0 or −∞) if
/// `masked`, and is overwritten; `weights` takes the softmax.
pub(in crate::backend) fn attention(
    head: &Head,
    (scores, weights): (Matrix, Matrix),
    scale: f32,
    masked: bool,
) -> [LibraryCall; 3] {
    let product = |left, right, result, alpha, beta| LibraryCall::MatMul { left, right, result, alpha, beta };
    [
        product((head.q, false), (head.k, true), scores, scale, if masked { 1.0 } else { 0.0 }),
        LibraryCall::Softmax { x: scores, y: weights, logarithm: false },
        product((weights, false), (head.v, false), head.out, 1.0, 0.0),
    ]
}
