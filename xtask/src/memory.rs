//! `cargo xtask memory`: the memory that a training run was expected to need, and the most that it had.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{cargo, model, root, run};

/// The estimate may be off by this share of the peak.
const ALLOWED: f64 = 0.10;

/// One training run.
struct Case {
    dtype: &'static str,
    checkpoint: bool,
    data: &'static str,
    batch: &'static str,
}

/// Measures short runs of the default model (METAL_CANDLE_MODEL) in every dtype, with and without checkpointed layers, for a
/// small and a large batch, and fails where an estimate is off by more than 10 %. `--binary FILE` takes a built tool.
pub(crate) fn memory(arguments: &[String]) -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("the peak of another process is read from /proc, which only Linux has".to_owned());
    }
    let binary = match arguments {
        [flag, path] if flag == "--binary" => PathBuf::from(path),
        [] => {
            run("the tool", cargo().args(["build", "--release", "-p", "metal-candle-cli"]))?;
            root().join("target/release/metal-candle")
        }
        _ => return Err("cargo xtask memory [--binary FILE]".to_owned()),
    };
    let model = model()?;
    let folder = std::env::temp_dir().join(format!("metal-candle-memory-{}", std::process::id()));
    let result = measure(&binary, &model, &folder);
    drop(std::fs::remove_dir_all(&folder));
    result
}

fn measure(binary: &Path, model: &Path, folder: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    for (name, words, rows) in [("short", 5, 8), ("long", 21, 16)] {
        let data = folder.join(name);
        std::fs::create_dir_all(&data).map_err(failed)?;
        let row = |index: usize| {
            let prompt = format!("{}{index}", "the cat is here ".repeat(words));
            json!({"prompt": prompt, "completion": " a dog sat on it".repeat(words)}).to_string() + "\n"
        };
        std::fs::write(data.join("train.jsonl"), (0..rows).map(row).collect::<String>()).map_err(failed)?;
    }
    println!(
        "| dtype | layers | batch | estimate, MiB | peak, MiB | estimate / peak |\n|---|---|---|---|---|---|"
    );
    let mut worst: f64 = 0.0;
    for dtype in ["f32", "bf16", "f16"] {
        for checkpoint in [false, true] {
            for (data, batch) in [("short", "1"), ("long", "8")] {
                let case = Case { dtype, checkpoint, data, batch };
                let (estimate, peak) = one(binary, model, folder, &case)?;
                let ratio = estimate / peak;
                worst = worst.max((ratio - 1.0).abs());
                let layers = if checkpoint { "checkpointed" } else { "kept" };
                println!(
                    "| {dtype} | {layers} | {batch} x {data} | {:.0} | {:.0} | {ratio:.3} |",
                    estimate / 1048576.0,
                    peak / 1048576.0
                );
            }
        }
    }
    println!("the worst estimate is off by {:.1} %", 100.0 * worst);
    if worst <= ALLOWED { Ok(()) } else { Err(format!("more than {:.0} % is too much", 100.0 * ALLOWED)) }
}

/// The estimate and the peak of one run, in bytes.
fn one(binary: &Path, model: &Path, folder: &Path, case: &Case) -> Result<(f64, f64), String> {
    let train = || {
        let mut command = Command::new(binary);
        command.arg("train").arg("--data").arg(folder.join(case.data)).arg("--out").arg(folder.join("out"));
        command.args([
            "--batch-size",
            case.batch,
            "--max-length",
            "256",
            "--steps",
            "2",
            "--train-on",
            "all",
        ]);
        command.args(["--dtype", case.dtype, "--no-samples", "--json", "--quiet", "--overwrite"]);
        command.args(if case.checkpoint { &["--grad-checkpoint"][..] } else { &[] });
        command.env("METAL_CANDLE_MODEL", model).stdin(Stdio::null());
        command
    };
    let output = train().arg("--dry-run").output().map_err(|e| format!("{}: {e}", binary.display()))?;
    let plan: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("no estimate: {}", String::from_utf8_lossy(&output.stderr)))?;
    let estimate = plan["bytes"].as_f64().ok_or("the plan has no bytes")?;
    let mut child =
        train().stdout(Stdio::null()).spawn().map_err(|e| format!("{}: {e}", binary.display()))?;
    let peak = peak(&mut child)?;
    Ok((estimate, peak))
}

/// The most memory that a process had until its end, in bytes. The system keeps the maximum itself, so that only the last
/// milliseconds could be missed.
fn peak(child: &mut Child) -> Result<f64, String> {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0.0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status)
            && let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
            && let Some(kilobytes) = line.split_whitespace().next().and_then(|word| word.parse::<f64>().ok())
        {
            peak = 1024.0 * kilobytes;
        }
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(peak),
            Some(status) => return Err(format!("the run failed: {status}")),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
