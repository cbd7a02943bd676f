//! Which implementation an operation gets: Metal Performance Shaders, the library's product, or a kernel of ours.
//!
//! What `metal-candle tune` measured on this chip decides where a shape is near a measured one; elsewhere a model of
//! time does: the slower of arithmetic and memory, plus what a call costs the host. Metal Performance Shaders open an
//! encoder of their own and cost the host about 30 µs a call (measured by others on M4 Max); the library's product is
//! encoded beside our kernels. From M5 on f16 products through Metal Performance Shaders use the neural accelerators,
//! which nothing else here reaches. Of bf16 products there (MPSNDArray) nothing is known, so only a measurement chooses
//! them. Where both would take equally long the one without a cost wins.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tensor::DType;
use crate::{Error, Result};

use super::gpu::chip::Chip;

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
    /// Whatever is estimated or measured to be faster, by however little.
    Fast,
    /// Metal Performance Shaders where they are faster by a fifth at least, so that a wrong estimate costs little.
    #[default]
    Balanced,
    /// Metal Performance Shaders wherever the guard allows them.
    Mps,
    /// Never Metal Performance Shaders: the same kernels on every chip and system.
    Metal,
}

impl Preference {
    /// By METAL_CANDLE_BACKEND: `fast`, `balanced` (also `auto`), `portable` (also `metal`) or `mps`; unset is balanced.
    pub fn from_env() -> Result<Self> {
        match std::env::var("METAL_CANDLE_BACKEND") {
            Err(_) => Ok(Self::default()),
            Ok(name) => Self::named(&name),
        }
    }

    pub(super) fn named(name: &str) -> Result<Self> {
        match name {
            "fast" => Ok(Self::Fast),
            "" | "auto" | "balanced" => Ok(Self::Balanced),
            "mps" => Ok(Self::Mps),
            "metal" | "portable" => Ok(Self::Metal),
            _ => Err(Error::invalid(
                "METAL_CANDLE_BACKEND",
                format!("'{name}' is none of fast, balanced, portable, mps and metal"),
            )),
        }
    }
}

/// One product, measured both ways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Type of the matrices, as in [`DType`]'s display.
    pub dtype: String,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Inner length.
    pub k: usize,
    /// Seconds a product by Metal Performance Shaders.
    pub mps: f64,
    /// Seconds a product by kernels that we encode.
    pub metal: f64,
}

/// What was measured on one chip, as a JSON file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// `MTLDevice.name`: the table holds for no other.
    pub device: String,
    /// This crate's version when it was measured.
    pub version: String,
    /// The products.
    pub products: Vec<Measured>,
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// The file cannot be read, or is no table: both name the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, "read", source))?;
        serde_json::from_str(&text).map_err(|error| {
            let message =
                format!("is not a table of measurements ({error}); measure again with: metal-candle tune");
            Error::file(path, message)
        })
    }

    /// Writes the table; the old one stays until the new one is whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a table has no keys but strings");
        text.push('\n');
        crate::atomic::write(path, text.as_bytes())
    }

    /// How many times as long our encoder took as Metal Performance Shaders, for the nearest measured shape. `None` if
    /// no size of a measured one is within a factor of four.
    fn gain(&self, [m, n, k]: [usize; 3], dtype: DType) -> Option<f64> {
        let name = dtype.to_string();
        let apart = |a: usize, b: usize| ((a.max(1) as f64) / (b.max(1) as f64)).log2().abs();
        let near = self.products.iter().filter(|row| row.dtype == name).filter_map(|row| {
            let [dm, dn, dk] = [apart(row.m, m), apart(row.n, n), apart(row.k, k)];
            (dm.max(dn).max(dk) <= 2.0).then_some((dm + dn + dk, row.metal / row.mps))
        });
        near.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, gain)| gain)
    }
}

/// How implementations are chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choices {
    /// What the caller prefers.
    pub preference: Preference,
    /// What was measured on this chip.
    pub table: Option<Table>,
    /// The folder in which compiled kernels are kept between runs, a file for each GPU and version of the system; `None`
    /// keeps none.
    pub kernels: Option<PathBuf>,
    /// Maximum estimated milliseconds of a launch that can be split [default: 12.5]. The display's watchdog stops command
    /// buffers that hold the GPU too long, and a launch is the smallest command buffer.
    pub launch_milliseconds: Option<f64>,
}

impl From<Preference> for Choices {
    fn from(preference: Preference) -> Self {
        Self { preference, ..Self::default() }
    }
}

impl Choices {
    /// By METAL_CANDLE_BACKEND ([`Preference::from_env`]), METAL_CANDLE_TABLE, the path of a [`Table`], and
    /// METAL_CANDLE_KERNELS, the folder of compiled kernels.
    ///
    /// # Errors
    /// Either is set to what is none.
    pub fn from_env() -> Result<Self> {
        let path = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let table = path("METAL_CANDLE_TABLE").map(|path| Table::load(&path)).transpose()?;
        let kernels = path("METAL_CANDLE_KERNELS");
        Ok(Self { preference: Preference::from_env()?, table, kernels, ..Self::default() })
    }

