//! The table of docs/MPS_BENCHMARKS.md: what the executor dispatches, what it moves, and what that takes by the estimate.

use metal_candle::backend::Device;
use metal_candle::backend::gpu::chip::Chip;
use metal_candle::backend::select::Preference;
use metal_candle::bench::{Form, cases};
use metal_candle::tensor::DType;

const CHIPS: [&str; 5] = ["M1", "M2 Pro", "M3 Max", "M4 Max", "M5"];
const BEGIN: &str = "<!-- estimates: written by a test -->";
const END: &str = "<!-- end of estimates -->";

/// The table without its last column, which only a Mac fills.
fn rows() -> Vec<String> {
    let device = Device::metal_with(Preference::Metal).unwrap();
    let mut rows = Vec::new();
    for dtype in [DType::F32, DType::F16] {
        for case in cases(dtype) {
            if case.backward && dtype != DType::F32 {
                continue;
            }
            let program = case.program(&device, Form::One).unwrap();
            let costs: Vec<(u64, u64)> = program
                .plan()
                .steps
                .iter()
                .map(|s| (s.cost().flops, s.cost().read + s.cost().written))
                .collect();
            let (flops, bytes) = costs.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            let mut row = format!(
                "| {} | {} | {dtype} | {} | {:.3} | {:.3} |",
                case.op(),
                case.shape(),
                program.launches(),
                flops as f64 / 1e9,
                bytes as f64 / 1e6
            );
            for name in CHIPS {
                let chip = Chip::of(name);
                let seconds = chip.program_seconds(costs.iter().copied(), program.launches());
                row += &format!(" {:.1} |", 1e6 * seconds);
            }
            rows.push(row);
        }
    }
    rows
}

#[test]
fn the_estimates_in_the_documents_are_those_of_the_executor() {
    let _alone = crate::alone();
    let path = std::path::Path::new(env!("METAL_CANDLE_ROOT")).join("docs/MPS_BENCHMARKS.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark where the table begins");
    let (table, after) = rest.split_once(END).expect("the mark where it ends");
    let written: Vec<(&str, &str)> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| operation"))
        .map(|line| {
            line.trim_end_matches('|').rsplit_once('|').map(|(row, cell)| (row, cell.trim())).unwrap()
        })
        .collect();
    let rows = rows();
    if std::env::var_os("UPDATE_ESTIMATES").is_some() {
        let mut table = format!(
            "\n| operation | shape | dtype | dispatches | GFLOP | MB |{} measured µs |\n|---|---|---|---|---|---|{}---|\n",
            CHIPS.map(|chip| format!(" {chip} µs |")).concat(),
            "---|".repeat(CHIPS.len())
        );
        for row in &rows {
            // A measurement stays with its operation, whatever the estimate beside it says now.
            let key = |row: &str| row.split('|').take(4).map(str::to_owned).collect::<Vec<_>>();
            let measured = written.iter().find(|(old, _)| key(old) == key(row)).map_or("", |(_, cell)| *cell);
            table += &format!("{row} {measured} |\n");
        }
        std::fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).unwrap();
        return;
    }
    let written: Vec<&str> = written.iter().map(|(row, _)| row.trim_end()).collect();
    let rows: Vec<&str> = rows.iter().map(|row| row.trim_end_matches('|').trim_end()).collect();
    assert_eq!(written, rows, "run this test with UPDATE_ESTIMATES=1 and commit docs/MPS_BENCHMARKS.md");
}
