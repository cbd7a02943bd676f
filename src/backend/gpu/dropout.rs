//! Dropout. See [`crate::ops::Dropout`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::ops::Dropout;

pub(super) const SOURCE: Source = Source::new(
    "dropout",
    concat!(include_str!("kernels/philox.metal"), include_str!("kernels/dropout.metal")),
);

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    stream: u32,
    threshold: u32,
    scale: f32,
}

/// Adds the dispatch.
pub(super) fn lower(op: &Dropout, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let (x, seed) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let launch = cx.kernel(SOURCE, &format!("dropout_{}", x.type_name()))?;
    let sizes = Sizes {
        count: as_u32(x.elements()),
        stream: op.stream,
        threshold: op.threshold(),
        scale: (1.0 / (1.0 - f64::from(op.p.0))) as f32,
    };
    cx.push_elements(launch.read(&x).read(&seed).write(&y).constants(&sizes), x.elements().div_ceil(4));
    Ok(())
}
