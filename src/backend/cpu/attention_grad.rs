//! The gradient of tiled attention. See [`crate::ops::AttentionGrad`].
//!
//! A task is one key head of one sequence with all its query heads, so that no two tasks add to the same gradient.
//! Scores are computed again, tile by tile, from the log-sum-exp.

use super::attention::{Heads, KEYS, Mask, Sizes, load, store};
use super::kernel::{In, Out, Tasks, chunks, run_tasks};
use super::math::exp;
use super::microkernel::{Matrix, MicroGemm, Panels, Prefetch, Tile, pack};
use super::op::{Call, OpContext};
use super::vector::{Isa, V};
use crate::Result;
use crate::graph::Operand;
use crate::ops::AttentionGrad;

/// Queries of a tile.
const QUERIES: usize = 64;

/// Elements of working memory of a thread: the gradient of all queries of a group, δ of each, and tiles.
fn thread_scratch(sizes: &Sizes) -> usize {
    let (padded, rows) = (sizes.padded(), sizes.queries * sizes.group());
    let tiles = 2 * KEYS * padded + 2 * KEYS * sizes.d + KEYS * padded + 2 * QUERIES * padded;
    (rows * (padded + 1) + tiles + 2 * QUERIES * KEYS + 2 * QUERIES * sizes.d).next_multiple_of(16)
}

struct Backward {
    sizes: Sizes,
    mask: Mask,
    scale: f32,
    q: Heads,
    k: Heads,
    v: Heads,
    out: Heads,
    dout: Heads,
    lse: In<f32>,
    dq: Option<Out<u8>>,
    dk: Option<Out<u8>>,
    dv: Option<Out<u8>>,
    scratch: Out<f32>,
}

/// The memory of a task.
struct Tiles {
    batch: usize,
    kv: usize,
    /// `[rows, padded]`, row = head·queries + query.
    dq: *mut f32,
    /// `[rows]`
    delta: *mut f32,
    /// `[KEYS, padded]` each.
    dk: *mut f32,
    dv: *mut f32,
    /// Panels of kᵀ, vᵀ (`d` deep) and k (as many deep as there are keys).
    k_columns: *mut f32,
    v_columns: *mut f32,
    k_rows: *mut f32,
    /// Panels of q and dout, as many deep as there are queries.
    q_rows: *mut f32,
    dout_rows: *mut f32,
    /// q and dout as they are, `[QUERIES, d]`.
    q: *mut f32,
    dout: *mut f32,
    /// `[QUERIES, KEYS]` each.
    p: *mut f32,
    ds: *mut f32,
}

impl Tasks for Backward {
    #[inline(always)]
    unsafe fn task<I: Isa>(&self, task: usize, thread: usize) {
        let Sizes { queries, keys, kv_heads, d, .. } = self.sizes;
        let (padded, group) = (self.sizes.padded(), self.sizes.group());
        let (batch, kv) = (task / kv_heads, task % kv_heads);
        let dtype = self.q.dtype;
        // SAFETY: the heads are the task's alone; the working memory is the thread's.
        unsafe {
            let mut next = self.scratch.at(thread * thread_scratch(&self.sizes));
            let mut take = |elements: usize| {
                let taken = next;
                next = next.add(elements);
                taken
            };
            let rows = group * queries;
            let tiles = Tiles {
                batch,
                kv,
                dq: take(rows * padded),
                delta: take(rows),
                dk: take(KEYS * padded),
                dv: take(KEYS * padded),
                k_columns: take(KEYS * d),
                v_columns: take(KEYS * d),
                k_rows: take(KEYS * padded),
                q_rows: take(QUERIES * padded),
                dout_rows: take(QUERIES * padded),
                q: take(QUERIES * d),
                dout: take(QUERIES * d),
                p: take(QUERIES * KEYS),
                ds: take(QUERIES * KEYS),
            };
            std::ptr::write_bytes(tiles.dq, 0, rows * padded);
            for row in 0..rows {
                let (head, query) = (kv * group + row / queries, row % queries);
                let (out, dout) = (self.out.at(batch, query, head), self.dout.at(batch, query, head));
                let mut sum = V::<I>::splat(0.0);
                chunks!(d, |i, len| {
                    sum = load::<I>(dtype, out, i, len).fma(load(dtype, dout, i, len), sum);
                });
                tiles.delta.add(row).write(sum.sum());
            }
            for key in (0..keys).step_by(KEYS) {
                self.keys::<I>(&tiles, key, KEYS.min(keys - key));
            }
            if let Some(dq) = self.dq {
                for row in 0..rows {
                    let (head, query) = (kv * group + row / queries, row % queries);
                    let to = dq.at(((batch * queries + query) * self.sizes.heads + head) * d * dtype.size());
                    chunks!(d, |i, len| {
                        let sum = V::<I>::load(tiles.dq.add(row * padded + i).cast_const(), len, 0.0);
                        store(dtype, to, i, len, sum);
                    });
                }
            }
        }
    }
}

