//! Sums over rows in parts, so that threads share them and the result does not depend on how many there are.

use std::ops::Range;

use super::kernel::{In, Kernel, Out, chunks, run};
use super::pool::Pool;
use super::vector::{Isa, LANES, V};

/// The most parts: as many threads can work on them.
const MAX_BLOCKS: usize = 16;
/// The least rows of a part.
const MIN_ROWS: usize = 4;

/// Rows cut into parts of equal length, the last one shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBlocks {
    rows: usize,
    len: usize,
    pub(super) count: usize,
}

impl RowBlocks {
    /// The parts of so many rows.
    pub(super) fn of(rows: usize) -> Self {
        let len = rows.div_ceil(MAX_BLOCKS).max(MIN_ROWS);
        Self { rows, len, count: rows.div_ceil(len) }
    }

    /// The rows of a part.
    pub(super) fn rows(self, part: usize) -> Range<usize> {
        part * self.len..self.rows.min((part + 1) * self.len)
    }

    /// Adds up the sums `[count, n]` of all parts.
    ///
    /// # Safety
    /// The pointers are valid for that many elements and for `n`.
    pub(super) unsafe fn add_up(self, pool: &Pool, sums: Out<f32>, to: Out<f32>, n: usize) {
        let kernel = Added { sums: In(sums.0.cast_const()), to, parts: self.count, n };
        // SAFETY: as the caller promises.
        unsafe { run(pool, n.div_ceil(LANES), self.count * n, &kernel) }
    }
}

/// An item is [`LANES`] columns.
struct Added {
    sums: In<f32>,
    to: Out<f32>,
    parts: usize,
    n: usize,
}

impl Kernel for Added {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let (first, end) = (range.start * LANES, self.n.min(range.end * LANES));
        // SAFETY: the columns are the kernel's.
        unsafe {
            let (sums, to) = (self.sums.at(first), self.to.at(first));
            chunks!(end - first, |i, len| {
                let mut sum = V::<I>::splat(0.0);
                for part in 0..self.parts {
                    sum = sum + V::load(sums.add(part * self.n + i), len, 0.0);
                }
                sum.store(to.add(i), len);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_row_once() {
        for rows in [0, 1, 3, 4, 5, 63, 64, 65, 512, 1000] {
            let parts = RowBlocks::of(rows);
            let all: Vec<usize> = (0..parts.count).flat_map(|part| parts.rows(part)).collect();
            assert!(all.into_iter().eq(0..rows), "{rows} rows");
            assert!(parts.count <= MAX_BLOCKS && (0..parts.count).all(|part| !parts.rows(part).is_empty()));
        }
    }
}
