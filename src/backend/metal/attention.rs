//! Scaled dot-product attention. See [`crate::ops::Attention`].

use bytemuck::NoUninit;

use super::device::Gpu;
use super::executor::attention_launches;
use super::pipeline::Source;
use super::site::{Site, Tensor, small};
use crate::Result;
use crate::graph::Operand;
use crate::ops::Attention;
use crate::tensor::Layout;

pub(super) const SOURCE: Source = Source::new("attention", include_str!("kernels/attention.metal"));

/// The largest head that a SIMD group holds.
pub(super) const MOST_ELEMENTS: usize = 256;
/// Up to so many queries each gets a threadgroup of its own.
const FEW: usize = 8;
/// The keys of a few queries are split into parts of at least so many, which run side by side.
const PART: usize = 1024;
const MOST_PARTS: usize = 32;

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

/// Strides of `[batch, token, head]`.
pub(super) fn strides(layout: &Layout) -> [u32; 3] {
    [0, 1, 2].map(|axis| small(layout.strides[axis]))
}

/// Ranges of blocks, first and count, over which an attention step is spread so that no launch takes too long.
pub(super) fn block_ranges(site: &Site<'_>, blocks: usize) -> impl Iterator<Item = (u32, usize)> + use<> {
    let share = blocks.div_ceil(attention_launches(site.gpu, site.step, blocks)).max(1);
    (0..blocks).step_by(share).map(move |first| (small(first), share.min(blocks - first)))
}

/// Into how many parts the keys of each query are split.
fn parts(queries: usize, keys: usize) -> usize {
    if queries <= FEW { (keys / PART).clamp(1, MOST_PARTS) } else { 1 }
}

/// Bytes for the results of parts, or for the scores of a head.
pub(super) fn scratch(gpu: &Gpu, op: &Attention, inputs: &[Operand]) -> usize {
    #[cfg(mps)]
    if chain::chosen(gpu, op, inputs[0].dtype, &inputs[0].layout, &inputs[1].layout) {
        return 2 * chain::matrix_bytes(inputs[0].dtype, &inputs[0].layout, &inputs[1].layout);
    }
    let _ = (gpu, op);
    let (q, k) = (&inputs[0].layout.shape, &inputs[1].layout.shape);
    match parts(q[1], k[1]) {
        1 => 0,
        parts => 4 * q[0] * q[1] * q[2] * parts * (q[3] + 2),
    }
}

/// Adds the launches.
pub(super) fn compile(op: &Attention, site: &mut Site<'_>) -> Result<()> {
    let (out, lse) = (site.output(0), site.output(1));
    let inputs = site.inputs.clone();
    let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
    let shape = q.layout.shape.dims();
    let (batch, t, heads, d) = (shape[0], shape[1], shape[2], shape[3]);
    if d > MOST_ELEMENTS {
        return Err(
            site.unsupported(q.dtype, &format!("heads of more than {MOST_ELEMENTS} elements need the cpu"))
        );
    }
    let Some(out) = out else { return Ok(()) };
    #[cfg(mps)]
    if lse.is_none() && chain::compile(op, [q, k, v, &out], site)? {
        return Ok(());
    }
    let s = k.layout.shape[1];
    let kv_heads = k.layout.shape[2];
    let parts = parts(t, s);
    let sizes = Sizes {
        batch: small(batch),
        t: small(t),
        s: small(s),
        heads: small(heads),
        group: small(heads / kv_heads),
        d: small(d),
        q: strides(&q.layout),
        k: strides(&k.layout),
        v: strides(&v.layout),
        causal: u32::from(op.causal),
        window: op.window.map_or(0, small),
        cached: u32::from(op.cached),
        segmented: u32::from(op.segmented),
        store_lse: u32::from(lse.is_some()),
        parts: small(parts),
        scale: op.scale.0,
        first_block: 0,
    };
    let pos = op.cached.then(|| &inputs[3]);
    let starts = op.segmented.then(|| &inputs[inputs.len() - 1]);
    let form = if t <= FEW { "few" } else { "rows" };
    let mut launch = site.kernel(SOURCE, &format!("attention_{form}_{}_{}", q.type_name(), k.type_name()))?;
    launch = launch.read(q).read(k).read(v);
    for optional in [pos, starts] {
        launch = match optional {
            Some(tensor) => launch.read(tensor),
            None => launch.unused(&q.first()),
        };
    }
    if t > FEW {
        let launch = launch.write(&out).write_or(lse.as_ref(), &q.first());
        for (first_block, blocks) in block_ranges(site, t.div_ceil(8)) {
            let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
            site.push(launch, [blocks, heads, batch], [256, 1, 1]);
        }
        return Ok(());
    }
    let partial = Tensor::bytes(
        site.scratch.clone(),
        if parts > 1 { 4 * batch * t * heads * parts * (d + 2) } else { 0 },
    );
    let launch = if parts > 1 {
        launch.unused(&q.first()).unused(&q.first()).write(&partial)
    } else {
        launch.write(&out).write_or(lse.as_ref(), &q.first()).unused(&q.first())
    };
    for (first_block, rows) in block_ranges(site, batch * t * heads) {
        let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
        site.push(launch, [parts, rows, 1], [512, 1, 1]);
    }
    if parts > 1 {
        let launch = site.kernel(SOURCE, &format!("attention_merge_{}", out.type_name()))?.read(&partial);
        let launch = launch.write(&out).write_or(lse.as_ref(), &q.first()).constants(&sizes);
        site.push(launch, [batch * t * heads, 1, 1], [64, 1, 1]);
    }
    Ok(())
}

