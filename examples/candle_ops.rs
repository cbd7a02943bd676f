//! Fused operations in a model of candle's tensors, trained by candle's own `backward`:
//! `cargo run --release --example candle_ops`.

use std::io::Write;

use candle_core::{DType, Tensor, Var};
use metal_candle::backend::Device;
use metal_candle::{AttentionMask, CustomMetalOps};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    run(&[], &mut std::io::stdout())
}

pub(crate) fn run(_arguments: &[String], out: &mut dyn Write) -> Result<()> {
    let device = Device::best()?.candle()?;
    // Numbers from -1 to 1 that look random.
    let numbers = |seed: f64, rows: usize, columns: usize| {
        let count = Tensor::arange(0.0, (rows * columns) as f32, &device)?;
        count.affine(12.9898, seed)?.sin()?.reshape((rows, columns))
    };
    let (tokens, heads, width, classes, rank) = (16, 4, 64, 32, 16);
    let x = numbers(1.0, tokens, width)?;
    let weight = numbers(2.0, classes, width)?;
    let targets = Tensor::arange(0_u32, tokens as u32, &device)?;
    let norm = Var::ones(width, DType::F32, &device)?;
    let a = Var::from_tensor(&(numbers(3.0, rank, width)? * 0.1)?)?;
    let b = Var::zeros((classes, rank), DType::F32, &device)?;
    let forward = || -> Result<Tensor> {
        let hidden = x.rms_norm_fused(&norm, 1e-5)?;
        // A view: neither it nor the way back is a copy.
        let split = hidden.reshape((1, tokens, heads, width / heads))?.transpose(1, 2)?;
        let mixed = split.attention_fused(&split, &split, AttentionMask::Causal, 0.25)?;
        let mixed = (mixed.transpose(1, 2)?.reshape((tokens, width))? + &x)?;
        Ok(mixed.lora_forward_fused(&weight, &a, &b, 2.0)?)
    };
    for step in 0..=80 {
        let loss = forward()?.cross_entropy_fused(&targets)?;
        if step % 20 == 0 {
            writeln!(out, "step {step}: loss {:.4}", loss.to_scalar::<f32>()?)?;
        }
        let gradients = loss.backward()?;
        for var in [&norm, &a, &b] {
            let gradient = gradients.get(var).ok_or("every variable has a gradient")?;
            var.set(&(var.as_tensor() - (gradient * 0.05)?)?)?;
        }
    }
    let (_, classes) = forward()?.softmax_fused(1)?.top_k(1)?;
    writeln!(out, "most probable: {:?}", classes.flatten_all()?.to_vec1::<u32>()?)?;
    Ok(())
}
