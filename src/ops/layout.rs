//! Operations that change where elements stand, not what they are. Most are views and cost nothing.

use super::reference::Reference;
use super::{Backward, Operation, Reduce, ReduceFn, Value, expect_inputs};
use crate::tensor::{Layout, Shape, TensorSpec};
use crate::{Error, Result};

/// The same elements in the same order under another shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reshape {
    /// The new shape.
    pub shape: Shape,
}

impl Reshape {
    /// To this shape.
    pub fn new(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into() }
    }
}

/// The axes in another order: axis i of the output is axis `axes[i]` of the input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Permute {
    /// Where each output axis comes from.
    pub axes: Vec<usize>,
}

/// Elements `start..start + len` of one axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The axis.
    pub axis: usize,
    /// The first element.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// The gradient of [`Slice`]: zeros, but for the slice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unslice {
    /// The axis.
    pub axis: usize,
    /// Where the input goes.
    pub start: usize,
    /// The output's length along the axis.
    pub total: usize,
}

/// Numpy's broadcast: axes of length 1, and missing leading axes, are repeated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broadcast {
    /// The new shape.
    pub shape: Shape,
}

/// Tensors one after the other along an axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

/// A contiguous copy. The planner puts it in where a kernel cannot take a view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Copy;

/// The elements of a layout over a buffer, in row-major order of the layout's shape.
fn gather(buffer: &[f64], layout: &Layout) -> Vec<f64> {
    let dims = layout.shape.dims();
    (0..layout.shape.elements())
        .map(|index| {
            let (mut rest, mut at) = (index, layout.offset);
            for axis in (0..dims.len()).rev() {
                at += rest % dims[axis] * layout.strides[axis];
                rest /= dims[axis];
            }
            buffer[at]
        })
        .collect()
}

fn reference_view(op: &dyn Operation, input: &Reference) -> Vec<Reference> {
    let layout = op.view(&Layout::contiguous(&input.shape)).expect("a contiguous input has a view");
    vec![Reference::new(layout.shape.clone(), gather(&input.data, &layout))]
}

macro_rules! view_rules {
    ($name:literal) => {
        fn name(&self) -> &'static str {
            $name
        }

        fn differentiable(&self, _input: usize) -> bool {
            true
        }

        fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
            0
        }

        fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
            reference_view(self, &inputs[0])
        }

        fn accepts(&self, _input: usize, layout: &Layout) -> bool {
            self.view(layout).is_some()
        }
    };
}

impl Operation for Reshape {
    view_rules!("reshape");

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("reshape", inputs, 1)?;
        if inputs[0].shape.elements() != self.shape.elements() {
            return Err(Error::shape(
                "reshape",
                "numbers of elements differ",
                &[&inputs[0].shape, &self.shape],
            ));
        }
        Ok(vec![TensorSpec::new(inputs[0].dtype, self.shape.clone())])
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let shape = cx.input_spec(0).shape;
        Ok(vec![Some(cx.one(Self { shape }, &[dy])?)])
    }

    fn view(&self, input: &Layout) -> Option<Layout> {
        input.reshaped(&self.shape)
    }
}

impl Operation for Permute {
    view_rules!("permute");

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("permute", inputs, 1)?;
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..inputs[0].shape.rank()) {
            let message = format!("{:?} does not name every axis once", self.axes);
            return Err(Error::shape("permute", message, &[&inputs[0].shape]));
        }
        let dims: Vec<usize> = self.axes.iter().map(|&axis| inputs[0].shape[axis]).collect();
        Ok(vec![TensorSpec::new(inputs[0].dtype, dims)])
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let mut axes = vec![0; self.axes.len()];
        for (to, &from) in self.axes.iter().enumerate() {
            axes[from] = to;
        }
        Ok(vec![Some(cx.one(Self { axes }, &[dy])?)])
    }

    fn view(&self, input: &Layout) -> Option<Layout> {
        Some(input.permuted(&self.axes))
    }
}

impl Operation for Slice {
    view_rules!("slice");

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("slice", inputs, 1)?;
        let shape = &inputs[0].shape;
        if self.axis >= shape.rank() || self.start + self.len > shape[self.axis] {
            let message = format!("axis {} has no elements {}+{}", self.axis, self.start, self.len);
            return Err(Error::shape("slice", message, &[shape]));
        }
        let mut dims = shape.dims().to_vec();
        dims[self.axis] = self.len;
        Ok(vec![TensorSpec::new(inputs[0].dtype, dims)])
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let total = cx.input_spec(0).shape[self.axis];
        Ok(vec![Some(cx.one(Unslice { axis: self.axis, start: self.start, total }, &[dy])?)])
    }

    fn view(&self, input: &Layout) -> Option<Layout> {
        Some(input.sliced(self.axis, self.start, self.len))
    }
}

