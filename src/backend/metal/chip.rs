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

/// The smallest chip, which stands in for GPUs that report neither a known name nor an architecture of Apple's.
pub const UNKNOWN: Chip = CHIPS[0];

/// Share of either peak that good kernels reach (others measured 0.75 to 0.85, and 0.79 to 0.9).
pub const GOOD_KERNEL: f64 = 0.8;

/// Generation of an architecture minus that of its chip: `applegpu_g13` is the GPU of the M1.
const FIRST_ARCHITECTURE: u32 = 12;

impl Chip {
    /// The chip of a device, by `MTLDevice.name`; an unknown one is taken for the smallest.
    pub fn of(device_name: &str) -> Self {
        let name = device_name.strip_prefix("Apple ").unwrap_or(device_name).trim();
        CHIPS.into_iter().find(|chip| chip.name == name).unwrap_or(UNKNOWN)
    }

    /// The chip of a device, by `MTLDevice.name` and, if the table lacks that name, by `MTLArchitecture.name`: the
    /// largest number below the new chip's generation, in its class. So a chip that is newer than this table counts as
    /// the newest one that is known.
    pub fn of_device(device_name: &str, architecture: &str) -> Self {
        let known = Self::of(device_name);
        if known != UNKNOWN || device_name.trim_start_matches("Apple ") == UNKNOWN.name {
            return known;
        }
        let Some((generation, class)) = architecture_parts(architecture) else { return UNKNOWN };
        let alike = CHIPS.into_iter().filter(|chip| chip.class == class && chip.generation <= generation);
        let newest = alike.reduce(|best, chip| if chip.generation > best.generation { chip } else { best });
        newest.map_or(UNKNOWN, |chip| Self { generation, ..chip })
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

    /// Estimated seconds of work by good kernels; see [`Chip::seconds_at`].
    pub fn seconds(self, flops: u64, bytes: u64) -> f64 {
        self.seconds_at(flops, bytes, GOOD_KERNEL)
    }

    /// Estimated seconds of work that moves so many bytes and does so many operations on the SIMD units, of whose peak
    /// the kernels reach the share `efficiency`.
    pub fn seconds_at(self, flops: u64, bytes: u64, efficiency: f64) -> f64 {
        let arithmetic = flops as f64 / (1e12 * self.teraflops * efficiency);
        arithmetic.max(bytes as f64 / (1e9 * self.gigabytes * GOOD_KERNEL))
    }
}

/// Generation and class that an architecture's name such as `applegpu_g17s` contains. The letter is `p` for phones, `g`
/// for base and Pro, `s` for Pro and Max, `c` for Max and `d` for Ultra in the names that MLX and candle know.
fn architecture_parts(name: &str) -> Option<(u32, ChipClass)> {
    let rest = name.strip_prefix("applegpu_g")?;
    let letter = rest.chars().last()?;
    let number: u32 = rest.strip_suffix(letter)?.parse().ok()?;
    let class = match letter {
        'p' => ChipClass::Phone,
        's' | 'c' => ChipClass::Max,
        'd' => ChipClass::Ultra,
        _ => ChipClass::BasePro,
    };
    Some((number.checked_sub(FIRST_ARCHITECTURE).filter(|&generation| generation > 0)?, class))
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
        assert_eq!(Chip::of_device("AMD Radeon Pro 5500M", ""), UNKNOWN);
        let names: std::collections::BTreeSet<_> = CHIPS.iter().map(|chip| chip.name).collect();
        assert_eq!(names.len(), CHIPS.len());
    }

    #[test]
    fn a_chip_that_is_not_in_the_table_is_the_newest_of_its_class() {
        let of = |architecture| Chip::of_device("Apple M99", architecture);
        let shown = |chip: Chip| (chip.name, chip.generation);
        assert_eq!(shown(of("applegpu_g17g")), ("M5", 5));
        assert_eq!(shown(of("applegpu_g19d")), ("M3 Ultra", 7));
        assert_eq!(shown(of("applegpu_g18c")), ("M5 Max", 6));
        assert_eq!(shown(of("applegpu_g17p")), ("A19 Pro", 5));
        assert_eq!(of("something else"), UNKNOWN);
        assert_eq!(shown(Chip::of_device("Apple M1", "applegpu_g13g")), ("M1", 1));
        assert_eq!(shown(Chip::of_device("Apple M3 Max", "applegpu_g15s")), ("M3 Max", 3));
    }

    #[test]
    fn work_is_bound_by_the_slower_of_arithmetic_and_memory() {
        let chip = Chip::of("Apple M1");
        assert!((chip.seconds(0, 68_000_000) - 1.25e-3).abs() < 1e-9);
        assert!((chip.seconds(2_600_000_000, 1) - 1.25e-3).abs() < 1e-9);
    }
}
