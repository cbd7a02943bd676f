//! Which implementation each level of METAL_CANDLE_BACKEND gives `fast_softmax`, `fast_matmul` and `LoRALayer::forward`,
//! with values and gradients. The variable is read once per process, so every level is tested in its own process.

use std::process::Command;

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::CustomMetalOps;
use metal_candle::training::LoRALayer;

use crate::{difference, greatest, numbers, on_devices};

/// Marks the process that computes for a level.
const CHILD: &str = "METAL_CANDLE_TEST_LEVEL";

#[test]
fn each_level_gives_the_same_values_and_gradients() {
    if let Ok(level) = std::env::var(CHILD) {
        on_devices(|device| {
            softmax(&level, device);
            lora(&level, device);
        });
        return;
    }
    let program = std::env::current_exe().unwrap();
    for level in ["mps", "metal", "balanced", "fast", "portable"] {
        let output = Command::new(&program)
            .args(["--exact", "levels::each_level_gives_the_same_values_and_gradients", "--nocapture"])
            .env("METAL_CANDLE_BACKEND", level)
            .env(CHILD, level)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{level}: {text}{errors}");
    }
}

/// Counts calls of the framework's classes; only the software device counts.
#[cfg(softmetal)]
fn calls(work: impl FnOnce()) -> Option<Vec<(String, u64)>> {
    softmetal::counters::take();
    work();
    let commands = softmetal::counters::take().commands;
    Some(commands.into_iter().filter(|(name, _)| name.starts_with("MPS")).collect())
}

#[cfg(not(softmetal))]
fn calls(work: impl FnOnce()) -> Option<Vec<(String, u64)>> {
    work();
    None
}

/// Asserts that exactly these classes were called on the GPU at level `mps`, and none anywhere else.
fn assert_calls(found: Option<Vec<(String, u64)>>, level: &str, device: &Device, at_mps: &[(&str, u64)]) {
    let expected = if level == "mps" && device.is_metal() { at_mps } else { &[] };
    if let Some(found) = found {
        let found: Vec<(&str, u64)> = found.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(found, expected, "{level} on {device:?}");
    }
}

fn var(seed: u64, dims: &[usize], device: &Device) -> Var {
    let values = numbers(seed, dims).unwrap().to_dtype(DType::F32).unwrap().to_device(device).unwrap();
    Var::from_tensor(&values).unwrap()
}

/// The same numbers in f64 on the CPU, as a variable.
fn exact(x: &Var) -> Var {
    Var::from_tensor(&x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()).unwrap()
}

fn softmax_in_f64(x: &Tensor, axis: usize) -> Tensor {
    let powers = x.broadcast_sub(&x.max_keepdim(axis).unwrap().detach()).unwrap().exp().unwrap();
    powers.broadcast_div(&powers.sum_keepdim(axis).unwrap()).unwrap()
}

fn softmax(level: &str, device: &Device) {
    // The second shape is a view: rows that are not contiguous are copied for the framework.
    for (dims, view) in [(&[5, 33][..], false), (&[4, 3, 20], true)] {
        let x = var(1, dims, device);
        let x64 = exact(&x);
        let seen = |x: &Tensor| if view { x.transpose(0, 1).unwrap() } else { x.clone() };
        let axis = dims.len() - 1;
        let mut gradient = None;
        let found = calls(|| {
            let y = seen(&x).fast_softmax(axis).unwrap();
            let y64 = softmax_in_f64(&seen(&x64), axis);
            // Probabilities are at most 1, so a few roundings of f32.
            assert!(difference(&y, &y64).unwrap() < 1e-6, "{level} {dims:?}");
            let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            gradient = store.get(&x).cloned();
        });
        assert_calls(found, level, device, &[("MPSMatrixSoftMax", 1), ("MPSMatrixSoftMaxGradient", 1)]);
        let loss = softmax_in_f64(&seen(&x64), axis).sqr().unwrap().sum_all().unwrap();
        let expected = loss.backward().unwrap().get(&x64).cloned().unwrap();
        assert!(difference(&gradient.unwrap(), &expected).unwrap() < 1e-6, "{level} {dims:?}");
    }
    // What the framework cannot do goes to our kernel: another axis, and bf16.
    let x = var(2, &[6, 16], device);
    let found = calls(|| {
        let y = x.fast_softmax(0).unwrap();
        assert!(difference(&y, &softmax_in_f64(&exact(&x), 0)).unwrap() < 1e-6);
    });
    assert_calls(found, level, device, &[]);
    let half = x.to_dtype(DType::BF16).unwrap();
    let found = calls(|| {
        let y = half.fast_softmax(1).unwrap();
        let expected =
            softmax_in_f64(&half.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap(), 1);
        // bf16 has 8 bits: candle's unfused operations round the power, the sum and the quotient.
        let units = if level == "portable" { 6.0 } else { 1.0 };
        let most = units * greatest(&expected).unwrap() / 256.0;
        assert!(difference(&y, &expected).unwrap() < most, "{level}");
    });
    assert_calls(found, level, device, &[]);
}

fn lora(level: &str, device: &Device) {
    let (x, a, b) = (var(3, &[2, 9, 24], device), var(4, &[4, 24], device), var(5, &[16, 4], device));
    let layer = LoRALayer::from_tensors(&a, &b, 2.0).unwrap();
    let [layer_a, layer_b] = layer.vars();
    let (mut y, mut gradients) = (None, None);
    let found = calls(|| {
        let result = layer.forward(&x).unwrap();
        let store = result.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        gradients = Some([x.as_tensor(), layer_a, layer_b].map(|t| store.get(t).cloned().unwrap()));
        y = Some(result);
    });
    // Two products forward; for each of them two products backward.
    assert_calls(found, level, device, &[("MPSMatrixMultiplication", 6)]);
    let [x64, a64, b64] = [&x, &a, &b].map(exact);
    let rows = x64.flatten_to(1).unwrap();
    let hidden = rows.matmul(&a64.t().unwrap()).unwrap();
    let expected = (hidden.matmul(&b64.t().unwrap()).unwrap() * 2.0).unwrap().reshape((2, 9, 16)).unwrap();
    let store = expected.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    // Sums of at most 24 terms: some units of f32 relative to the largest element.
    let close = |found: &Tensor, expected: &Tensor, what: &str| {
        let most = 1e-5 * greatest(expected).unwrap();
        assert!(difference(found, expected).unwrap() < most, "{level} on {device:?}: {what}");
    };
    close(&y.unwrap(), &expected, "y");
    for ((found, var), what) in gradients.unwrap().iter().zip([&x64, &a64, &b64]).zip(["dx", "da", "db"]) {
        close(found, store.get(var).unwrap(), what);
    }
}
