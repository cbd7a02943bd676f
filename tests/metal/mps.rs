//! Metal Performance Shaders through the backend, preferred wherever the guard allows them, against candle on the CPU.

use candle_core::{D, Device as CandleDevice, Tensor};
use metal_candle::backend::Device;
use metal_candle::backend::select::{Choices, Measured, Preference, Table};
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::{Attention, LogSoftmax, MatMul, Op, Real, Softmax, SoftmaxGrad, TopK};
use metal_candle::tensor::{DType, HostTensor, Shape};
use proptest::prelude::*;

/// Random numbers (Knuth's linear congruential generator, upper bits).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    fn tensor(&mut self, shape: impl Into<Shape>) -> HostTensor {
        self.spread(shape, 1.0, 0.0)
    }

    /// Numbers in [centre − spread, centre + spread).
    fn spread(&mut self, shape: impl Into<Shape>, spread: f64, centre: f64) -> HostTensor {
        let shape = shape.into();
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
        };
        let values: Vec<f64> = (0..shape.elements()).map(|_| spread * next() + centre).collect();
        HostTensor::from_f64(&values, DType::F32, shape).unwrap()
    }
}

fn shaders() -> Device {
    Device::metal_with(Preference::Mps).unwrap()
}

fn candle(tensor: &HostTensor) -> Tensor {
    let values: Vec<f32> = tensor.to_f64().iter().map(|&x| x as f32).collect();
    Tensor::from_vec(values, tensor.shape().dims(), &CandleDevice::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Records an operation over constants, runs it, and tells which kernels of the framework ran.
fn run(device: &Device, op: impl Into<Op>, inputs: &[HostTensor]) -> (Vec<HostTensor>, Vec<String>) {
    let graph = Graph::new();
    let constants: Vec<LazyTensor> = inputs.iter().map(|input| graph.constant(input.clone())).collect();
    let mut outputs = graph.record(op.into(), &constants.iter().collect::<Vec<_>>()).unwrap();
    // What is read at the end is not overwritten: the framework does not promise to work in place, and the guard refuses.
    let results = outputs.len();
    outputs.extend(constants);
    #[cfg(softmetal)]
    softmetal::counters::take();
    let mut tensors = device.eval(&outputs).unwrap();
    tensors.truncate(results);
    #[cfg(softmetal)]
    let used =
        softmetal::counters::take().commands.into_keys().filter(|name| name.starts_with("MPS")).collect();
    #[cfg(not(softmetal))]
    let used = Vec::new();
    (tensors, used)
}

/// That the framework ran, where the device tells.
fn assert_used(used: &[String], class: &str) {
    if cfg!(softmetal) {
        assert!(used.iter().any(|name| name.contains(class)), "{class} did not run: {used:?}");
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1.0_f32, |a, x| a.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let same = a == b || a.is_nan() && b.is_nan();
        assert!(same || (a - b).abs() <= tolerance * scale, "element {i} is {a}, must be {b}");
    }
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_f64().iter().map(|&x| x as f32).collect()
}

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

fn filled(shape: [usize; 2], value: f32) -> HostTensor {
    HostTensor::from_slice(&vec![value; shape[0] * shape[1]], shape).unwrap()
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

/// Softmax and log-softmax of rows, in candle's definition.
fn rows(x: &HostTensor, log: bool) {
    let device = shaders();
    let axis = x.shape().rank() - 1;
    let op: Op = if log { LogSoftmax { axis }.into() } else { Softmax { axis }.into() };
    let (found, used) = run(&device, op, std::slice::from_ref(x));
    assert_used(&used, if log { "MPSMatrixLogSoftMax" } else { "MPSMatrixSoftMax" });
    let x64 = candle(x).to_dtype(candle_core::DType::F64).unwrap();
    let shifted = x64.broadcast_sub(&x64.max_keepdim(D::Minus1).unwrap()).unwrap();
    let sum = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap();
    let expected = if log {
        shifted.broadcast_sub(&sum.log().unwrap()).unwrap()
    } else {
        shifted.exp().unwrap().broadcast_div(&sum).unwrap()
    };
    let expected = numbers(&expected.to_dtype(candle_core::DType::F32).unwrap());
    close(&floats(&found[0]), &expected, if x.dtype() == DType::F16 { 1e-3 } else { 1e-5 });
}

macro_rules! softmaxes {
    ($($name:ident: $x:expr, $log:expr;)*) => {
        $(#[test]
        fn $name() {
            let _alone = crate::alone();
            rows(&$x, $log);
        })*
    };
}

softmaxes! {
    softmax_of_one_element: filled([1, 1], 3.0), false;
    softmax_of_one_row: Random::new(1).tensor([1, 1000]), false;
    softmax_of_many_rows: Random::new(2).tensor([64, 33]), false;
    softmax_of_three_axes: Random::new(3).tensor([3, 4, 20]), false;
    softmax_of_large_values: Random::new(4).spread([8, 50], 1e4, 0.0), false;
    softmax_of_values_beyond_the_exponential: filled([4, 7], 500.0), false;
    softmax_of_tiny_values: filled([4, 7], 1e-10), false;
    softmax_in_f16: Random::new(5).spread([6, 40], 8.0, 0.0).cast(DType::F16), false;
    log_softmax_of_rows: Random::new(6).spread([9, 70], 20.0, 0.0), true;
    log_softmax_of_large_values: Random::new(7).spread([5, 30], 1e4, 0.0), true;
}

#[test]
fn the_gradient_of_softmax_is_that_of_the_definition() {
    let _alone = crate::alone();
    let r = &mut Random::new(9);
    let (dy, y) = (r.tensor([7, 20]), r.spread([7, 20], 0.1, 0.1));
    let (found, used) = run(&shaders(), SoftmaxGrad { axis: 1 }, &[dy.clone(), y.clone()]);
    assert_used(&used, "MPSMatrixSoftMaxGradient");
    let (g, p) = (candle(&dy), candle(&y));
    let dot = (&g * &p).unwrap().sum_keepdim(1).unwrap();
    let expected = (&p * g.broadcast_sub(&dot).unwrap()).unwrap();
    close(&floats(&found[0]), &numbers(&expected), 1e-5);
}

#[test]
fn up_to_sixteen_greatest_elements_are_found() {
    let _alone = crate::alone();
    let x = Random::new(10).tensor([5, 60]);
    for k in [1, 3, 16] {
        let (found, used) = run(&shaders(), TopK { k }, std::slice::from_ref(&x));
        assert_used(&used, "MPSMatrixFindTopK");
        for (row, values) in x.to_f64().chunks(60).enumerate() {
            let mut order: Vec<usize> = (0..60).collect();
            order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            let indices = &found[1].as_slice::<u32>().unwrap()[row * k..][..k];
            assert_eq!(indices, order[..k].iter().map(|&i| i as u32).collect::<Vec<_>>());
            let greatest: Vec<f32> = order[..k].iter().map(|&i| values[i] as f32).collect();
            assert_eq!(found[0].as_slice::<f32>().unwrap()[row * k..][..k], greatest);
        }
    }
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

#[test]
fn a_bf16_addend_is_the_third_array() {
    let _alone = crate::alone();
    let r = &mut Random::new(24);
    let [a, b, c] = [[6, 5], [5, 4], [6, 4]].map(|shape| r.tensor(shape).cast(DType::BF16));
    let graph = Graph::new();
    let [a_, b_, c_] = [&a, &b, &c].map(|tensor| graph.constant(tensor.clone()));
    let addend = c_.affine(1.0, 0.0).unwrap();
    let op = MatMul { alpha: Real(2.0), beta: Real(3.0), ..MatMul::new(false, false) };
    let y = graph.record(op, &[&a_, &b_, &addend]).unwrap();
    #[cfg(softmetal)]
    softmetal::counters::take();
    let found = shaders().eval(&y).unwrap().remove(0);
    #[cfg(softmetal)]
    assert!(softmetal::counters::take().commands.keys().any(|name| name.contains("NDArray")));
    let product = (candle(&a).matmul(&candle(&b)).unwrap() * 2.0).unwrap();
    let expected = (product + (candle(&c) * 3.0).unwrap()).unwrap();
    close(&floats(&found), &numbers(&expected), 4e-3);
}

/// The chain of two products with a softmax between them, against the definition: causal or not, with grouped heads.
#[test]
fn attention_by_a_chain_of_calls_is_the_definition() {
    let _alone = crate::alone();
    for (causal, dtype, tolerance) in
        [(false, DType::F32, 1e-5), (true, DType::F32, 1e-5), (true, DType::F16, 2e-3)]
    {
        let r = &mut Random::new(25);
        let (q, k, v) = (r.tensor([2, 12, 4, 8]), r.tensor([2, 14, 2, 8]), r.tensor([2, 14, 2, 8]));
        let op = Attention { scale: Real(0.35), causal, window: None, cached: false, segmented: false };
        let attend = |device: &Device| {
            let graph = Graph::new();
            let [q, k, v] = [&q, &k, &v].map(|tensor| graph.constant(tensor.cast(dtype)));
            let out = q.attention(&k, &v, op.clone(), &[]).unwrap();
            let program = device.compile(&graph, &[out], &[]).unwrap();
            #[cfg(softmetal)]
            softmetal::counters::take();
            floats(&program.run(&[]).unwrap()[0])
        };
        let found = attend(&shaders());
        #[cfg(softmetal)]
        {
            let counted = softmetal::counters::take().commands;
            let softmaxes: u64 =
                counted.iter().filter(|(name, _)| name.contains("SoftMax")).map(|(_, count)| count).sum();
            assert_eq!(softmaxes, 8, "one a head: {counted:?}");
        }
        close(&found, &attend(&Device::reference()), tolerance);
    }
}

/// A mask that the chain does not know leaves attention with the fused kernel.
#[test]
fn attention_with_a_window_stays_with_a_kernel_of_ours() {
    let _alone = crate::alone();
    let r = &mut Random::new(26);
    let q = r.tensor([1, 12, 2, 8]);
    let op = Attention { scale: Real(0.35), causal: true, window: Some(4), cached: false, segmented: false };
    let (found, used) = run(&shaders(), op.clone(), &[q.clone(), q.clone(), q.clone()]);
    assert!(used.is_empty(), "{used:?}");
    let (expected, _) = run(&Device::reference(), op, &[q.clone(), q.clone(), q]);
    close(&floats(&found[0]), &floats(&expected[0]), 1e-5);
}

/// What was measured decides, beside the estimate: a table that praises the framework sends a product there.
#[test]
fn a_table_of_measurements_chooses() {
    let _alone = crate::alone();
    let r = &mut Random::new(27);
    let inputs = [r.tensor([32, 48]), r.tensor([48, 40])];
    let name = metal_candle::backend::metal_facts::read().unwrap().name;
    for (mps, metal, expected) in [(1.0, 2.0, true), (2.0, 1.0, false)] {
        let products = vec![Measured { dtype: "f32".into(), m: 32, n: 40, k: 48, mps, metal }];
        let table = Table { device: name.clone(), version: "0".into(), products };
        let choices = Choices { table: Some(table), ..Choices::default() };
        let (_, used) = run(&Device::metal_with(choices).unwrap(), MatMul::new(false, false), &inputs);
        if cfg!(softmetal) {
            assert_eq!(used.iter().any(|name| name.contains("MPS")), expected, "{used:?}");
        }
    }
}

#[test]
fn what_the_guard_refuses_stays_with_kernels_of_ours() {
    let _alone = crate::alone();
    let r = &mut Random::new(11);
    let (_, used) = run(&shaders(), TopK { k: 17 }, &[r.tensor([2, 40])]);
    assert!(used.is_empty(), "17 are undefined: {used:?}");
    let (_, used) = run(&shaders(), Softmax { axis: 0 }, &[r.tensor([3, 8])]);
    assert!(used.is_empty(), "the framework knows the last axis only: {used:?}");
    let batch = [r.tensor([2, 4, 5]), r.tensor([2, 5, 3])].map(|x| x.cast(DType::BF16));
    let (found, used) = run(&shaders(), MatMul::new(false, false), &batch);
    assert!(used.is_empty(), "arrays of three axes differ from run to run on M5: {used:?}");
    let expected = candle(&batch[0]).matmul(&candle(&batch[1])).unwrap();
    close(&floats(&found[0]), &numbers(&expected), 1e-2);
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

    #[test]
    fn softmax_of_random_shapes(m in 1_usize..30, n in 1_usize..200, log: bool, seed in 0_u64..1 << 40) {
        let _alone = crate::alone();
        rows(&Random::new(seed).spread([m, n], 30.0, 0.0), log);
    }
}

/// Two calls with a kernel of ours between and after them: encoders of three kinds in one command buffer, nothing waits.
#[test]
fn calls_and_launches_take_turns_in_one_command_buffer() {
    let _alone = crate::alone();
    let r = &mut Random::new(12);
    let (a, b) = (r.tensor([8, 8]), r.tensor([8, 8]));
    let graph = Graph::new();
    let [a_, b_] = [&a, &b].map(|tensor| graph.constant(tensor.clone()));
    let y = a_.matmul(&b_).unwrap().silu().unwrap().matmul(&b_).unwrap().affine(2.0, 1.0).unwrap();
    let device = shaders();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    program.run(&[]).unwrap();
    #[cfg(softmetal)]
    {
        softmetal::quiesce();
        softmetal::counters::take();
    }
    let found = program.run(&[]).unwrap().remove(0);
    #[cfg(softmetal)]
    {
        let counted = softmetal::counters::take();
        assert!(counted.command_buffers == 1 && counted.host_waits <= 1, "{counted:?}");
    }
    let b = candle(&b);
    let product = candle(&a).matmul(&b).unwrap().silu().unwrap().matmul(&b).unwrap();
    close(&floats(&found), &numbers(&product.affine(2.0, 1.0).unwrap()), 1e-5);
}
