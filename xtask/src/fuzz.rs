//! `cargo xtask fuzz MINUTES`: builds the targets of `fuzz/` with libFuzzer's instrumentation and runs all of them.
//!
//! The coverage flags are those of cargo-fuzz and work with the stable compiler. There is no address sanitizer: what reads
//! files has no unsafe code, and without it there are twice as many executions a second.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{cargo, root, run};

const TARGETS: [&str; 10] = [
    "adapter",
    "checkpoint",
    "config",
    "gguf",
    "rows",
    "safetensors",
    "settings",
    "template",
    "tokenizer",
    "train",
];

const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Memory limit of a target, in MiB.
const MEMORY: &str = "-rss_limit_mb=2048";
/// Limit of one execution.
const LIMIT: Duration = Duration::from_secs(10);
const TIMEOUT: &str = "-timeout=10";
/// An input that took too long is tried again so often; on a busy machine the clock alone shows nothing.
const ATTEMPTS: usize = 3;
/// Maximum length of an input, in bytes.
const MAX_LENGTH: &str = "-max_len=16384";
/// A target is started again after a finding, up to so many times.
const MAX_FINDINGS: usize = 20;
/// Maximum size of the committed corpus of a target, in bytes. Findings come on top.
const CORPUS_BYTES: u64 = 24 << 10;

const HELP: &str = "cargo xtask fuzz MINUTES [--only TARGET,TARGET] [--minimize]";

/// Result of one target.
struct Outcome {
    name: &'static str,
    executions: u64,
    elapsed: Duration,
    findings: Vec<PathBuf>,
}

