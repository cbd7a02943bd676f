//! Softmax, log-softmax and their gradients, the greatest elements, and the norms, which stay with kernels of ours.

use candle_core::D;
use metal_candle::ops::{
    LayerNorm, LogSoftmax, LogSoftmaxGrad, Op, Real, RmsNorm, Softmax, SoftmaxGrad, TopK,
};
use metal_candle::tensor::{DType, HostTensor};
use proptest::prelude::*;

use super::{Random, assert_used, candle, close, filled, floats, numbers, run, shaders};

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

/// Rows of which the second has this value in one place, and the others only numbers.
fn with(value: f32) -> HostTensor {
    let mut x = Random::new(11).tensor([3, 12]);
    x.as_mut_slice::<f32>().unwrap()[12 + 5] = value;
    x
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
    softmax_of_huge_values: filled([4, 7], 1e10), false;
    softmax_of_zeros: filled([3, 5], 0.0), false;
    softmax_with_nan: with(f32::NAN), false;
    softmax_with_minus_infinity: with(f32::NEG_INFINITY), false;
    log_softmax_with_nan: with(f32::NAN), true;
    log_softmax_in_f16: Random::new(5).spread([6, 40], 8.0, 0.0).cast(DType::F16), true;
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
fn the_gradient_of_log_softmax_is_that_of_the_definition() {
    let _alone = crate::alone();
    let r = &mut Random::new(12);
    let (dy, y) = (r.tensor([7, 20]), r.spread([7, 20], 1.0, -2.0));
    let (found, used) = run(&shaders(), LogSoftmaxGrad { axis: 1 }, &[dy.clone(), y.clone()]);
    assert_used(&used, "MPSMatrixLogSoftMaxGradient");
    let (g, y) = (candle(&dy), candle(&y));
    let expected = (&g - y.exp().unwrap().broadcast_mul(&g.sum_keepdim(1).unwrap()).unwrap()).unwrap();
    close(&floats(&found[0]), &numbers(&expected), 1e-5);
}

/// Norms of the last axis of two and of three axes, in candle's definition; the framework has none.
fn norms(x: &HostTensor) {
    let n = x.shape().last();
    let (w, b, eps) = (Random::new(13).spread([n], 0.5, 1.0), Random::new(14).tensor([n]), Real(1e-5));
    let x64 = candle(x).to_dtype(candle_core::DType::F64).unwrap();
    let [w64, b64] = [&w, &b].map(|t| candle(t).to_dtype(candle_core::DType::F64).unwrap());
    let scaled = |centred: &candle_core::Tensor| {
        let mean_square = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (mean_square + f64::from(eps.0)).unwrap().sqrt().unwrap();
        centred.broadcast_div(&root).unwrap().broadcast_mul(&w64).unwrap()
    };
    let single = |tensor: candle_core::Tensor| numbers(&tensor.to_dtype(candle_core::DType::F32).unwrap());
    let (found, used) = run(&shaders(), RmsNorm { eps, residual: false }, &[x.clone(), w.clone()]);
    assert!(used.is_empty(), "{used:?}");
    close(&floats(&found[0]), &single(scaled(&x64)), 1e-5);
    let (found, used) = run(&shaders(), LayerNorm { eps, bias: true }, &[x.clone(), w, b]);
    assert!(used.is_empty(), "{used:?}");
    let centred = x64.broadcast_sub(&x64.mean_keepdim(D::Minus1).unwrap()).unwrap();
    let expected = scaled(&centred).broadcast_add(&b64).unwrap();
    close(&floats(&found[0]), &single(expected), 1e-5);
}

macro_rules! norms {
    ($($name:ident: $x:expr;)*) => {
        $(#[test]
        fn $name() {
            let _alone = crate::alone();
            norms(&$x);
        })*
    };
}

norms! {
    norms_of_rows: Random::new(15).tensor([5, 40]);
    norms_of_one_row: Random::new(16).tensor([1, 1]);
    norms_of_three_axes: Random::new(17).tensor([3, 4, 33]);
    norms_of_rows_beyond_the_registers: Random::new(18).tensor([2, 4100]);
    norms_of_tiny_values: Random::new(19).spread([4, 30], 1e-10, 0.0);
    norms_of_tiny_values_of_three_axes: Random::new(20).spread([2, 3, 30], 1e-10, 0.0);
    norms_of_huge_values: Random::new(21).spread([4, 30], 1e10, 0.0);
    norms_of_huge_values_of_three_axes: Random::new(22).spread([2, 3, 30], 1e10, 0.0);
    norms_of_zeros: filled([3, 16], 0.0);
    norms_with_nan: with(f32::NAN);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn softmax_of_random_shapes(m in 1_usize..30, n in 1_usize..200, log: bool, seed in 0_u64..1 << 40) {
        let _alone = crate::alone();
        rows(&Random::new(seed).spread([m, n], 30.0, 0.0), log);
    }
}
