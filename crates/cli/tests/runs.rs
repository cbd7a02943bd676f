//! Runs and their folders: what is refused changes nothing, and nothing is replaced or mixed without being asked for.

#[path = "tiny_model/flags.rs"]
mod flags;
mod tiny_model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flags::replaced;
use tiny_model::Bench;

/// A short training run into `out`.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--model", "model", "--data", "data", "--out", out, "--json"];
    arguments.extend([
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--rank",
        "4",
        "--alpha",
        "8",
        "--save-every",
        "2",
    ]);
    replaced(&arguments, more)
}

/// Every file below a folder with its content.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
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

#[test]
fn a_refused_resume_names_what_differs_and_changes_nothing() {
    let bench = Bench::new();
    bench.ok(&train("out", &[]));
    let before = snapshot(&bench.path("out"));
    for (more, part) in [
        (&["--alpha", "32"][..], "alpha was 8, now it is 32"),
        (&["--rslora"], "rsLoRA was false, now it is true"),
        (&["--dropout", "0.2"], "dropout was 0, now it is 0.2"),
        (&["--rank-pattern", "q_proj=2"], "rank pattern was none, now it is q_proj=2"),
        (&["--alpha-pattern", "q_proj=2"], "alpha pattern was none, now it is q_proj=2"),
        (&["--targets", "q_proj"], "targets was all-linear, now it is q_proj"),
        (&["--layers", "0"], "layers was all, now it is 0"),
        (&["--dtype", "bf16"], "dtype was f32, now it is bf16"),
        (&["--train-on", "all"], "loss mask was content"),
        (&["--seed", "7"], "seed was 0, now it is 7"),
        (&["--batch-size", "2"], "batch size was 4, now it is 2"),
        (&["--steps", "9"], "steps was 4, now it is 9"),
        (&["--learning-rate", "2e-3"], "learning rate was 0.001, now it is 0.002"),
        (&["--weight-decay", "0.1"], "weight decay was 0, now it is 0.1"),
    ] {
        let mut arguments = train("out", more);
        arguments.push("--resume");
        let (code, message) = bench.refused(&arguments);
        assert!(code == 3 && message.contains(part), "{more:?}: {message}");
        assert!(message.contains("metal-candle train --config out/run.toml --resume"), "{message}");
        assert!(snapshot(&bench.path("out")) == before, "{more:?} changed the folder");
    }
    // README's command works afterwards.
    bench.ok(&["train", "--config", "out/run.toml", "--resume", "--json"]);
}

#[test]
fn a_resume_compares_the_content_of_data_and_base() {
    let bench = Bench::new();
    bench.ok(&train("out", &[]));
    let before = snapshot(&bench.path("out"));
    let mut arguments = train("out", &[]);
    arguments.push("--resume");
    let data = bench.path("data/train.jsonl");
    let good = std::fs::read_to_string(&data).unwrap();
    // As many rows of the same lengths, with one letter changed; then only another spelling of the same rows.
    std::fs::write(&data, good.replacen("make", "mako", 1)).unwrap();
    let (code, message) = bench.refused(&arguments);
    assert!(code == 3 && message.contains("training data was 40 examples, content"), "{message}");
    std::fs::write(&data, good.replace("\":", "\" : ")).unwrap();
    bench.ok(&arguments);
    let weights = bench.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let (code, message) = bench.refused(&arguments);
    assert!(code == 3 && message.contains("base model was content"), "{message}");
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&snapshot(&bench.path("out"))), names(&before));
}

#[test]
fn a_folder_with_a_run_asks_for_resume_or_overwrite() {
    let bench = Bench::new();
    bench.ok(&train("out", &[]));
    std::fs::write(bench.path("out/notes.txt"), "mine").unwrap();
    let before = snapshot(&bench.path("out"));
    let (code, message) = bench.refused(&train("out", &["--seed", "1"]));
    assert_eq!(code, 3);
    assert!(message.contains("out: contains a run already, with the checkpoint step-000004"), "{message}");
    assert!(message.contains("--resume") && message.contains("--overwrite"), "{message}");
    assert!(snapshot(&bench.path("out")) == before);
    // What is refused later, with the model loaded, removes nothing either.
    let (code, message) = bench.refused(&train("out", &["--targets", "query", "--overwrite"]));
    assert!(code == 3 && message.contains("'query' is no"), "{message}");
    assert!(snapshot(&bench.path("out")) == before);
    let (code, message) = bench.refused(&train("out", &["--overwrite", "--resume"]));
    assert!(code == 2 && message.contains("contradict each other"), "{message}");
    bench.ok(&train("out", &["--seed", "1", "--overwrite", "--steps", "2"]));
    let after = snapshot(&bench.path("out"));
    assert!(after.contains_key(&bench.path("out/notes.txt")), "files of others stay");
    assert!(
        !bench.path("out/checkpoints/step-000004").exists()
            && bench.path("out/checkpoints/step-000002").exists()
    );
    // An adapter that another tool wrote is not replaced silently.
    std::fs::create_dir(bench.path("peft")).unwrap();
    std::fs::copy(bench.path("out/adapter_model.safetensors"), bench.path("peft/adapter_model.safetensors"))
        .unwrap();
    let (code, message) = bench.refused(&train("peft", &[]));
    assert!(code == 3 && message.contains("peft: contains an adapter already"), "{message}");
}

