//! Training, interruptions, kills, faults of the disk, resumes, generation, exchanged adapters and merges, at random and
//! for as long as is asked for: every result is that of an undisturbed run, and memory, threads and file handles stay flat.
//!
//! `cargo xtask soak MINUTES` runs it for longer. `METAL_CANDLE_SOAK_SEED` repeats a soak's choices; times are not repeated.
#![cfg(target_os = "linux")]

mod flat;
mod library;
mod process;
mod random;
mod report;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../tiny_model/mod.rs"]
mod tiny_model;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../tiny_model/tree.rs"]
mod tree;

use std::time::{Duration, Instant};

use flat::Series;
use library::Library;
use process::{Tool, sample};
use random::Random;
use report::Report;
use tiny_model::Bench;

/// How long the short form takes, beside the preparation.
const SHORT: Duration = Duration::from_secs(8);

/// Resident memory, in KiB. The smallest thing of a round that could be kept is an adapter of 33 KiB; the bound is a
/// quarter of it for each round, and 4 MiB for the arenas of the allocator, which grow by pieces of that order.
const MEMORY: (f64, f64) = (4096.0, 8.0);
/// Fewer rounds than this show how caches of compiled programs fill, and nothing else.
const MEMORY_ROUNDS: usize = 40;
/// Threads and handles: not one more.
const COUNT: (f64, f64) = (0.5, 0.0);

/// Series of one kind of process.
struct Watched {
    memory: Series,
    threads: Series,
    files: Series,
}

impl Watched {
    fn new(names: [&'static str; 3]) -> Self {
        let series = |index: usize, unit, bound, least| Series {
            name: names[index],
            unit,
            bound,
            least,
            values: Vec::new(),
        };
        Self {
            memory: series(0, "KiB", MEMORY, MEMORY_ROUNDS),
            threads: series(1, "threads", COUNT, 5),
            files: series(2, "handles", COUNT, 5),
        }
    }

    fn add(&mut self, usage: process::Usage) {
        self.memory.values.push(usage.memory);
        self.threads.values.push(usage.threads);
        self.files.values.push(usage.files);
    }
}

#[test]
fn soak() {
    let minutes = std::env::var("METAL_CANDLE_SOAK_MINUTES").ok().map(|text| text.parse::<f64>().unwrap());
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(60.0 * minutes));
    let seed = std::env::var("METAL_CANDLE_SOAK_SEED").map_or(1, |text| text.parse().unwrap());
    let bench = Bench::new();
    let library = Library::new(&bench.path("model"), &bench.path("data"), bench.path("")).unwrap();
    let tool = Tool::new();
    println!("seed {seed}; {} operations of the file layer in a run of the tool", tool.operations());
    let (mut random, mut report) = (Random(seed), Report::default());
    let mut own = Watched::new(["this process: memory", "this process: threads", "this process: handles"]);
    let mut others =
        Watched::new(["resumed runs: peak memory", "resumed runs: threads", "resumed runs: handles"]);
    let started = Instant::now();
    while started.elapsed() < length && report.findings.len() < 100 {
        library.round(&mut random, &mut report);
        own.add(sample("self"));
        if let Some(usage) = tool.round(&mut random, &mut report) {
            others.add(usage);
        }
    }
    println!("{:.1} minutes, {} rounds", started.elapsed().as_secs_f64() / 60.0, own.memory.values.len());
    report.close(&[&own.memory, &own.threads, &own.files, &others.memory, &others.threads, &others.files]);
    assert!(report.counted("library: output folders compared") > 0, "no round was done");
    assert_eq!(report.findings, [] as [&str; 0]);
}
