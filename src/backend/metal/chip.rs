//! Apple's chips by name: what the choice of implementations and the bounds of command buffers are reckoned with.
//!
//! The numbers are other people's: peak rates follow from cores and clock (philipturner, "metal-benchmarks"; from M3 on
//! tables of the press), bandwidths are Apple's. None was measured by us. The rates of matrix units on M5 and later are
//! extrapolated from a study of the A19 (tzakharko). `metal-candle tune` is to replace them by measurements.

/// How large a chip is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChipClass {
    /// A phone's or tablet's.
    Phone,
    /// Without an addition to its name, or Pro.
    BasePro,
    /// Max.
    Max,
    /// Ultra: two of Max.
    Ultra,
}

/// A chip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chip {
    /// As in `MTLDevice.name`, after "Apple ".
    pub name: &'static str,
    /// 1 for M1 and so on.
    pub generation: u32,
    /// Its class.
    pub class: ChipClass,
    /// Peak of the SIMD units in f32, in 10¹² operations a second.
    pub teraflops: f64,
    /// Peak of matrix products in f16 through Metal Performance Shaders.
    pub matrix_teraflops: f64,
    /// Bandwidth in 10⁹ bytes a second.
    pub gigabytes: f64,
}

macro_rules! chips {
    ($(($name:literal, $generation:literal, $class:ident, $f32:literal, $matrix:literal, $bandwidth:literal)),* $(,)?) => {
        [$(Chip {
            name: $name,
            generation: $generation,
            class: ChipClass::$class,
            teraflops: $f32,
            matrix_teraflops: $matrix,
            gigabytes: $bandwidth,
        }),*]
    };
}

/// The chips that are known, with the smaller of two where a name stands for several.
pub const CHIPS: [Chip; 19] = chips![
    ("M1", 1, BasePro, 2.6, 2.6, 68.0),
    ("M1 Pro", 1, BasePro, 5.3, 5.3, 200.0),
    ("M1 Max", 1, Max, 10.6, 10.6, 400.0),
    ("M1 Ultra", 1, Ultra, 21.2, 21.2, 800.0),
    ("M2", 2, BasePro, 3.6, 3.6, 100.0),
    ("M2 Pro", 2, BasePro, 6.8, 6.8, 200.0),
    ("M2 Max", 2, Max, 13.6, 13.6, 400.0),
    ("M2 Ultra", 2, Ultra, 27.2, 27.2, 800.0),
    ("M3", 3, BasePro, 3.6, 3.6, 100.0),
    ("M3 Pro", 3, BasePro, 6.4, 6.4, 150.0),
    ("M3 Max", 3, Max, 10.7, 10.7, 300.0),
    ("M3 Ultra", 3, Ultra, 21.0, 21.0, 819.0),
    ("M4", 4, BasePro, 3.8, 3.8, 120.0),
    ("M4 Pro", 4, BasePro, 8.1, 8.1, 273.0),
    ("M4 Max", 4, Max, 13.0, 13.0, 410.0),
    ("M5", 5, BasePro, 4.0, 15.0, 153.0),
    ("M5 Pro", 5, BasePro, 8.0, 32.0, 307.0),
    ("M5 Max", 5, Max, 13.0, 50.0, 460.0),
    ("A19 Pro", 5, Phone, 1.9, 7.5, 77.0),
];

/// What an unknown chip is taken for: the smallest.
pub const UNKNOWN: Chip = CHIPS[0];

impl Chip {
    /// The chip of a device, by `MTLDevice.name`; an unknown one is taken for the smallest.
    pub fn of(device_name: &str) -> Self {
        let name = device_name.strip_prefix("Apple ").unwrap_or(device_name).trim();
        CHIPS.into_iter().find(|chip| chip.name == name).unwrap_or(UNKNOWN)
    }

    /// Dispatches of a command buffer: MLX's numbers for each class (its `device.cpp`), times the depth at which a
    /// report on M3 Ultra found the boundaries between command buffers to cost nothing any more (MLX issue 4521).
    pub fn dispatches(self) -> usize {
        match self.class {
            ChipClass::Phone => 40,
            ChipClass::BasePro => 64,
            ChipClass::Max | ChipClass::Ultra => 256,
        }
    }

    /// Estimated seconds of a program: of each step the slower of arithmetic and memory, and 2.5 µs a dispatch, since each
    /// of a chain waits for the one before (as others measured). What a submission and a wait cost, 0.15 ms and
    /// more, is not in it.
    pub fn program_seconds(self, costs: impl IntoIterator<Item = (u64, u64)>, dispatches: usize) -> f64 {
        let work: f64 = costs.into_iter().map(|(flops, bytes)| self.seconds(flops, bytes)).sum();
        work + 2.5e-6 * dispatches as f64
    }

    /// Estimated seconds of work that moves so many bytes and does so many operations on the SIMD units.
    pub fn seconds(self, flops: u64, bytes: u64) -> f64 {
        // Four fifths of either peak is what good kernels reach (others measured 0.75 to 0.85, and 0.79 to 0.9).
        let peak = 0.8;
        (flops as f64 / (1e12 * self.teraflops * peak)).max(bytes as f64 / (1e9 * self.gigabytes * peak))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_found_by_the_whole_name() {
        assert_eq!(Chip::of("Apple M3 Max").gigabytes, 300.0);
        assert_eq!(Chip::of("Apple M1").name, "M1");
        assert_eq!(Chip::of("Apple M99 Ultra"), UNKNOWN);
        assert_eq!(Chip::of("AMD Radeon Pro 5500M"), UNKNOWN);
        let names: std::collections::BTreeSet<_> = CHIPS.iter().map(|chip| chip.name).collect();
        assert_eq!(names.len(), CHIPS.len());
    }

    #[test]
    fn work_is_bound_by_the_slower_of_arithmetic_and_memory() {
        let chip = Chip::of("Apple M1");
        assert!((chip.seconds(0, 68_000_000) - 1.25e-3).abs() < 1e-9);
        assert!((chip.seconds(2_600_000_000, 1) - 1.25e-3).abs() < 1e-9);
    }
}
