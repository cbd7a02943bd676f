//! The norm of all gradients. See [`crate::ops::GlobalNorm`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::multi_tensor::{BLOCK, THREADS, bind, groups, table};
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::graph::Operand;

pub(super) const SOURCE: Source = Source::new(
    "global_norm",
    concat!(include_str!("kernels/multi_tensor.metal"), include_str!("kernels/global_norm.metal")),
);

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SquaresSizes {
    tensors: u32,
    first_partial: u32,
}

/// Bytes of scratch for the sum of squares of every block.
pub(super) fn scratch(inputs: &[Operand]) -> usize {
    4 * inputs.iter().map(|operand| operand.layout.shape.elements().div_ceil(BLOCK)).sum::<usize>()
}

/// Adds the dispatches of a norm.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let list = cx.inputs.iter().map(|tensor| [tensor.clone()]).collect();
    let scratch = cx.scratch;
    let mut partials = 0;
    for group in groups(list) {
        let (table, blocks) = table(&group, cx)?;
        let launch = bind(cx.kernel(SOURCE, "squares")?, &group, 0, false).read(&table);
        let launch = launch.write_part(scratch, 4 * partials, 4 * blocks);
        let sizes = SquaresSizes { tensors: as_u32(group.len()), first_partial: as_u32(partials) };
        cx.push(launch.constants(&sizes), [blocks, 1, 1], THREADS);
        partials += blocks;
    }
    let launch = cx.kernel(SOURCE, "norm")?.read_bytes(scratch, 4 * partials).write(&y);
    cx.push(launch.constants(&as_u32(partials)), [1, 1, 1], THREADS);
    Ok(())
}
