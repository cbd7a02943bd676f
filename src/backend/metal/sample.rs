//! Drawing one element of each row. See [`crate::ops::Sample`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
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

/// Adds the launch.
pub(super) fn compile(op: &Sample, site: &mut Site<'_>) -> Result<()> {
    let Some(drawn) = site.output(0) else { return Ok(()) };
    let [logits, settings, seed] = [0, 1, 2].map(|index| site.inputs[index].clone());
    let n = logits.last();
    // More than all is all.
    let sizes = Sizes { n: small(n), top_k: small(op.top_k.min(n)), stream: op.stream };
    let launch = site.kernel(SOURCE, &format!("sample_{}", logits.type_name()))?;
    let launch = launch.read(&logits).read(&settings).read(&seed).write(&drawn).constants(&sizes);
    site.push_rows(launch, logits.rows(), n);
    Ok(())
}
