//! Dense products. See [`crate::ops::MatMul`].
//!
//! Tasks are blocks of columns (and of rows, where there are few columns). A task packs its columns of the right
//! matrix once for every [`DEPTH`] of k and multiplies all its rows with them. Sums go through k in one order
//! whatever the number of threads, so results do not depend on it. Products with hardly any rows, those of decoding,
//! are in [`super::gemv`]: nothing is packed.

use std::ops::Range;

use super::element::{FloatElement, SimdElement};
use super::gemv::{self, Epilogue, GemvAxpy, GemvDot, Ger, MAX_EPILOGUES, MAX_GEMV_ROWS, Parts};
use super::kernel::{In, Kernel, Out, Tasks, chunks, run, run_tasks};
use super::microkernel::{MAX_NR, Matrix, MicroGemm, Panels, Prefetch, Tile, pack};
use super::op::{Call, OpContext, real};
use super::pool::Pool;
use super::swapped_gemm;
use super::vector::{Isa, LANES, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::MatMul;
use crate::tensor::layout::collapse;
use crate::tensor::{DType, TensorSpec};

/// The most of k that is packed at a time: two panels of it fit in the first-level cache.
const DEPTH: usize = 384;
/// The most columns of a task.
const COLUMNS: usize = 128;
/// Rows that are multiplied with all of a task's columns before the next rows.
pub(super) const ROWS: usize = 96;
/// Rows of the left matrix that lie further apart than this, in elements, are copied together before: each would be on
/// a page of its own, and at powers of two they would push each other out of the caches.
const MIN_COPY_STRIDE: usize = 1023;
/// Columns of the result up to which a transposed left matrix is read where it lies.
const MAX_NARROW_COLUMNS: usize = 16;
/// Columns of the result from which that pays.
const MIN_WIDE_COLUMNS: usize = 256;

/// The steps of a matrix, and its dtype.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// From one matrix of the batch to the next; 0 if all share one.
    pub(super) batch: usize,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    GemvDot,
    GemvAxpy,
    Ger,
    SwapOperands,
    Blocked,
}

/// A product `c = alpha·a·b`, or `c += alpha·a·b`, of fixed sizes and steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) c_dtype: DType,
    /// Step between rows of c, whose columns are neighbours; matrices of the batch lie `m·ldc` apart.
    pub(super) ldc: usize,
    pub(super) alpha: f32,
    pub(super) add: bool,
}

impl Product {
    /// Of one matrix `a` `[m, k]` and one `b` `[k, n]` into contiguous f32.
    pub(super) fn new((m, n, k): (usize, usize, usize), a: Side, b: Side) -> Self {
        Self { batch: 1, m, n, k, a, b, c_dtype: DType::F32, ldc: n, alpha: 1.0, add: false }
    }

    /// How it is computed.
    fn strategy(&self) -> Strategy {
        let in_order = self.batch == 1 && self.b.columns == 1 && self.c_dtype == DType::F32;
        if self.m <= MAX_GEMV_ROWS && self.b.rows == 1 && self.batch == 1 {
            Strategy::GemvDot
        } else if self.k <= MAX_GEMV_ROWS && in_order {
            Strategy::Ger
        } else if self.m <= MAX_GEMV_ROWS && in_order {
            Strategy::GemvAxpy
        } else if swapped_gemm::fits(self) {
            Strategy::SwapOperands
        } else {
            Strategy::Blocked
        }
    }

    /// Whether a must first be written as f32, for each part of k the rows one after the other.
    fn copies_a(&self) -> bool {
        let Side { dtype, rows, columns, .. } = self.a;
        let plain = dtype == DType::F32 && (columns == 1 || self.k <= 1);
        match self.strategy() {
            Strategy::Ger | Strategy::SwapOperands => false,
            Strategy::GemvDot | Strategy::GemvAxpy => !plain,
            Strategy::Blocked if plain => rows > MIN_COPY_STRIDE && self.n >= MIN_WIDE_COLUMNS,
            // A thin product reads columns where they lie.
            Strategy::Blocked => !(dtype == DType::F32 && rows == 1 && self.n <= MAX_NARROW_COLUMNS),
        }
    }

