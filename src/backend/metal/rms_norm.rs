//! Root-mean-square norm and its gradient. See [`crate::ops::RmsNorm`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, Tensor, small};
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

/// Adds the launch of a norm.
pub(super) fn compile(op: &RmsNorm, site: &mut Site<'_>) -> Result<()> {
    let (y, s) = (site.output(0), if op.residual { site.output(1) } else { None });
    if y.is_none() && s.is_none() {
        return Ok(());
    }
    #[cfg(mps)]
    if site.prefers_shaders() {
        site.take(Err(crate::backend::mps::rms_norm()));
    }
    let x = site.inputs[0].clone();
    let r = if op.residual { site.inputs[1].clone() } else { x.clone() };
    let w = site.inputs[1 + usize::from(op.residual)].clone();
    let n = x.last();
    let types = format!("{}_{}", x.type_name(), w.type_name());
    let launch = site.row_kernel(SOURCE, "rms_norm", &types, n)?.read(&x).read(&r).read(&w);
    let launch = launch.write_or(y.as_ref(), &x.first()).write_or(s.as_ref(), &x.first());
    let sizes = Sizes {
        n: small(n),
        x_stride: small(x.row_stride()),
        r_stride: small(r.row_stride()),
        residual: u32::from(op.residual),
        store_y: u32::from(y.is_some()),
        store_s: u32::from(s.is_some()),
        eps: op.eps.0,
    };
    site.push_rows(launch.constants(&sizes), x.rows(), n);
    Ok(())
}

/// Bytes for the scale of every row.
pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    4 * inputs[1].layout.shape.rows()
}

/// Adds the launches of a gradient.
pub(super) fn compile_grad(op: &RmsNormGrad, site: &mut Site<'_>) -> Result<()> {
    let (dy, s, w) = (site.inputs[0].clone(), site.inputs[1].clone(), site.inputs[2].clone());
    let upstream = if op.residual { site.inputs[3].clone() } else { dy.clone() };
    site.expect(&dy, s.dtype)?;
    site.expect(&upstream, s.dtype)?;
    let (ds, dw) = (site.output(0), site.output(1));
    let (rows, n, scratch) = (s.rows(), s.last(), site.scratch.clone());
    let (dy_stride, s_stride) = (small(dy.row_stride()), small(s.row_stride()));
    let rows_launch = |site: &mut Site<'_>, ds: Option<&Tensor>| -> Result<()> {
        let kernel = format!("rms_norm_grad_{}_{}", s.type_name(), w.type_name());
        let launch = site.kernel(SOURCE, &kernel)?.read(&dy).read(&s).read(&w).read(&upstream);
        let launch = launch.write_or(ds, &s.first()).write_bytes(&scratch, 4 * rows);
        let sizes = GradSizes {
            n: small(n),
            dy_stride,
            s_stride,
            u_stride: small(upstream.row_stride()),
            upstream: u32::from(op.residual),
            store_ds: u32::from(ds.is_some()),
            eps: op.eps.0,
        };
        site.push_rows(launch.constants(&sizes), rows, n);
        Ok(())
    };
    if let Some(dw) = &dw {
        // ds may be written over dy, which this reads: the scales first, then the weight's gradient.
        rows_launch(site, None)?;
        let launch = site.kernel(SOURCE, &format!("rms_norm_weight_{}", s.type_name()))?;
        let launch = launch.read(&dy).read(&s).read_bytes(&scratch, 4 * rows).write(dw);
        let sizes = ColumnSizes { rows: small(rows), n: small(n), dy_stride, s_stride };
        site.push(launch.constants(&sizes), [n.div_ceil(32), 1, 1], [32, 8, 1]);
    }
    if ds.is_some() {
        rows_launch(site, ds.as_ref())?;
    }
    Ok(())
}
