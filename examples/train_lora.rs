//! Fine-tunes a model by LoRA: `cargo run --release --example train_lora -- MODEL FOLDER [STEPS]` writes the adapter.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::data::{Columns, examples, read_rows};
use metal_candle::training::{Event, LoraConfig, Schedule, ScheduleKind, TrainOn, TrainOptions, Trainer};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    run(&std::env::args().skip(1).collect::<Vec<_>>(), &mut std::io::stdout())
}

pub(crate) fn run(arguments: &[String], out: &mut dyn Write) -> Result<()> {
    let [path, folder, rest @ ..] = arguments else { return Err("give a model and a folder".into()) };
    let steps = rest.first().map_or(Ok(40), |steps| steps.parse())?;
    let files = ModelFiles::open(path)?;
    let model = Decoder::load(files.config.clone(), &files.weights, &Device::best()?, DType::F32, &|_| ())?;
    let max_length = files.config.context.min(128);
    let read = |name: &str| -> Result<_> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/shell").join(name);
        Ok(examples(&read_rows(&file, &Columns::default())?, &files, TrainOn::Completion, max_length)?
            .examples)
    };
    let (train, valid) = (read("train.jsonl")?, read("valid.jsonl")?);
    let (kind, learning_rate) = (ScheduleKind::Cosine, 2e-3);
    let options = TrainOptions {
        schedule: Schedule { kind, learning_rate, warmup: steps / 10, steps, minimum: 0.0 },
        optimizer: Default::default(),
        steps,
        max_length,
        batch_size: 4,
        accumulation: 1,
        eval_every: 0,
        report_every: 10,
        save_every: 0,
        keep_checkpoints: 1,
        patience: 0,
        seed: 0,
        checkpoint_layers: false,
        resume: false,
    };
    let (lora, base) = (LoraConfig::default(), files.base_model.clone());
    let mut trainer = Trainer::new(&model, lora, base, options, &train, &valid, Path::new(folder))?;
    let summary = trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Step { step, loss, .. } = event {
            let _ = writeln!(out, "step {step}: loss {loss:.4}");
        }
    })?;
    let before = summary.first_valid_loss.unwrap_or(f64::NAN);
    let after = summary.best.map_or(f64::NAN, |(loss, _)| loss);
    writeln!(out, "validation loss {before:.4} -> {after:.4}, adapter in {folder}")?;
    Ok(())
}
