//! Root-mean-square norm. See [`crate::ops::RmsNorm`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, real, vector_f32, vector_scratch};
use super::row_blocks::RowBlocks;
use super::vector::{Isa, V};
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

/// A group of lanes of x, or of x + r. Not a closure: one that is called twice is not inlined, and its numbers would
/// go through memory.
///
/// # Safety
/// The rows are valid for `len` reads from `i` on.
#[inline(always)]
unsafe fn added<I: Isa, T: FloatElement>(x: *const T, r: Option<*const T>, i: usize, len: usize) -> V<I> {
    // SAFETY: as the caller promises.
    unsafe {
        let x = V::load(x.add(i), len, 0.0);
        match r {
            Some(r) => x + V::load(r.add(i), len, 0.0),
            None => x,
        }
    }
}

impl<T: FloatElement> Kernel for Normed<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's; a group of lanes is read before it is written.
            unsafe {
                let x = self.x.at(row * self.x_stride);
                let r = self.r.map(|(r, stride)| r.at(row * stride));
                let s = self.s.map(|s| s.at(row * n));
                let mut squares = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    let sum = added::<I, T>(x, r, i, len);
                    squares = sum.fma(sum, squares);
                    if let Some(s) = s {
                        sum.store(s.add(i), len);
                    }
                });
                let Some(y) = self.y else { continue };
                let scale = V::<I>::splat(1.0 / (squares.sum() / n as f32 + self.eps).sqrt());
                chunks!(n, |i, len| {
                    // Once s is stored, an input may be gone: s can lie over it.
                    let sum = match s {
                        Some(s) => V::load(s.add(i).cast_const(), len, 0.0),
                        None => added::<I, T>(x, r, i, len),
                    };
                    (sum * scale * V::load(self.w.at(i), len, 0.0)).store(y.at(row * n + i), len);
                });
            }
        }
    }
}

pub(super) fn scratch(inputs: &[Operand]) -> usize {
    inputs.last().map_or(0, vector_scratch)
}

pub(super) fn compile(op: &RmsNorm, context: &OpContext<'_>) -> Result<Call> {
    let x = context.inputs[0].clone();
    let r = op.residual.then(|| context.inputs[1].clone());
    let w = context.inputs[1 + usize::from(op.residual)].clone();
    let y = context.output(0);
    let s = if op.residual { context.output(1) } else { None };
    let (rows, n, eps, scratch) = (x.rows(), x.last(), op.eps.0, context.scratch);
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

/// The gradient of rows, an item a [`RowBlocks`] of them: with the row in the first-level cache, `ds` and what the row
/// adds to `dw`.
struct Gradient<T> {
    dy: In<T>,
    dy_stride: usize,
    s: In<T>,
    s_stride: usize,
    w: In<f32>,
    upstream: Option<(In<T>, usize)>,
    ds: Option<Out<T>>,
    /// `[parts, n]`
    dw: Option<Out<f32>>,
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
                    let (dy, s) = (self.dy.at(row * self.dy_stride), self.s.at(row * self.s_stride));
                    let (mut squares, mut dot) = (V::<I>::splat(0.0), V::<I>::splat(0.0));
                    chunks!(n, |i, len| {
                        let s = V::load(s.add(i), len, 0.0);
                        let g = V::load(dy.add(i), len, 0.0) * V::load(self.w.at(i), len, 0.0);
                        squares = s.fma(s, squares);
                        dot = g.fma(s, dot);
                    });
                    let scale = 1.0 / (squares.sum() / n as f32 + self.eps).sqrt();
                    let back = V::<I>::splat(-scale * scale * (dot.sum() / n as f32));
                    chunks!(n, |i, len| {
                        let (dy, s) = (V::<I>::load(dy.add(i), len, 0.0), V::load(s.add(i), len, 0.0));
                        if let Some(dw) = self.dw {
                            let sum = dw.at(part * n + i);
                            let mut old = V::splat(0.0);
                            if index > 0 {
                                old = V::load(sum.cast_const(), len, 0.0);
                            }
                            (dy * scale).fma(s, old).store(sum, len);
                        }
                        if let Some(to) = self.ds {
                            let mut ds = s.fma(back, dy * V::load(self.w.at(i), len, 0.0)) * scale;
                            if let Some((upstream, stride)) = self.upstream {
                                ds = ds + V::load(upstream.at(row * stride + i), len, 0.0);
                            }
                            ds.store(to.at(row * n + i), len);
                        }
                    });
                }
            }
        }
    }
}

pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    let s = &inputs[1].layout.shape;
    vector_scratch(&inputs[2]) + 4 * RowBlocks::of(s.rows()).count * s.last()
}

pub(super) fn compile_grad(op: &RmsNormGrad, context: &OpContext<'_>) -> Result<Call> {
    let (dy, s, w) = (context.inputs[0].clone(), context.inputs[1].clone(), context.inputs[2].clone());
    let upstream = op.residual.then(|| context.inputs[3].clone());
    context.expect(&dy, s.dtype)?;
    if let Some(upstream) = &upstream {
        context.expect(upstream, s.dtype)?;
    }
    let (ds, dw) = (context.output(0), context.output(1));
    let (rows, n, eps, scratch) = (s.rows(), s.last(), op.eps.0, context.scratch);
    let (parts, weight_bytes) = (RowBlocks::of(rows), vector_scratch(&context.step.inputs[2]));
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let w = In(vector_f32(&w, cx, cx.at(scratch)));
            let sums = Out(cx.at::<u8>(scratch).add(weight_bytes).cast::<f32>());
            real!(s.dtype, |T| {
                let kernel = Gradient::<T> {
                    dy: In(dy.at(cx)),
                    dy_stride: dy.row_stride(),
                    s: In(s.at(cx)),
                    s_stride: s.row_stride(),
                    w,
                    upstream: upstream.as_ref().map(|u| (In(u.at::<T>(cx).cast_const()), u.row_stride())),
                    ds: ds.as_ref().map(|ds| Out(ds.at(cx))),
                    dw: dw.as_ref().map(|_| sums),
                    parts,
                    n,
                    eps,
                };
                run(cx.pool, parts.count, 4 * rows * n, &kernel);
            });
            if let Some(dw) = &dw {
                parts.add_up(cx.pool, sums, Out(dw.at(cx)), n);
            }
        }
        Ok(())
    }))
}
