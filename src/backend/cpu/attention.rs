//! Tiled attention. See [`crate::ops::Attention`].
//!
//! A task is a tile of queries of all heads that share a key head. It goes over the keys in tiles, keeping for each
//! row the greatest score so far, the sum of exponentials and the weighted values, and rescales them when a greater
//! score comes (Milakov and Gimelshein, 2018, arXiv:1805.02867). A few rows, as in decoding, are dot products.

use super::kernel::{In, Out, Tasks, chunks, run_tasks};
use super::math::{exp_nonpositive, log};
use super::microkernel::{MAX_NR, Matrix, MicroGemm, Panels, Prefetch, Tile, pack};
use super::op::{Call, OpContext, Run, Tensor, real};
use super::vector::{Isa, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::Attention;
use crate::tensor::{DType, Layout};

/// Keys of a tile.
pub(super) const KEYS: usize = 64;
/// Rows (queries times heads of a group) of a tile, at the most, if a group is not larger.
const ROWS: usize = 96;
/// The most rows for which dot products are used.
const FEW: usize = 8;

/// Which keys a query sees.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// Position of the first query.
    pub(super) pos: usize,
    /// The first visible key of each query, `[batch, t]`.
    pub(super) starts: Option<In<u32>>,
    pub(super) queries: usize,
    pub(super) keys: usize,
}

impl Mask {
    /// The keys that a query sees.
    ///
    /// # Safety
    /// `starts` is valid.
    #[inline(always)]
    pub(super) unsafe fn range(&self, batch: usize, query: usize) -> (usize, usize) {
        let position = query + self.pos;
        let end = if self.causal { self.keys.min(position + 1) } else { self.keys };
        let mut start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        if let Some(starts) = self.starts {
            // SAFETY: as the caller promises.
            start = start.max(unsafe { starts.at(batch * self.queries + query).read() } as usize);
        }
        (start.min(end), end)
    }

    /// The keys that some of these queries see.
    ///
    /// # Safety
    /// `starts` is valid.
    #[inline(always)]
    pub(super) unsafe fn span(&self, batch: usize, first: usize, count: usize) -> (usize, usize) {
        let (mut start, mut end) = (self.keys, 0);
        for query in first..first + count {
            // SAFETY: as the caller promises.
            let (lo, hi) = unsafe { self.range(batch, query) };
            if lo < hi {
                (start, end) = (start.min(lo), end.max(hi));
            }
        }
        (start.min(end), end)
    }
}

/// A tensor `[batch, length, heads, d]` with its steps, in elements.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    start: In<u8>,
    pub(super) dtype: DType,
    batch: usize,
    pub(super) position: usize,
    head: usize,
}

impl Heads {
    /// # Safety
    /// The tensor belongs to the plan that runs.
    pub(super) unsafe fn new(tensor: &Tensor, cx: &Run<'_>) -> Self {
        let steps = &tensor.layout.strides;
        // SAFETY: as the caller promises.
        let start = In(unsafe { tensor.at::<u8>(cx) }.cast_const());
        Self { start, dtype: tensor.dtype, batch: steps[0], position: steps[1], head: steps[2] }
    }

    /// # Safety
    /// The element exists.
    #[inline(always)]
    pub(super) unsafe fn at(&self, batch: usize, position: usize, head: usize) -> *const u8 {
        let element = batch * self.batch + position * self.position + head * self.head;
        // SAFETY: as the caller promises.
        unsafe { self.start.at(element * self.dtype.size()) }
    }

    /// A part of the rows of one head as the right side of a product: `rows` a step apart, or transposed.
    #[inline(always)]
    pub(super) fn matrix(&self, start: *const u8, transposed: bool) -> Matrix<*const u8> {
        let (rows, columns) = if transposed { (1, self.position) } else { (self.position, 1) };
        Matrix { start, rows, columns }
    }
}

/// `len` numbers of a row, from element `i` on.
///
/// # Safety
/// They exist, with this dtype.
#[inline(always)]
pub(super) unsafe fn load<I: Isa>(dtype: DType, row: *const u8, i: usize, len: usize) -> V<I> {
    // SAFETY: as the caller promises.
    real!(dtype, |T| unsafe { V::load(row.cast::<T>().add(i), len, 0.0) })
}

