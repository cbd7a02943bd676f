//! Tables for terminals and for documents.

/// Rows of cells under a head.
#[derive(Debug, Clone)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned).into()])
    }

    /// More columns.
    pub(crate) fn columns(&mut self, names: impl IntoIterator<Item = String>) {
        self.0[0].extend(names);
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// The table, if it has rows.
    pub(crate) fn filled(self) -> Option<Self> {
        (self.0.len() > 1).then_some(self)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.0.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if index == 0 {
                text += &format!("|{}\n", "---|".repeat(row.len()));
            }
        }
        text
    }

    pub(crate) fn text(&self) -> String {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.0[0].len()).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            text += line.join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// A number with three digits or so.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The processor's name, where the system tells, and how many cores it has.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = if cfg!(target_os = "macos") {
        std::process::Command::new("/usr/sbin/sysctl")
            .args(["-n", "machdep.cpu.brand_string"])
            .output()
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .map(|name| name.trim().to_owned())
    } else {
        std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
    };
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{name}, {cores} cores")
}

/// What makes figures worth less: a build for development, with candle as part of it, and a machine that others use.
pub(crate) fn warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    if cfg!(debug_assertions) {
        let text = "This is a build for development: ours and candle's figures are not those of a release; use cargo build \
                    --release";
        warnings.push(text.to_owned());
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    warnings.extend(load.split_whitespace().next().and_then(|load| load.parse().ok()).and_then(busy));
    warnings
}

/// That others keep the machine busy: threads that wait for each other then wait for them too, ours and the peers'.
fn busy(load: f64) -> Option<String> {
    (load >= 0.5).then(|| {
        format!("Others kept the machine busy when this began (load {load:.1}): no ratio of this run can be relied on")
    })
}

/// How many threads of the processor a flag means.
pub(crate) fn threads(flag: usize) -> usize {
    if flag == 0 { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) } else { flag }
}

/// Returns true if two places are the same kind of device: a peer's own words name it.
pub(crate) fn same_place(ours: &str, theirs: &str) -> bool {
    let gpu =
        |text: &str| ["metal", "mps", "gpu", "cuda"].iter().any(|word| text.to_lowercase().contains(word));
    gpu(ours) == gpu(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_numbers_short() {
        let mut table = Table::new(["a", "b"]);
        assert!(table.clone().filled().is_none());
        table.row(vec!["long".into(), "x".into()]);
        assert_eq!(table.text(), "a     b\nlong  x\n");
        assert_eq!(table.markdown(), "| a | b |\n|---|---|\n| long | x |\n");
        assert_eq!([1.234, 12.34, 123.4].map(number), ["1.23", "12.3", "123"]);
    }

    #[test]
    fn a_busy_machine_is_told() {
        assert_eq!(busy(0.2), None);
        assert!(busy(7.0).unwrap().contains("(load 7.0)"));
        assert!(warnings().iter().any(|warning| warning.contains("build for development")));
    }

    #[test]
    fn a_gpu_is_not_compared_with_a_processor() {
        assert!(same_place("cpu", "torch 2.15.0+cu132, cpu, 2 threads"));
        assert!(
            same_place("metal", "torch 2.15.0, mps:0, 2 threads") && same_place("metal", "Device(gpu, 0)")
        );
        assert!(!same_place("cpu", "mlx 0.32, Device(gpu, 0)") && !same_place("metal", "candle 0.11, cpu"));
        assert!(!same_place("cpu", "torch 2.15, cuda:0"));
    }
}