impl Operation for Broadcast {
    view_rules!("broadcast");

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("broadcast", inputs, 1)?;
        let from = &inputs[0].shape;
        let fits = from.rank() <= self.shape.rank() && {
            let tail = &self.shape.dims()[self.shape.rank() - from.rank()..];
            from.dims().iter().zip(tail).all(|(&a, &b)| a == b || a == 1)
        };
        if !fits {
            return Err(Error::shape("broadcast", "the shapes do not fit", &[from, &self.shape]));
        }
        Ok(vec![TensorSpec::new(inputs[0].dtype, self.shape.clone())])
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(mut dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let from = cx.input_spec(0).shape;
        let new_axes = self.shape.rank() - from.rank();
        for axis in (0..self.shape.rank()).rev() {
            if axis < new_axes || from[axis - new_axes] != self.shape[axis] {
                dy = cx.one(Reduce { function: ReduceFn::Sum, axis }, &[dy])?;
            }
        }
        Ok(vec![Some(cx.one(Reshape { shape: from }, &[dy])?)])
    }

    fn view(&self, input: &Layout) -> Option<Layout> {
        Some(input.broadcast(&self.shape))
    }
}

impl Operation for Unslice {
    fn name(&self) -> &'static str {
        "unslice"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("unslice", inputs, 1)?;
        let shape = &inputs[0].shape;
        if self.axis >= shape.rank() || self.start + shape[self.axis] > self.total {
            return Err(Error::shape("unslice", format!("does not fit into {}", self.total), &[shape]));
        }
        let mut dims = shape.dims().to_vec();
        dims[self.axis] = self.total;
        Ok(vec![TensorSpec::new(inputs[0].dtype, dims)])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        let len = cx.input_spec(0).shape[self.axis];
        Ok(vec![Some(cx.one(Slice { axis: self.axis, start: self.start, len }, &[dy])?)])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let shape = &inputs[0].shape;
        let zeros = |len: usize| {
            let mut dims = shape.dims().to_vec();
            dims[self.axis] = len;
            Reference::zeros(dims)
        };
        let after = self.total - self.start - shape[self.axis];
        Concat { axis: self.axis }.reference(&[zeros(self.start), inputs[0].clone(), zeros(after)])
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let Some(first) = inputs.first() else { return Err(Error::invalid("concat", "needs an input")) };
        if self.axis >= first.shape.rank() {
            return Err(Error::shape("concat", format!("there is no axis {}", self.axis), &[&first.shape]));
        }
        let others = |spec: &TensorSpec| {
            let mut dims = spec.shape.dims().to_vec();
            dims[self.axis] = 0;
            (spec.dtype, dims)
        };
        let fits =
            |spec: &&TensorSpec| spec.shape.rank() == first.shape.rank() && others(spec) == others(first);
        if inputs.iter().filter(fits).count() != inputs.len() {
            let shapes: Vec<_> = inputs.iter().map(|spec| &spec.shape).collect();
            return Err(Error::shape("concat", "rank, dtype and the other axes must be equal", &shapes));
        }
        let mut dims = first.shape.dims().to_vec();
        dims[self.axis] = inputs.iter().map(|spec| spec.shape[self.axis]).sum();
        Ok(vec![TensorSpec::new(first.dtype, dims)])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; cx.inputs.len()]) };
        let mut start = 0;
        (0..cx.inputs.len())
            .map(|input| {
                let len = cx.input_spec(input).shape[self.axis];
                start += len;
                Ok(Some(cx.one(Slice { axis: self.axis, start: start - len, len }, &[dy])?))
            })
            .collect()
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let specs: Vec<_> = inputs.iter().map(|x| TensorSpec::f32(x.shape.clone())).collect();
        let shape = self.infer(&specs).expect("shapes fit").remove(0).shape;
        let outer: usize = shape.dims()[..self.axis].iter().product();
        let mut data = Vec::with_capacity(shape.elements());
        for before in 0..outer {
            for x in inputs {
                let run = x.data.len() / outer;
                data.extend_from_slice(&x.data[before * run..][..run]);
            }
        }
        vec![Reference::new(shape, data)]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }
}

impl Operation for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("copy", inputs, 1)?;
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![cx.upstream[0]])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![inputs[0].clone()]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }
}
