//! Layer norm. See [`crate::ops::LayerNorm`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, real, vector_f32, vector_scratch};
use super::row_blocks::RowBlocks;
use super::vector::{Isa, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{LayerNorm, LayerNormGrad};

/// The mean of a row.
///
/// # Safety
/// `x` is valid for `n` reads.
#[inline(always)]
unsafe fn mean<I: Isa, T: FloatElement>(x: *const T, n: usize) -> f32 {
    let mut sum = V::<I>::splat(0.0);
    chunks!(n, |i, len| {
        // SAFETY: i + len <= n.
        sum = sum + unsafe { V::<I>::load(x.add(i), len, 0.0) };
    });
    sum.sum() / n as f32
}

/// Mean and 1/√(variance + eps) of a row.
///
/// # Safety
/// `x` is valid for `n` reads.
#[inline(always)]
unsafe fn moments<I: Isa, T: FloatElement>(x: *const T, n: usize, eps: f32) -> (f32, f32) {
    // SAFETY: as the caller promises.
    let mean = unsafe { mean::<I, T>(x, n) };
    let mut squares = V::<I>::splat(0.0);
    chunks!(n, |i, len| {
        // SAFETY: i + len <= n. Lanes beyond the row hold the mean and count as 0.
        let d = unsafe { V::<I>::load(x.add(i), len, mean) } - mean;
        squares = d.fma(d, squares);
    });
    (mean, 1.0 / (squares.sum() / n as f32 + eps).sqrt())
}

struct Normed<T> {
    x: In<T>,
    x_stride: usize,
    w: In<f32>,
    b: Option<In<f32>>,
    y: Out<T>,
    n: usize,
    eps: f32,
}

impl<T: FloatElement> Kernel for Normed<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's; a group of lanes is read before it is written.
            unsafe {
                let x = self.x.at(row * self.x_stride);
                let (mean, scale) = moments::<I, T>(x, n, self.eps);
                chunks!(n, |i, len| {
                    let normed = (V::<I>::load(x.add(i), len, 0.0) - mean) * scale;
                    let b = self.b.map_or(V::splat(0.0), |b| V::load(b.at(i), len, 0.0));
                    normed.fma(V::load(self.w.at(i), len, 0.0), b).store(self.y.at(row * n + i), len);
                });
            }
        }
    }
}

pub(super) fn scratch(inputs: &[Operand]) -> usize {
    inputs[1..].iter().map(vector_scratch).sum()
}

pub(super) fn compile(op: &LayerNorm, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (x, w) = (context.inputs[0].clone(), context.inputs[1].clone());
    let b = op.bias.then(|| context.inputs[2].clone());
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, context.scratch);
    let weight_bytes = vector_scratch(&context.step.inputs[1]);
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            let rest = cx.at::<u8>(scratch).add(weight_bytes).cast();
            let b = b.as_ref().map(|b| In(vector_f32(b, cx, rest)));
            real!(x.dtype, |T| {
                let kernel =
                    Normed::<T> { x: In(x.at(cx)), x_stride: x.row_stride(), w, b, y: Out(y.at(cx)), n, eps };
                run(cx.pool, rows, 3 * rows * n, &kernel);
            });
        }
        Ok(())
    }))
}

/// The gradient of rows, an item a [`RowBlocks`] of them: with the row in the first-level cache, `dx` and what the row
/// adds to `dw` and `db`.
struct Gradient<T> {
    dy: In<T>,
    dy_stride: usize,
    x: In<T>,
    x_stride: usize,
    w: In<f32>,
    dx: Option<Out<T>>,
    /// `[parts, n]` each.
    dw: Option<Out<f32>>,
    db: Option<Out<f32>>,
    parts: RowBlocks,
    n: usize,
    eps: f32,
}

impl<T: FloatElement> Kernel for Gradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for part in range {
            for (index, row) in self.parts.rows(part).enumerate() {
                // SAFETY: the row is one of the kernel's, the sums the part's; a group of lanes is read before it is
                // written.
                unsafe {
                    let (dy, x) = (self.dy.at(row * self.dy_stride), self.x.at(row * self.x_stride));
                    let mean = mean::<I, T>(x, n);
                    let zero = V::<I>::splat(0.0);
                    let (mut squares, mut sum, mut dot) = (zero, zero, zero);
                    chunks!(n, |i, len| {
                        // Lanes beyond the row hold the mean and count as 0.
                        let d = V::load(x.add(i), len, mean) - mean;
                        let g = V::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                        squares = d.fma(d, squares);
                        sum = sum + g;
                        dot = g.fma(d, dot);
                    });
                    let scale = 1.0 / (squares.sum() / n as f32 + self.eps).sqrt();
                    let mean_g = sum.sum() / n as f32;
                    let back = V::<I>::splat(-scale * scale * (dot.sum() / n as f32));
                    chunks!(n, |i, len| {
                        let (d, dy) =
                            (V::<I>::load(x.add(i), len, mean) - mean, V::load(dy.add(i), len, 0.0));
                        if let Some(dw) = self.dw {
                            let to = dw.at(part * n + i);
                            let mut old = zero;
                            if index > 0 {
                                old = V::load(to.cast_const(), len, 0.0);
                            }
                            (d * scale).fma(dy, old).store(to, len);
                        }
                        if let Some(db) = self.db {
                            let to = db.at(part * n + i);
                            let mut new = dy;
                            if index > 0 {
                                new = V::load(to.cast_const(), len, 0.0) + dy;
                            }
                            new.store(to, len);
                        }
                        if let Some(dx) = self.dx {
                            let g = dy * V::load(self.w.at(i), len, 0.0);
                            (d.fma(back, g - mean_g) * scale).store(dx.at(row * n + i), len);
                        }
                    });
                }
            }
        }
    }
}

pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    let x = &inputs[1].layout.shape;
    vector_scratch(&inputs[2]) + 2 * sums_bytes(x.rows(), x.last())
}

/// Room for the parts' sums of one gradient.
fn sums_bytes(rows: usize, n: usize) -> usize {
    4 * RowBlocks::of(rows).count * n
}

pub(super) fn compile_grad(op: &LayerNormGrad, context: &OpContext<'_>) -> Result<Call> {
    let (dy, x, w) = (context.inputs[0].clone(), context.inputs[1].clone(), context.inputs[2].clone());
    context.expect(&dy, x.dtype)?;
    let (dx, dw, db) = (context.output(0), context.output(1), context.output(2));
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, context.scratch);
    let (parts, weight_bytes) = (RowBlocks::of(rows), vector_scratch(&context.step.inputs[2]));
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            let sums = cx.at::<u8>(scratch).add(weight_bytes);
            let (dw_sums, db_sums) = (Out(sums.cast()), Out(sums.add(sums_bytes(rows, n)).cast()));
            real!(x.dtype, |T| {
                let kernel = Gradient::<T> {
                    dy: In(dy.at(cx)),
                    dy_stride: dy.row_stride(),
                    x: In(x.at(cx)),
                    x_stride: x.row_stride(),
                    w,
                    dx: dx.as_ref().map(|dx| Out(dx.at(cx))),
                    dw: dw.as_ref().map(|_| dw_sums),
                    db: db.as_ref().map(|_| db_sums),
                    parts,
                    n,
                    eps,
                };
                run(cx.pool, parts.count, 5 * rows * n, &kernel);
            });
            for (gradient, sums) in [(&dw, dw_sums), (&db, db_sums)] {
                if let Some(gradient) = gradient {
                    parts.add_up(cx.pool, sums, Out(gradient.at(cx)), n);
                }
            }
        }
        Ok(())
    }))
}
