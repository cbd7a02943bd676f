//! Values at the edges: zeros, tiny, huge and infinite numbers, NaN, empty tensors, views, 16-bit dtypes.

use metal_candle::backend::Device;
use metal_candle::ops::{Op, UnaryFn};
use metal_candle::tensor::{DType, HostTensor};
use proptest::prelude::*;

use super::cases::{Case, Random, Sizes, all};
use super::{F32, assert_close, recorded, reference, run};

const SIZES: Sizes = Sizes { m: 9, n: 40, k: 8, b: 2 };

/// Replaces the values of every real input.
fn filled(case: &Case, mut value: impl FnMut(usize) -> f32) -> Case {
    let mut case = case.clone();
    for input in &mut case.inputs {
        if input.dtype() == DType::F32 && input.shape().elements() > 3 {
            input.as_mut_slice::<f32>().unwrap().iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
        }
    }
    case
}

/// Operations whose inputs are results of others and cannot be anything.
fn is_gradient_kernel(op: &Op) -> bool {
    matches!(op, Op::AttentionGrad(_) | Op::LogSoftmaxGrad(_) | Op::AdamW(_))
}

#[test]
fn zeros_ones_tiny_and_large_numbers() {
    let device = super::device();
    for case in all(SIZES, 3).iter().filter(|case| !is_gradient_kernel(&case.op)) {
        for value in [0.0, 1.0, -1.0, 1e-10, -1e-10] {
            let case = filled(case, |_| value);
            compare(&device, &case, F32);
        }
        // Products of large numbers keep their relative accuracy. Differences of logits of 1e20 do not exist in f32,
        // so the head's cross-entropy is left out.
        // Terms of 1e20 that cancel to 0, in layer norm's gradient, leave what f32 cannot hold.
        let cancels = matches!(case.op, Op::LayerNormGrad(_));
        let head = matches!(&case.op, Op::CrossEntropy(op) if op.head);
        if !head && !cancels && !matches!(case.op, Op::Unary(_) | Op::UnaryGrad(_)) {
            let case = filled(case, |i| if i % 2 == 0 { 1e10 } else { 2e10 });
            compare(&device, &case, 1e-4);
        }
    }
}

fn compare(device: &Device, case: &Case, tolerance: f64) {
    let what = format!("{:?} of {:?}", case.op, case.inputs.first().map(|x| x.to_f64().first().copied()));
    let found = run(device, case).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (port, (found, expected)) in found.iter().zip(&reference(case)).enumerate() {
        assert_close(found, expected, tolerance, &format!("{what}, output {port}"));
    }
}

