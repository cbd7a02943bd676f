//! Copies between strides and dtypes, and what is made of them. See [`crate::ops::Copy`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, Tensor, small};
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
fn copy(from: &Tensor, to: &Tensor, site: &mut Site<'_>) -> Result<()> {
    let Some([x, y]) = walks([&from.layout, &to.layout]) else {
        return Err(site.unsupported(from.dtype, "its strides have too many axes; copy it in two steps"));
    };
    let launch = site.kernel(SOURCE, &format!("copy_{}_{}", from.type_name(), to.type_name()))?;
    let sizes = CopySizes { count: small(from.elements()), x, y };
    site.push_elements(launch.read(from).write(to).constants(&sizes), from.elements());
    Ok(())
}

/// Copy and cast.
pub(super) fn compile_copy(site: &mut Site<'_>) -> Result<()> {
    let Some(to) = site.output(0) else { return Ok(()) };
    let from = site.inputs[0].clone();
    copy(&from, &to, site)
}

/// Adds a copy for every input.
pub(super) fn compile_concat(op: &Concat, site: &mut Site<'_>) -> Result<()> {
    let Some(output) = site.output(0) else { return Ok(()) };
    let mut start = 0;
    for input in site.inputs.clone() {
        let len = input.layout.shape[op.axis];
        let part = Tensor { layout: output.layout.sliced(op.axis, start, len), ..output.clone() };
        copy(&input, &part, site)?;
        start += len;
    }
    Ok(())
}

/// Adds the launch that sets a part and zeros the rest.
pub(super) fn compile_unslice(op: &Unslice, site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let x = site.inputs[0].clone();
    let Some([walk]) = walks([&x.layout]) else {
        return Err(site.unsupported(x.dtype, "its strides have too many axes; copy it first"));
    };
    let (_, total, inner) = split(&y.layout.shape, op.axis);
    let launch = site.kernel(SOURCE, &format!("unslice_{}", y.type_name()))?.read(&x).write(&y);
    let sizes = UnsliceSizes {
        count: small(y.elements()),
        total: small(total),
        inner: small(inner),
        start: small(op.start),
        len: small(x.layout.shape[op.axis]),
        x: walk,
    };
    site.push_elements(launch.constants(&sizes), y.elements());
    Ok(())
}
