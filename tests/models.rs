//! Models against transformers: tiny random ones of every family, and SmolLM2 where it is in the cache.
//!
//! The expected values are written by `compare/golden.py`. The tests of SmolLM2 are named `smollm2_…`; without the
//! model (`metal-candle pull`, or METAL_CANDLE_MODEL) `cargo xtask test` counts them as skipped.

use std::path::{Path, PathBuf};

use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::{AdapterParameters, Decoder, ModelFiles};
use metal_candle::tensor::{DType, HostTensor, TensorSpec};
use metal_candle::training::Adapter;
use safetensors::SafeTensors;
use serde_json::{Value, json};

mod test_device;

#[cfg(softmetal)]
extern crate softmetal;

/// The GPU under test (see `test_device`), otherwise the CPU.
fn device() -> Device {
    test_device::gpu().unwrap_or_else(|| Device::cpu(2).unwrap())
}

fn golden() -> PathBuf {
    Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden")
}

fn expected(folder: &Path, name: &str) -> (Vec<usize>, Vec<f32>, Vec<u32>) {
    let bytes = std::fs::read(folder).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let words: Vec<u32> = view.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), words.iter().map(|&w| f32::from_bits(w)).collect(), words)
}

fn load(folder: &Path, dtype: DType) -> Decoder {
    let (config, weights) = ModelFiles::open_weights(folder).unwrap();
    Decoder::load(config, &weights, &device(), dtype, &|_| ()).unwrap()
}

/// Logits of all positions of a sequence, computed as in training, with or without rewrites.
fn logits(model: &Decoder, ids: &[u32], adapter: Option<&AdapterParameters>, fused: bool) -> HostTensor {
    let graph = Graph::new();
    let spec = TensorSpec::u32([ids.len()]);
    let (input, positions) = (graph.input("ids", spec.clone()), graph.input("positions", spec));
    let hidden = model.record_sequences(&graph, &input, &positions, 1, adapter, None, false).unwrap();
    let logits = model.record_logits(&graph, &hidden, adapter).unwrap();
    let (graph, logits) = if fused { graph.fused(&[logits]).unwrap() } else { (graph, vec![logits]) };
    let program = model.device().compile(&graph, &logits, &[]).unwrap();
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let tensor = |values: &[u32]| HostTensor::from_slice(values, [values.len()]).unwrap();
    program.run(&[&tensor(ids), &tensor(&positions)]).unwrap().remove(0)
}

fn greatest_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What the issue allows in f32: three independent implementations agree within 5.3e-5.
const TOLERANCE: f32 = 2e-4;

#[test]
fn every_family_gives_the_logits_of_transformers() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let folder = golden().join(family);
        let file = folder.join("expected.safetensors");
        let (_, _, ids) = expected(&file, "ids");
        let (_, wanted, _) = expected(&file, "logits");
        let model = load(&folder, DType::F32);
        for fused in [false, true] {
            let found = logits(&model, &ids, None, fused);
            let error = greatest_error(found.as_slice::<f32>().unwrap(), &wanted);
            assert!(error < TOLERANCE, "{family}, fused {fused}: greatest error {error}");
        }
        // 16-bit weights: bf16 keeps 8 bits, so logits of order 1 to 10 move by a few hundredths.
        let rounded = logits(&load(&folder, DType::BF16), &ids, None, true);
        let error = greatest_error(rounded.as_slice::<f32>().unwrap(), &wanted);
        assert!(error < 0.5 && error > 1e-6, "{family} in bf16: greatest error {error}");
    }
}