/// Writes the first `len` lanes to a row, from element `i` on.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(super) unsafe fn store<I: Isa>(dtype: DType, row: *mut u8, i: usize, len: usize, x: V<I>) {
    // SAFETY: as the caller promises.
    real!(dtype, |T| unsafe { x.store(row.cast::<T>().add(i), len) });
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d: usize,
}

impl Sizes {
    pub(super) fn new(q: &Layout, k: &Layout) -> Self {
        let (q, k) = (&q.shape, &k.shape);
        Self { batch: q[0], queries: q[1], keys: k[1], heads: q[2], kv_heads: k[2], d: q[3] }
    }

    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries of a task.
    fn tile(&self) -> usize {
        (ROWS / self.group()).clamp(1, self.queries.max(1))
    }

    /// Room for a row of values, in whole panels.
    pub(super) fn padded(&self) -> usize {
        self.d.next_multiple_of(MAX_NR)
    }

    fn is_few(&self) -> bool {
        self.queries * self.group() <= FEW
    }

    /// Elements of working memory of a thread.
    fn scratch(&self) -> usize {
        let rows = self.tile() * self.group();
        let sums = rows * (self.d + self.padded() + 2);
        let tiles = KEYS * (self.d + self.padded());
        let scores = if self.is_few() { rows * self.keys } else { rows * KEYS };
        (sums + tiles + scores).next_multiple_of(16)
    }
}

struct Forward {
    sizes: Sizes,
    mask: Mask,
    scale: f32,
    q: Heads,
    k: Heads,
    v: Heads,
    out: Option<Out<u8>>,
    lse: Option<Out<f32>>,
    scratch: Out<f32>,
}

/// A task's rows and the memory they are in.
struct Rows {
    batch: usize,
    kv: usize,
    first: usize,
    queries: usize,
    rows: usize,
    q: *mut f32,
    sums: *mut f32,
    max: *mut f32,
    total: *mut f32,
    rest: *mut f32,
}

impl Tasks for Forward {
    #[inline(always)]
    unsafe fn task<I: Isa>(&self, task: usize, thread: usize) {
        let Sizes { queries, kv_heads, d, .. } = self.sizes;
        let (size, group) = (self.sizes.tile(), self.sizes.group());
        let tiles = queries.div_ceil(size);
        // The last tiles see most keys, so they come first.
        let (first, kv, batch) =
            ((tiles - 1 - task % tiles) * size, task / tiles % kv_heads, task / (tiles * kv_heads));
        let count = size.min(queries - first);
        let rows = count * group;
        // SAFETY: the tile's rows are the task's alone; the working memory is the thread's.
        unsafe {
            let q = self.scratch.at(thread * self.sizes.scratch());
            let sums = q.add(rows * d);
            let max = sums.add(rows * self.sizes.padded());
            let tile = Rows {
                batch,
                kv,
                first,
                queries: count,
                rows,
                q,
                sums,
                max,
                total: max.add(rows),
                rest: max.add(2 * rows),
            };
            for row in 0..rows {
                let from = self.q.at(batch, first + row / group, kv * group + row % group);
                chunks!(d, |i, len| {
                    (load::<I>(self.q.dtype, from, i, len) * self.scale).store(q.add(row * d + i), len);
                });
                tile.max.add(row).write(f32::NEG_INFINITY);
                tile.total.add(row).write(0.0);
            }
            std::ptr::write_bytes(sums, 0, rows * self.sizes.padded());
            if self.sizes.is_few() {
                self.few::<I>(&tile)
            } else {
                self.many::<I>(&tile)
            }
            self.finish::<I>(&tile);
        }
    }
}

