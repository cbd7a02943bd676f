//! Rotary position embedding. See [`crate::ops::Rope`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
use crate::Result;
use crate::ops::Rope;

const SOURCE: Source = Source::new("rope", include_str!("kernels/rope.metal"));

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

/// Adds the launch of a rotation.
pub(super) fn compile(op: &Rope, site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let [x, cos, sin, positions] = [0, 1, 2, 3].map(|input| site.inputs[input].clone());
    let shape = &x.layout.shape;
    let (heads, half) = (shape[1], shape[2] / 2);
    let pairs = shape[0] * heads * half;
    let sizes = Sizes {
        pairs: small(pairs),
        heads: small(heads),
        half: small(half),
        positions: small(cos.layout.shape[0]),
        token_stride: small(x.layout.strides[0]),
        head_stride: small(x.layout.strides[1]),
        direction: if op.inverse { -1.0 } else { 1.0 },
    };
    site.check_indices(&positions, cos.layout.shape[0], "position")?;
    let launch = site.kernel(SOURCE, &format!("rope_{}", x.type_name()))?;
    let launch = launch.read(&x).read(&cos).read(&sin).read(&positions).write(&y);
    site.push_elements(launch.constants(&sizes), pairs);
    Ok(())
}
