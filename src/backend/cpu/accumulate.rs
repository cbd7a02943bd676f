//! Adding up gradients. See [`crate::ops::Accumulate`].

use std::ops::Range;

use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext};
use super::vector::{Isa, V};
use crate::Result;

/// Elements of an item.
const BLOCK: usize = 1024;

struct Added {
    sum: Out<f32>,
    g: In<f32>,
    keep: f32,
    elements: usize,
}

impl Kernel for Added {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let (start, end) = (range.start * BLOCK, self.elements.min(range.end * BLOCK));
        // SAFETY: the elements are the kernel's.
        unsafe {
            let (sum, g) = (self.sum.at(start), self.g.at(start));
            chunks!(end - start, |i, len| {
                let new = V::<I>::load(g.add(i), len, 0.0);
                // With keep = 0 the old sum is not looked at: it may be NaN.
                let new = if self.keep == 0.0 {
                    new
                } else {
                    V::load(sum.add(i), len, 0.0).fma(V::splat(self.keep), new)
                };
                new.store(sum.add(i), len);
            });
        }
    }
}

pub(super) fn compile(context: &OpContext<'_>) -> Result<Call> {
    let (tensors, keep) = context.inputs.split_at(context.inputs.len() - 1);
    let (keep, tensors) = (keep[0].clone(), tensors.to_vec());
    Ok(Box::new(move |cx| {
        for tensor in tensors.chunks(2) {
            let elements = tensor[0].elements();
            // SAFETY: the tensors belong to the plan that runs.
            unsafe {
                let keep = keep.at::<f32>(cx).read();
                let kernel = Added { sum: Out(tensor[0].at(cx)), g: In(tensor[1].at(cx)), keep, elements };
                run(cx.pool, elements.div_ceil(BLOCK), elements, &kernel);
            }
        }
        Ok(())
    }))
}
