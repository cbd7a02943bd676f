//! Dispatches over many tensors at once (multi-tensor apply), for the optimizer: accumulation, global norm, and AdamW.

use bytemuck::NoUninit;

use super::address::Address;
use super::op::{DispatchBuilder, OpContext, Tensor, as_u32};
use crate::Result;

/// Number of elements that a threadgroup processes.
pub(super) const BLOCK: usize = 1024;
/// Threads of a threadgroup.
pub(super) const THREADS: [usize; 3] = [256, 1, 1];

/// Tensors that are processed together, one for each role, such as parameter and gradient.
pub(super) type Roles<const R: usize> = [Tensor; R];

/// The struct of the same name in `multi_tensor.metal`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Entry {
    first_block: u32,
    count: u32,
    at: [u32; 4],
}

/// Splits a list into groups whose tensors of each role share one buffer.
pub(super) fn groups<const R: usize>(list: Vec<Roles<R>>) -> Vec<Vec<Roles<R>>> {
    let mut groups: Vec<([Address; R], Vec<Roles<R>>)> = Vec::new();
    for roles in list.into_iter().filter(|roles| roles[0].elements() > 0) {
        let buffers = roles.each_ref().map(|tensor| tensor.address.start());
        match groups.iter_mut().find(|(of, _)| *of == buffers) {
            Some((_, group)) => group.push(roles),
            None => groups.push((buffers, vec![roles])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Returns the table of a group in device memory, and the number of blocks of its tensors.
pub(super) fn table<const R: usize>(
    group: &[Roles<R>],
    cx: &mut OpContext<'_, '_>,
) -> Result<(Tensor, usize)> {
    let mut blocks = 0;
    let mut entries = Vec::with_capacity(group.len());
    for roles in group {
        let count = roles[0].elements();
        let mut at = [0; 4];
        for (at, tensor) in at.iter_mut().zip(roles) {
            *at = as_u32(tensor.first().offset() / 4);
        }
        entries.push(Entry { first_block: as_u32(blocks), count: as_u32(count), at });
        blocks += count.div_ceil(BLOCK);
    }
    Ok((cx.allocate(bytemuck::cast_slice(&entries), "tables of tensors")?, blocks))
}

/// Binds the buffer of a role's tensors from its first byte on.
pub(super) fn bind<const R: usize>(
    launch: DispatchBuilder,
    group: &[Roles<R>],
    role: usize,
    write: bool,
) -> DispatchBuilder {
    let tensors = group.iter().map(|roles| &roles[role]);
    let launch = tensors.fold(launch, |launch, tensor| launch.accesses(tensor, write));
    launch.unused(group[0][role].address.start())
}
