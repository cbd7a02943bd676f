//! Dense products with hardly any rows, or hardly any inner length: every number of the right matrix is used once or
//! a few times, so it is read in the order in which it lies, and nothing is packed. See [`super::matmul`].

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks};
use super::matmul::{Product, store};
use super::microkernel::Tile;
use super::op::real;
use super::vector::{Isa, LANES, V};
use crate::tensor::DType;

/// The most rows, or the greatest inner length, for which these kernels are used.
pub(super) const MAX_GEMV_ROWS: usize = 3;
/// The most adapters that [`GemvDot`] adds on the way.
pub(super) const MAX_EPILOGUES: usize = 4;
/// Rows of the right matrix that [`GemvAxpy`] reads together.
const TOGETHER: usize = 8;

/// An adapter's product that is added to columns `start..start + len`: `scale·h·bᵀ`.
#[derive(Clone, Copy)]
pub(super) struct Epilogue {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    /// `[m, rank]`, rows `h_rows` apart.
    pub(super) h: In<f32>,
    pub(super) h_rows: usize,
    /// `[len, rank]`, rows `b_rows` apart.
    pub(super) b: In<u8>,
    pub(super) b_rows: usize,
    pub(super) b_dtype: DType,
}

/// Dot products of a few rows with columns that lie one after the other in memory, an item [`LANES`] columns.
pub(super) struct GemvDot<B> {
    pub(super) product: Product,
    pub(super) a: In<f32>,
    pub(super) b: In<B>,
    pub(super) c: Out<u8>,
    pub(super) epilogues: [Option<Epilogue>; MAX_EPILOGUES],
}

impl<B: FloatElement> Kernel for GemvDot<B> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { m, n, k, a: left, b: right, ldc, alpha, .. } = self.product;
        for item in range {
            let first = item * LANES;
            let width = LANES.min(n - first);
            for row in 0..m {
                let mut sums = [0.0; LANES];
                // SAFETY: row and columns are the product's.
                unsafe {
                    let x = self.a.at(row * left.rows);
                    for pair in (0..width).step_by(2) {
                        let w = self.b.at((first + pair) * right.columns);
                        // Without a second column, the first one again.
                        let second = (pair + 1).min(width - 1);
                        let other = self.b.at((first + second) * right.columns);
                        let (mut sum, mut other_sum) = (V::<I>::splat(0.0), V::<I>::splat(0.0));
                        chunks!(k, |p, len| {
                            let x = V::load(x.add(p), len, 0.0);
                            sum = V::load(w.add(p), len, 0.0).fma(x, sum);
                            other_sum = V::load(other.add(p), len, 0.0).fma(x, other_sum);
                        });
                        sums[second] = other_sum.sum();
                        sums[pair] = sum.sum();
                    }
                    for sum in &mut sums {
                        *sum *= alpha;
                    }
                    for epilogue in self.epilogues.iter().flatten() {
                        epilogue.add::<I>(row, first, &mut sums[..width]);
                    }
                    store(self.product, self.c.0, row * ldc + first, &sums[..width]);
                }
            }
        }
    }
}

impl Epilogue {
    /// Adds its part to columns from `first` on.
    ///
    /// # Safety
    /// The pointers are valid for the adapter.
    #[inline(always)]
    unsafe fn add<I: Isa>(&self, row: usize, first: usize, sums: &mut [f32]) {
        let (from, to) = (first.max(self.start), (first + sums.len()).min(self.start + self.len));
        if from >= to {
            return;
        }
        // SAFETY: as the caller promises; the columns are the adapter's.
        unsafe {
            let h = self.h.at(row * self.h_rows);
            if self.b_dtype == DType::F32 && self.rank.is_multiple_of(8) && to - from == LANES {
                let b = self.b.0.cast::<f32>().add((from - self.start) * self.b_rows);
                let mut sum = V::<I>::splat(0.0);
                for r in (0..self.rank).step_by(8) {
                    let mut block = [0.0_f32; 8 * LANES];
                    for j in (0..LANES).step_by(8) {
                        let rows = b.add(j * self.b_rows + r);
                        I::Tile::transpose(rows, self.b_rows, block.as_mut_ptr().add(j), LANES);
                    }
                    for i in 0..8 {
                        let column = V::load(block.as_ptr().add(i * LANES), LANES, 0.0);
                        sum = column.fma(V::splat(h.add(r + i).read()), sum);
                    }
                }
                let all = V::<I>::load(sums.as_ptr(), LANES, 0.0);
                sum.fma(V::splat(self.scale), all).store(sums.as_mut_ptr(), LANES);
                return;
            }
            real!(self.b_dtype, |B| {
                for column in from..to {
                    let b = self.b.0.cast::<B>().add((column - self.start) * self.b_rows);
                    let mut sum = V::<I>::splat(0.0);
                    chunks!(self.rank, |r, len| {
                        sum = V::load(b.add(r), len, 0.0).fma(V::load(h.add(r), len, 0.0), sum);
                    });
                    sums[column - first] += self.scale * sum.sum();
                }
            });
        }
    }
}

