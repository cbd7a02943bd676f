//! Metal Performance Shaders against kernels of ours against candle without fused kernels: `cargo bench --bench
//! mps_vs_custom`. On other systems than Apple's the CPU takes the place of both.
//!
//! Products at all sizes of a LoRA layer, softmax over sizes and axes, RMS norm, the whole layer, and, with
//! METAL_CANDLE_MODEL naming a Llama's file, a training step of a model. Every result is compared with candle's before it
//! is timed, and every timed result is computed and waited for: `metal-candle bench` explains why that is said.
//! A system or a GPU that the library does not support is skipped with the reason.

#[path = "candle_llama/mod.rs"]
mod candle_llama;
#[path = "devices/mod.rs"]
mod devices;

use std::time::{Duration, Instant};

use candle_core::{D, Tensor};
use criterion::{Criterion, criterion_group};
use devices::Devices;
use metal_candle::Result;
use metal_candle::bench::model::{Sizes, Training, TrainingData};
use metal_candle::bench::{Case, Form, Kind};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::{DType, HostTensor};

const EPS: f64 = 1e-5;

/// Opens the devices, which `main` has opened before.
fn opened() -> Devices {
    devices::open().expect("the devices that were opened at the start")
}

fn tensor(value: &HostTensor, device: &candle_core::Device) -> Tensor {
    let values = value.as_slice::<f32>().expect("f32").to_vec();
    Tensor::from_vec(values, value.shape().dims(), device).expect("as many values as elements")
}

/// Softmax of candle's single operations.
fn softmax(x: &Tensor, axis: usize) -> candle_core::Result<Tensor> {
    let powers = x.broadcast_sub(&x.max_keepdim(axis)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(axis)?)
}

/// The case by candle's single operations.
fn unfused(case: &Case, t: &[Tensor]) -> candle_core::Result<Tensor> {
    match case.kind {
        Kind::MatMul { .. } => t[0].matmul(&t[1].t()?),
        Kind::Softmax { .. } | Kind::SoftmaxInner { .. } => softmax(&t[0], 1),
        Kind::RmsNorm { .. } => {
            let mean = t[0].sqr()?.mean_keepdim(D::Minus1)?;
            t[0].broadcast_div(&(mean + EPS)?.sqrt()?)?.broadcast_mul(&t[1])
        }
        Kind::Lora { .. } => {
            let low = t[0].matmul(&t[2].t()?)?.matmul(&t[3].t()?)?;
            t[0].matmul(&t[1].t()?)? + (low * 2.0)?
        }
        Kind::LayerNorm { .. } | Kind::Attention { .. } => candle_core::bail!("is not measured here"),
    }
}

/// The greatest difference relative to the greatest element must be rounding.
fn check(name: &str, ours: &[f64], theirs: &Tensor) {
    let theirs: Vec<f32> =
        theirs.flatten_all().and_then(|t| t.to_vec1()).expect("candle's result can be read");
    let scale = ours.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let differences = ours.iter().zip(&theirs).map(|(a, &b)| (a - f64::from(b)).abs());
    let apart = differences.fold(0.0_f64, |a, x| if x.is_nan() { f64::INFINITY } else { a.max(x) });
    assert!(
        ours.len() == theirs.len() && apart <= 1e-4 * scale,
        "{name}: candle differs by {apart:e} of {scale}"
    );
}

fn group(c: &mut Criterion, name: &str, kinds: &[Kind]) {
    let Devices { ours, candle } = opened();
    for &kind in kinds {
        let case = Case { kind, dtype: DType::F32, backward: false };
        let mut group = c.benchmark_group(format!("{name}/{}", case.shape()));
        group.sample_size(20).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        let inputs: Vec<Tensor> =
            (0..case.inputs().len()).map(|index| tensor(&case.values(index, 0), &candle)).collect();
        let theirs = unfused(&case, &inputs).expect("candle's result");
        for (device_name, device) in &ours {
            let program = case.program(device, Form::One).expect("a program");
            let mut outputs = program.run(&[]).expect("a run");
            check(name, &outputs[0].to_f64(), &theirs);
            group.bench_function(*device_name, |b| {
                b.iter(|| program.run_into(&[], &mut outputs).expect("a run"));
            });
        }
        group.bench_function("candle", |b| {
            b.iter(|| {
                let y = unfused(&case, &inputs).expect("a result");
                candle.synchronize().expect("the end of the work");
                y
            });
        });
        group.finish();
    }
}

