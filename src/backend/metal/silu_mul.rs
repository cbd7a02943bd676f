//! The gate of a Llama feed-forward block. See [`crate::ops::SiluMul`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
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

/// Adds the launch of the gate.
pub(super) fn compile(site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let (gate, up) = (site.inputs[0].clone(), site.inputs[1].clone());
    let launch = site.kernel(SOURCE, &format!("silu_mul_{}", y.type_name()))?.read(&gate).read(&up).write(&y);
    let sizes = Sizes {
        count: small(y.elements()),
        n: small(y.last()),
        gate_stride: small(gate.row_stride()),
        up_stride: small(up.row_stride()),
        dy_stride: 0,
        store_gate: 0,
        store_up: 0,
    };
    site.push_elements(launch.constants(&sizes), y.elements());
    Ok(())
}

/// Adds the launch of its gradient.
pub(super) fn compile_grad(site: &mut Site<'_>) -> Result<()> {
    let (dy, gate, up) = (site.inputs[0].clone(), site.inputs[1].clone(), site.inputs[2].clone());
    let (dgate, dup) = (site.output(0), site.output(1));
    let launch = site.kernel(SOURCE, &format!("silu_mul_grad_{}", dy.type_name()))?;
    let launch = launch.read(&dy).read(&gate).read(&up);
    let launch = launch.write_or(dgate.as_ref(), &dy.first()).write_or(dup.as_ref(), &dy.first());
    let sizes = Sizes {
        count: small(dy.elements()),
        n: small(dy.last()),
        gate_stride: small(gate.row_stride()),
        up_stride: small(up.row_stride()),
        dy_stride: small(dy.row_stride()),
        store_gate: u32::from(dgate.is_some()),
        store_up: u32::from(dup.is_some()),
    };
    site.push_elements(launch.constants(&sizes), dy.elements());
    Ok(())
}
