//! The largest elements of each row. See [`crate::ops::TopK`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::library::LibraryCall;
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::ops::TopK;

pub(super) const SOURCE: Source = Source::new("top_k", include_str!("kernels/top_k.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    k: u32,
    store_values: u32,
    store_indices: u32,
}

/// Adds the dispatch.
pub(super) fn lower(op: &TopK, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (values, indices) = (cx.output(0), cx.output(1));
    if cx.prefers_library()
        && let (Some(values), Some(indices)) = (&values, &indices)
    {
        let [x, values, indices] = [&cx.inputs[0], values, indices].map(Tensor::row_matrix);
        if cx.push_library(LibraryCall::TopK { x, values, indices }) {
            return Ok(());
        }
    }
    greatest(op.k, values, indices, cx)
}

/// Adds the dispatch of the index of the first largest element.
pub(super) fn lower_arg_max(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let indices = cx.output(0);
    greatest(1, None, indices, cx)
}

fn greatest(
    k: usize,
    values: Option<Tensor>,
    indices: Option<Tensor>,
    cx: &mut OpContext<'_, '_>,
) -> Result<()> {
    let x = cx.inputs[0].clone();
    let n = x.last();
    let launch = cx.kernel(SOURCE, &format!("top_k_{}", x.type_name()))?.read(&x);
    let launch = launch.write_or(values.as_ref(), x.first()).write_or(indices.as_ref(), x.first());
    let store = |tensor: Option<Tensor>| u32::from(tensor.is_some());
    let sizes =
        Sizes { n: as_u32(n), k: as_u32(k), store_values: store(values), store_indices: store(indices) };
    cx.push_rows(launch.constants(&sizes), x.rows(), n);
    Ok(())
}
