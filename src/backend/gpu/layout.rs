//! Copies between strides and dtypes, and operations that consist of copies. See [`crate::ops::Copy`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use super::strided::{Walk, walks};
use crate::Result;
use crate::ops::{Concat, Unslice, split};

pub(super) const SOURCE: Source = Source::new("layout", include_str!("kernels/layout.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct CopySizes {
    count: u32,
    x: Walk,
    y: Walk,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct UnsliceSizes {
    count: u32,
    total: u32,
    inner: u32,
    start: u32,
    len: u32,
    x: Walk,
}

/// Adds a copy between two tensors of one shape.
fn copy(from: &Tensor, to: &Tensor, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some([x, y]) = walks([&from.layout, &to.layout]) else {
        return Err(cx.unsupported(from.dtype, "its strides have too many axes; copy it in two steps"));
    };
    let launch = cx.kernel(SOURCE, &format!("copy_{}_{}", from.type_name(), to.type_name()))?;
    let sizes = CopySizes { count: as_u32(from.elements()), x, y };
    cx.push_elements(launch.read(from).write(to).constants(&sizes), from.elements());
    Ok(())
}

/// Adds the dispatch of a copy or a cast.
pub(super) fn lower_copy(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(to) = cx.output(0) else { return Ok(()) };
    let from = cx.inputs[0].clone();
    copy(&from, &to, cx)
}

/// Adds one copy per input.
pub(super) fn lower_concat(op: &Concat, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(output) = cx.output(0) else { return Ok(()) };
    let mut start = 0;
    for input in cx.inputs.clone() {
        let len = input.layout.shape[op.axis];
        let part = Tensor { layout: output.layout.sliced(op.axis, start, len), ..output.clone() };
        copy(&input, &part, cx)?;
        start += len;
    }
    Ok(())
}

/// Adds the dispatch that writes a part and zeros the rest.
pub(super) fn lower_unslice(op: &Unslice, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let x = cx.inputs[0].clone();
    let Some([walk]) = walks([&x.layout]) else {
        return Err(cx.unsupported(x.dtype, "its strides have too many axes; copy it first"));
    };
    let (_, total, inner) = split(&y.layout.shape, op.axis);
    let launch = cx.kernel(SOURCE, &format!("unslice_{}", y.type_name()))?.read(&x).write(&y);
    let sizes = UnsliceSizes {
        count: as_u32(y.elements()),
        total: as_u32(total),
        inner: as_u32(inner),
        start: as_u32(op.start),
        len: as_u32(x.layout.shape[op.axis]),
        x: walk,
    };
    cx.push_elements(launch.constants(&sizes), y.elements());
    Ok(())
}
