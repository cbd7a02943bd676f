//! The gate of a feed-forward block. See [`crate::ops::SiluMul`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::math::sigmoid;
use super::op::{Call, OpContext, real};
use super::vector::{Isa, V};
use crate::Result;

struct Gated<T> {
    gate: (In<T>, usize),
    up: (In<T>, usize),
    y: Out<T>,
    n: usize,
}

impl<T: FloatElement> Kernel for Gated<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's; a group of lanes is read before it is written.
            unsafe {
                let (gate, up) = (self.gate.0.at(row * self.gate.1), self.up.0.at(row * self.up.1));
                chunks!(self.n, |i, len| {
                    let g = V::<I>::load(gate.add(i), len, 0.0);
                    (g * sigmoid(g) * V::load(up.add(i), len, 0.0)).store(self.y.at(row * self.n + i), len);
                });
            }
        }
    }
}

pub(super) fn compile(context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (gate, up) = (context.inputs[0].clone(), context.inputs[1].clone());
    let (rows, n) = (y.rows(), y.last());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(y.dtype, |T| {
                let kernel = Gated::<T> {
                    gate: (In(gate.at(cx)), gate.row_stride()),
                    up: (In(up.at(cx)), up.row_stride()),
                    y: Out(y.at(cx)),
                    n,
                };
                run(cx.pool, rows, 4 * rows * n, &kernel);
            });
        }
        Ok(())
    }))
}

struct Gradient<T> {
    dy: (In<T>, usize),
    gate: (In<T>, usize),
    up: (In<T>, usize),
    dgate: Option<Out<T>>,
    dup: Option<Out<T>>,
    n: usize,
}

impl<T: FloatElement> Kernel for Gradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's; a group of lanes is read before it is written.
            unsafe {
                let dy = self.dy.0.at(row * self.dy.1);
                let (gate, up) = (self.gate.0.at(row * self.gate.1), self.up.0.at(row * self.up.1));
                chunks!(n, |i, len| {
                    let d = V::<I>::load(dy.add(i), len, 0.0);
                    let g = V::<I>::load(gate.add(i), len, 0.0);
                    let u = V::<I>::load(up.add(i), len, 0.0);
                    let s = sigmoid(g);
                    let one = V::splat(1.0);
                    if let Some(to) = self.dgate {
                        (d * u * s * g.fma(one - s, one)).store(to.at(row * n + i), len);
                    }
                    if let Some(to) = self.dup {
                        (d * g * s).store(to.at(row * n + i), len);
                    }
                });
            }
        }
    }
}

pub(super) fn compile_grad(context: &OpContext<'_>) -> Result<Call> {
    let [dy, gate, up] = [0, 1, 2].map(|i| context.inputs[i].clone());
    let (dgate, dup) = (context.output(0), context.output(1));
    let (rows, n) = (dy.rows(), dy.last());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(dy.dtype, |T| {
                let kernel = Gradient::<T> {
                    dy: (In(dy.at(cx)), dy.row_stride()),
                    gate: (In(gate.at(cx)), gate.row_stride()),
                    up: (In(up.at(cx)), up.row_stride()),
                    dgate: dgate.as_ref().map(|d| Out(d.at(cx))),
                    dup: dup.as_ref().map(|d| Out(d.at(cx))),
                    n,
                };
                run(cx.pool, rows, 5 * rows * n, &kernel);
            });
        }
        Ok(())
    }))
}
