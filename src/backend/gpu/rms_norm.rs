//! Root-mean-square norm and its gradient. See [`crate::ops::RmsNorm`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{RmsNorm, RmsNormGrad};

pub(super) const SOURCE: Source = Source::new("rms_norm", include_str!("kernels/rms_norm.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    x_stride: u32,
    r_stride: u32,
    residual: u32,
    store_y: u32,
    store_s: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GradSizes {
    n: u32,
    dy_stride: u32,
    s_stride: u32,
    u_stride: u32,
    upstream: u32,
    store_ds: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ColumnSizes {
    rows: u32,
    n: u32,
    dy_stride: u32,
    s_stride: u32,
}

/// Adds the dispatch of a norm.
pub(super) fn lower(op: &RmsNorm, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (y, s) = (cx.output(0), if op.residual { cx.output(1) } else { None });
    if y.is_none() && s.is_none() {
        return Ok(());
    }
    let x = cx.inputs[0].clone();
    let r = if op.residual { cx.inputs[1].clone() } else { x.clone() };
    let w = cx.inputs[1 + usize::from(op.residual)].clone();
    let n = x.last();
    let types = format!("{}_{}", x.type_name(), w.type_name());
    let launch = cx.row_kernel(SOURCE, "rms_norm", &types, n)?.read(&x).read(&r).read(&w);
    let launch = launch.write_or(y.as_ref(), x.first()).write_or(s.as_ref(), x.first());
    let sizes = Sizes {
        n: as_u32(n),
        x_stride: as_u32(x.row_stride()),
        r_stride: as_u32(r.row_stride()),
        residual: u32::from(op.residual),
        store_y: u32::from(y.is_some()),
        store_s: u32::from(s.is_some()),
        eps: op.eps.0,
    };
    cx.push_rows(launch.constants(&sizes), x.rows(), n);
    Ok(())
}

/// Bytes of scratch for the scale of every row.
pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    4 * inputs[1].layout.shape.rows()
}

/// Adds the dispatches of a gradient.
pub(super) fn lower_grad(op: &RmsNormGrad, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (dy, s, w) = (cx.inputs[0].clone(), cx.inputs[1].clone(), cx.inputs[2].clone());
    let upstream = if op.residual { cx.inputs[3].clone() } else { dy.clone() };
    cx.expect(&dy, s.dtype)?;
    cx.expect(&upstream, s.dtype)?;
    let (ds, dw) = (cx.output(0), cx.output(1));
    let (rows, n, scratch) = (s.rows(), s.last(), cx.scratch);
    let (dy_stride, s_stride) = (as_u32(dy.row_stride()), as_u32(s.row_stride()));
    let rows_launch = |cx: &mut OpContext<'_, '_>, ds: Option<&Tensor>| -> Result<()> {
        let kernel = format!("rms_norm_grad_{}_{}", s.type_name(), w.type_name());
        let launch = cx.kernel(SOURCE, &kernel)?.read(&dy).read(&s).read(&w).read(&upstream);
        let launch = launch.write_or(ds, s.first()).write_bytes(scratch, 4 * rows);
        let sizes = GradSizes {
            n: as_u32(n),
            dy_stride,
            s_stride,
            u_stride: as_u32(upstream.row_stride()),
            upstream: u32::from(op.residual),
            store_ds: u32::from(ds.is_some()),
            eps: op.eps.0,
        };
        cx.push_rows(launch.constants(&sizes), rows, n);
        Ok(())
    };
    if let Some(dw) = &dw {
        // ds may be written over dy, which this dispatch reads.
        rows_launch(cx, None)?;
        let launch = cx.kernel(SOURCE, &format!("rms_norm_weight_{}", s.type_name()))?;
        let launch = launch.read(&dy).read(&s).read_bytes(scratch, 4 * rows).write(dw);
        let sizes = ColumnSizes { rows: as_u32(rows), n: as_u32(n), dy_stride, s_stride };
        cx.push(launch.constants(&sizes), [n.div_ceil(32), 1, 1], [32, 8, 1]);
    }
    if ds.is_some() {
        rows_launch(cx, ds.as_ref())?;
    }
    Ok(())
}
