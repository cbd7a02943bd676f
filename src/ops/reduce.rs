//! Sums, means and maxima along an axis, and the global norm.

use super::reference::Reference;
use super::softmax::{check_axis, split};
use super::{
    Affine, Backward, Binary, BinaryFn, Broadcast, Operation, Real, Reshape, Value, expect_float,
    expect_inputs,
};
use crate::tensor::{Shape, TensorSpec};
use crate::{Error, Result};

/// What a reduction computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceFn {
    /// Σ x
    Sum,
    /// Σ x / n
    Mean,
    /// the greatest x; NaN if any is. The gradient goes to every element that equals it.
    Max,
}

/// Reduces one axis, which the output lacks. Sums in f32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reduce {
    /// What is computed.
    pub function: ReduceFn,
    /// The axis.
    pub axis: usize,
}

/// `√(Σ over all inputs Σ x²)`, f32 `[1]`: the norm by which gradients are clipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GlobalNorm;

impl Operation for Reduce {
    fn name(&self) -> &'static str {
        match self.function {
            ReduceFn::Sum => "sum",
            ReduceFn::Mean => "mean",
            ReduceFn::Max => "max_reduce",
        }
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_float(self.name(), &[&inputs[0]])?;
        check_axis(self.name(), &inputs[0].shape, self.axis)?;
        if inputs[0].shape[self.axis] == 0 && self.function != ReduceFn::Sum {
            return Err(Error::shape(self.name(), "the axis is empty", &[&inputs[0].shape]));
        }
        let mut dims = inputs[0].shape.dims().to_vec();
        dims.remove(self.axis);
        Ok(vec![TensorSpec::new(inputs[0].dtype, dims)])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let shape = cx.input_spec(0).shape;
        let mut kept = shape.dims().to_vec();
        kept[self.axis] = 1;
        let spread = |cx: &mut Backward<'_>, value| -> Result<Value> {
            let value = cx.one(Reshape::new(kept.clone()), &[value])?;
            cx.one(Broadcast { shape: shape.clone() }, &[value])
        };
        let dx = spread(cx, dy)?;
        Ok(vec![Some(match self.function {
            ReduceFn::Sum => dx,
            ReduceFn::Mean => {
                cx.one(Affine { mul: Real(1.0 / shape[self.axis] as f32), add: Real(0.0) }, &[dx])?
            }
            ReduceFn::Max => {
                let max = spread(cx, cx.outputs[0])?;
                let is_max = cx.one(Binary { function: BinaryFn::Ge }, &[cx.inputs[0], max])?;
                cx.one(Binary { function: BinaryFn::Mul }, &[dx, is_max])?
            }
        })])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let x = &inputs[0];
        let (outer, len, inner) = split(&x.shape, self.axis);
        let mut dims = x.shape.dims().to_vec();
        dims.remove(self.axis);
        let data = (0..outer * inner)
            .map(|index| {
                let slice = (0..len).map(|i| x.data[(index / inner * len + i) * inner + index % inner]);
                match self.function {
                    ReduceFn::Sum => slice.sum(),
                    ReduceFn::Mean => slice.sum::<f64>() / len as f64,
                    ReduceFn::Max => slice.fold(f64::NEG_INFINITY, |a, b| BinaryFn::Max.value(a, b)),
                }
            })
            .collect();
        vec![Reference::new(Shape::from(dims), data)]
    }
}

impl Operation for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        if let Some(other) = inputs.iter().find(|spec| spec.dtype != crate::tensor::DType::F32) {
            return Err(Error::dtype("global_norm", "takes f32", &[other.dtype]));
        }
        Ok(vec![TensorSpec::f32([1])])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs.iter().map(|spec| 2 * spec.shape.elements() as u64).sum()
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let sum: f64 = inputs.iter().flat_map(|x| &x.data).map(|x| x * x).sum();
        vec![Reference::new([1], vec![sum.sqrt()])]
    }
}
