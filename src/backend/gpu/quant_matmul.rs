//! Products with weights in ggml blocks. See [`crate::ops::QuantMatMul`].
//!
//! For few rows, a kernel decodes blocks in registers. For many rows, and for the gradient, W is decoded once into scratch
//! memory in x's type, and multiplied by the dense product of `matmul.rs`.

use bytemuck::NoUninit;

use super::kernel::Source;
use super::matmul::{Matrix, product};
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::QuantMatMul;
use crate::tensor::{DType, Layout, Shape};

pub(super) const SOURCE: Source = Source::new("quant_matmul", include_str!("kernels/quant_matmul.metal"));

/// Columns of a threadgroup: 4 SIMD groups of 4.
const COLUMNS: usize = 16;
/// Maximum number of rows for which decoding W again per four rows is faster than storing it decoded.
const MAX_DECODING_ROWS: usize = 8;
/// Number of elements that a thread decodes.
const RUN: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    y_stride: u32,
    w_stride: u32,
}

fn sizes(op: &QuantMatMul, x: &Tensor) -> Sizes {
    Sizes {
        m: as_u32(x.rows()),
        n: as_u32(op.n),
        k: as_u32(op.k),
        x_stride: as_u32(x.row_stride()),
        y_stride: as_u32(op.n),
        w_stride: as_u32(op.row_bytes()),
    }
}

/// Bytes of scratch for the decoded W, if it is stored.
pub(super) fn scratch(op: &QuantMatMul, gradient: bool, inputs: &[Operand]) -> usize {
    let decoded = gradient || inputs[0].layout.shape.rows() > MAX_DECODING_ROWS;
    if decoded { op.n * op.k * inputs[0].dtype.size() } else { 0 }
}

/// Returns the rows of a tensor as a matrix.
fn rows(tensor: &Tensor) -> Tensor {
    let layout = Layout {
        shape: Shape::from([tensor.rows(), tensor.last()]),
        strides: vec![tensor.row_stride(), 1],
        offset: tensor.layout.offset,
    };
    Tensor { layout, ..tensor.clone() }
}

/// Adds the dispatch that decodes W, and returns the decoded matrix.
fn decode(op: &QuantMatMul, dtype: DType, cx: &mut OpContext<'_, '_>) -> Result<Tensor> {
    let (x, w) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let layout = Layout::contiguous(&Shape::from([op.n, op.k]));
    let elements = Tensor { address: cx.scratch, dtype, layout };
    let kernel = format!("dequantize_{}_{}", op.blocks, elements.type_name());
    let launch = cx.kernel(SOURCE, &kernel)?.read(&w).write(&elements).constants(&sizes(op, &x));
    cx.push_elements(launch, op.n * op.k / RUN);
    Ok(elements)
}

/// Adds the dispatches of the product.
pub(super) fn lower(op: &QuantMatMul, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let (x, w) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let m = x.rows();
    if m > MAX_DECODING_ROWS {
        let elements = decode(op, x.dtype, cx)?;
        let (x, elements) = (Matrix::new(&rows(&x), false), Matrix::new(&elements, true));
        return product(&x, &elements, None, &rows(&y), (1.0, 0.0), cx);
    }
    let tile = if m == 1 { 1 } else { 4 };
    let launch = cx.kernel(SOURCE, &format!("gemv_{}_{}_{tile}", op.blocks, x.type_name()))?;
    let launch = launch.read(&x).read(&w).write(&y).constants(&sizes(op, &x));
    cx.push(launch, [op.n.div_ceil(COLUMNS), m.div_ceil(tile), 1], [128, 1, 1]);
    Ok(())
}

/// Adds the dispatches of the gradient.
pub(super) fn lower_grad(op: &QuantMatMul, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(dx) = cx.output(0) else { return Ok(()) };
    let dy = cx.inputs[0].clone();
    let elements = decode(op, dy.dtype, cx)?;
    let (dy, elements) = (Matrix::new(&rows(&dy), false), Matrix::new(&elements, false));
    product(&dy, &elements, None, &rows(&dx), (1.0, 0.0), cx)
}
