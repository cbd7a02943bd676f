//! Layer norm. See [`crate::ops::LayerNorm`].

use std::ops::Range;

use super::executor::{Call, Site, real, vector_f32, vector_scratch};
use super::kernel::{In, Kernel, Out, chunks, run};
use super::number::Real;
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{LayerNorm, LayerNormGrad};

/// Mean and 1/√(variance + eps) of a row.
///
/// # Safety
/// `x` is valid for `n` reads.
#[inline(always)]
unsafe fn moments<I: Isa, T: Real>(x: *const T, n: usize, eps: f32) -> (f32, f32) {
    let mut sum = V::<I>::splat(0.0);
    chunks!(n, |i, len| {
        // SAFETY: i + len <= n.
        sum = sum + unsafe { V::<I>::load(x.add(i), len, 0.0) };
    });
    let mean = sum.sum() / n as f32;
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

impl<T: Real> Kernel for Normed<T> {
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

pub(super) fn compile(op: &LayerNorm, site: &Site<'_>) -> Result<Call> {
    let Some(y) = site.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (x, w) = (site.inputs[0].clone(), site.inputs[1].clone());
    let b = op.bias.then(|| site.inputs[2].clone());
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, site.scratch);
    let weight_bytes = vector_scratch(&site.step.inputs[1]);
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

struct Gradient<T> {
    dy: In<T>,
    dy_stride: usize,
    x: In<T>,
    x_stride: usize,
    w: In<f32>,
    dx: Option<Out<T>>,
    /// Mean and scale of each row, for the weights' gradients.
    moments: Out<[f32; 2]>,
    n: usize,
    eps: f32,
}

impl<T: Real> Kernel for Gradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's; dx lies apart from dy and x.
            unsafe {
                let (dy, x) = (self.dy.at(row * self.dy_stride), self.x.at(row * self.x_stride));
                let (mean, scale) = moments::<I, T>(x, n, self.eps);
                self.moments.at(row).write([mean, scale]);
                let Some(dx) = self.dx else { continue };
                let (mut sum, mut dot) = (V::<I>::splat(0.0), V::<I>::splat(0.0));
                chunks!(n, |i, len| {
                    let g = V::<I>::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                    sum = sum + g;
                    dot = g.fma(V::load(x.add(i), len, mean) - mean, dot);
                });
                let mean_g = sum.sum() / n as f32;
                let back = V::<I>::splat(-scale * scale * (dot.sum() / n as f32));
                chunks!(n, |i, len| {
                    let g = V::<I>::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                    let centred = V::load(x.add(i), len, mean) - mean;
                    (centred.fma(back, g - mean_g) * scale).store(dx.at(row * n + i), len);
                });
            }
        }
    }
}

/// `dw` and `db`, an item a group of columns.
struct WeightGradient<T> {
    dy: In<T>,
    dy_stride: usize,
    x: In<T>,
    x_stride: usize,
    moments: In<[f32; 2]>,
    dw: Option<Out<f32>>,
    db: Option<Out<f32>>,
    rows: usize,
    n: usize,
}

impl<T: Real> Kernel for WeightGradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let column = item * LANES;
            let len = LANES.min(self.n - column);
            let (mut dw, mut db) = (V::<I>::splat(0.0), V::<I>::splat(0.0));
            // SAFETY: the columns are the item's.
            unsafe {
                for row in 0..self.rows {
                    let [mean, scale] = self.moments.at(row).read();
                    let dy = V::<I>::load(self.dy.at(row * self.dy_stride + column), len, 0.0);
                    let x = V::load(self.x.at(row * self.x_stride + column), len, 0.0);
                    dw = ((x - mean) * scale).fma(dy, dw);
                    db = db + dy;
                }
                if let Some(to) = self.dw {
                    dw.store(to.at(column), len);
                }
                if let Some(to) = self.db {
                    db.store(to.at(column), len);
                }
            }
        }
    }
}

pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    vector_scratch(&inputs[2]) + 8 * inputs[1].layout.shape.rows()
}

pub(super) fn compile_grad(op: &LayerNormGrad, site: &Site<'_>) -> Result<Call> {
    let (dy, x, w) = (site.inputs[0].clone(), site.inputs[1].clone(), site.inputs[2].clone());
    site.expect(&dy, x.dtype)?;
    let (dx, dw, db) = (site.output(0), site.output(1), site.output(2));
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, site.scratch);
    let weight_bytes = vector_scratch(&site.step.inputs[2]);
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            let moments = cx.at::<u8>(scratch).add(weight_bytes).cast::<[f32; 2]>();
            real!(x.dtype, |T| {
                let (dy_start, x_start) = (In(dy.at::<T>(cx).cast_const()), In(x.at::<T>(cx).cast_const()));
                let (dy_stride, x_stride) = (dy.row_stride(), x.row_stride());
                let kernel = Gradient {
                    dy: dy_start,
                    dy_stride,
                    x: x_start,
                    x_stride,
                    w,
                    dx: dx.as_ref().map(|dx| Out(dx.at(cx))),
                    moments: Out(moments),
                    n,
                    eps,
                };
                run(cx.pool, rows, 5 * rows * n, &kernel);
                if dw.is_some() || db.is_some() {
                    let kernel = WeightGradient {
                        dy: dy_start,
                        dy_stride,
                        x: x_start,
                        x_stride,
                        moments: In(moments),
                        dw: dw.as_ref().map(|dw| Out(dw.at(cx))),
                        db: db.as_ref().map(|db| Out(db.at(cx))),
                        rows,
                        n,
                    };
                    run(cx.pool, n.div_ceil(LANES), 2 * rows * n, &kernel);
                }
            });
        }
        Ok(())
    }))
}