fn matmul(c: &mut Criterion) {
    let mut kinds = Vec::new();
    for m in [1, 128] {
        for d in [512, 1024, 2048] {
            for (n, k) in [(d, d), (8, d), (d, 8)] {
                kinds.push(Kind::MatMul { m, n, k });
            }
        }
    }
    group(c, "matmul", &kinds);
}

fn softmaxes(c: &mut Criterion) {
    let row = |(rows, n)| Kind::Softmax { rows, n };
    let mut kinds = [(1, 1024), (64, 1024), (1024, 64), (512, 576), (32 * 8 * 128, 128)].map(row).to_vec();
    kinds.extend([(8, 128, 128), (1, 1024, 64)].map(|(outer, n, inner)| Kind::SoftmaxInner {
        outer,
        n,
        inner,
    }));
    group(c, "softmax", &kinds);
}

fn rms_norm(c: &mut Criterion) {
    let shapes = [(1, 1024), (64, 1024), (512, 576), (2048, 2048)];
    group(c, "rms_norm", &shapes.map(|(rows, n)| Kind::RmsNorm { rows, n }));
}

fn lora(c: &mut Criterion) {
    let shapes = [(1, 512), (1, 1024), (1, 2048), (128, 512), (128, 1024), (128, 2048)];
    group(c, "lora", &shapes.map(|(rows, d)| Kind::Lora { rows, d }));
}

/// A whole step: forward, backward, clipping and AdamW of LoRA on q and v.
fn training_step(c: &mut Criterion) {
    let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
        println!("SKIPPED training_step: set METAL_CANDLE_MODEL to a Llama's file");
        return;
    };
    let (sizes, scratch) = (Sizes::default(), std::env::temp_dir());
    let mut group = c.benchmark_group(format!("training step/{}x{}", sizes.rows, sizes.length));
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(10));
    let mut run = || -> Result<()> {
        let (config, weights) = ModelFiles::open_weights(&path)?;
        let mut theirs = None;
        let Devices { ours, candle } = opened();
        for (device_name, device) in ours {
            let model = Decoder::load(config.clone(), &weights, &device, DType::F32, &|_| ())?;
            let data = TrainingData::new(sizes, &model)?;
            let mut training = Training::new(&model, &data, &scratch)?;
            let start = training.adapter()?;
            let losses = [training.step()?.1, training.step()?.1];
            let theirs = theirs.get_or_insert_with(|| {
                let mut step = candle_llama::Step::new(&config, &weights, &start, sizes, &candle)
                    .expect("a Llama without scaled rotation");
                let losses = [step.run().expect("a step"), step.run().expect("a step")];
                (step, losses)
            });
            for (ours, theirs) in losses.iter().zip(theirs.1) {
                assert!((ours - theirs).abs() < 1e-3 * ours, "losses {losses:?}, candle's {:?}", theirs);
            }
            group.bench_function(device_name, |b| {
                b.iter_custom(|count| {
                    let begun = Instant::now();
                    (0..count).for_each(|_| _ = training.step().expect("a step"));
                    begun.elapsed()
                });
            });
        }
        if let Some((mut step, _)) = theirs {
            group.bench_function("candle", |b| b.iter(|| step.run().expect("a step")));
        }
        Ok(())
    };
    run().expect("a model that can be trained");
    group.finish();
}

criterion_group!(benches, matmul, softmaxes, rms_norm, lora, training_step);

fn main() {
    if let Err(reason) = devices::open() {
        println!("SKIPPED mps_vs_custom: {reason}");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
