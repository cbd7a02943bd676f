//! Recognizes training that makes a model worse instead of better.

use serde::{Deserialize, Serialize};

/// Steps in a row above the limit after which a run has diverged. Spikes are shorter: they last for a few steps.
const PATIENCE: usize = 25;
/// Steps in a row whose loss is that of equal probabilities, to the last digits.
const COLLAPSED_PATIENCE: usize = 5;
/// How close a loss is to ln V, relatively, if all logits are equal; sums of f32 are off by less than this.
const EQUAL: f64 = 1e-5;
/// A gradient norm so many times that of the first steps has exploded, if the loss rose too.
const EXPLODED: f64 = 1e3;
/// Steps whose gradient norms are taken as usual.
const USUAL_STEPS: usize = 5;

/// What a run's losses have shown so far. Part of a checkpoint, so that a resumed run decides as an uninterrupted one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossWatch {
    /// Loss of the model before training: the larger one of the first step's and the first validation's.
    untrained: Option<f64>,
    /// Largest gradient norm of the first steps.
    usual_norm: f64,
    /// Steps in a row whose loss was above the limit, or whose gradients had exploded.
    above: usize,
    /// Steps in a row whose loss was that of equal probabilities.
    collapsed: usize,
}

impl LossWatch {
    /// Takes note of a loss that was measured before the first update.
    pub(crate) fn note_untrained(&mut self, loss: f64) {
        self.untrained = Some(self.untrained.map_or(loss, |known| known.max(loss)));
    }

    /// Takes note of a step, counted from 1, with its loss before the update and its gradient norm. Returns what shows
    /// that the run has diverged, if it has.
    pub(crate) fn note_step(&mut self, step: usize, loss: f64, norm: f64, vocab: usize) -> Option<String> {
        if step == 1 {
            self.note_untrained(loss);
        }
        // A checkpoint of an earlier version has no such loss.
        let untrained = self.untrained?;
        if step <= USUAL_STEPS {
            self.usual_norm = self.usual_norm.max(norm);
        }
        let limit = limit(untrained);
        let exploded = norm > EXPLODED * self.usual_norm && loss > untrained;
        self.above = if loss > limit || exploded { self.above + 1 } else { 0 };
        self.collapsed = if self.is_collapsed(loss, vocab) { self.collapsed + 1 } else { 0 };
        if self.collapsed >= COLLAPSED_PATIENCE {
            return Some(format!(
                "for {} steps every token has been equally probable (loss {loss:.3}, {untrained:.3} before training)",
                self.collapsed
            ));
        }
        if self.above >= PATIENCE {
            let what = if loss > limit {
                format!("the loss has been above {limit:.3}")
            } else {
                format!("the gradient norm has been above {:.3e}", EXPLODED * self.usual_norm)
            };
            return Some(format!(
                "for {} steps {what} (now {loss:.3}, {untrained:.3} before training)",
                self.above
            ));
        }
        None
    }

    /// Returns true if the last step showed nothing unusual: what is saved now is no diverging state.
    pub(crate) fn is_calm(&self) -> bool {
        self.above == 0 && self.collapsed == 0
    }

    /// Returns true if a loss is that of equal probabilities for all tokens, and that of the untrained model was not: the
    /// logits are saturated or vanished, as after an overflow.
    pub(crate) fn is_collapsed(&self, loss: f64, vocab: usize) -> bool {
        let uniform = (vocab.max(2) as f64).ln();
        let equal = |loss: f64, tolerance: f64| (loss - uniform).abs() <= tolerance * uniform;
        equal(loss, EQUAL) && self.untrained.is_some_and(|untrained| !equal(untrained, 10.0 * EQUAL))
    }

    /// Returns what shows that a run which ends now has diverged, though it ends before the patience is over.
    pub(crate) fn at_the_end(&self, steps: usize, loss: f64) -> Option<String> {
        let untrained = self.untrained?;
        let few = 3.min(steps.saturating_sub(1)).max(1);
        (self.above.max(self.collapsed) >= few)
            .then(|| format!("the loss of the last step is {loss:.3}, {untrained:.3} before training"))
    }
}

/// A loss far above that of the untrained model. The constant keeps small losses apart from noise.
fn limit(untrained: f64) -> f64 {
    1.5 * untrained + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 49_152;

    /// The step at which a run with these losses and norms is stopped.
    fn stopped(losses: impl IntoIterator<Item = (f64, f64)>) -> Option<(usize, String)> {
        let mut watch = LossWatch::default();
        losses.into_iter().enumerate().find_map(|(index, (loss, norm))| {
            Some((index + 1, watch.note_step(index + 1, loss, norm, VOCAB)?))
        })
    }

    #[test]
    fn a_loss_that_stays_above_the_untrained_one_is_divergence_and_a_spike_is_not() {
        let risen = |step: usize| if step < 10 { (1.7, 1.0) } else { (9.0, 40.0) };
        let (step, what) = stopped((0..100).map(risen)).unwrap();
        assert_eq!(step, 10 + PATIENCE);
        assert_eq!(what, "for 25 steps the loss has been above 3.050 (now 9.000, 1.700 before training)");
        let spikes = |step: usize| if step % 30 > 8 { (1.2, 1.0) } else { (9.0, 40.0) };
        assert_eq!(stopped((8..500).map(spikes)).map(|(step, _)| step), None);
        // Worse than before, but not by much: overfitting or noise, which validation is for.
        assert_eq!(stopped((0..500).map(|step| (1.7 + 0.001 * step as f64, 1.0))), None);
    }

    #[test]
    fn equal_probabilities_are_recognized_within_a_few_steps() {
        let uniform = (VOCAB as f64).ln();
        let (step, what) = stopped((0..50).map(|step| (if step < 3 { 1.7 } else { uniform }, 0.0))).unwrap();
        assert_eq!(step, 3 + COLLAPSED_PATIENCE);
        assert!(what.contains("every token has been equally probable (loss 10.803, 1.700 before"), "{what}");
        // A model whose head is zero begins there.
        assert_eq!(stopped((0..50).map(|_| (uniform, 0.1))), None);
        // A random model passes by.
        assert_eq!(stopped((0..200).map(|step| (uniform + 0.02 - 0.0002 * f64::from(step), 0.1))), None);
    }

    #[test]
    fn exploded_gradients_count_where_the_loss_rose_too() {
        let norm = |step: usize| if step < 10 { 2.0 } else { 5e3 };
        let (step, what) = stopped((0..60).map(|step| (1.7 + 0.01 * step as f64, norm(step)))).unwrap();
        assert_eq!(step, 10 + PATIENCE);
        assert!(what.contains("the gradient norm has been above 2.000e3"), "{what}");
        assert_eq!(stopped((0..60).map(|step| (1.6 - 0.01 * step as f64, norm(step)))), None);
    }

    #[test]
    fn a_short_run_that_ends_far_above_is_told_too() {
        let mut watch = LossWatch::default();
        for (step, loss) in [(1, 1.7), (2, 8.0), (3, 9.0), (4, 9.5)] {
            assert_eq!(watch.note_step(step, loss, 1.0, VOCAB), None);
        }
        let what = watch.at_the_end(4, 9.5).unwrap();
        assert_eq!(what, "the loss of the last step is 9.500, 1.700 before training");
        watch.note_step(5, 1.2, 1.0, VOCAB);
        assert_eq!(watch.at_the_end(5, 1.2), None);
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<LossWatch>(&text).unwrap(), watch);
    }
}
