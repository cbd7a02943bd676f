//! The tool as a person uses it, on a tiny model: training, resuming after a kill, evaluating, merging, bad input.

#[path = "tiny_model/flags.rs"]
mod flags;
mod tiny_model;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flags::replaced;
use serde_json::Value;
use tiny_model::Bench;

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![
        "train",
        "--model",
        "model",
        "--data",
        "data",
        "--out",
        out,
        "--steps",
        "60",
        "--save-every",
        "2",
    ];
    arguments.extend([
        "--batch-size",
        "4",
        "--rank",
        "4",
        "--eval-every",
        "20",
        "--dropout",
        "0.1",
        "--json",
    ]);
    replaced(&arguments, more)
}

fn adapter(bench: &Bench, out: &str) -> Vec<u8> {
    std::fs::read(bench.path(out).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_leaves_adapter_metrics_curves_and_settings() {
    let bench = Bench::new();
    let result: Value = serde_json::from_str(&bench.ok(&train("out", &[]))).unwrap();
    assert_eq!(result["steps"], 60);
    let (first, best) =
        (result["first_valid_loss"].as_f64().unwrap(), result["best_valid_loss"].as_f64().unwrap());
    assert!(best < 0.8 * first, "{result}");
    let out = bench.path("out");
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.jsonl",
        "loss.svg",
        "loss.png",
        "run.toml",
    ] {
        assert!(out.join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let reports: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports[0]["step"], 0);
    assert_eq!(reports[0]["valid_loss"].as_f64(), Some(first));
    assert!(
        reports[1]["train_loss"].is_f64()
            && reports[1]["tokens_per_second"].is_f64()
            && reports[1]["learning_rate"].is_f64()
    );

    // The settings file repeats the run.
    let toml = out.join("run.toml");
    bench.ok(&["train", "--config", toml.to_str().unwrap(), "--out", "again", "--json"]);
    assert!(adapter(&bench, "out") == adapter(&bench, "again"));

    // Evaluation with the adapter gives the best validation loss; merged into the base it is the same.
    let eval = |arguments: &[&str]| -> f64 {
        let mut all = vec!["eval", "--data", "data/valid.jsonl", "--json"];
        all.extend_from_slice(arguments);
        serde_json::from_str::<Value>(&bench.ok(&all)).unwrap()["loss"].as_f64().unwrap()
    };
    let with = eval(&["--model", "model", "--adapter", "out"]);
    assert!((with - best).abs() < 1e-4 * best, "{with} and {best}");
    let merged = bench.ok(&["merge", "--model", "model", "--adapter", "out", "--out", "merged"]);
    assert!(merged.contains("14 modules merged") && merged.contains("greatest relative error"), "{merged}");
    assert!((eval(&["--model", "merged"]) - with).abs() < 1e-4, "merged");

    let text = bench.ok(&[
        "generate",
        "--model",
        "model",
        "--adapter",
        "out",
        "--prompt",
        "3 and 3 ",
        "--json",
        "--max-tokens",
        "8",
    ]);
    let generated: Value = serde_json::from_str(&text).unwrap();
    assert!(generated["text"].as_str().unwrap().starts_with("mak"), "{generated}");
}

/// Killed without warning at any moment, and resumed: the result is that of the run that nothing disturbed.
#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let bench = Bench::new();
    bench.ok(&train("whole", &[]));
    let checkpoints = bench.path("parts/checkpoints");
    let steps = || {
        let entries =
            std::fs::read_dir(&checkpoints).map(|entries| entries.flatten().map(|e| e.file_name()).collect());
        let names: Vec<_> = entries.unwrap_or_default();
        names
            .iter()
            .filter_map(|n: &std::ffi::OsString| n.to_str()?.strip_prefix("step-")?.parse::<u32>().ok())
            .max()
    };
    let mut arguments = train("parts", &[]);
    let mut killed = 0;
    for wanted in [6, 20, 34] {
        let mut child =
            bench.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while steps().is_none_or(|step| step < wanted) && start.elapsed() < Duration::from_secs(60) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // SIGKILL: no handler runs.
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if !arguments.contains(&"--resume") {
            arguments.push("--resume");
        }
    }
    assert!(killed >= 2, "the run was over before it could be killed");
    bench.ok(&arguments);
    assert!(adapter(&bench, "whole") == adapter(&bench, "parts"), "the resumed adapter differs");
    let losses = |out: &str| {
        let text = std::fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
        let report = |line: &str| -> (Value, Value, Value) {
            let report: Value = serde_json::from_str(line).unwrap();
            (report["step"].clone(), report["train_loss"].clone(), report["valid_loss"].clone())
        };
        text.lines().map(report).collect::<Vec<_>>()
    };
    assert_eq!(losses("whole"), losses("parts"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let bench = Bench::new();
    let mut child = bench
        .command(&train("out", &["--steps", "100000"]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !bench.path("out/checkpoints").exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("everything so far is saved") && text.contains("--resume"), "{text}");
    assert!(bench.path("out/adapter_model.safetensors").exists() && bench.path("out/loss.svg").exists());
}

#[test]
fn bad_data_is_named_by_file_and_line() {
    let bench = Bench::new();
    let data = bench.path("broken");
    std::fs::create_dir(&data).unwrap();
    let good = "{\"text\": \"a b c\"}\n";
    std::fs::write(data.join("train.jsonl"), format!("{}{{\"text\": \n{good}", good.repeat(16))).unwrap();
    let (code, message) = bench.refused(&["train", "--model", "model", "--data", "broken", "--out", "o"]);
    assert!(code == 3 && message.contains("train.jsonl (line 17): is not valid JSON"), "{message}");
    assert!(!bench.path("o").exists(), "nothing is written for a run that cannot start");
    std::fs::write(data.join("train.jsonl"), "").unwrap();
    let (code, message) = bench.refused(&["train", "--model", "model", "--data", "broken"]);
    assert!(code == 3 && message.contains("contains no rows"), "{message}");
    let (code, message) = bench.refused(&["train", "--model", "model", "--data", "nowhere"]);
    assert!(code == 3 && message.contains("nowhere: dataset not found"), "{message}");
}

#[test]
fn bad_values_are_refused_with_advice() {
    let bench = Bench::new();
    for (more, part) in [
        (vec!["--rank", "0"], "--rank: 0 is out of range"),
        (vec!["--targets", "query"], "'query' is no linear layer of this model"),
        (vec!["--learning-rate", "0"], "--learning-rate: 0 is out of range"),
        (vec!["--layers", "9"], "layer 9 does not exist"),
        (vec!["--batch-size", "0"], "--batch-size: 0 is out of range"),
        (vec!["--max-length", "1"], "--max-length: 1 is out of range"),
    ] {
        let mut arguments = vec!["train", "--model", "model", "--data", "data", "--out", "o"];
        arguments.extend(&more);
        let (code, message) = bench.refused(&arguments);
        assert!(code == 3 && message.contains(part), "{more:?}: {message}");
    }
    let long = "x".repeat(500);
    let (code, message) = bench.refused(&["generate", "--model", "model", "--prompt", &long]);
    assert!(code == 3 && message.contains("has 500 tokens, the model's context is 128"), "{message}");
    let (code, message) = bench.refused(&["generate", "--model", "nomodel", "--prompt", "x"]);
    assert!(code == 4 && message.contains("'nomodel' is not a model"), "{message}");
    let (code, message) = bench.refused(&["pull"]);
    assert!(code == 4 && message.contains("--model /path/to"), "{message}");
}

#[test]
fn damaged_models_are_named() {
    let bench = Bench::new();
    let file = bench.path("model/model.safetensors");
    let good = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let (code, message) = bench.refused(&["generate", "--model", "model", "--prompt", "x"]);
        assert_eq!(code, 3, "{message}");
        message
    };
    assert!(refused(&good[..good.len() - 100]).contains("model.safetensors"));
    assert!(refused(&good[..20]).contains("model.safetensors"));
    // A header that says the data are elsewhere.
    let text = String::from_utf8_lossy(&good[8..]).find("\"data_offsets\":[").unwrap();
    let mut lying = good.clone();
    lying[8 + text + 16] = b'9';
    assert!(refused(&lying).contains("model.safetensors"));
    // A NaN in the weights.
    let mut broken = good.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let message = refused(&broken);
    assert!(
        message.contains("NaN") && message.contains("model.norm.weight") | message.contains("weight"),
        "{message}"
    );
    std::fs::write(bench.path("x.gguf"), b"GGUF\x03\0\0\0").unwrap();
    let (code, message) = bench.refused(&["generate", "--model", "x.gguf", "--prompt", "x"]);
    assert!(code == 3 && message.contains("x.gguf"), "{message}");
}

#[cfg(unix)]
#[test]
fn an_output_folder_that_cannot_be_written_is_told_at_once() {
    let bench = Bench::new();
    // A folder that not even root can write to.
    let (code, message) =
        bench.refused(&["train", "--model", "model", "--data", "data", "--out", "/proc/out"]);
    assert!(code == 3 && message.contains("/proc/out: cannot write"), "{message}");
    std::fs::write(bench.path("file"), "x").unwrap();
    let (code, message) = bench.refused(&["train", "--model", "model", "--data", "data", "--out", "file"]);
    assert!(code == 3 && message.contains("cannot write"), "{message}");
}

/// A disk of 300 kB fills up while training; what was complete stays so.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let disk = bench.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = |arguments: &[&str]| {
        let status = Command::new(arguments[0]).args(&arguments[1..]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let target = disk.to_str().unwrap();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", target]) {
        println!("SKIPPED a_full_disk: mounting a tmpfs needs root");
        return;
    }
    let output = bench.run(&train("disk/out", &["--keep-checkpoints", "50"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let complete = std::fs::read_dir(disk.join("out/checkpoints"))
        .map_or(0, |entries| entries.flatten().filter(|e| e.path().join("manifest.json").exists()).count());
    let half = std::fs::read_dir(disk.join("out/checkpoints")).map_or(0, |entries| {
        entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(".writing-")).count()
    });
    assert!(mount(&["umount", target]));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot write: No space left on device"), "{text}");
    assert!(text.contains("try: free space on that disk") && text.contains("--resume"), "{text}");
    let rescued = text.split("is saved in ").nth(1).and_then(|rest| rest.lines().next()).expect(&text);
    metal_candle::training::Adapter::load(&bench.path(rescued)).unwrap();
    assert!(complete >= 1 && half == 0, "{complete} complete, {half} half: {text}");
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let bench = Bench::new();
    let text = bench.ok(&["train", "--model", "model", "--data", "data", "--dry-run", "--json"]);
    let plan: Value = serde_json::from_str(&text).unwrap();
    // Rank 8 on q, o (64 x 64), k, v (32 x 64), gate, up, down (96 x 64) of two layers.
    assert_eq!(plan["trainable"], 2 * 8 * (2 * 128 + 2 * 96 + 3 * 160));
    assert!(plan["bytes"].as_u64().unwrap() > 500_000);
    assert!(!bench.path("adapters").exists());
}
