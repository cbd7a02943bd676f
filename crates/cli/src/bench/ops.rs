//! `metal-candle bench ops`: every operation at every size, ours and our peers' in turns.

use std::time::Duration;

use metal_candle::bench::{Case, Reading, Subject, cases};

use crate::args::BenchOpsArgs;
use crate::bench::peers::{Process, difference, ratio};
use crate::bench::report::{Outcome, Peer, Report, Row, Spread, Times};
use crate::session::Session;
use crate::settings;

/// How long each form is run in a round.
const SECONDS: f64 = 0.02;
/// What whoever ran before gets to fall asleep: threads that wait for more work keep the cores busy for some milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// The cases whose operation or shape contains the filter.
fn chosen(args: &BenchOpsArgs) -> anyhow::Result<Vec<Case>> {
    let all = cases(settings::dtype(&args.dtype)?);
    let fits = |case: &Case| match &args.filter {
        Some(filter) => format!("{} {}", case.op(), case.shape()).contains(filter.as_str()),
        None => true,
    };
    let chosen: Vec<Case> = all.into_iter().filter(fits).collect();
    if chosen.is_empty() {
        let filter = args.filter.as_deref().unwrap_or_default();
        let advice = "try softmax, rms_norm, layer_norm, matmul, lora or attention";
        return Err(
            crate::failure::Failure::input(format!("--filter: nothing contains '{filter}'"), advice).into()
        );
    }
    Ok(chosen)
}

/// The spreads of readings.
fn times(readings: &[Reading]) -> Times {
    let of = |value: &dyn Fn(&Reading) -> f64| Spread::of(readings.iter().map(value).collect());
    Times {
        latency: of(&|r| r.latency),
        throughput: of(&|r| r.throughput),
        chain: readings[0].chain.map(|_| of(&|r| r.chain.unwrap_or_default())),
    }
}

/// A peer in one case: what it has shown so far, or why it is out.
struct Entry<'a> {
    peer: &'a mut Process,
    device: String,
    state: Result<f64, String>,
    readings: Vec<Reading>,
    ratios: Vec<Reading>,
}

impl<'a> Entry<'a> {
    fn new(peer: &'a mut Process, case: &Case, ours: &[f64]) -> Self {
        let mut device = String::new();
        let state = peer.prepare(case).and_then(|ready| {
            device = ready.device;
            difference(ours, &ready.result, case)
        });
        Self { peer, device, state, readings: Vec::new(), ratios: Vec::new() }
    }

    fn read(&mut self, ours: Reading) {
        if self.state.is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
        match self.peer.read(SECONDS).and_then(|timed| timed.computed()) {
            Ok(reading) => {
                self.readings.push(reading);
                self.ratios.push(ratio(reading, ours));
            }
            Err(why) => self.state = Err(why),
        }
    }

    fn outcome(self) -> Outcome {
        let name = self.peer.name.to_owned();
        match self.state {
            Ok(difference) => Outcome::Measured(Peer {
                name,
                device: self.device,
                difference,
                times: times(&self.readings),
                ratios: times(&self.ratios),
            }),
            Err(why) => Outcome::Refused { name, why },
        }
    }
}

/// Whether a peer ran where we did: its own words name the device.
fn same_place(ours: &str, theirs: &str) -> bool {
    let gpu = |text: &str| ["metal", "mps", "gpu"].iter().any(|word| text.to_lowercase().contains(word));
    gpu(ours) == gpu(theirs)
}

pub(crate) fn run(args: &BenchOpsArgs, session: &Session) -> anyhow::Result<Report> {
    let device = settings::device(&args.device, args.threads)?;
    let place = if device.name() == "metal" { "metal" } else { "cpu" };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if args.threads == 0 { cores } else { args.threads };
    let chosen = chosen(args)?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        device: device.name(),
        rounds: args.rounds,
        notes: NOTES.map(str::to_owned).into(),
        rows: Vec::new(),
    };
    let mut peers = Vec::new();
    for name in &args.peers {
        match Process::start(name, threads, place) {
            Ok(peer) => peers.push(peer),
            Err(missing) => {
                session.note(&missing);
                report.notes.push(missing);
            }
        }
    }
    let mut meter = session.progress.count("measuring", chosen.len() as u64);
    for (index, case) in chosen.iter().enumerate() {
        let mut subject = Subject::new(case, &device)?;
        let result = subject.result();
        let mut entries: Vec<Entry<'_>> =
            peers.iter_mut().map(|peer| Entry::new(peer, case, &result)).collect();
        for entry in &mut entries {
            if entry.state.is_ok() && !same_place(place, &entry.device) {
                entry.state = Err(format!("refused: it ran on {}, ours on {place}", entry.device));
            }
        }
        let mut readings = Vec::with_capacity(args.rounds);
        for _ in 0..args.rounds {
            session.check_interrupt("measuring")?;
            std::thread::sleep(PAUSE);
            let ours = subject.read(SECONDS)?;
            readings.push(ours);
            for entry in &mut entries {
                entry.read(ours);
            }
        }
        report.rows.push(Row {
            op: case.op(),
            shape: case.shape(),
            dtype: case.dtype.to_string(),
            ours: times(&readings),
            peers: entries.into_iter().map(Entry::outcome).collect(),
        });
        meter.set(index as u64 + 1);
    }
    Ok(report)
}

/// How the figures were taken.
const NOTES: [&str; 3] = [
    "Each reading is the median of the runs of 20 ms, after one that wakes everything. Ours: a run returns when its results \
     are in the host's memory. Latency is one result, throughput one of eight \
     independent results of one run, chain one of eight that depend on each other.",
    "candle: each call returns with its result on a CPU; on a GPU the device is synchronised before the clock stops. torch: \
     the same. mlx: mx.eval of every result before the clock stops.",
    "A peer's column is its latency divided by ours, round by round: the median, and the middle half of the rounds. It is \
     given only where its result is ours and every result was there when its clock stopped.",
];

/// The processor's name, where the system tells, and how many cores it has.
fn machine() -> String {
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
    format!(
        "{}, {cores} cores",
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
    )
}
