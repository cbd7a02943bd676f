//! Dropout with counter-based random numbers.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_inputs, expect_spec};
use crate::tensor::TensorSpec;
use crate::{Error, Result};

/// `y = x / (1 − p)` with probability 1 − p, else 0 (Srivastava et al., 2014).
///
/// Element i is kept if word `i mod 4` of Philox4x32-10 (Salmon et al., 2011) with counter
/// `(i / 4, 0, stream, 0)` (its upper half in the second word) and the key `seed` is at least p·2³², rounded
/// down. The same seed gives the same mask, so the gradient is the operation itself and a resumed run repeats.
/// Inputs: x, seed u32 `[2]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dropout {
    /// Probability of a zero, in [0, 1).
    pub p: Real,
    /// Distinguishes the dropouts of one step.
    pub stream: u32,
}

impl Dropout {
    /// The least random word that keeps an element.
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.p.0) * 4_294_967_296.0) as u32
    }
}

/// Philox4x32 with ten rounds.
pub(crate) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("dropout", inputs, 2)?;
        expect_float("dropout", &[&inputs[0]])?;
        expect_spec("dropout", "the seed", &inputs[1], &TensorSpec::u32([2]))?;
        if !(0.0..1.0).contains(&self.p.0) {
            return Err(Error::invalid("dropout", format!("p = {} must be in [0, 1)", self.p.0)));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        Ok(vec![Some(cx.one(self.clone(), &[dy, cx.inputs[1]])?), None])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let key = [inputs[1].data[0] as u32, inputs[1].data[1] as u32];
        let scale = 1.0 / (1.0 - f64::from(self.p.0));
        let mut y = inputs[0].clone();
        for (i, x) in y.data.iter_mut().enumerate() {
            let block = (i / 4) as u64;
            let words = philox([block as u32, (block >> 32) as u32, self.stream, 0], key);
            *x *= if words[i % 4] >= self.threshold() { scale } else { 0.0 };
        }
        vec![y]
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

#[cfg(test)]
mod tests {
    use super::philox;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 distribution for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