    /// Whether [`Epilogue`]s can be added on the way.
    pub(super) fn takes_tails(&self) -> bool {
        self.strategy() == Strategy::GemvDot
    }

    /// The part of k that is packed at a time.
    pub(super) fn depth(&self) -> usize {
        self.k.div_ceil(self.k.div_ceil(DEPTH).max(1)).max(1)
    }

    /// Columns and rows of a task.
    fn blocks(&self, threads: usize) -> (usize, usize) {
        if threads == 1 {
            return (COLUMNS, self.m.max(1));
        }
        let wanted = 8 * threads;
        let columns = self.n.div_ceil(wanted).next_multiple_of(MAX_NR).min(COLUMNS);
        let tasks = self.batch * self.n.div_ceil(columns);
        let rows = if tasks >= 2 * threads {
            self.m
        } else {
            self.m.div_ceil((2 * threads).div_ceil(tasks.max(1))).next_multiple_of(12)
        };
        (columns, rows.max(1))
    }

    /// Working memory in bytes.
    pub(super) fn scratch(&self, threads: usize) -> usize {
        let left = if self.copies_a() { (self.batch * self.m * self.k).next_multiple_of(16) } else { 0 };
        let right = match self.strategy() {
            Strategy::Blocked => threads * self.thread_scratch(threads),
            Strategy::GemvAxpy => gemv::parts(self.k).0 * self.m * self.n,
            Strategy::SwapOperands => swapped_gemm::scratch(self, threads),
            Strategy::GemvDot | Strategy::Ger => 0,
        };
        4 * (left + right)
    }

    /// Elements of one thread's packed columns.
    fn panels(&self, threads: usize) -> usize {
        let columns = self.blocks(threads).0.min(self.n.next_multiple_of(MAX_NR));
        self.depth() * columns
    }

    /// Elements of one thread's packed columns and results.
    fn thread_scratch(&self, threads: usize) -> usize {
        self.panels(threads) + self.sums(threads)
    }

    /// Elements of one thread's results before they are rounded to 16 bits.
    fn sums(&self, threads: usize) -> usize {
        let (columns, rows) = self.blocks(threads);
        if self.c_dtype == DType::F32 { 0 } else { columns * rows.min(self.m) }
    }

    /// Computes it.
    ///
    /// # Safety
    /// The pointers are valid for the matrices, `scratch` for [`Product::scratch`] bytes, 64-byte aligned; c
    /// overlaps nothing.
    pub(super) unsafe fn run(&self, pool: &Pool, a: *const u8, b: *const u8, c: *mut u8, scratch: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { self.run_with(pool, a, b, c, scratch, [None; MAX_EPILOGUES]) }
    }

