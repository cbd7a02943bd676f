//! Choosing the next token from logits.

use crate::ops::philox;
use crate::{Error, Result};

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the fewest most probable tokens whose probabilities reach this sum; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one; 0 for all.
    pub min_p: f32,
    /// Logits of tokens already seen are divided by this if positive, multiplied if negative (Keskar et al.,
    /// 2019, arXiv:1909.05858); 1 for none.
    pub repetition_penalty: f32,
    /// Random numbers depend on this alone.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingOptions {
    /// Refuses values outside their ranges.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &str, message: String| Err(Error::invalid(what, message));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", format!("{} must be 0 or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p", format!("{} must be in (0, 1]", self.top_p));
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return wrong("min-p", format!("{} must be in [0, 1)", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong("repetition penalty", format!("{} must be above 0", self.repetition_penalty));
        }
        Ok(())
    }
}

/// Chooses tokens, one draw after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    draws: u64,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler; an error if an option is out of range.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self { options, draws: 0, candidates: Vec::new() })
    }

    /// Chooses from the logits of the whole vocabulary; `seen` are the tokens that the repetition penalty is for.
    ///
    /// The order is: penalty, temperature, top-k, top-p, min-p, draw. Logits that are all NaN or −∞ are an error.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32> {
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit)));
        if self.options.repetition_penalty != 1.0 {
            self.penalise(seen);
        }
        self.candidates.retain(|(_, logit)| logit.is_finite() || *logit == f32::INFINITY);
        let greatest = self.candidates.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
        let Some((best, max)) = greatest else {
            return Err(Error::invalid(
                "sampling",
                "no logit is a number; the model's weights or adapter are broken",
            ));
        };
        if self.options.temperature == 0.0 || max == f32::INFINITY {
            return Ok(best);
        }
        // From here on the second part of a candidate is its unnormalised probability.
        for (_, logit) in &mut self.candidates {
            *logit = ((*logit - max) / self.options.temperature).exp();
        }
        self.restrict();
        let total: f64 = self.candidates.iter().map(|&(_, p)| f64::from(p)).sum();
        let mut rest = self.uniform() * total;
        for &(id, p) in &self.candidates {
            rest -= f64::from(p);
            if rest < 0.0 {
                return Ok(id);
            }
        }
        Ok(self.candidates.last().map_or(best, |&(id, _)| id))
    }

    fn penalise(&mut self, seen: &[u32]) {
        let mut seen = seen.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some((_, logit)) = self.candidates.get_mut(id as usize) {
                let penalty = self.options.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Applies top-k, top-p and min-p. The most probable candidate always stays.
    fn restrict(&mut self) {
        let SamplingOptions { top_k, top_p, min_p, .. } = self.options;
        if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            return;
        }
        self.candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            let total: f64 = self.candidates.iter().map(|&(_, p)| f64::from(p)).sum();
            let mut sum = 0.0;
            let reached = self.candidates.iter().position(|&(_, p)| {
                sum += f64::from(p);
                sum >= f64::from(top_p) * total
            });
            self.candidates.truncate(reached.map_or(self.candidates.len(), |at| at + 1));
        }
        let least = min_p * self.candidates[0].1;
        self.candidates.retain(|&(_, p)| p >= least);
    }

    /// A number in [0, 1) from the seed and the number of draws so far.
    fn uniform(&mut self) -> f64 {
        let counter = [self.draws as u32, (self.draws >> 32) as u32, 0, 1];
        let words = philox(counter, [self.options.seed as u32, (self.options.seed >> 32) as u32]);
        self.draws += 1;
        f64::from(words[0]) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: SamplingOptions, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options).unwrap();
        (0..count).map(|_| sampler.sample(logits, &[]).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        assert_eq!(draws(SamplingOptions::default(), &[0.5, 2.0, 2.0, -1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let options = SamplingOptions { temperature: 2.0, seed: 7, ..SamplingOptions::default() };
        let logits = [0.0_f32, 1.0, 2.0, 3.0];
        let count = 40_000;
        let found = draws(options, &logits, count);
        let weights = logits.map(|l| f64::from(l / 2.0).exp());
        for (id, weight) in weights.iter().enumerate() {
            let p = weight / weights.iter().sum::<f64>();
            let share = found.iter().filter(|&&t| t == id as u32).count() as f64 / count as f64;
            // Five standard deviations of a binomial share.
            assert!(
                (share - p).abs() < 5.0 * (p * (1.0 - p) / count as f64).sqrt(),
                "token {id}: {share} for {p}"
            );
        }
    }

    #[test]
    fn restrictions_leave_the_most_probable() {
        let base = SamplingOptions { temperature: 1.0, seed: 1, ..SamplingOptions::default() };
        let logits = [0.0_f32, 1.0, 2.0, 3.0, 3.0];
        let allowed = |options| {
            let mut ids = draws(options, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(allowed(SamplingOptions { top_k: 2, ..base.clone() }), [3, 4]);
        // Two tokens hold 2·e³ of 2·e³ + e² + e + 1 = 51.3: 78 %.
        assert_eq!(allowed(SamplingOptions { top_p: 0.7, ..base.clone() }), [3, 4]);
        assert_eq!(allowed(SamplingOptions { top_p: 0.8, ..base.clone() }), [2, 3, 4]);
        // e² / e³ = 0.37.
        assert_eq!(allowed(SamplingOptions { min_p: 0.4, ..base.clone() }), [3, 4]);
        assert_eq!(allowed(SamplingOptions { min_p: 0.3, ..base }), [2, 3, 4]);
    }

    #[test]
    fn the_penalty_pushes_seen_tokens_down_whatever_their_sign() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..SamplingOptions::default() };
        let mut sampler = Sampler::new(options).unwrap();
        assert_eq!(sampler.sample(&[3.0, 2.0], &[0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0, 0]).unwrap(), 1);
    }

    #[test]
    fn the_same_seed_repeats_and_bad_input_is_refused() {
        let options = SamplingOptions { temperature: 1.0, seed: 3, ..SamplingOptions::default() };
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 / 3.0).collect();
        assert_eq!(draws(options.clone(), &logits, 20), draws(options.clone(), &logits, 20));
        assert_ne!(
            draws(options.clone(), &logits, 20),
            draws(SamplingOptions { seed: 4, ..options }, &logits, 20)
        );
        let mut sampler = Sampler::new(SamplingOptions::default()).unwrap();
        assert!(sampler.sample(&[f32::NAN, f32::NEG_INFINITY], &[]).is_err());
        assert!(Sampler::new(SamplingOptions { top_p: 0.0, ..SamplingOptions::default() }).is_err());
        assert!(
            Sampler::new(SamplingOptions { temperature: f32::NAN, ..SamplingOptions::default() }).is_err()
        );
    }
}
