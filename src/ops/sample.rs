//! Drawing one element of each row by its probability.

use super::reference::Reference;
use super::{Operation, expect_float, expect_inputs, expect_spec, philox};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// The index (u32) of an element of each row, drawn with probability softmax(logits / temperature) among those that are
/// kept. There is no gradient.
///
/// By Gumbel's trick (Maddison et al., 2014, arXiv:1411.0030): the greatest of
/// `(logit − max) / temperature − ln(−ln u)`, where u of element i of row r is `(w / 2⁹ + ½) / 2²³`, rounded down before the
/// half is added, of word `w = i mod 4` of Philox4x32-10 with counter `(i / 4, r, stream, 2)` and the key `seed`. The same
/// seed draws the same, whatever the device. Ties go to the lower index.
///
/// Kept are: of the `top_k` most probable (0: all) the fewest whose probabilities reach the sum `top_p`, and of these what
/// is at least `min_p` times as probable as the most probable one; equals of the last one kept are kept too. A temperature
/// of 0 takes the most probable. NaN and −∞ are never drawn; a row of nothing else gives 2³² − 1.
///
/// Inputs: logits `[…, n]`, settings f32 `[3]` (temperature, top_p, min_p), seed u32 `[2]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sample {
    /// Only so many of the most probable; 0 for all.
    pub top_k: usize,
    /// Distinguishes the draws of one step.
    pub stream: u32,
}

/// What a row without a number gives.
pub(crate) const NONE: u32 = u32::MAX;

impl Operation for Sample {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("sample", inputs, 3)?;
        expect_float("sample", &[&inputs[0]])?;
        expect_spec("sample", "the settings", &inputs[1], &TensorSpec::f32([3]))?;
        expect_spec("sample", "the seed", &inputs[2], &TensorSpec::u32([2]))?;
        let shape = &inputs[0].shape;
        let Some((_, rest)) = shape.dims().split_last().filter(|&(&last, _)| last > 0) else {
            return Err(Error::shape("sample", "rows must not be empty", &[shape]));
        };
        Ok(vec![TensorSpec::new(DType::U32, rest)])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        // An exponential and two logarithms an element, each about ten operations.
        30 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (logits, settings) = (&inputs[0], &inputs[1].data);
        let key = [inputs[2].data[0] as u32, inputs[2].data[1] as u32];
        let drawn = logits.rows().enumerate().map(|(row, logits)| self.draw(row, logits, settings, key));
        let rank = logits.shape.rank();
        let data = drawn.collect();
        vec![Reference::new(&logits.shape.dims()[..rank - 1], data)]
    }
}

impl Sample {
    fn draw(&self, row: usize, logits: &[f64], settings: &[f64], key: [u32; 2]) -> f64 {
        let (temperature, top_p, min_p) = (settings[0], settings[1], settings[2]);
        let mut order: Vec<usize> =
            (0..logits.len()).filter(|&i| !logits[i].is_nan() && logits[i] > f64::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let Some(max) = order.first().map(|&first| logits[first]) else { return f64::from(NONE) };
        let shifted = |i: usize| {
            if logits[i] == max { 0.0 } else { (logits[i] - max) / temperature }
        };
        let keep = |order: &mut Vec<usize>, count: usize| {
            if count < order.len() {
                let last = logits[order[count.max(1) - 1]];
                order.retain(|&i| logits[i] >= last);
            }
        };
        if self.top_k > 0 {
            keep(&mut order, self.top_k);
        }
        let total: f64 = order.iter().map(|&i| shifted(i).exp()).sum();
        let mut sum = 0.0;
        let reached = order.iter().position(|&i| {
            sum += shifted(i).exp();
            sum >= top_p * total
        });
        keep(&mut order, reached.map_or(logits.len(), |at| at + 1));
        order.retain(|&i| shifted(i).exp() >= min_p || logits[i] == max);
        let greedy = temperature == 0.0;
        let score = |i: usize| {
            if greedy { logits[i] } else { shifted(i) + gumbel(word(i, row, self.stream, key)) }
        };
        let greatest = order.into_iter().min_by(|&a, &b| {
            score(b).partial_cmp(&score(a)).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
        });
        greatest.map_or(f64::from(NONE), |i| i as f64)
    }
}

/// The random word of an element.
pub(crate) fn word(i: usize, row: usize, stream: u32, key: [u32; 2]) -> u32 {
    philox([(i / 4) as u32, row as u32, stream, 2], key)[i % 4]
}

/// Gumbel's distribution from a random word.
fn gumbel(word: u32) -> f64 {
    let u = (f64::from(word >> 9) + 0.5) / 8_388_608.0;
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(op: &Sample, logits: &[f64], settings: [f64; 3], rows: usize) -> Vec<usize> {
        let inputs = [
            Reference::new([rows, logits.len()], logits.repeat(rows)),
            Reference::new([3], settings.to_vec()),
            Reference::new([2], vec![7.0, 1.0]),
        ];
        op.reference(&inputs)[0].data.iter().map(|&x| x as usize).collect()
    }

    const PLAIN: Sample = Sample { top_k: 0, stream: 0 };

    #[test]
    fn frequencies_follow_the_softmax() {
        let (logits, rows) = ([0.0, 1.0, 2.0, 3.0], 20_000);
        let found = draws(&PLAIN, &logits, [2.0, 1.0, 0.0], rows);
        let weights = logits.map(|l| f64::exp(l / 2.0));
        for (id, weight) in weights.iter().enumerate() {
            let p = weight / weights.iter().sum::<f64>();
            let share = found.iter().filter(|&&token| token == id).count() as f64 / rows as f64;
            // Five standard deviations of a binomial share.
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / rows as f64).sqrt(), "{id}: {share} for {p}");
        }
    }

    #[test]
    fn restrictions_leave_the_most_probable() {
        let logits = [0.0, 1.0, 2.0, 3.0, 3.0];
        let allowed = |op: &Sample, settings| {
            let mut ids = draws(op, &logits, settings, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(allowed(&Sample { top_k: 2, stream: 0 }, [1.0, 1.0, 0.0]), [3, 4]);
        // Equals of the last one kept are kept.
        assert_eq!(allowed(&Sample { top_k: 1, stream: 0 }, [1.0, 1.0, 0.0]), [3, 4]);
        // Two tokens hold 2·e³ of 2·e³ + e² + e + 1 = 51.3: 78 %.
        assert_eq!(allowed(&PLAIN, [1.0, 0.7, 0.0]), [3, 4]);
        assert_eq!(allowed(&PLAIN, [1.0, 0.8, 0.0]), [2, 3, 4]);
        // e² / e³ = 0.37.
        assert_eq!(allowed(&PLAIN, [1.0, 1.0, 0.4]), [3, 4]);
        assert_eq!(allowed(&PLAIN, [1.0, 1.0, 0.3]), [2, 3, 4]);
        assert_eq!(allowed(&PLAIN, [0.0, 1.0, 0.0]), [3]);
    }

    #[test]
    fn what_is_no_number_is_never_drawn() {
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        assert_eq!(draws(&PLAIN, &[nan, -infinity, 0.5], [1.0, 1.0, 0.0], 3), [2; 3]);
        assert_eq!(draws(&PLAIN, &[1.0, infinity, 0.5], [1.0, 1.0, 0.0], 3), [1; 3]);
        assert_eq!(draws(&PLAIN, &[nan, -infinity], [1.0, 1.0, 0.0], 1), [NONE as usize]);
    }
}
