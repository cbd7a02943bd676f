//! `metal-candle bench ops`: every operation at every size, ours and our peers' in turns.

use std::time::Duration;

use metal_candle::bench::{Case, Reading, Subject, cases};

use crate::args::BenchOpsArgs;
use crate::bench::peers::{Peer, Ready, difference, ratio, same_samples};
use crate::bench::process::{Library, Missing};
use crate::bench::report::{self, Outcome, Report, Row, Spread, Times};
use crate::bench::table::{machine, same_place, threads, warnings};
use crate::profiling::Profiling;
use crate::session::Session;
use crate::settings;

/// How long each form is run in a round.
const SECONDS: f64 = 0.02;
/// What whoever ran before gets to fall asleep: threads that wait for more work keep the cores busy for some milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// The cases whose operation or shape contains the filter.
fn chosen(args: &BenchOpsArgs) -> anyhow::Result<Vec<Case>> {
    let all = cases(settings::dtype(&args.dtype)?);
    let fits = |case: &Case| {
        let text = format!("{} {}", case.op(), case.shape());
        args.filter.is_empty() || args.filter.iter().any(|filter| text.contains(filter.as_str()))
    };
    let chosen: Vec<Case> = all.into_iter().filter(fits).collect();
    if chosen.is_empty() {
        let filter = args.filter.join("' or '");
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
    peer: &'a mut Peer,
    ready: Ready,
    state: Result<f64, String>,
    readings: Vec<Reading>,
    ratios: Vec<Reading>,
}

impl<'a> Entry<'a> {
    /// A peer whose result is ours, and which ran where we did.
    fn new(peer: &'a mut Peer, case: &Case, ours: &[f64], place: &str) -> Self {
        let mut ready = Ready::default();
        let state = peer.prepare(case).and_then(|found| {
            ready = found;
            if !same_place(place, &ready.device) {
                return Err(format!("refused: it ran on {}, ours on {place}", ready.device));
            }
            difference(ours, &ready.result, case)
        });
        ready.result = Vec::new();
        Self { peer, ready, state, readings: Vec::new(), ratios: Vec::new() }
    }

    fn read(&mut self, subject: &Subject, ours: Reading, case: &Case) {
        if self.state.is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
        let first = self.readings.is_empty();
        let reading = self.peer.read(SECONDS).and_then(|timed| timed.computed()).and_then(|reading| {
            if first {
                same_samples(&subject.samples(), &self.peer.samples()?, case)?;
            }
            Ok(reading)
        });
        match reading {
            Ok(reading) => {
                self.readings.push(reading);
                self.ratios.push(ratio(reading, ours));
            }
            Err(why) => self.state = Err(why),
        }
    }

    fn outcome(self) -> Outcome {
        let name = self.peer.name().to_owned();
        match self.state {
            Ok(difference) => Outcome::Measured(Box::new(report::Peer {
                name,
                device: self.ready.device,
                form: self.ready.form,
                synchronised: self.ready.synchronised,
                difference,
                times: times(&self.readings),
                ratios: times(&self.ratios),
            })),
            Err(why) => Outcome::Refused { name, why },
        }
    }
}

/// Starts libraries; those that are missing are told of at once.
pub(crate) fn start(
    libraries: &[Library],
    threads: usize,
    place: &str,
    session: &Session,
) -> (Vec<Peer>, Vec<Missing>) {
    let (mut peers, mut missing) = (Vec::new(), Vec::new());
    for &library in libraries {
        match Peer::start(library, threads, place) {
            Ok(peer) => peers.push(peer),
            Err(why) => {
                session.note(why.message());
                missing.push(why);
            }
        }
    }
    (peers, missing)
}

pub(crate) fn run(args: &BenchOpsArgs, session: &Session) -> anyhow::Result<Report> {
    let device = settings::device(&args.device, args.threads)?;
    let place = if device.name() == "metal" { "metal" } else { "cpu" };
    let threads = threads(args.threads);
    let chosen = chosen(args)?;
    let (mut peers, missing) = start(&args.peers, threads, place, session);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        device: if device.name() == "cpu" { format!("cpu, {threads} threads") } else { device.name() },
        rounds: args.rounds,
        notes: NOTES.map(str::to_owned).into_iter().chain(warnings()).collect(),
        missing,
        rows: Vec::new(),
    };
    let profiling = Profiling::begin(&args.profiling, &device);
    let mut meter = session.progress.count("measuring", chosen.len() as u64);
    for (index, case) in chosen.iter().enumerate() {
        let mut subject = Subject::new(case, &device)?;
        let result = subject.result();
        let mut entries: Vec<Entry<'_>> =
            peers.iter_mut().map(|peer| Entry::new(peer, case, &result, place)).collect();
        let mut readings = Vec::with_capacity(args.rounds);
        for _ in 0..args.rounds {
            session.check_interrupt("measuring")?;
            std::thread::sleep(PAUSE);
            let ours = subject.read(SECONDS)?;
            readings.push(ours);
            for entry in &mut entries {
                entry.read(&subject, ours, case);
            }
        }
        let cost = subject.cost();
        report.rows.push(Row {
            op: case.op(),
            shape: case.shape(),
            dtype: case.dtype.to_string(),
            flops: cost.flops,
            bytes: cost.read + cost.written,
            ours: times(&readings),
            peers: entries.into_iter().map(Entry::outcome).collect(),
        });
        meter.set(index as u64 + 1);
    }
    drop(meter);
    profiling.finish(session)?;
    Ok(report)
}

/// How the figures were taken.
const NOTES: [&str; 2] = [
    "Each reading is the median of the runs of 20 ms, three at least, after one that wakes everything; a figure is the \
     median of the rounds with their middle half. Ours: a run returns when its results are in the host's memory.",
    "A peer's column is its time divided by ours, round by round: the median, and the middle half of the rounds. It is \
     given only where its result is ours, 64 elements of every result of a timed run are ours, and all were there when \
     its clock stopped. Of several forms a peer's fastest is timed; --json names it.",
];
