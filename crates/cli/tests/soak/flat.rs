//! Whether a series of samples is flat: a slope that single outliers cannot move.

/// Medians of at most this many parts of a series are compared pairwise.
const PARTS: usize = 200;

/// Samples of one quantity, one for each round.
#[derive(Debug, Default)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// The rise over all rounds that is still flat: a constant and a part for each round.
    pub(crate) bound: (f64, f64),
    /// With fewer samples it is not judged.
    pub(crate) least: usize,
    pub(crate) values: Vec<f64>,
}

/// What a series shows.
#[derive(Debug)]
pub(crate) struct Trend {
    pub(crate) first: f64,
    pub(crate) last: f64,
    /// Change for each round, by Theil and Sen: the median of the slopes of all pairs of samples. It is right as long as
    /// fewer than 29 % of the samples are outliers.
    pub(crate) slope: f64,
    /// The slope times the number of rounds.
    pub(crate) rise: f64,
    pub(crate) bound: f64,
}

impl Trend {
    pub(crate) fn is_flat(&self) -> bool {
        self.rise <= self.bound
    }
}

impl Series {
    /// The trend after a fifth of the samples, in which caches fill. `None` with too few samples.
    pub(crate) fn trend(&self) -> Option<Trend> {
        if self.values.len() < self.least.max(5) {
            return None;
        }
        let values = &self.values[self.values.len() / 5..];
        let width = values.len().div_ceil(PARTS);
        let parts: Vec<f64> = values.chunks(width).map(|part| median(part.to_vec())).collect();
        let mut slopes = Vec::new();
        for (i, a) in parts.iter().enumerate() {
            slopes.extend(parts[i + 1..].iter().enumerate().map(|(j, b)| (b - a) / ((j + 1) * width) as f64));
        }
        let slope = median(slopes);
        let rounds = values.len() as f64;
        Some(Trend {
            first: parts[0],
            last: parts[parts.len() - 1],
            slope,
            rise: slope * rounds,
            bound: self.bound.0 + self.bound.1 * rounds,
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl Iterator<Item = f64>) -> Series {
        Series { name: "x", unit: "KiB", bound: (4096.0, 8.0), least: 5, values: values.collect() }
    }

    #[test]
    fn noise_and_outliers_are_flat_and_a_leak_is_not() {
        // Up to 3 MiB of noise from a multiplicative sequence, and every fifth sample 20 MiB too high.
        let noise = |i: usize| (i * 7919 % 3001) as f64 + if i.is_multiple_of(5) { 20_480.0 } else { 0.0 };
        let flat = series((0..1000).map(|i| 50_000.0 + noise(i))).trend().unwrap();
        assert!(flat.is_flat() && flat.slope.abs() < 1.0, "{flat:?}");
        // 33 KiB a round is the adapter of the tiny model.
        let leak = series((0..1000).map(|i| 50_000.0 + noise(i) + 33.0 * i as f64)).trend().unwrap();
        assert!(!leak.is_flat() && (leak.slope - 33.0).abs() < 1.0, "{leak:?}");
        // What fills at the beginning is no leak.
        let cache = series((0..1000).map(|i| 50_000.0 + 100.0 * i.min(150) as f64)).trend().unwrap();
        assert!(cache.is_flat() && cache.slope == 0.0, "{cache:?}");
        assert!(series((0..4).map(|_| 1.0)).trend().is_none());
    }

    #[test]
    fn one_handle_in_each_round_is_a_leak() {
        let handles =
            |leak: f64| Series { bound: (0.5, 0.0), ..series((0..20).map(|i| 9.0 + leak * f64::from(i))) };
        assert!(handles(0.0).trend().unwrap().is_flat());
        assert!(!handles(1.0).trend().unwrap().is_flat());
    }
}
