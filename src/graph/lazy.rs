//! The public handle of a recorded tensor.

use super::{Graph, Source};
use crate::ops::{
    Affine, ArgMax, Attention, Binary, BinaryFn, Broadcast, Cast, Concat, CrossEntropy, Dropout, Embedding,
    KvWrite, LayerNorm, LogSoftmax, Lora, LoraSlot, MatMul, Op, Permute, QuantMatMul, Real, Reduce, ReduceFn,
    Reshape, RmsNorm, Rope, Sample, SiluMul, Slice, Softmax, TopK, Unary, UnaryFn, Value,
};
use crate::tensor::{DType, Shape, TensorSpec};
use crate::{Error, Result};

/// A tensor that is recorded, not computed. Methods append to its graph; `eval` computes.
#[derive(Debug, Clone)]
pub struct LazyTensor {
    graph: Graph,
    value: Value,
}

impl LazyTensor {
    pub(super) fn new(graph: Graph, value: Value) -> Self {
        Self { graph, value }
    }

    /// The graph it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub(crate) fn value(&self) -> Value {
        self.value
    }

    /// Dtype and shape.
    pub fn spec(&self) -> TensorSpec {
        self.graph.nodes().spec(self.value).clone()
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.spec().shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec().dtype
    }

    /// The strides of a tensor that is given as a view.
    pub(crate) fn strides(&self) -> Option<Vec<usize>> {
        match &self.graph.nodes().list[self.value.node].source {
            Source::View(_, layout) => Some(layout.strides.clone()),
            _ => None,
        }
    }

    fn one(&self, op: impl Into<Op>, others: &[&Self]) -> Result<Self> {
        let inputs: Vec<&Self> = std::iter::once(self).chain(others.iter().copied()).collect();
        Ok(self.graph.record(op, &inputs)?.remove(0))
    }

    /// The product of two matrices; see [`MatMul`].
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        self.one(MatMul::new(false, false), &[other])
    }

    /// `x·Wᵀ` for a weight `[n, k]` as model files store it.
    pub fn linear(&self, weight: &Self) -> Result<Self> {
        self.one(MatMul::new(false, true), &[weight])
    }

    /// `x·Wᵀ` for a weight in ggml's blocks; see [`QuantMatMul`].
    pub fn quant_matmul(&self, weight: &Self, op: QuantMatMul) -> Result<Self> {
        self.one(op, &[weight])
    }

    /// `x·Wᵀ + scale·(x′·Aᵀ)·Bᵀ`, where x′ is `adapter_input` or x; see [`Lora`].
    pub fn lora(
        &self,
        weight: &Self,
        adapter_input: Option<&Self>,
        a: &Self,
        b: &Self,
        scale: f32,
    ) -> Result<Self> {
        let slot = LoraSlot { start: 0, len: weight.shape()[0], rank: a.shape()[0], scale: Real(scale) };
        let mut others: Vec<&Self> = adapter_input.into_iter().collect();
        others.extend([weight, a, b]);
        self.one(Lora { slots: vec![slot], separate: adapter_input.is_some() }, &others)
    }

    /// Softmax along an axis; see [`Softmax`].
    pub fn softmax(&self, axis: usize) -> Result<Self> {
        self.one(Softmax { axis }, &[])
    }

    /// Log-softmax along an axis; see [`LogSoftmax`].
    pub fn log_softmax(&self, axis: usize) -> Result<Self> {
        self.one(LogSoftmax { axis }, &[])
    }

    /// RMS norm of the last axis; see [`RmsNorm`].
    pub fn rms_norm(&self, weight: &Self, eps: f32) -> Result<Self> {
        self.one(RmsNorm { eps: Real(eps), residual: false }, &[weight])
    }

    /// `s = x + residual` and its RMS norm, as (norm, s); see [`RmsNorm`].
    pub fn add_rms_norm(&self, residual: &Self, weight: &Self, eps: f32) -> Result<(Self, Self)> {
        let op = RmsNorm { eps: Real(eps), residual: true };
        let mut outputs = self.graph.record(op, &[self, residual, weight])?;
        let s = outputs.pop().expect("two outputs");
        Ok((outputs.remove(0), s))
    }

    /// Layer norm of the last axis; see [`LayerNorm`].
    pub fn layer_norm(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        let others: Vec<&Self> = std::iter::once(weight).chain(bias).collect();
        self.one(LayerNorm { eps: Real(eps), bias: bias.is_some() }, &others)
    }

    /// Rotary embedding of `[tokens, heads, d]`; see [`Rope`].
    pub fn rope(&self, cos: &Self, sin: &Self, positions: &Self) -> Result<Self> {
        self.one(Rope { inverse: false }, &[cos, sin, positions])
    }

    /// Attention of queries `[batch, t, heads, d]`; `extra` holds pos and starts as `op` asks; see [`Attention`].
    pub fn attention(&self, k: &Self, v: &Self, op: Attention, extra: &[&Self]) -> Result<Self> {
        let others: Vec<&Self> = [k, v].into_iter().chain(extra.iter().copied()).collect();
        self.one(op, &others)
    }

    /// Writes new keys or values into this cache; see [`KvWrite`].
    pub fn kv_write(&self, new: &Self, pos: &Self) -> Result<Self> {
        self.one(KvWrite, &[new, pos])
    }

    /// `silu(x)·up`; see [`SiluMul`].
    pub fn silu_mul(&self, up: &Self) -> Result<Self> {
        self.one(SiluMul, &[up])
    }

    /// A function of each element; see [`UnaryFn`].
    pub fn unary(&self, function: UnaryFn) -> Result<Self> {
        self.one(Unary { function }, &[])
    }

    /// SiLU of each element.
    pub fn silu(&self) -> Result<Self> {
        self.unary(UnaryFn::Silu)
    }

    /// GELU of each element, in its tanh form.
    pub fn gelu(&self) -> Result<Self> {
        self.unary(UnaryFn::Gelu)
    }

    /// A function of two tensors, element by element, after broadcasting the smaller one; see [`BinaryFn`].
    pub fn binary(&self, other: &Self, function: BinaryFn) -> Result<Self> {
        let (a, b) = (self.shape(), other.shape());
        if a == b {
            return self.one(Binary { function }, &[other]);
        }
        let shape = broadcast_shape(function.name(), &a, &b)?;
        self.broadcast(shape.clone())?.one(Binary { function }, &[&other.broadcast(shape)?])
    }

    /// Sum of two tensors, with broadcasting.
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.binary(other, BinaryFn::Add)
    }

    /// Difference of two tensors, with broadcasting.
    pub fn sub(&self, other: &Self) -> Result<Self> {
        self.binary(other, BinaryFn::Sub)
    }

    /// Product of two tensors element by element, with broadcasting.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        self.binary(other, BinaryFn::Mul)
    }

    /// Quotient of two tensors element by element, with broadcasting.
    pub fn div(&self, other: &Self) -> Result<Self> {
        self.binary(other, BinaryFn::Div)
    }

    /// `mul·x + add`.
    pub fn affine(&self, mul: f32, add: f32) -> Result<Self> {
        self.one(Affine { mul: Real(mul), add: Real(add) }, &[])
    }

    /// Sum along an axis, which the result lacks.
    pub fn sum(&self, axis: usize) -> Result<Self> {
        self.one(Reduce { function: ReduceFn::Sum, axis }, &[])
    }

    /// Mean along an axis, which the result lacks.
    pub fn mean(&self, axis: usize) -> Result<Self> {
        self.one(Reduce { function: ReduceFn::Mean, axis }, &[])
    }

    /// Maximum along an axis, which the result lacks.
    pub fn max(&self, axis: usize) -> Result<Self> {
        self.one(Reduce { function: ReduceFn::Max, axis }, &[])
    }

    /// Sum of all elements, as shape `[1]`.
    pub fn sum_all(&self) -> Result<Self> {
        self.reshape([1, self.shape().elements()])?.sum(1)
    }

    /// The k greatest elements of each row and their indices; see [`TopK`].
    pub fn top_k(&self, k: usize) -> Result<(Self, Self)> {
        let mut outputs = self.graph.record(TopK { k }, &[self])?;
        let indices = outputs.pop().expect("two outputs");
        Ok((outputs.remove(0), indices))
    }

    /// The index of the greatest element of each row; see [`ArgMax`].
    pub fn arg_max(&self) -> Result<Self> {
        self.one(ArgMax, &[])
    }

    /// An element of each row, drawn by its probability; see [`Sample`].
    pub fn sample(&self, settings: &Self, seed: &Self, op: Sample) -> Result<Self> {
        self.one(op, &[settings, seed])
    }

    /// Rows of this table; see [`Embedding`].
    pub fn embedding(&self, ids: &Self, dtype: DType) -> Result<Self> {
        self.one(Embedding { dtype }, &[ids])
    }

    /// Weighted sum of cross-entropies of `x·Wᵀ`; the whole logits are never held; see [`CrossEntropy`].
    pub fn head_cross_entropy(&self, head: &Self, targets: &Self, weights: &Self) -> Result<Self> {
        self.one(CrossEntropy { head: true }, &[head, targets, weights])
    }

    /// Weighted sum of cross-entropies of logits; see [`CrossEntropy`].
    pub fn cross_entropy(&self, targets: &Self, weights: &Self) -> Result<Self> {
        self.one(CrossEntropy { head: false }, &[targets, weights])
    }

    /// Random zeros; see [`Dropout`].
    pub fn dropout(&self, p: f32, stream: u32, seed: &Self) -> Result<Self> {
        self.one(Dropout { p: Real(p), stream }, &[seed])
    }

    /// Another dtype; see [`Cast`].
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype { Ok(self.clone()) } else { self.one(Cast { dtype }, &[]) }
    }

    /// Another shape of as many elements.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if self.shape() == shape { Ok(self.clone()) } else { self.one(Reshape { shape }, &[]) }
    }

    /// The axes in another order.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        self.one(Permute { axes: axes.to_vec() }, &[])
    }

    /// Two axes exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let mut axes: Vec<usize> = (0..self.shape().rank()).collect();
        if a.max(b) >= axes.len() {
            return Err(Error::shape(
                "transpose",
                format!("there are no axes {a} and {b}"),
                &[&self.shape()],
            ));
        }
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// A part of one axis.
    pub fn slice(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.one(Slice { axis, start, len }, &[])
    }

    /// Numpy's broadcast.
    pub fn broadcast(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if self.shape() == shape { Ok(self.clone()) } else { self.one(Broadcast { shape }, &[]) }
    }

    /// This tensor and others, one after the other along an axis.
    pub fn concat(&self, others: &[&Self], axis: usize) -> Result<Self> {
        self.one(Concat { axis }, others)
    }
}

fn broadcast_shape(op: &'static str, a: &Shape, b: &Shape) -> Result<Shape> {
    let rank = a.rank().max(b.rank());
    let dim = |shape: &Shape, axis: usize| {
        let missing = rank - shape.rank();
        if axis < missing { 1 } else { shape[axis - missing] }
    };
    let dims = (0..rank).map(|axis| match (dim(a, axis), dim(b, axis)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    });
    let dims: Option<Vec<usize>> = dims.collect();
    dims.map(Shape::from).ok_or_else(|| Error::shape(op, "the shapes do not broadcast", &[a, b]))
}
