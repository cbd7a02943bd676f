//! Rows of a table, and the gradient that goes back to them. See [`crate::ops::Embedding`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, Run, Tensor, real};
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::backend::reference::index_error;

struct Picked<T, U> {
    table: In<T>,
    ids: In<u32>,
    y: Out<U>,
    n: usize,
}

impl<T: FloatElement, U: FloatElement> Kernel for Picked<T, U> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's, its id was checked.
            unsafe {
                let from = self.table.at(self.ids.at(row).read() as usize * self.n);
                let to = self.y.at(row * self.n);
                chunks!(self.n, |i, len| {
                    V::<I>::load(from.add(i), len, 0.0).store(to.add(i), len);
                });
            }
        }
    }
}

/// The ids, after none of them was found outside the table.
///
/// # Safety
/// The tensor belongs to the plan that runs.
unsafe fn checked<'a>(op: &'static str, ids: &Tensor, rows: usize, cx: &'a Run<'_>) -> Result<&'a [u32]> {
    // SAFETY: ids are contiguous.
    let ids = unsafe { std::slice::from_raw_parts(ids.at::<u32>(cx).cast_const(), ids.elements()) };
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(&id) => Err(index_error(op, "id", id as usize, rows)),
        None => Ok(ids),
    }
}

pub(super) fn compile(context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (table, ids) = (context.inputs[0].clone(), context.inputs[1].clone());
    let (rows, n, count) = (table.layout.shape[0], table.last(), ids.elements());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let ids = checked("embedding", &ids, rows, cx)?;
            real!(table.dtype, |T| real!(y.dtype, |U| {
                let kernel =
                    Picked::<T, U> { table: In(table.at(cx)), ids: In(ids.as_ptr()), y: Out(y.at(cx)), n };
                run(cx.pool, count, count * n, &kernel);
            }));
        }
        Ok(())
    }))
}

/// An item a group of columns, so that rows picked twice are added in their order.
struct Scattered<T> {
    dy: In<T>,
    ids: In<u32>,
    count: usize,
    table: Out<f32>,
    rows: usize,
    n: usize,
}

impl<T: FloatElement> Kernel for Scattered<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for item in range {
            let column = item * LANES;
            let len = LANES.min(self.n - column);
            // SAFETY: the columns are the item's, the ids were checked.
            unsafe {
                for row in 0..self.rows {
                    V::<I>::splat(0.0).store(self.table.at(row * self.n + column), len);
                }
                for i in 0..self.count {
                    let to = self.table.at(self.ids.at(i).read() as usize * self.n + column);
                    let dy = V::<I>::load(self.dy.at(i * self.n + column), len, 0.0);
                    (V::load(to.cast_const(), len, 0.0) + dy).store(to, len);
                }
            }
        }
    }
}

pub(super) fn compile_grad(context: &OpContext<'_>) -> Result<Call> {
    let Some(table) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (dy, ids) = (context.inputs[0].clone(), context.inputs[1].clone());
    let (rows, n, count) = (table.layout.shape[0], table.last(), ids.elements());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let ids = checked("embedding_grad", &ids, rows, cx)?.as_ptr();
            real!(dy.dtype, |T| {
                let kernel = Scattered::<T> {
                    dy: In(dy.at(cx)),
                    ids: In(ids),
                    count,
                    table: Out(table.at(cx)),
                    rows,
                    n,
                };
                run(cx.pool, n.div_ceil(LANES), (rows + count) * n, &kernel);
            });
        }
        Ok(())
    }))
}
