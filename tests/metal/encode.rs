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
