//! Softmax and log-softmax along an axis, and their gradients. See [`crate::ops::Softmax`].
//!
//! Along the last axis a row is read three times (greatest element, exponentials and their sum, scaling) and
//! stays in the first-level cache between. Along another axis the kernels work on [`LANES`] neighbouring slices.

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::math::{exp, exp_nonpositive, log};
use super::op::{Call, OpContext, real};
use super::pool::Pool;
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::ops::split;
use crate::tensor::DType;

/// `y = softmax(x)`, or `log softmax(x)` if `log`, of `rows` rows of `n` elements. In place ok.
///
/// # Safety
/// Row r of x is `n` elements from `x + r·x_stride`, of y likewise; rows of y do not overlap. y is x, with the
/// same stride, or lies apart.
pub(crate) unsafe fn softmax<T: FloatElement>(
    pool: &Pool,
    x: *const T,
    x_stride: usize,
    y: *mut T,
    y_stride: usize,
    rows: usize,
    n: usize,
    log: bool,
) {
    // SAFETY: as the caller promises.
    unsafe {
        if log {
            let kernel = RowLogSoftmax { x: In(x), x_stride, y: Out(y), y_stride, n };
            run(pool, rows, rows * n, &kernel);
        } else {
            let kernel = RowSoftmax { x: In(x), x_stride, y: Out(y), y_stride, n };
            // An exponential costs as much as moving several elements.
            run(pool, rows, 2 * rows * n, &kernel);
        }
    }
}

/// The gradient: `dx = y·(dy − Σ dy·y)`, or `dx = dy − exp(y)·Σ dy` if `log`. Rows of dy and y lie `strides`
/// apart, those of dx are contiguous. In place over contiguous dy or y ok.
///
/// # Safety
/// The pointers are valid for `rows` rows of `n` elements; dx is dy, or y, or lies apart.
pub(crate) unsafe fn softmax_grad<T: FloatElement>(
    pool: &Pool,
    dy: *const T,
    y: *const T,
    strides: [usize; 2],
    dx: *mut T,
    rows: usize,
    n: usize,
    log: bool,
) {
    let kernel = RowGrad { dy: In(dy), y: In(y), strides, dx: Out(dx), n, log };
    // SAFETY: as the caller promises.
    unsafe { run(pool, rows, rows * n, &kernel) }
}

/// [`softmax`] along the middle axis of contiguous `[outer, axis, inner]`. In place ok.
///
/// # Safety
/// The pointers are valid for all elements; y is x or lies apart.
pub(crate) unsafe fn softmax_axis<T: FloatElement>(
    pool: &Pool,
    x: *const T,
    y: *mut T,
    outer: usize,
    axis: usize,
    inner: usize,
    log: bool,
) {
    let kernel = AxisSoftmax { x: In(x), y: Out(y), axis, inner, log };
    // SAFETY: as the caller promises.
    unsafe { run(pool, outer * inner.div_ceil(LANES), 2 * outer * axis * inner, &kernel) }
}

/// [`softmax_grad`] along the middle axis of contiguous `[outer, axis, inner]`. In place over dy or y ok.
///
/// # Safety
/// The pointers are valid for all elements; dx is dy, or y, or lies apart.
pub(crate) unsafe fn softmax_axis_grad<T: FloatElement>(
    pool: &Pool,
    dy: *const T,
    y: *const T,
    dx: *mut T,
    outer: usize,
    axis: usize,
    inner: usize,
    log: bool,
) {
    let kernel = AxisGrad { dy: In(dy), y: In(y), dx: Out(dx), axis, inner, log };
    // SAFETY: as the caller promises.
    unsafe { run(pool, outer * inner.div_ceil(LANES), outer * axis * inner, &kernel) }
}