    /// [`Product::run`], with adapters added on the way if [`Product::takes_tails`].
    ///
    /// # Safety
    /// As for [`Product::run`]; the epilogues are valid for its rows and columns.
    pub(super) unsafe fn run_with(
        &self,
        pool: &Pool,
        a: *const u8,
        b: *const u8,
        c: *mut u8,
        scratch: *mut u8,
        epilogues: [Option<Epilogue>; MAX_EPILOGUES],
    ) {
        let mut product = *self;
        let (mut a, mut scratch, mut copied) = (a, scratch.cast::<f32>(), false);
        if self.batch * self.m * self.n == 0 {
            return;
        }
        // SAFETY: as the caller promises.
        unsafe {
            if self.copies_a() {
                real!(self.a.dtype, |T| {
                    let kernel = Rows {
                        from: In(a.cast::<T>()),
                        to: Out(scratch),
                        side: self.a,
                        m: self.m,
                        k: self.k,
                        depth: if self.strategy() == Strategy::Blocked {
                            self.depth()
                        } else {
                            self.k.max(1)
                        },
                    };
                    run(pool, self.batch * self.m.div_ceil(8), self.batch * self.m * self.k, &kernel);
                });
                a = scratch.cast();
                scratch = scratch.add((self.batch * self.m * self.k).next_multiple_of(16));
                let batch = self.m * self.k;
                product.a = Side { dtype: DType::F32, rows: self.k, columns: 1, batch };
                copied = true;
            }
            let groups = self.n.div_ceil(LANES);
            match self.strategy() {
                Strategy::GemvDot => real!(self.b.dtype, |B| {
                    let (a, b) = (In(a.cast::<f32>()), In(b.cast::<B>()));
                    return run(
                        pool,
                        groups,
                        self.n * self.k,
                        &GemvDot { product, a, b, c: Out(c), epilogues },
                    );
                }),
                Strategy::GemvAxpy => real!(self.b.dtype, |B| {
                    let (a, b, c) = (In(a.cast::<f32>()), In(b.cast::<B>()), Out(c.cast()));
                    let parts = gemv::parts(self.k).0;
                    let sums = if parts == 1 { c } else { Out(scratch) };
                    run(pool, parts, self.n * self.k, &GemvAxpy { product, a, b, sums });
                    if parts > 1 {
                        let sums = In(sums.0.cast_const());
                        run(pool, groups, parts * self.n, &Parts { product, sums, c });
                    }
                    return;
                }),
                Strategy::Ger => real!(self.a.dtype, |A| real!(self.b.dtype, |B| {
                    let (a, b, c) = (In(a.cast::<A>()), In(b.cast::<B>()), Out(c.cast()));
                    return run(pool, self.m, self.m * self.n, &Ger { product, a, b, c });
                })),
                Strategy::SwapOperands => {
                    return swapped_gemm::run(pool, product, In(a), In(b.cast()), Out(c), scratch);
                }
                Strategy::Blocked => {}
            }
            let threads = pool.threads();
            let (columns, rows) = self.blocks(threads);
            let (a, b, c, scratch) = (In(a.cast::<f32>()), In(b), Out(c), Out(scratch));
            let kernel = Blocks { product, copied, a, b, c, columns, rows, scratch, threads };
            let tasks = self.batch * self.n.div_ceil(columns) * self.m.div_ceil(rows);
            run_tasks(pool, tasks, self.batch * self.m * self.n * self.k, &kernel);
        }
    }
}

/// Writes the left matrices as f32, eight rows an item: for each part of k, the rows one after the other.
struct Rows<T> {
    from: In<T>,
    to: Out<f32>,
    side: Side,
    m: usize,
    k: usize,
    depth: usize,
}

impl<T: FloatElement> Kernel for Rows<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let Self { from, to, side, m, k, depth } = *self;
        let groups = m.div_ceil(8);
        for item in range {
            let (batch, row) = (item / groups, item % groups * 8);
            let count = 8.min(m - row);
            for start in (0..k).step_by(depth) {
                let len = depth.min(k - start);
                // SAFETY: the rows are the kernel's.
                unsafe {
                    let from = from.at(batch * side.batch + row * side.rows + start * side.columns);
                    let to = to.at(batch * m * k + m * start + row * len);
                    if side.columns == 1 {
                        for i in 0..count {
                            chunks!(len, |p, part| {
                                let x = V::<I>::load(from.add(i * side.rows + p), part, 0.0);
                                x.store(to.add(i * len + p), part);
                            });
                        }
                        continue;
                    }
                    let whole =
                        if count == 8 && side.rows == 1 && T::DTYPE == DType::F32 { len / 8 * 8 } else { 0 };
                    for p in (0..whole).step_by(8) {
                        I::Tile::transpose(from.add(p * side.columns).cast(), side.columns, to.add(p), len);
                    }
                    for p in whole..len {
                        for i in 0..count {
                            let x = from.add(p * side.columns + i * side.rows).read();
                            to.add(i * len + p).write(x.get());
                        }
                    }
                }
            }
        }
    }
}