#[test]
fn functions_at_zero_infinity_and_nan() {
    let device = super::device();
    let values = [0.0_f32, -0.0, 1e-10, -1e-10, 1e10, -1e10, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for case in all(SIZES, 4) {
        let function = match &case.op {
            Op::Unary(op) => op.function,
            Op::UnaryGrad(op) => op.function,
            _ => continue,
        };
        let x = HostTensor::from_slice(&values, [values.len()]).unwrap();
        let dy = HostTensor::from_slice(&[1.0_f32; 9], [9]).unwrap();
        let inputs = if matches!(case.op, Op::Unary(_)) { vec![x] } else { vec![dy, x] };
        let case = Case { op: case.op, inputs };
        let (found, expected) = (run(&device, &case).unwrap()[0].to_f64(), reference(&case)[0].to_f64());
        for ((x, a), b) in values.iter().zip(found).zip(expected) {
            // What overflows f32 on the way to a finite f64 may be infinite.
            let overflow = b.abs() > 1e30 && a.abs() == f64::INFINITY;
            // e^(−x²/2) of the exact GELU is 0 where x is infinite, and 0·∞ is NaN there as in the definition.
            let close = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * b.abs().max(1e-3);
            assert!(close || overflow, "{} {:?}({x}) is {a}, must be {b}", case.op.name(), function);
        }
        let _: UnaryFn = function;
    }
}

/// A NaN in the input is in the output: nothing is hidden.
#[test]
fn nan_goes_through() {
    let device = super::device();
    for case in all(SIZES, 5) {
        if is_gradient_kernel(&case.op) || matches!(&case.op, Op::ArgMax(_)) {
            continue;
        }
        let case = filled(&case, |_| f32::NAN);
        let expected: usize = reference(&case).iter().map(count_nan).sum();
        let found: usize = run(&device, &case).unwrap().iter().map(count_nan).sum();
        assert_eq!(found, expected, "{:?}", case.op);
    }
}

fn count_nan(tensor: &HostTensor) -> usize {
    tensor.to_f64().iter().filter(|x| x.is_nan()).count()
}

#[test]
fn infinities_are_where_the_definition_has_them() {
    let device = super::device();
    let r = &mut Random::new(6);
    for case in all(SIZES, 6) {
        let row_op = matches!(
            case.op,
            Op::Softmax(_)
                | Op::LogSoftmax(_)
                | Op::Reduce(_)
                | Op::Binary(_)
                | Op::Affine(_)
                | Op::TopK(_)
                | Op::Copy(_)
        );
        if !row_op {
            continue;
        }
        let case = filled(&case, |i| match i % 7 {
            3 => f32::NEG_INFINITY,
            _ => r.unit() as f32,
        });
        compare(&device, &case, F32);
    }
}

#[test]
fn empty_tensors() {
    let device = super::device();
    for case in all(Sizes { m: 0, n: 8, k: 4, b: 2 }, 7) {
        // A maximum or mean over nothing, and a top-k of nothing, are refused when they are recorded.
        let specs: Vec<_> = case.inputs.iter().map(|x| x.spec().clone()).collect();
        if case.op.contract().infer(&specs).is_err() {
            continue;
        }
        compare(&device, &case, F32);
    }
}

/// Every operation on views: each input is a window of a larger, transposed tensor.
#[test]
fn views_give_what_copies_give() {
    let device = super::device();
    for case in all(SIZES, 8) {
        if !case.op.contract().updates(case.inputs.len()).is_empty() {
            continue;
        }
        let graph = metal_candle::graph::Graph::new();
        let views: Vec<_> = case
            .inputs
            .iter()
            .map(|value| {
                let rank = value.shape().rank();
                if rank < 2 || value.dtype() != DType::F32 {
                    return graph.constant(value.clone());
                }
                let axes: Vec<usize> = (0..rank).rev().collect();
                let reversed = graph.constant(value.clone()).permute(&axes).unwrap().eval(&device).unwrap();
                let frame = graph.constant(reversed);
                let wide = frame.concat(&[&frame], 0).unwrap().eval(&device).unwrap();
                let len = value.shape().dims()[rank - 1];
                graph.constant(wide).slice(0, len, len).unwrap().permute(&axes).unwrap()
            })
            .collect();
        let outputs = graph.record(case.op.clone(), &views.iter().collect::<Vec<_>>()).unwrap();
        let found = device.compile(&graph, &outputs, &[]).unwrap().run(&[]).unwrap();
        for (found, expected) in found.iter().zip(reference(&case)) {
            assert_close(found, &expected, F32, &format!("{:?} on views", case.op));
        }
    }
}

/// f16 and bf16 storage: the definition on rounded inputs, within one rounding of the output and of what a kernel
/// rounds on the way.
#[test]
fn sixteen_bit_storage() {
    let device = super::device();
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 1.6e-2)] {
        for mut case in all(SIZES, 9) {
            if matches!(
                case.op,
                Op::AdamW(_) | Op::Accumulate(_) | Op::GlobalNorm(_) | Op::Fill(_) | Op::LogSoftmaxGrad(_)
            ) {
                continue;
            }
            let stays_f32 = f32_inputs(&case.op);
            for (index, input) in case.inputs.iter_mut().enumerate() {
                if input.dtype() == DType::F32 && !stays_f32.contains(&index) {
                    *input = input.cast(dtype);
                }
            }
            if let Op::Embedding(op) = &mut case.op {
                op.dtype = dtype;
            }
            let found = run(&device, &case).unwrap_or_else(|error| panic!("{:?}: {error}", case.op));
            for (found, expected) in found.iter().zip(reference(&case)) {
                assert_close(found, &expected, tolerance, &format!("{:?} in {dtype}", case.op));
            }
        }
    }
}

/// Inputs that are f32 whatever the storage of the others.
pub(super) fn f32_inputs(op: &Op) -> Vec<usize> {
    match op {
        Op::Rope(_) => vec![1, 2],
        Op::RopeKvWrite(_) => vec![3, 4],
        Op::CrossEntropy(op) => vec![2 + usize::from(op.head)],
        Op::AttentionGrad(_) => vec![4],
        Op::LoraGrad(_) => vec![2],
        Op::Scale(_) | Op::Sample(_) => vec![1],
        _ => Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn random_shapes_give_the_definition(
        m in 0_usize..50, n in 1_usize..90, k in 1_usize..20, b in 1_usize..4, seed in 0_u64..1 << 40,
    ) {
        let device = super::device();
        for case in all(Sizes { m, n, k, b }, seed) {
            let specs: Vec<_> = case.inputs.iter().map(|x| x.spec().clone()).collect();
            if case.op.contract().infer(&specs).is_ok() {
                compare(&device, &case, F32);
            }
        }
    }
}

/// Broken indices are errors, on every device alike.
#[test]
fn indices_outside_their_tables_are_errors() {
    let ids = HostTensor::from_slice(&[0_u32, 5], [2]).unwrap();
    for device in [super::device(), Device::reference()] {
        let table = Random::new(1).tensor([5, 3]);
        let picked = recorded(&[table, ids.clone()], |t| t[0].embedding(&t[1], DType::F32));
        let error = picked.eval(&device).unwrap_err().to_string();
        assert_eq!(error, "embedding: id 5 is outside its table of 5 rows");
    }
}
