//! The steps of `cargo xtask mac`, in the order in which they tell most: compiler, tests, leaks, measurements.

use std::fmt;
use std::time::Duration;

/// Where results go, relative to the repository. Steps name files in it.
pub(super) const FOLDER: &str = "target/mac-report";

/// The step that fetches the default model.
pub(super) const MODEL: &str = "model";

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Name for the command line and for its log.
    pub(super) name: &'static str,
    /// What it shows, in a few words.
    pub(super) what: &'static str,
    pub(super) action: Action,
    /// Time after which it is ended.
    pub(super) limit: Duration,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Runs cargo.
    Run(Invocation),
    /// Runs a test under Apple's leak checker.
    Leaks(LeakCheck),
}

/// A call of cargo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) arguments: Vec<&'static str>,
    pub(super) variables: &'static [(&'static str, &'static str)],
}

/// A test of the target `metal` under `leaks`, with few and with many repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeakCheck {
    pub(super) test: &'static str,
    pub(super) few: u64,
    pub(super) many: u64,
    /// The test loses one block per repeat on purpose, which the checker must find.
    pub(super) planted: bool,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(Invocation { arguments, variables }) => {
                variables.iter().try_for_each(|(name, value)| write!(f, "{name}={value} "))?;
                write!(f, "cargo {}", arguments.join(" "))
            }
            Self::Leaks(check) => write!(
                f,
                "METAL_CANDLE_REPEATS={} and {}: leaks --atExit -- target/debug/deps/metal-… --exact {}",
                check.few, check.many, check.test
            ),
        }
    }
}

/// Metal's own checks of API use and of the memory that kernels access.
const VALIDATION: &[(&str, &str)] =
    &[("MTL_DEBUG_LAYER", "1"), ("MTL_SHADER_VALIDATION", "1"), ("OBJC_DEBUG_MISSING_POOLS", "YES")];

const MINUTE: Duration = Duration::from_secs(60);

fn step(name: &'static str, what: &'static str, minutes: u32, action: Action) -> Step {
    Step { name, what, action, limit: minutes * MINUTE }
}

