//! `metal-candle bench explain-plan`: where the MLX figures of this project's plan come from.
//!
//! The plan's benchmark asks MLX for a hundred results, evaluates the last one and divides the time by a hundred. MLX is
//! lazy: the other ninety-nine are never computed. Here the same loop runs beside two right ones, on the same inputs.

use metal_candle::bench::{Case, Kind, Subject};
use metal_candle::tensor::DType;
use serde::Serialize;

use crate::args::ExplainArgs;
use crate::bench::peers::{Explained, Peer, difference};
use crate::bench::process::{Library, Missing};
use crate::bench::report::Spread;
use crate::bench::table::{Table, machine, number, threads};
use crate::failure::{Code, Failure};
use crate::session::Session;
use crate::settings;

/// Results of a loop, as in the plan's benchmark.
const RESULTS: usize = 100;

/// Operations, and MLX's microseconds in the plan where it has them.
const CASES: [(Kind, &str); 10] = [
    (Kind::Lora { rows: 1, d: 512 }, "5-11"),
    (Kind::Lora { rows: 1, d: 1024 }, "5-11"),
    (Kind::Lora { rows: 1, d: 2048 }, "5-11"),
    (Kind::Lora { rows: 128, d: 512 }, "-"),
    (Kind::Lora { rows: 128, d: 1024 }, "-"),
    (Kind::Lora { rows: 128, d: 2048 }, "-"),
    (Kind::Softmax { rows: 1, n: 1024 }, "5"),
    (Kind::Softmax { rows: 64, n: 1024 }, "-"),
    (Kind::RmsNorm { rows: 1, n: 1024 }, "5"),
    (Kind::RmsNorm { rows: 64, n: 1024 }, "-"),
];

/// One operation.
#[derive(Debug, Serialize)]
struct Row {
    op: String,
    shape: String,
    plan: &'static str,
    flawed: Spread,
    each: Spread,
    together: Spread,
    /// Right over flawed, the faster of the right ones.
    low_by: f64,
    ours_latency: Spread,
    ours_throughput: Spread,
    flops: u64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    version: String,
    machine: String,
    mlx: String,
    results: usize,
    rounds: usize,
    /// What `bench ops` says to this pattern.
    refusal: String,
    peak_gflops: Option<f64>,
    rows: Vec<Row>,
}

fn unreachable(missing: &Missing) -> Failure {
    let advice = missing.install.clone().unwrap_or_default();
    Failure::new(Code::Run, format!("{} is missing ({})", missing.name, missing.why), advice)
}

pub(crate) fn run(args: &ExplainArgs, session: &Session) -> anyhow::Result<Explanation> {
    let device = settings::device(&args.device, args.threads)?;
    let place = if device.name() == "metal" { "metal" } else { "cpu" };
    let start = |library| Peer::start(library, threads(args.threads), place).map_err(|m| unreachable(&m));
    let mut mlx = start(Library::Mlx)?;
    let case = |kind| Case { kind, dtype: DType::F32, backward: false };
    let mut explanation = Explanation {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        mlx: String::new(),
        results: RESULTS,
        rounds: args.rounds,
        refusal: String::new(),
        peak_gflops: device.peak().map(|peak| 1e-9 * peak.flops),
        rows: Vec::new(),
    };
    let mut meter = session.progress.count("measuring", CASES.len() as u64);
    for (index, (kind, plan)) in CASES.into_iter().enumerate() {
        let case = case(kind);
        let mut subject = Subject::new(&case, &device)?;
        let refused = |why: String| Failure::new(Code::Run, format!("{}: {why}", case.op()), "see above");
        let ready = mlx.prepare(&case).map_err(refused)?;
        difference(&subject.result(), &ready.result, &case).map_err(refused)?;
        let (mut found, mut ours): (Vec<Explained>, Vec<_>) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            session.check_interrupt("measuring")?;
            ours.push(subject.read(0.02)?);
            found.push(mlx.explain(RESULTS).map_err(refused)?);
        }
        let of = |value: fn(&Explained) -> f64| Spread::of(found.iter().map(value).collect());
        let (flawed, each, together) = (of(|e| e.flawed), of(|e| e.each), of(|e| e.together));
        explanation.mlx = ready.device;
        explanation.rows.push(Row {
            op: case.op(),
            shape: case.shape(),
            plan,
            flawed,
            each,
            together,
            low_by: each.median.min(together.median) / flawed.median,
            ours_latency: Spread::of(ours.iter().map(|reading| reading.latency).collect()),
            ours_throughput: Spread::of(ours.iter().map(|reading| reading.throughput).collect()),
            flops: subject.cost().flops,
        });
        meter.set(index as u64 + 1);
    }
    drop(meter);
    let mut flawed = start(Library::FlawedMlx)?;
    let softmax = case(Kind::Softmax { rows: 64, n: 1024 });
    let verdict = flawed.prepare(&softmax).and_then(|_| flawed.read(0.02)).and_then(|timed| timed.computed());
    explanation.refusal = match verdict {
        Err(why) => why,
        Ok(_) => "it was not refused: MLX computed everything".to_owned(),
    };
    Ok(explanation)
}

impl Explanation {
    pub(crate) fn show(&self, markdown: bool) -> String {
        let mut table = Table::new([
            "operation",
            "shape",
            "the plan's MLX, µs",
            "flawed, µs",
            "each evaluated, µs",
            "all evaluated, µs",
            "flawed is low by",
            "flawed would be, GFLOP/s",
            "ours, latency µs",
            "ours, throughput µs",
        ]);
        for row in &self.rows {
            let us = |spread: Spread| number(1e6 * spread.median);
            table.row(vec![
                row.op.clone(),
                row.shape.clone(),
                row.plan.to_owned(),
                us(row.flawed),
                us(row.each),
                us(row.together),
                format!("{:.0}x", row.low_by),
                number(1e-9 * row.flops as f64 / row.flawed.median),
                us(row.ours_latency),
                us(row.ours_throughput),
            ]);
        }
        let peak = match self.peak_gflops {
            Some(peak) => format!(" This machine's peak is {} GFLOP/s.", number(peak)),
            None => String::new(),
        };
        let (table, item) = if markdown { (table.markdown(), "- ") } else { (table.text(), "") };
        format!(
            "metal-candle {} and {}, {}; f32, {} results, medians of {} rounds\n\n{table}\n\
             {item}flawed: {} results are asked for, the last is evaluated, the time is divided by {}: the benchmark of the \
             plan. MLX is lazy, so that all but one are never computed.{peak}\n\
             {item}each evaluated: mx.eval after every one. All evaluated: mx.eval of all {} together. Our latency and \
             throughput are measured as in bench ops. MLX's results were compared with ours first.\n\
             {item}bench ops, given this pattern as a peer: {}\n",
            self.version,
            self.mlx,
            self.machine,
            self.results,
            self.rounds,
            self.results,
            self.results,
            self.results,
            self.refusal
        )
    }
}
