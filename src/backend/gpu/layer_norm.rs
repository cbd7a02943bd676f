//! Layer norm and its gradient. See [`crate::ops::LayerNorm`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{LayerNorm, LayerNormGrad};

pub(super) const SOURCE: Source = Source::new("layer_norm", include_str!("kernels/layer_norm.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    x_stride: u32,
    bias: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GradSizes {
    n: u32,
    dy_stride: u32,
    x_stride: u32,
    store_dx: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ColumnSizes {
    rows: u32,
    n: u32,
    dy_stride: u32,
    x_stride: u32,
    store_dw: u32,
    store_db: u32,
}

/// Adds the dispatch of a norm.
pub(super) fn lower(op: &LayerNorm, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let (x, w) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let b = if op.bias { cx.inputs[2].clone() } else { w.clone() };
    cx.expect(&b, w.dtype)?;
    let n = x.last();
    let types = format!("{}_{}", x.type_name(), w.type_name());
    let launch = cx.row_kernel(SOURCE, "layer_norm", &types, n)?.read(&x).read(&w).read(&b).write(&y);
    let x_stride = as_u32(x.row_stride());
    let sizes = Sizes { n: as_u32(n), x_stride, bias: u32::from(op.bias), eps: op.eps.0 };
    cx.push_rows(launch.constants(&sizes), x.rows(), n);
    Ok(())
}

/// Bytes of scratch for mean and scale of every row.
pub(super) fn grad_scratch(inputs: &[Operand]) -> usize {
    8 * inputs[1].layout.shape.rows()
}

/// Adds the dispatches of a gradient.
pub(super) fn lower_grad(op: &LayerNormGrad, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (dy, x, w) = (cx.inputs[0].clone(), cx.inputs[1].clone(), cx.inputs[2].clone());
    cx.expect(&dy, x.dtype)?;
    let (dx, dw, db) = (cx.output(0), cx.output(1), cx.output(2));
    let (rows, n, scratch) = (x.rows(), x.last(), cx.scratch);
    let (dy_stride, x_stride) = (as_u32(dy.row_stride()), as_u32(x.row_stride()));
    let launch = cx.kernel(SOURCE, &format!("layer_norm_grad_{}_{}", x.type_name(), w.type_name()))?;
    let launch = launch.read(&dy).read(&x).read(&w);
    let launch = launch.write_or(dx.as_ref(), x.first()).write_bytes(scratch, 8 * rows);
    let store_dx = u32::from(dx.is_some());
    let sizes = GradSizes { n: as_u32(n), dy_stride, x_stride, store_dx, eps: op.eps.0 };
    cx.push_rows(launch.constants(&sizes), rows, n);
    if dw.is_some() || db.is_some() {
        let launch = cx.kernel(SOURCE, &format!("layer_norm_weight_{}", x.type_name()))?;
        let launch = launch.read(&dy).read(&x).read_bytes(scratch, 8 * rows);
        let store = |tensor: &Option<Tensor>| u32::from(tensor.is_some());
        let (store_dw, store_db) = (store(&dw), store(&db));
        let launch = launch.write_or(dw.as_ref(), scratch).write_or(db.as_ref(), scratch);
        let sizes = ColumnSizes { rows: as_u32(rows), n: as_u32(n), dy_stride, x_stride, store_dw, store_db };
        cx.push(launch.constants(&sizes), [n.div_ceil(32), 1, 1], [32, 8, 1]);
    }
    Ok(())
}
