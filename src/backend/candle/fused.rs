//! What the fused operations record: their forward pass, and through it their gradient.

use crate::graph::{Graph, LazyTensor};
use crate::ops::{Attention, MatMul, Real};
use crate::tensor::{DType, HostTensor, Shape};
use crate::{Error, Result};

/// A fused operation with its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fused {
    /// Of x.
    Softmax { axis: usize, log: bool },
    /// Of x and w.
    RmsNorm { eps: Real },
    /// Of x, a residual and w.
    AddRmsNorm { eps: Real },
    /// Of x, w, and b if there is one.
    LayerNorm { eps: Real },
    /// Of x, cos and sin; x is `[batch, t, heads, d]`, or `[batch, heads, t, d]`.
    Rope { heads_first: bool },
    /// Of gate and up.
    SiluMul,
    /// Of q, k and v as `[batch, t, heads, d]`.
    Attention { scale: Real, causal: bool },
    /// Of q, k and v as `[batch, heads, t, d]`, and what is added to the scores.
    MaskedAttention { scale: Real },
    /// Of x, a, b and w.
    Lora { scale: Real },
    /// Of logits and targets.
    CrossEntropy,
    /// Of two matrices, or batches of them.
    MatMul,
    /// Of x.
    TopK { k: usize },
}

impl Fused {
    /// The operation's name, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Softmax { log: false, .. } => "softmax_fused",
            Self::Softmax { log: true, .. } => "log_softmax_fused",
            Self::RmsNorm { .. } => "rms_norm_fused",
            Self::AddRmsNorm { .. } => "add_rms_norm_fused",
            Self::LayerNorm { .. } => "layer_norm_fused",
            Self::Rope { .. } => "rope_fused",
            Self::SiluMul => "silu_mul_fused",
            Self::Attention { .. } | Self::MaskedAttention { .. } => "attention_fused",
            Self::Lora { .. } => "lora_forward_fused",
            Self::CrossEntropy => "cross_entropy_fused",
            Self::MatMul => "matmul_fused",
            Self::TopK { .. } => "top_k",
        }
    }

    /// How many outputs a caller sees; the others are for the backward pass.
    pub(super) fn visible(self) -> usize {
        if matches!(self, Self::AddRmsNorm { .. } | Self::TopK { .. }) { 2 } else { 1 }
    }

    /// Records the forward pass. The outputs have the operation's own shapes; those that a caller sees come first.
    pub(super) fn record(self, graph: &Graph, inputs: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
        let x = &inputs[0];
        let all = |op: crate::ops::Op, inputs: &[&LazyTensor]| graph.record(op, inputs);
        match self {
            Self::Softmax { axis, log: false } => Ok(vec![x.softmax(axis)?]),
            Self::Softmax { axis, log: true } => Ok(vec![x.log_softmax(axis)?]),
            Self::RmsNorm { eps } => Ok(vec![x.rms_norm(&inputs[1], eps.0)?]),
            Self::AddRmsNorm { eps } => {
                let (y, sum) = x.add_rms_norm(&inputs[1], &inputs[2], eps.0)?;
                Ok(vec![sum, y])
            }
            Self::LayerNorm { eps } => Ok(vec![x.layer_norm(&inputs[1], inputs.get(2), eps.0)?]),
            Self::Rope { heads_first } => rope(graph, inputs, heads_first),
            Self::SiluMul => Ok(vec![x.silu_mul(&inputs[1])?]),
            Self::Attention { scale, causal } => {
                let op = Attention { scale, causal, window: None, cached: false, segmented: false };
                all(op.into(), &[x, &inputs[1], &inputs[2]])
            }
            Self::MaskedAttention { scale } => masked_attention(inputs, scale),
            Self::Lora { scale } => {
                let (a, b, w) = (&inputs[1], &inputs[2], &inputs[3]);
                let (b_shape, rank) = (b.shape(), a.shape()[0]);
                let slot = crate::ops::LoraSlot { start: 0, len: b_shape[0], rank, scale };
                let op = crate::ops::Lora { slots: vec![slot], separate: false };
                all(op.into(), &[&rows(x)?, w, a, b])
            }
            Self::CrossEntropy => {
                let (logits, targets) = (rows(x)?, &inputs[1]);
                let m = logits.shape()[0];
                let targets = targets.reshape([targets.shape().elements()])?;
                let weights = graph.constant(HostTensor::from_slice(&vec![1.0 / m as f32; m], [m])?);
                let mut outputs =
                    all(crate::ops::CrossEntropy { head: false }.into(), &[&logits, &targets, &weights])?;
                outputs.remove(1);
                Ok(outputs)
            }
            Self::MatMul => matmul(graph, x, &inputs[1]),
            Self::TopK { k } => all(crate::ops::TopK { k }.into(), &[x]),
        }
    }
}

