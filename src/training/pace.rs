//! Speed and padding of a training run.

use super::trainer::StepDone;

/// Tokens and seconds of the steps so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds: f64,
    real_tokens: usize,
    computed_tokens: usize,
}

impl Pace {
    /// Adds a step that took so many seconds.
    pub(super) fn add(&mut self, done: &StepDone, seconds: f64) {
        self.seconds += seconds;
        self.real_tokens += done.real_tokens;
        self.computed_tokens += done.computed_tokens;
    }

    /// Returns the share of the computed tokens that were padding.
    pub(super) fn padding(&self) -> f64 {
        if self.computed_tokens == 0 {
            0.0
        } else {
            1.0 - self.real_tokens as f64 / self.computed_tokens as f64
        }
    }

    /// Returns the tokens a second, padding not counted.
    pub(super) fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.real_tokens as f64 / self.seconds } else { 0.0 }
    }
}