impl Backward {
    /// One tile of keys with every query that sees it.
    ///
    /// # Safety
    /// See [`Tasks::task`].
    #[inline(always)]
    unsafe fn keys<I: Isa>(&self, tiles: &Tiles, key: usize, count: usize) {
        let Sizes { queries, kv_heads, d, .. } = self.sizes;
        let (padded, dtype) = (self.sizes.padded(), self.q.dtype);
        // SAFETY: as the caller promises.
        unsafe {
            let k = self.k.at(tiles.batch, key, tiles.kv);
            let v = self.v.at(tiles.batch, key, tiles.kv);
            pack::<I::Tile>(dtype, self.k.matrix(k, true), d, count, tiles.k_columns);
            pack::<I::Tile>(dtype, self.v.matrix(v, true), d, count, tiles.v_columns);
            pack::<I::Tile>(dtype, self.k.matrix(k, false), count, d, tiles.k_rows);
            std::ptr::write_bytes(tiles.dk, 0, KEYS * padded);
            std::ptr::write_bytes(tiles.dv, 0, KEYS * padded);
            for head in 0..self.sizes.group() {
                for query in (0..queries).step_by(QUERIES) {
                    let rows = QUERIES.min(queries - query);
                    let (start, end) = self.mask.span(tiles.batch, query, rows);
                    if start < key + count && key < end {
                        self.tile::<I>(tiles, head, (query, rows), (key, count));
                    }
                }
            }
            for (from, to) in [(tiles.dk, self.dk), (tiles.dv, self.dv)] {
                let Some(to) = to else { continue };
                for i in 0..count {
                    let row = ((tiles.batch * self.sizes.keys + key + i) * kv_heads + tiles.kv) * d;
                    chunks!(d, |c, len| {
                        let sum = V::<I>::load(from.add(i * padded + c).cast_const(), len, 0.0);
                        store(dtype, to.at(row * dtype.size()), c, len, sum);
                    });
                }
            }
        }
    }

