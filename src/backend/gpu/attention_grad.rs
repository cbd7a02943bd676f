//! The gradient of attention. See [`crate::ops::AttentionGrad`].

use bytemuck::NoUninit;

use super::attention::{MAX_HEAD_SIZE, block_ranges, strides};
use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::AttentionGrad;
use crate::tensor::DType;

pub(super) const SOURCE: Source = Source::new("attention_grad", include_str!("kernels/attention_grad.metal"));

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
    o: [u32; 3],
    g: [u32; 3],
    causal: u32,
    window: u32,
    segmented: u32,
    store_dk: u32,
    store_dv: u32,
    scale: f32,
    first_block: u32,
}

/// Bytes of scratch for delta.
pub(super) fn scratch(inputs: &[Operand]) -> usize {
    let q = &inputs[0].layout.shape;
    4 * q[0] * q[1] * q[2]
}

/// Adds the dispatches.
pub(super) fn lower(op: &AttentionGrad, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let inputs = cx.inputs.clone();
    let [q, k, v, out, lse, dout] = [0, 1, 2, 3, 4, 5].map(|input| &inputs[input]);
    for other in [k, v, out, dout] {
        cx.expect(other, q.dtype)?;
    }
    cx.expect(lse, DType::F32)?;
    let shape = q.layout.shape.dims();
    let (batch, t, heads, d) = (shape[0], shape[1], shape[2], shape[3]);
    if d > MAX_HEAD_SIZE {
        return Err(
            cx.unsupported(q.dtype, &format!("heads of more than {MAX_HEAD_SIZE} elements need the cpu"))
        );
    }
    let (s, kv_heads) = (k.layout.shape[1], k.layout.shape[2]);
    let [dq, dk, dv] = [0, 1, 2].map(|output| cx.output(output));
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
        o: strides(&out.layout),
        g: strides(&dout.layout),
        causal: u32::from(op.causal),
        window: op.window.map_or(0, as_u32),
        segmented: u32::from(op.segmented),
        store_dk: u32::from(dk.is_some()),
        store_dv: u32::from(dv.is_some()),
        scale: op.scale.0,
        first_block: 0,
    };
    let name = q.type_name();
    let delta = Tensor::memory(cx.scratch, 4 * batch * t * heads);
    let launch = cx.kernel(SOURCE, &format!("attention_delta_{name}"))?.read(out).read(dout).write(&delta);
    let rows = [t.div_ceil(8), heads, batch];
    cx.push(launch.constants(&sizes), rows, [256, 1, 1]);
    let begin = |cx: &OpContext<'_, '_>, kernel: &str| -> Result<_> {
        let launch = cx.kernel(SOURCE, &format!("{kernel}_{name}"))?;
        let launch = launch.read(q).read(k).read(v).read(dout).read(lse).read(&delta);
        Ok(if op.segmented { launch.read(&inputs[6]) } else { launch.unused(q.first()) })
    };
    if let Some(dq) = &dq {
        let launch = begin(cx, "attention_dq")?.write(dq);
        for (first_block, blocks) in block_ranges(cx, t.div_ceil(8)) {
            let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
            cx.push(launch, [blocks, heads, batch], [256, 1, 1]);
        }
    }
    if dk.is_some() || dv.is_some() {
        let launch = begin(cx, "attention_dkv")?;
        let launch = launch.write_or(dk.as_ref(), q.first()).write_or(dv.as_ref(), q.first());
        for (first_block, blocks) in block_ranges(cx, s.div_ceil(8)) {
            let launch = launch.clone().constants(&Sizes { first_block, ..sizes });
            cx.push(launch, [blocks, kv_heads, batch], [256, 1, 1]);
        }
    }
    Ok(())
}
