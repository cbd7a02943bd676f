//! Products by `MPSMatrixMultiplication` and `MPSNDArrayMatrixMultiplication`.

use candle_core::D;
use metal_candle::graph::Graph;
use metal_candle::ops::{Lora, LoraSlot, MatMul, Real};
use metal_candle::tensor::{DType, HostTensor};
use proptest::prelude::*;

use super::{Random, assert_used, candle, close, filled, floats, numbers, run, shaders};

/// A product of these sizes on the framework and in candle.
fn product(batch: usize, [m, n, k]: [usize; 3], (ta, tb): (bool, bool), dtype: DType, seed: u64) {
    let r = &mut Random::new(seed);
    let shape = |rows: usize, columns: usize, transposed: bool| {
        let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
        if batch > 1 { vec![batch, rows, columns] } else { vec![rows, columns] }
    };
    let inputs = [r.tensor(shape(m, k, ta)).cast(dtype), r.tensor(shape(k, n, tb)).cast(dtype)];
    let (found, used) = run(&shaders(), MatMul::new(ta, tb), &inputs);
    assert_used(&used, "MPSMatrixMultiplication");
    let side = |tensor: &HostTensor, transposed: bool| {
        let tensor = candle(tensor);
        if transposed {
            tensor.transpose(D::Minus1, D::Minus2).unwrap().contiguous().unwrap()
        } else {
            tensor
        }
    };
    let expected = side(&inputs[0], ta).matmul(&side(&inputs[1], tb)).unwrap();
    // f16 results are rounded once: half a unit in the last place of the greatest.
    let tolerance = if dtype == DType::F16 { 1e-3 } else { 1e-5 };
    close(&floats(&found[0]), &numbers(&expected), tolerance);
}

macro_rules! products {
    ($($name:ident: $batch:expr, $sizes:expr, $transposes:expr, $dtype:expr;)*) => {
        $(#[test]
        fn $name() {
            let _alone = crate::alone();
            product($batch, $sizes, $transposes, $dtype, 7);
        })*
    };
}

products! {
    product_of_single_elements: 1, [1, 1, 1], (false, false), DType::F32;
    product_of_one_row: 1, [1, 64, 48], (false, true), DType::F32;
    product_of_one_column: 1, [33, 1, 20], (false, false), DType::F32;
    product_with_inner_length_one: 1, [17, 19, 1], (false, false), DType::F32;
    product_of_squares: 1, [32, 32, 32], (false, false), DType::F32;
    product_of_odd_sizes: 1, [31, 33, 29], (false, false), DType::F32;
    product_of_a_tall_matrix: 1, [128, 8, 64], (false, false), DType::F32;
    product_of_a_wide_matrix: 1, [4, 256, 16], (false, false), DType::F32;
    product_of_a_low_rank_down: 1, [64, 8, 96], (false, true), DType::F32;
    product_of_a_low_rank_up: 1, [64, 96, 8], (false, true), DType::F32;
    product_with_the_left_transposed: 1, [12, 14, 10], (true, false), DType::F32;
    product_with_the_right_transposed: 1, [12, 14, 10], (false, true), DType::F32;
    product_with_both_transposed: 1, [12, 14, 10], (true, true), DType::F32;
    products_of_a_batch: 3, [8, 9, 10], (false, false), DType::F32;
    products_of_a_batch_left_transposed: 3, [8, 9, 10], (true, false), DType::F32;
    products_of_a_batch_right_transposed: 2, [8, 9, 10], (false, true), DType::F32;
    product_in_f16: 1, [16, 24, 32], (false, false), DType::F16;
    product_in_f16_right_transposed: 1, [16, 24, 32], (false, true), DType::F16;
    products_of_a_batch_in_f16: 2, [5, 6, 7], (false, false), DType::F16;
}

#[test]
fn a_factor_alone_is_alpha() {
    let _alone = crate::alone();
    let r = &mut Random::new(3);
    let inputs = [r.tensor([6, 5]), r.tensor([5, 4])];
    let op = MatMul { alpha: Real(-0.5), ..MatMul::new(false, false) };
    let (found, used) = run(&shaders(), op, &inputs);
    assert_used(&used, "MPSMatrixMultiplication");
    let expected = (candle(&inputs[0]).matmul(&candle(&inputs[1])).unwrap() * -0.5).unwrap();
    close(&floats(&found[0]), &numbers(&expected), 1e-5);
}