/// The greatest of a row. A NaN is passed over: it comes back through the sum of the exponentials.
///
/// # Safety
/// `x` is valid for `n` reads.
#[inline(always)]
unsafe fn row_max<I: Isa, T: FloatElement>(x: *const T, n: usize) -> V<I> {
    let mut max = V::<I>::splat(f32::NEG_INFINITY);
    chunks!(n, |i, len| {
        // SAFETY: i + len <= n.
        max = unsafe { V::load(x.add(i), len, f32::NEG_INFINITY) }.max(max);
    });
    V::splat(max.greatest())
}

#[derive(Clone, Copy)]
struct RowSoftmax<T> {
    x: In<T>,
    x_stride: usize,
    y: Out<T>,
    y_stride: usize,
    n: usize,
}

impl<T: FloatElement> Kernel for RowSoftmax<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { x, x_stride, y, y_stride, n } = *self;
        for row in range {
            // SAFETY: the row is one of the kernel's; every group of lanes is read before it is written.
            unsafe {
                let (x, y) = (x.at(row * x_stride), y.at(row * y_stride));
                let max = row_max::<I, T>(x, n);
                let mut total = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    // The exponential of the lanes beyond `len` is 0.
                    let e = exp_nonpositive(V::<I>::load(x.add(i), len, f32::NEG_INFINITY) - max);
                    if T::DTYPE == DType::F32 {
                        e.store(y.add(i), len);
                    }
                    total = total + e;
                });
                let scale = V::<I>::splat(1.0 / total.sum());
                chunks!(n, |i, len| {
                    let e = if T::DTYPE == DType::F32 {
                        V::load(y.add(i), len, 0.0)
                    } else {
                        // Rounding to 16 bits happens once, so the exponentials are computed again.
                        exp_nonpositive(V::<I>::load(x.add(i), len, 0.0) - max)
                    };
                    (e * scale).store(y.add(i), len);
                });
            }
        }
    }
}

#[derive(Clone, Copy)]
struct RowLogSoftmax<T> {
    x: In<T>,
    x_stride: usize,
    y: Out<T>,
    y_stride: usize,
    n: usize,
}

impl<T: FloatElement> Kernel for RowLogSoftmax<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { x, x_stride, y, y_stride, n } = *self;
        for row in range {
            // SAFETY: the row is one of the kernel's; every group of lanes is read before it is written.
            unsafe {
                let (x, y) = (x.at(row * x_stride), y.at(row * y_stride));
                let max = row_max::<I, T>(x, n);
                let mut total = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    total = total + exp_nonpositive(V::load(x.add(i), len, f32::NEG_INFINITY) - max);
                });
                let log_sum = log(V::<I>::splat(total.sum()));
                chunks!(n, |i, len| {
                    (V::load(x.add(i), len, 0.0) - max - log_sum).store(y.add(i), len);
                });
            }
        }
    }
}

#[derive(Clone, Copy)]
struct RowGrad<T> {
    dy: In<T>,
    y: In<T>,
    strides: [usize; 2],
    dx: Out<T>,
    n: usize,
    log: bool,
}

impl<T: FloatElement> Kernel for RowGrad<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { dy, y, strides, dx, n, log } = *self;
        for row in range {
            // SAFETY: the row is one of the kernel's; every group of lanes is read before it is written.
            unsafe {
                let (dy, y, dx) = (dy.at(row * strides[0]), y.at(row * strides[1]), dx.at(row * n));
                let mut total = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    let d = V::<I>::load(dy.add(i), len, 0.0);
                    total = if log { total + d } else { d.fma(V::load(y.add(i), len, 0.0), total) };
                });
                let total = V::<I>::splat(total.sum());
                chunks!(n, |i, len| {
                    let (d, y) = (V::<I>::load(dy.add(i), len, 0.0), V::load(y.add(i), len, 0.0));
                    let d = if log { d - exp(y) * total } else { y * (d - total) };
                    d.store(dx.add(i), len);
                });
            }
        }
    }
}

