//! Fused operations among candle's own, and what becomes of gradients.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use metal_candle::CustomMetalOps;

use crate::{difference, numbers, on_devices};

/// candle's own fused norm has no backward, so what lies before it learns nothing; ours has one.
#[test]
fn training_through_candles_norm_loses_the_gradient_and_through_ours_does_not() {
    let cpu = &Device::Cpu;
    let x = numbers(1, &[8, 16]).unwrap().to_dtype(DType::F32).unwrap();
    let target = numbers(2, &[8, 16]).unwrap().to_dtype(DType::F32).unwrap();
    let weight = Tensor::ones(16, DType::F32, cpu).unwrap();
    let train = |norm: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| {
        let w = Var::from_tensor(&numbers(3, &[16, 16]).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
        let before = w.as_tensor().copy().unwrap();
        let mut optimizer = candle_nn::SGD::new(vec![w.clone()], 0.5).unwrap();
        let mut losses = Vec::new();
        for _ in 0..20 {
            let y = norm(&x.matmul(&w).unwrap()).unwrap();
            let loss = (y - &target).unwrap().sqr().unwrap().mean_all().unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
            optimizer.backward_step(&loss).unwrap();
        }
        (difference(&before, &w).unwrap(), losses)
    };
    let (moved, losses) = train(&|x| candle_nn::ops::rms_norm(x, &weight, 1e-5));
    assert_eq!((moved, losses[0]), (0.0, losses[19]), "candle's norm passes no gradient on");
    let (moved, losses) = train(&|x| x.rms_norm_fused(&weight, 1e-5));
    assert!(moved > 0.01 && losses[19] < 0.9 * losses[0], "{moved}, {losses:?}");
}

#[test]
fn a_network_of_candles_and_our_operations_learns() {
    on_devices(|device| {
        let vars = VarMap::new();
        let builder = VarBuilder::from_varmap(&vars, DType::F32, device);
        let first = candle_nn::linear(12, 24, builder.pp("first")).unwrap();
        let last = candle_nn::linear(24, 5, builder.pp("last")).unwrap();
        let norm = builder.pp("norm").get_with_hints(24, "weight", candle_nn::Init::Const(1.0)).unwrap();
        let x = numbers(4, &[10, 12]).unwrap().to_dtype(DType::F32).unwrap().to_device(device).unwrap();
        let targets: Vec<u32> = (0..10).map(|i| i % 5).collect();
        let targets = Tensor::new(targets, device).unwrap();
        let mut optimizer = candle_nn::AdamW::new_lr(vars.all_vars(), 0.02).unwrap();
        let step = || {
            use candle_nn::Module;
            let hidden = first.forward(&x)?.gelu()?;
            let (hidden, sum) = hidden.add_rms_norm_fused(&hidden.silu()?, &norm, 1e-5)?;
            last.forward(&(hidden + sum.softmax_fused(1)?)?)?.cross_entropy_fused(&targets)
        };
        let start = step().unwrap().to_scalar::<f32>().unwrap();
        for _ in 0..15 {
            optimizer.backward_step(&step().unwrap()).unwrap();
        }
        let end = step().unwrap().to_scalar::<f32>().unwrap();
        assert!(end < 0.6 * start, "{device:?}: {start} to {end}");
    });
}

#[test]
fn a_result_outlives_its_inputs_and_threads_may_share_tensors() {
    let x = numbers(5, &[64, 64]).unwrap().to_dtype(DType::F32).unwrap();
    let expected = x.softmax_fused(1).unwrap();
    let found: Vec<Tensor> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| x.softmax_fused(1).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    drop(x);
    for result in found {
        assert_eq!(difference(&result, &expected).unwrap(), 0.0);
    }
}
