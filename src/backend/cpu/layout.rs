//! Copies between strides and dtypes, and what is made of them. See [`crate::ops::Copy`].

use std::ops::Range;

use super::element::SimdElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, Run, Tensor, real};
use super::strided::StridedIter;
use super::vector::{Isa, V};
use crate::Result;
use crate::ops::{Concat, Unslice};
use crate::tensor::{DType, Layout};

struct Copied<'a, T, U> {
    walk: &'a StridedIter<2>,
    from: In<T>,
    to: Out<U>,
}

impl<T: SimdElement, U: SimdElement> Kernel for Copied<'_, T, U> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let [from_step, to_step] = self.walk.steps;
        for item in range {
            let piece = self.walk.piece(item);
            // SAFETY: the piece lies within the tensors.
            unsafe {
                let (from, to) = (self.from.at(piece.starts[0]), self.to.at(piece.starts[1]));
                if from_step == 1 && to_step == 1 {
                    chunks!(piece.len, |i, len| {
                        V::<I>::load(from.add(i), len, 0.0).store(to.add(i), len);
                    });
                } else {
                    for i in 0..piece.len {
                        to.add(i * to_step).write(U::of(from.add(i * from_step).read().get()));
                    }
                }
            }
        }
    }
}

/// A copy between two tensors of one shape, prepared.
pub(super) struct Transfer {
    walk: StridedIter<2>,
    from: Tensor,
    to: Tensor,
    elements: usize,
}

impl Transfer {
    pub(super) fn new(from: Tensor, to: Tensor) -> Self {
        Self { walk: StridedIter::new([&from.layout, &to.layout]), elements: from.elements(), from, to }
    }

    /// # Safety
    /// Both tensors belong to the plan that runs.
    unsafe fn run(&self, cx: &Run<'_>) {
        macro_rules! copy {
            ($T:ty, $U:ty) => {{
                // SAFETY: the planner gave the tensors their places.
                unsafe {
                    let kernel = Copied::<$T, $U> {
                        walk: &self.walk,
                        from: In(self.from.at(cx)),
                        to: Out(self.to.at(cx)),
                    };
                    run(cx.pool, self.walk.items(), self.elements, &kernel);
                }
            }};
        }
        match (self.from.dtype, self.to.dtype) {
            // As numbers of the same size: the bits are moved as they are.
            (DType::U32, DType::U32) => copy!(f32, f32),
            (DType::U32, to) => real!(to, |U| copy!(u32, U)),
            (from, DType::U32) => real!(from, |T| copy!(T, u32)),
            (from, to) => real!(from, |T| real!(to, |U| copy!(T, U))),
        }
    }
}

fn in_turn(transfers: Vec<Transfer>) -> Call {
    Box::new(move |cx| {
        for transfer in &transfers {
            // SAFETY: the tensors are the step's.
            unsafe { transfer.run(cx) };
        }
        Ok(())
    })
}

/// A part of an output along an axis.
fn part(output: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
    Tensor { layout: output.layout.sliced(axis, start, len), ..output.clone() }
}

/// Copy and cast.
pub(super) fn compile_copy(context: &OpContext<'_>) -> Result<Call> {
    Ok(in_turn(
        context.output(0).into_iter().map(|to| Transfer::new(context.inputs[0].clone(), to)).collect(),
    ))
}

pub(super) fn compile_concat(op: &Concat, context: &OpContext<'_>) -> Result<Call> {
    let Some(output) = context.output(0) else { return Ok(in_turn(Vec::new())) };
    let mut start = 0;
    let transfers = context.inputs.iter().map(|input| {
        let len = input.layout.shape[op.axis];
        start += len;
        Transfer::new(input.clone(), part(&output, op.axis, start - len, len))
    });
    Ok(in_turn(transfers.collect()))
}

pub(super) fn compile_unslice(op: &Unslice, context: &OpContext<'_>) -> Result<Call> {
    let Some(output) = context.output(0) else { return Ok(in_turn(Vec::new())) };
    let input = &context.inputs[0];
    let len = input.layout.shape[op.axis];
    let to = part(&output, op.axis, op.start, len);
    let transfer = Transfer::new(input.clone(), to);
    let runs = Layout::contiguous(&output.layout.shape);
    let inner = runs.strides[op.axis];
    let size = output.dtype.size();
    let outer: usize = output.layout.shape.dims()[..op.axis].iter().product();
    let (before, after) = (op.start * inner * size, (op.total - op.start - len) * inner * size);
    let whole = op.total * inner * size;
    Ok(Box::new(move |cx| {
        // SAFETY: the output is contiguous: `outer` blocks of `whole` bytes, each with the input's part in it.
        unsafe {
            let start = output.at::<u8>(cx);
            for block in 0..outer {
                let block = start.add(block * whole);
                std::ptr::write_bytes(block, 0, before);
                std::ptr::write_bytes(block.add(whole - after), 0, after);
            }
            transfer.run(cx);
        }
        Ok(())
    }))
}
