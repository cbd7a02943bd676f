//! Dropout. See [`crate::ops::Dropout`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, run};
use super::op::{Call, OpContext, real};
use super::vector::Isa;
use crate::Result;
use crate::ops::{Dropout, philox};

/// Counters of an item; each gives four words.
const BLOCK: usize = 256;

struct Dropped<T> {
    x: In<T>,
    y: Out<T>,
    key: [u32; 2],
    stream: u32,
    threshold: u32,
    scale: f32,
    elements: usize,
}

impl<T: FloatElement> Kernel for Dropped<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for counter in range.start * BLOCK..(range.end * BLOCK).min(self.elements.div_ceil(4)) {
            let words = philox([counter as u32, (counter as u64 >> 32) as u32, self.stream, 0], self.key);
            for (lane, word) in words.into_iter().enumerate() {
                let i = 4 * counter + lane;
                if i < self.elements {
                    // SAFETY: the element is the kernel's.
                    unsafe {
                        let x = self.x.at(i).read().get();
                        // A product, so that NaN and infinities are not hidden where they are dropped.
                        let factor = if word >= self.threshold { self.scale } else { 0.0 };
                        self.y.at(i).write(T::of(x * factor));
                    }
                }
            }
        }
    }
}

pub(super) fn compile(op: &Dropout, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (x, seed) = (context.inputs[0].clone(), context.inputs[1].clone());
    let (stream, threshold) = (op.stream, op.threshold());
    let scale = (1.0 / (1.0 - f64::from(op.p.0))) as f32;
    let elements = x.elements();
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let key = seed.at::<[u32; 2]>(cx).read();
            real!(x.dtype, |T| {
                let kernel = Dropped::<T> {
                    x: In(x.at(cx)),
                    y: Out(y.at(cx)),
                    key,
                    stream,
                    threshold,
                    scale,
                    elements,
                };
                run(cx.pool, elements.div_ceil(4 * BLOCK), 8 * elements, &kernel);
            });
        }
        Ok(())
    }))
}
