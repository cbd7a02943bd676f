//! Products with weights in blocks. See [`crate::ops::QuantMatMul`].
//!
//! A block is decoded once for a tile of rows, into registers or the cache; an item is a row of W, or of its gradient a
//! column of blocks.

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, run};
use super::op::{Call, OpContext, real};
use super::vector::Isa;
use crate::Result;
use crate::ops::{MOST_ELEMENTS, QuantMatMul};

/// Rows of x for which a block is decoded once.
const ROWS: usize = 8;
/// Partial sums of a dot product, which the compiler keeps in vectors.
const SUMS: usize = 32;

/// What both directions share.
struct Product<T> {
    x: In<T>,
    w: In<u8>,
    y: Out<T>,
    m: usize,
    x_stride: usize,
    op: QuantMatMul,
}

impl<T: FloatElement> Product<T> {
    /// Decodes block `block` of row `row` of W.
    ///
    /// # Safety
    /// The block is one of W's.
    #[inline(always)]
    unsafe fn decode(&self, row: usize, block: usize, values: &mut [f32; MOST_ELEMENTS]) {
        let size = self.op.blocks.bytes();
        // SAFETY: as the caller promises.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.w.at(row * self.op.row_bytes() + block * size), size) };
        self.op.blocks.decode(bytes, values);
    }
}

struct Forward<T>(Product<T>);

impl<T: FloatElement> Kernel for Forward<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { x, y, m, x_stride, ref op, .. } = self.0;
        let elements = op.blocks.elements();
        let mut values = [0.0; MOST_ELEMENTS];
        for column in range {
            for first in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - first);
                let mut sums = [[0.0_f32; SUMS]; ROWS];
                for block in 0..op.k / elements {
                    // SAFETY: the block is one of W's, and the rows are x's.
                    unsafe {
                        self.0.decode(column, block, &mut values);
                        for (row, sums) in sums[..rows].iter_mut().enumerate() {
                            let x = x.at((first + row) * x_stride + block * elements);
                            for run in (0..elements).step_by(SUMS) {
                                for (i, sum) in sums.iter_mut().enumerate() {
                                    *sum += x.add(run + i).read().get() * values[run + i];
                                }
                            }
                        }
                    }
                }
                for (row, sums) in sums[..rows].iter().enumerate() {
                    // SAFETY: the element is the item's.
                    unsafe { y.at((first + row) * op.n + column).write(T::of(sums.iter().sum())) };
                }
            }
        }
    }
}

struct Gradient<T>(Product<T>);

impl<T: FloatElement> Kernel for Gradient<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { x: dy, y: dx, m, x_stride, ref op, .. } = self.0;
        let elements = op.blocks.elements();
        let mut values = [0.0; MOST_ELEMENTS];
        for block in range {
            for first in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - first);
                let mut sums = [[0.0_f32; MOST_ELEMENTS]; ROWS];
                for column in 0..op.n {
                    // SAFETY: the block is one of W's, and the rows are dy's.
                    unsafe {
                        self.0.decode(column, block, &mut values);
                        for (row, sums) in sums[..rows].iter_mut().enumerate() {
                            let dy = dy.at((first + row) * x_stride + column).read().get();
                            for (sum, value) in sums.iter_mut().zip(&values).take(elements) {
                                *sum += dy * value;
                            }
                        }
                    }
                }
                for (row, sums) in sums[..rows].iter().enumerate() {
                    for (i, &sum) in sums[..elements].iter().enumerate() {
                        // SAFETY: the element is the item's.
                        unsafe {
                            dx.at((first + row) * op.k + block * elements + i).write(T::of(sum));
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn compile(op: &QuantMatMul, gradient: bool, context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let (x, w, op) = (context.inputs[0].clone(), context.inputs[1].clone(), op.clone());
    let (m, x_stride) = (x.rows(), x.row_stride());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            real!(x.dtype, |T| {
                let product = Product::<T> {
                    x: In(x.at(cx)),
                    w: In(w.at(cx)),
                    y: Out(y.at(cx)),
                    m,
                    x_stride,
                    op: op.clone(),
                };
                let work = m * op.n * op.k;
                if gradient {
                    run(cx.pool, op.k / op.blocks.elements(), work, &Gradient(product));
                } else {
                    run(cx.pool, op.n, work, &Forward(product));
                }
            });
        }
        Ok(())
    }))
}
