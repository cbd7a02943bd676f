//! Scaled dot-product attention. See [`crate::ops::Attention`].

use bytemuck::NoUninit;

use super::cost::attention_dispatches;
use super::driver::Driver;
use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::Attention;
use crate::tensor::Layout;

pub(super) const SOURCE: Source = Source::new("attention", include_str!("kernels/attention.metal"));

/// Maximum size of a head that a SIMD group holds.
pub(super) const MAX_HEAD_SIZE: usize = 256;
/// Up to this many queries get one threadgroup each.
const MAX_FEW_QUERIES: usize = 8;
/// Minimum number of keys of a part. The keys of a few queries are split into parts that run concurrently.
const MIN_PART_KEYS: usize = 1024;
const MAX_PARTS: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    batch: u32,
    t: u32,
    s: u32,
    heads: u32,
    group: u32,
    d: u32,
    q: [u32; 3],
    k: [u32; 3],
    v: [u32; 3],
    causal: u32,
    window: u32,
    cached: u32,
    segmented: u32,
    store_lse: u32,
    parts: u32,
    scale: f32,
    first_block: u32,
}

/// Returns the strides of `[batch, token, head]`.
pub(super) fn strides(layout: &Layout) -> [u32; 3] {
    [0, 1, 2].map(|axis| as_u32(layout.strides[axis]))
}

/// Returns the ranges of blocks (first and count) of an attention step's dispatches, so that none of them takes too long.
pub(super) fn block_ranges(
    cx: &OpContext<'_, '_>,
    blocks: usize,
) -> impl Iterator<Item = (u32, usize)> + use<> {
    let share = blocks.div_ceil(attention_dispatches(cx.driver(), cx.step, blocks)).max(1);
    (0..blocks).step_by(share).map(move |first| (as_u32(first), share.min(blocks - first)))
}

/// Returns the number of parts into which the keys of each query are split.
fn parts(queries: usize, keys: usize) -> usize {
    if queries <= MAX_FEW_QUERIES { (keys / MIN_PART_KEYS).clamp(1, MAX_PARTS) } else { 1 }
}

/// Bytes of scratch for the results of parts, or for the scores of a head.
pub(super) fn scratch(driver: &dyn Driver, op: &Attention, inputs: &[Operand]) -> usize {
    if chain::chosen(driver, op, inputs[0].dtype, &inputs[0].layout, &inputs[1].layout) {
        return 2 * chain::matrix_bytes(inputs[0].dtype, &inputs[0].layout, &inputs[1].layout);
    }
    let (q, k) = (&inputs[0].layout.shape, &inputs[1].layout.shape);
    match parts(q[1], k[1]) {
        1 => 0,
        parts => 4 * q[0] * q[1] * q[2] * parts * (q[3] + 2),
    }
}

/// Adds the dispatches.
pub(super) fn lower(op: &Attention, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (out, lse) = (cx.output(0), cx.output(1));
    let inputs = cx.inputs.clone();
    let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
    let shape = q.layout.shape.dims();
    let (batch, t, heads, d) = (shape[0], shape[1], shape[2], shape[3]);
    if d > MAX_HEAD_SIZE {
        return Err(
            cx.unsupported(q.dtype, &format!("heads of more than {MAX_HEAD_SIZE} elements need the cpu"))
        );
    }
    let Some(out) = out else { return Ok(()) };
    if lse.is_none() && chain::lower(op, [q, k, v, &out], cx)? {
        return Ok(());
    }
    let s = k.layout.shape[1];
    let kv_heads = k.layout.shape[2];
    let parts = parts(t, s);
    let sizes = Sizes {
        batch: as_u32(batch),
        t: as_u32(t),
        s: as_u32(s),
        heads: as_u32(heads),
        group: as_u32(heads / kv_heads),
        d: as_u32(d),
        q: strides(&q.layout),
        k: strides(&k.layout),
        v: strides(&v.layout),
        causal: u32::from(op.causal),
        window: op.window.map_or(0, as_u32),
        cached: u32::from(op.cached),
        segmented: u32::from(op.segmented),
        store_lse: u32::from(lse.is_some()),
        parts: as_u32(parts),
        scale: op.scale.0,
        first_block: 0,
    };
    let pos = op.cached.then(|| &inputs[3]);
    let starts = op.segmented.then(|| &inputs[inputs.len() - 1]);
    let form = if t <= MAX_FEW_QUERIES { "few" } else { "rows" };
    let mut launch = cx.kernel(SOURCE, &format!("attention_{form}_{}_{}", q.type_name(), k.type_name()))?;
    launch = launch.read(q).read(k).read(v);
    for optional in [pos, starts] {
        launch = match optional {
            Some(tensor) => launch.read(tensor),
            None => launch.unused(q.first()),
        };
    }
    if t > MAX_FEW_QUERIES {
        let launch = launch.write(&out).write_or(lse.as_ref(), q.first());
        for (first_block, blocks) in block_ranges(cx, t.div_ceil(8)) {
            let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
            cx.push(launch, [blocks, heads, batch], [256, 1, 1]);
        }
        return Ok(());
    }
    let partial =
        Tensor::memory(cx.scratch, if parts > 1 { 4 * batch * t * heads * parts * (d + 2) } else { 0 });
    let launch = if parts > 1 {
        launch.unused(q.first()).unused(q.first()).write(&partial)
    } else {
        launch.write(&out).write_or(lse.as_ref(), q.first()).unused(q.first())
    };
    for (first_block, rows) in block_ranges(cx, batch * t * heads) {
        let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
        cx.push(launch, [parts, rows, 1], [512, 1, 1]);
    }
    if parts > 1 {
        let launch = cx.kernel(SOURCE, &format!("attention_merge_{}", out.type_name()))?.read(&partial);
        let launch = launch.write(&out).write_or(lse.as_ref(), q.first()).constants(&sizes);
        cx.push(launch, [batch * t * heads, 1, 1], [64, 1, 1]);
    }
    Ok(())
}

