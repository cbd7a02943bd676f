//! Softmax and log-softmax along an axis, and their gradients. See [`crate::ops::Softmax`].

use bytemuck::NoUninit;

use super::pipeline::Source;
#[cfg(mps)]
use super::site::Tensor;
use super::site::{Site, small};
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

/// Adds the launch of a softmax, or of a log-softmax if `log`.
pub(super) fn compile(axis: usize, log: bool, site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let x = site.inputs[0].clone();
    let logarithm = u32::from(log);
    let dtype = x.type_name();
    let (outer, len, inner) = split(&x.layout.shape, axis);
    if axis + 1 == x.layout.shape.rank() {
        #[cfg(mps)]
        if site.prefers_shaders() {
            let item = crate::backend::mps::softmax(site.step.op.name(), x.row_matrix(), y.row_matrix(), log);
            if site.take(item) {
                return Ok(());
            }
        }
        let n = x.last();
        let sizes = Sizes { n: small(n), x_stride: small(x.row_stride()), y_stride: 0, logarithm };
        let launch = site.row_kernel(SOURCE, "softmax", dtype, n)?;
        site.push_rows(launch.read(&x).write(&y).constants(&sizes), x.rows(), n);
        return Ok(());
    }
    let sizes = Axis { slices: small(outer * inner), axis: small(len), inner: small(inner), logarithm };
    let launch = site.kernel(SOURCE, &format!("softmax_axis_{dtype}"))?;
    site.push_elements(launch.read(&x).write(&y).constants(&sizes), outer * inner);
    Ok(())
}

/// Adds the launch of a gradient.
pub(super) fn compile_grad(axis: usize, log: bool, site: &mut Site<'_>) -> Result<()> {
    let Some(dx) = site.output(0) else { return Ok(()) };
    let (dy, y) = (site.inputs[0].clone(), site.inputs[1].clone());
    let logarithm = u32::from(log);
    let dtype = dy.type_name();
    let (outer, len, inner) = split(&dy.layout.shape, axis);
    if axis + 1 == dy.layout.shape.rank() {
        #[cfg(mps)]
        if site.prefers_shaders() {
            let (op, rows) = (site.step.op.name(), [&dy, &y, &dx].map(Tensor::row_matrix));
            let [dy, y, dx] = rows;
            if site.take(crate::backend::mps::softmax_grad(op, dy, y, dx, log)) {
                return Ok(());
            }
        }
        let n = dy.last();
        let (x_stride, y_stride) = (small(dy.row_stride()), small(y.row_stride()));
        let launch = site.kernel(SOURCE, &format!("softmax_grad_row_{dtype}"))?;
        let launch = launch.read(&dy).read(&y).write(&dx);
        let launch = launch.constants(&Sizes { n: small(n), x_stride, y_stride, logarithm });
        site.push_rows(launch, dy.rows(), n);
        return Ok(());
    }
    let sizes = Axis { slices: small(outer * inner), axis: small(len), inner: small(inner), logarithm };
    let launch = site.kernel(SOURCE, &format!("softmax_grad_axis_{dtype}"))?;
    site.push_elements(launch.read(&dy).read(&y).write(&dx).constants(&sizes), outer * inner);
    Ok(())
}
