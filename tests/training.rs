//! Training: equal to PEFT, resumable bit for bit, and safe against broken values, folders and disks.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::batches::{Batch, BatchOptions};
use metal_candle::training::{
    Adapter, Event, Example, LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets, TrainOptions,
    Trainer, evaluate, metrics,
};
use metal_candle::{Error, Result};
use serde_json::Value;

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

fn model(folder: &Path) -> Decoder {
    let (config, weights) = ModelFiles::open_weights(folder).unwrap();
    Decoder::load(config, &weights, &device(), DType::F32, &|_| ()).unwrap()
}

fn options(steps: usize) -> TrainOptions {
    TrainOptions {
        steps,
        batch_size: 3,
        accumulation: 2,
        max_length: 64,
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            learning_rate: 5e-3,
            warmup: 2,
            steps: 12,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions::default(),
        eval_every: 4,
        report_every: 1,
        save_every: 3,
        keep_checkpoints: 2,
        patience: 0,
        seed: 9,
        checkpoint_layers: false,
        resume: false,
    }
}

/// Sequences with a rule to learn: each token is the one before plus a step.
fn examples(count: usize) -> Vec<Example> {
    (0..count)
        .map(|i| {
            let length = 6 + i * 5 % 40;
            let tokens = (0..length).map(|t| (3 + (i * 17 + t * (1 + i % 3)) % 250) as u32).collect();
            Example { tokens, supervised: (0..length).map(|t| t > 2).collect() }
        })
        .collect()
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, dropout: 0.1, seed: 9, ..LoraConfig::default() }
}

fn train(
    out: &Path,
    options: TrainOptions,
    stop_after: Option<usize>,
) -> Result<metal_candle::training::Summary> {
    let model = model(&golden().join("llama"));
    let (train, valid) = (examples(20), examples(5));
    let mut trainer = Trainer::new(&model, lora(), None, options, &train, &valid, out)?;
    let stop = AtomicBool::new(false);
    trainer.run(&stop, &mut |event| {
        if let Event::Step { step, .. } = event
            && Some(*step) == stop_after
        {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    })
}

/// Same initial A, same batches, same optimizer: the issue allows 1e-4 relative on losses and 1e-3 on adapters.
#[test]
fn twenty_steps_equal_those_of_peft() {
    let folder = golden().join("peft");
    let text = std::fs::read_to_string(folder.join("training.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let model = model(&golden().join("llama"));
    let adapter = Adapter::load(&folder.join("initial")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let options = TrainOptions {
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 5e-3,
            warmup: 0,
            steps: 20,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions {
            weight_decay: 0.01,
            max_norm: f32::INFINITY,
            ..OptimizerOptions::default()
        },
        ..options(20)
    };
    let unused = examples(1);
    let mut trainer = Trainer::from_adapter(&model, &adapter, options, &unused, &[], out.path()).unwrap();
    let rows = |value: &Value| -> Vec<Vec<i64>> { serde_json::from_value(value.clone()).unwrap() };
    for (step, batch) in expected["batches"].as_array().unwrap().iter().enumerate() {
        let (ids, labels) = (rows(&batch["ids"]), rows(&batch["labels"]));
        let length = ids[0].len();
        let mut made = Batch {
            rows: ids.len(),
            length,
            ids: ids.concat().into_iter().map(|id| id as u32).collect(),
            supervised: Vec::new(),
            targets: Vec::new(),
            real_tokens: ids.len() * length,
        };
        for (row, labels) in labels.iter().enumerate() {
            for position in 1..length {
                if labels[position] >= 0 {
                    made.supervised.push((row * length + position - 1) as u32);
                    made.targets.push(labels[position] as u32);
                }
            }
        }
        let loss = trainer.train_on(&[made]).unwrap().loss;
        let wanted = expected["losses"][step].as_f64().unwrap();
        assert!((loss - wanted).abs() <= 1e-4 * wanted, "step {step}: loss {loss}, PEFT has {wanted}");
    }
    let found = trainer.adapter_now().unwrap();
    let wanted = Adapter::load(&folder.join("final")).unwrap();
    assert_eq!(found.modules.len(), wanted.modules.len());
    for expected in &wanted.modules {
        let found = found.modules.iter().find(|module| module.path == expected.path).unwrap();
        for (a, b) in [(&found.a, &expected.a), (&found.b, &expected.b)] {
            let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
            let error = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(error < 1e-3, "{}: greatest difference {error}", expected.path);
        }
    }
}

#[test]
fn training_learns_and_layer_checkpoints_change_nothing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let summary = train(one.path(), options(12), None).unwrap();
    let (best, _) = summary.best.unwrap();
    // Twelve steps on a random model: 5 % is far beyond what chance does to a mean over a hundred tokens.
    assert!(best < 0.95 * summary.first_valid_loss.unwrap(), "{summary:?}");
    train(two.path(), TrainOptions { checkpoint_layers: true, ..options(12) }, None).unwrap();
    let tensors = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert_eq!(tensors(one.path()), tensors(two.path()), "recomputing gives the same bits");
}

/// Interrupted and resumed equals uninterrupted, bit for bit: adapter, optimizer and reports.
#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(whole.path(), options(12), None).unwrap();
    let summary = train(parts.path(), options(12), Some(5)).unwrap();
    assert!(summary.interrupted && summary.steps == 5);
    train(parts.path(), TrainOptions { resume: true, ..options(12) }, Some(9)).unwrap();
    train(parts.path(), TrainOptions { resume: true, ..options(12) }, None).unwrap();
    for file in [
        "adapter_model.safetensors",
        "checkpoints/step-000012/adapter_model.safetensors",
        "checkpoints/step-000012/optimizer.safetensors",
    ] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(whole.path()) == read(parts.path()), "{file} differs");
    }
    let losses = |folder: &Path| -> Vec<_> {
        let reports = metrics::read(&folder.join("metrics.jsonl")).unwrap();
        reports.into_iter().map(|r| (r.step, r.train_loss, r.valid_loss, r.grad_norm)).collect()
    };
    assert_eq!(losses(whole.path()), losses(parts.path()));
}

