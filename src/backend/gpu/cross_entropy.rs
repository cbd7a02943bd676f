//! Cross-entropy, with the output head's product or without. See [`crate::ops::CrossEntropy`].
//!
//! With the head, logits exist for some rows at a time: a product, loss and gradient in place, and the product back.

use bytemuck::NoUninit;

use super::address::Address;
use super::kernel::Source;
use super::matmul::{Matrix, product};
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::CrossEntropy;
use crate::tensor::{DType, Layout, Shape};

pub(super) const SOURCE: Source = Source::new("cross_entropy", include_str!("kernels/cross_entropy.metal"));

/// Maximum bytes of logits at a time, unless [`MIN_LOGIT_ROWS`] need more.
const LOGITS: usize = 24 << 20;
const MIN_LOGIT_ROWS: usize = 24;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    stride: u32,
    store_dx: u32,
}

fn chunk_rows(m: usize, classes: usize) -> usize {
    (LOGITS / (4 * classes.max(1))).max(MIN_LOGIT_ROWS).min(m)
}

fn losses_bytes(m: usize) -> usize {
    (4 * m).next_multiple_of(256)
}

/// Bytes of scratch for losses that nothing reads, and for logits.
pub(super) fn scratch(op: &CrossEntropy, inputs: &[Operand]) -> usize {
    let m = inputs[0].layout.shape[0];
    let classes = if op.head { inputs[1].layout.shape[0] } else { 0 };
    losses_bytes(m) + 4 * chunk_rows(m, classes) * classes
}

/// Returns scratch memory as an f32 matrix.
fn matrix(address: Address, rows: usize, columns: usize) -> Tensor {
    Tensor { address, dtype: DType::F32, layout: Layout::contiguous(&Shape::from([rows, columns])) }
}

/// Returns rows of a tensor.
fn rows_of(tensor: &Tensor, start: usize, len: usize) -> Tensor {
    Tensor { layout: tensor.layout.sliced(0, start, len), ..tensor.clone() }
}

/// Adds the dispatches.
pub(super) fn lower(op: &CrossEntropy, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let head = usize::from(op.head);
    let (x, targets, weights) =
        (cx.inputs[0].clone(), cx.inputs[1 + head].clone(), cx.inputs[2 + head].clone());
    let (loss, dx) = (cx.output(0), cx.output(2));
    let (m, scratch) = (x.layout.shape[0], cx.scratch);
    let losses = cx.output(1).unwrap_or_else(|| Tensor {
        address: scratch,
        dtype: DType::F32,
        layout: Layout::contiguous(&Shape::from([m])),
    });
    let classes = if op.head { cx.inputs[1].layout.shape[0] } else { x.last() };
    cx.check_indices(&targets, classes, "target")?;
    if op.head {
        let w = cx.inputs[1].clone();
        let chunk = chunk_rows(m, classes).max(1);
        for start in (0..m).step_by(chunk) {
            let rows = chunk.min(m - start);
            let logits = matrix(scratch.plus(losses_bytes(m)), rows, classes);
            let from = rows_of(&x, start, rows);
            product(&Matrix::new(&from, false), &Matrix::new(&w, true), None, &logits, (1.0, 0.0), cx)?;
            let parts = [&targets, &weights, &losses].map(|tensor| rows_of(tensor, start, rows));
            let store = dx.as_ref().map(|_| &logits);
            rows_launch(&logits, &parts, store, cx)?;
            if let Some(dx) = &dx {
                let to = rows_of(dx, start, rows);
                product(&Matrix::new(&logits, false), &Matrix::new(&w, false), None, &to, (1.0, 0.0), cx)?;
            }
        }
    } else {
        rows_launch(&x, &[targets, weights.clone(), losses.clone()], dx.as_ref(), cx)?;
    }
    if let Some(loss) = &loss {
        let launch = cx.kernel(SOURCE, "weighted_loss")?.read(&losses).read(&weights).write(loss);
        cx.push(launch.constants(&as_u32(m)), [1, 1, 1], [256, 1, 1]);
    }
    Ok(())
}

/// Adds the dispatch for rows of logits, with their targets, weights and losses, and the destination of the gradient.
fn rows_launch(
    logits: &Tensor,
    parts: &[Tensor; 3],
    dx: Option<&Tensor>,
    cx: &mut OpContext<'_, '_>,
) -> Result<()> {
    let [targets, weights, losses] = parts;
    let launch = cx.kernel(SOURCE, &format!("cross_entropy_{}", logits.type_name()))?;
    let launch = launch.read(logits).read(targets).read(weights).write(losses).write_or(dx, logits.first());
    let (n, stride) = (as_u32(logits.last()), as_u32(logits.row_stride()));
    let sizes = Sizes { n, stride, store_dx: u32::from(dx.is_some()) };
    cx.push_rows(launch.constants(&sizes), logits.rows(), logits.last());
    Ok(())
}
