//! Root-mean-square norm. See [`crate::ops::RmsNorm`].

use std::ops::Range;

use super::executor::{Call, Site, real, vector_f32, vector_scratch};
use super::kernel::{In, Kernel, Out, chunks, run};
use super::number::Real;
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{RmsNorm, RmsNormGrad};

struct Normed<T> {
    x: In<T>,
    x_stride: usize,
    r: Option<(In<T>, usize)>,
    w: In<f32>,
    y: Option<Out<T>>,
    s: Option<Out<T>>,
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
                let sum = |i: usize, len: usize| {
                    let x = V::<I>::load(x.add(i), len, 0.0);
                    match self.r {
                        Some((r, stride)) => x + V::load(r.at(row * stride + i), len, 0.0),
                        None => x,
                    }
                };
                let mut squares = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    let s = sum(i, len);
                    squares = s.fma(s, squares);
                    if let Some(to) = self.s {
                        s.store(to.at(row * n + i), len);
                    }
                });
                let Some(y) = self.y else { continue };
                let scale = V::<I>::splat(1.0 / (squares.sum() / n as f32 + self.eps).sqrt());
                chunks!(n, |i, len| {
                    // Once s is stored, an input may be gone: s can lie over it.
                    let s = match self.s {
                        Some(s) => V::load(s.at(row * n + i), len, 0.0),
                        None => sum(i, len),
                    };
                    (s * scale * V::load(self.w.at(i), len, 0.0)).store(y.at(row * n + i), len);
                });
            }
        }
    }
}

pub(super) fn scratch(inputs: &[Operand]) -> usize {
    inputs.last().map_or(0, vector_scratch)
}

pub(super) fn compile(op: &RmsNorm, site: &Site<'_>) -> Result<Call> {
    let x = site.inputs[0].clone();
    let r = op.residual.then(|| site.inputs[1].clone());
    let w = site.inputs[1 + usize::from(op.residual)].clone();
    let y = site.output(0);
    let s = if op.residual { site.output(1) } else { None };
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, site.scratch);
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            real!(x.dtype, |T| {
                let kernel = Normed::<T> {
                    x: In(x.at(cx)),
                    x_stride: x.row_stride(),
                    r: r.as_ref().map(|r| (In(r.at::<T>(cx).cast_const()), r.row_stride())),
                    w,
                    y: y.as_ref().map(|y| Out(y.at(cx))),
                    s: s.as_ref().map(|s| Out(s.at(cx))),
                    n,
                    eps,
                };
                run(cx.pool, rows, 2 * rows * n, &kernel);
            });
        }
        Ok(())
    }))
}

struct Gradient<T> {
    dy: In<T>,
    dy_stride: usize,
    s: In<T>,
    s_stride: usize,
    w: In<f32>,
    upstream: Option<(In<T>, usize)>,
    ds: Out<T>,
    n: usize,
    eps: f32,
}

/// 1/√(mean(s²) + eps) of a row.
///
/// # Safety
/// `s` is valid for `n` reads.
#[inline(always)]
unsafe fn inverse_rms<I: Isa, T: Real>(s: *const T, n: usize, eps: f32) -> f32 {
    let mut squares = V::<I>::splat(0.0);
    chunks!(n, |i, len| {
        // SAFETY: i + len <= n.
        let x = unsafe { V::<I>::load(s.add(i), len, 0.0) };
        squares = x.fma(x, squares);
    });
    1.0 / (squares.sum() / n as f32 + eps).sqrt()
}

