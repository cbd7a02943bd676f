//! Rounds through the tool, in processes of their own: runs that are interrupted, killed, short of memory, or whose disk
//! fails, resumed until they are done.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use metal_candle::durable::fault::{FAULTS, Fault, LOG, PLAN, Plan, SHADOW};

use crate::random::Random;
use crate::report::Report;
use crate::tiny_model::Bench;
use crate::tree::{Tree, differences, result, tree};

/// Attempts that a disturbance may spoil before the run is left alone.
const ATTEMPTS: usize = 4;
/// No command of a tiny model takes longer, whatever else the machine does.
const HANGS: Duration = Duration::from_secs(120);
const SIGKILL: i32 = 9;
const SIGABRT: i32 = 6;

/// What happens to a run.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    Signal(&'static str, u64),
    Fault(Plan),
    /// Limit of the address space, in KiB.
    Memory(u64),
    None,
}

/// How a process ended, and the most it had.
struct Ended {
    status: ExitStatus,
    errors: String,
    output: String,
    usage: Usage,
    hung: bool,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Usage {
    /// Peak of the resident memory, in KiB.
    pub(crate) memory: f64,
    pub(crate) threads: f64,
    pub(crate) files: f64,
}

/// The tool with a tiny model, and what commands that nothing disturbed make.
pub(crate) struct Tool {
    bench: Bench,
    run: Tree,
    answer: String,
    merged: Tree,
    /// Milliseconds of a run.
    length: u64,
    operations: u64,
}

const TRAIN: [&str; 20] = [
    "train",
    "--model",
    "model",
    "--data",
    "data",
    "--out",
    "out",
    "--json",
    "--no-samples",
    "--steps",
    "12",
    "--batch-size",
    "4",
    "--rank",
    "4",
    "--save-every",
    "3",
    "--eval-every",
    "4",
    "--threads=1",
];
const GENERATE: [&str; 9] =
    ["generate", "--adapter", "out", "--prompt", "41 and 41 ", "--max-tokens", "8", "--json", "--threads=1"];
const MERGE: [&str; 6] = ["merge", "--adapter", "out", "--out", "merged", "--json"];

impl Tool {
    pub(crate) fn new() -> Self {
        let bench = Bench::new();
        std::fs::create_dir(bench.path("shadow")).unwrap();
        let log = bench.path("operations");
        let started = Instant::now();
        let first = bench.command(&TRAIN).env(LOG, &log).output().unwrap();
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        let length = started.elapsed().as_millis() as u64;
        let operations = std::fs::read_to_string(&log).unwrap().lines().count() as u64;
        let run = result(&bench.path("out"));
        let answer = text_of(&bench.ok(&GENERATE));
        bench.ok(&MERGE);
        let merged = tree(&bench.path("merged"));
        let tool = Self { bench, run, answer, merged, length, operations };
        tool.clear();
        tool
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    fn clear(&self) {
        for name in ["out", "merged", "shadow"] {
            drop(std::fs::remove_dir_all(self.bench.path(name)));
        }
        std::fs::create_dir(self.bench.path("shadow")).unwrap();
    }

    /// One round; what is wrong goes into the report. Returns the usage of the run's last process.
    pub(crate) fn round(&self, random: &mut Random, report: &mut Report) -> Option<Usage> {
        for attempt in 0..=ATTEMPTS {
            let disturbance = match attempt {
                ATTEMPTS => Disturbance::None,
                _ => self.disturbance(random),
            };
            let ended = self.train(disturbance);
            report.count(name_of(disturbance));
            self.judge(disturbance, &ended, report);
            // A curve that cannot be written is noted and is no error; the resumed run writes it.
            if ended.status.success() && !ended.errors.contains("note: the curve is missing") {
                break;
            }
        }
        let found = differences(&self.run, &result(&self.bench.path("out")));
        report.count("process: output folders compared");
        if !found.is_empty() {
            report.finding(format!("process: a disturbed run ended otherwise: {}", found.join(", ")));
        }
        // The same command on a finished run, undisturbed: what it needs must be the same in every round.
        let finished = self.train(Disturbance::None);
        self.judge(Disturbance::None, &finished, report);
        let answer = text_of(&self.bench.ok(&GENERATE));
        report.count("process: answers compared");
        if answer != self.answer {
            report.finding(format!("process: the answer is {answer:?}, expected {:?}", self.answer));
        }
        if random.below(4) == 0 {
            self.bench.ok(&MERGE);
            let found = differences(&self.merged, &tree(&self.bench.path("merged")));
            report.count("process: merges compared");
            if !found.is_empty() {
                report.finding(format!("process: a merge made another folder: {}", found.join(", ")));
            }
        }
        self.clear();
        finished.status.success().then_some(finished.usage)
    }

    fn disturbance(&self, random: &mut Random) -> Disturbance {
        let after = random.below(self.length + self.length / 4);
        match random.below(8) {
            0 => Disturbance::Signal("-TERM", after),
            1 => Disturbance::Signal("-INT", after),
            2 | 3 => Disturbance::Signal("-KILL", after),
            4 => Disturbance::Memory(16_384 + random.below(400_000)),
            _ => {
                let fault = FAULTS[random.below(FAULTS.len() as u64) as usize];
                Disturbance::Fault(Plan { fault, at: 1 + random.below(self.operations) })
            }
        }
    }

    /// Trains or resumes, whichever the folder asks for.
    fn train(&self, disturbance: Disturbance) -> Ended {
        let mut arguments = TRAIN.to_vec();
        let complete = |entry: std::fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("step-") && entry.path().join("manifest.json").exists()
        };
        let checkpoints = std::fs::read_dir(self.bench.path("out/checkpoints"));
        let resume = checkpoints.is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(complete)));
        arguments.push(if resume { "--resume" } else { "--overwrite" });
        let mut command = match disturbance {
            Disturbance::Memory(limit) => {
                let tool = self.bench.command(&arguments);
                let script = "ulimit -v \"$1\"; shift; exec \"$@\"";
                let mut limited = std::process::Command::new("/bin/sh");
                limited.args(["-c", script, "sh", &limit.to_string()]).arg(tool.get_program());
                limited.args(tool.get_args()).current_dir(self.bench.path(""));
                limited
                    .envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?))))
                    .stdin(Stdio::null());
                limited
            }
            _ => self.bench.command(&arguments),
        };
        if let Disturbance::Fault(plan) = disturbance {
            command.env(PLAN, plan.to_string()).env(SHADOW, self.bench.path("shadow"));
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        watch(child, disturbance)
    }

    fn judge(&self, disturbance: Disturbance, ended: &Ended, report: &mut Report) {
        let (code, signal) = (ended.status.code(), ended.status.signal());
        let expected = match disturbance {
            _ if ended.hung => false,
            Disturbance::None => code == Some(0),
            Disturbance::Signal("-KILL", _) => signal == Some(SIGKILL) || code == Some(0),
            // A signal that comes before its handler is there ends the process; nothing has been written by then.
            Disturbance::Signal(..) => matches!(code, Some(0 | 130)) || matches!(signal, Some(2 | 15)),
            Disturbance::Fault(Plan { fault: Fault::Error | Fault::Dead, .. }) => {
                matches!(code, Some(0 | 1 | 3)) && (code == Some(0) || ended.errors.contains("no space left"))
            }
            Disturbance::Fault(_) => signal == Some(SIGABRT) || code == Some(0),
            // The loader of the system says 127; an allocation that fails aborts.
            Disturbance::Memory(_) => matches!(code, Some(0 | 1 | 3 | 127)) || signal.is_some(),
        };
        if !expected {
            let last: Vec<&str> = ended.errors.lines().rev().take(3).collect();
            let hung = if ended.hung { " after hanging" } else { "" };
            report.finding(format!(
                "process: {disturbance:?} ended with {}{hung}: {}{}",
                ended.status,
                last.join(" | "),
                ended.output
            ));
        }
    }
}

