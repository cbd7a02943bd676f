//! The report of `cargo xtask mac`, as Markdown and as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Counts;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// With the reason, or the exit status.
    Failed(String),
    /// It was ended after this time.
    TimedOut(Duration),
    /// With the reason.
    NotStarted(String),
}

impl Verdict {
    /// One word for tables, and the reason.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Passed => ("passed", String::new()),
            Self::Failed(why) => ("failed", why.clone()),
            Self::TimedOut(limit) => ("timed out", format!("ended after {} min", limit.as_secs() / 60)),
            Self::NotStarted(why) => ("not started", why.clone()),
        }
    }
}

/// The result of a step.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) command: String,
    pub(super) verdict: Verdict,
    pub(super) seconds: f64,
    pub(super) tests: Counts,
    /// The lines of the log that say where it failed.
    pub(super) place: Option<String>,
}

impl Outcome {
    /// One line for the terminal.
    pub(super) fn line(&self) -> String {
        let (word, reason) = self.verdict.words();
        let mut line = format!("{word} in {:.0} s", self.seconds);
        let place = self.place.as_deref().and_then(|place| place.lines().next()).unwrap_or_default();
        for part in [reason.as_str(), place] {
            if !part.is_empty() {
                let _ = write!(line, "; {part}");
            }
        }
        line
    }

    /// Counts of tests, where the step ran any.
    fn tests(&self) -> Option<String> {
        let Counts { passed, failed, skipped } = self.tests;
        (passed + failed + skipped > 0).then(|| self.tests.to_string())
    }

    fn json(&self) -> Value {
        let (word, reason) = self.verdict.words();
        let Counts { passed, failed, skipped } = self.tests;
        json!({
            "step": self.name,
            "what": self.what,
            "command": self.command,
            "result": word,
            "reason": reason,
            "seconds": self.seconds,
            "tests": {"passed": passed, "failed": failed, "skipped": skipped},
            "place": self.place,
            "log": format!("{}.log", self.name),
        })
    }
}

/// Machine and outcomes.
pub(super) struct Report {
    machine: Value,
    pub(super) outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(machine: Value) -> Self {
        Self { machine, outcomes: Vec::new() }
    }

