//! Adapters on the embedding and the head, and merges that are read back.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::{DType, HostTensor};
use metal_candle::training::batches::BatchOptions;
use metal_candle::training::{
    Adapter, AdapterModule, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets,
    TrainOptions, Trainer, evaluate, merge, merge_until,
};
use serde_json::Value;

mod byte_model;

/// A copy of a golden model with a byte tokenizer.
fn folder(base: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    byte_model::write(folder.path());
    let golden = Path::new(env!("METAL_CANDLE_ROOT")).join("tests/golden").join(base);
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn open(folder: &Path) -> (ModelFiles, Decoder) {
    let files = ModelFiles::open(folder).unwrap();
    let device = Device::cpu(2).unwrap();
    let model = Decoder::load(files.config.clone(), &files.weights, &device, DType::F32, &|_| ()).unwrap();
    (files, model)
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Sequences with a rule to learn: each token is the one before plus 3.
fn examples(count: usize) -> Vec<Example> {
    let tokens = |i: usize| (0..12).map(|t| (5 + i * 7 + t * 3) as u32 % 256).collect();
    (0..count).map(|i| Example { tokens: tokens(i), supervised: (0..12).map(|t| t > 0).collect() }).collect()
}

fn loss(model: &Decoder, adapter: Option<&Adapter>) -> f64 {
    let placed = adapter.map(|adapter| adapter.on(model.device()).unwrap());
    let options = BatchOptions { batch_size: 4, max_length: 64, seed: 0 };
    let stop = AtomicBool::new(false);
    evaluate(model, placed.as_ref(), &examples(8), &options, &stop, &|_, _| ()).unwrap().loss
}

fn train(model: &Decoder, targets: &[&str], dropout: f32, out: &Path) -> Adapter {
    let lora = LoraConfig {
        rank: 4,
        dropout,
        targets: Targets::List(targets.iter().map(ToString::to_string).collect()),
        seed: 3,
        ..LoraConfig::default()
    };
    let schedule =
        Schedule { kind: ScheduleKind::Constant, learning_rate: 5e-3, warmup: 0, steps: 20, minimum: 0.0 };
    let options = TrainOptions {
        steps: 20,
        batch_size: 4,
        accumulation: 2,
        max_length: 64,
        schedule,
        optimizer: OptimizerOptions::default(),
        eval_every: 0,
        report_every: 5,
        save_every: 10,
        keep_checkpoints: 1,
        patience: 0,
        seed: 3,
        checkpoint_layers: false,
        resume: false,
    };
    let data = examples(16);
    let mut trainer = Trainer::new(model, lora, None, options, &data, &[], out).unwrap();
    trainer.run(&AtomicBool::new(false), &mut |_| ()).unwrap();
    Adapter::load(out).unwrap()
}

fn merged(files: &ModelFiles, adapter: &Adapter, out: &Path) -> (ModelFiles, Decoder) {
    let report = merge(files, adapter, out, DType::F32, &|_| ()).unwrap();
    // Two f32 models whose sums are in another order.
    assert!(report.logits_error < 1e-5, "{report:?}");
    open(out)
}

/// On a tied model (qwen2) and an untied one (llama): training lowers the loss, the file gives the trained adapter back, and
/// the merged folder computes the same.
#[test]
fn embedding_and_head_are_trained_loaded_and_merged() {
    for (base, tied) in [("qwen2", true), ("llama", false)] {
        let folder = folder(base);
        let (files, model) = open(folder.path());
        assert_eq!(files.config.tie_embeddings, tied);
        let before = loss(&model, None);
        for targets in [&["lm_head"][..], &["embed_tokens"], &["embed_tokens", "lm_head", "q_proj"]] {
            let out = tempfile::tempdir().unwrap();
            let adapter = train(&model, targets, 0.1, out.path());
            let after = loss(&model, Some(&adapter));
            // Each of them alone learns a good part of the rule in twenty steps.
            assert!(after < 0.95 * before, "{base} {targets:?}: {before} -> {after}");
            let (written, whole) = merged(&files, &adapter, &out.path().join("merged"));
            let found = loss(&whole, None);
            assert!((found - after).abs() < 1e-4 * after, "{base} {targets:?}: {after} and merged {found}");
            assert!(!written.config.tie_embeddings, "{base} {targets:?}");
            assert_eq!(config_of(&out.path().join("merged"))["tie_word_embeddings"], false);
        }
        let out = tempfile::tempdir().unwrap();
        let adapter = train(&model, &["down_proj"], 0.0, out.path());
        let (written, _) = merged(&files, &adapter, &out.path().join("merged"));
        assert_eq!(written.config.tie_embeddings, tied, "an adapter elsewhere leaves {base} as it is");
    }
}

/// An adapter on q_proj of the first layer, of a size that changes the logits.
fn small_adapter(size: f32) -> Adapter {
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| size * ((i * 7919 + seed) as f32).sin()).collect()
    };
    let module = AdapterModule {
        path: "model.layers.0.self_attn.q_proj".into(),
        a: HostTensor::from_slice(&numbers(4 * 64, 1), [4, 64]).unwrap(),
        b: HostTensor::from_slice(&numbers(64 * 4, 2), [64, 4]).unwrap(),
        scale: 2.0,
        is_embedding: false,
    };
    let targets = Targets::List(vec!["q_proj".into()]);
    let config = LoraConfig { rank: 4, alpha: 8.0, targets, ..LoraConfig::default() };
    Adapter { config, base_model: None, modules: vec![module], copies: Vec::new() }
}