impl Forward {
    /// Tiles of keys.
    ///
    /// # Safety
    /// See [`Tasks::task`].
    #[inline(always)]
    unsafe fn many<I: Isa>(&self, tile: &Rows) {
        let (d, padded, group) = (self.sizes.d, self.sizes.padded(), self.sizes.group());
        let nr = I::Tile::NR;
        // SAFETY: as the caller promises.
        unsafe {
            let (keys, scores) = (tile.rest, tile.rest.add(KEYS * d));
            let values = scores.add(tile.rows * KEYS);
            let (start, end) = self.mask.span(tile.batch, tile.first, tile.queries);
            for key in (start..end).step_by(KEYS) {
                let count = KEYS.min(end - key);
                let from = self.k.matrix(self.k.at(tile.batch, key, tile.kv), true);
                pack::<I::Tile>(self.k.dtype, from, d, count, keys);
                let from = self.v.matrix(self.v.at(tile.batch, key, tile.kv), false);
                pack::<I::Tile>(self.v.dtype, from, count, d, values);
                I::Tile::multiply(&MicroGemm {
                    m: tile.rows,
                    n: count,
                    k: d,
                    a: Matrix { start: tile.q, rows: d, columns: 1 },
                    b: Panels { start: keys, panel: d * nr, ldb: nr },
                    c: scores,
                    ldc: KEYS,
                    alpha: 1.0,
                    add: false,
                    prefetch: Prefetch::NONE,
                });
                for row in 0..tile.rows {
                    let (lo, hi) = self.mask.range(tile.batch, tile.first + row / group);
                    let seen = (lo.saturating_sub(key).min(count), hi.saturating_sub(key).min(count));
                    let sums = tile.sums.add(row * padded);
                    let (max, total) = (tile.max.add(row), tile.total.add(row));
                    weigh::<I>(scores.add(row * KEYS), count, seen, max, total, Some((sums, d)));
                }
                I::Tile::multiply(&MicroGemm {
                    m: tile.rows,
                    n: d,
                    k: count,
                    a: Matrix { start: scores, rows: KEYS, columns: 1 },
                    b: Panels { start: values, panel: count * nr, ldb: nr },
                    c: tile.sums,
                    ldc: padded,
                    alpha: 1.0,
                    add: true,
                    prefetch: Prefetch::NONE,
                });
            }
        }
    }

    /// All keys at once, one dot product each.
    ///
    /// # Safety
    /// See [`Tasks::task`].
    #[inline(always)]
    unsafe fn few<I: Isa>(&self, tile: &Rows) {
        let (d, padded, group) = (self.sizes.d, self.sizes.padded(), self.sizes.group());
        let capacity = self.sizes.keys;
        // SAFETY: as the caller promises.
        unsafe {
            let scores = tile.rest;
            let (start, end) = self.mask.span(tile.batch, tile.first, tile.queries);
            for key in start..end {
                let k = self.k.at(tile.batch, key, tile.kv);
                for row in 0..tile.rows {
                    let mut sum = V::<I>::splat(0.0);
                    chunks!(d, |i, len| {
                        let q = V::load(tile.q.add(row * d + i).cast_const(), len, 0.0);
                        sum = load::<I>(self.k.dtype, k, i, len).fma(q, sum);
                    });
                    scores.add(row * capacity + key - start).write(sum.sum());
                }
            }
            for row in 0..tile.rows {
                let (lo, hi) = self.mask.range(tile.batch, tile.first + row / group);
                let seen = (lo.max(start) - start, hi.max(start) - start);
                let (max, total) = (tile.max.add(row), tile.total.add(row));
                weigh::<I>(scores.add(row * capacity), end - start, seen, max, total, None);
            }
            for key in start..end {
                let v = self.v.at(tile.batch, key, tile.kv);
                for row in 0..tile.rows {
                    let weight = V::<I>::splat(scores.add(row * capacity + key - start).read());
                    // A weight of 0 may belong to a hidden key, whose value may be anything.
                    if weight.to_array()[0] == 0.0 {
                        continue;
                    }
                    let to = tile.sums.add(row * padded);
                    chunks!(d, |i, len| {
                        let sum = V::load(to.add(i).cast_const(), len, 0.0);
                        load::<I>(self.v.dtype, v, i, len).fma(weight, sum).store(to.add(i), len);
                    });
                }
            }
        }
    }

    /// Divides by the sums and writes the results.
    ///
    /// # Safety
    /// See [`Tasks::task`].
    #[inline(always)]
    unsafe fn finish<I: Isa>(&self, tile: &Rows) {
        let Sizes { queries, heads, d, .. } = self.sizes;
        let group = self.sizes.group();
        for row in 0..tile.rows {
            let (query, head) = (tile.first + row / group, tile.kv * group + row % group);
            // SAFETY: as the caller promises.
            unsafe {
                let (max, total) = (tile.max.add(row).read(), tile.total.add(row).read());
                if let Some(lse) = self.lse {
                    let log_sum = log(V::<I>::splat(total)).to_array()[0];
                    let value = if total == 0.0 { f32::NEG_INFINITY } else { max + log_sum };
                    lse.at((tile.batch * heads + head) * queries + query).write(value);
                }
                let Some(out) = self.out else { continue };
                let to = out.at(((tile.batch * queries + query) * heads + head) * d * self.q.dtype.size());
                let scale = if total == 0.0 { 0.0 } else { 1.0 / total };
                let sums = tile.sums.add(row * self.sizes.padded());
                chunks!(d, |i, len| {
                    let row = V::<I>::load(sums.add(i).cast_const(), len, 0.0);
                    store(self.q.dtype, to, i, len, row * scale);
                });
            }
        }
    }
}

