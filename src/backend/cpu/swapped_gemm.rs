//! Products with fewer rows than columns whose right matrix lies column after column, as x·Wᵀ does: computed as
//! (W·xᵀ)ᵀ.
//!
//! W is then the left matrix of the tiles, which is read where it lies; what is packed is x, and what is turned round
//! is the result. Both are small beside W.

use super::kernel::{In, Out, Tasks, run_tasks};
use super::matmul::{Product, ROWS, store};
use super::microkernel::{MAX_NR, Matrix, MicroGemm, Panels, Prefetch, Tile, pack};
use super::pool::Pool;
use super::vector::Isa;
use crate::tensor::DType;

/// Whether a product is computed this way: where it moves less than packing the right matrix would.
pub(super) fn fits(product: &Product) -> bool {
    let Product { batch, m, n, k, b, .. } = *product;
    batch == 1 && b.rows == 1 && b.dtype == DType::F32 && m * (n + k) < n * k
}

/// Rows of W of a task.
fn block(product: &Product, threads: usize) -> usize {
    (product.n.div_ceil(16 * threads)).next_multiple_of(12).clamp(12, ROWS)
}

/// Rows of x in whole panels, on any machine.
fn padded(product: &Product) -> usize {
    product.m.next_multiple_of(MAX_NR)
}

/// Elements of one thread's results.
fn thread_scratch(product: &Product, threads: usize) -> usize {
    block(product, threads) * padded(product)
}

/// Working memory in elements: the packed x, then what belongs to each thread.
pub(super) fn scratch(product: &Product, threads: usize) -> usize {
    padded(product) * product.k + threads * thread_scratch(product, threads)
}

/// Computes it.
///
/// # Safety
/// As for [`Product::run`]; `scratch` is valid for [`scratch`] elements.
pub(super) unsafe fn run(
    pool: &Pool,
    product: Product,
    a: In<u8>,
    b: In<f32>,
    c: Out<u8>,
    scratch: *mut f32,
) {
    let threads = pool.threads();
    let rows = block(&product, threads);
    // SAFETY: as the caller promises.
    unsafe {
        let packed = Out(scratch);
        let own = Out(scratch.add(padded(&product) * product.k));
        let tasks = product.k.div_ceil(product.depth()) * product.m.div_ceil(MAX_NR);
        run_tasks(pool, tasks, product.m * product.k, &Packed { product, a, packed });
        let kernel = Swapped { product, packed: In(scratch.cast_const()), b, c, rows, own, threads };
        let work = product.m * product.n * product.k;
        run_tasks(pool, product.n.div_ceil(rows), work, &kernel);
    }
}

/// Packs xᵀ: for each part of k, panels of the rows of x. A task is [`MAX_NR`] rows of a part.
struct Packed {
    product: Product,
    a: In<u8>,
    packed: Out<f32>,
}

impl Tasks for Packed {
    #[inline(always)]
    unsafe fn task<I: Isa>(&self, task: usize, _thread: usize) {
        let Product { m, k, a, .. } = self.product;
        let (groups, depth) = (m.div_ceil(MAX_NR), self.product.depth());
        let (start, row) = (task / groups * depth, task % groups * MAX_NR);
        let len = depth.min(k - start);
        // SAFETY: the rows and their panels are the task's.
        unsafe {
            let from = self.a.at((row * a.rows + start * a.columns) * a.dtype.size());
            let from = Matrix { start: from, rows: a.columns, columns: a.rows };
            let to = self.packed.at(padded(&self.product) * start + row * len);
            pack::<I::Tile>(a.dtype, from, len, MAX_NR.min(m - row), to);
        }
    }
}

/// Blocks of rows of W times all of x.
struct Swapped {
    product: Product,
    packed: In<f32>,
    b: In<f32>,
    c: Out<u8>,
    rows: usize,
    own: Out<f32>,
    threads: usize,
}

impl Swapped {
    /// The part of W that a task reads at `start` of k.
    fn piece(&self, task: usize, start: usize) -> Prefetch {
        let Product { n, k, b: side, .. } = self.product;
        let first = n.min(task * self.rows);
        let len = self.product.depth().min(k - start);
        let from = self.b.0.wrapping_add(first * side.columns + start);
        Prefetch::new(from.cast(), self.rows.min(n - first), 4 * side.columns, 4 * len)
    }
}

impl Tasks for Swapped {
    #[inline(always)]
    unsafe fn task<I: Isa>(&self, task: usize, thread: usize) {
        let Product { m, n, k, b: side, ldc, alpha, .. } = self.product;
        let (depth, nr) = (self.product.depth(), I::Tile::NR);
        let first = task * self.rows;
        let (count, width) = (self.rows.min(n - first), m.next_multiple_of(nr));
        // SAFETY: the columns of c are the task's, the working memory the thread's.
        unsafe {
            let sums = self.own.at(thread * thread_scratch(&self.product, self.threads));
            for start in (0..k).step_by(depth) {
                let len = depth.min(k - start);
                let rows = self.b.at(first * side.columns + start);
                let rows = Matrix { start: rows, rows: side.columns, columns: 1 };
                if start == 0 {
                    self.piece(task, 0).fetch::<I::Tile>();
                }
                // Threads take turns, more or less.
                let prefetch = if start + len < k {
                    self.piece(task, start + len)
                } else {
                    self.piece(task + self.threads, 0)
                };
                let start_of_panels = self.packed.at(padded(&self.product) * start);
                I::Tile::multiply(&MicroGemm {
                    m: count,
                    n: width,
                    k: len,
                    a: rows,
                    b: Panels { start: start_of_panels, panel: len * nr, ldb: nr },
                    c: sums,
                    ldc: width,
                    alpha,
                    add: start > 0,
                    prefetch,
                });
            }
            for row in (0..m).step_by(8) {
                let height = 8.min(m - row);
                for column in (0..count).step_by(8) {
                    let columns = 8.min(count - column);
                    let from = sums.add(column * width + row);
                    let at = row * ldc + first + column;
                    let plain = self.product.c_dtype == DType::F32 && !self.product.add;
                    if plain && height == 8 && columns == 8 {
                        I::Tile::transpose(from, width, self.c.0.cast::<f32>().add(at), ldc);
                        continue;
                    }
                    for i in 0..height {
                        let mut line = [0.0; 8];
                        for j in 0..columns {
                            line[j] = from.add(j * width + i).read();
                        }
                        store(self.product, self.c.0, at + i * ldc, &line[..columns]);
                    }
                }
            }
        }
    }
}