    /// What remains of them on a device: another device's table is left out.
    #[cfg_attr(not(metal), allow(dead_code, reason = "asked by the Metal backend only"))]
    pub(super) fn on(mut self, device_name: &str) -> Self {
        if let Some(table) = self.table.take_if(|table| table.device != device_name) {
            tracing::warn!(
                of = table.device,
                here = device_name,
                "measurements of another device are not used"
            );
        }
        self
    }

    /// The gain in speed that Metal Performance Shaders must promise; `None` if they are not to be asked.
    fn threshold(&self) -> Option<f64> {
        match self.preference {
            Preference::Fast => Some(1.0),
            Preference::Balanced => Some(1.2),
            Preference::Mps => Some(0.0),
            Preference::Metal => None,
        }
    }

    fn choose(&self, gain: f64) -> Implementation {
        if self.threshold().is_some_and(|threshold| gain > threshold) {
            Implementation::Mps
        } else {
            Implementation::Metal
        }
    }

    /// Who computes a product of `[m, k]` and `[k, n]` of this type on a chip.
    pub fn product(&self, [m, n, k]: [usize; 3], batch: usize, dtype: DType, chip: Chip) -> Implementation {
        let measured = self.table.as_ref().and_then(|table| table.gain([m, n, k], dtype));
        self.choose(measured.unwrap_or_else(|| {
            let (flops, bytes) = product_cost([m, n, k], batch, dtype);
            let (ours, theirs) = (chip.seconds(flops, bytes), shaders(chip, dtype).seconds(flops, bytes));
            ours / (theirs + CALL)
        }))
    }

    /// Seconds by which Metal Performance Shaders are estimated to be faster in a product; less than 0 if they are slower.
    #[cfg_attr(not(mps), allow(dead_code, reason = "asked by the product of candle's Metal tensors only"))]
    pub(super) fn product_seconds_gained(
        &self,
        sizes: [usize; 3],
        batch: usize,
        dtype: DType,
        chip: Chip,
    ) -> f64 {
        let (flops, bytes) = product_cost(sizes, batch, dtype);
        chip.seconds(flops, bytes) - shaders(chip, dtype).seconds(flops, bytes) - CALL
    }

    /// Who computes an attention of `[heads, t, d]` over s keys: one fused kernel, or a chain of two products with a
    /// softmax between them and the scores in memory, three calls a head.
    pub fn attention(&self, heads: usize, [t, s, d]: [usize; 3], dtype: DType, chip: Chip) -> Implementation {
        let flops = 4 * (heads * t * s * d) as u64;
        let ends = (2 * heads * (t + s) * d * dtype.size()) as u64;
        // Scores are written by the product, read and written by the softmax, and read again.
        let scores = (4 * heads * t * s * dtype.size()) as u64;
        let ours = chip.seconds(flops, ends);
        let theirs = shaders(chip, dtype).seconds(flops, ends + scores) + 3.0 * heads as f64 * CALL;
        self.choose(ours / theirs)
    }
}

/// Operations and bytes of a batch of products.
pub(crate) fn product_cost([m, n, k]: [usize; 3], batch: usize, dtype: DType) -> (u64, u64) {
    (2 * (batch * m * n * k) as u64, (batch * (m * k + k * n + m * n) * dtype.size()) as u64)
}

/// The chip as Metal Performance Shaders see it: faster in f16 where it has neural accelerators.
fn shaders(chip: Chip, dtype: DType) -> Chip {
    if dtype == DType::F16 { Chip { teraflops: chip.matrix_teraflops, ..chip } } else { chip }
}

/// Seconds that a call of Metal Performance Shaders costs beside its work: encoding on the host, and the encoders that
/// end before it and begin after it on the GPU.
const CALL: f64 = 30e-6 + 8e-6;

#[cfg(test)]
mod tests {
    use super::super::gpu::chip::CHIPS;
    use super::*;

    fn product(m: usize, n: usize, k: usize, dtype: DType, chip: Chip) -> Implementation {
        Choices::default().product([m, n, k], 1, dtype, chip)
    }

