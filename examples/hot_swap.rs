//! One base model in memory, two adapters that are exchanged between generations:
//! `cargo run --release --example hot_swap -- MODEL ADAPTER ADAPTER "prompt"`.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use metal_candle::backend::Device;
use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::{AdapterParameters, Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::Adapter;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    run(&std::env::args().skip(1).collect::<Vec<_>>(), &mut std::io::stdout())
}

pub(crate) fn run(arguments: &[String], out: &mut dyn Write) -> Result<()> {
    let [path, first, second, prompt] = arguments else {
        return Err("give the path of a model, two adapters and a prompt".into());
    };
    let files = ModelFiles::open(path)?;
    let device = Device::best()?;
    let model = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ())?;
    let place = |folder: &str| -> Result<AdapterParameters> {
        let adapter = Adapter::load(Path::new(folder))?;
        adapter.check(&model.linear_modules())?;
        Ok(adapter.on(&device)?)
    };
    let (one, two) = (place(first)?, place(second)?);
    let tokens = files.tokenizer.encode(prompt, true)?;
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    let mut generator = Generator::new(&model, None)?;
    for (name, adapter) in [("base", None), (first, Some(&one)), (second, Some(&two)), (first, Some(&one))] {
        let begun = Instant::now();
        generator.set_adapter(adapter);
        let exchanged = begun.elapsed().as_secs_f64();
        let answer = generator.generate(&files.tokenizer, &tokens, &options, &mut |_| true)?;
        writeln!(out, "{name}: {:?}", answer.text)?;
        let plans = device.compilations();
        writeln!(out, "  exchanged in {:.3} ms; {plans} plans compiled so far", 1e3 * exchanged)?;
    }
    Ok(())
}