/// Where item `item` of a kernel along a middle axis begins, and how many slices it has.
#[inline(always)]
fn block(item: usize, axis: usize, inner: usize) -> (usize, usize) {
    let blocks = inner.div_ceil(LANES);
    let column = item % blocks * LANES;
    (item / blocks * axis * inner + column, LANES.min(inner - column))
}

#[derive(Clone, Copy)]
struct AxisSoftmax<T> {
    x: In<T>,
    y: Out<T>,
    axis: usize,
    inner: usize,
    log: bool,
}

impl<T: FloatElement> Kernel for AxisSoftmax<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { x, y, axis, inner, log: is_log } = *self;
        for item in range {
            let (start, len) = block(item, axis, inner);
            // SAFETY: the slices are the kernel's; an element is read for the last time before it is written.
            unsafe {
                let x = x.at(start);
                let mut max = V::splat(f32::NEG_INFINITY);
                for i in 0..axis {
                    max = V::<I>::load(x.add(i * inner), len, 0.0).max(max);
                }
                let mut total = V::splat(0.0);
                for i in 0..axis {
                    total = total + exp_nonpositive(V::<I>::load(x.add(i * inner), len, 0.0) - max);
                }
                if is_log {
                    let log_sum = log(total);
                    for i in 0..axis {
                        (V::<I>::load(x.add(i * inner), len, 0.0) - max - log_sum)
                            .store(y.at(start + i * inner), len);
                    }
                } else {
                    let scale = V::splat(1.0) / total;
                    for i in 0..axis {
                        (exp_nonpositive(V::<I>::load(x.add(i * inner), len, 0.0) - max) * scale)
                            .store(y.at(start + i * inner), len);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct AxisGrad<T> {
    dy: In<T>,
    y: In<T>,
    dx: Out<T>,
    axis: usize,
    inner: usize,
    log: bool,
}

impl<T: FloatElement> Kernel for AxisGrad<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { dy, y, dx, axis, inner, log } = *self;
        for item in range {
            let (start, len) = block(item, axis, inner);
            // SAFETY: the slices are the kernel's; an element is read for the last time before it is written.
            unsafe {
                let mut total = V::<I>::splat(0.0);
                for i in 0..axis {
                    let d = V::<I>::load(dy.at(start + i * inner), len, 0.0);
                    let y = V::load(y.at(start + i * inner), len, 0.0);
                    total = if log { total + d } else { d.fma(y, total) };
                }
                for i in 0..axis {
                    let d = V::<I>::load(dy.at(start + i * inner), len, 0.0);
                    let y = V::load(y.at(start + i * inner), len, 0.0);
                    let d = if log { d - exp(y) * total } else { y * (d - total) };
                    d.store(dx.at(start + i * inner), len);
                }
            }
        }
    }
}

pub(super) fn compile(along: usize, log: bool, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let x = context.inputs[0].clone();
    let (outer, axis, inner) = split(&x.layout.shape, along);
    let last = along + 1 == x.layout.shape.rank();
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(x.dtype, |T| if last {
                softmax::<T>(cx.pool, x.at(cx), x.row_stride(), y.at(cx), axis, outer, axis, log);
            } else {
                softmax_axis::<T>(cx.pool, x.at(cx), y.at(cx), outer, axis, inner, log);
            });
        }
        Ok(())
    }))
}

pub(super) fn compile_grad(along: usize, log: bool, context: &OpContext<'_>) -> Result<Call> {
    let Some(dx) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (dy, y) = (context.inputs[0].clone(), context.inputs[1].clone());
    let (outer, axis, inner) = split(&dy.layout.shape, along);
    let last = along + 1 == dy.layout.shape.rank();
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(dy.dtype, |T| if last {
                let strides = [dy.row_stride(), y.row_stride()];
                softmax_grad::<T>(cx.pool, dy.at(cx), y.at(cx), strides, dx.at(cx), outer, axis, log);
            } else {
                softmax_axis_grad::<T>(cx.pool, dy.at(cx), y.at(cx), dx.at(cx), outer, axis, inner, log);
            });
        }
        Ok(())
    }))
}
