//! The greatest elements of each row. See [`crate::ops::TopK`].
//!
//! A row is read k times: the operation serves sampling and evaluation, where k is small.

use std::cmp::Ordering;
use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, run};
use super::op::{Call, OpContext, real};
use super::vector::Isa;
use crate::Result;
use crate::ops::TopK;

/// The order of the results: greater first, NaN before any number, the lower index first among equals.
fn order(a: (f32, u32), b: (f32, u32)) -> Ordering {
    let by_value = match (a.0.is_nan(), b.0.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        // Zeros of both signs are equal, so this is not `total_cmp`.
        (false, false) => b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal),
    };
    by_value.then(a.1.cmp(&b.1))
}

/// One row an item.
struct Greatest<T> {
    x: In<T>,
    values: Option<Out<T>>,
    indices: Option<Out<u32>>,
    n: usize,
    k: usize,
}

impl<T: FloatElement> Kernel for Greatest<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's; the results of a row are its own working memory.
            unsafe {
                let x = self.x.at(row * self.n);
                // In rounds, each finding the first element after the last one found: no memory is needed.
                let mut last: Option<(f32, u32)> = None;
                for rank in 0..self.k {
                    let mut best: Option<(f32, u32)> = None;
                    for i in 0..self.n {
                        let candidate = (x.add(i).read().get(), i as u32);
                        if last.is_none_or(|last| order(last, candidate) == Ordering::Less)
                            && best.is_none_or(|best| order(candidate, best) == Ordering::Less)
                        {
                            best = Some(candidate);
                        }
                    }
                    let Some(found) = best else { break };
                    if let Some(values) = self.values {
                        values.at(row * self.k + rank).write(x.add(found.1 as usize).read());
                    }
                    if let Some(indices) = self.indices {
                        indices.at(row * self.k + rank).write(found.1);
                    }
                    last = best;
                }
            }
        }
    }
}

pub(super) fn compile(op: &TopK, context: &OpContext<'_>) -> Result<Call> {
    greatest(op.k, context, 0, 1)
}

/// Arg-max is the index of the first of the greatest.
pub(super) fn compile_arg_max(context: &OpContext<'_>) -> Result<Call> {
    greatest(1, context, usize::MAX, 0)
}

fn greatest(k: usize, context: &OpContext<'_>, values: usize, indices: usize) -> Result<Call> {
    let x = context.inputs[0].clone();
    let values = if values == usize::MAX { None } else { context.output(values) };
    let indices = context.output(indices);
    let (rows, n) = (x.rows(), x.last());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(x.dtype, |T| {
                let kernel = Greatest::<T> {
                    x: In(x.at(cx)),
                    values: values.as_ref().map(|v| Out(v.at(cx))),
                    indices: indices.as_ref().map(|i| Out(i.at(cx))),
                    n,
                    k,
                };
                run(cx.pool, rows, rows * n * k, &kernel);
            });
        }
        Ok(())
    }))
}
