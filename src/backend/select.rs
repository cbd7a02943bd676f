//! Which implementation an operation gets: Metal Performance Shaders, the library's product, or a kernel of ours.
//!
//! A model of time decides: the slower of arithmetic and memory, plus what a call costs the host. Metal Performance
//! Shaders open an encoder of their own and cost the host about 30 µs a call (measured by others on M4 Max); the
//! library's product is encoded beside our kernels. From M5 on f16 products through Metal Performance Shaders use the
//! neural accelerators, which nothing else here reaches. Where both would take equally long the one without a cost wins.

use crate::tensor::DType;
use crate::{Error, Result};

use super::metal_chip::Chip;

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// Metal Performance Shaders.
    Mps,
    /// Kernels encoded by us: our own, or the library's product.
    Metal,
}

/// What a caller prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// What the model of time says.
    #[default]
    Automatic,
    /// Metal Performance Shaders wherever the guard allows them.
    Mps,
    /// Never Metal Performance Shaders.
    Metal,
}

impl Preference {
    /// By METAL_CANDLE_BACKEND: `mps` or `metal`; unset or `auto` is automatic.
    pub fn from_env() -> Result<Self> {
        match std::env::var("METAL_CANDLE_BACKEND") {
            Err(_) => Ok(Self::Automatic),
            Ok(name) => Self::named(&name),
        }
    }

    fn named(name: &str) -> Result<Self> {
        match name {
            "" | "auto" => Ok(Self::Automatic),
            "mps" => Ok(Self::Mps),
            "metal" => Ok(Self::Metal),
            _ => Err(Error::invalid(
                "METAL_CANDLE_BACKEND",
                format!("'{name}' is none of auto, mps and metal"),
            )),
        }
    }
}

/// Seconds that a call of Metal Performance Shaders costs beside its work: encoding on the host, and the encoders that
/// end before it and begin after it on the GPU.
const CALL: f64 = 30e-6 + 8e-6;

/// Who computes a product of `[m, k]` and `[k, n]` of this type on a chip.
pub fn product(m: usize, n: usize, k: usize, batch: usize, dtype: DType, chip: Chip) -> Implementation {
    let flops = 2 * (batch * m * n * k) as u64;
    let bytes = (batch * (m * k + k * n + m * n) * dtype.size()) as u64;
    let ours = chip.seconds(flops, bytes);
    let theirs = if dtype == DType::F16 {
        let faster = Chip { teraflops: chip.matrix_teraflops, ..chip };
        faster.seconds(flops, bytes)
    } else {
        ours
    };
    if theirs + CALL < ours { Implementation::Mps } else { Implementation::Metal }
}

#[cfg(test)]
mod tests {
    use super::super::metal_chip::CHIPS;
    use super::*;

    #[test]
    fn before_m5_nothing_is_gained_by_leaving_our_encoder() {
        for chip in CHIPS.into_iter().filter(|chip| chip.generation < 5) {
            for size in [1, 64, 512, 4096] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    assert_eq!(
                        product(size, size, size, 1, dtype, chip),
                        Implementation::Metal,
                        "{}",
                        chip.name
                    );
                }
            }
        }
    }

    #[test]
    fn from_m5_on_large_f16_products_use_the_neural_accelerators() {
        for chip in CHIPS.into_iter().filter(|chip| chip.generation == 5) {
            let choose = |m, dtype| product(m, 2048, 2048, 1, dtype, chip);
            assert_eq!(choose(1, DType::F16), Implementation::Metal, "{}: bound by memory", chip.name);
            assert_eq!(choose(1024, DType::F16), Implementation::Mps, "{}", chip.name);
            assert_eq!(choose(1024, DType::F32), Implementation::Metal, "{}", chip.name);
            assert_eq!(choose(1024, DType::BF16), Implementation::Metal, "{}", chip.name);
            // There is one boundary, and it is where the gain is worth the call.
            let first = (1..4096).find(|&m| choose(m, DType::F16) == Implementation::Mps).unwrap();
            assert!((first..4096).all(|m| choose(m, DType::F16) == Implementation::Mps), "{}", chip.name);
            assert!((8..=512).contains(&first), "{}: {first}", chip.name);
        }
    }

    #[test]
    fn the_environment_is_read_strictly() {
        assert_eq!(Preference::named("mps").unwrap(), Preference::Mps);
        assert_eq!(Preference::named("").unwrap(), Preference::Automatic);
        let error = Preference::named("cuda").unwrap_err().to_string();
        assert_eq!(error, "METAL_CANDLE_BACKEND: 'cuda' is none of auto, mps and metal");
    }
}