impl<T: Real> Kernel for Gradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's; a group of lanes is read before it is written.
            unsafe {
                let (dy, s) = (self.dy.at(row * self.dy_stride), self.s.at(row * self.s_stride));
                let scale = inverse_rms::<I, T>(s, n, self.eps);
                let mut dot = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    let g = V::<I>::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                    dot = g.fma(V::load(s.add(i), len, 0.0), dot);
                });
                let back = V::<I>::splat(-scale * scale * (dot.sum() / n as f32));
                chunks!(n, |i, len| {
                    let g = V::<I>::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                    let mut ds = V::load(s.add(i), len, 0.0).fma(back, g) * scale;
                    if let Some((upstream, stride)) = self.upstream {
                        ds = ds + V::load(upstream.at(row * stride + i), len, 0.0);
                    }
                    ds.store(self.ds.at(row * n + i), len);
                });
            }
        }
    }
}

/// `dw`, an item a group of columns. Runs before [`Gradient`], which may write over dy.
struct WeightGradient<T> {
    dy: In<T>,
    dy_stride: usize,
    s: In<T>,
    s_stride: usize,
    scales: In<f32>,
    dw: Out<f32>,
    rows: usize,
    n: usize,
}

impl<T: Real> Kernel for WeightGradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let column = item * LANES;
            let len = LANES.min(self.n - column);
            let mut sum = V::<I>::splat(0.0);
            // SAFETY: the columns are the item's.
            unsafe {
                for row in 0..self.rows {
                    let dy = V::<I>::load(self.dy.at(row * self.dy_stride + column), len, 0.0);
                    let s = V::load(self.s.at(row * self.s_stride + column), len, 0.0);
                    sum = (dy * self.scales.at(row).read()).fma(s, sum);
                }
                sum.store(self.dw.at(column), len);
            }
        }
    }
}

struct Scales<T> {
    s: In<T>,
    stride: usize,
    to: Out<f32>,
    n: usize,
    eps: f32,
}

impl<T: Real> Kernel for Scales<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's.
            unsafe {
                self.to.at(row).write(inverse_rms::<I, T>(self.s.at(row * self.stride), self.n, self.eps))
            };
        }
    }
}

pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    vector_scratch(&inputs[2]) + 4 * inputs[1].layout.shape.rows()
}

pub(super) fn compile_grad(op: &RmsNormGrad, site: &Site<'_>) -> Result<Call> {
    let (dy, s, w) = (site.inputs[0].clone(), site.inputs[1].clone(), site.inputs[2].clone());
    let upstream = op.residual.then(|| site.inputs[3].clone());
    site.expect(&dy, s.dtype)?;
    if let Some(upstream) = &upstream {
        site.expect(upstream, s.dtype)?;
    }
    let (ds, dw) = (site.output(0), site.output(1));
    let (rows, n, eps, scratch) = (s.rows(), s.last(), op.eps.0, site.scratch);
    let weight_bytes = vector_scratch(&site.step.inputs[2]);
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            let scales = cx.at::<u8>(scratch).add(weight_bytes).cast::<f32>();
            real!(s.dtype, |T| {
                let (dy_start, s_start) = (In(dy.at::<T>(cx).cast_const()), In(s.at::<T>(cx).cast_const()));
                let (dy_stride, s_stride) = (dy.row_stride(), s.row_stride());
                if let Some(dw) = &dw {
                    let kernel = Scales { s: s_start, stride: s_stride, to: Out(scales), n, eps };
                    run(cx.pool, rows, rows * n, &kernel);
                    let kernel = WeightGradient {
                        dy: dy_start,
                        dy_stride,
                        s: s_start,
                        s_stride,
                        scales: In(scales),
                        dw: Out(dw.at(cx)),
                        rows,
                        n,
                    };
                    run(cx.pool, n.div_ceil(LANES), 2 * rows * n, &kernel);
                }
                if let Some(ds) = &ds {
                    let kernel = Gradient {
                        dy: dy_start,
                        dy_stride,
                        s: s_start,
                        s_stride,
                        w,
                        upstream: upstream.as_ref().map(|u| (In(u.at::<T>(cx).cast_const()), u.row_stride())),
                        ds: Out(ds.at(cx)),
                        n,
                        eps,
                    };
                    run(cx.pool, rows, 4 * rows * n, &kernel);
                }
            });
        }
        Ok(())
    }))
}
