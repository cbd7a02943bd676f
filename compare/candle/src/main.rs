//! Prefill of 256 tokens and decoding of 64 by candle-transformers, f32, on the folder given as the argument.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};

const PREFILL: usize = 256;
const DECODE: usize = 64;

fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| 100 + (i * 7919 % 40_000) as u32).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).expect("a model's folder");
    let text = std::fs::read_to_string(format!("{folder}/config.json"))?;
    let config: LlamaConfig = serde_json::from_str(&text).map_err(candle_core::Error::wrap)?;
    let config: Config = config.into_config(false);
    let device = Device::Cpu;
    let file = format!("{folder}/model.safetensors");
    // SAFETY: nothing else writes to the file.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &device)? };
    let model = Llama::load(weights, &config)?;
    let forward = |tokens: &[u32], position: usize, cache: &mut Cache| -> Result<Vec<f32>> {
        let input = Tensor::new(tokens, &device)?.unsqueeze(0)?;
        model.forward(&input, position, cache)?.squeeze(0)?.to_vec1()
    };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let mut cache = Cache::new(true, DType::F32, &config, &device)?;
        let start = Instant::now();
        forward(&ids(PREFILL), 0, &mut cache)?;
        if round > 0 {
            prefill.push(PREFILL as f64 / start.elapsed().as_secs_f64());
        }
    }
    for round in 0..4 {
        let mut cache = Cache::new(true, DType::F32, &config, &device)?;
        let mut logits = forward(&ids(16), 0, &mut cache)?;
        let start = Instant::now();
        for step in 0..DECODE {
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
            logits = forward(&[best], 16 + step, &mut cache)?;
        }
        if round > 0 {
            decode.push(DECODE as f64 / start.elapsed().as_secs_f64());
        }
    }
    println!("{{\"prefill\": {:.1}, \"decode\": {:.1}}}", median(prefill), median(decode));
    Ok(())
}
