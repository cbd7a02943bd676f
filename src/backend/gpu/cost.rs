//! Estimated cost of commands: for the size of command buffers, the split of long dispatches, and profiles.

use super::chip::{Chip, GOOD_KERNEL};
use super::command::{Command, Load, Work};
use super::driver::Driver;
use super::matmul;
use crate::backend::profile::StepCost;
use crate::graph::Step;
use crate::ops::{Cost, Op};

/// Estimated GPU milliseconds of a command buffer: far below the limit of the display watchdog, since estimates err.
pub(in crate::backend) const MILLISECONDS: f64 = 50.0;

/// Returns a step's cost in equal shares for each command, for a profile.
pub(super) fn shares(step: &Step, commands: &[Command]) -> Vec<StepCost> {
    let (count, Cost { flops, read, written }) = (commands.len().max(1) as u64, step.cost());
    let cost = Cost { flops: flops / count, read: read / count, written: written / count };
    commands.iter().map(|command| StepCost { op: command.op, cost }).collect()
}

/// Returns the estimated cost of each of a step's commands.
pub(super) fn load(chip: Chip, step: &Step, commands: &[Command]) -> Load {
    let cost = step.cost();
    let (bytes, share) = (cost.read + cost.written, commands.len().max(1) as u64);
    Load { milliseconds: milliseconds(chip, step, commands) / share as f64, bytes: bytes / share }
}

/// Returns the estimated milliseconds of a step on the GPU. Those of attention do not depend on its commands.
fn milliseconds(chip: Chip, step: &Step, commands: &[Command]) -> f64 {
    let cost = step.cost();
    1e3 * chip.seconds_at(cost.flops, cost.read + cost.written, efficiency(step, commands))
}

/// Returns the share of the chip's peak that a step's kernels are expected to reach. Command buffers are kept short by this
/// estimate, so it is the low end of what instruction counts of the kernels allow.
fn efficiency(step: &Step, commands: &[Command]) -> f64 {
    let general =
        |command: &Command| matches!(&command.work, Work::Dispatch(d) if matmul::is_general(&d.kernel));
    let dtype = |input: usize| step.inputs.get(input).map(|operand| operand.dtype);
    let product = match &step.op {
        Op::Epilogue(op) => &op.product,
        op => op,
    };
    let weight = match product {
        Op::MatMul(_) => Some(1),
        Op::Lora(op) => Some(1 + usize::from(op.separate)),
        Op::LoraGrad(_) => Some(3),
        Op::CrossEntropy(op) => op.head.then_some(1),
        _ => None,
    };
    match &step.op {
        // Tiles without matrix units, with an address computed for each loaded element.
        Op::Attention(_) => 0.04,
        Op::AttentionGrad(_) => 0.03,
        // One load from threadgroup memory for each multiplication: products that MLX's kernel does not support.
        _ if commands.iter().any(general) => 0.1,
        // Few rows of two dtypes.
        _ if weight.is_some_and(|weight| dtype(weight) != dtype(0)) => 0.1,
        // Seven integer operations to decode each weight.
        Op::QuantMatMul(_) | Op::QuantMatMulGrad(_) => 0.1,
        _ => GOOD_KERNEL,
    }
}

/// Returns the number of dispatches over which the blocks of an attention step are spread, so that none of them alone exceeds
/// a quarter of what a command buffer may take: halving command buffers cannot split a dispatch.
pub(super) fn attention_dispatches(driver: &dyn Driver, step: &Step, blocks: usize) -> usize {
    // The estimate counts visible keys, and the last queries of a causal step see twice as many as the average one.
    let causal = match &step.op {
        Op::Attention(op) => op.causal,
        Op::AttentionGrad(op) => op.causal,
        _ => false,
    };
    let skew = if causal { 2.0 } else { 1.0 };
    let limit = driver.choices().launch_milliseconds.unwrap_or(MILLISECONDS / 4.0);
    let wanted = skew * milliseconds(driver.chip(), step, &[]) / limit;
    (wanted.ceil() as usize).clamp(1, blocks.max(1))
}

#[cfg(test)]
mod tests {
    use super::super::lower::lower;
    use super::super::recording::{device, recorder};
    use crate::graph::{Graph, LazyTensor};
    use crate::ops::{Attention, MatMul, Real};
    use crate::tensor::{DType, TensorSpec};

    /// Returns the estimated milliseconds of a computation on an M1.
    fn estimate(y: impl FnOnce(&Graph) -> LazyTensor) -> f64 {
        let graph = Graph::new();
        let y = y(&graph);
        let plan = device().plan(&graph, &[y], &[]).unwrap();
        let recorder = recorder();
        assert_eq!(recorder.chip.name, "M1");
        let lowered = lower(&recorder, &plan).unwrap();
        lowered.commands.iter().map(|command| command.load.milliseconds).sum()
    }

    fn input(graph: &Graph, name: &str, dims: &[usize], dtype: DType) -> LazyTensor {
        graph.input(name, TensorSpec { shape: dims.to_vec().into(), dtype })
    }

    /// 2·512³ operations at 2.6 TFLOP/s take 0.103 ms at the peak.
    #[test]
    fn products_of_two_dtypes_are_estimated_at_what_their_kernels_reach() {
        let product = |dtype| {
            estimate(|graph| {
                let x = input(graph, "x", &[512, 512], DType::F32);
                x.linear(&input(graph, "w", &[512, 512], dtype)).unwrap()
            })
        };
        let (alike, mixed) = (product(DType::F32), product(DType::BF16));
        assert!((alike - 0.129).abs() < 0.001, "{alike}");
        assert!((mixed - 1.032).abs() < 0.001, "{mixed}");
    }

    /// MLX's kernel takes neither a factor without an addend nor an addend below a tile of rows.
    #[test]
    fn products_that_the_general_kernel_computes_are_estimated_at_what_it_reaches() {
        let product = |rows: usize, alpha: f32, addend: bool| {
            estimate(|graph| {
                let x = input(graph, "x", &[rows, 512], DType::F32);
                let w = input(graph, "w", &[512, 512], DType::F32);
                let c = input(graph, "c", &[rows, 512], DType::F32);
                let inputs = if addend { vec![&x, &w, &c] } else { vec![&x, &w] };
                let beta = Real(if addend { 1.0 } else { 0.0 });
                let op = MatMul { alpha: Real(alpha), beta, ..MatMul::new(false, true) };
                graph.record(op, &inputs).unwrap().remove(0)
            })
        };
        for (rows, alpha, addend, expected) in [
            (512, 1.0, false, 0.129),
            (512, 2.0, true, 0.129),
            (512, 2.0, false, 1.032),
            (500, 1.0, false, 0.126),
            (500, 1.0, true, 1.008),
        ] {
            let found = product(rows, alpha, addend);
            assert!((found - expected).abs() < 0.001, "{rows} {alpha} {addend}: {found}");
        }
    }

    /// 4·512·512·4·64 operations are 268 million: 0.129 ms for a good kernel, twenty times that for these.
    #[test]
    fn attention_is_estimated_at_what_its_kernel_reaches() {
        let milliseconds = estimate(|graph| {
            let x = |name| input(graph, name, &[1, 512, 4, 64], DType::F32);
            let op =
                Attention { scale: Real(0.1), causal: false, window: None, cached: false, segmented: false };
            x("q").attention(&x("k"), &x("v"), op, &[]).unwrap()
        });
        assert!((milliseconds - 2.58).abs() < 0.01, "{milliseconds}");
    }
}
