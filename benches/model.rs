//! A training step, prefill and decode of a real model: `cargo bench --bench model`, as `metal-candle bench train` and
//! `bench generate` measure them.
//!
//! The model is METAL_CANDLE_MODEL. Prints one JSON object: medians of several runs, in tokens a second.
//! METAL_CANDLE_JOB=train or generate does only one half.

use metal_candle::Result;
use metal_candle::backend::Device;
use metal_candle::bench::model::{Generation, Sizes, Training, TrainingData};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
        println!("SKIPPED: set METAL_CANDLE_MODEL to a model's file (`metal-candle pull` prints its path)");
        return Ok(());
    };
    let job = std::env::var("METAL_CANDLE_JOB").unwrap_or_default();
    let (config, weights) = ModelFiles::open_weights(path)?;
    let device = Device::cpu(2)?;
    let model = Decoder::load(config, &weights, &device, DType::F32, &|_| ())?;
    let sizes = Sizes::default();
    let mut fields = Vec::new();
    if job != "generate" {
        let data = TrainingData::new(sizes, &model)?;
        let mut training = Training::new(&model, &data, &std::env::temp_dir())?;
        training.step()?;
        let seconds = (0..5).map(|_| Ok(training.step()?.0)).collect::<Result<_>>()?;
        fields.push(format!("\"training\": {:.1}", training.tokens() as f64 / median(seconds)));
    }
    if job != "train" {
        let mut generation = Generation::new(&model, None, sizes)?;
        let runs = (0..5).map(|_| generation.run()).collect::<Result<Vec<_>>>()?;
        let prefill = median(runs.iter().map(|run| run.prefill).collect());
        let decode = median(runs.iter().map(|run| run.decode).collect());
        fields.push(format!("\"prefill\": {:.1}", sizes.prompt as f64 / prefill));
        fields.push(format!("\"decode\": {:.1}", sizes.tokens as f64 / decode));
    }
    println!("{{{}}}", fields.join(", "));
    Ok(())
}
