//! The greatest elements of each row. See [`crate::ops::TopK`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, Tensor, small};
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

/// Adds the launch.
pub(super) fn compile(op: &TopK, site: &mut Site<'_>) -> Result<()> {
    let (values, indices) = (site.output(0), site.output(1));
    #[cfg(mps)]
    if site.prefers_shaders()
        && let (Some(values), Some(indices)) = (&values, &indices)
    {
        let [x, values, indices] = [&site.inputs[0], values, indices].map(Tensor::row_matrix);
        let item = crate::backend::mps::top_k(site.step.op.name(), x, values, indices);
        if site.take(item) {
            return Ok(());
        }
    }
    greatest(op.k, values, indices, site)
}

/// Arg-max is the index of the first of the greatest.
pub(super) fn compile_arg_max(site: &mut Site<'_>) -> Result<()> {
    let indices = site.output(0);
    greatest(1, None, indices, site)
}

fn greatest(k: usize, values: Option<Tensor>, indices: Option<Tensor>, site: &mut Site<'_>) -> Result<()> {
    let x = site.inputs[0].clone();
    let n = x.last();
    let launch = site.kernel(SOURCE, &format!("top_k_{}", x.type_name()))?.read(&x);
    let launch = launch.write_or(values.as_ref(), &x.first()).write_or(indices.as_ref(), &x.first());
    let store = |tensor: Option<Tensor>| u32::from(tensor.is_some());
    let sizes =
        Sizes { n: small(n), k: small(k), store_values: store(values), store_indices: store(indices) };
    site.push_rows(launch.constants(&sizes), x.rows(), n);
    Ok(())
}
