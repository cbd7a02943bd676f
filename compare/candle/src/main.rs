//! candle-transformers as a peer of `metal-candle bench generate`: one JSON line at a time, as compare/models.py speaks it.
//!
//!     compare-candle file|f32
//!
//! `file` computes with a GGUF file's blocks, `f32` with a folder's floats.

use std::io::BufRead;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::{Value, json};

enum Model {
    Floats { model: Box<Llama>, config: Config, cache: Box<Cache> },
    Blocks(Box<ModelWeights>),
}

struct Job {
    model: Model,
    prompt: Vec<u32>,
    tokens: usize,
    logits: Vec<f32>,
    position: usize,
}

impl Job {
    fn new(request: &Value, blocks: bool) -> Result<Self> {
        let text = |name: &str| request[name].as_str().unwrap_or_default().to_owned();
        let model = if blocks {
            let mut file = std::fs::File::open(text("file"))?;
            let content = gguf_file::Content::read(&mut file)?;
            Model::Blocks(Box::new(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?))
        } else {
            let folder = text("folder");
            let config = std::fs::read_to_string(format!("{folder}/config.json"))?;
            let config: LlamaConfig = serde_json::from_str(&config).map_err(candle_core::Error::wrap)?;
            let config: Config = config.into_config(false);
            let file = format!("{folder}/model.safetensors");
            // SAFETY: nothing else writes to the file.
            let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu)? };
            let model = Box::new(Llama::load(weights, &config)?);
            let cache = Box::new(Cache::new(true, DType::F32, &config, &Device::Cpu)?);
            Model::Floats { model, config, cache }
        };
        let ids = request["prompt"].as_array().map(Vec::as_slice).unwrap_or_default();
        let prompt = ids.iter().filter_map(|id| Some(id.as_u64()? as u32)).collect();
        let tokens = request["tokens"].as_u64().unwrap_or_default() as usize;
        Ok(Self { model, prompt, tokens, logits: Vec::new(), position: 0 })
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<()> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match &mut self.model {
            Model::Floats { model, cache, .. } => model.forward(&input, self.position, cache)?,
            Model::Blocks(model) => model.forward(&input, self.position)?,
        };
        self.position += tokens.len();
        self.logits = logits.squeeze(0)?.to_vec1()?;
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        self.position = 0;
        if let Model::Floats { config, cache, .. } = &mut self.model {
            **cache = Cache::new(true, DType::F32, config, &Device::Cpu)?;
        }
        let prompt = self.prompt.clone();
        self.forward(&prompt)
    }

    fn time(&mut self) -> Result<Value> {
        let begun = Instant::now();
        self.read()?;
        let prefill = begun.elapsed().as_secs_f64();
        let (begun, mut tokens) = (Instant::now(), Vec::new());
        for _ in 0..self.tokens {
            let best = self.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            tokens.push(best.map_or(0, |(id, _)| id as u32));
            self.forward(&tokens[tokens.len() - 1..].to_vec())?;
        }
        let decode = begun.elapsed().as_secs_f64();
        Ok(json!({"prefill": prefill, "decode": decode, "continuation": tokens, "peak_bytes": peak_bytes()}))
    }
}

/// The greatest resident memory so far, where the system tells.
fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn prepare(request: &Value, blocks: bool) -> Result<(Job, Value)> {
    let mut job = Job::new(request, blocks)?;
    job.read()?;
    let bytes: Vec<u8> = job.logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(request["out"].as_str().unwrap_or_default(), bytes)?;
    let threads = candle_core::utils::get_num_threads();
    let answer = json!({
        "device": format!("candle-transformers 0.11, cpu, {threads} threads"),
        "form": if blocks { "as in the file" } else { "f32" },
        "synchronised": "each call returns with its logits, which are read",
    });
    Ok((job, answer))
}

fn main() -> Result<()> {
    let blocks = std::env::args().nth(1).as_deref() == Some("file");
    println!("{}", json!({"hello": true}));
    let mut job = None;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?).map_err(candle_core::Error::wrap)?;
        let answer = match &mut job {
            Some(job) if request.get("time").is_some() => Job::time(job),
            _ => prepare(&request, blocks).map(|(made, answer)| {
                job = Some(made);
                answer
            }),
        };
        println!("{}", answer.unwrap_or_else(|error| json!({"error": error.to_string()})));
    }
    Ok(())
}