/// As a matrix of rows of the last axis.
fn rows(x: &LazyTensor) -> Result<LazyTensor> {
    let shape = x.shape();
    x.reshape([shape.rows(), shape.last()])
}

/// Rotation of every token by its place in the sequence.
fn rope(graph: &Graph, inputs: &[LazyTensor], heads_first: bool) -> Result<Vec<LazyTensor>> {
    let shape = inputs[0].shape();
    let (batch, t, heads, d) = if heads_first {
        (shape[0] * shape[1], shape[2], 1, shape[3])
    } else {
        (shape[0], shape[1], shape[2], shape[3])
    };
    let positions: Vec<u32> = (0..batch).flat_map(|_| 0..t as u32).collect();
    let positions = graph.constant(HostTensor::from_slice(&positions, [batch * t])?);
    let [cos, sin] = [1, 2].map(|index| inputs[index].cast(DType::F32));
    Ok(vec![inputs[0].reshape([batch * t, heads, d])?.rope(&cos?, &sin?, &positions)?])
}

/// The product chain, in f32: `softmax(scale · q·kᵀ + mask) · v`.
fn masked_attention(inputs: &[LazyTensor], scale: Real) -> Result<Vec<LazyTensor>> {
    let [q, k, v, mask] = [0, 1, 2, 3].map(|index| inputs[index].cast(DType::F32));
    let (q, k, v, mask) = (q?, k?, v?, mask?);
    let (q_shape, k_shape) = (q.shape(), k.shape());
    let (batch, heads, t, d) = (q_shape[0], q_shape[1], q_shape[2], q_shape[3]);
    let (kv_heads, s) = (k_shape[1], k_shape[2]);
    let group = heads / kv_heads.max(1);
    let repeated = |x: &LazyTensor| {
        let wide = x.reshape([batch, kv_heads, 1, s, d])?.broadcast([batch, kv_heads, group, s, d])?;
        wide.reshape([batch * heads, s, d])
    };
    let scores = q.reshape([batch * heads, t, d])?.linear(&repeated(&k)?)?.affine(scale.0, 0.0)?;
    let scores = scores.reshape([batch, heads, t, s])?.add(&mask)?;
    let weights = scores.softmax(3)?.reshape([batch * heads, t, s])?;
    let out = weights.matmul(&repeated(&v)?)?.reshape([batch, heads, t, d])?;
    Ok(vec![out.cast(inputs[0].dtype())?])
}

/// The product of two tensors as candle has them; a transposed view is read where it lies.
fn matmul(graph: &Graph, a: &LazyTensor, b: &LazyTensor) -> Result<Vec<LazyTensor>> {
    let straight = |x: &LazyTensor| -> Result<(LazyTensor, bool)> {
        let rank = x.shape().rank();
        match x.strides() {
            Some(strides) if rank >= 2 && strides[rank - 1] != 1 && strides[rank - 2] == 1 => {
                Ok((x.transpose(rank - 2, rank - 1)?, true))
            }
            _ => Ok((x.clone(), false)),
        }
    };
    let ((a, transpose_a), (b, transpose_b)) = (straight(a)?, straight(b)?);
    graph.record(MatMul::new(transpose_a, transpose_b), &[&a, &b])
}

/// Refuses what the operation's own shape rule does not speak of.
pub(super) fn check_attention(q: &Shape, k: &Shape, mask: Option<&Shape>) -> Result<()> {
    let wrong = |message: &str| Err(Error::shape("attention_fused", message, &[q, k]));
    if q.rank() != 4 || k.rank() != 4 {
        return wrong("q must be [batch, heads, t, d], k and v [batch, kv_heads, s, d]");
    }
    if q[0] != k[0] || q[3] != k[3] {
        return wrong("batch or head size differ");
    }
    if k[1] == 0 || !q[1].is_multiple_of(k[1]) {
        return wrong("the number of query heads must be a multiple of the number of key heads");
    }
    let Some(mask) = mask else { return Ok(()) };
    let target = [q[0], q[1], q[2], k[2]];
    let fits = mask.rank() <= 4
        && mask.dims().iter().rev().zip(target.iter().rev()).all(|(&m, &n)| m == n || m == 1);
    if fits {
        return Ok(());
    }
    let message = format!("the mask must broadcast to {target:?}");
    Err(Error::shape("attention_fused", message, &[mask]))
}
