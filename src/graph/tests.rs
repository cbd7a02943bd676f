//! Tests of recording, gradients, rewrites and plans, on the reference device.

use super::*;
use crate::backend::Device;
use crate::ops::Attention;
use crate::tensor::DType;
use crate::{Error, Result};

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn parameter(device: &Device, name: &str, shape: &[usize], trainable: bool, seed: u64) -> Parameter {
    let tensor = HostTensor::from_slice(&values(shape.iter().product(), seed), shape).unwrap();
    device.parameter(name, &tensor, trainable).unwrap()
}

struct Block {
    norm: Parameter,
    qkv: Parameter,
    gate_up: Parameter,
    down: Parameter,
    a: Parameter,
    b: Parameter,
}

const HIDDEN: usize = 8;
const INNER: usize = 12;

fn block(device: &Device, index: u64) -> Block {
    let named = |name: &str, shape: &[usize], trainable, seed| {
        parameter(device, &format!("{index}.{name}"), shape, trainable, index * 10 + seed)
    };
    Block {
        norm: named("norm", &[HIDDEN], false, 1),
        qkv: named("qkv", &[2 * HIDDEN, HIDDEN], false, 2),
        gate_up: named("gate_up", &[2 * INNER, HIDDEN], false, 3),
        down: named("down", &[HIDDEN, INNER], false, 4),
        a: named("a", &[2, HIDDEN], true, 5),
        b: named("b", &[HIDDEN, 2], true, 6),
    }
}

/// A small transformer block recorded without any fused operation: 2 query heads, 1 key head of size 4.
fn record_block(graph: &Graph, x: &LazyTensor, block: &Block) -> Result<LazyTensor> {
    let tokens = x.shape()[0];
    let w = graph.parameter(&block.qkv);
    let h = x.rms_norm(&graph.parameter(&block.norm), 1e-5)?;
    let low_rank =
        h.linear(&graph.parameter(&block.a))?.linear(&graph.parameter(&block.b))?.affine(2.0, 0.0)?;
    let q = h.linear(&w.slice(0, 0, HIDDEN)?)?.add(&low_rank)?;
    let k = h.linear(&w.slice(0, HIDDEN, HIDDEN / 2)?)?;
    let v = h.linear(&w.slice(0, HIDDEN + HIDDEN / 2, HIDDEN / 2)?)?;
    let heads = |x: &LazyTensor, heads: usize| x.reshape([1, tokens, heads, HIDDEN / 2]);
    let op = Attention { scale: 0.5.into(), causal: true, window: None, cached: false, segmented: false };
    let out = heads(&q, 2)?.attention(&heads(&k, 1)?, &heads(&v, 1)?, op, &[])?.reshape([tokens, HIDDEN])?;
    let x = x.add(&out)?;
    let h = x.rms_norm(&graph.parameter(&block.norm), 1e-5)?;
    let w = graph.parameter(&block.gate_up);
    let gate = h.linear(&w.slice(0, 0, INNER)?)?;
    let up = h.linear(&w.slice(0, INNER, INNER)?)?;
    x.add(&gate.silu()?.mul(&up)?.linear(&graph.parameter(&block.down))?)
}

fn stack(device: &Device, blocks: &[Block], tokens: usize, checkpoint: bool) -> Result<(Graph, LazyTensor)> {
    let graph = Graph::new();
    let mut x = graph.constant(HostTensor::from_slice(&values(tokens * HIDDEN, 99), [tokens, HIDDEN])?);
    for block in blocks {
        x = if checkpoint {
            graph.checkpointed(|| record_block(&graph, &x, block))?
        } else {
            record_block(&graph, &x, block)?
        };
    }
    let weight = parameter(device, "last", &[tokens, HIDDEN], false, 7);
    let loss = x.mul(&graph.parameter(&weight))?.sum_all()?;
    Ok((graph, loss))
}

fn wrt(graph: &Graph, blocks: &[Block]) -> Vec<LazyTensor> {
    blocks.iter().flat_map(|block| [graph.parameter(&block.a), graph.parameter(&block.b)]).collect()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "element {index}: {a} instead of {b}");
    }
}

#[test]
fn rewrites_join_and_compute_the_same() {
    let device = Device::reference();
    let blocks = [block(&device, 1), block(&device, 2)];
    let (graph, loss) = stack(&device, &blocks, 5, false).unwrap();
    let (fused, outputs) = graph.fused(std::slice::from_ref(&loss)).unwrap();
    let plan = device.plan(&fused, &outputs, &[]).unwrap();
    let count = |name: &str| plan.steps.iter().filter(|step| step.op.name() == name).count();
    // For each block: q, k and v with the adapter are one operation, gate and up one product, both residual
    // additions but the last are part of a norm.
    assert_eq!((count("lora"), count("matmul"), count("silu_mul"), count("silu")), (2, 4, 2, 0));
    assert_eq!((count("rms_norm"), count("add")), (4, 1));
    let (a, b) = (loss.eval(&device).unwrap().to_f64(), outputs[0].eval(&device).unwrap().to_f64());
    // Only the places where f32 rounds differ.
    assert_close(&b, &a, 1e-5);
}