#[test]
fn a_second_run_into_a_folder_in_use_is_refused() {
    let bench = Bench::new();
    let mut first = bench
        .command(&train("out", &["--steps", "100000"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !bench.path("out/run.toml").exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    for more in [&[][..], &["--overwrite"], &["--resume"]] {
        let (code, message) = bench.refused(&train("out", more));
        assert!(
            code == 3 && message.contains("out: another run is writing into this folder"),
            "{more:?}: {message}"
        );
    }
    // SIGKILL: the lock ends with its process.
    first.kill().unwrap();
    first.wait().unwrap();
    bench.ok(&train("out", &["--overwrite"]));
    assert!(!bench.path("out/.lock").exists());
}

#[test]
fn a_refused_run_leaves_no_folder_and_no_file() {
    let bench = Bench::new();
    for (more, code) in [
        (&["--rank", "0"][..], 3),
        (&["--targets", "query"], 3),
        (&["--layers", "9"], 3),
        (&["--num-layers", "9"], 3),
        (&["--model", "nomodel"], 4),
        (&["--data", "nowhere"], 3),
        (&["--max-length", "1"], 3),
        (&["--resume"], 3),
    ] {
        let (found, message) = bench.refused(&train("deep/folder/out", more));
        assert_eq!(found, code, "{more:?}: {message}");
        assert!(!bench.path("deep").exists(), "{more:?} left a folder");
    }
    let (_, message) = bench.refused(&train("deep/folder/out", &["--resume"]));
    assert!(message.contains("deep/folder/out: there is no run to resume"), "{message}");
}

/// A constant learning rate does not depend on the end.
#[test]
fn a_run_of_constant_rate_is_extended_from_its_own_settings() {
    let bench = Bench::new();
    bench.ok(&train("out", &["--schedule", "constant"]));
    let result = bench.ok(&["train", "--config", "out/run.toml", "--steps", "6", "--resume", "--json"]);
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["steps"], 6);
}

#[test]
fn an_adapter_to_start_from_keeps_its_rank() {
    let bench = Bench::new();
    bench.ok(&train("first", &["--dropout", "0.1"]));
    let start = |more: &[&'static str]| {
        let mut arguments = vec!["train", "--model", "model", "--data", "data", "--json", "--steps", "2"];
        arguments.extend(["--adapter", "first"]);
        arguments.extend(more);
        arguments
    };
    for (more, part) in [
        (&["--out", "x", "--rank", "8"][..], "--rank is not that of the adapter first"),
        (&["--out", "x", "--alpha", "9"], "--alpha is not that of the adapter first"),
        (&["--out", "x", "--rslora"], "--rslora is not that of the adapter first"),
        (&["--out", "x", "--targets", "q_proj"], "--targets is not that of the adapter first"),
        (&["--out", "x", "--dropout", "0.3"], "--dropout is not that of the adapter first"),
        (&["--out", "x", "--num-layers", "1"], "--num-layers is not that of the adapter first"),
    ] {
        let (code, message) = bench.refused(&start(more));
        assert!(code == 3 && message.contains(part), "{message}");
    }
    assert!(!bench.path("x").exists());
    bench.ok(&start(&["--out", "second", "--rank", "4", "--dropout", "0.1"]));
    let config = std::fs::read_to_string(bench.path("second/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (config["r"].as_u64(), config["lora_dropout"].as_f64().map(|d| d as f32)),
        (Some(4), Some(0.1))
    );
    // Its run.toml resumes it.
    bench.ok(&["train", "--config", "second/run.toml", "--resume", "--json"]);
}