#[test]
fn the_configuration_says_what_was_stored() {
    let folder = folder("llama");
    let mut config = config_of(folder.path());
    config["dtype"] = "bfloat16".into();
    config["torch_dtype"] = "bfloat16".into();
    config["further"] = "stays".into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let companions = ["tokenizer.model", "added_tokens.json", "additional_chat_templates/tool_use.jinja"];
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    for (name, text) in companions.iter().zip(["x", "{}", "{{ messages[0].content }}"]) {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let files = ModelFiles::open(folder.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    // The tolerance of each dtype is the library's own; here only its order is held.
    for (dtype, name, error) in
        [(DType::F32, "float32", 1e-5), (DType::BF16, "bfloat16", 0.1), (DType::F16, "float16", 0.01)]
    {
        let target = out.path().join(name);
        let report = merge(&files, &small_adapter(0.2), &target, dtype, &|_| ()).unwrap();
        assert!(
            report.logits_error < error && (report.logits_error > 1e-4) == (dtype != DType::F32),
            "{report:?}"
        );
        let config = config_of(&target);
        assert_eq!((&config["dtype"], &config["torch_dtype"]), (&name.into(), &name.into()));
        assert_eq!((&config["further"], &config["rope_theta"]), (&"stays".into(), &10_000.0.into()));
        for key in ["rope_parameters", "rope_scaling"] {
            assert_eq!(config[key]["rope_type"], "llama3", "{key}");
            assert_eq!(config[key]["factor"], 4.0, "{key}");
        }
        assert_eq!(config["rope_parameters"]["rope_theta"], 10_000.0);
        for name in companions {
            assert!(target.join(name).is_file(), "{name}");
        }
        let written = ModelFiles::open(&target).unwrap();
        assert_eq!(written.weights.storage("model.norm.weight"), Some(dtype.to_string()));
        assert_eq!(
            (written.config.rope_scaling, written.config.rope_theta),
            (files.config.rope_scaling.clone(), 10_000.0)
        );
    }
}

#[test]
fn a_merge_replaces_nothing() {
    let folder = folder("llama");
    let files = ModelFiles::open(folder.path()).unwrap();
    let refused =
        |out: &Path| merge(&files, &small_adapter(0.2), out, DType::F32, &|_| ()).unwrap_err().to_string();
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("holds the base model"), "{error}");
    let around: PathBuf = folder.path().join("..").join(folder.path().file_name().unwrap());
    assert!(refused(&around).contains("holds the base model"));
    assert!(std::fs::read(folder.path().join("model.safetensors")).unwrap() == before);

    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("notes.txt"), "mine").unwrap();
    let error = refused(out.path());
    assert!(error.contains("holds files already; choose a new or an empty folder"), "{error}");
    let names: Vec<_> =
        std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["notes.txt"]);
    // An empty folder is replaced, a new one is made with the folders above it.
    let parent = tempfile::tempdir().unwrap();
    let (empty, new) = (parent.path().join("empty"), parent.path().join("a/b"));
    std::fs::create_dir(&empty).unwrap();
    for target in [&empty, &new] {
        merge(&files, &small_adapter(0.2), target, DType::F32, &|_| ()).unwrap();
        assert!(target.join("model.safetensors").is_file());
    }
}

