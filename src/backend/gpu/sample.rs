//! Samples one element of each row. See [`crate::ops::Sample`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::ops::Sample;

pub(super) const SOURCE: Source = Source::new(
    "sample",
    concat!(include_str!("kernels/philox.metal"), include_str!("kernels/sample.metal")),
);

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    n: u32,
    top_k: u32,
    stream: u32,
}

/// Adds the dispatch.
pub(super) fn lower(op: &Sample, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(drawn) = cx.output(0) else { return Ok(()) };
    let [logits, settings, seed] = [0, 1, 2].map(|index| cx.inputs[index].clone());
    let n = logits.last();
    // A larger k selects all elements.
    let sizes = Sizes { n: as_u32(n), top_k: as_u32(op.top_k.min(n)), stream: op.stream };
    let launch = cx.kernel(SOURCE, &format!("sample_{}", logits.type_name()))?;
    let launch = launch.read(&logits).read(&settings).read(&seed).write(&drawn).constants(&sizes);
    cx.push_rows(launch, logits.rows(), n);
    Ok(())
}