/// Prefill by pieces and decoding one token at a time give the logits of the whole sequence.
#[test]
fn the_cache_gives_what_whole_sequences_give() {
    for family in ["llama", "mistral", "qwen3"] {
        let folder = golden().join(family);
        let (_, _, ids) = expected(&folder.join("expected.safetensors"), "ids");
        let (shape, wanted, _) = expected(&folder.join("expected.safetensors"), "logits");
        let model = load(&folder, DType::F32);
        let mut generator = Generator::new(&model, None).unwrap();
        for length in [1, 2, 7, 8, 20, 24, 15] {
            let found = generator.next_logits(&ids[..length]).unwrap();
            let error = greatest_error(&found, &wanted[(length - 1) * shape[1]..length * shape[1]]);
            assert!(error < TOLERANCE, "{family} after {length} tokens: greatest error {error}");
        }
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let model = load(&golden().join("llama"), DType::F32);
    let mut generator = Generator::new(&model, None).unwrap();
    let error = generator.next_logits(&[5; 128]).unwrap_err().to_string();
    assert_eq!(error, "prompt: has 128 tokens, the model's context is 128; shorten it");
    assert!(generator.next_logits(&[]).unwrap_err().to_string().contains("is empty"));
    assert!(generator.next_logits(&[999]).unwrap_err().to_string().contains("outside the vocabulary"));
}

#[test]
fn adapters_of_peft_give_the_logits_of_peft() {
    let model = load(&golden().join("llama"), DType::F32);
    for name in ["final", "patterned"] {
        let folder = golden().join("peft").join(name);
        let adapter = Adapter::load(&folder).unwrap();
        adapter.check(&model.linear_modules()).unwrap();
        let placed = adapter.on(model.device()).unwrap();
        let (_, _, ids) = expected(&folder.join("expected.safetensors"), "ids");
        let (_, wanted, _) = expected(&folder.join("expected.safetensors"), "logits");
        for fused in [false, true] {
            let found = logits(&model, &ids, Some(&placed), fused);
            let error = greatest_error(found.as_slice::<f32>().unwrap(), &wanted);
            assert!(error < TOLERANCE, "{name}, fused {fused}: greatest error {error}");
        }
        // Saved again, the tensors are the same bytes.
        let again = tempfile::tempdir().unwrap();
        adapter.save(again.path()).unwrap();
        let bytes = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        assert_eq!(bytes(again.path()), bytes(&folder), "{name}");
    }
}

#[test]
fn adapters_of_other_kinds_are_refused_whole() {
    for (name, part) in [
        ("dora", "DoRA"),
        ("bias", "trained biases"),
        ("whole_modules", "modules trained as a whole"),
        ("lora_bias", "a bias on B"),
        ("loha", "is LOHA"),
    ] {
        let error = Adapter::load(&golden().join("peft/refused").join(name)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("adapter_config.json"), "{name}: {error}");
    }
}

/// SmolLM2 as `metal-candle pull` stores it.
fn smollm2() -> Option<PathBuf> {
    let given = std::env::var_os("METAL_CANDLE_MODEL").map(PathBuf::from);
    given.filter(|path| path.exists())
}

fn skipped(test: &str) {
    println!("SKIPPED {test}: set METAL_CANDLE_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
fn smollm2_gives_the_logits_of_transformers() {
    let Some(path) = smollm2() else { return skipped("smollm2_gives_the_logits_of_transformers") };
    let file = golden().join("smollm2.safetensors");
    let (_, _, ids) = expected(&file, "ids");
    let (_, _, columns) = expected(&file, "columns");
    let (_, wanted, _) = expected(&file, "logits");
    let (_, lse, _) = expected(&file, "lse");
    let (_, _, argmax) = expected(&file, "argmax");
    let model = load(&path, DType::F32);
    let found = logits(&model, &ids, None, true);
    let vocab = model.config().vocab;
    for (position, row) in found.as_slice::<f32>().unwrap().chunks(vocab).enumerate() {
        let sample: Vec<f32> = columns.iter().map(|&column| row[column as usize]).collect();
        let error = greatest_error(&sample, &wanted[position * columns.len()..][..columns.len()]);
        assert!(error < TOLERANCE, "position {position}: greatest error {error}");
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
        let found_lse = f64::from(max) + sum.ln();
        assert!((found_lse - f64::from(lse[position])).abs() < f64::from(TOLERANCE), "position {position}");
        assert_eq!(
            row.iter().position(|&x| x == max),
            Some(argmax[position] as usize),
            "position {position}"
        );
    }
}

#[test]
fn smollm2_continues_as_transformers_does() {
    let Some(path) = smollm2() else { return skipped("smollm2_continues_as_transformers_does") };
    let text = std::fs::read_to_string(golden().join("smollm2.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let files = ModelFiles::open(&path).unwrap();
    let model = load(&path, DType::F32);
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for answer in golden["answers"].as_array().unwrap() {
        let template = files.chat_template.as_ref().unwrap();
        let rendered =
            template.render(&[json!({"role": "user", "content": answer["prompt"]})], None, true).unwrap();
        assert_eq!(rendered, answer["text"].as_str().unwrap());
        let prompt = ids(&answer["ids"]);
        assert_eq!(files.tokenizer.encode(&rendered, false).unwrap(), prompt);
        let mut generator = Generator::new(&model, None).unwrap();
        let options = GenerateOptions { max_tokens: 64, eos: Some(Vec::new()), ..GenerateOptions::default() };
        let found = generator.generate(&files.tokenizer, &prompt, &options, &mut |_| true).unwrap();
        assert_eq!(found.tokens, ids(&answer["continuation"]), "{}", answer["prompt"]);
    }
}

#[test]
fn smollm2_encodes_as_its_tokenizer_does() {
    let Some(path) = smollm2() else { return skipped("smollm2_encodes_as_its_tokenizer_does") };
    let text = std::fs::read_to_string(golden().join("smollm2.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let tokenizer = ModelFiles::open(&path).unwrap().tokenizer;
    for string in golden["strings"].as_array().unwrap() {
        let text = string["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(string["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), string["decoded"].as_str().unwrap(), "{text:?}");
        let mut stream = tokenizer.decode_stream();
        let mut pieces: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        pieces.extend(stream.finish().unwrap());
        assert_eq!(pieces, string["decoded"].as_str().unwrap(), "{text:?} as a stream");
    }
}
