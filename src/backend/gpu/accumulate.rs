//! Sums of gradients over micro-batches. See [`crate::ops::Accumulate`].

use super::kernel::Source;
use super::multi_tensor::{THREADS, bind, groups, table};
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::graph::Step;
use crate::ops::Op;

pub(super) const SOURCE: Source = Source::new(
    "accumulate",
    concat!(include_str!("kernels/multi_tensor.metal"), include_str!("kernels/accumulate.metal")),
);

/// Adds the dispatches of this step, and of those that follow with the same factor.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let [sum, gradient, keep] = [0, 1, 2].map(|input| cx.inputs[input].clone());
    let factor = &cx.step.inputs[2];
    let alike = |step: &&Step| matches!(step.op, Op::Accumulate(_)) && &step.inputs[2] == factor;
    let mut list = vec![[sum, gradient]];
    list.extend(
        cx.rest.iter().take_while(alike).map(|step| [0, 1].map(|input| (cx.tensor)(&step.inputs[input]))),
    );
    cx.done = list.len() - 1;
    for group in groups(list) {
        let (table, blocks) = table(&group, cx)?;
        let launch = cx.kernel(SOURCE, "accumulate")?;
        let launch = bind(bind(launch, &group, 0, true), &group, 1, false).read(&table).read(&keep);
        cx.push(launch.constants(&as_u32(group.len())), [blocks, 1, 1], THREADS);
    }
    Ok(())
}
