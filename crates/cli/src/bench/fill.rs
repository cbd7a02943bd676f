//! Writes measurements of a Mac's GPU into the table of estimates in docs/MPS_BENCHMARKS.md.

use std::path::Path;

use metal_candle::backend::metal::device_info::{self, DeviceInfo};

use crate::bench::report::Report;
use crate::failure::Failure;

/// Refuses a device or a file before anything is measured: the column is for the GPU of a real Mac.
pub(crate) fn check(path: &Path, device: &str) -> anyhow::Result<()> {
    if device != "metal" || !cfg!(target_os = "macos") {
        return Err(Failure::input(
            "--fill: the column is for measurements of a Mac's GPU",
            "on a Mac, run: metal-candle bench ops --device metal --fill docs/MPS_BENCHMARKS.md",
        )
        .into());
    }
    measurable("--fill", &device_info::read()?)?;
    std::fs::read_to_string(path).map(|_| ()).map_err(|error| {
        let advice = "pass the repository's file, docs/MPS_BENCHMARKS.md";
        Failure::input(format!("{}: {error}", path.display()), advice).into()
    })
}

/// Refuses to measure a GPU that is not one of Apple's, or not a real one: its figures say nothing about Macs.
pub(crate) fn measurable(what: &str, gpu: &DeviceInfo) -> Result<(), Failure> {
    let Some(reason) = gpu.unsupported() else { return Ok(()) };
    let cause = format!("{what}: the GPU '{}' {reason}, so its times would mislead", gpu.name);
    Err(Failure::input(cause, "measure on a Mac with Apple silicon, outside a virtual machine"))
}

/// Writes the throughput reading of every case into the last cell of its line.
pub(crate) fn fill(path: &Path, report: &Report) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path)?;
    metal_candle::atomic::write(path, filled(&text, report).as_bytes())?;
    Ok(())
}

fn filled(text: &str, report: &Report) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // `| operation | shape | dtype | … | measured |`: the first and the last piece are empty.
        let row = match cells.as_slice() {
            ["", op, shape, dtype, .., _, ""] => report
                .rows
                .iter()
                .find(|row| (row.op.as_str(), row.shape.as_str(), row.dtype.as_str()) == (op, shape, dtype)),
            _ => None,
        };
        match (row, line.trim_end().strip_suffix('|').and_then(|line| line.rsplit_once('|'))) {
            (Some(row), Some((start, _))) => {
                lines.push(format!("{start}| {:.1} |", 1e6 * row.ours.throughput.median));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Row, Spread, Times};
    use crate::failure::Code;

    fn gpu(name: &str, families: &[&'static str]) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            chip: metal_candle::backend::gpu::chip::Chip::of(name),
            chip_is_known: false,
            families: families.to_vec(),
            unified_memory: true,
            working_set: 1 << 30,
            largest_buffer: 1 << 30,
            threadgroup_memory: 32 << 10,
            system: Default::default(),
            mps: true,
        }
    }

    #[test]
    fn virtual_and_old_gpus_are_not_measured() {
        assert_eq!(measurable("tune", &gpu("Apple M1", &["Apple7", "Metal3"])), Ok(()));
        assert_eq!(measurable("tune", &gpu("Apple M5 Ultra", &["Apple10"])), Ok(()));
        let refused =
            |name, families: &[&'static str]| measurable("--fill", &gpu(name, families)).unwrap_err();
        let failure = refused("Apple Paravirtual device", &["Apple7"]);
        let cause = "--fill: the GPU 'Apple Paravirtual device' is virtual, so its times would mislead";
        assert_eq!((failure.code, failure.cause.as_str()), (Code::Input, cause));
        for families in [&[][..], &["Apple5"], &["Apple6", "Metal3"], &["Mac2", "Metal3"]] {
            let failure = refused("AMD Radeon Pro 5500M", families);
            assert!(failure.cause.contains("is below GPU family Apple7"), "{}", failure.cause);
        }
    }

    #[test]
    fn only_the_last_cell_of_a_measured_line_changes() {
        let spread = |median| Spread { median, low: median, high: median };
        let row = Row {
            op: "softmax".into(),
            shape: "64x1024".into(),
            dtype: "f32".into(),
            flops: 0,
            bytes: 0,
            ours: Times { latency: spread(1.0), throughput: spread(4.2e-6), chain: None },
            peers: Vec::new(),
        };
        let report = Report { rows: vec![row], ..Report::default() };
        let text = "# Title\n\n| operation | shape | dtype | M1 | measured |\n|---|---|---|---|---|\n\
                    | softmax | 64x1024 | f32 | 12.1 |  |\n| softmax | 64x1024 | f16 | 6.0 | 3.0 |\n";
        let found = filled(text, &report);
        assert_eq!(found, text.replace("| 12.1 |  |", "| 12.1 | 4.2 |"));
        assert_eq!(filled(&found, &report), found, "filling twice changes nothing");
    }
}
