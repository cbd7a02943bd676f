//! Generates text: `cargo run --release --example generate -- MODEL "prompt"`.

use std::io::Write;

use metal_candle::backend::Device;
use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    run(&std::env::args().skip(1).collect::<Vec<_>>(), &mut std::io::stdout())
}

pub(crate) fn run(arguments: &[String], out: &mut dyn Write) -> Result<()> {
    let [path, prompt] = arguments else {
        return Err("give the path of a model and a prompt".into());
    };
    let files = ModelFiles::open(path)?;
    let device = Device::best()?;
    let model = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ())?;
    let text = match &files.chat_template {
        Some(template) => template.render(&[json!({"role": "user", "content": prompt})], None, true)?,
        None => prompt.clone(),
    };
    let tokens = files.tokenizer.encode(&text, files.chat_template.is_none())?;
    let mut generator = Generator::new(&model, None)?;
    let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
    let mut show = |piece: &str| out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok();
    let answer = generator.generate(&files.tokenizer, &tokens, &options, &mut show)?;
    writeln!(out, "\n{} tokens in {:.2} s", answer.tokens.len(), answer.decode_seconds)?;
    Ok(())
}
