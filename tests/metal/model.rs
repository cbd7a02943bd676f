//! Generation and training on the GPU beside the CPU: SmolLM2 with two of its layers, whole with METAL_CANDLE_FULL.
//! On the software device a token of the two layers takes seconds, most of them the head's 28 million products.

use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::{DType, HostTensor, TensorSpec};
use metal_candle::training::{
    Adapter, Event, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, TrainOptions, Trainer,
};

/// SmolLM2, or what is left of it with two layers. `None`, after a line that says so, where the model is not here.
pub(crate) fn smollm2() -> Option<ModelFiles> {
    let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
        println!("SKIPPED METAL_CANDLE_MODEL names no model");
        return None;
    };
    let mut files = ModelFiles::open(path).unwrap();
    if std::env::var_os("METAL_CANDLE_FULL").is_none() {
        files.config.layers = 2;
    }
    Some(files)
}

pub(crate) fn load(files: &ModelFiles, device: &Device) -> Decoder {
    Decoder::load(files.config.clone(), &files.weights, device, DType::F32, &|_| ()).unwrap()
}

/// An adapter on every linear layer whose two factors are both at work.
pub(crate) fn adapter(model: &Decoder) -> Adapter {
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let unused = [Example { tokens: vec![1, 2, 3], supervised: vec![false, true, true] }];
    let trainer = Trainer::new(model, config, None, options(1), &unused, &[], folder.path()).unwrap();
    let mut adapter = trainer.adapter_now().unwrap();
    for (number, module) in adapter.modules.iter_mut().enumerate() {
        let shape = module.b.shape().clone();
        let values: Vec<f32> =
            (0..shape.elements()).map(|i| 0.02 * (((i * 7 + number * 3) % 11) as f32 - 5.0)).collect();
        module.b = HostTensor::from_slice(&values, shape).unwrap();
    }
    adapter
}

fn options(steps: usize) -> TrainOptions {
    TrainOptions {
        steps,
        batch_size: 1,
        accumulation: 1,
        max_length: 32,
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 1e-3,
            warmup: 0,
            steps,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions::default(),
        eval_every: 0,
        report_every: 1,
        save_every: 0,
        keep_checkpoints: 1,
        patience: 0,
        seed: 3,
        checkpoint_layers: false,
        resume: false,
    }
}

fn tokens(files: &ModelFiles, device: &Device, with_adapter: bool) -> Vec<u32> {
    let model = load(files, device);
    let adapter = with_adapter.then(|| adapter(&model).on(device).unwrap());
    let mut generator = Generator::new(&model, adapter.as_ref()).unwrap();
    let options = GenerateOptions { max_tokens: 16, eos: Some(Vec::new()), ..GenerateOptions::default() };
    let prompt = files.tokenizer.encode("The capital of France", false).unwrap();
    generator.generate(&files.tokenizer, &prompt, &options, &mut |_| true).unwrap().tokens
}

#[test]
fn sixteen_greedy_tokens_are_those_of_the_cpu() {
    let _alone = crate::alone();
    let Some(files) = smollm2() else { return };
    let (cpu, metal) = (Device::cpu(2).unwrap(), Device::metal().unwrap());
    for with_adapter in [false, true] {
        let expected = tokens(&files, &cpu, with_adapter);
        assert_eq!(expected.len(), 16);
        assert_eq!(tokens(&files, &metal, with_adapter), expected, "with an adapter: {with_adapter}");
    }
}

fn losses(files: &ModelFiles, device: &Device) -> Vec<f64> {
    let model = load(files, device);
    let texts = ["Two and two make four."];
    let examples: Vec<Example> = texts
        .iter()
        .map(|text| {
            let tokens = files.tokenizer.encode(text, false).unwrap();
            let supervised = (0..tokens.len()).map(|i| i > 2).collect();
            Example { tokens, supervised }
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let mut trainer = Trainer::new(&model, config, None, options(3), &examples, &[], folder.path()).unwrap();
    let mut losses = Vec::new();
    let observer = &mut |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    trainer.run(&AtomicBool::new(false), observer).unwrap();
    losses
}

#[test]
fn three_training_steps_have_the_losses_of_the_cpu() {
    let _alone = crate::alone();
    let Some(files) = smollm2() else { return };
    let expected = losses(&files, &Device::cpu(2).unwrap());
    let found = losses(&files, &Device::metal().unwrap());
    assert_eq!(expected.len(), 3);
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "step {step}: {found}, on the cpu {expected}");
    }
    assert!(expected[2] < expected[0], "{expected:?}");
}

#[test]
fn a_frozen_weight_of_a_mapped_file_is_used_in_place() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    // A header of 4 bytes puts the tensor off every page.
    let values: Vec<f32> = (0..16 * 1024).map(|i| i as f32).collect();
    let mut bytes = vec![0; 4];
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    bytes.resize(bytes.len() + (1 << 16), 0);
    std::fs::write(&path, bytes).unwrap();
    // Metal's pages are larger than those of some systems that the software device runs on: the file is mapped until it
    // lies at such a boundary.
    let maps: Vec<_> = (0..16).map(|_| metal_candle::tensor::MappedFile::open(&path).unwrap()).collect();
    let file = maps.iter().find(|map| (map.as_ptr() as usize).is_multiple_of(16 * 1024)).unwrap().clone();
    let tensor = HostTensor::from_map(file, 4, TensorSpec::f32([values.len()])).unwrap();
    let device = Device::metal().unwrap();
    #[cfg(softmetal)]
    softmetal::counters::take();
    let parameter = device.parameter("w", &tensor, false).unwrap();
    #[cfg(softmetal)]
    assert!(softmetal::counters::take().bytes_allocated < 4096, "nothing is copied");
    let graph = metal_candle::graph::Graph::new();
    let sum = graph.parameter(&parameter).affine(2.0, 1.0).unwrap();
    let found = device.eval(&[sum]).unwrap().remove(0);
    assert_eq!(found.as_slice::<f32>().unwrap()[..3], [1.0, 3.0, 5.0]);
    assert_eq!(parameter.read().unwrap().as_slice::<f32>().unwrap(), values);
    assert!(parameter.write(&tensor).unwrap_err().to_string().contains("frozen"));
}