#[test]
fn an_addend_is_accumulated_in_place() {
    let _alone = crate::alone();
    let r = &mut Random::new(4);
    let (a, b, c) = (r.tensor([6, 5]), r.tensor([5, 4]), r.tensor([6, 4]));
    let graph = Graph::new();
    let [a_, b_, c_] = [&a, &b, &c].map(|tensor| graph.constant(tensor.clone()));
    let addend = c_.affine(1.0, 0.0).unwrap();
    let op = MatMul { alpha: Real(2.0), beta: Real(3.0), ..MatMul::new(false, false) };
    let y = graph.record(op, &[&a_, &b_, &addend]).unwrap();
    let found = shaders().eval(&y).unwrap().remove(0);
    let product = (candle(&a).matmul(&candle(&b)).unwrap() * 2.0).unwrap();
    let expected = (product + (candle(&c) * 3.0).unwrap()).unwrap();
    close(&floats(&found), &numbers(&expected), 1e-5);
}

/// The adapters' part of a layer is accumulated into the base product: alpha is their scale, beta is one.
#[test]
fn adapters_are_accumulated_into_the_base_product() {
    let _alone = crate::alone();
    let r = &mut Random::new(30);
    let (m, n, k) = (5, 14, 20);
    let slots = vec![
        LoraSlot { start: 0, len: 6, rank: 2, scale: Real(2.0) },
        LoraSlot { start: 8, len: 5, rank: 3, scale: Real(0.5) },
    ];
    let mut inputs = vec![r.tensor([m, k]), r.tensor([n, k])];
    for slot in &slots {
        inputs.extend([r.tensor([slot.rank, k]), r.tensor([slot.len, slot.rank])]);
    }
    let x = candle(&inputs[0]);
    let mut expected = x.matmul(&candle(&inputs[1]).t().unwrap()).unwrap();
    for (slot, pair) in slots.iter().zip(inputs[2..].chunks(2)) {
        let [a, b] = [0, 1].map(|side| candle(&pair[side]).t().unwrap());
        let delta = (x.matmul(&a).unwrap().matmul(&b).unwrap() * f64::from(slot.scale.0)).unwrap();
        let columns = expected.narrow(1, slot.start, slot.len).unwrap();
        let sum = (columns + delta).unwrap();
        expected = expected.slice_assign(&[0..m, slot.start..slot.start + slot.len], &sum).unwrap();
    }
    let graph = Graph::new();
    let constants: Vec<_> = inputs.iter().map(|input| graph.constant(input.clone())).collect();
    let op = Lora { slots, separate: false };
    let outputs = graph.record(op, &constants.iter().collect::<Vec<_>>()).unwrap();
    let program = shaders().compile(&graph, &outputs[..1], &[]).unwrap();
    #[cfg(softmetal)]
    softmetal::counters::take();
    let found = program.run(&[]).unwrap().remove(0);
    #[cfg(softmetal)]
    {
        let counted = softmetal::counters::take().commands;
        assert_eq!(counted.get("MPSMatrixMultiplication"), Some(&3), "the base, and one a slot: {counted:?}");
    }
    close(&floats(&found), &numbers(&expected), 1e-5);
}

#[test]
fn matrices_may_begin_anywhere_and_have_padded_rows() {
    let _alone = crate::alone();
    let r = &mut Random::new(5);
    let (a, b) = (r.tensor([9, 12]), r.tensor([12, 10]));
    let graph = Graph::new();
    let part = |tensor: &HostTensor, rows: (usize, usize), columns: (usize, usize)| {
        let whole = graph.constant(tensor.clone());
        whole.slice(0, rows.0, rows.1).unwrap().slice(1, columns.0, columns.1).unwrap()
    };
    let y = part(&a, (2, 5), (3, 7)).matmul(&part(&b, (1, 7), (4, 3))).unwrap();
    #[cfg(softmetal)]
    softmetal::counters::take();
    let found = shaders().eval(&[y]).unwrap().remove(0);
    #[cfg(softmetal)]
    assert!(softmetal::counters::take().commands.keys().any(|name| name.contains("MPSMatrixMultiplication")));
    let narrow = |tensor: &HostTensor, rows: (usize, usize), columns: (usize, usize)| {
        let part = candle(tensor).narrow(0, rows.0, rows.1).unwrap();
        part.narrow(1, columns.0, columns.1).unwrap().contiguous().unwrap()
    };
    let expected = narrow(&a, (2, 5), (3, 7)).matmul(&narrow(&b, (1, 7), (4, 3))).unwrap();
    close(&floats(&found), &numbers(&expected), 1e-5);
}

fn identity(n: usize) -> HostTensor {
    let values: Vec<f32> = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
    HostTensor::from_slice(&values, [n, n]).unwrap()
}

