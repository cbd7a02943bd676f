//! Sums, means and maxima along an axis, and the global norm. See [`crate::ops::Reduce`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, real};
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{Reduce, ReduceFn, split};

/// Elements whose squares one item of the global norm adds up.
const BLOCK: usize = 8192;

/// The neutral element, and how two values become one; NaN stays.
#[inline(always)]
fn combine<I: Isa>(function: ReduceFn, sum: V<I>, x: V<I>) -> V<I> {
    match function {
        ReduceFn::Sum | ReduceFn::Mean => sum + x,
        ReduceFn::Max => sum.or_else(sum.is_nan(), sum.max(x)),
    }
}

fn neutral(function: ReduceFn) -> f32 {
    if function == ReduceFn::Max { f32::NEG_INFINITY } else { 0.0 }
}

/// Along the last axis, an item a row.
struct Rows<T> {
    x: In<T>,
    y: Out<T>,
    n: usize,
    function: ReduceFn,
}

impl<T: FloatElement> Kernel for Rows<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let fill = neutral(self.function);
        for row in range {
            let mut sum = V::<I>::splat(fill);
            // SAFETY: the row is one of the kernel's.
            unsafe {
                let x = self.x.at(row * self.n);
                chunks!(self.n, |i, len| {
                    sum = combine(self.function, sum, V::load(x.add(i), len, fill));
                });
                let result = match self.function {
                    ReduceFn::Sum => sum.sum(),
                    ReduceFn::Mean => sum.sum() / self.n as f32,
                    ReduceFn::Max if I::any(sum.is_nan()) => f32::NAN,
                    ReduceFn::Max => sum.greatest(),
                };
                self.y.at(row).write(T::of(result));
            }
        }
    }
}

/// Along a middle axis of `[outer, axis, inner]`, an item [`LANES`] neighbouring slices.
struct Columns<T> {
    x: In<T>,
    y: Out<T>,
    axis: usize,
    inner: usize,
    function: ReduceFn,
}

impl<T: FloatElement> Kernel for Columns<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let groups = self.inner.div_ceil(LANES);
        for item in range {
            let (outer, column) = (item / groups, item % groups * LANES);
            let len = LANES.min(self.inner - column);
            let mut sum = V::<I>::splat(neutral(self.function));
            // SAFETY: the slices are the kernel's.
            unsafe {
                for i in 0..self.axis {
                    let x = V::load(self.x.at((outer * self.axis + i) * self.inner + column), len, 0.0);
                    sum = combine(self.function, sum, x);
                }
                if self.function == ReduceFn::Mean {
                    sum = sum / self.axis as f32;
                }
                sum.store(self.y.at(outer * self.inner + column), len);
            }
        }
    }
}

pub(super) fn compile(op: &Reduce, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let x = context.inputs[0].clone();
    let (outer, axis, inner) = split(&x.layout.shape, op.axis);
    let (function, elements) = (op.function, x.elements());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(x.dtype, |T| {
                let (x, y) = (In(x.at::<T>(cx).cast_const()), Out(y.at(cx)));
                if inner == 1 {
                    run(cx.pool, outer, elements, &Rows { x, y, n: axis, function });
                } else {
                    let items = outer * inner.div_ceil(LANES);
                    run(cx.pool, items, elements, &Columns { x, y, axis, inner, function });
                }
            });
        }
        Ok(())
    }))
}

/// Sums of squares of blocks, in an order that does not depend on the number of threads.
struct Squares {
    x: In<f32>,
    sums: Out<f64>,
    elements: usize,
}

impl Kernel for Squares {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let start = item * BLOCK;
            // SAFETY: the block is the item's.
            unsafe {
                let x = self.x.at(start);
                let mut total = 0.0;
                // Groups of 1024 in f32, their sums in f64: squares of large gradients do not drown small ones.
                for group in (0..BLOCK.min(self.elements - start)).step_by(1024) {
                    let mut sum = V::<I>::splat(0.0);
                    chunks!(1024.min(self.elements - start - group), |i, len| {
                        let x = V::load(x.add(group + i), len, 0.0);
                        sum = x.fma(x, sum);
                    });
                    total += f64::from(sum.sum());
                }
                self.sums.at(item).write(total);
            }
        }
    }
}

pub(super) fn norm_scratch(inputs: &[Operand]) -> usize {
    let blocks = inputs.iter().map(|operand| operand.layout.shape.elements().div_ceil(BLOCK)).max();
    8 * blocks.unwrap_or(0)
}

pub(super) fn compile_norm(context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (inputs, scratch) = (context.inputs.clone(), context.scratch);
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let sums = cx.at::<f64>(scratch);
            let mut total = 0.0;
            for x in &inputs {
                let elements = x.elements();
                let blocks = elements.div_ceil(BLOCK);
                let kernel = Squares { x: In(x.at(cx)), sums: Out(sums), elements };
                run(cx.pool, blocks, elements, &kernel);
                total += std::slice::from_raw_parts(sums, blocks).iter().sum::<f64>();
            }
            y.at::<f32>(cx).write(total.sqrt() as f32);
        }
        Ok(())
    }))
}
