//! Rotary position embedding. See [`crate::ops::Rope`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::ops::Rope;

pub(super) const SOURCE: Source = Source::new("rope", include_str!("kernels/rope.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    pairs: u32,
    heads: u32,
    half: u32,
    positions: u32,
    token_stride: u32,
    head_stride: u32,
    direction: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CacheSizes {
    tokens: u32,
    half: u32,
    positions: u32,
    capacity: u32,
    q_heads: u32,
    kv_heads: u32,
    store_k: u32,
    q: [u32; 2],
    k: [u32; 2],
    v: [u32; 2],
}

/// Adds the dispatch of a rotation.
pub(super) fn lower(op: &Rope, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let [x, cos, sin, positions] = [0, 1, 2, 3].map(|input| cx.inputs[input].clone());
    let shape = &x.layout.shape;
    let (heads, half) = (shape[1], shape[2] / 2);
    let pairs = shape[0] * heads * half;
    let sizes = Sizes {
        pairs: as_u32(pairs),
        heads: as_u32(heads),
        half: as_u32(half),
        positions: as_u32(cos.layout.shape[0]),
        token_stride: as_u32(x.layout.strides[0]),
        head_stride: as_u32(x.layout.strides[1]),
        direction: if op.inverse { -1.0 } else { 1.0 },
    };
    cx.check_indices(&positions, cos.layout.shape[0], "position")?;
    let launch = cx.kernel(SOURCE, &format!("rope_{}", x.type_name()))?;
    let launch = launch.read(&x).read(&cos).read(&sin).read(&positions).write(&y);
    cx.push_elements(launch.constants(&sizes), pairs);
    Ok(())
}

/// Adds the dispatch of [`crate::ops::RopeKvWrite`]. The rotated keys are stored a second time if anything but the cache
/// reads them.
pub(super) fn lower_kv_write(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let inputs = cx.inputs.clone();
    let [q, k, v, cos, sin, positions, k_cache, v_cache, pos] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|input| &inputs[input]);
    cx.expect(k, q.dtype)?;
    cx.expect(v, q.dtype)?;
    let (q_out, k_out) =
        (cx.output(0).expect("without rotated queries the step is decomposed"), cx.output(1));
    let (shape, steps) =
        (&q.layout.shape, |tensor: &Tensor| [0, 1].map(|axis| as_u32(tensor.layout.strides[axis])));
    let (tokens, q_heads, half, kv_heads) = (shape[0], shape[1], shape[2] / 2, k.layout.shape[1]);
    let sizes = CacheSizes {
        tokens: as_u32(tokens),
        half: as_u32(half),
        positions: as_u32(cos.layout.shape[0]),
        capacity: as_u32(k_cache.layout.shape[1]),
        q_heads: as_u32(q_heads),
        kv_heads: as_u32(kv_heads),
        store_k: u32::from(k_out.is_some()),
        q: steps(q),
        k: steps(k),
        v: steps(v),
    };
    cx.check_indices(positions, cos.layout.shape[0], "position")?;
    let launch = cx.kernel(SOURCE, &format!("rope_cache_{}_{}", q.type_name(), k_cache.type_name()))?;
    let launch = launch.read(q).read(k).read(v).read(cos).read(sin).read(positions).read(pos);
    let launch = launch.write(&q_out).write_or(k_out.as_ref(), q.first());
    let launch = launch.write(k_cache).write(v_cache).constants(&sizes);
    cx.push_elements(launch, tokens * (q_heads + 2 * kv_heads) * half);
    Ok(())
}