/// A validation that is interrupted belongs to the run as well: the best adapter depends on it.
#[test]
fn a_run_interrupted_at_a_validation_resumes_with_it() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(whole.path(), options(12), None).unwrap();
    let resumed = || TrainOptions { resume: true, ..options(12) };
    // Validations are after every fourth step and after the last one.
    for (options, stop_after, interrupted) in [
        (options(12), Some(4), true),
        (resumed(), Some(8), true),
        (resumed(), Some(12), true),
        (resumed(), None, false),
    ] {
        assert_eq!(train(parts.path(), options, stop_after).unwrap().interrupted, interrupted);
    }
    for file in ["adapter_model.safetensors", "checkpoints/step-000012/trainer_state.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(whole.path()) == read(parts.path()), "{file} differs");
    }
    let losses = |folder: &Path| -> Vec<_> {
        let reports = metrics::read(&folder.join("metrics.jsonl")).unwrap();
        reports.into_iter().map(|r| (r.step, r.train_loss, r.valid_loss)).collect()
    };
    assert_eq!(losses(whole.path()), losses(parts.path()));
}

/// Everything that decides the result is compared, and what is refused changes nothing on the disk.
#[test]
fn a_resume_with_other_settings_is_refused_by_name_and_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let missing = out.path().join("missing");
    let error = train(&missing, TrainOptions { resume: true, ..options(4) }, None).unwrap_err().to_string();
    assert!(error.contains("no complete checkpoint to resume from"), "{error}");
    assert!(!missing.exists(), "a refused run leaves no folder");
    let stopped = train(out.path(), options(8), Some(4)).unwrap();
    assert!(stopped.interrupted);
    let before = snapshot(out.path());
    let model = model(&golden().join("llama"));
    let refused = |change: &dyn Fn(&mut TrainOptions, &mut LoraConfig, &mut Vec<Example>)| -> String {
        let (mut options, mut lora, mut data) = (options(8), lora(), examples(20));
        options.resume = true;
        change(&mut options, &mut lora, &mut data);
        let valid = examples(5);
        let trainer = Trainer::new(&model, lora, None, options, &data, &valid, out.path()).unwrap();
        trainer.verify().unwrap_err().to_string()
    };
    let cases: [(&str, &dyn Fn(&mut TrainOptions, &mut LoraConfig, &mut Vec<Example>)); 13] = [
        ("batch size was 3, now it is 4", &|o, _, _| o.batch_size = 4),
        ("seed was 9, now it is 6", &|o, _, _| o.seed = 6),
        ("learning rate was 0.005, now it is 0.02", &|o, _, _| o.schedule.learning_rate = 0.02),
        ("schedule was cosine, now it is linear", &|o, _, _| o.schedule.kind = ScheduleKind::Linear),
        ("steps was 12, now it is 13", &|o, _, _| o.schedule.steps = 13),
        ("weight decay was 0, now it is 0.5", &|o, _, _| o.optimizer.weight_decay = 0.5),
        ("patience was 0, now it is 3", &|o, _, _| o.patience = 3),
        ("alpha was 8, now it is 16", &|_, l, _| l.alpha = 16.0),
        ("rsLoRA was false, now it is true", &|_, l, _| l.rslora = true),
        ("dropout was 0.1, now it is 0.2", &|_, l, _| l.dropout = 0.2),
        ("rank pattern was none, now it is q_proj=2", &|_, l, _| {
            l.rank_pattern.push(("q_proj".into(), 2));
        }),
        ("training data was 20 examples, content", &|_, _, d| d[3].tokens[2] ^= 1),
        ("loss mask was content", &|_, _, d| d[3].supervised[3] = false),
    ];
    for (expected, change) in cases {
        let error = refused(change);
        assert!(
            error.contains(expected) && error.contains("step-000004"),
            "{error}\ndoes not contain {expected}"
        );
    }
    // The same architecture with one weight that differs in its last bit.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(golden().join("llama/config.json"), copy.path().join("config.json")).unwrap();
    let mut weights = std::fs::read(golden().join("llama/model.safetensors")).unwrap();
    let last = weights.len() - 4;
    weights[last] ^= 1;
    std::fs::write(copy.path().join("model.safetensors"), weights).unwrap();
    let other_base = self::model(copy.path());
    let (data, valid) = (examples(20), examples(5));
    let again = TrainOptions { resume: true, ..options(8) };
    let trainer = Trainer::new(&other_base, lora(), None, again.clone(), &data, &valid, out.path()).unwrap();
    assert!(trainer.verify().unwrap_err().to_string().contains("base model was content"));
    let mut trainer = trainer;
    assert!(trainer.run(&AtomicBool::new(false), &mut |_| {}).is_err());
    assert_eq!(snapshot(out.path()), before, "a refused resume changes nothing");
    let summary = train(out.path(), again, None).unwrap();
    assert_eq!(summary.steps, 8);
}

