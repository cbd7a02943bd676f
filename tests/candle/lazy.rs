//! Recordings that begin and end with candle's tensors, and adapters over them.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use metal_candle::backend;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::tensor::HostTensor;
use metal_candle::training::{LoRALayer, LoraConfig};

use crate::{difference, numbers, on_devices};

fn on(device: &Device, seed: u64, dims: &[usize]) -> Tensor {
    numbers(seed, dims).unwrap().to_dtype(DType::F32).unwrap().to_device(device).unwrap()
}

fn engines() -> Vec<backend::Device> {
    let mut engines = vec![backend::Device::cpu(2).unwrap(), backend::Device::reference()];
    if cfg!(any(target_vendor = "apple", softmetal)) {
        engines.push(backend::Device::metal().unwrap());
    }
    engines
}

#[test]
fn a_recording_goes_from_candle_to_candle_on_every_device() {
    on_devices(|device| {
        let x = on(device, 1, &[6, 8]);
        // A part of a transpose, with strides of its own.
        let view = x.t().unwrap().narrow(0, 2, 4).unwrap();
        let expected =
            (view.sqr().unwrap() + view.narrow(1, 0, 1).unwrap().broadcast_as((4, 6)).unwrap()).unwrap();
        for engine in engines() {
            let graph = Graph::new();
            let lazy = graph.candle(&view).unwrap();
            let first = graph.candle(&view.narrow(1, 0, 1).unwrap()).unwrap();
            let y = lazy.mul(&lazy).unwrap().add(&first).unwrap().to_candle(&engine).unwrap();
            assert!(y.device().is_cpu());
            let error = difference(&y, &expected).unwrap();
            assert!(error < 1e-6, "{engine:?}: {error}");
            let alone = LazyTensor::try_from(&view).unwrap().softmax(1).unwrap().to_candle(&engine).unwrap();
            let total = alone.sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((total - 4.0).abs() < 1e-5, "{engine:?}: {total}");
        }
    });
}

#[test]
fn host_tensors_go_over_and_back() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::U32] {
        let x = (numbers(3, &[5, 7]).unwrap() * 50.0).unwrap().abs().unwrap().to_dtype(dtype).unwrap();
        let host = HostTensor::from_candle(&x.t().unwrap()).unwrap();
        assert_eq!(host.shape().dims(), [7, 5]);
        assert_eq!(difference(&host.to_candle().unwrap(), &x.t().unwrap()).unwrap(), 0.0, "{dtype:?}");
    }
    let error = HostTensor::from_candle(&Tensor::zeros(3, DType::I64, &Device::Cpu).unwrap()).unwrap_err();
    assert!(error.to_string().contains("I64"), "{error}");
}

/// The CPU reads candle's own memory, so a later run sees a later value.
#[test]
fn a_tensor_on_the_cpu_is_read_where_it_lies() {
    let var = Var::new(&[1_f32, 2.0, 3.0], &Device::Cpu).unwrap();
    let engine = backend::Device::cpu(1).unwrap();
    let y = LazyTensor::try_from(&var.detach()).unwrap().affine(2.0, 0.0).unwrap();
    assert_eq!(y.to_candle(&engine).unwrap().to_vec1::<f32>().unwrap(), [2.0, 4.0, 6.0]);
    var.set(&Tensor::new(&[5_f32, 6.0, 7.0], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(y.to_candle(&engine).unwrap().to_vec1::<f32>().unwrap(), [10.0, 12.0, 14.0]);
    let error = LazyTensor::try_from(var.as_tensor()).unwrap_err();
    assert!(error.to_string().contains("variable"), "{error}");
}

#[test]
fn an_adapter_over_candles_tensors_learns_and_merges() {
    on_devices(|device| {
        let (w, x, target) = (on(device, 1, &[12, 10]), on(device, 2, &[9, 10]), on(device, 3, &[9, 12]));
        let config = LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
        let layer = LoRALayer::new(&config, "q_proj", (10, 12), DType::F32, device).unwrap();
        assert_eq!(layer.scale(), 2.0);
        let base = x.matmul(&w.t().unwrap()).unwrap();
        assert!(difference(&layer.forward_with(&x, &w).unwrap(), &base).unwrap() < 1e-5, "b begins at zero");
        let loss =
            || (layer.forward_with(&x, &w).unwrap() - &target).unwrap().sqr().unwrap().mean_all().unwrap();
        let start = loss().to_scalar::<f32>().unwrap();
        let vars = layer.vars().map(Clone::clone).to_vec();
        let mut optimizer = candle_nn::AdamW::new_lr(vars, 0.05).unwrap();
        for _ in 0..20 {
            optimizer.backward_step(&loss()).unwrap();
        }
        let end = loss().to_scalar::<f32>().unwrap();
        assert!(end < 0.7 * start, "{device:?}: {start} to {end}");
        let together = layer.forward_with(&x, &w).unwrap();
        let apart = (&base + layer.forward(&x).unwrap()).unwrap();
        assert!(difference(&together, &apart).unwrap() < 1e-5);
        let merged = x.matmul(&layer.merged(&w).unwrap().t().unwrap()).unwrap();
        assert!(difference(&together, &merged).unwrap() < 1e-5);
    });
}
