//! Rotary position embedding. See [`crate::ops::Rope`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, real};
use super::vector::{Isa, V};
use crate::Result;
use crate::backend::reference::index_error;
use crate::ops::Rope;

struct Rotated<T> {
    x: In<T>,
    /// Steps between tokens and heads.
    steps: [usize; 2],
    y: Out<T>,
    cos: In<f32>,
    sin: In<f32>,
    positions: In<u32>,
    heads: usize,
    half: usize,
    sign: f32,
}

impl<T: FloatElement> Kernel for Rotated<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let half = self.half;
        for token in range {
            // SAFETY: the token is one of the kernel's, its position was checked; both halves are read before
            // they are written.
            unsafe {
                let position = self.positions.at(token).read() as usize;
                let (cos, sin) = (self.cos.at(position * half), self.sin.at(position * half));
                for head in 0..self.heads {
                    let x = self.x.at(token * self.steps[0] + head * self.steps[1]);
                    let y = self.y.at((token * self.heads + head) * 2 * half);
                    chunks!(half, |i, len| {
                        let (c, s) =
                            (V::<I>::load(cos.add(i), len, 0.0), V::load(sin.add(i), len, 0.0) * self.sign);
                        let (a, b) = (V::load(x.add(i), len, 0.0), V::load(x.add(half + i), len, 0.0));
                        (-b).fma(s, a * c).store(y.add(i), len);
                        a.fma(s, b * c).store(y.add(half + i), len);
                    });
                }
            }
        }
    }
}

pub(super) fn compile(op: &Rope, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let [x, cos, sin, positions] = [0, 1, 2, 3].map(|i| context.inputs[i].clone());
    let shape = &x.layout.shape;
    let (tokens, heads, half) = (shape[0], shape[1], shape[2] / 2);
    let limit = cos.layout.shape[0];
    let sign = if op.inverse { -1.0 } else { 1.0 };
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let start = positions.at::<u32>(cx);
            let wrong = std::slice::from_raw_parts(start, tokens).iter().find(|&&p| p as usize >= limit);
            if let Some(&wrong) = wrong {
                return Err(index_error("rope", "position", wrong as usize, limit));
            }
            real!(x.dtype, |T| {
                let kernel = Rotated::<T> {
                    x: In(x.at(cx)),
                    steps: [x.layout.strides[0], x.layout.strides[1]],
                    y: Out(y.at(cx)),
                    cos: In(cos.at(cx)),
                    sin: In(sin.at(cx)),
                    positions: In(start),
                    heads,
                    half,
                    sign,
                };
                run(cx.pool, tokens, 2 * tokens * heads * half, &kernel);
            });
        }
        Ok(())
    }))
}
