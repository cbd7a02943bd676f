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
    /// A GPU of NVIDIA's.
    Nvidia,
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

/// NVIDIA's GPUs, with dense peaks without sparsity: f32 of the CUDA cores, f16 of the tensor cores with f32 sums. The generation
/// is the compute capability's major number. A name stands for the SXM form where there are several; an H100 with the smaller
/// memory is found before one without.
pub const NVIDIA_CHIPS: [Chip; 13] = chips![
    ("H200", 9, Nvidia, 66.9, 989.0, 4800.0),
    ("H100 PCIe", 9, Nvidia, 51.2, 756.0, 2000.0),
    ("H100 NVL", 9, Nvidia, 60.0, 835.0, 3900.0),
    ("H100", 9, Nvidia, 66.9, 989.0, 3350.0),
    ("A100-SXM4-40GB", 8, Nvidia, 19.5, 312.0, 1555.0),
    ("A100", 8, Nvidia, 19.5, 312.0, 1935.0),
    ("L40S", 8, Nvidia, 91.6, 362.0, 864.0),
    ("L4", 8, Nvidia, 30.3, 121.0, 300.0),
    ("A10", 8, Nvidia, 31.2, 125.0, 600.0),
    ("RTX 3090", 8, Nvidia, 35.6, 71.0, 936.0),
    ("RTX 4090", 8, Nvidia, 82.6, 165.2, 1008.0),
    ("RTX 5090", 12, Nvidia, 104.8, 209.5, 1792.0),
    ("B200", 10, Nvidia, 80.0, 2250.0, 8000.0),
];

/// The smallest chip, which stands in for GPUs that report neither a known name nor an architecture of Apple's.
pub const UNKNOWN: Chip = CHIPS[0];

/// Share of either peak that good kernels reach (others measured 0.75 to 0.85, and 0.79 to 0.9).
pub const GOOD_KERNEL: f64 = 0.8;

/// Generation of an architecture minus that of its chip: `applegpu_g13` is the GPU of the M1.
const FIRST_ARCHITECTURE: u32 = 12;

impl Chip {
    /// The chip of this `MTLDevice.name`, if the table has it.
    pub fn known(device_name: &str) -> Option<Self> {
        let name = device_name.strip_prefix("Apple ").unwrap_or(device_name).trim();
        CHIPS.into_iter().find(|chip| chip.name == name)
    }

    /// The chip of an NVIDIA GPU by the driver's name of the device, such as "NVIDIA H100 80GB HBM3"; the L4, the smallest of the
    /// table, stands in for one that the table lacks.
    pub fn of_nvidia(device_name: &str) -> Self {
        let words = |text: &str| text.split([' ', '-']).map(str::to_owned).collect::<Vec<_>>();
        let name = words(device_name);
        let contained = |chip: &Self| {
            let wanted = words(chip.name);
            name.windows(wanted.len()).any(|window| window == wanted)
        };
        let smallest = || NVIDIA_CHIPS.into_iter().find(|chip| chip.name == "L4").unwrap_or(UNKNOWN);
        NVIDIA_CHIPS.into_iter().find(contained).unwrap_or_else(smallest)
    }

    /// The chip of a device, by `MTLDevice.name` alone; see [`Chip::of_device`].
    pub fn of(device_name: &str) -> Self {
        Self::of_device(device_name, "")
    }

    /// The chip of a device, by `MTLDevice.name` or, if the table lacks it, by generation and class, which
    /// `MTLArchitecture.name` and the device's name contain. Such a chip keeps its own generation and has the numbers of
    /// the nearest chip of its class: the newest one that is not newer, otherwise the oldest.
    pub fn of_device(device_name: &str, architecture: &str) -> Self {
        if let Some(known) = Self::known(device_name) {
            return known;
        }
        let by_name = name_parts(device_name);
        let (generation, class) = match (architecture_parts(architecture), by_name) {
            // The architecture's letter is the same for Pro and Max, and a name can be of a chip that came later.
            (Some((generation, _)), Some((_, class))) => (generation, class),
            (Some(parts), None) | (None, Some(parts)) => parts,
            (None, None) => return UNKNOWN,
        };
        let distance = |chip: &Self| match generation.checked_sub(chip.generation) {
            Some(older) => older,
            None => 100 + chip.generation - generation,
        };
        let alike = CHIPS.into_iter().filter(|chip| chip.class == class);
        // Of Base and Pro, which are one class, the one whose name has the same ending.
        let ending = |chip: &Self| chip.name.ends_with(" Pro") != device_name.ends_with(" Pro");
        let nearest = alike.min_by_key(|chip| (distance(chip), ending(chip)));
        // Matrix units faster than the SIMD units exist from M5 on.
        let matrix = |chip: &Self| if generation < 5 { chip.teraflops } else { chip.matrix_teraflops };
        nearest.map_or(UNKNOWN, |chip| Self { generation, matrix_teraflops: matrix(&chip), ..chip })
    }