/// Attention as a chain of calls of the vendor's library.
mod chain {
    use super::super::library::Matrix;
    use super::{Attention, Driver, Layout, MAX_FEW_QUERIES, OpContext, SOURCE, Tensor, as_u32, strides};
    use crate::Result;
    use crate::backend::mps;
    use crate::backend::select::Implementation;
    use crate::tensor::DType;

    /// Alignment of the matrices of the library, in bytes.
    const ALIGNMENT: usize = 256;

    /// Returns true if the chain is estimated to be faster. It supports no mask but a causal one.
    pub(super) fn chosen(driver: &dyn Driver, op: &Attention, dtype: DType, q: &Layout, k: &Layout) -> bool {
        let (q, s) = (q.shape.dims(), k.shape[1]);
        if op.cached || op.segmented || op.window.is_some() || q[1] <= MAX_FEW_QUERIES || dtype == DType::BF16
        {
            return false;
        }
        let choice = driver.choices().attention(q[0] * q[2], [q[1], s, q[3]], dtype, driver.chip());
        choice == Implementation::Mps
    }

    /// Returns the bytes of a head's scores.
    pub(super) fn matrix_bytes(dtype: DType, q: &Layout, k: &Layout) -> usize {
        (q.shape[1] * k.shape[1] * dtype.size()).next_multiple_of(ALIGNMENT)
    }

    /// Returns the matrix of one head.
    fn head(tensor: &Tensor, batch: usize, head: usize) -> Matrix {
        let [by_batch, by_token, by_head] = strides(&tensor.layout).map(|stride| stride as usize);
        let elements = batch * by_batch + head * by_head;
        let address = tensor.first().plus(elements * tensor.dtype.size());
        let size = (tensor.layout.shape[1], tensor.layout.shape[3]);
        Matrix::single(address, tensor.dtype, size, by_token)
    }

    /// Adds the calls of all heads. Returns false, and adds nothing, if the driver rejects one.
    pub(super) fn lower(
        op: &Attention,
        [q, k, v, out]: [&Tensor; 4],
        cx: &mut OpContext<'_, '_>,
    ) -> Result<bool> {
        let dtype = q.dtype;
        let alike = [k, v, out].iter().all(|tensor| tensor.dtype == dtype);
        if !alike || !chosen(cx.driver(), op, dtype, &q.layout, &k.layout) {
            return Ok(false);
        }
        let (t, s) = (q.layout.shape[1], k.layout.shape[1]);
        let (heads, group) = (q.layout.shape[2], q.layout.shape[2] / k.layout.shape[2]);
        let bytes = matrix_bytes(dtype, &q.layout, &k.layout);
        let matrix = |index: usize| Matrix::single(cx.scratch.plus(index * bytes), dtype, (t, s), s);
        let (scores, weights) = (matrix(0), matrix(1));
        let before = cx.target.commands.len();
        for index in 0..q.layout.shape[0] * heads {
            let (batch, of) = (index / heads, index % heads);
            if op.causal {
                let launch = cx.kernel(SOURCE, &format!("causal_mask_{}", q.type_name()))?;
                let launch = launch.write_bytes(scores.address, t * s * dtype.size());
                cx.push_elements(launch.constants(&[as_u32(t), as_u32(s)]), t * s);
            }
            let operands = mps::Head {
                q: head(q, batch, of),
                k: head(k, batch, of / group),
                v: head(v, batch, of / group),
                out: head(out, batch, of),
            };
            let calls = mps::attention(&operands, (scores, weights), op.scale.0, op.causal);
            if !calls.into_iter().all(|call| cx.push_library(call)) {
                cx.target.commands.truncate(before);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn keys_are_split_for_few_queries_and_many_keys_only() {
        assert_eq!([parts(1, 1), parts(1, 2047), parts(1, 2048), parts(8, 8192)], [1, 1, 2, 8]);
        assert_eq!([parts(9, 8192), parts(1, 1 << 20)], [1, 32]);
    }
}
