//! Generation and training on the GPU beside the CPU: a small model with random weights, and, where METAL_CANDLE_MODEL
//! names it, SmolLM2: its first two layers and a part of its vocabulary, or all of it with METAL_CANDLE_FULL, which takes
//! the software device very long (`cargo xtask softmetal --full`).

use std::path::Path;
use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::inference::Generator;
use metal_candle::models::{Decoder, ModelConfig, ModelFiles, Weights};
use metal_candle::tensor::{DType, HostTensor, TensorSpec};
use metal_candle::training::{
    Adapter, Event, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, TrainOptions, Trainer,
};

/// What is loaded onto both devices.
pub(crate) struct Subject {
    pub(crate) config: ModelConfig,
    weights: Weights,
}

/// The small model.
pub(crate) fn small() -> Subject {
    let folder = Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden/llama");
    let (config, weights) = ModelFiles::open_weights(folder).unwrap();
    Subject { config, weights }
}

/// SmolLM2, if it is here.
fn smollm2() -> Option<Subject> {
    let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") else {
        println!("SKIPPED SmolLM2: METAL_CANDLE_MODEL does not name it");
        return None;
    };
    let (config, weights) = ModelFiles::open_weights(path).unwrap();
    let full = std::env::var_os("METAL_CANDLE_FULL").is_some();
    Some(if full { Subject { config, weights } } else { cut(&config, &weights) })
}

/// The first two layers, with the first 2,048 rows of the vocabulary: its head alone is two thirds of the model.
fn cut(config: &ModelConfig, weights: &Weights) -> Subject {
    const ROWS: usize = 2048;
    let folder = tempfile::tempdir().unwrap();
    let kept = |name: &&str| {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        layer.is_none_or(|layer| layer == "0" || layer == "1") && *name != "lm_head.weight"
    };
    let mut tensors: Vec<(String, HostTensor)> = Vec::new();
    for name in weights.names().filter(kept) {
        let shape = weights.shape(name).unwrap().to_vec();
        let mut tensor = weights.load(name, &shape, DType::F32).unwrap();
        if name == "model.embed_tokens.weight" {
            let row = shape[1];
            tensor = HostTensor::from_slice(&tensor.as_slice::<f32>().unwrap()[..ROWS * row], [ROWS, row])
                .unwrap();
        }
        tensors.push((name.to_owned(), tensor));
    }
    let views = tensors.iter().map(|(name, tensor)| {
        let shape = tensor.shape().dims().to_vec();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, tensor.bytes()).unwrap();
        (name.as_str(), view)
    });
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    Subject {
        config: ModelConfig { layers: 2, vocab: ROWS, ..config.clone() },
        weights: Weights::open(folder.path()).unwrap(),
    }
}

pub(crate) fn load_as(subject: &Subject, device: &Device, dtype: DType) -> Decoder {
    try_load(subject, device, dtype).unwrap()
}

pub(crate) fn try_load(subject: &Subject, device: &Device, dtype: DType) -> metal_candle::Result<Decoder> {
    Decoder::load(subject.config.clone(), &subject.weights, device, dtype, &|_| ())
}

pub(crate) fn load(subject: &Subject, device: &Device) -> Decoder {
    load_as(subject, device, DType::F32)
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

pub(crate) fn options(steps: usize) -> TrainOptions {
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

/// Sixteen tokens, each the one with the greatest logit.
fn tokens(subject: &Subject, device: &Device, with_adapter: bool) -> Vec<u32> {
    let model = load(subject, device);
    let adapter = with_adapter.then(|| adapter(&model).on(device).unwrap());
    let mut generator = Generator::new(&model, adapter.as_ref()).unwrap();
    let mut held = vec![5, 17, 101, 42];
    for _ in 0..16 {
        let logits = generator.next_logits(&held).unwrap();
        let greatest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        held.push(greatest as u32);
    }
    held.split_off(4)
}

fn same_tokens(subject: &Subject) {
    let (cpu, metal) = (Device::cpu(2).unwrap(), Device::metal().unwrap());
    for with_adapter in [false, true] {
        let expected = tokens(subject, &cpu, with_adapter);
        assert_eq!(expected.len(), 16);
        assert_eq!(tokens(subject, &metal, with_adapter), expected, "with an adapter: {with_adapter}");
    }
}

#[test]
fn sixteen_greedy_tokens_are_those_of_the_cpu() {
    let _alone = crate::alone();
    same_tokens(&small());
}

#[test]
fn sixteen_greedy_tokens_of_the_default_model_are_those_of_the_cpu() {
    let _alone = crate::alone();
    if let Some(subject) = smollm2() {
        same_tokens(&subject);
    }
}

fn losses(subject: &Subject, device: &Device) -> Vec<f64> {
    let model = load(subject, device);
    let examples =
        [Example { tokens: vec![5, 17, 101, 42, 7], supervised: vec![false, false, true, true, true] }];
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

fn same_losses(subject: &Subject) {
    let expected = losses(subject, &Device::cpu(2).unwrap());
    let found = losses(subject, &Device::metal().unwrap());
    assert_eq!(expected.len(), 3);
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "step {step}: {found}, on the cpu {expected}");
    }
    assert!(expected[2] < expected[0], "{expected:?}");
}

#[test]
fn three_training_steps_have_the_losses_of_the_cpu() {
    let _alone = crate::alone();
    same_losses(&small());
}

#[test]
fn three_training_steps_of_the_default_model_have_the_losses_of_the_cpu() {
    let _alone = crate::alone();
    if let Some(subject) = smollm2() {
        same_losses(&subject);
    }
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
