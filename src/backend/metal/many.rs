//! Work on all tensors of an optimizer in few launches: sums of gradients, their norm, and the update.
//! See [`crate::ops::AdamW`], [`crate::ops::GlobalNorm`] and [`crate::ops::Accumulate`].

use bytemuck::NoUninit;

use super::buffer::MetalBuffer;
use super::launch::Address;
use super::pipeline::Source;
use super::site::{Builder, Site, Tensor, small};
use crate::Result;
use crate::graph::{Operand, Step};
use crate::ops::{AdamW, Op};
use crate::tensor::Buffer;

pub(super) const SOURCE: Source = Source::new("many", include_str!("kernels/many.metal"));

/// Elements of a threadgroup, and its threads.
const BLOCK: usize = 1024;
const THREADS: [usize; 3] = [256, 1, 1];

/// Tensors that are worked on together, one for each role: parameter, gradient, mean, mean square.
type Roles<const R: usize> = [Tensor; R];

/// The struct of the same name in `many.metal`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Entry {
    first_block: u32,
    count: u32,
    at: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SquaresSizes {
    tensors: u32,
    first_partial: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AdamWSizes {
    tensors: u32,
    beta1: f32,
    beta2: f32,
    log_beta1: f32,
    log_beta2: f32,
    eps: f32,
    weight_decay: f32,
    max_norm: f32,
}

/// Splits a list into parts whose tensors of each role lie in one buffer.
fn parts<const R: usize>(list: Vec<Roles<R>>) -> Vec<Vec<Roles<R>>> {
    let mut parts: Vec<([usize; R], Vec<Roles<R>>)> = Vec::new();
    for roles in list.into_iter().filter(|roles| roles[0].elements() > 0) {
        let buffers = roles.each_ref().map(|tensor| tensor.address.identity());
        match parts.iter_mut().find(|(of, _)| *of == buffers) {
            Some((_, part)) => part.push(roles),
            None => parts.push((buffers, vec![roles])),
        }
    }
    parts.into_iter().map(|(_, part)| part).collect()
}

/// The table of a part, on the device, and how many blocks its tensors have.
fn table<const R: usize>(part: &[Roles<R>], site: &Site<'_>) -> Result<(Tensor, usize)> {
    let mut blocks = 0;
    let mut entries = Vec::with_capacity(part.len());
    for roles in part {
        let count = roles[0].elements();
        let mut at = [0; 4];
        for (at, tensor) in at.iter_mut().zip(roles) {
            *at = small(tensor.first().byte() / 4);
        }
        entries.push(Entry { first_block: small(blocks), count: small(count), at });
        blocks += count.div_ceil(BLOCK);
    }
    let bytes: &[u8] = bytemuck::cast_slice(&entries);
    let buffer = MetalBuffer::new(site.gpu, bytes.len(), "tables of tensors", site.arena)?;
    buffer.write(0, bytes)?;
    let (raw, start) = buffer.location();
    Ok((Tensor::bytes(Address::Fixed(raw.clone(), start), bytes.len()), blocks))
}

/// Binds the buffer that a role's tensors lie in, from its beginning.
fn bind<const R: usize>(launch: Builder, part: &[Roles<R>], role: usize, write: bool) -> Builder {
    let tensors = part.iter().map(|roles| &roles[role]);
    let launch = tensors.fold(launch, |launch, tensor| launch.touches(tensor, write));
    launch.unused(&part[0][role].address.start())
}

/// Adds the launches for sums of gradients: of this step, and of those that follow with the same factor.
pub(super) fn accumulate(site: &mut Site<'_>) -> Result<()> {
    let [sum, gradient, keep] = [0, 1, 2].map(|input| site.inputs[input].clone());
    let factor = &site.step.inputs[2];
    let alike = |step: &&Step| matches!(step.op, Op::Accumulate(_)) && &step.inputs[2] == factor;
    let mut list = vec![[sum, gradient]];
    list.extend(
        site.rest.iter().take_while(alike).map(|step| [0, 1].map(|input| (site.tensor)(&step.inputs[input]))),
    );
    site.done = list.len() - 1;
    for part in parts(list) {
        let (table, blocks) = table(&part, site)?;
        let launch = site.kernel(SOURCE, "accumulate")?;
        let launch = bind(bind(launch, &part, 0, true), &part, 1, false).read(&table).read(&keep);
        site.push(launch.constants(&small(part.len())), [blocks, 1, 1], THREADS);
    }
    Ok(())
}

/// Bytes for the sum of squares of every block.
pub(super) fn norm_scratch(inputs: &[Operand]) -> usize {
    4 * inputs.iter().map(|operand| operand.layout.shape.elements().div_ceil(BLOCK)).sum::<usize>()
}

/// Adds the launches of a norm.
pub(super) fn global_norm(site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let list = site.inputs.iter().map(|tensor| [tensor.clone()]).collect();
    let scratch = site.scratch.clone();
    let mut partials = 0;
    for part in parts(list) {
        let (table, blocks) = table(&part, site)?;
        let launch = bind(site.kernel(SOURCE, "squares")?, &part, 0, false).read(&table);
        let launch = launch.write_part(&scratch, 4 * partials, 4 * blocks);
        let sizes = SquaresSizes { tensors: small(part.len()), first_partial: small(partials) };
        site.push(launch.constants(&sizes), [blocks, 1, 1], THREADS);
        partials += blocks;
    }
    let launch = site.kernel(SOURCE, "norm")?.read_bytes(&scratch, 4 * partials).write(&y);
    site.push(launch.constants(&small(partials)), [1, 1, 1], THREADS);
    Ok(())
}

/// Adds the launches of an update.
pub(super) fn adamw(op: &AdamW, site: &mut Site<'_>) -> Result<()> {
    let tensors = op.tensors(site.inputs.len());
    let inputs = site.inputs.clone();
    let role = |tensor: usize| [0, 1, 2, 3].map(|role| inputs[4 * tensor + role].clone());
    let (hyper, norm) = (&inputs[4 * tensors], &inputs[4 * tensors + 1]);
    for part in parts((0..tensors).map(role).collect()) {
        let (table, blocks) = table(&part, site)?;
        let mut launch = site.kernel(SOURCE, "adamw")?;
        for (role, write) in [true, false, true, true].into_iter().enumerate() {
            launch = bind(launch, &part, role, write);
        }
        let logarithm = |beta: f32| f64::from(beta).ln() as f32;
        let sizes = AdamWSizes {
            tensors: small(part.len()),
            beta1: op.beta1.0,
            beta2: op.beta2.0,
            log_beta1: logarithm(op.beta1.0),
            log_beta2: logarithm(op.beta2.0),
            eps: op.eps.0,
            weight_decay: op.weight_decay.0,
            max_norm: op.max_norm.0,
        };
        let launch = launch.read(&table).read(hyper).read(norm).constants(&sizes);
        site.push(launch, [blocks, 1, 1], THREADS);
    }
    Ok(())
}
