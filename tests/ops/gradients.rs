//! Gradients of every operation against central differences of its definition in f64.

use metal_candle::backend::Device;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::{BinaryFn, Op, ReduceFn, UnaryFn};
use metal_candle::tensor::{DType, HostTensor, Parameter};
use proptest::prelude::*;

use super::as_reference;
use super::cases::{Case, Random, Sizes, all};

/// Step of the differences. Their error is of the order h² times the third derivative, plus 1e-16 / h.
const STEP: f64 = 1e-4;
/// The gradient itself is f32; inputs near a kink are kept away from it below.
const TOLERANCE: f64 = 2e-4;

/// Whether the definition has kinks that differences cannot step over.
fn has_kinks(op: &Op) -> bool {
    match op {
        Op::Unary(op) => matches!(op.function, UnaryFn::Abs | UnaryFn::Relu),
        Op::Binary(op) => matches!(op.function, BinaryFn::Max | BinaryFn::Min),
        Op::Reduce(op) => op.function == ReduceFn::Max,
        _ => false,
    }
}

/// Replaces all values by numbers that are all different and at least twice the step from each other, from zero, and
/// from those of the other inputs.
fn apart(case: &mut Case) {
    for (index, input) in case.inputs.iter_mut().enumerate() {
        if input.dtype() == DType::F32 {
            let values = input.as_mut_slice::<f32>().unwrap();
            let count = values.len();
            // A prime greater than any count visits every place once.
            let place = |i: usize| (i * 7919 % count) as f32 - (count / 2) as f32;
            values
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x = 1e-3 * (place(i) + 0.3 + 0.4 * index as f32));
        }
    }
}

/// Outputs through which a gradient can go; the others are for the backward pass or are not differentiable.
fn ports(op: &Op, outputs: usize) -> Vec<usize> {
    match op {
        Op::Lora(_) | Op::Attention(_) | Op::CrossEntropy(_) => vec![0],
        _ => (0..outputs).collect(),
    }
}

/// Σ cᵢ·outᵢ of the definition.
fn weighted(case: &Case, inputs: &[metal_candle::ops::reference::Reference], factors: &[Vec<f64>]) -> f64 {
    let results = case.op.contract().reference(inputs);
    let ports = ports(&case.op, results.len());
    let sum = |(port, factors): (usize, &Vec<f64>)| -> f64 {
        results[port].data.iter().zip(factors).map(|(x, c)| x * c).sum()
    };
    ports.into_iter().zip(factors).map(sum).sum()
}

fn check(device: &Device, case: &Case, seed: u64) {
    let contract = case.op.contract();
    let wanted: Vec<usize> = (0..case.inputs.len())
        .filter(|&i| contract.differentiable(i) && case.inputs[i].dtype() == DType::F32)
        .collect();
    if wanted.is_empty() || matches!(&case.op, Op::Binary(op) if op.function == BinaryFn::Ge) {
        return;
    }
    let graph = Graph::new();
    let mut parameters: Vec<Parameter> = Vec::new();
    let recorded: Vec<LazyTensor> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(index, value)| {
            if !wanted.contains(&index) {
                return graph.constant(value.clone());
            }
            parameters.push(device.parameter(format!("input {index}"), value, true).unwrap());
            graph.parameter(parameters.last().unwrap())
        })
        .collect();
    let outputs = graph.record(case.op.clone(), &recorded.iter().collect::<Vec<_>>()).unwrap();
    let random = &mut Random::new(seed);
    let mut loss: Option<LazyTensor> = None;
    let mut factors = Vec::new();
    for port in ports(&case.op, outputs.len()) {
        let output = &outputs[port];
        let c = random.tensor(output.shape());
        factors.push(c.to_f64());
        let flat = output.mul(&graph.constant(c)).unwrap().reshape([output.shape().elements()]).unwrap();
        let part = flat.sum(0).unwrap().reshape([1]).unwrap();
        loss = Some(match loss {
            Some(loss) => loss.add(&part).unwrap(),
            None => part,
        });
    }
    let wrt: Vec<LazyTensor> = wanted.iter().map(|&index| recorded[index].clone()).collect();
    let gradients = graph.gradients(&loss.unwrap(), &wrt).unwrap();
    let found = device.compile(&graph, &gradients, &[]).unwrap().run(&[]).unwrap();

    let inputs: Vec<_> = case.inputs.iter().map(as_reference).collect();
    for (&index, gradient) in wanted.iter().zip(&found) {
        let gradient = gradient.to_f64();
        let scale = gradient.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
        // A sample of the elements of a large input.
        let elements = inputs[index].data.len();
        for sample in 0..elements.min(12) {
            let i = if elements <= 12 { sample } else { random.below(elements) };
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[index].data[i] += by;
                weighted(case, &inputs, &factors)
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!(
                (gradient[i] - difference).abs() <= TOLERANCE * scale,
                "{:?} on {:?}: d/d input {index}[{i}] is {}, differences give {difference}",
                case.op,
                case.inputs,
                gradient[i]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_those_of_finite_differences(
        m in 1_usize..20, n in 1_usize..40, k in 1_usize..12, b in 1_usize..3, seed in 0_u64..1 << 40,
    ) {
        let device = super::device();
        for mut case in all(Sizes { m, n, k, b }, seed) {
            if has_kinks(&case.op) {
                apart(&mut case);
            }
            check(&device, &case, seed ^ 1);
        }
    }
}

/// Empty tensors have empty gradients.
#[test]
fn an_empty_batch_has_an_empty_gradient() {
    let device = super::device();
    let graph = Graph::new();
    let empty = HostTensor::from_slice::<f32>(&[], [0, 4]).unwrap();
    let x = device.parameter("x", &empty, true).unwrap();
    let w = device.parameter("w", &Random::new(1).tensor([3, 4]), true).unwrap();
    let (x, w) = (graph.parameter(&x), graph.parameter(&w));
    let y = x.linear(&w).unwrap().silu().unwrap().softmax(1).unwrap();
    let loss = y.sum(1).unwrap().sum(0).unwrap().reshape([1]).unwrap();
    let gradients = graph.gradients(&loss, &[x, w]).unwrap();
    let results = device.compile(&graph, &gradients, &[]).unwrap().run(&[]).unwrap();
    assert_eq!(results[0].shape().dims(), [0, 4]);
    assert_eq!(results[1].as_slice::<f32>().unwrap(), [0.0; 12]);
}
