//! Progress on stderr: bars on a terminal, one plain line a report elsewhere, nothing with `--quiet`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::console;

const BYTES: &str = "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
const COUNT: &str = "{msg} [{bar:32}] {pos}/{len} {eta} left";
const STEPS: &str = "step {pos}/{len} [{bar:24}] {msg} {eta} left";

/// Plain lines about downloads and evaluation come at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Lines,
    Quiet,
}

/// Where and how progress is shown.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    mode: Mode,
    bars: MultiProgress,
}

/// What the trainer tells at a report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) step: usize,
    pub(crate) train_loss: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) learning_rate: f64,
}

impl Progress {
    /// Bars if stderr is a terminal, else lines; nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (_, true) => Mode::Bars,
            _ => Mode::Lines,
        };
        Self { mode, bars: MultiProgress::new() }
    }

    /// Returns true if nothing is shown.
    pub(crate) fn is_quiet(&self) -> bool {
        self.mode == Mode::Quiet
    }

    /// A line of its own, above any bar.
    pub(crate) fn note(&self, text: &str) {
        match self.mode {
            Mode::Quiet => {}
            Mode::Lines => console::note_line(text),
            // A bar that cannot be redrawn (the terminal is gone) is no reason to stop.
            Mode::Bars => drop(self.bars.println(text)),
        }
    }

    /// Bytes arriving; `total` of 0 means unknown.
    pub(crate) fn bytes(&self, label: &str, total: u64) -> Meter {
        self.meter(label, total, BYTES, true)
    }

    /// Countable work such as tensors loaded or batches evaluated.
    pub(crate) fn count(&self, label: &str, total: u64) -> Meter {
        self.meter(label, total, COUNT, false)
    }

    /// The training run of `total` steps, of which `done` lie behind (after a resume).
    pub(crate) fn training(&self, total: usize, done: usize) -> Training {
        let bar = match self.mode {
            Mode::Bars => {
                let bar = self.bars.add(ProgressBar::new(total as u64));
                bar.set_style(style(STEPS));
                bar.set_position(done as u64);
                // The rate of earlier runs is unknown: only this run's steps count for the time left.
                bar.reset_eta();
                bar
            }
            _ => ProgressBar::hidden(),
        };
        Training { progress: self.clone(), bar, total, first: done, started: Instant::now() }
    }

    fn meter(&self, label: &str, total: u64, template: &str, bytes: bool) -> Meter {
        let bar = match self.mode {
            Mode::Bars => {
                let bar = self.bars.add(ProgressBar::new(total));
                bar.set_style(style(template));
                bar.set_message(label.to_owned());
                bar
            }
            _ => ProgressBar::hidden(),
        };
        Meter { progress: self.clone(), bar, label: label.to_owned(), total, bytes, last: Instant::now() }
    }
}

/// A bar over bytes or pieces of work; it vanishes when dropped.
pub(crate) struct Meter {
    progress: Progress,
    bar: ProgressBar,
    label: String,
    total: u64,
    bytes: bool,
    last: Instant,
}

impl Meter {
    /// The position reached.
    pub(crate) fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        if self.progress.mode == Mode::Lines && self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            let show = |n| if self.bytes { size(n) } else { n.to_string() };
            self.progress.note(&format!("{}: {} of {}", self.label, show(position), show(self.total)));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar of a training run.
pub(crate) struct Training {
    progress: Progress,
    bar: ProgressBar,
    total: usize,
    first: usize,
    started: Instant,
}

impl Training {
    /// A step was made.
    pub(crate) fn step(&self, step: usize) {
        self.bar.set_position(step as u64);
    }

    /// The trainer reports.
    pub(crate) fn report(&self, report: &Report) {
        self.bar.set_position(report.step as u64);
        self.bar
            .set_message(format!("loss {:.4} {:.0} tokens/s", report.train_loss, report.tokens_per_second));
        if self.progress.mode == Mode::Lines {
            let left = time_left(
                self.started.elapsed(),
                report.step.saturating_sub(self.first),
                self.total - self.first,
            );
            self.progress.note(&plain(report, self.total, left));
        }
    }

    /// The model was evaluated on the validation set; `best` says that it is the best so far.
    pub(crate) fn validation(&self, step: usize, loss: f64, best: bool) {
        let mark = if best { " (best so far)" } else { "" };
        self.progress
            .note(&format!("step {step}: validation loss {loss:.4}, perplexity {:.2}{mark}", loss.exp()));
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file, checked by a test.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn plain(report: &Report, total: usize, left: Option<Duration>) -> String {
    let left = left.map(|d| format!("  {} left", duration(d))).unwrap_or_default();
    format!(
        "step {}/{total}  loss {:.4}  {:.0} tokens/s  learning rate {:.2e}{left}",
        report.step, report.train_loss, report.tokens_per_second, report.learning_rate
    )
}

/// Time for the remaining steps at the pace so far.
fn time_left(elapsed: Duration, done: usize, total: usize) -> Option<Duration> {
    (done > 0).then(|| elapsed.mul_f64(total.saturating_sub(done) as f64 / done as f64))
}

/// `1h02m`, `3m07s`, `12s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// `93.8 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well() {
        let show = |s| duration(Duration::from_secs(s));
        assert_eq!([show(12), show(187), show(3725)], ["12s", "3m07s", "1h02m"]);
        assert_eq!(size(98_362_432), "93.81 MiB");
    }

    #[test]
    fn time_left_follows_the_pace() {
        assert_eq!(time_left(Duration::from_secs(10), 0, 100), None);
        assert_eq!(time_left(Duration::from_secs(10), 20, 100), Some(Duration::from_secs(40)));
        assert_eq!(time_left(Duration::from_secs(10), 120, 100), Some(Duration::ZERO));
    }

    #[test]
    fn a_plain_report_is_one_line_with_every_figure() {
        let report = Report { step: 20, train_loss: 2.25, tokens_per_second: 812.4, learning_rate: 2e-4 };
        let line = plain(&report, 250, Some(Duration::from_secs(65)));
        assert_eq!(line, "step 20/250  loss 2.2500  812 tokens/s  learning rate 2.00e-4  1m05s left");
    }

    #[test]
    fn the_templates_are_sound() {
        for template in [BYTES, COUNT, STEPS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