/// Writes neighbouring results.
///
/// # Safety
/// `c` is valid for them, from element `at` on.
#[inline(always)]
pub(super) unsafe fn store(product: Product, c: *mut u8, at: usize, sums: &[f32]) {
    let add = product.add;
    real!(product.c_dtype, |C| {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let to = c.cast::<C>().add(at + i);
                let old = if add { to.read().get() } else { 0.0 };
                to.write(C::of(old + sum));
            }
        }
    });
}

/// Blocks of columns and rows.
struct Blocks {
    product: Product,
    /// Whether a was written by [`Rows`].
    copied: bool,
    a: In<f32>,
    b: In<u8>,
    c: Out<u8>,
    columns: usize,
    rows: usize,
    scratch: Out<f32>,
    threads: usize,
}

impl Blocks {
    /// The part of the right matrix that a task packs at `start` of k, where it lies in rows or in columns.
    fn piece(&self, task: usize, start: usize) -> Prefetch {
        let Product { m, n, k, b: side, batch: count, .. } = self.product;
        let (across, down) = (n.div_ceil(self.columns), m.div_ceil(self.rows));
        let (batch, column) = (task / (across * down), task % across * self.columns);
        if batch >= count {
            return Prefetch::NONE;
        }
        let size = side.dtype.size();
        let (len, width) = (self.product.depth().min(k - start), self.columns.min(n - column));
        let from = batch * side.batch + column * side.columns + start * side.rows;
        let from = self.b.0.wrapping_add(from * size);
        match (side.rows, side.columns) {
            (1, columns) => Prefetch::new(from, width, columns * size, len * size),
            (rows, 1) => Prefetch::new(from, len, rows * size, width * size),
            _ => Prefetch::NONE,
        }
    }
}

impl Tasks for Blocks {
    #[inline(always)]
    unsafe fn task<I: Isa>(&self, task: usize, thread: usize) {
        let Product { m, n, k, a: left, b: right, c_dtype, ldc, alpha, add, .. } = self.product;
        let (across, down) = (n.div_ceil(self.columns), m.div_ceil(self.rows));
        let (batch, place) = (task / (across * down), task % (across * down));
        let (column, row) = (place % across * self.columns, place / across * self.rows);
        let (width, height) = (self.columns.min(n - column), self.rows.min(m - row));
        let (depth, nr) = (self.product.depth(), I::Tile::NR);
        let whole = c_dtype == DType::F32;
        // SAFETY: the block is the task's alone; the packed columns and the sums belong to the thread.
        unsafe {
            let panels = self.product.panels(self.threads);
            let packed = self.scratch.at(thread * self.product.thread_scratch(self.threads));
            let a = self.a.at(batch * left.batch);
            let b = self.b.at((batch * right.batch + column * right.columns) * right.dtype.size());
            let at = (batch * m + row) * ldc + column;
            // 16-bit results are summed up in f32 and rounded once.
            let (c, step) =
                if whole { (self.c.0.cast::<f32>().add(at), ldc) } else { (packed.add(panels), width) };
            let mut start = 0;
            while start < k || start == 0 {
                let len = depth.min(k - start);
                let from = b.add(start * right.rows * right.dtype.size());
                let part = Matrix { start: from, rows: right.rows, columns: right.columns };
                pack::<I::Tile>(right.dtype, part, len, width, packed);
                // Threads take turns, more or less.
                let mut prefetch = if start + len < k {
                    self.piece(task, start + len)
                } else {
                    self.piece(task + self.threads, 0)
                };
                for first in (0..height).step_by(ROWS) {
                    let count = ROWS.min(height - first);
                    let rows = if self.copied {
                        Matrix { start: a.add(m * start + (row + first) * len), rows: len, columns: 1 }
                    } else {
                        let (rows, columns) = (left.rows, left.columns);
                        Matrix { start: a.add((row + first) * rows + start * columns), rows, columns }
                    };
                    I::Tile::multiply(&MicroGemm {
                        m: count,
                        n: width,
                        k: len,
                        a: rows,
                        b: Panels { start: packed, panel: len * nr, ldb: nr },
                        c: c.add(first * step),
                        ldc: step,
                        alpha,
                        add: start > 0 || (whole && add),
                        prefetch,
                    });
                    prefetch = Prefetch::NONE;
                }
                start += depth;
            }
            if !whole {
                for i in 0..height {
                    let sums = std::slice::from_raw_parts(c.add(i * width), width);
                    store(self.product, self.c.0, at + i * ldc, sums);
                }
            }
        }
    }
}

