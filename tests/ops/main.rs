//! The harness of all operations: every device against the scalar definitions in f64, gradients against finite
//! differences, values at the edges, views, dtypes, and candle.

#[cfg(softmetal)]
extern crate softmetal;

mod candle;
mod cases;
mod edges;
mod gradients;
mod support;
#[path = "../test_device/mod.rs"]
mod test_device;

use cases::{Case, Sizes, all};
use metal_candle::Result;
use metal_candle::backend::Device;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::reference::Reference;
use metal_candle::tensor::HostTensor;

/// The devices that are tested: the GPU under test (see `test_device`), otherwise the CPU.
pub(crate) fn devices() -> Vec<Device> {
    match test_device::gpu() {
        Some(gpu) => vec![gpu],
        None => [1, 3].map(|threads| Device::cpu(threads).unwrap()).into(),
    }
}

/// The device of tests that need one.
pub(crate) fn device() -> Device {
    devices().remove(0)
}

/// The definition's results, rounded to the outputs' dtypes.
pub(crate) fn reference(case: &Case) -> Vec<HostTensor> {
    let specs: Vec<_> = case.inputs.iter().map(|x| x.spec().clone()).collect();
    let outputs = case.op.contract().infer(&specs).unwrap();
    let inputs: Vec<Reference> = case.inputs.iter().map(as_reference).collect();
    case.op
        .contract()
        .reference(&inputs)
        .iter()
        .zip(outputs)
        .map(|(value, spec)| HostTensor::from_f64(&value.data, spec.dtype, spec.shape).unwrap())
        .collect()
}

pub(crate) fn as_reference(tensor: &HostTensor) -> Reference {
    Reference::new(tensor.shape().clone(), tensor.to_f64())
}

/// Runs a case on a device. What the operation updates in place is a state of the device.
pub(crate) fn run(device: &Device, case: &Case) -> Result<Vec<HostTensor>> {
    let graph = Graph::new();
    let updates = case.op.contract().updates(case.inputs.len());
    let mut states = Vec::new();
    let mut inputs = Vec::new();
    for (index, value) in case.inputs.iter().enumerate() {
        if updates.iter().any(|&(input, _)| input == index) {
            let state = device.state(format!("input {index}"), value.spec().clone())?;
            state.write(value)?;
            inputs.push(graph.parameter(&state));
            states.push((index, state));
        } else {
            inputs.push(graph.constant(value.clone()));
        }
    }
    let outputs = graph.record(case.op.clone(), &inputs.iter().collect::<Vec<_>>())?;
    if updates.is_empty() {
        return device.compile(&graph, &outputs, &[])?.run(&[]);
    }
    let is_update = |port: usize| updates.iter().any(|&(_, output)| output == port);
    let (in_place, computed): (Vec<usize>, Vec<usize>) =
        (0..outputs.len()).partition(|&port| is_update(port));
    let select = |ports: &[usize]| ports.iter().map(|&port| outputs[port].clone()).collect::<Vec<_>>();
    let values = device.compile(&graph, &select(&computed), &select(&in_place))?.run(&[])?;
    let state_of = |input: usize| states.iter().find(|(index, _)| *index == input).unwrap().1.read();
    let mut results: Vec<_> = updates.iter().map(|&(input, output)| (output, state_of(input))).collect();
    results.extend(computed.into_iter().zip(values.into_iter().map(Ok)));
    results.sort_by_key(|(output, _)| *output);
    results.into_iter().map(|(_, value)| value).collect()
}

/// Compares with a tolerance relative to the greatest magnitude of the tensor, at least 1: sums of n products in
/// f32 carry errors of the size of their largest terms.
pub(crate) fn assert_close(found: &HostTensor, expected: &HostTensor, tolerance: f64, what: &str) {
    assert_eq!(found.spec(), expected.spec(), "{what}");
    let (found, expected) = (found.to_f64(), expected.to_f64());
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1.0_f64, |a, x| a.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        assert!(same || (a - b).abs() <= tolerance * scale, "{what}: element {i} is {a}, must be {b}");
    }
}

fn check(device: &Device, case: &Case, tolerance: f64) {
    let what = format!("{:?} on {:?}", case.op, case.inputs);
    let found = run(device, case).unwrap_or_else(|error| panic!("{what}: {error}"));
    let expected = reference(case);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (port, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(found, expected, tolerance, &format!("{what}, output {port}"));
    }
}

/// f32 sums of up to a few hundred terms, and functions within 6 ulp: 1e-5 leaves a factor of ten.
pub(crate) const F32: f64 = 1e-5;

const SIZES: [Sizes; 7] = [
    Sizes { m: 1, n: 1, k: 1, b: 1 },
    Sizes { m: 2, n: 33, k: 16, b: 1 },
    Sizes { m: 7, n: 5, k: 3, b: 2 },
    Sizes { m: 13, n: 31, k: 8, b: 3 },
    Sizes { m: 32, n: 64, k: 32, b: 2 },
    Sizes { m: 70, n: 129, k: 20, b: 1 },
    Sizes { m: 130, n: 300, k: 36, b: 1 },
];

