//! Generation and training on a GPU beside the CPU: a small model with random weights, and SmolLM2.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::inference::Generator;
use metal_candle::models::{Decoder, ModelConfig, ModelFiles, Weights};
use metal_candle::tensor::DType;
use metal_candle::training::{
    Event, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, TrainOptions, Trainer,
};

use crate::memory::gpu;

/// What is loaded onto both devices.
struct Subject {
    config: ModelConfig,
    weights: Weights,
}

impl Subject {
    fn open(folder: impl AsRef<Path>) -> Self {
        let (config, weights) = ModelFiles::open_weights(folder).unwrap();
        Self { config, weights }
    }

    fn small() -> Self {
        Self::open(Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden/llama"))
    }

    /// SmolLM2, if it is here.
    fn smollm2() -> Option<Self> {
        let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
            println!("SKIPPED SmolLM2: METAL_CANDLE_MODEL does not name it");
            return None;
        };
        Some(Self::open(path))
    }

    fn load(&self, device: &Device, dtype: DType) -> Decoder {
        Decoder::load(self.config.clone(), &self.weights, device, dtype, &|_| ()).unwrap()
    }
}

/// Tokens that follow a prompt, each the one with the greatest logit.
fn tokens(subject: &Subject, device: &Device, count: usize) -> Vec<u32> {
    let model = subject.load(device, DType::F32);
    let mut generator = Generator::new(&model, None).unwrap();
    let mut held = vec![5, 17, 101, 42];
    for _ in 0..count {
        let logits = generator.next_logits(&held).unwrap();
        let greatest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        held.push(greatest as u32);
    }
    held.split_off(4)
}

fn same_tokens(subject: &Subject, count: usize) {
    let Some(gpu) = gpu() else { return };
    let expected = tokens(subject, &Device::cpu(0).unwrap(), count);
    let started = std::time::Instant::now();
    assert_eq!(tokens(subject, &gpu, count), expected);
    println!("{count} tokens on the GPU, loading and compiling included: {:?}", started.elapsed());
}

#[test]
fn sixteen_greedy_tokens_are_those_of_the_cpu() {
    same_tokens(&Subject::small(), 16);
}

#[test]
fn smollm2_has_the_64_greedy_tokens_of_the_cpu() {
    if let Some(subject) = Subject::smollm2() {
        same_tokens(&subject, 64);
    }
}

fn options(steps: usize) -> TrainOptions {
    TrainOptions {
        steps,
        batch_size: 2,
        accumulation: 1,
        max_length: 32,
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 1e-3,
            warmup: 0,
            steps,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions::default(),
        eval_every: 0,
        report_every: 1,
        save_every: 0,
        keep_checkpoints: 1,
        patience: 0,
        seed: 3,
        checkpoint_layers: false,
        resume: false,
    }
}

fn losses(subject: &Subject, device: &Device, dtype: DType) -> Vec<f64> {
    let model = subject.load(device, dtype);
    let example = |tokens: &[u32]| Example {
        tokens: tokens.to_vec(),
        supervised: (0..tokens.len()).map(|i| i > 1).collect(),
    };
    let examples = [example(&[5, 17, 101, 42, 7]), example(&[9, 3, 77, 12, 60, 31, 2, 8])];
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let mut trainer = Trainer::new(&model, config, None, options(20), &examples, &[], folder.path()).unwrap();
    let mut losses = Vec::new();
    let observer = &mut |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    trainer.run(&AtomicBool::new(false), observer).unwrap();
    losses
}

/// Twenty steps within a tolerance: 1e-4 for f32, whose sums differ in their last digits only, and 1e-2 for weights in
/// bfloat16, whose products are rounded to 8 bits of mantissa.
fn same_losses(subject: &Subject, dtype: DType, tolerance: f64) {
    let Some(gpu) = gpu() else { return };
    let expected = losses(subject, &Device::cpu(0).unwrap(), dtype);
    let found = losses(subject, &gpu, dtype);
    println!("losses on the GPU {found:?}, on the CPU {expected:?}");
    assert_eq!((expected.len(), found.len()), (20, 20));
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < tolerance, "step {step}: {found}, on the cpu {expected}");
    }
    assert!(expected[19] < expected[0], "{expected:?}");
}

#[test]
fn twenty_training_steps_have_the_losses_of_the_cpu() {
    same_losses(&Subject::small(), DType::F32, 1e-4);
    same_losses(&Subject::small(), DType::BF16, 1e-2);
}

#[test]
fn smollm2_has_the_losses_of_the_cpu_in_twenty_training_steps() {
    if let Some(subject) = Subject::smollm2() {
        same_losses(&subject, DType::F32, 1e-4);
        same_losses(&subject, DType::BF16, 1e-2);
    }
}