    #[test]
    fn before_m5_nothing_is_gained_by_leaving_our_encoder() {
        for chip in CHIPS.into_iter().filter(|chip| chip.generation < 5) {
            for size in [1, 64, 512, 4096] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    for preference in [Preference::Fast, Preference::Balanced] {
                        let choices = Choices::from(preference);
                        let chosen = choices.product([size; 3], 1, dtype, chip);
                        assert_eq!(chosen, Implementation::Metal, "{}", chip.name);
                        let chosen = choices.attention(8, [size, size, 64], dtype, chip);
                        assert_eq!(chosen, Implementation::Metal, "{}", chip.name);
                    }
                }
            }
        }
    }

    #[test]
    fn from_m5_on_large_f16_products_use_the_neural_accelerators() {
        for chip in CHIPS.into_iter().filter(|chip| chip.generation == 5) {
            let choose = |m, dtype| product(m, 2048, 2048, dtype, chip);
            assert_eq!(choose(1, DType::F16), Implementation::Metal, "{}: bound by memory", chip.name);
            assert_eq!(choose(1024, DType::F16), Implementation::Mps, "{}", chip.name);
            assert_eq!(choose(1024, DType::F32), Implementation::Metal, "{}", chip.name);
            assert_eq!(choose(1024, DType::BF16), Implementation::Metal, "{}", chip.name);
            // There is one boundary, and it is where the gain is worth the call.
            let first = (1..4096).find(|&m| choose(m, DType::F16) == Implementation::Mps).unwrap();
            assert!((first..4096).all(|m| choose(m, DType::F16) == Implementation::Mps), "{}", chip.name);
            assert!((8..=512).contains(&first), "{}: {first}", chip.name);
            // The cautious level crosses it later.
            let fast = |m| Choices::from(Preference::Fast).product([m, 2048, 2048], 1, DType::F16, chip);
            let earlier = (1..4096).find(|&m| fast(m) == Implementation::Mps).unwrap();
            assert!(earlier < first, "{}: {earlier} and {first}", chip.name);
        }
    }

    #[test]
    fn attention_by_a_chain_is_for_long_sequences_on_neural_accelerators() {
        for chip in CHIPS.into_iter().filter(|chip| chip.generation == 5) {
            let choose = |t, dtype| Choices::default().attention(16, [t, t, 128], dtype, chip);
            assert_eq!(choose(64, DType::F16), Implementation::Metal, "{}", chip.name);
            assert_eq!(choose(8192, DType::F32), Implementation::Metal, "{}", chip.name);
            assert_eq!(choose(8192, DType::F16), Implementation::Mps, "{}", chip.name);
        }
    }

    #[test]
    fn preferences_hold_whatever_the_estimate_says() {
        let chip = Chip::of("Apple M5 Max");
        for size in [1, 4096] {
            let with = |preference| Choices::from(preference).product([size; 3], 1, DType::F16, chip);
            assert_eq!(with(Preference::Mps), Implementation::Mps);
            assert_eq!(with(Preference::Metal), Implementation::Metal);
        }
    }

    fn table(mps: f64, metal: f64) -> Table {
        let row = Measured { dtype: "f32".into(), m: 64, n: 1024, k: 1024, mps, metal };
        Table { device: "Apple M1".into(), version: "2".into(), products: vec![row] }
    }

    #[test]
    fn a_measurement_nearby_outweighs_the_estimate() {
        let chip = Chip::of("Apple M1");
        let choose = |table, sizes, dtype| {
            Choices { table: Some(table), ..Choices::default() }.product(sizes, 1, dtype, chip)
        };
        let sizes = [64, 1024, 1024];
        assert_eq!(choose(table(1.0, 1.3), sizes, DType::F32), Implementation::Mps);
        assert_eq!(choose(table(1.0, 1.1), sizes, DType::F32), Implementation::Metal);
        // Four times each size is near, eight times is not; another type is not.
        assert_eq!(choose(table(1.0, 1.3), [256, 4096, 256], DType::F32), Implementation::Mps);
        assert_eq!(choose(table(1.0, 1.3), [512, 1024, 1024], DType::F32), Implementation::Metal);
        assert_eq!(choose(table(1.0, 1.3), sizes, DType::F16), Implementation::Metal);
    }

    #[test]
    fn a_table_is_stored_whole_and_holds_for_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.json");
        table(1.0, 2.0).save(&path).unwrap();
        assert_eq!(Table::load(&path).unwrap(), table(1.0, 2.0));
        let choices = Choices { table: Some(table(1.0, 2.0)), ..Choices::default() };
        assert!(choices.clone().on("Apple M1").table.is_some());
        assert!(choices.on("Apple M2").table.is_none());
        std::fs::write(&path, "{\"device\": ").unwrap();
        let error = Table::load(&path).unwrap_err().to_string();
        assert!(error.contains("table.json") && error.contains("metal-candle tune"), "{error}");
    }

    #[test]
    fn the_environment_is_read_strictly() {
        assert_eq!(Preference::named("mps").unwrap(), Preference::Mps);
        assert_eq!(Preference::named("").unwrap(), Preference::Balanced);
        assert_eq!(Preference::named("portable").unwrap(), Preference::Metal);
        let error = Preference::named("cuda").unwrap_err().to_string();
        assert_eq!(error, "METAL_CANDLE_BACKEND: 'cuda' is none of fast, balanced, portable, mps and metal");
    }
}
