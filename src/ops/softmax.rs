//! Softmax and log-softmax along an axis.

use super::reference::Reference;
use super::{Backward, Operation, Value, expect_float, expect_inputs, expect_spec};
use crate::tensor::{Layout, Shape, TensorSpec};
use crate::{Error, Result};

/// `y = exp(x − max x) / Σ exp(x − max x)` along one axis. A slice that is all −∞, or holds +∞ or NaN, gives NaN.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
}

/// `y = x − max x − log Σ exp(x − max x)` along one axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogSoftmax {
    /// The axis.
    pub axis: usize,
}

/// The gradient of [`Softmax`]: `dx = y·(dy − Σ dy·y)`. Inputs: dy and the forward's output y.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SoftmaxGrad {
    /// The axis.
    pub axis: usize,
}

/// The gradient of [`LogSoftmax`]: `dx = dy − exp(y)·Σ dy`. Inputs: dy and the forward's output y.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogSoftmaxGrad {
    /// The axis.
    pub axis: usize,
}

/// Sizes before, along and after an axis.
pub(crate) fn split(shape: &Shape, axis: usize) -> (usize, usize, usize) {
    let dims = shape.dims();
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}

pub(crate) fn check_axis(op: &'static str, shape: &Shape, axis: usize) -> Result<()> {
    if axis < shape.rank() {
        return Ok(());
    }
    Err(Error::shape(op, format!("there is no axis {axis}"), &[shape]))
}

fn infer_same(op: &'static str, axis: usize, inputs: &[TensorSpec], count: usize) -> Result<Vec<TensorSpec>> {
    expect_inputs(op, inputs, count)?;
    expect_float(op, &[&inputs[0]])?;
    check_axis(op, &inputs[0].shape, axis)?;
    for other in &inputs[1..] {
        expect_spec(op, "the forward output", other, &inputs[0])?;
    }
    Ok(vec![inputs[0].clone()])
}

/// Applies `f` to the slices along `axis` of several tensors of one shape.
fn along(inputs: &[Reference], axis: usize, f: impl Fn(&[Vec<f64>]) -> Vec<f64>) -> Vec<Reference> {
    let (outer, len, inner) = split(&inputs[0].shape, axis);
    let mut result = Reference::zeros(inputs[0].shape.clone());
    for (before, after) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let index = |position: usize| (before * len + position) * inner + after;
        let slices: Vec<Vec<f64>> =
            inputs.iter().map(|x| (0..len).map(|position| x.data[index(position)]).collect()).collect();
        for (position, value) in f(&slices).into_iter().enumerate() {
            result.data[index(position)] = value;
        }
    }
    vec![result]
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, |a, b| if b.is_nan() { b } else { a.max(b) });
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

macro_rules! shared_rules {
    ($op:ty, $name:literal, $inputs:literal, $flops:literal) => {
        fn name(&self) -> &'static str {
            $name
        }

        fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
            infer_same($name, self.axis, inputs, $inputs)
        }

        fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
            $flops * inputs[0].shape.elements() as u64
        }

        fn donations(&self) -> Vec<(usize, usize)> {
            vec![(0, 0)]
        }

        fn accepts(&self, _input: usize, layout: &Layout) -> bool {
            layout.is_contiguous() || (self.axis + 1 == layout.shape.rank() && layout.row_stride().is_some())
        }
    };
}

impl Operation for Softmax {
    shared_rules!(Softmax, "softmax", 1, 5);

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        Ok(vec![Some(cx.one(SoftmaxGrad { axis: self.axis }, &[dy, cx.outputs[0]])?)])
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        along(inputs, self.axis, |x| {
            let total = log_sum_exp(&x[0]);
            x[0].iter().map(|v| (v - total).exp()).collect()
        })
    }
}

impl Operation for LogSoftmax {
    shared_rules!(LogSoftmax, "log_softmax", 1, 5);

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        Ok(vec![Some(cx.one(LogSoftmaxGrad { axis: self.axis }, &[dy, cx.outputs[0]])?)])
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        along(inputs, self.axis, |x| {
            let total = log_sum_exp(&x[0]);
            x[0].iter().map(|v| v - total).collect()
        })
    }
}

impl Operation for SoftmaxGrad {
    shared_rules!(SoftmaxGrad, "softmax_grad", 2, 4);

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        along(inputs, self.axis, |x| {
            let dot: f64 = x[0].iter().zip(&x[1]).map(|(dy, y)| dy * y).sum();
            x[0].iter().zip(&x[1]).map(|(dy, y)| y * (dy - dot)).collect()
        })
    }
}

impl Operation for LogSoftmaxGrad {
    shared_rules!(LogSoftmaxGrad, "log_softmax_grad", 2, 5);

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        along(inputs, self.axis, |x| {
            let sum: f64 = x[0].iter().sum();
            x[0].iter().zip(&x[1]).map(|(dy, y)| dy - y.exp() * sum).collect()
        })
    }
}