    /// Dispatches of a command buffer: MLX's numbers for each class (its `device.cpp`), times the depth at which a
    /// report on M3 Ultra found the boundaries between command buffers to cost nothing any more (MLX issue 4521).
    pub fn dispatches(self) -> usize {
        match self.class {
            ChipClass::Phone => 40,
            ChipClass::BasePro => 64,
            ChipClass::Max | ChipClass::Ultra | ChipClass::Nvidia => 256,
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
/// for base chips, `s` for Pro and Max and `d` for Ultra, as people report it (M4 Pro and M4 Max are `g16s`). Phones count
/// from their own first: A18 is `g17p` and has the cores of M4, A14 and A15 are `g13p` and `g14p`, M1 and M2.
fn architecture_parts(name: &str) -> Option<(u32, ChipClass)> {
    let rest = name.strip_prefix("applegpu_g")?;
    let letter = rest.chars().last()?;
    let number: u32 = rest.strip_suffix(letter)?.parse().ok()?;
    let class = match letter {
        'p' => ChipClass::Phone,
        'c' => ChipClass::Max,
        'd' => ChipClass::Ultra,
        // Pro is the smaller of the two that `s` stands for.
        _ => ChipClass::BasePro,
    };
    let first =
        if class == ChipClass::Phone && number > 14 { FIRST_ARCHITECTURE + 1 } else { FIRST_ARCHITECTURE };
    Some((number.checked_sub(first).filter(|&generation| generation > 0)?, class))
}

/// Generation and class that a device's name such as "Apple M6 Max" contains. "A18 Pro" is a phone's, with cores of M4.
fn name_parts(device_name: &str) -> Option<(u32, ChipClass)> {
    let mut words = device_name.strip_prefix("Apple ")?.split_whitespace();
    let chip = words.next()?;
    if let Some(number) = chip.strip_prefix('A') {
        let number: u32 = number.parse().ok()?;
        let first = if number > 15 { 14 } else { 13 };
        return Some((number.checked_sub(first).filter(|&generation| generation > 0)?, ChipClass::Phone));
    }
    let generation = chip.strip_prefix('M')?.parse().ok().filter(|&generation| generation > 0)?;
    let class = match words.next() {
        Some("Max") => ChipClass::Max,
        Some("Ultra") => ChipClass::Ultra,
        _ => ChipClass::BasePro,
    };
    Some((generation, class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_found_by_the_whole_name() {
        assert_eq!(Chip::of("Apple M3 Max").gigabytes, 300.0);
        assert_eq!(Chip::of("Apple M1").name, "M1");
        assert_eq!(Chip::of("AMD Radeon Pro 5500M"), UNKNOWN);
        assert_eq!(Chip::of_device("AMD Radeon Pro 5500M", ""), UNKNOWN);
        let names: std::collections::BTreeSet<_> = CHIPS.iter().map(|chip| chip.name).collect();
        assert_eq!(names.len(), CHIPS.len());
    }

    #[test]
    fn nvidia_chips_are_found_by_words_of_the_name() {
        for (name, expected) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H100 PCIe", "H100 PCIe"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
            ("NVIDIA A100-SXM4-80GB", "A100"),
            ("NVIDIA A100 80GB PCIe", "A100"),
            ("NVIDIA L4", "L4"),
            ("NVIDIA L40S", "L40S"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 9990", "L4"),
        ] {
            assert_eq!(Chip::of_nvidia(name).name, expected, "{name}");
        }
    }

    #[test]
    fn a_chip_that_is_not_in_the_table_has_the_numbers_of_the_nearest_of_its_class() {
        let of = |name, architecture| {
            let chip = Chip::of_device(name, architecture);
            (chip.name, chip.generation)
        };
        // By both, as on macOS 14 and later.
        assert_eq!(of("Apple M6", "applegpu_g18g"), ("M5", 6));
        assert_eq!(of("Apple M6 Pro", "applegpu_g18s"), ("M5 Pro", 6));
        assert_eq!(of("Apple M6 Max", "applegpu_g18s"), ("M5 Max", 6));
        assert_eq!(of("Apple M5 Ultra", "applegpu_g17d"), ("M3 Ultra", 5));
        assert_eq!(of("Apple A18 Pro", "applegpu_g17p"), ("A19 Pro", 4));
        // By the architecture, where the name says nothing, and by the name, where there is no architecture.
        assert_eq!(of("Apple GPU", "applegpu_g19d"), ("M3 Ultra", 7));
        assert_eq!(of("Apple GPU", "applegpu_g18c"), ("M5 Max", 6));
        assert_eq!(of("Apple GPU", "applegpu_g18s"), ("M5", 6));
        assert_eq!(of("Apple GPU", "applegpu_g18p"), ("A19 Pro", 5));
        assert_eq!(of("Apple M7 Max", ""), ("M5 Max", 7));
        assert_eq!(of("Apple A20 Pro", ""), ("A19 Pro", 6));
        // The table's own names, whatever the architecture.
        assert_eq!(of("Apple M1", "applegpu_g13g"), ("M1", 1));
        assert_eq!(of("Apple M3 Max", "applegpu_g15s"), ("M3 Max", 3));
        for (name, architecture) in
            [("", ""), ("Apple M0", "applegpu_g12g"), ("Apple Mx", "applegpu_"), ("softmetal", "x")]
        {
            assert_eq!(Chip::of_device(name, architecture), UNKNOWN, "{name} {architecture}");
        }
        assert!(Chip::known("Apple M6").is_none() && Chip::known("Apple M5").is_some());
    }

    #[test]
    fn work_is_bound_by_the_slower_of_arithmetic_and_memory() {
        let chip = Chip::of("Apple M1");
        assert!((chip.seconds(0, 68_000_000) - 1.25e-3).abs() < 1e-9);
        assert!((chip.seconds(2_600_000_000, 1) - 1.25e-3).abs() < 1e-9);
    }
}
