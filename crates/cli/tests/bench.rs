//! `metal-candle bench` and `--profile` as a person uses them: peers that cheat are refused, those that are missing are
//! named, and what was measured is written.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
    command.args(arguments).env("METAL_CANDLE_OFFLINE", "1").env_remove("METAL_CANDLE_MODEL");
    command.stdin(Stdio::null());
    command
}

fn ok(command: &mut Command) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(status.success(), "{command:?}: {out}{err}");
    (out, err)
}

/// Whether Python has these modules; if not, the test says that it is skipped.
fn python_has(test: &str, modules: &str) -> bool {
    let import = format!("import {modules}");
    let status = Command::new("python3").args(["-c", &import]).stderr(Stdio::null()).status();
    let has = status.is_ok_and(|status| status.success());
    if !has {
        println!("SKIPPED {test}: no python3 with {modules}");
    }
    has
}

/// A tiny Llama with a vocabulary of 256.
fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama")
}

/// The tiny model's folder with a tokenizer, which loading wants.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny().join(file), model.join(file)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        (0..256_u32).map(|id| (char::from_u32(0x4e00 + id).unwrap().to_string(), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    model
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const ONE_ROW: [&str; 7] = ["bench", "ops", "--filter", "softmax 1x1024", "--rounds", "2", "--quiet"];

/// The pattern of the plan's benchmark, through the whole tool: eight results asked for, one evaluated.
#[test]
fn the_flawed_pattern_gets_no_ratio() {
    if !python_has("the_flawed_pattern_gets_no_ratio", "json") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ops.json");
    let (text, _) = ok(tool(&ONE_ROW).args(["--peers", "flawed,candle", "--json"]).arg(&file));
    assert!(text.contains("flawed: refused: results were not computed when the clock stopped"), "{text}");
    let line = text.lines().find(|line| line.starts_with("softmax ")).unwrap();
    // candle is a peer that computes: it has a ratio with its spread in the same line.
    assert!(line.contains("refused [1]") && line.matches('(').count() == 2, "{line}");
    let report = json(&file);
    let peers = report["rows"][0]["peers"].as_array().unwrap();
    assert!(peers[0]["refused"]["why"].as_str().unwrap().contains("not computed"), "{report}");
    assert!(peers[0].get("measured").is_none());
    let candle = &peers[1]["measured"];
    assert!(candle["ratios"]["latency"]["median"].as_f64().unwrap() > 0.0, "{report}");
    assert!(candle["difference"].as_f64().unwrap() < 1e-6 && candle["form"] == "fused", "{report}");
}

#[test]
fn mlx_used_as_the_plan_used_it_is_refused_and_used_rightly_it_is_not() {
    if !python_has("mlx_used_as_the_plan_used_it_is_refused", "mlx.core, numpy") {
        return;
    }
    let filter = ["bench", "ops", "--filter", "softmax 64x1024", "--rounds", "2", "--quiet"];
    let (text, _) = ok(tool(&filter).args(["--peers", "flawed-mlx,mlx"]));
    assert!(text.contains("flawed-mlx: refused: results were not computed"), "{text}");
    assert!(text.contains("mlx (mlx 0"), "mlx itself is measured: {text}");
}