/// Turns a row of scores into weights relative to the greatest score so far, 0 for keys that are not seen. If there
/// is a greater one than before, `sums` and `total` are brought down to it.
///
/// # Safety
/// The pointers are valid for a row.
#[inline(always)]
unsafe fn weigh<I: Isa>(
    scores: *mut f32,
    count: usize,
    (lo, hi): (usize, usize),
    max: *mut f32,
    total: *mut f32,
    sums: Option<(*mut f32, usize)>,
) {
    // SAFETY: as the caller promises.
    unsafe {
        std::ptr::write_bytes(scores, 0, lo.min(count));
        std::ptr::write_bytes(scores.add(hi), 0, count - hi);
        if lo >= hi {
            std::ptr::write_bytes(scores, 0, count);
            return;
        }
        let row = scores.add(lo);
        let mut greatest = V::<I>::splat(f32::NEG_INFINITY);
        chunks!(hi - lo, |i, len| {
            greatest = V::load(row.add(i).cast_const(), len, f32::NEG_INFINITY).max(greatest);
        });
        let (old, new) = (max.read(), greatest.greatest().max(max.read()));
        if new > old && old > f32::NEG_INFINITY {
            let factor = exp_nonpositive(V::<I>::splat(old - new));
            total.write(total.read() * factor.to_array()[0]);
            if let Some((sums, d)) = sums {
                chunks!(d, |i, len| {
                    (V::<I>::load(sums.add(i).cast_const(), len, 0.0) * factor).store(sums.add(i), len);
                });
            }
        }
        max.write(new);
        let mut sum = V::<I>::splat(0.0);
        chunks!(hi - lo, |i, len| {
            let e = exp_nonpositive(V::load(row.add(i).cast_const(), len, f32::NEG_INFINITY) - new);
            e.store(row.add(i), len);
            sum = sum + e;
        });
        total.write(total.read() + sum.sum());
    }
}

pub(super) fn scratch(_op: &Attention, inputs: &[Operand], threads: usize) -> usize {
    4 * threads * Sizes::new(&inputs[0].layout, &inputs[1].layout).scratch()
}

pub(super) fn compile(op: &Attention, context: &OpContext<'_>) -> Result<Call> {
    let [q, k, v] = [0, 1, 2].map(|i| context.inputs[i].clone());
    let pos = op.cached.then(|| context.inputs[3].clone());
    let starts = op.segmented.then(|| context.inputs[context.inputs.len() - 1].clone());
    let (out, lse) = (context.output(0), context.output(1));
    let sizes = Sizes::new(&q.layout, &k.layout);
    let (scale, scratch) = (op.scale.0, context.scratch);
    let mask = Mask {
        causal: op.causal,
        window: op.window,
        pos: 0,
        starts: None,
        queries: sizes.queries,
        keys: sizes.keys,
    };
    let tasks = sizes.batch * sizes.kv_heads * sizes.queries.div_ceil(sizes.tile());
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let mask = Mask {
                pos: pos.as_ref().map_or(0, |pos| pos.at::<u32>(cx).read() as usize),
                starts: starts.as_ref().map(|starts| In(starts.at::<u32>(cx).cast_const())),
                ..mask
            };
            let keys = if mask.causal { sizes.keys.min(mask.pos + sizes.queries) } else { sizes.keys };
            let work = 2 * sizes.batch * sizes.queries * keys * sizes.heads * sizes.d;
            let kernel = Forward {
                sizes,
                mask,
                scale,
                q: Heads::new(&q, cx),
                k: Heads::new(&k, cx),
                v: Heads::new(&v, cx),
                out: out.as_ref().map(|out| Out(out.at(cx))),
                lse: lse.as_ref().map(|lse| Out(lse.at(cx))),
                scratch: Out(cx.at(scratch)),
            };
            run_tasks(cx.pool, tasks, work, &kernel);
        }
        Ok(())
    }))
}