fn run(arguments: &[&'static str], variables: &'static [(&'static str, &'static str)]) -> Action {
    Action::Run(Invocation { arguments: arguments.to_vec(), variables })
}

/// A call of the tool, built for speed.
fn tool(arguments: &[&'static str]) -> Action {
    run(&[&["run", "--release", "-p", "metal-candle-cli", "--"], arguments].concat(), &[])
}

/// The tests that need a GPU, one at a time.
fn tests(variables: &'static [(&'static str, &'static str)]) -> Action {
    let targets = ["--lib", "--test", "kernels", "--test", "ops", "--test", "models", "--test", "training"];
    let more = ["--test", "candle", "--test", "metal", "--test", "examples"];
    let harness = ["--", "--test-threads", "1", "--nocapture"];
    run(&[&["test", "--no-fail-fast"][..], &targets, &more, &harness].concat(), variables)
}

fn leaks(test: &'static str, many: u64, planted: bool) -> Action {
    Action::Leaks(LeakCheck { test, few: 1, many, planted })
}

/// Every step.
pub(super) fn all() -> Vec<Step> {
    let calibration =
        ["test", "--test", "metal", "calibration::the_answers", "--", "--test-threads", "1", "--nocapture"];
    vec![
        step(
            "kernels",
            "every kernel file through Apple's compiler, every pipeline where the GPU is one of Apple's",
            60,
            run(&["test", "--test", "kernels", "--", "--nocapture"], &[]),
        ),
        step("doctor", "what the machine has", 30, tool(&["doctor", "--json"])),
        step(MODEL, "the default model, for the steps that need one", 30, tool(&["pull", "--json"])),
        step("tests", "the tests on the GPU", 120, tests(&[])),
        step("tests-validated", "the same under Metal's API and shader validation", 240, tests(VALIDATION)),
        step(
            "calibration",
            "answers that only a Mac can give, for the software device",
            30,
            run(&calibration, &[]),
        ),
        step(
            "leaks-control",
            "the leak checker finds memory lost on purpose",
            30,
            leaks("repeats::memory_is_lost_on_purpose", 1000, true),
        ),
        step(
            "leaks-repeats",
            "a thousand repeats of a program leave what one leaves",
            30,
            leaks("repeats::a_program_gives_the_same_result_every_time", 1000, false),
        ),
        step(
            "leaks-training",
            "a hundred training steps leave what one leaves",
            30,
            leaks("repeats::a_training_run_lowers_the_loss", 100, false),
        ),
        step(
            "tune",
            "matrix products timed through both implementations",
            60,
            tool(&["tune", "--out", "target/mac-report/tune.json"]),
        ),
        step("ops-f32", "operations in f32", 60, operations("f32", "target/mac-report/ops-f32.json", true)),
        step("ops-f16", "operations in f16", 60, operations("f16", "target/mac-report/ops-f16.json", true)),
        step(
            "ops-bf16",
            "operations in bf16",
            60,
            operations("bf16", "target/mac-report/ops-bf16.json", false),
        ),
        step("train", "a LoRA step of the default model", 60, model("train", "target/mac-report/train.json")),
        step(
            "generate",
            "generation by the default model",
            60,
            model("generate", "target/mac-report/generate.json"),
        ),
        step(
            "mps-vs-custom",
            "Metal Performance Shaders, our kernels and candle",
            120,
            run(&["bench", "--bench", "mps_vs_custom"], &[]),
        ),
    ]
}

/// Measures operations. Only the table's dtypes are filled into the copy of docs/MPS_BENCHMARKS.md.
fn operations(dtype: &'static str, json: &'static str, fill: bool) -> Action {
    let arguments = ["bench", "ops", "--device", "metal", "--dtype", dtype, "--json", json];
    let fill: &[&str] = if fill { &["--fill", "target/mac-report/MPS_BENCHMARKS.md"] } else { &[] };
    tool(&[&arguments, fill].concat())
}

fn model(job: &'static str, json: &'static str) -> Action {
    tool(&["bench", job, "--device", "metal", "--json", json])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_cover_the_first_run_in_order() {
        let names: Vec<&str> = all().iter().map(|step| step.name).collect();
        assert_eq!(
            names,
            [
                "kernels",
                "doctor",
                "model",
                "tests",
                "tests-validated",
                "calibration",
                "leaks-control",
                "leaks-repeats",
                "leaks-training",
                "tune",
                "ops-f32",
                "ops-f16",
                "ops-bf16",
                "train",
                "generate",
                "mps-vs-custom"
            ]
        );
        for step in all() {
            let text = step.action.to_string();
            // Files of results lie in the folder of the report.
            for word in text.split_whitespace().filter(|word| word.starts_with("target/mac")) {
                assert!(word.starts_with(&format!("{FOLDER}/")), "{text}");
            }
            assert!(step.limit >= 30 * MINUTE, "{}: a cold build takes minutes", step.name);
        }
    }

    #[test]
    fn the_validated_tests_are_the_tests_with_metals_checks() {
        let steps = all();
        let text = |name: &str| steps.iter().find(|step| step.name == name).unwrap().action.to_string();
        let validated = text("tests-validated");
        let prefix = "MTL_DEBUG_LAYER=1 MTL_SHADER_VALIDATION=1 OBJC_DEBUG_MISSING_POOLS=YES ";
        assert_eq!(validated.strip_prefix(prefix).unwrap(), text("tests"));
        assert!(
            text("tests").contains("--test metal") && text("tests").ends_with("--test-threads 1 --nocapture")
        );
    }

    /// Test targets and names in the steps exist: a renamed test would run nothing and pass.
    #[test]
    fn the_tests_that_steps_name_exist() {
        let read =
            |file: &str| std::fs::read_to_string(crate::root().join("tests/metal").join(file)).unwrap();
        let (repeats, calibration) = (read("repeats.rs"), read("calibration/mod.rs"));
        for step in all() {
            if let Action::Leaks(check) = step.action {
                let name = check.test.strip_prefix("repeats::").unwrap();
                assert!(repeats.contains(&format!("fn {name}()")), "{name}");
                assert!(check.many > check.few);
            }
        }
        assert!(calibration.contains("fn the_answers_are_those_on_record()"));
        for target in ["kernels", "ops/main", "models", "training", "candle/main", "metal/main", "examples"] {
            assert!(crate::root().join(format!("tests/{target}.rs")).exists(), "{target}");
        }
    }
}
