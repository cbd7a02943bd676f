//! The gate of a Llama feed-forward block. See [`crate::ops::SiluMul`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
use crate::Result;

pub(super) const SOURCE: Source = Source::new("silu_mul", include_str!("kernels/silu_mul.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    n: u32,
    gate_stride: u32,
    up_stride: u32,
    dy_stride: u32,
    store_gate: u32,
    store_up: u32,
}

/// Adds the dispatch of the gate.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let (gate, up) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let launch = cx.kernel(SOURCE, &format!("silu_mul_{}", y.type_name()))?.read(&gate).read(&up).write(&y);
    let sizes = Sizes {
        count: as_u32(y.elements()),
        n: as_u32(y.last()),
        gate_stride: as_u32(gate.row_stride()),
        up_stride: as_u32(up.row_stride()),
        dy_stride: 0,
        store_gate: 0,
        store_up: 0,
    };
    cx.push_elements(launch.constants(&sizes), y.elements());
    Ok(())
}

/// Adds the dispatch of its gradient.
pub(super) fn lower_grad(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (dy, gate, up) = (cx.inputs[0].clone(), cx.inputs[1].clone(), cx.inputs[2].clone());
    let (dgate, dup) = (cx.output(0), cx.output(1));
    let launch = cx.kernel(SOURCE, &format!("silu_mul_grad_{}", dy.type_name()))?;
    let launch = launch.read(&dy).read(&gate).read(&up);
    let launch = launch.write_or(dgate.as_ref(), dy.first()).write_or(dup.as_ref(), dy.first());
    let sizes = Sizes {
        count: as_u32(dy.elements()),
        n: as_u32(dy.last()),
        gate_stride: as_u32(gate.row_stride()),
        up_stride: as_u32(up.row_stride()),
        dy_stride: as_u32(dy.row_stride()),
        store_gate: u32::from(dgate.is_some()),
        store_up: u32::from(dup.is_some()),
    };
    cx.push_elements(launch.constants(&sizes), dy.elements());
    Ok(())
}
