//! Sums, means and maxima along an axis. See [`crate::ops::Reduce`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
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

/// Adds the dispatch of a reduction.
pub(super) fn lower(op: &Reduce, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let x = cx.inputs[0].clone();
    let (outer, axis, inner) = split(&x.layout.shape, op.axis);
    let function = match op.function {
        ReduceFn::Sum => 0,
        ReduceFn::Mean => 1,
        ReduceFn::Max => 2,
    };
    let sizes = Sizes { slices: as_u32(outer * inner), axis: as_u32(axis), inner: as_u32(inner), function };
    let form = if inner == 1 { "row" } else { "axis" };
    let launch = cx.kernel(SOURCE, &format!("reduce_{form}_{}", x.type_name()))?;
    let launch = launch.read(&x).write(&y).constants(&sizes);
    if inner == 1 {
        cx.push_rows(launch, outer, axis);
    } else {
        cx.push_elements(launch, outer * inner);
    }
    Ok(())
}
