//! Drawing one element of each row. See [`crate::ops::Sample`].
//!
//! What is kept is found by halving: the least logit that is still kept is a number of 32 bits, and each of them takes one
//! look at the row. No memory is needed.

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, run};
use super::op::{Call, OpContext, real};
use super::vector::Isa;
use crate::Result;
use crate::ops::{SAMPLE_NONE, Sample, sample_word};

/// One row an item.
struct Rows<T> {
    logits: In<T>,
    drawn: Out<u32>,
    n: usize,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    key: [u32; 2],
    op: Sample,
}

/// A number whose order as an integer is that of the logit; 0 for what is never drawn.
fn ordered(x: f32) -> u32 {
    if x.is_nan() || x == f32::NEG_INFINITY {
        return 0;
    }
    // Zeros of both signs are equal.
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The greatest number for which a sum over what is not less reaches `wanted`; the sum falls as the number grows.
fn last_kept(wanted: f32, sum: impl Fn(u32) -> f32) -> u32 {
    let mut least = 0;
    for bit in (0..32).rev() {
        let next = least | 1 << bit;
        if sum(next) >= wanted {
            least = next;
        }
    }
    least
}

impl<T: FloatElement> Kernel for Rows<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's.
            let logit = |i: usize| unsafe { self.logits.at(row * self.n + i).read().get() };
            let drawn = self.draw(row, &logit);
            // SAFETY: as above.
            unsafe { self.drawn.at(row).write(drawn) };
        }
    }
}

impl<T: FloatElement> Rows<T> {
    fn draw(&self, row: usize, logit: &impl Fn(usize) -> f32) -> u32 {
        let max = (0..self.n).map(logit).filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return SAMPLE_NONE;
        }
        let shifted = |i: usize| {
            let x = logit(i);
            if x == max { 0.0 } else { (x - max) / self.temperature }
        };
        let mut least = 1;
        if self.op.top_k > 0 && self.op.top_k < self.n {
            // Fewer than k are candidates if all are counted: then all are kept.
            let count = |from: u32| (0..self.n).filter(|&i| ordered(logit(i)) >= from).count() as f32;
            least = last_kept(self.op.top_k as f32, count).max(1);
        }
        if self.top_p < 1.0 {
            let sum = |from: u32| -> f32 {
                let kept = (0..self.n).filter(|&i| ordered(logit(i)) >= from.max(least));
                kept.map(|i| f64::from(shifted(i).exp())).sum::<f64>() as f32
            };
            let reached = last_kept(self.top_p * sum(least), sum);
            least = least.max(reached);
        }
        let mut best = (f32::NEG_INFINITY, SAMPLE_NONE);
        for i in 0..self.n {
            let x = logit(i);
            let kept = ordered(x) >= least && (x == max || shifted(i).exp() >= self.min_p);
            if !kept {
                continue;
            }
            let score = if self.temperature == 0.0 {
                x
            } else {
                let word = sample_word(i, row, self.op.stream, self.key);
                let u = ((word >> 9) as f32 + 0.5) / 8_388_608.0;
                shifted(i) - (-u.ln()).ln()
            };
            if best.1 == SAMPLE_NONE || score > best.0 {
                best = (score, i as u32);
            }
        }
        best.1
    }
}

pub(super) fn compile(op: &Sample, context: &OpContext<'_>) -> Result<Call> {
    let Some(drawn) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let [logits, settings, seed] = [0, 1, 2].map(|index| context.inputs[index].clone());
    let (rows, n, op) = (logits.rows(), logits.last(), op.clone());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let [temperature, top_p, min_p] = settings.at::<[f32; 3]>(cx).read();
            let key = seed.at::<[u32; 2]>(cx).read();
            real!(logits.dtype, |T| {
                let kernel = Rows::<T> {
                    logits: In(logits.at(cx)),
                    drawn: Out(drawn.at(cx)),
                    n,
                    temperature,
                    top_p,
                    min_p,
                    key,
                    op: op.clone(),
                };
                run(cx.pool, rows, 32 * rows * n, &kernel);
            });
        }
        Ok(())
    }))
}