#[test]
fn gradients_agree_with_central_differences_through_rewrites_and_checkpoints() {
    let device = Device::reference();
    for (fuse, checkpoint) in [(false, false), (true, false), (false, true), (true, true)] {
        let blocks = [block(&device, 1), block(&device, 2)];
        let (mut graph, mut loss) = stack(&device, &blocks, 5, checkpoint).unwrap();
        if fuse {
            let (fused, outputs) = graph.fused(&[loss]).unwrap();
            (graph, loss) = (fused, outputs[0].clone());
        }
        let gradients = graph.gradients(&loss, &wrt(&graph, &blocks)).unwrap();
        let found = device.eval(&gradients).unwrap();
        let parameters = blocks.iter().flat_map(|block| [&block.a, &block.b]);
        for (parameter, gradient) in parameters.zip(&found) {
            let at = parameter.read().unwrap();
            for index in [0, 3, 11] {
                let shifted = |delta: f32| {
                    let mut moved = at.clone();
                    moved.as_mut_slice::<f32>().unwrap()[index] += delta;
                    parameter.write(&moved).unwrap();
                    let value = loss.eval(&device).unwrap().to_f64()[0];
                    parameter.write(&at).unwrap();
                    value
                };
                // f32 storage between operations rounds at 6e-8 of values near 10, which 2h divides: about 3e-4;
                // the third derivative adds about h².
                let h = 0.01;
                let numeric = (shifted(h) - shifted(-h)) / (2.0 * f64::from(h));
                let analytic = gradient.to_f64()[index];
                assert!(
                    (numeric - analytic).abs() < 2e-3 * (1.0 + analytic.abs()),
                    "{} [{index}], fused {fuse}, checkpointed {checkpoint}: {analytic} instead of {numeric}",
                    parameter.name()
                );
            }
        }
    }
}

#[test]
fn checkpointed_blocks_peak_at_one_block_and_the_inputs() {
    let device = Device::reference();
    let tokens = 16;
    let arena = |blocks: usize, checkpoint| {
        let blocks: Vec<Block> = (0..blocks).map(|i| block(&device, i as u64)).collect();
        let (graph, loss) = stack(&device, &blocks, tokens, checkpoint).unwrap();
        let gradients = graph.gradients(&loss, &wrt(&graph, &blocks)).unwrap();
        let plan = device.plan(&graph, &gradients, &[]).unwrap();
        (plan.arena_bytes, plan.live_bytes)
    };
    let input = tokens * HIDDEN * 4;
    // The results themselves: two gradients a block, each in a multiple of 64 bytes.
    let results = 2 * (2 * HIDDEN * 4);
    // One block alone needs no gradient at its own input; among others it does.
    let one = arena(1, true).0 + input;
    for count in [2, 4, 8, 16] {
        let (bytes, live) = arena(count, true);
        let bound = one + (count - 1) * (input + results);
        assert!(live <= bound, "{count} blocks: {live} bytes live, one block and the inputs are {bound}");
        // The packing may waste a little on top of what lives.
        assert!(bytes <= bound + bound / 10, "{count} blocks: {bytes} bytes instead of {bound}");
        let (without, _) = arena(count, false);
        assert!(without > bytes, "without checkpoints: {without} bytes, with: {bytes}");
    }
}

