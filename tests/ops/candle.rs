//! The same operations in candle 0.11, in f32.

use candle_core::{D, Device as CandleDevice, Tensor};
use metal_candle::ops::{Attention, BinaryFn, Real, UnaryFn};
use metal_candle::tensor::HostTensor;

use super::cases::Random;
use super::recorded;

/// What the issue asks for: the greatest absolute error.
const TOLERANCE: f32 = 1e-5;

fn to_candle(value: &HostTensor) -> Tensor {
    let data = value.as_slice::<f32>().unwrap();
    Tensor::from_slice(data, value.shape().dims(), &CandleDevice::Cpu).unwrap()
}

fn compare(name: &str, ours: &HostTensor, theirs: &Tensor) {
    assert_eq!(ours.shape().dims(), theirs.dims(), "{name}");
    let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let error =
        ours.as_slice::<f32>().unwrap().iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < TOLERANCE, "{name}: greatest error {error}");
}

/// Weights that candle has quantised, and candle's products with what it makes of them.
#[test]
fn products_with_quantised_weights_agree_with_candle() {
    use candle_core::quantized::{GgmlDType, QTensor};
    use metal_candle::ops::{Blocks, QuantMatMul};

    let device = super::device();
    let r = &mut Random::new(22);
    let (m, n, k) = (5, 12, 512);
    let kinds = [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K];
    for (blocks, kind) in Blocks::ALL.into_iter().zip(kinds) {
        let (x, w) = (r.spread([m, k], 0.1, 0.0), r.spread([n, k], 0.5, 0.0));
        let quantised = QTensor::quantize(&to_candle(&w), kind).unwrap();
        let op = QuantMatMul { blocks, n, k };
        let weight = op.weight(&quantised.data().unwrap()).unwrap();
        let ours = recorded(&[x.clone(), weight], |t| t[0].quant_matmul(&t[1], op.clone()));
        let w = quantised.dequantize(&CandleDevice::Cpu).unwrap();
        let theirs = to_candle(&x).matmul(&w.t().unwrap()).unwrap();
        compare(blocks.name(), &ours.eval(&device).unwrap(), &theirs);
    }
}

#[test]
fn results_agree_with_candle() {
    let device = super::device();
    let r = &mut Random::new(21);
    let (x, y) = (r.tensor([6, 40]), r.tensor([6, 40]));
    let (cx, cy) = (to_candle(&x), to_candle(&y));
    let eval = |values: &[HostTensor], f: &dyn Fn(&[metal_candle::graph::LazyTensor]) -> _| {
        recorded(values, f).eval(&device).unwrap()
    };
    let one = [x.clone()];
    let two = [x.clone(), y.clone()];
    compare("add", &eval(&two, &|t| t[0].add(&t[1])), &(&cx + &cy).unwrap());
    compare("sub", &eval(&two, &|t| t[0].sub(&t[1])), &(&cx - &cy).unwrap());
    compare("mul", &eval(&two, &|t| t[0].mul(&t[1])), &(&cx * &cy).unwrap());
    compare("max", &eval(&two, &|t| t[0].binary(&t[1], BinaryFn::Max)), &cx.maximum(&cy).unwrap());
    compare("exp", &eval(&one, &|t| t[0].unary(UnaryFn::Exp)), &cx.exp().unwrap());
    compare("tanh", &eval(&one, &|t| t[0].unary(UnaryFn::Tanh)), &cx.tanh().unwrap());
    compare("silu", &eval(&one, &|t| t[0].silu()), &cx.silu().unwrap());
    compare("gelu", &eval(&one, &|t| t[0].gelu()), &cx.gelu().unwrap());
    compare("gelu_erf", &eval(&one, &|t| t[0].unary(UnaryFn::GeluErf)), &cx.gelu_erf().unwrap());
    compare("relu", &eval(&one, &|t| t[0].unary(UnaryFn::Relu)), &cx.relu().unwrap());
    compare("square", &eval(&one, &|t| t[0].unary(UnaryFn::Square)), &cx.sqr().unwrap());
    compare("sum", &eval(&one, &|t| t[0].sum(1)), &cx.sum(1).unwrap());
    compare("mean", &eval(&one, &|t| t[0].mean(0)), &cx.mean(0).unwrap());
    compare("max over rows", &eval(&one, &|t| t[0].max(1)), &cx.max(1).unwrap());
    let e = cx.broadcast_sub(&cx.max_keepdim(1).unwrap()).unwrap().exp().unwrap();
    let softmax = e.broadcast_div(&e.sum_keepdim(1).unwrap()).unwrap();
    compare("softmax", &eval(&one, &|t| t[0].softmax(1)), &softmax);
    compare("log_softmax", &eval(&one, &|t| t[0].log_softmax(1)), &softmax.log().unwrap());
    let w = r.spread([40], 0.5, 1.0);
    let mean_square = cx.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let normed = cx.broadcast_div(&(mean_square + 1e-5).unwrap().sqrt().unwrap()).unwrap();
    let normed = normed.broadcast_mul(&to_candle(&w)).unwrap();
    compare("rms_norm", &eval(&[x.clone(), w], &|t| t[0].rms_norm(&t[1], 1e-5)), &normed);
}

#[test]
fn products_agree_with_candle() {
    let device = super::device();
    let r = &mut Random::new(22);
    // Products of 1/√k-sized numbers stay of order one, where 1e-5 means something.
    let (a, b) = (r.spread([33, 600], 0.2, 0.0), r.spread([70, 600], 0.2, 0.0));
    let ours = recorded(&[a.clone(), b.clone()], |t| t[0].linear(&t[1])).eval(&device).unwrap();
    compare("linear", &ours, &to_candle(&a).matmul(&to_candle(&b).t().unwrap()).unwrap());
    let (a, b) = (r.tensor([3, 20, 50]), r.spread([3, 50, 17], 0.2, 0.0));
    let ours = recorded(&[a.clone(), b.clone()], |t| t[0].matmul(&t[1])).eval(&device).unwrap();
    compare("batched matmul", &ours, &to_candle(&a).matmul(&to_candle(&b)).unwrap());
}

#[test]
fn attention_agrees_with_candle() {
    let device = super::device();
    let r = &mut Random::new(23);
    let (batch, t, heads, d) = (2, 70, 3, 32);
    let [q, k, v] = [0; 3].map(|_| r.tensor([batch, t, heads, d]));
    let scale = 1.0 / (d as f32).sqrt();
    let op = Attention { scale: Real(scale), causal: true, window: None, cached: false, segmented: false };
    let ours = recorded(&[q.clone(), k.clone(), v.clone()], |x| x[0].attention(&x[1], &x[2], op, &[]));
    let ours = ours.eval(&device).unwrap();
    let heads_first = |x: &HostTensor| to_candle(x).transpose(1, 2).unwrap().contiguous().unwrap();
    let (q, k, v) = (heads_first(&q), heads_first(&k), heads_first(&v));
    let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), &CandleDevice::Cpu).unwrap();
    let scores =
        (q.matmul(&k.t().unwrap()).unwrap() * f64::from(scale)).unwrap().broadcast_add(&mask).unwrap();
    let e = scores.broadcast_sub(&scores.max_keepdim(3).unwrap()).unwrap().exp().unwrap();
    let weights = e.broadcast_div(&e.sum_keepdim(3).unwrap()).unwrap();
    let theirs = weights.matmul(&v).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
    compare("attention", &ours, &theirs);
}