fn name_of(disturbance: Disturbance) -> &'static str {
    match disturbance {
        Disturbance::Signal("-TERM", _) => "process: runs with SIGTERM",
        Disturbance::Signal("-INT", _) => "process: runs with SIGINT",
        Disturbance::Signal(..) => "process: runs with SIGKILL",
        Disturbance::Fault(plan) => match plan.fault {
            Fault::Error => "process: runs with one failed operation",
            Fault::Dead => "process: runs on a disk that fails for good",
            Fault::Stop => "process: runs stopped at an operation",
            Fault::Tear => "process: runs stopped within a write",
            Fault::LostData => "process: runs stopped, unsynced data lost",
            Fault::PowerCut => "process: runs stopped, unsynced data and names lost",
        },
        Disturbance::Memory(_) => "process: runs with limited memory",
        Disturbance::None => "process: runs left alone",
    }
}

/// Waits for a process and samples it; sends its signal when that is due.
fn watch(mut child: Child, disturbance: Disturbance) -> Ended {
    let started = Instant::now();
    let readers = [reader(child.stdout.take().unwrap()), reader(child.stderr.take().unwrap())];
    let (mut usage, mut sent, mut hung) = (Usage::default(), false, false);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let now = sample(&child.id().to_string());
        usage = Usage {
            memory: usage.memory.max(now.memory),
            threads: usage.threads.max(now.threads),
            files: usage.files.max(now.files),
        };
        if let Disturbance::Signal(signal, after) = disturbance
            && !sent
            && started.elapsed() >= Duration::from_millis(after)
        {
            sent = true;
            // It may have ended by itself.
            drop(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status());
        }
        if started.elapsed() > HANGS {
            hung = true;
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let [output, errors] = readers.map(|reader| reader.join().unwrap());
    Ended { status, errors, output, usage, hung }
}

fn reader(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a process has now; `self` is this one. Of other processes the memory is its peak.
pub(crate) fn sample(process: &str) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
    let memory = field(if process == "self" { "VmRSS" } else { "VmHWM" });
    Usage { memory, threads: field("Threads"), files: files as f64 }
}

fn text_of(output: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(output).unwrap();
    value["text"].as_str().unwrap().to_owned()
}
