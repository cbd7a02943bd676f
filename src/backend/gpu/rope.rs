//! Rotary position embedding. See [`crate::ops::Rope`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::ops::{Op, Rope};

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
    q: [u32; 2],
    k: [u32; 2],
    v: [u32; 2],
}

/// Adds the dispatch of a rotation.
pub(super) fn lower(op: &Rope, cx: &mut OpContext<'_, '_>) -> Result<()> {
    if !op.inverse && with_cache(cx)? {
        return Ok(());
    }
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

/// Two rotations and the writing of keys and values to their caches, if that is what follows: one launch. The rotated keys
/// are written twice, so that nothing depends on who else reads them.
fn with_cache(cx: &mut OpContext<'_, '_>) -> Result<bool> {
    let [rope, key_write, value_write, ..] = cx.rest else { return Ok(false) };
    let step = cx.step;
    let fits = matches!(&rope.op, Op::Rope(op) if !op.inverse)
        && rope.inputs[1..] == step.inputs[1..]
        && matches!(key_write.op, Op::KvWrite(_))
        && matches!(value_write.op, Op::KvWrite(_))
        && key_write.inputs[2] == value_write.inputs[2]
        && rope.outputs[0].as_ref().is_some_and(|rotated| *rotated == key_write.inputs[1])
        && key_write.inputs[0].spec() == value_write.inputs[0].spec()
        && value_write.inputs[1].spec() == key_write.inputs[1].spec();
    let tensor = |operand| (cx.tensor)(operand);
    let [q, cos, sin, positions] = [0, 1, 2, 3].map(|input| cx.inputs[input].clone());
    let (k, v) = (tensor(&rope.inputs[0]), tensor(&value_write.inputs[1]));
    let Some(q_out) = cx.output(0).filter(|_| fits && k.dtype == q.dtype && v.dtype == q.dtype) else {
        return Ok(false);
    };
    let k_out = tensor(&key_write.inputs[1]);
    let (k_cache, v_cache, pos) =
        (tensor(&key_write.inputs[0]), tensor(&value_write.inputs[0]), tensor(&key_write.inputs[2]));
    // What was written before something else was read must not be written beside it.
    let span = Tensor::range;
    let (reads, writes) = ([&q, &k, &v].map(span), [&q_out, &k_out].map(span));
    if writes.iter().any(|write| reads.iter().any(|read| read.overlaps(write)))
        || writes[0].overlaps(&writes[1])
    {
        return Ok(false);
    }
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
        q: steps(&q),
        k: steps(&k),
        v: steps(&v),
    };
    cx.check_indices(&positions, cos.layout.shape[0], "position")?;
    let launch = cx.kernel(SOURCE, &format!("rope_cache_{}_{}", q.type_name(), k_cache.type_name()))?;
    let launch = launch.read(&q).read(&k).read(&v).read(&cos).read(&sin).read(&positions).read(&pos);
    let launch = launch.write(&q_out).write(&k_out).write(&k_cache).write(&v_cache).constants(&sizes);
    cx.push_elements(launch, tokens * (q_heads + 2 * kv_heads) * half);
    cx.done = 3;
    Ok(true)
}