macro_rules! extremes {
    ($($name:ident: $value:expr;)*) => {
        $(#[test]
        fn $name() {
            let _alone = crate::alone();
            let inputs = [filled([5, 6], $value), Random::new(6).tensor([6, 7])];
            let (found, used) = run(&shaders(), MatMul::new(false, false), &inputs);
            assert_used(&used, "MPSMatrixMultiplication");
            let expected = candle(&inputs[0]).matmul(&candle(&inputs[1])).unwrap();
            close(&floats(&found[0]), &numbers(&expected), 1e-5);
        })*
    };
}

extremes! {
    product_of_zeros: 0.0;
    product_of_ones: 1.0;
    product_of_tiny_numbers: 1e-10;
    product_of_huge_numbers: 1e10;
    product_of_nan: f32::NAN;
    product_of_infinity: f32::INFINITY;
}

#[test]
fn the_identity_changes_nothing() {
    let _alone = crate::alone();
    let x = Random::new(8).tensor([9, 9]);
    let (found, _) = run(&shaders(), MatMul::new(false, false), &[x.clone(), identity(9)]);
    assert_eq!(floats(&found[0]), floats(&x));
}

/// On M1 and M2 the framework sums long inner lengths wrongly: they go in parts, each added to the one before.
#[test]
fn long_inner_lengths_go_in_parts() {
    let _alone = crate::alone();
    let k = 32_000 + 48;
    for (ta, tb) in [(false, false), (true, true)] {
        #[cfg(softmetal)]
        softmetal::counters::take();
        product(1, [2, 3, k], (ta, tb), DType::F32, 21);
    }
    let r = &mut Random::new(22);
    let inputs = [r.tensor([2, k]), r.tensor([k, 3])];
    let (_, used) = run(&shaders(), MatMul::new(false, false), &inputs.map(|x| x.cast(DType::F16)));
    assert!(used.is_empty(), "f16 would be rounded at every part: {used:?}");
}

/// bf16 is not a type of the matrix classes; arrays take it from macOS 15 on, in an encoder of ours.
#[test]
fn bf16_products_go_to_arrays() {
    let _alone = crate::alone();
    let r = &mut Random::new(23);
    for (ta, tb) in [(false, false), (false, true), (true, false)] {
        let side = |r: &mut Random, rows: usize, columns: usize, transposed: bool| {
            r.tensor(if transposed { [columns, rows] } else { [rows, columns] }).cast(DType::BF16)
        };
        let (a, b) = (side(r, 9, 14, ta), side(r, 14, 11, tb));
        let (found, used) = run(&shaders(), MatMul::new(ta, tb), &[a.clone(), b.clone()]);
        assert_used(&used, "MPSNDArrayMatrixMultiplication");
        let turned = |tensor: &HostTensor, transposed: bool| {
            let tensor = candle(tensor);
            if transposed { tensor.t().unwrap().contiguous().unwrap() } else { tensor }
        };
        let expected = turned(&a, ta).matmul(&turned(&b, tb)).unwrap();
        // Results are rounded once to eight bits.
        close(&floats(&found[0]), &numbers(&expected), 4e-3);
    }
}

/// With three arrays and one row the framework leaves the addend out on some systems.
#[test]
fn a_bf16_addend_stays_with_kernels_of_ours() {
    let _alone = crate::alone();
    let r = &mut Random::new(24);
    let [a, b, c] = [[1, 5], [5, 4], [1, 4]].map(|shape| r.tensor(shape).cast(DType::BF16));
    let graph = Graph::new();
    let [a_, b_, c_] = [&a, &b, &c].map(|tensor| graph.constant(tensor.clone()));
    let addend = c_.affine(1.0, 0.0).unwrap();
    let op = MatMul { alpha: Real(2.0), beta: Real(3.0), ..MatMul::new(false, false) };
    let y = graph.record(op, &[&a_, &b_, &addend]).unwrap();
    #[cfg(softmetal)]
    softmetal::counters::take();
    let found = shaders().eval(&y).unwrap().remove(0);
    #[cfg(softmetal)]
    assert!(!softmetal::counters::take().commands.keys().any(|name| name.contains("NDArray")));
    let product = (candle(&a).matmul(&candle(&b)).unwrap() * 2.0).unwrap();
    let expected = (product + (candle(&c) * 3.0).unwrap()).unwrap();
    close(&floats(&found), &numbers(&expected), 4e-3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_random_shapes(
        m in 1_usize..40, n in 1_usize..40, k in 1_usize..40, batch in 1_usize..4,
        ta: bool, tb: bool, half: bool, seed in 0_u64..1 << 40,
    ) {
        let _alone = crate::alone();
        let dtype = if half { DType::F16 } else { DType::F32 };
        product(batch, [m, n, k], (ta, tb), dtype, seed);
    }
}