    /// Returns true if every step passed.
    pub(super) fn passed(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.verdict == Verdict::Passed)
    }

    /// One line: how many steps passed, and which did not.
    pub(super) fn summary(&self) -> String {
        let other: Vec<&str> = self
            .outcomes
            .iter()
            .filter(|outcome| outcome.verdict != Verdict::Passed)
            .map(|outcome| outcome.name)
            .collect();
        let passed = self.outcomes.len() - other.len();
        let rest =
            if other.is_empty() { String::new() } else { format!("; not passed: {}", other.join(", ")) };
        format!("{passed} of {} steps passed{rest}", self.outcomes.len())
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "passed": self.passed(),
            "steps": self.outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
        })
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::from("# metal-candle on a Mac\n\n| | |\n|---|---|\n");
        for (name, value) in self.machine.as_object().into_iter().flatten() {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Null => "unknown".to_owned(),
                other => other.to_string(),
            };
            let _ = writeln!(text, "| {} | {} |", name.replace('_', " "), cell(&value));
        }
        let _ = writeln!(text, "\n{}.\n", self.summary());
        text += "| step | shows | result | seconds | tests |\n|---|---|---|---|---|\n";
        for outcome in &self.outcomes {
            let (word, reason) = outcome.verdict.words();
            let result = if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") };
            let tests = outcome.tests().unwrap_or_default();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {tests} |",
                outcome.name,
                outcome.what,
                cell(&result),
                outcome.seconds
            );
        }
        for outcome in self.outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Passed) {
            let place = outcome.place.as_deref().unwrap_or("The log has no line that names an error.");
            let _ = write!(
                text,
                "\n## {}\n\n`{}`, log: {}.log\n\n```text\n{place}\n```\n",
                outcome.name, outcome.command, outcome.name
            );
        }
        text
    }

    /// Writes both files.
    pub(super) fn write(&self, folder: &Path) -> Result<(), String> {
        let json = serde_json::to_string_pretty(&self.json()).map_err(|error| error.to_string())?;
        for (name, text) in [("report.json", json + "\n"), ("report.md", self.markdown())] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// Text that stays within a cell of a table.
fn cell(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Most lines that [`place`] returns: enough to see the kind of a fault, the log has all.
const LINES: usize = 30;

/// Finds the lines of a log that say where something failed: compilers' errors, failed tests and panics with the line after
/// them; otherwise the last line.
pub(super) fn place(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let mut found: Vec<&str> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let names_error = trimmed.starts_with("error")
            || trimmed.contains(": error: ")
            || (line.starts_with("test ") && line.ends_with("FAILED"));
        let panics = line.contains("' panicked at ") || line.contains(") panicked at ");
        if names_error || panics {
            found.push(line);
            if panics || lines.get(index + 1).is_some_and(|next| next.trim_start().starts_with("-->")) {
                found.extend(lines.get(index + 1));
            }
        }
    }
    if found.is_empty() {
        found.extend(lines.iter().rev().find(|line| !line.trim().is_empty()));
    }
    found.truncate(LINES);
    (!found.is_empty()).then(|| found.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &'static str, verdict: Verdict, place: Option<&str>) -> Outcome {
        Outcome {
            name,
            what: "shows",
            command: "cargo test".to_owned(),
            verdict,
            seconds: 12.4,
            tests: Counts { passed: 3, failed: 1, skipped: 0 },
            place: place.map(str::to_owned),
        }
    }

    fn report() -> Report {
        let mut report = Report::new(json!({"chip": "Apple M9", "memory_bytes": 5, "commit": null}));
        report.outcomes.push(outcome("kernels", Verdict::Passed, None));
        let why = "exit status: 101".to_owned();
        report.outcomes.push(outcome("tests", Verdict::Failed(why), Some("test a|b ... FAILED\nmore")));
        report
    }

    #[test]
    fn the_report_names_machine_steps_and_places() {
        let (report, mut passed) = (report(), report());
        let text = report.markdown();
        for line in [
            "| chip | Apple M9 |",
            "| memory bytes | 5 |",
            "| commit | unknown |",
            "1 of 2 steps passed; not passed: tests.",
            "| kernels | shows | passed | 12 | 3 passed, 1 failed, 0 skipped |",
            "| tests | shows | failed: exit status: 101 | 12 | 3 passed, 1 failed, 0 skipped |",
            "## tests",
            "test a|b ... FAILED",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let json = report.json();
        assert_eq!(json["passed"], false);
        assert_eq!(json["steps"][1]["result"], "failed");
        assert_eq!(json["steps"][1]["tests"]["failed"], 1);
        assert_eq!(json["steps"][1]["log"], "tests.log");
        passed.outcomes.pop();
        assert!(passed.passed() && !report.passed());
        assert_eq!(passed.summary(), "1 of 1 steps passed");
    }

    #[test]
    fn a_line_for_the_terminal_has_reason_and_place() {
        assert_eq!(report().outcomes[0].line(), "passed in 12 s");
        assert_eq!(report().outcomes[1].line(), "failed in 12 s; exit status: 101; test a|b ... FAILED");
        let late = outcome("tune", Verdict::TimedOut(Duration::from_secs(3600)), None);
        assert_eq!(late.line(), "timed out in 12 s; ended after 60 min");
    }

    #[test]
    fn both_files_are_written() {
        let folder = std::env::temp_dir().join(format!("metal-candle-report-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        report().write(&folder).unwrap();
        let text = std::fs::read_to_string(folder.join("report.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), report().json());
        assert_eq!(std::fs::read_to_string(folder.join("report.md")).unwrap(), report().markdown());
        assert!(report().write(&folder.join("missing")).unwrap_err().contains("report.json"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_place_is_what_names_the_error() {
        let rust = "   Compiling x\nerror[E0308]: mismatched types\n  --> src/a.rs:3:5\nnote: more\n";
        assert_eq!(place(rust).unwrap(), "error[E0308]: mismatched types\n  --> src/a.rs:3:5");
        let kernel = "attention: program_source:63:22: error: expecting input declarations with either all scalar\nnext\n";
        assert_eq!(place(kernel).unwrap(), kernel.lines().next().unwrap());
        let test = "running 2 tests\ntest a ... ok\n\
                    thread 'b' (7) panicked at tests/metal/main.rs:9:5:\nassertion failed: x\nstack\ntest b ... FAILED\n";
        let expected =
            "thread 'b' (7) panicked at tests/metal/main.rs:9:5:\nassertion failed: x\ntest b ... FAILED";
        assert_eq!(place(test).unwrap(), expected);
        assert_eq!(place("one\ntwo\n\n").unwrap(), "two");
        assert_eq!(place(""), None);
        assert_eq!(place(&"error: x\n".repeat(99)).unwrap().lines().count(), LINES);
    }
}