/// Into how many parts the inner length is cut, at the most: as many threads can work on it.
const PARTS: usize = 16;
/// The least length of a part.
const MIN_BLOCK_ROWS: usize = 32;

/// The parts of an inner length `k`: how many, and how long. They do not depend on the number of threads, so neither
/// do the sums.
pub(super) fn parts(k: usize) -> (usize, usize) {
    let len = k.div_ceil(PARTS).next_multiple_of(TOGETHER).max(MIN_BLOCK_ROWS);
    (k.div_ceil(len).max(1), len)
}

/// A few rows times a matrix whose rows lie one after the other: its rows, each times a number, are added up. An item
/// is a part of the inner length, with sums of its own; results are f32.
pub(super) struct GemvAxpy<B> {
    pub(super) product: Product,
    pub(super) a: In<f32>,
    pub(super) b: In<B>,
    /// `[parts, m, n]`, or with one part c itself.
    pub(super) sums: Out<f32>,
}

impl<B: FloatElement> Kernel for GemvAxpy<B> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { m, n, k, a: left, b: right, ldc, alpha, add, .. } = self.product;
        let (count, len) = parts(k);
        let (step, fresh) = if count == 1 { (ldc, !add) } else { (n, true) };
        // Where a row's sums stay in registers, all of a part at once.
        let together = if n <= LANES { len } else { TOGETHER };
        for part in range {
            let end = k.min((part + 1) * len);
            for start in (part * len..end.max(1)).step_by(together) {
                let rows = together.min(end - start);
                for row in 0..m {
                    // SAFETY: rows and columns are the product's, the sums the part's.
                    unsafe {
                        let a = self.a.at(row * left.rows + start);
                        let b = self.b.at(start * right.rows);
                        let c = self.sums.at((part * m + row) * step);
                        let fresh = fresh && start == part * len;
                        if rows != TOGETHER {
                            chunks!(n, |j, len| {
                                let mut sum = V::<I>::splat(0.0);
                                if !fresh {
                                    sum = V::load(c.add(j).cast_const(), len, 0.0);
                                }
                                for i in 0..rows {
                                    let factor = V::splat(alpha * a.add(i).read());
                                    sum = V::load(b.add(i * right.rows + j), len, 0.0).fma(factor, sum);
                                }
                                sum.store(c.add(j), len);
                            });
                            continue;
                        }
                        let mut factors = [V::<I>::splat(0.0); TOGETHER];
                        for i in 0..TOGETHER {
                            factors[i] = V::splat(alpha * a.add(i).read());
                        }
                        chunks!(n, |j, len| {
                            let mut sum = V::splat(0.0);
                            if !fresh {
                                sum = V::load(c.add(j).cast_const(), len, 0.0);
                            }
                            for i in 0..TOGETHER {
                                sum = V::load(b.add(i * right.rows + j), len, 0.0).fma(factors[i], sum);
                            }
                            sum.store(c.add(j), len);
                        });
                    }
                }
            }
        }
    }
}

/// Adds up the sums of [`GemvAxpy`], an item [`LANES`] columns.
pub(super) struct Parts {
    pub(super) product: Product,
    pub(super) sums: In<f32>,
    pub(super) c: Out<f32>,
}

impl Kernel for Parts {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { m, n, k, ldc, add, .. } = self.product;
        let (first, end) = (range.start * LANES, n.min(range.end * LANES));
        for row in 0..m {
            // SAFETY: the columns are the kernel's.
            unsafe {
                let (sums, c) = (self.sums.at(row * n + first), self.c.at(row * ldc + first));
                chunks!(end - first, |j, len| {
                    let mut sum = V::<I>::splat(0.0);
                    if add {
                        sum = V::load(c.add(j).cast_const(), len, 0.0);
                    }
                    for part in 0..parts(k).0 {
                        sum = sum + V::load(sums.add(part * m * n + j), len, 0.0);
                    }
                    sum.store(c.add(j), len);
                });
            }
        }
    }
}

/// A product of a small inner length with a right matrix whose rows lie one after the other: an item is a row of the
/// result. The left matrix may lie in any steps; results are f32.
pub(super) struct Ger<A, B> {
    pub(super) product: Product,
    pub(super) a: In<A>,
    pub(super) b: In<B>,
    pub(super) c: Out<f32>,
}

impl<A: FloatElement, B: FloatElement> Kernel for Ger<A, B> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Product { n, k, a: left, b: right, ldc, alpha, add, .. } = self.product;
        for row in range {
            // SAFETY: the row is the kernel's.
            unsafe {
                let mut factors = [V::<I>::splat(0.0); MAX_GEMV_ROWS];
                for p in 0..k {
                    let a = self.a.at(row * left.rows + p * left.columns).read();
                    factors[p] = V::splat(alpha * a.get());
                }
                let c = self.c.at(row * ldc);
                chunks!(n, |j, len| {
                    let mut sum = if add { V::load(c.add(j).cast_const(), len, 0.0) } else { V::splat(0.0) };
                    for p in 0..k {
                        sum = V::load(self.b.at(p * right.rows + j), len, 0.0).fma(factors[p], sum);
                    }
                    sum.store(c.add(j), len);
                });
            }
        }
    }
}
