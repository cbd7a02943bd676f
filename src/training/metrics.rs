//! Reports of a run, one JSON object a line.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::durable::OutputFile;
use crate::{Error, Result};

/// What is known at a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Steps done.
    pub step: usize,
    /// Passes over the data begun before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<usize>,
    /// Mean loss of the step's trained tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Mean loss of the validation set's trained tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Tokens a second, padding not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// The step's learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Global norm of the gradients before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Share of the step's computed tokens that were padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<f64>,
}

/// The file of reports.
pub struct Metrics {
    path: PathBuf,
    file: OutputFile,
}

impl Metrics {
    /// Opens the file for a run that has done `step` steps. At step 0 it is new; otherwise reports of later steps, that of
    /// the step's validation if it is still due, and a last line that was cut off are removed first: they will come again.
    pub fn open(path: &Path, step: usize, validation_due: bool) -> Result<Self> {
        let mut kept = String::new();
        if step > 0 && path.exists() {
            let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, "read", source))?;
            for line in text.lines() {
                let is_final = |report: Report| {
                    report.step < step
                        || report.step == step && !(validation_due && report.valid_loss.is_some())
                };
                if serde_json::from_str(line).is_ok_and(is_final) {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        atomic::write(path, kept.as_bytes())?;
        let file = OutputFile::append(path).map_err(|source| Error::io(path, "write", source))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a report.
    pub fn write(&mut self, report: &Report) -> Result<()> {
        let mut line = serde_json::to_vec(report)
            .map_err(|error| Error::file(&self.path, format!("a report has no JSON form: {error}")))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| Error::io(&self.path, "write", source))
    }

    /// Syncs the reports to the disk. A checkpoint must not outlast the reports of its steps, which are not made again
    /// by a resumed run.
    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|source| Error::io(&self.path, "write", source))
    }
}

/// Reads all reports.
pub fn read(path: &Path) -> Result<Vec<Report>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, "read", source))?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                Error::file_at(path, format!("line {}", index + 1), format!("is no report: {error}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_after_the_step_of_a_resumed_run_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let report = |step, loss| Report { step, train_loss: Some(loss), ..Report::default() };
        let mut metrics = Metrics::open(&path, 0, false).unwrap();
        for step in 1..=4 {
            metrics.write(&report(step, step as f64 / 2.0)).unwrap();
        }
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().next(), Some(r#"{"step":1,"train_loss":0.5}"#));
        std::fs::write(&path, format!("{text}{{\"step\":5,\"tra")).unwrap();
        let mut metrics = Metrics::open(&path, 2, false).unwrap();
        metrics.write(&report(3, 7.0)).unwrap();
        assert_eq!(read(&path).unwrap(), [report(1, 0.5), report(2, 1.0), report(3, 7.0)]);
        Metrics::open(&path, 0, false).unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }

    /// A run that was stopped within a validation, and failed after the validation of the resumed run, had it twice.
    #[test]
    fn the_report_of_a_validation_that_is_due_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let trained = Report { step: 3, train_loss: Some(2.0), ..Report::default() };
        let validated = Report { step: 3, valid_loss: Some(1.0), ..Report::default() };
        let mut metrics = Metrics::open(&path, 0, false).unwrap();
        metrics.write(&trained).unwrap();
        for _ in 0..2 {
            let mut metrics = Metrics::open(&path, 3, true).unwrap();
            metrics.write(&validated).unwrap();
        }
        assert_eq!(read(&path).unwrap(), [trained, validated]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\nnonsense\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("(line 2)"));
    }
}
