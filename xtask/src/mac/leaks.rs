//! Apple's leak checker on tests of the target `metal`: `leaks --atExit -- PROGRAM`.
//!
//! Apple's frameworks may lose blocks of their own once, so what counts is growth: the same test runs with few and with many
//! repeats, and less than one block per two additional repeats may be added. The control loses one block per repeat and must be
//! found.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::report::Verdict;
use super::steps::LeakCheck;
use super::{Line, cargo, execute};

/// Runs a check, with the output of both runs in the log.
pub(super) fn check(check: &LeakCheck, log: &Path, limit: Duration) -> Verdict {
    let program = match program() {
        Ok(program) => program,
        Err(message) => return Verdict::NotStarted(message),
    };
    let mut found = Vec::new();
    for repeats in [check.few, check.many] {
        let before = std::fs::read_to_string(log).unwrap_or_default().len();
        let words =
            ["--atExit", "--", &program, "--exact", check.test, "--test-threads", "1", "--include-ignored"];
        let line = Line {
            program: "leaks".to_owned(),
            arguments: words.map(str::to_owned).to_vec(),
            variables: vec![("METAL_CANDLE_REPEATS", repeats.to_string())],
        };
        let verdict = execute(&line, log, limit);
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(before..).unwrap_or_default()).into_owned();
        // The checker ends with 1 if it finds leaks, and with another code if it fails itself.
        match (verdict, leaks(&text)) {
            (Verdict::Passed | Verdict::Failed(_), Some(count))
                if text.contains("test result: ok. 1 passed") =>
            {
                found.push(count);
            }
            (Verdict::Passed, _) | (Verdict::Failed(_), Some(_)) => {
                return Verdict::Failed(format!("the test '{}' did not pass under leaks", check.test));
            }
            (verdict, _) => return verdict,
        }
    }
    judge(check, [found[0], found[1]])
}

/// Decides by the number of leaked blocks after few and after many repeats.
fn judge(check: &LeakCheck, [few, many]: [u64; 2]) -> Verdict {
    let allowed = (check.many - check.few) / 2;
    let grown = many.saturating_sub(few);
    let counts = format!("{few} leaks after {} repeats, {many} after {}", check.few, check.many);
    match (grown > allowed, check.planted) {
        (true, true) | (false, false) => Verdict::Passed,
        (true, false) => Verdict::Failed(format!("memory leaks: {counts}")),
        (false, true) => Verdict::Failed(format!("the leak checker misses lost memory: {counts}")),
    }
}

/// Reads the number in `Process 123: 4 leaks for 64 total leaked bytes.`
fn leaks(text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix("Process ")?.split_once(": ")?.1;
        let (count, rest) = rest.split_once(' ')?;
        let of_leaks = rest.starts_with("leak for ") || rest.starts_with("leaks for ");
        of_leaks.then(|| count.parse().ok()).flatten()
    })
}

/// Builds the test target `metal` and returns the path of its program.
fn program() -> Result<String, String> {
    let output = cargo()
        .args(["test", "--test", "metal", "--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test --no-run: {error}"))?;
    executable(&String::from_utf8_lossy(&output.stdout), "metal")
        .ok_or_else(|| "cargo built no test program 'metal'; the step 'tests' shows why".to_owned())
}

/// Finds the program of a test target in cargo's messages, one JSON object per line.
fn executable(messages: &str, target: &str) -> Option<String> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let of_target = message["reason"] == "compiler-artifact" && message["target"]["name"] == target;
        of_target.then(|| message["executable"].as_str().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkers_summary_is_read() {
        let text = "running 1 test\nProcess:         metal [77]\n----\nleaks Report Version: 4.0\n\
                    Process 77: 5120 nodes malloced for 900 KB\nProcess 77: 3 leaks for 96 total leaked bytes.\n";
        assert_eq!(leaks(text), Some(3));
        assert_eq!(leaks("Process 77: 1 leak for 16 total leaked bytes.\n"), Some(1));
        assert_eq!(leaks("Process 77: 0 leaks for 0 total leaked bytes.\n"), Some(0));
        assert_eq!(leaks("leaks: cannot attach to process 77\n"), None);
    }

    #[test]
    fn growth_decides_and_the_control_must_grow() {
        let check = LeakCheck { test: "t", few: 1, many: 1000, planted: false };
        let control = LeakCheck { planted: true, ..check };
        assert_eq!(judge(&check, [40, 45]), Verdict::Passed);
        assert_eq!(judge(&check, [40, 539]), Verdict::Passed);
        let failed = Verdict::Failed("memory leaks: 40 leaks after 1 repeats, 1039 after 1000".to_owned());
        assert_eq!(judge(&check, [40, 1039]), failed);
        assert_eq!(judge(&control, [41, 1040]), Verdict::Passed);
        assert!(
            matches!(judge(&control, [40, 40]), Verdict::Failed(why) if why.contains("misses lost memory"))
        );
    }

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"metal_candle\"},\"executable\":null}\n\
                        not json\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"metal\"},\"executable\":\"/t/metal-1\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "metal").as_deref(), Some("/t/metal-1"));
        assert_eq!(executable(messages, "ops"), None);
    }
}
