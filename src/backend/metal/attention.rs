//! Scaled dot-product attention. See [`crate::ops::Attention`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, Tensor, small};
use crate::Result;
use crate::graph::Operand;
use crate::ops::Attention;
use crate::tensor::Layout;

const SOURCE: Source = Source::new("attention", include_str!("kernels/attention.metal"));

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
}

/// Strides of `[batch, token, head]`.
pub(super) fn strides(layout: &Layout) -> [u32; 3] {
    [0, 1, 2].map(|axis| small(layout.strides[axis]))
}

/// Into how many parts the keys of each query are split.
fn parts(queries: usize, keys: usize) -> usize {
    if queries <= FEW { (keys / PART).clamp(1, MOST_PARTS) } else { 1 }
}

/// Bytes for the results of parts.
pub(super) fn scratch(inputs: &[Operand]) -> usize {
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
        let launch = launch.write(&out).write_or(lse.as_ref(), &q.first()).constants(&sizes);
        site.push(launch, [t.div_ceil(8), heads, batch], [256, 1, 1]);
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
    site.push(launch.constants(&sizes), [parts, heads, batch * t], [512, 1, 1]);
    if parts > 1 {
        let launch = site.kernel(SOURCE, &format!("attention_merge_{}", out.type_name()))?.read(&partial);
        let launch = launch.write(&out).write_or(lse.as_ref(), &q.first()).constants(&sizes);
        site.push(launch, [batch * t * heads, 1, 1], [64, 1, 1]);
    }
    Ok(())
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