#[test]
fn a_lost_gradient_is_refused_by_name() {
    let device = Device::reference();
    let graph = Graph::new();
    let table = parameter(&device, "table", &[4, 3], true, 1);
    let x = graph.parameter(&table);
    let ids = x.arg_max().unwrap();
    let picked = x.embedding(&ids, DType::F32).unwrap();
    let loss = picked.sum_all().unwrap();
    let error = graph.gradients(&loss, &[x]).unwrap_err();
    match &error {
        Error::NoGradient { op, parameter, .. } => {
            assert_eq!((*op, parameter.as_str()), ("arg_max", "table"))
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("arg_max") && error.to_string().contains("'table'"));
}

#[test]
fn a_parameter_that_the_loss_ignores_is_refused() {
    let device = Device::reference();
    let graph = Graph::new();
    let used = graph.parameter(&parameter(&device, "used", &[3], true, 1));
    let unused = graph.parameter(&parameter(&device, "unused", &[3], true, 2));
    let loss = used.sum_all().unwrap();
    let error = graph.gradients(&loss, &[used, unused]).unwrap_err().to_string();
    assert!(error.starts_with("unused: the loss does not depend on it"), "{error}");
}

#[test]
fn the_same_structure_is_compiled_once() {
    let device = Device::reference();
    let weight = parameter(&device, "w", &[3, 4], false, 1);
    let step = |seed| {
        let graph = Graph::new();
        let x = graph.constant(HostTensor::from_slice(&values(8, seed), [2, 4]).unwrap());
        x.linear(&graph.parameter(&weight)).unwrap().softmax(1).unwrap().eval(&device).unwrap()
    };
    let (first, again, other) = (step(1), step(1), step(2));
    assert_eq!(device.compilations(), 1);
    assert_eq!(first.bytes(), again.bytes());
    assert_ne!(first.bytes(), other.bytes(), "constants are not part of the cached plan");
    let graph = Graph::new();
    let x = graph.constant(HostTensor::from_slice(&values(8, 1), [2, 4]).unwrap());
    x.linear(&graph.parameter(&weight)).unwrap().softmax(0).unwrap().eval(&device).unwrap();
    assert_eq!(device.compilations(), 2);
}

#[test]
fn reading_a_cache_after_its_update_is_refused() {
    let device = Device::reference();
    let graph = Graph::new();
    let cache = graph.parameter(&device.state("cache", TensorSpec::f32([1, 4, 2])).unwrap());
    let new = graph.constant(HostTensor::from_slice(&[1.0_f32, 2.0], [1, 1, 2]).unwrap());
    let pos = graph.constant(HostTensor::scalar(2_u32));
    let updated = cache.kv_write(&new, &pos).unwrap();
    let stale = cache.sum_all().unwrap();
    let fresh = updated.sum_all().unwrap();
    assert_eq!(fresh.eval(&device).unwrap().to_f64(), [3.0]);
    let error = device.eval(&[fresh, stale]).unwrap_err().to_string();
    assert!(error.contains("updated in place"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_errors_with_both_shapes() {
    let graph = Graph::new();
    let a = graph.input("a", TensorSpec::f32([2, 3]));
    let b = graph.input("b", TensorSpec::f32([4, 5]));
    let error = a.matmul(&b).unwrap_err().to_string();
    assert!(error.contains("matmul") && error.contains("[2, 3]") && error.contains("[4, 5]"), "{error}");
    assert!(a.add(&b).unwrap_err().to_string().contains("broadcast"));
    assert!(a.slice(1, 2, 2).unwrap_err().to_string().contains("[2, 3]"));
    let other = Graph::new().input("c", TensorSpec::f32([3, 3]));
    assert!(a.matmul(&other).unwrap_err().to_string().contains("another graph"));
}

/// Found by the operations' harness: with both inputs dying at the first step, the second took the place of the
/// first, which the output had already taken.
#[test]
fn an_output_takes_the_memory_of_one_input_only() {
    for device in [Device::reference(), Device::cpu(2).unwrap()] {
        let graph = Graph::new();
        let (a, b) = (graph.input("a", TensorSpec::f32([3])), graph.input("b", TensorSpec::f32([3])));
        let sum = a.add(&b).unwrap();
        let program = device.compile(&graph, &[sum], &[]).unwrap();
        let [a, b] =
            [[1.0_f32, 2.0, 3.0], [10.0, 20.0, 30.0]].map(|x| HostTensor::from_slice(&x, [3]).unwrap());
        assert_eq!(program.run(&[&a, &b]).unwrap()[0].as_slice::<f32>().unwrap(), [11.0, 22.0, 33.0]);
        // The CPU reads and writes where the caller has the tensors.
        let in_arena = if device.name() == "cpu" { 0 } else { 128 };
        assert_eq!(program.plan().arena_bytes, in_arena);
    }
}

/// On a device that writes outputs where the caller has them: one value as two outputs, an input as an output, a part of a
/// value, and a value that a later step reads.
#[test]
fn outputs_that_share_memory_are_all_filled() {
    for device in [Device::cpu(2).unwrap(), Device::reference()] {
        let graph = Graph::new();
        let x = graph.input("x", TensorSpec::f32([2, 3]));
        let double = x.affine(2.0, 0.0).unwrap();
        let part = double.slice(0, 1, 1).unwrap();
        let last = double.affine(1.0, 1.0).unwrap();
        let wanted = [double.clone(), double, x, part, last];
        let program = device.compile(&graph, &wanted, &[]).unwrap();
        let x = HostTensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).unwrap();
        let outputs = program.run(&[&x]).unwrap();
        let expected: [&[f32]; 5] = [
            &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0],
            &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0],
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            &[8.0, 10.0, 12.0],
            &[3.0, 5.0, 7.0, 9.0, 11.0, 13.0],
        ];
        for (output, expected) in outputs.iter().zip(expected) {
            assert_eq!(output.as_slice::<f32>().unwrap(), expected, "{device:?}");
        }
    }
}