/// Every file of a folder with its content.
fn snapshot(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// A constant learning rate does not depend on the number of steps, so such a run can be made longer.
#[test]
fn a_run_of_constant_rate_can_be_extended() {
    let constant = |steps| {
        let options = options(steps);
        TrainOptions { schedule: Schedule { kind: ScheduleKind::Constant, ..options.schedule }, ..options }
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(whole.path(), constant(8), None).unwrap();
    train(parts.path(), constant(4), None).unwrap();
    train(parts.path(), TrainOptions { resume: true, ..constant(8) }, None).unwrap();
    let tensors = |folder: &Path| {
        std::fs::read(folder.join("checkpoints/step-000008/adapter_model.safetensors")).unwrap()
    };
    assert!(tensors(whole.path()) == tensors(parts.path()), "the extended run is another run");
}

/// Two runs into one folder would mix their checkpoints.
#[test]
fn a_folder_in_use_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let held = metal_candle::training::RunFolder::claim(out.path()).unwrap();
    let error = train(out.path(), options(1), None).unwrap_err().to_string();
    assert!(error.contains("another run is writing into this folder"), "{error}");
    drop(held);
    train(out.path(), options(1), None).unwrap();
}

/// A NaN in the model's weights: the file is refused. One that arises while training stops the run, and the last good
/// state is on the disk.
#[test]
fn broken_numbers_stop_the_run_after_saving() {
    let out = tempfile::tempdir().unwrap();
    let model = model(&golden().join("llama"));
    let (train, valid) = (examples(8), examples(3));
    let wild = TrainOptions {
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            learning_rate: 1e30,
            warmup: 0,
            steps: 9,
            minimum: 0.0,
        },
        optimizer: OptimizerOptions { max_norm: f32::INFINITY, ..OptimizerOptions::default() },
        ..options(9)
    };
    let mut trainer = Trainer::new(&model, lora(), None, wild, &train, &valid, out.path()).unwrap();
    let error = trainer.run(&AtomicBool::new(false), &mut |_| ()).unwrap_err();
    let Error::NonFinite { step, what, advice, .. } = &error else { panic!("{error}") };
    assert!(*step >= 1 && what.contains("loss") | what.contains("gradient"), "{error}");
    assert!(advice.contains("lower the learning rate"));
    let saved = metal_candle::training::checkpoint::latest(out.path()).unwrap().unwrap();
    let (adapter, _, state) = metal_candle::training::checkpoint::load(&saved).unwrap();
    assert_eq!(state.step, step - 1);
    assert!(adapter.modules.iter().all(|m| m.a.as_slice::<f32>().unwrap().iter().all(|x| x.is_finite())));
}

