//! The learning rate over time.

use crate::counts::counted;
use crate::{Error, Result};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// `lr = minimum + (peak − minimum)·(1 − t)`
    Linear,
    /// `lr = minimum + (peak − minimum)·(1 + cos πt)/2` (Loshchilov and Hutter, 2017, arXiv:1608.03983)
    Cosine,
}

impl std::fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        })
    }
}

/// A learning rate for each step. In the warm-up, step s of w has `peak·(s + 1)/w`; after it t runs from 0 at the
/// first step to 1 just after the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// How it falls.
    pub kind: ScheduleKind,
    /// The greatest rate.
    pub learning_rate: f64,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The rate at the end.
    pub minimum: f64,
}

impl Schedule {
    /// Refuses values outside their ranges.
    pub fn validate(&self) -> Result<()> {
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            let message =
                format!("is {}, must be above 0; for LoRA usually 1e-4 to 1e-3", self.learning_rate);
            return Err(Error::invalid("learning rate", message));
        }
        if !(0.0..=self.learning_rate).contains(&self.minimum) {
            let message = format!("is {}, must be from 0 to the learning rate", self.minimum);
            return Err(Error::invalid("least learning rate", message));
        }
        if self.warmup > self.steps {
            let message = format!("is {}, but the run has {}", counted(self.warmup, "step"), self.steps);
            return Err(Error::invalid("warm-up", message));
        }
        Ok(())
    }

    /// The rate at a step, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let t = ((step - self.warmup) as f64 / (self.steps - self.warmup).max(1) as f64).min(1.0);
        let share = match self.kind {
            ScheduleKind::Constant => return self.learning_rate,
            ScheduleKind::Linear => 1.0 - t,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
        };
        self.minimum + (self.learning_rate - self.minimum) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind, warmup: usize) -> Vec<f64> {
        let schedule = Schedule { kind, learning_rate: 1.0, warmup, steps: 6, minimum: 0.2 };
        (0..7).map(|step| (schedule.learning_rate(step) * 1e4).round() / 1e4).collect()
    }

    #[test]
    fn rates_are_those_of_the_formulas() {
        assert_eq!(rates(ScheduleKind::Constant, 2), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(ScheduleKind::Linear, 2), [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]);
        assert_eq!(rates(ScheduleKind::Linear, 0)[3], 0.6);
        assert_eq!(rates(ScheduleKind::Cosine, 2), [0.5, 1.0, 1.0, 0.8828, 0.6, 0.3172, 0.2]);
        assert_eq!(rates(ScheduleKind::Cosine, 6)[5..], [1.0, 1.0]);
    }

    #[test]
    fn values_outside_their_ranges_are_refused() {
        let good =
            Schedule { kind: ScheduleKind::Linear, learning_rate: 1e-3, warmup: 2, steps: 6, minimum: 0.0 };
        good.validate().unwrap();
        for bad in [
            Schedule { learning_rate: 0.0, ..good },
            Schedule { learning_rate: f64::NAN, ..good },
            Schedule { minimum: 1.0, ..good },
            Schedule { warmup: 7, ..good },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
