//! Softmax and log-softmax along an axis, and their gradients. See [`crate::ops::Softmax`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::library::LibraryCall;
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::ops::split;

pub(super) const SOURCE: Source = Source::new("softmax", include_str!("kernels/softmax.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    x_stride: u32,
    y_stride: u32,
    logarithm: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Axis {
    slices: u32,
    axis: u32,
    inner: u32,
    logarithm: u32,
}

/// Adds the dispatch of a softmax, or of a log-softmax if `log`.
pub(super) fn lower(axis: usize, log: bool, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let x = cx.inputs[0].clone();
    let logarithm = u32::from(log);
    let dtype = x.type_name();
    let (outer, len, inner) = split(&x.layout.shape, axis);
    if axis + 1 == x.layout.shape.rank() {
        let call = LibraryCall::Softmax { x: x.row_matrix(), y: y.row_matrix(), logarithm: log };
        if cx.prefers_library() && cx.push_library(call) {
            return Ok(());
        }
        let n = x.last();
        let sizes = Sizes { n: as_u32(n), x_stride: as_u32(x.row_stride()), y_stride: 0, logarithm };
        let launch = cx.row_kernel(SOURCE, "softmax", dtype, n)?;
        cx.push_rows(launch.read(&x).write(&y).constants(&sizes), x.rows(), n);
        return Ok(());
    }
    let sizes = Axis { slices: as_u32(outer * inner), axis: as_u32(len), inner: as_u32(inner), logarithm };
    let launch = cx.kernel(SOURCE, &format!("softmax_axis_{dtype}"))?;
    cx.push_elements(launch.read(&x).write(&y).constants(&sizes), outer * inner);
    Ok(())
}

/// Adds the dispatch of a gradient.
pub(super) fn lower_grad(axis: usize, log: bool, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(dx) = cx.output(0) else { return Ok(()) };
    let (dy, y) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let logarithm = u32::from(log);
    let dtype = dy.type_name();
    let (outer, len, inner) = split(&dy.layout.shape, axis);
    if axis + 1 == dy.layout.shape.rank() {
        let rows = (dy.row_matrix(), y.row_matrix(), dx.row_matrix());
        let call = LibraryCall::SoftmaxGrad { dy: rows.0, y: rows.1, dx: rows.2, logarithm: log };
        if cx.prefers_library() && cx.push_library(call) {
            return Ok(());
        }
        let n = dy.last();
        let (x_stride, y_stride) = (as_u32(dy.row_stride()), as_u32(y.row_stride()));
        let launch = cx.kernel(SOURCE, &format!("softmax_grad_row_{dtype}"))?;
        let launch = launch.read(&dy).read(&y).write(&dx);
        let launch = launch.constants(&Sizes { n: as_u32(n), x_stride, y_stride, logarithm });
        cx.push_rows(launch, dy.rows(), n);
        return Ok(());
    }
    let sizes = Axis { slices: as_u32(outer * inner), axis: as_u32(len), inner: as_u32(inner), logarithm };
    let launch = cx.kernel(SOURCE, &format!("softmax_grad_axis_{dtype}"))?;
    cx.push_elements(launch.read(&dy).read(&y).write(&dx).constants(&sizes), outer * inner);
    Ok(())
}
