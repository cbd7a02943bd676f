//! Sums of gradients over micro-batches. See [`crate::ops::Accumulate`].

use super::kernel::Source;
use super::multi_tensor::{THREADS, bind, groups, table};
use super::op::{OpContext, as_u32};
use crate::Result;

pub(super) const SOURCE: Source = Source::new(
    "accumulate",
    concat!(include_str!("kernels/multi_tensor.metal"), include_str!("kernels/accumulate.metal")),
);

/// Adds the dispatches of all tensors.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (tensors, keep) = cx.inputs.split_at(cx.inputs.len() - 1);
    let (keep, tensors) =
        (keep[0].clone(), tensors.chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect());
    for group in groups(tensors) {
        let (table, blocks) = table(&group, cx)?;
        let launch = cx.kernel(SOURCE, "accumulate")?;
        let launch = bind(bind(launch, &group, 0, true), &group, 1, false).read(&table).read(&keep);
        cx.push(launch.constants(&as_u32(group.len())), [blocks, 1, 1], THREADS);
    }
    Ok(())
}
