//! Sums, means and maxima along an axis. See [`crate::ops::Reduce`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
use crate::Result;
use crate::ops::{Reduce, ReduceFn, split};

pub(super) const SOURCE: Source = Source::new("reduce", include_str!("kernels/reduce.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    slices: u32,
    axis: u32,
    inner: u32,
    function: u32,
}

/// Adds the launch of a reduction.
pub(super) fn compile(op: &Reduce, site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let x = site.inputs[0].clone();
    let (outer, axis, inner) = split(&x.layout.shape, op.axis);
    let function = match op.function {
        ReduceFn::Sum => 0,
        ReduceFn::Mean => 1,
        ReduceFn::Max => 2,
    };
    let sizes = Sizes { slices: small(outer * inner), axis: small(axis), inner: small(inner), function };
    let form = if inner == 1 { "row" } else { "axis" };
    let launch = site.kernel(SOURCE, &format!("reduce_{form}_{}", x.type_name()))?;
    let launch = launch.read(&x).write(&y).constants(&sizes);
    if inner == 1 {
        site.push_rows(launch, outer, axis);
    } else {
        site.push_elements(launch, outer * inner);
    }
    Ok(())
}
