//! The library's main paths (training steps, generation, candle's border with gradients, rows of every length) on
//! unfriendly Macs. Each path gives the CPU's numbers, or an error that names the cause; never a wrong number.

mod devices;
mod kills;
mod systems;
mod threads;

#[allow(dead_code, reason = "shared with the tests of candle's tensors")]
#[path = "../../candle/cases.rs"]
mod cases;

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use candle_core::{DType as CandleDType, Device as CandleDevice, Tensor, Var};
use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::inference::Generator;
use metal_candle::ops::{Attention, GlobalNorm, Real, Sample};
use metal_candle::tensor::{DType, HostTensor, TensorSpec};
use metal_candle::training::{Event, Example, LoraConfig, Trainer};
use metal_candle::{Error, Result};

use crate::model::{adapter, options, small, try_load};

/// Generates eight greedy tokens with an adapter.
fn generate(device: &Device) -> Result<Vec<u32>> {
    let model = try_load(&small(), device, DType::F32)?;
    let adapter = adapter(&model).on(device)?;
    let mut generator = Generator::new(&model, Some(&adapter))?;
    let mut held = vec![5, 17, 101, 42];
    for _ in 0..8 {
        let logits = generator.next_logits(&held)?;
        assert!(logits.iter().all(|logit| logit.is_finite()), "logits are numbers");
        let greatest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        held.push(greatest as u32);
    }
    Ok(held.split_off(4))
}

/// Trains an adapter for three steps and returns their losses. `before` is called before the first step.
fn train_after(device: &Device, before: impl FnOnce()) -> Result<Vec<f64>> {
    let model = try_load(&small(), device, DType::F32)?;
    let examples =
        [Example { tokens: vec![5, 17, 101, 42, 7], supervised: vec![false, false, true, true, true] }];
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let mut trainer = Trainer::new(&model, config, None, options(3), &examples, &[], folder.path())?;
    let mut losses = Vec::new();
    before();
    trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    })?;
    Ok(losses)
}

fn train(device: &Device) -> Result<Vec<f64>> {
    train_after(device, || ())
}

/// Computes every operation that gives a row to a threadgroup, for rows that ask for up to 1024 threads, with
/// gradients, and attention of few queries, which asks for 512.
fn rows(device: &Device, n: usize) -> Result<Vec<(&'static str, HostTensor)>> {
    let host = |seed: u64, dims: &[usize]| HostTensor::from_candle(&numbers(seed, dims)).unwrap();
    let graph = Graph::new();
    let rows = 3;
    let x = graph.constant(host(1, &[rows, n]));
    let (w, b) = (graph.constant(host(2, &[n])), graph.constant(host(3, &[n])));
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 7 % n as u32).collect();
    let targets = graph.constant(HostTensor::from_slice(&targets, [rows])?);
    let ones = graph.constant(HostTensor::from_slice(&vec![1.0_f32; rows], [rows])?);
    let mut named = vec![
        ("softmax", x.softmax(1)?),
        ("log_softmax", x.log_softmax(1)?),
        ("rms_norm", x.rms_norm(&w, 1e-5)?),
        ("layer_norm", x.layer_norm(&w, Some(&b), 1e-5)?),
        ("sum", x.sum(1)?),
        ("max", x.max(1)?),
        ("arg_max", x.arg_max()?),
        ("cross_entropy", x.cross_entropy(&targets, &ones)?),
    ];
    let mut gradients = Vec::new();
    for (name, y) in &named[..4] {
        let loss = y.mul(y)?.sum_all()?;
        gradients.push((*name, graph.gradients(&loss, std::slice::from_ref(&x))?.remove(0)));
    }
    let loss = x.cross_entropy(&targets, &ones)?.sum_all()?;
    gradients.push(("cross_entropy", graph.gradients(&loss, std::slice::from_ref(&x))?.remove(0)));
    named.extend(gradients);
    let (values, indices) = x.top_k(6)?;
    let seed = graph.constant(HostTensor::from_slice(&[1_u32, 2], [2])?);
    let settings = graph.constant(HostTensor::from_slice(&[0.7_f32, 0.9, 0.0], [3])?);
    let drawn = x.sample(&settings, &seed, Sample { top_k: 40, stream: 0 })?;
    let norm = graph.record(GlobalNorm, &[&x, &w])?.remove(0);
    named.extend([("top_k", values), ("top_k", indices), ("sample", drawn), ("global_norm", norm)]);
    let [q, k, v] = [(4, 4), (5, 64), (6, 64)].map(|(seed, t)| graph.constant(host(seed, &[1, t, 2, 32])));
    let few = Attention { scale: Real(0.2), causal: true, window: None, cached: false, segmented: false };
    named.push(("attention", q.attention(&k, &v, few, &[])?));
    let outputs: Vec<_> = named.iter().map(|(_, y)| y.clone()).collect();
    let found = device.compile(&graph, &outputs, &[])?.run(&[])?;
    Ok(named.iter().map(|(name, _)| *name).zip(found).collect())
}