/// The chain of Metal Performance Shaders.
#[cfg(mps)]
mod chain {
    use super::{Attention, FEW, Gpu, Layout, SOURCE, Site, Tensor, small, strides};
    use crate::Result;
    use crate::backend::mps;
    use crate::backend::select::Implementation;
    use crate::tensor::DType;

    /// Where buffers of the framework begin.
    const ALIGNMENT: usize = 256;

    /// Whether the chain computes this: it knows no mask but a causal one.
    pub(super) fn chosen(gpu: &Gpu, op: &Attention, dtype: DType, q: &Layout, k: &Layout) -> bool {
        let (q, s) = (q.shape.dims(), k.shape[1]);
        if op.cached || op.segmented || op.window.is_some() || q[1] <= FEW || dtype == DType::BF16 {
            return false;
        }
        let choice = gpu.choices.attention(q[0] * q[2], [q[1], s, q[3]], dtype, gpu.chip);
        choice == Implementation::Mps
    }

    /// Bytes of a head's scores.
    pub(super) fn matrix_bytes(dtype: DType, q: &Layout, k: &Layout) -> usize {
        (q.shape[1] * k.shape[1] * dtype.size()).next_multiple_of(ALIGNMENT)
    }

    /// The matrix of one head.
    fn head(tensor: &Tensor, batch: usize, head: usize) -> mps::Operand {
        let [by_batch, by_token, by_head] = strides(&tensor.layout).map(|stride| stride as usize);
        let elements = batch * by_batch + head * by_head;
        let address = tensor.first().plus(elements * tensor.dtype.size());
        let size = (tensor.layout.shape[1], tensor.layout.shape[3]);
        mps::Operand::single(address, tensor.dtype, size, by_token)
    }

    /// Adds the calls of all heads. False, and nothing is added, if they are refused.
    pub(super) fn compile(op: &Attention, [q, k, v, out]: [&Tensor; 4], site: &mut Site<'_>) -> Result<bool> {
        let dtype = q.dtype;
        let alike = [k, v, out].iter().all(|tensor| tensor.dtype == dtype);
        if !alike || !chosen(site.gpu, op, dtype, &q.layout, &k.layout) {
            return Ok(false);
        }
        let (t, s) = (q.layout.shape[1], k.layout.shape[1]);
        let (heads, group) = (q.layout.shape[2], q.layout.shape[2] / k.layout.shape[2]);
        let bytes = matrix_bytes(dtype, &q.layout, &k.layout);
        let matrix = |index: usize| mps::Operand::single(site.scratch.plus(index * bytes), dtype, (t, s), s);
        let (scores, weights) = (matrix(0), matrix(1));
        let before = site.items.len();
        for index in 0..q.layout.shape[0] * heads {
            let (batch, of) = (index / heads, index % heads);
            if op.causal {
                let launch = site.kernel(SOURCE, &format!("causal_mask_{}", q.type_name()))?;
                let launch = launch.write_bytes(&scores.address, t * s * dtype.size());
                site.push_elements(launch.constants(&[small(t), small(s)]), t * s);
            }
            let operands = mps::Head {
                q: head(q, batch, of),
                k: head(k, batch, of / group),
                v: head(v, batch, of / group),
                out: head(out, batch, of),
            };
            let scale = op.scale.0;
            let op_name = site.step.op.name();
            let calls = mps::attention(site.gpu, op_name, &operands, (&scores, &weights), scale, op.causal);
            match calls {
                Ok(items) => site.items.extend(items),
                Err(refusal) => {
                    tracing::debug!(t, s, %refusal, "attention stays with the fused kernel");
                    site.items.truncate(before);
                    return Ok(false);
                }
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