/// Forward and gradients of every operation by candle, and by torch and MLX where they are installed: equal to ours.
#[test]
fn every_operation_of_every_peer_agrees_with_ours() {
    let mut peers = vec!["candle"];
    for (name, modules) in [("torch", "torch, numpy"), ("mlx", "mlx.core, numpy")] {
        if python_has("every_operation_of_every_peer (this peer)", modules) {
            peers.push(name);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ops.json");
    let mut command = tool(&["bench", "ops", "--rounds", "1", "--quiet", "--peers", &peers.join(",")]);
    for filter in [" 1x1024", "1 rows, 512", "attention", "axis 1"] {
        command.args(["--filter", filter]);
    }
    ok(command.arg("--json").arg(&file));
    let report = json(&file);
    let rows = report["rows"].as_array().unwrap();
    // softmax along two axes, both norms, a layer with its adapter, attention: forward and with gradients.
    assert_eq!(rows.len(), 12);
    for row in rows {
        let outcomes = row["peers"].as_array().unwrap();
        assert_eq!(outcomes.len(), peers.len());
        for outcome in outcomes {
            assert!(outcome["measured"]["difference"].as_f64().is_some_and(|d| d < 1e-4), "{row}");
        }
    }
}

#[test]
fn a_filter_that_fits_nothing_is_told() {
    let output = tool(&["bench", "ops", "--filter", "d = 512"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && message.contains("nothing contains 'd = 512'"), "{message}");
}

#[test]
fn a_missing_peer_is_named_with_the_command_that_installs_it() {
    let (text, err) = ok(tool(&["bench", "ops", "--filter", "softmax 1x1024", "--rounds", "1"])
        .args(["--peers", "torch,mlx,llama.cpp"])
        .env("METAL_CANDLE_PYTHON", "no-such-python"));
    for out in [&text, &err] {
        assert!(out.contains("torch is missing ("), "{out}");
        assert!(out.contains("install it with: python3 -m pip install torch numpy"), "{out}");
        assert!(out.contains("mlx is missing (") && out.contains("python3 -m pip install mlx"), "{out}");
        assert!(out.contains("llama.cpp is not measured: it has no single operations"), "{out}");
    }
    let output = tool(&["bench", "ops", "--peers", "jax"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && message.contains("candle, mlx, torch, llama.cpp"),
        "{message}"
    );
    let output =
        tool(&["bench", "--explain-plan"]).env("METAL_CANDLE_PYTHON", "no-such-python").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && message.contains("error: mlx is missing"), "{message}");
    assert!(message.contains("try: python3 -m pip install mlx"), "{message}");
}

#[test]
fn the_plans_figures_are_reproduced_and_refuted() {
    if !python_has("the_plans_figures_are_reproduced_and_refuted", "mlx.core, numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.json");
    let (text, _) = ok(tool(&["bench", "explain-plan", "--rounds", "1", "--quiet", "--json"]).arg(&file));
    assert!(text.contains("refused: results were not computed when the clock stopped"), "{text}");
    let report = json(&file);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    for row in rows {
        assert!(row["low_by"].as_f64().unwrap() > 2.0, "the flawed figure is far too low: {row}");
    }
}

#[test]
fn a_models_step_and_generation_are_measured_beside_peers_that_agree() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let run = |job: &str, peers: &str| {
        let file = folder.path().join("report.json");
        let sizes = match job {
            "train" => ["--batch-size", "2", "--length", "16"],
            _ => ["--prompt", "20", "--tokens", "8"],
        };
        let (text, _) =
            ok(tool(&["bench", job, "--rounds", "2", "--quiet", "--threads", "1", "--peers", peers])
                .args(sizes)
                .arg("--model")
                .arg(&model)
                .arg("--json")
                .arg(&file)
                .env("METAL_CANDLE_COMPARE_CANDLE", "no-such-program"));
        (text, json(&file))
    };
    let (text, report) = run("train", "candle,llama.cpp");
    assert!(text.contains("candle is not measured: candle-transformers has no training of LoRA"), "{text}");
    assert!(text.contains("training step, tokens/s") && report["quantities"][0]["tokens"] == 32, "{text}");
    let (text, report) = run("generate", "candle");
    assert!(
        text.contains("candle is missing (") && text.contains("cargo install --path compare/candle"),
        "{text}"
    );
    assert_eq!(report["quantities"][1]["tokens"], 8);
    assert!(report["ours"][1]["median"].as_f64().unwrap() > 0.0, "{report}");
    if !python_has("a_models_step_and_generation_beside_torch", "torch, numpy, transformers, peft") {
        return;
    }
    for job in ["train", "generate"] {
        let (text, report) = run(job, "torch");
        let torch = &report["peers"][0]["measured"];
        assert!(torch["ratios"][0]["median"].as_f64().is_some_and(|ratio| ratio > 0.0), "{text}");
        let agreement = torch["agreement"].as_str().unwrap();
        let part =
            if job == "train" { "losses of 3 steps within" } else { "the first 8 of 8 tokens are ours" };
        assert!(agreement.contains(part), "{agreement}");
    }
}

#[test]
fn a_profile_is_shown_and_a_trace_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let trace = folder.path().join("trace.json");
    let (text, err) =
        ok(tool(&["generate", "--raw", "--prompt", "一丁", "--max-tokens", "3", "--json", "--profile"])
            .arg("--model")
            .arg(&model)
            .arg("--trace")
            .arg(&trace));
    assert!(serde_json::from_str::<Value>(&text).unwrap()["tokens"].as_array().unwrap().len() == 3, "{text}");
    for part in ["operation", "of the roofline", "matmul", "attention", "GFLOP/s in f32", "no operation's"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let trace = json(&trace);
    let events = trace["traceEvents"].as_array().unwrap();
    let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    // Three runs at the least: the prompt, and two tokens after the first.
    assert!(spans.iter().filter(|span| span["name"] == "run").count() >= 3);
    for span in &spans {
        assert!(span["ts"].as_f64().unwrap() >= 0.0 && span["dur"].as_f64().unwrap() >= 0.0, "{span}");
    }
    let steps = spans.iter().filter(|span| span["args"]["flops"].as_u64().is_some_and(|flops| flops > 0));
    assert!(steps.count() > 10, "steps carry what they cost");
    let (_, err) = ok(tool(&ONE_ROW).arg("--profile"));
    assert!(err.contains("softmax"), "{err}");
}
