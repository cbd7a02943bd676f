//! The host's own time for a dispatch: the encoder takes every call and does nothing meanwhile.

use std::time::{Duration, Instant};

use metal_candle::backend::Device;
use metal_candle::inference::Generator;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;

/// Steps of which the fastest counts: what else the machine does can only add.
const STEPS: usize = 200;

/// The fastest decode step of SmolLM2's first layers, and its dispatches.
fn step(layers: usize) -> (Duration, u64) {
    let path = std::env::var_os("METAL_CANDLE_MODEL").expect("METAL_CANDLE_MODEL names the model");
    let (mut config, weights) = ModelFiles::open_weights(path).unwrap();
    config.layers = layers;
    let device = Device::metal().unwrap();
    let model = Decoder::load(config, &weights, &device, DType::F32, &|_| ()).unwrap();
    let mut generator = Generator::new(&model, None).unwrap();
    let tokens: Vec<u32> = (0..STEPS as u32 + 3).collect();
    let fastest = softmetal::without_encoding(|| {
        generator.next_logits(&tokens[..1]).unwrap();
        let times = (2..STEPS + 2).map(|length| {
            let begun = Instant::now();
            generator.next_logits(&tokens[..length]).unwrap();
            begun.elapsed()
        });
        times.min().unwrap()
    });
    softmetal::counters::take();
    generator.next_logits(&tokens).unwrap();
    (fastest, softmetal::counters::take().commands.values().sum())
}

/// The fastest of many decode steps of the small model with this many layers, and its dispatches.
fn small_step(layers: usize) -> (Duration, u64) {
    let mut subject = crate::model::small();
    subject.config.layers = layers;
    let device = Device::metal().unwrap();
    let model = crate::model::load(&subject, &device);
    let mut generator = Generator::new(&model, None).unwrap();
    let tokens: Vec<u32> = (0..STEPS as u32 / 8).map(|i| 1 + i % 7).collect();
    let fastest = softmetal::without_encoding(|| {
        let rounds = (0..8).flat_map(|_| {
            generator.next_logits(&tokens[..1]).unwrap();
            let times = (2..tokens.len()).map(|length| {
                let begun = Instant::now();
                generator.next_logits(&tokens[..length]).unwrap();
                begun.elapsed()
            });
            times.collect::<Vec<_>>()
        });
        rounds.min().unwrap()
    });
    softmetal::counters::take();
    generator.next_logits(&tokens).unwrap();
    (fastest, softmetal::counters::take().commands.values().sum())
}

/// The host's time for another dispatch, by models of one and of two layers, in the unoptimized build of the tests.
///
/// It was 8.1 µs on 2026-11-27 (2 cores of a virtual x86-64 machine), most of it the software device's own messages; the
/// bound is three times that, so that a kernel looked up, compiled or allocated anew for each dispatch fails here. What an
/// optimized build takes, and the bound of 0.3 µs on it, is for `cargo xtask softmetal --encode`.
#[test]
fn another_dispatch_costs_the_host_no_lookups() {
    let _alone = crate::alone();
    let ((few, fewer), (many, more)) = (small_step(1), small_step(2));
    let each = (many.as_secs_f64() - few.as_secs_f64()) * 1e6 / (more - fewer) as f64;
    println!("1 layer: {few:?} for {fewer} dispatches; 2: {many:?} for {more}; {each:.2} µs per dispatch");
    assert!(each < 25.0, "{each:.2} µs per dispatch");
}

/// Two models that differ in their layers only: what a step costs beside its dispatches, submission and the copy of the
/// logits, is the same and drops out.
#[test]
#[ignore = "a measurement, in release: cargo xtask softmetal --encode"]
fn a_dispatch_is_encoded_in_a_third_of_a_microsecond() {
    let _alone = crate::alone();
    let ((few, fewer), (many, more)) = (step(5), step(30));
    let each = (many.as_secs_f64() - few.as_secs_f64()) * 1e9 / (more - fewer) as f64;
    println!(
        "5 layers: {few:?} for {fewer} dispatches; 30 layers: {many:?} for {more}; {each:.0} ns a dispatch"
    );
    assert!(each < 300.0, "{each:.0} ns");
}