/// Numbers between −1 and 1 that a seed decides, as f32 on the CPU.
fn numbers(seed: u64, dims: &[usize]) -> Tensor {
    crate::numbers(seed, dims).unwrap().to_dtype(CandleDType::F32).unwrap()
}

/// The CPU's answers.
struct Expected {
    tokens: Vec<u32>,
    losses: Vec<f64>,
}

fn expected() -> &'static Expected {
    static EXPECTED: OnceLock<Expected> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let cpu = Device::cpu(2).unwrap();
        Expected { tokens: generate(&cpu).unwrap(), losses: train(&cpu).unwrap() }
    })
}

/// Checks losses against the CPU's, as the tests of training do.
fn assert_losses(found: &[f64]) {
    let expected = &expected().losses;
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "step {step}: {found}, on the cpu {expected}");
    }
}

/// Checks rows against the CPU's: 1e-5 of the greatest element where that is above 1, as the tests of operations do.
fn assert_rows(n: usize, found: &[(&str, HostTensor)]) {
    let expected = rows(&Device::cpu(2).unwrap(), n).unwrap();
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        let (found, expected) = (found.to_f64(), expected.to_f64());
        let greatest = expected.iter().fold(1.0_f64, |all, x| all.max(x.abs()));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= 1e-5 * greatest,
                "{name} of {n}, {at}: {found}, on the cpu {expected}"
            );
        }
    }
}

/// Checks that generation, training and rows give the CPU's answers on this device.
fn assert_right(device: &Device) {
    assert_eq!(generate(device).unwrap(), expected().tokens);
    assert_losses(&train(device).unwrap());
    for n in [1000, 5000] {
        assert_rows(n, &rows(device, n).unwrap());
    }
}

/// Computes a case of candle's border and its gradients. candle has no autorelease pools of its own.
fn border(case: &cases::Case, device: &CandleDevice) -> candle_core::Result<Vec<Vec<f64>>> {
    let (_, here) = cases::inputs(case, CandleDType::F32, device)?;
    differentiate(case.fused, &here)
}

fn differentiate(
    f: fn(&[Tensor]) -> candle_core::Result<Tensor>,
    inputs: &[Tensor],
) -> candle_core::Result<Vec<Vec<f64>>> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let store = (&y * cases::fixed(11, y.dims(), &y)?)?.sum_all()?.backward()?;
    let gradients = vars.iter().map(|var| store.get(var).cloned().expect("every input has a gradient"));
    std::iter::once(y.clone()).chain(gradients).map(|x| values(&x)).collect()
}

fn values(x: &Tensor) -> candle_core::Result<Vec<f64>> {
    x.to_device(&CandleDevice::Cpu)?.to_dtype(CandleDType::F64)?.flatten_all()?.to_vec1()
}

/// Checks every case of candle's border: the result and the gradients are those of candle's own operations, or `refused`
/// takes the error.
fn assert_border(refused: impl Fn(&'static str, &str)) {
    objc2::rc::autoreleasepool(|_| {
        let device = CandleDevice::new_metal(0).unwrap();
        for case in cases::cases(true) {
            match border(&case, &device) {
                Err(error) => refused(case.name, &error.to_string()),
                Ok(found) => assert_case(&case, &found),
            }
        }
    });
}

/// Checks a case against candle's own operations, as `tests/candle` does.
fn assert_case(case: &cases::Case, found: &[Vec<f64>]) {
    let (exact, _) = cases::inputs(case, CandleDType::F32, &CandleDevice::Cpu).unwrap();
    let expected = differentiate(case.unfused, &exact).unwrap();
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let greatest = expected.iter().fold(1.0_f64, |all, x| all.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let within = (found - expected).abs() < 1e-5 * greatest;
            assert!(within, "{}, result or gradient {index}: {found}, not {expected}", case.name);
        }
    }
}

fn border_is_right() {
    assert_border(|name, error| panic!("{name}: {error}"));
}

/// Takes the error of a failed step apart: what failed, and the whole text.
fn device_error<T>(result: Result<T>) -> (metal_candle::error::DeviceFault, String) {
    match result {
        Err(error) => match &error {
            Error::Device { fault, .. } => (*fault, error.to_string()),
            other => panic!("another error: {other}"),
        },
        Ok(_) => panic!("it works"),
    }
}

/// A program of 200 dispatches whose result is eight ones, and its input.
fn chain(device: &Device) -> Result<metal_candle::backend::Program> {
    let graph = Graph::new();
    let mut y = graph.input("x", TensorSpec::f32([8]));
    for _ in 0..100 {
        y = y.affine(1.0, 1.0)?.reshape([1, 8])?.softmax(0)?.reshape([8])?;
    }
    device.compile(&graph, &[y], &[])
}
