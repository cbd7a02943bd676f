//! The update of all parameters by AdamW. See [`crate::ops::AdamW`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::multi_tensor::{THREADS, bind, groups, table};
use super::op::{OpContext, as_u32};
use crate::Result;
use crate::ops::AdamW;

pub(super) const SOURCE: Source = Source::new(
    "adamw",
    concat!(include_str!("kernels/multi_tensor.metal"), include_str!("kernels/adamw.metal")),
);

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

/// Adds the dispatches of an update.
pub(super) fn lower(op: &AdamW, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let tensors = op.tensors(cx.inputs.len());
    let inputs = cx.inputs.clone();
    let roles = |tensor: usize| [0, 1, 2, 3].map(|role| inputs[4 * tensor + role].clone());
    let (hyper, norm) = (&inputs[4 * tensors], &inputs[4 * tensors + 1]);
    for group in groups((0..tensors).map(roles).collect()) {
        let (table, blocks) = table(&group, cx)?;
        let mut launch = cx.kernel(SOURCE, "adamw")?;
        for (role, write) in [true, false, true, true].into_iter().enumerate() {
            launch = bind(launch, &group, role, write);
        }
        let logarithm = |beta: f32| f64::from(beta).ln() as f32;
        let sizes = AdamWSizes {
            tensors: as_u32(group.len()),
            beta1: op.beta1.0,
            beta2: op.beta2.0,
            log_beta1: logarithm(op.beta1.0),
            log_beta2: logarithm(op.beta2.0),
            eps: op.eps.0,
            weight_decay: op.weight_decay.0,
            max_norm: op.max_norm.0,
        };
        let launch = launch.read(&table).read(hyper).read(norm).constants(&sizes);
        cx.push(launch, [blocks, 1, 1], THREADS);
    }
    Ok(())
}