#[test]
fn every_operation_gives_its_definition() {
    for device in devices() {
        for (seed, sizes) in SIZES.into_iter().enumerate() {
            for case in all(sizes, seed as u64) {
                check(&device, &case, F32);
            }
        }
    }
}

/// Decode steps and short prompts: W is stored as 16 bits, x and the adapters as f32.
#[test]
fn products_of_few_rows_and_mixed_types_give_their_definition() {
    use metal_candle::ops::{Lora, LoraSlot, MatMul, Real};
    use metal_candle::tensor::DType;
    let r = &mut cases::Random::new(6);
    for device in devices() {
        for (m, dtype) in [(1, DType::BF16), (2, DType::F16), (4, DType::BF16), (5, DType::F32)]
            .into_iter()
            .chain([(8, DType::BF16), (9, DType::F16), (33, DType::BF16)])
        {
            // Inner lengths below, at and beyond what a SIMD group loads at once, and not of whole loads.
            for k in [3, 128, 261] {
                let (n, x) = (37, r.tensor([m, k]));
                let w = r.tensor([n, k]).cast(dtype);
                let inputs = vec![x.clone(), w.clone()];
                check(&device, &Case { op: MatMul::new(false, true).into(), inputs }, F32);
                let inputs = vec![x.clone(), r.tensor([k, n]).cast(dtype)];
                check(&device, &Case { op: MatMul::new(false, false).into(), inputs }, F32);
                for slots in [1, 2, 5] {
                    let mut inputs = vec![x.clone(), w.clone()];
                    let slots: Vec<LoraSlot> = (0..slots)
                        .map(|i| LoraSlot { start: 7 * i, len: 6, rank: 1 + 4 * i, scale: Real(0.5) })
                        .collect();
                    for slot in &slots {
                        inputs.extend([r.tensor([slot.rank, k]), r.tensor([slot.len, slot.rank])]);
                    }
                    check(&device, &Case { op: Lora { slots, separate: false }.into(), inputs }, F32);
                }
            }
        }
    }
}

/// One block, fewer runs than the lanes of a SIMD group, and more of both than whole turns; rows for both of the ways
/// that there are.
#[test]
fn products_with_blocks_of_many_sizes_give_their_definition() {
    use metal_candle::ops::{Blocks, QuantMatMul};
    let r = &mut cases::Random::new(7);
    for device in devices() {
        for blocks in Blocks::ALL {
            let block = blocks.elements();
            for k in [block, 3 * block, 1024 + 5 * block] {
                for (m, n) in [(1, 37), (3, 16), (6, 5), (8, 1), (9, 3)] {
                    let op = QuantMatMul { blocks, n, k };
                    let inputs = vec![r.tensor([m, k]), r.blocks(&op)];
                    check(&device, &Case { op: op.into(), inputs }, F32);
                }
            }
        }
    }
}

#[test]
fn large_products_and_heads_give_their_definition() {
    // Deeper than one packed block, more rows than one block, and more logits than one chunk.
    let device = device();
    let r = &mut cases::Random::new(5);
    use metal_candle::ops::{CrossEntropy, MatMul};
    for (m, n, k) in [(200, 70, 900), (1, 500, 800), (3, 40, 770), (110, 530, 385)] {
        for tb in [false, true] {
            let w = if tb { [n, k] } else { [k, n] };
            let inputs = vec![r.spread([m, k], 0.1, 0.0), r.tensor(w)];
            check(&device, &Case { op: MatMul::new(false, tb).into(), inputs }, F32);
        }
    }
    let (m, v, h) = (40, 300_000, 4);
    let targets: Vec<u32> = (0..m).map(|i| (i * 7_001 % v) as u32).collect();
    let weights: Vec<f32> = (0..m).map(|i| if i % 5 == 0 || i > 33 { 0.0 } else { 1.0 }).collect();
    let inputs = vec![
        r.tensor([m, h]),
        r.tensor([v, h]),
        HostTensor::from_slice(&targets, [m]).unwrap(),
        HostTensor::from_slice(&weights, [m]).unwrap(),
    ];
    // Sums of 300,000 terms: in one run of f32 on a GPU, in blocks on the CPU.
    let tolerance = if test_device::kind() != "cpu" { 3.0 * F32 } else { F32 };
    check(&device, &Case { op: CrossEntropy { head: true }.into(), inputs }, tolerance);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let devices = [1, 2, 5].map(|threads| Device::cpu(threads).unwrap());
    for case in all(Sizes { m: 130, n: 129, k: 48, b: 2 }, 11) {
        let [one, others @ ..] = devices.each_ref().map(|device| run(device, &case).unwrap());
        for other in others {
            let bits =
                |tensors: &[HostTensor]| tensors.iter().map(|t| t.bytes().to_vec()).collect::<Vec<_>>();
            assert_eq!(bits(&one), bits(&other), "{:?}", case.op);
        }
    }
}

/// Records `f` over constants.
pub(crate) fn recorded(
    values: &[HostTensor],
    f: impl FnOnce(&[LazyTensor]) -> Result<LazyTensor>,
) -> LazyTensor {
    let graph = Graph::new();
    let tensors: Vec<LazyTensor> = values.iter().map(|value| graph.constant(value.clone())).collect();
    f(&tensors).unwrap()
}