/// The product of a matmul's operands.
fn product(op: &MatMul, inputs: &[(DType, &crate::tensor::Layout)], c_dtype: DType) -> Product {
    let specs: Vec<TensorSpec> =
        inputs.iter().map(|(dtype, layout)| TensorSpec::new(*dtype, layout.shape.clone())).collect();
    let (batch, m, n, k) = op.sizes(&specs).expect("checked when it was recorded");
    let side = |index: usize, transpose: bool| {
        let (dtype, layout) = inputs[index];
        let axes = layout.shape.rank() - 2;
        let (mut rows, mut columns) = (layout.strides[axes], layout.strides[axes + 1]);
        if transpose {
            (rows, columns) = (columns, rows);
        }
        let batch = collapse(&layout.shape.dims()[..axes], &layout.strides[..axes]).unwrap_or(0);
        Side { dtype, rows, columns, batch: if axes == 0 { 0 } else { batch } }
    };
    let (a, b) = (side(0, op.transpose_a), side(1, op.transpose_b));
    let mut product = Product { batch, m, n, k, a, b, c_dtype, ldc: n, alpha: op.alpha.0, add: false };
    // A batch that shares its right matrix is one tall left matrix, if its rows follow each other evenly.
    if inputs[1].1.shape.rank() == 2 && batch > 1 && (a.batch == m * a.rows || m == 1) {
        let rows = if m == 1 { a.batch } else { a.rows };
        product = Product { batch: 1, m: batch * m, a: Side { rows, batch: 0, ..a }, ..product };
    }
    product
}

pub(super) fn scratch(op: &MatMul, inputs: &[Operand], output: &TensorSpec, threads: usize) -> usize {
    let sides: Vec<_> = inputs.iter().map(|operand| (operand.dtype, &operand.layout)).collect();
    product(op, &sides, output.dtype).scratch(threads)
}

pub(super) fn compile(op: &MatMul, context: &OpContext<'_>) -> Result<Call> {
    let sides: Vec<_> = context.inputs.iter().map(|tensor| (tensor.dtype, &tensor.layout)).collect();
    let Some(c) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let mut product = product(op, &sides, c.dtype);
    let (a, b, scratch) = (context.inputs[0].clone(), context.inputs[1].clone(), context.scratch);
    let addend = context.inputs.get(2).cloned();
    product.add = addend.is_some();
    let (beta, elements) = (op.beta.0, c.layout.shape.elements());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave these tensors their places, and the scratch its size.
        unsafe {
            if let Some(addend) = &addend {
                real!(c.dtype, |T| {
                    let kernel = Scaled { x: In(addend.at::<T>(cx)), y: Out(c.at::<T>(cx)), factor: beta };
                    run(cx.pool, elements.div_ceil(1024), elements, &Chunked { kernel, elements });
                });
            }
            product.run(cx.pool, a.at(cx), b.at(cx), c.at(cx), cx.at(scratch));
        }
        Ok(())
    }))
}

/// `y = factor·x`; in place ok.
struct Scaled<T> {
    x: In<T>,
    y: Out<T>,
    factor: f32,
}

struct Chunked<K> {
    kernel: K,
    elements: usize,
}

impl<T: FloatElement> Kernel for Chunked<Scaled<T>> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let (start, end) = (range.start * 1024, self.elements.min(range.end * 1024));
        let Scaled { x, y, factor } = self.kernel;
        // SAFETY: the elements are the kernel's.
        unsafe {
            chunks!(end - start, |i, len| {
                (V::<I>::load(x.at(start + i), len, 0.0) * factor).store(y.at(start + i), len);
            });
        }
    }
}