/// Builds and runs the targets, as many side by side as there are cores, for so many minutes in all.
pub(crate) fn fuzz(arguments: &[String]) -> Result<(), String> {
    let minutes: f64 = arguments.first().and_then(|minutes| minutes.parse().ok()).ok_or(HELP)?;
    if !(minutes > 0.0 && minutes.is_finite()) {
        return Err(format!("{minutes} minutes: give a number above 0"));
    }
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let only: Option<BTreeSet<&str>> = only.map(|names| names.split(',').collect());
    if let Some(unknown) = only.iter().flatten().find(|name| !TARGETS.contains(*name)) {
        return Err(format!("no target '{unknown}'; there are {}", TARGETS.join(", ")));
    }
    let targets: Vec<&'static str> =
        TARGETS.into_iter().filter(|name| only.as_ref().is_none_or(|only| only.contains(name))).collect();
    let binaries = build()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(targets.len());
    let each = Duration::from_secs_f64(minutes * 60.0 * cores as f64 / targets.len() as f64);
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..cores {
            threads.spawn(|| {
                while let Some(name) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_target(&binaries, name, each);
                    outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let outcomes = outcomes.into_iter().collect::<Result<Vec<_>, String>>()?;
    let count = report(&outcomes);
    if arguments.iter().any(|argument| argument == "--minimize") {
        for name in targets {
            minimize(&binaries, name)?;
        }
    }
    if count > 0 { Err(format!("{count} findings")) } else { Ok(()) }
}

/// Builds all targets and returns the folder of their binaries.
fn build() -> Result<PathBuf, String> {
    let rustc = Command::new("rustc").arg("-vV").output().map_err(|e| format!("rustc: cannot start: {e}"))?;
    let text = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let mut command = cargo();
    command.args(["build", "--release", "--manifest-path"]).arg(root().join("fuzz/Cargo.toml"));
    // With a target given, build scripts and macros are compiled without the flags.
    command.args(["--target", host]).env("RUSTFLAGS", FLAGS).env_remove("CARGO_TARGET_DIR");
    run("fuzz: build", &mut command)?;
    Ok(root().join("fuzz/target").join(host).join("release"))
}

fn folder(kind: &str, name: &str) -> Result<PathBuf, String> {
    let folder = root().join("fuzz").join(kind).join(name);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: cannot create: {e}", folder.display()))?;
    Ok(folder)
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let failed = |e| format!("{}: cannot read: {e}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

/// Runs a target until its time is over. After a finding it goes on with a new process.
fn run_target(binaries: &Path, name: &'static str, time: Duration) -> Result<Outcome, String> {
    let (work, corpus, artifacts) =
        (folder("work", name)?, folder("corpus", name)?, folder("artifacts", name)?);
    let log = folder("work", "logs")?.join(format!("{name}.log"));
    let before = files(&artifacts)?;
    let mut outcome = Outcome { name, executions: 0, elapsed: Duration::ZERO, findings: Vec::new() };
    let start = Instant::now();
    while start.elapsed() < time && outcome.findings.len() < MAX_FINDINGS {
        let left = (time - start.elapsed()).as_secs().max(1);
        let output = File::create(&log).map_err(|e| format!("{}: cannot create: {e}", log.display()))?;
        let dictionary = root().join(format!("fuzz/dictionaries/{name}.dict"));
        let dictionary = dictionary.is_file().then(|| format!("-dict={}", dictionary.display()));
        let status = Command::new(binaries.join(name))
            .args([&work, &corpus])
            .args(dictionary)
            .args([MEMORY, TIMEOUT, MAX_LENGTH, "-print_final_stats=1", &format!("-max_total_time={left}")])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .stdout(Stdio::null())
            .stderr(output)
            .status()
            .map_err(|e| format!("{name}: cannot start: {e}"))?;
        let text = std::fs::read(&log).map_err(|e| format!("{}: cannot read: {e}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        outcome.executions += executions(&text);
        let known: BTreeSet<PathBuf> = before.iter().chain(&outcome.findings).cloned().collect();
        let new: Vec<PathBuf> = files(&artifacts)?.difference(&known).cloned().collect();
        // An input that was a finding before, or a start that fails, would fail for ever.
        if !status.success() && new.is_empty() {
            println!("{name}: {status}: {}", cause(&text));
            outcome.findings.push(log);
            break;
        }
        for path in new {
            if is_slow(&path) && passes(&binaries.join(name), &path)? {
                std::fs::remove_file(&path).map_err(|e| format!("{}: cannot remove: {e}", path.display()))?;
                continue;
            }
            println!("{name}: {status}: {}", cause(&text));
            outcome.findings.push(path);
        }
    }
    outcome.elapsed = start.elapsed();
    Ok(outcome)
}

/// Whether an artifact is an input that took too long.
fn is_slow(artifact: &Path) -> bool {
    let name = artifact.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("timeout-") || name.starts_with("slow-unit-")
}

/// Whether an input that took too long is within the limit when it is run by itself.
fn passes(binary: &Path, input: &Path) -> Result<bool, String> {
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        let status = Command::new(binary)
            .args([MEMORY, TIMEOUT, "-artifact_prefix=/dev/null/"])
            .arg(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|e| format!("{}: cannot start: {e}", binary.display()))?;
        if status.success() && start.elapsed() < LIMIT {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Number of executions that libFuzzer reports, at its end or in its last line of progress.
fn executions(log: &str) -> u64 {
    let last = log.lines().rev().find_map(|line| {
        let number = match line.strip_prefix("stat::number_of_executed_units:") {
            Some(number) => number.trim(),
            None => line.strip_prefix('#')?.split_whitespace().next()?.trim_end_matches(':'),
        };
        number.parse().ok()
    });
    last.unwrap_or(0)
}

/// The line of a log that says why a target ended.
fn cause(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    if let Some(at) = panic {
        return lines[at..].iter().take(2).map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    }
    let error = lines.iter().find(|line| line.contains("ERROR: libFuzzer"));
    error.map_or_else(|| "no cause in the log".to_owned(), |line| line.trim().to_owned())
}

fn report(outcomes: &[Outcome]) -> usize {
    println!("{:<12} {:>12} {:>10} {:>9}", "target", "executions", "a second", "findings");
    for outcome in outcomes {
        let rate = outcome.executions as f64 / outcome.elapsed.as_secs_f64().max(1e-9);
        let findings = outcome.findings.len();
        println!("{:<12} {:>12} {rate:>10.0} {findings:>9}", outcome.name, outcome.executions);
    }
    let (all, count) = outcomes
        .iter()
        .fold((0, 0), |(all, count), outcome| (all + outcome.executions, count + outcome.findings.len()));
    println!("{:<12} {all:>12} {:>10} {count:>9}", "all", "");
    for path in outcomes.iter().flat_map(|outcome| &outcome.findings) {
        println!("finding: {}", path.display());
    }
    count
}

/// Replaces the committed corpus by a small one with the same coverage, as far as it fits. Files whose names begin with
/// `finding` stay.
fn minimize(binaries: &Path, name: &str) -> Result<(), String> {
    let (work, corpus) = (folder("work", name)?, folder("corpus", name)?);
    let merged = folder("work", &format!("{name}-merged"))?;
    std::fs::remove_dir_all(&merged).map_err(|e| format!("{}: cannot remove: {e}", merged.display()))?;
    let merged = folder("work", &format!("{name}-merged"))?;
    let mut command = Command::new(binaries.join(name));
    command.args(["-set_cover_merge=1", MEMORY, TIMEOUT, MAX_LENGTH]).args([&merged, &corpus, &work]);
    run(&format!("fuzz: minimize {name}"), command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(u64::MAX, |metadata| metadata.len());
    let mut chosen: Vec<(u64, PathBuf)> =
        files(&merged)?.into_iter().map(|path| (size(&path), path)).collect();
    chosen.sort();
    let mut total = 0;
    chosen.retain(|(size, _)| {
        total += size;
        total <= CORPUS_BYTES
    });
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    for path in files(&corpus)? {
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("finding")) {
            std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
        }
    }
    for (_, path) in &chosen {
        let copy = corpus.join(path.file_name().unwrap_or_default());
        std::fs::copy(path, &copy).map_err(|e| failed(&copy, e))?;
    }
    println!("{name}: {} inputs", chosen.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_and_causes_are_read_from_logs() {
        let progress = "INFO: Seed: 1\n#2\tINITED cov: 5\n#4096\tpulse  cov: 9 exec/s: 2048\n";
        assert_eq!(executions(progress), 4096);
        assert_eq!(
            executions(&format!(
                "{progress}stat::number_of_executed_units: 5000\nstat::new_units_added: 3\n"
            )),
            5000
        );
        assert_eq!(executions("nothing"), 0);
        let panic = "thread '<unnamed>' panicked at src/a.rs:5:1:\nindex out of bounds\n==1== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(cause(panic), "thread '<unnamed>' panicked at src/a.rs:5:1: index out of bounds");
        assert_eq!(cause("==1== ERROR: libFuzzer: out-of-memory\n"), "==1== ERROR: libFuzzer: out-of-memory");
    }

    #[test]
    fn slow_inputs_are_told_from_other_findings() {
        let names = ["timeout-1f", "slow-unit-1f", "crash-1f", "oom-1f", "leak-1f"];
        assert_eq!(
            names.map(|name| is_slow(Path::new("a").join(name).as_path())),
            [true, true, false, false, false]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_slow_input_counts_if_it_is_slow_by_itself() {
        // What a target does with the one input that it is given.
        let folder = std::env::temp_dir().join(format!("metal-candle-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let input = folder.join("timeout-1f");
        std::fs::write(&input, "x").unwrap();
        for (status, expected) in [("0", true), ("70", false)] {
            let target = folder.join(format!("target-{status}"));
            std::fs::write(&target, format!("#!/bin/sh\nexit {status}\n")).unwrap();
            std::fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            assert_eq!(passes(&target, &input), Ok(expected));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn every_target_is_in_the_manifest() {
        let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        let names: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
            .skip(1)
            .collect();
        assert_eq!(names, TARGETS);
    }
}
