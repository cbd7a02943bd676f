//! A training step, prefill and decode of a real model: `cargo bench --bench model`.
//!
//! The model is METAL_CANDLE_MODEL, SmolLM2-135M-Instruct for the figures in BENCHMARKS.md. Prints one JSON object:
//! medians of several runs, in tokens a second, and the greatest resident memory of the process. The job is the one
//! of compare/torch_job.py; METAL_CANDLE_JOB=train or generate does only one half.

use std::time::Instant;

use metal_candle::backend::Device;
use metal_candle::inference::Generator;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::batches::Batch;
use metal_candle::training::{
    Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets, TrainOptions, Trainer,
};

const ROWS: usize = 4;
const LENGTH: usize = 128;
const PREFILL: usize = 256;
const DECODE: usize = 64;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The greatest resident memory so far, where the system tells.
fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| 100 + (i * 7919 % 40_000) as u32).collect()
}

/// All tokens of 4 x 128 are trained, r = 8 on q and v, as torch's job does.
fn training(model: &Decoder) -> f64 {
    let config = LoraConfig {
        targets: Targets::List(vec!["q_proj".to_owned(), "v_proj".to_owned()]),
        ..LoraConfig::default()
    };
    let options = TrainOptions {
        steps: 1000,
        batch_size: ROWS,
        accumulation: 1,
        max_length: LENGTH,
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 1e-4,
            warmup: 0,
            steps: 1000,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions::default(),
        eval_every: 0,
        report_every: 1,
        save_every: 0,
        keep_checkpoints: 1,
        patience: 0,
        seed: 0,
        checkpoint_layers: false,
        resume: false,
    };
    let example = Example { tokens: ids(LENGTH), supervised: vec![true; LENGTH] };
    let out = std::env::temp_dir();
    let examples = [example];
    let mut trainer = Trainer::new(model, config, None, options, &examples, &[], &out).expect("a trainer");
    let ids = ids(ROWS * LENGTH);
    let supervised: Vec<u32> =
        (0..ROWS * LENGTH).filter(|i| i % LENGTH != LENGTH - 1).map(|i| i as u32).collect();
    let batch = Batch {
        rows: ROWS,
        length: LENGTH,
        targets: supervised.iter().map(|&at| ids[at as usize + 1]).collect(),
        supervised,
        ids,
        real_tokens: ROWS * LENGTH,
    };
    let step = |trainer: &mut Trainer<'_>| {
        let start = Instant::now();
        trainer.train_on(std::slice::from_ref(&batch)).expect("a step");
        (ROWS * LENGTH) as f64 / start.elapsed().as_secs_f64()
    };
    step(&mut trainer);
    median((0..5).map(|_| step(&mut trainer)).collect())
}

fn generation(model: &Decoder) -> (f64, f64) {
    let mut generator = Generator::new(model, None).expect("a generator");
    let prompt = ids(PREFILL);
    let mut prefill = Vec::new();
    for round in 0..6 {
        generator.reset();
        let start = Instant::now();
        generator.read(&prompt, DECODE + 1).expect("a prompt");
        if round > 0 {
            prefill.push(PREFILL as f64 / start.elapsed().as_secs_f64());
        }
    }
    let mut decode = Vec::new();
    for round in 0..4 {
        generator.reset();
        let mut tokens = ids(16);
        generator.read(&tokens, DECODE + 1).expect("a prompt");
        let start = Instant::now();
        for _ in 0..DECODE {
            let logits = generator.next_logits(&tokens).expect("logits");
            let best =
                logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
            tokens.push(best);
        }
        if round > 0 {
            decode.push(DECODE as f64 / start.elapsed().as_secs_f64());
        }
    }
    (median(prefill), median(decode))
}

fn main() {
    let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
        println!(
            "SKIPPED: set METAL_CANDLE_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf (`metal-candle pull` prints its path)"
        );
        return;
    };
    let job = std::env::var("METAL_CANDLE_JOB").unwrap_or_default();
    let (config, weights) = ModelFiles::open_weights(path).expect("a model");
    let device = Device::cpu(2).expect("a device");
    let model = Decoder::load(config, &weights, &device, DType::F32, &|_| ()).expect("a model");
    let mut fields = Vec::new();
    if job != "generate" {
        fields.push(format!("\"training\": {:.1}", training(&model)));
    }
    if job != "train" {
        let (prefill, decode) = generation(&model);
        fields.push(format!("\"prefill\": {prefill:.1}, \"decode\": {decode:.1}"));
    }
    if let Some(bytes) = peak_bytes() {
        fields.push(format!("\"peak_bytes\": {bytes}"));
    }
    println!("{{{}}}", fields.join(", "));
}