/// Overflow makes all logits equal. The loss is then ln 256 = 5.545, which is below that of the untrained random model: it
/// was the best so far, and the run went on to its end with success.
#[test]
fn equal_probabilities_are_divergence_and_no_success() {
    let out = tempfile::tempdir().unwrap();
    let model = model(&golden().join("llama"));
    let (train, valid) = (examples(20), examples(5));
    let constant =
        Schedule { kind: ScheduleKind::Constant, learning_rate: 1e6, warmup: 0, steps: 100, minimum: 0.0 };
    let options = TrainOptions { schedule: constant, eval_every: 2, ..options(100) };
    let mut trainer = Trainer::new(&model, lora(), None, options, &train, &valid, out.path()).unwrap();
    let mut best = Vec::new();
    let error = trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Validated { step, best: true, .. } = event {
            best.push(*step);
        }
    });
    let error = error.unwrap_err();
    let Error::Diverged { step, what, advice } = &error else { panic!("{error}") };
    assert!(*step < 40, "{error}");
    assert!(what.contains("before training"), "{error}");
    assert!(
        advice.contains("no adapter was better than before training")
            && advice.contains("lower learning rate (it was 1e6"),
        "{error}"
    );
    assert_eq!(best, [0]);
}

/// The rate jumps from 0.01 to 150 000 after step 9. What was learned until then is kept, and so is its checkpoint.
#[test]
fn an_adapter_from_before_a_divergence_is_kept() {
    let out = tempfile::tempdir().unwrap();
    let model = model(&golden().join("llama"));
    let (train, valid) = (examples(20), examples(5));
    let jump =
        Schedule { kind: ScheduleKind::Cosine, learning_rate: 1e-2, warmup: 8, steps: 12, minimum: 1e6 };
    let options = TrainOptions { schedule: jump, ..options(100) };
    let mut trainer = Trainer::new(&model, lora(), None, options, &train, &valid, out.path()).unwrap();
    let summary = trainer.run(&AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(summary.diverged.is_some() && summary.steps < 60, "{summary:?}");
    let (best, step) = summary.best.unwrap();
    assert!(step == 8 && best < summary.first_valid_loss.unwrap(), "{summary:?}");
    let newest = metal_candle::training::checkpoint::latest(out.path()).unwrap().unwrap();
    assert!(newest.ends_with("step-000009"), "{}", newest.display());
    // The adapter of step 8 is the one in the folder: it gives the best loss again.
    let adapter = Adapter::load(out.path()).unwrap().on(model.device()).unwrap();
    let batches = BatchOptions { batch_size: 3, max_length: 64, seed: 0 };
    let stop = AtomicBool::new(false);
    let found = evaluate(&model, Some(&adapter), &valid, &batches, &stop, &|_, _| {}).unwrap();
    assert!((found.loss - best).abs() < 1e-6, "{} {best}", found.loss);
}

#[test]
fn ranks_targets_and_empty_data_are_refused_with_advice() {
    let model = model(&golden().join("llama"));
    let data = examples(2);
    let out = tempfile::tempdir().unwrap();
    let refused = |config: LoraConfig, data: &[Example]| {
        Trainer::new(&model, config, None, options(1), data, &[], out.path()).err().unwrap().to_string()
    };
    assert!(refused(LoraConfig { rank: 0, ..lora() }, &data).contains("LoRA rank: is 0"));
    let unknown = Targets::List(vec!["query".into()]);
    let error = refused(LoraConfig { targets: unknown, ..lora() }, &data);
    assert!(
        error.contains("'query' is no linear layer of this model; there are embed_tokens, q_proj, k_proj"),
        "{error}"
    );
    assert!(refused(lora(), &[]).contains("training data: is empty"));
}

/// The estimate before the start is what the plan then takes.
#[test]
fn the_estimate_counts_parameters_and_memory() {
    let model = model(&golden().join("llama"));
    let (data, out) = (examples(6), tempfile::tempdir().unwrap());
    let trainer = Trainer::new(&model, lora(), None, options(1), &data, &[], out.path()).unwrap();
    let estimate = trainer.estimate().unwrap();
    // Rank 4 on q, o (64 x 64), k, v (32 x 64), gate, up, down (96 x 64) of two layers.
    assert_eq!(estimate.trainable, 2 * 4 * (2 * 128 + 2 * 96 + 3 * 160));
    assert_eq!(estimate.optimizer, 4 * 4 * estimate.trainable);
    assert!(estimate.activations > 100_000);
    let plain = TrainOptions { checkpoint_layers: true, ..options(1) };
    let trainer = Trainer::new(&model, lora(), None, plain, &data, &[], out.path()).unwrap();
    assert!(trainer.estimate().unwrap().activations < estimate.activations);
}