/// Places that cannot be written are refused before anything is computed, and nothing is left of them.
#[test]
fn a_merge_into_an_impossible_place_fails_at_once() {
    let folder = folder("llama");
    let files = ModelFiles::open(folder.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let in_place = |name: &str| place.path().join(name);
    std::fs::write(in_place("file"), "x").unwrap();
    std::fs::create_dir(in_place("full")).unwrap();
    std::fs::create_dir(in_place("full/.hidden")).unwrap();
    let mut refused = vec![
        (PathBuf::new(), "has no name"),
        (in_place("file"), "is a file; choose"),
        (in_place("file/new"), "file/new: cannot create"),
        (in_place(&"x".repeat(300)), "cannot create"),
        (in_place("full"), "holds files already; choose a new or an empty folder"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(in_place("nowhere"), in_place("link")).unwrap();
        refused.push((in_place("link"), "is a link to a place that does not exist"));
    }
    let entries = || std::fs::read_dir(place.path()).unwrap().count();
    let before = entries();
    for (out, expected) in refused {
        let progress = |_| panic!("{} is worked on", out.display());
        let error = merge(&files, &small_adapter(0.2), &out, DType::F32, &progress).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(entries(), before);
    }
    let mut other = small_adapter(0.2);
    other.modules[0].path = "model.layers.7.self_attn.q_proj".into();
    let error = merge(&files, &other, &in_place("a/b"), DType::F32, &|_| panic!()).unwrap_err().to_string();
    assert!(error.contains("layers.7.self_attn.q_proj: is not in this model"), "{error}");
    other.modules[0].path = "model.layers.0.self_attn.k_proj".into();
    let error = merge(&files, &other, &in_place("a/b"), DType::F32, &|_| panic!()).unwrap_err().to_string();
    assert!(error.contains("shape [64, 64]") && error.contains("[32, 64]"), "{error}");
    assert_eq!(entries(), before);
}

/// The first Ctrl-C was not looked at before the merge was complete.
#[test]
fn a_merge_that_is_stopped_leaves_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = folder("llama");
    let files = ModelFiles::open(folder.path()).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let existing = parent.path().join("empty");
    std::fs::create_dir(&existing).unwrap();
    // Before the first tensor, after some of them, and while the written folder is read back.
    for share in [0.0, 0.3, 0.7] {
        for out in [parent.path().join("new/out"), existing.clone()] {
            let stop = AtomicBool::new(false);
            let progress = |done: f64| stop.store(done >= share, Ordering::Relaxed);
            let result = merge_until(&files, &small_adapter(0.2), &out, DType::F32, &stop, &progress);
            assert!(matches!(result, Err(metal_candle::Error::Stopped { .. })), "{result:?}");
            assert_eq!(std::fs::read_dir(&existing).unwrap().count(), 0);
            assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        }
    }
}

#[test]
fn a_merge_that_would_keep_nothing_leaves_nothing() {
    let folder = folder("llama");
    let files = ModelFiles::open(folder.path()).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("new/out");
    let failed =
        |size: f32, dtype| merge(&files, &small_adapter(size), &out, dtype, &|_| ()).unwrap_err().to_string();
    let error = failed(1e3, DType::F16);
    assert!(error.contains("q_proj") && error.contains("f16 cannot hold"), "{error}");
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    // The weights as bf16 holds them: an update far below the distance of its numbers does not move them.
    let narrow = parent.path().join("narrow");
    merge(&files, &small_adapter(0.0), &narrow, DType::BF16, &|_| ()).unwrap();
    let files = ModelFiles::open(&narrow).unwrap();
    let failed =
        |size: f32, dtype| merge(&files, &small_adapter(size), &out, dtype, &|_| ()).unwrap_err().to_string();
    let error = failed(1e-3, DType::BF16);
    assert!(error.contains("smaller than the rounding of bf16") && error.contains("as f32"), "{error}");
    assert!(!out.exists());
    // The same update survives in f32, and an untrained adapter is merged as the base.
    merge(&files, &small_adapter(1e-3), &out, DType::F32, &|_| ()).unwrap();
    merge(&files, &small_adapter(0.0), &parent.path().join("zero"), DType::BF16, &|_| ()).unwrap();
}