    /// One tile of queries of one head against one tile of keys.
    ///
    /// # Safety
    /// See [`Tasks::task`].
    #[inline(always)]
    unsafe fn tile<I: Isa>(
        &self,
        tiles: &Tiles,
        head: usize,
        (query, rows): (usize, usize),
        (key, count): (usize, usize),
    ) {
        let Sizes { queries, heads, d, .. } = self.sizes;
        let padded = self.sizes.padded();
        let absolute = tiles.kv * self.sizes.group() + head;
        let (nr, dtype) = (I::Tile::NR, self.q.dtype);
        // SAFETY: as the caller promises.
        unsafe {
            let (q, dout) =
                (self.q.at(tiles.batch, query, absolute), self.dout.at(tiles.batch, query, absolute));
            for (from, step, plain, panels) in [
                (q, self.q.position, tiles.q, tiles.q_rows),
                (dout, self.dout.position, tiles.dout, tiles.dout_rows),
            ] {
                for i in 0..rows {
                    chunks!(d, |c, len| {
                        let x = load::<I>(dtype, from.add(i * step * dtype.size()), c, len);
                        x.store(plain.add(i * d + c), len);
                    });
                }
                I::Tile::pack_f32(Matrix { start: plain, rows: d, columns: 1 }, rows, d, panels);
            }
            let scores = |left: *mut f32, columns: *mut f32, c: *mut f32, alpha: f32| MicroGemm {
                m: rows,
                n: count,
                k: d,
                a: Matrix { start: left, rows: d, columns: 1 },
                b: Panels { start: columns, panel: d * nr, ldb: nr },
                c,
                ldc: KEYS,
                alpha,
                add: false,
                prefetch: Prefetch::NONE,
            };
            I::Tile::multiply(&scores(tiles.q, tiles.k_columns, tiles.p, self.scale));
            I::Tile::multiply(&scores(tiles.dout, tiles.v_columns, tiles.ds, 1.0));
            for i in 0..rows {
                let (lo, hi) = self.mask.range(tiles.batch, query + i);
                let (lo, hi) = (lo.saturating_sub(key).min(count), hi.saturating_sub(key).min(count));
                let lse = self.lse.at((tiles.batch * heads + absolute) * queries + query + i).read();
                let delta = tiles.delta.add(head * queries + query + i).read();
                let (p, ds) = (tiles.p.add(i * KEYS), tiles.ds.add(i * KEYS));
                for hidden in [0..lo.min(hi), hi.max(lo)..count] {
                    std::ptr::write_bytes(p.add(hidden.start), 0, hidden.len());
                    std::ptr::write_bytes(ds.add(hidden.start), 0, hidden.len());
                }
                if lo >= hi {
                    std::ptr::write_bytes(p, 0, count);
                    std::ptr::write_bytes(ds, 0, count);
                    continue;
                }
                let (p, ds) = (p.add(lo), ds.add(lo));
                chunks!(hi - lo, |j, len| {
                    let weight = exp(V::<I>::load(p.add(j).cast_const(), len, 0.0) - lse);
                    let dp = V::load(ds.add(j).cast_const(), len, 0.0);
                    weight.store(p.add(j), len);
                    (weight * (dp - delta) * self.scale).store(ds.add(j), len);
                });
            }
            // dv += pᵀ·dout and dk += dsᵀ·q
            let over_queries = |left: *mut f32, right: *mut f32, c: *mut f32| MicroGemm {
                m: count,
                n: d,
                k: rows,
                a: Matrix { start: left, rows: 1, columns: KEYS },
                b: Panels { start: right, panel: rows * nr, ldb: nr },
                c,
                ldc: padded,
                alpha: 1.0,
                add: true,
                prefetch: Prefetch::NONE,
            };
            I::Tile::multiply(&over_queries(tiles.p, tiles.dout_rows, tiles.dv));
            I::Tile::multiply(&over_queries(tiles.ds, tiles.q_rows, tiles.dk));
            // dq += ds·k
            I::Tile::multiply(&MicroGemm {
                m: rows,
                n: d,
                k: count,
                a: Matrix { start: tiles.ds, rows: KEYS, columns: 1 },
                b: Panels { start: tiles.k_rows, panel: count * nr, ldb: nr },
                c: tiles.dq.add((head * queries + query) * padded),
                ldc: padded,
                alpha: 1.0,
                add: true,
                prefetch: Prefetch::NONE,
            });
        }
    }
}

pub(super) fn scratch(inputs: &[Operand], threads: usize) -> usize {
    4 * threads * thread_scratch(&Sizes::new(&inputs[0].layout, &inputs[1].layout))
}

pub(super) fn compile(op: &AttentionGrad, context: &OpContext<'_>) -> Result<Call> {
    let [q, k, v, out, lse, dout] = [0, 1, 2, 3, 4, 5].map(|i| context.inputs[i].clone());
    for other in [&k, &v, &out, &dout] {
        context.expect(other, q.dtype)?;
    }
    let starts = op.segmented.then(|| context.inputs[6].clone());
    let (dq, dk, dv) = (context.output(0), context.output(1), context.output(2));
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
    let tasks = sizes.batch * sizes.kv_heads;
    let work = 5 * sizes.batch * sizes.queries * sizes.keys * sizes.heads * sizes.d;
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            let mask =
                Mask { starts: starts.as_ref().map(|starts| In(starts.at::<u32>(cx).cast_const())), ..mask };
            let kernel = Backward {
                sizes,
                mask,
                scale,
                q: Heads::new(&q, cx),
                k: Heads::new(&k, cx),
                v: Heads::new(&v, cx),
                out: Heads::new(&out, cx),
                dout: Heads::new(&dout, cx),
                lse: In(lse.at(cx)),
                dq: dq.as_ref().map(|d| Out(d.at(cx))),
                dk: dk.as_ref().map(|d| Out(d.at(cx))),
                dv: dv.as_ref().map(|d| Out(d.at(cx))),
                scratch: Out(cx.at(scratch)),
            };
            run_tasks(cx.pool, tasks, work, &kernel);
        }
        Ok(())
    }))
}
