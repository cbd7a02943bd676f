//! Crash consistency by enumeration, as SQLite tests it: a command fails or stops at its n-th file operation, for every n.
//! Afterwards everything that can be read is whole, nothing that was there before is lost, and the command, run again,
//! gives the bytes of a run that nothing disturbed.
//!
//! Each n is tried with one of the faults, in turn; `cargo xtask crash` tries every n with every fault.
#![cfg(unix)]

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../hub/mod.rs"]
mod hub;
mod scenarios;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../tiny_model/mod.rs"]
mod tiny_model;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../tiny_model/tree.rs"]
mod tree;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use metal_candle::durable::fault::{FAULTS, Fault, LOG, PLAN, Plan, SHADOW};

const SIGABRT: i32 = 6;

/// A folder in which the tool runs: a copy of a scenario's beginning.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    /// The hub's address; without one the tool is offline.
    hub: Option<String>,
}

impl Place {
    /// A copy of `template`.
    pub(crate) fn new(template: &Path, hub: Option<&str>) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), hub: hub.map(str::to_owned) };
        copy(template, place.folder.path());
        std::fs::create_dir_all(place.path("shadow")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(arguments).current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        command.env("HOME", self.folder.path()).env("METAL_CANDLE_CACHE", self.path("cache"));
        match &self.hub {
            Some(url) => command.env("HF_ENDPOINT", url),
            None => command.env("METAL_CANDLE_OFFLINE", "1"),
        };
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{arguments:?} ended with {}: {errors}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A command whose operations are enumerated.
pub(crate) trait Scenario: Sync {
    fn place(&self) -> Place;

    fn command(&self, place: &Place) -> Vec<&'static str>;

    /// Checks what can be read after the fault, before anything else runs. `plan` says where it was, and `operations`
    /// how many there are.
    fn check(&self, place: &Place, plan: Plan, operations: u64) -> Result<(), String>;

    /// Runs the command again, as a user would, and compares the result with that of an undisturbed run.
    fn recover(&self, place: &Place) -> Result<(), String>;
}

/// Number of operations of the undisturbed command.
fn operations(scenario: &dyn Scenario) -> u64 {
    let place = scenario.place();
    let log = place.path("shadow/log");
    let output = place.command(&scenario.command(&place)).env(LOG, &log).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(log).unwrap().lines().count() as u64
}

fn case(scenario: &dyn Scenario, plan: Plan, operations: u64) -> Result<(), String> {
    let place = scenario.place();
    let mut command = place.command(&scenario.command(&place));
    let output = command.env(PLAN, plan.to_string()).env(SHADOW, place.path("shadow")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let (code, signal) = (output.status.code(), output.status.signal());
    let expected = match plan.fault {
        // Operations that only tidy up may fail in silence; all others end the command and are named.
        Fault::Error | Fault::Dead => {
            code == Some(0) || matches!(code, Some(1 | 3)) && errors.contains("no space left")
        }
        _ => signal == Some(SIGABRT),
    };
    if !expected {
        return Err(format!("the command ended with {}: {errors}", output.status));
    }
    scenario.check(&place, plan, operations).map_err(|why| format!("after the fault: {why}"))?;
    drop(std::fs::remove_dir_all(place.path("shadow")));
    std::fs::create_dir(place.path("shadow")).unwrap();
    scenario.recover(&place).map_err(|why| format!("after running it again: {why}"))
}

/// Enumerates all operations of a scenario.
fn enumerate(name: &str, scenario: &dyn Scenario) {
    let all = std::env::var_os("METAL_CANDLE_CRASH").is_some_and(|value| value == "all");
    let operations = operations(scenario);
    let turn = |n: u64| FAULTS[n as usize % FAULTS.len()];
    let plans: Vec<Plan> = (1..=operations)
        .flat_map(|at| FAULTS.map(|fault| Plan { fault, at }))
        // The last operation shows in both forms whether the finished result lasts.
        .filter(|plan| {
            all || plan.fault == turn(plan.at) || plan.at == operations && plan.fault == Fault::PowerCut
        })
        .collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(why) = case(scenario, plan, operations) {
                println!("{name}, {plan}: {why}");
                failed.lock().unwrap().push(plan.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |count| count.get().min(8)) {
            scope.spawn(work);
        }
    });
    println!("{name}: {operations} operations, {} faults", plans.len());
    assert!(operations > 0, "the scenario does nothing");
    assert_eq!(*failed.lock().unwrap(), [] as [&str; 0]);
}

#[test]
fn a_run_with_two_checkpoints() {
    enumerate("train", &scenarios::Train::new());
}

#[test]
fn a_resumed_run() {
    enumerate("resume", &scenarios::Train::resumed());
}

#[test]
fn a_merge() {
    enumerate("merge", &scenarios::Merge::new());
}

#[test]
fn a_pull() {
    enumerate("pull", &scenarios::Pull::new());
}

#[test]
fn a_data_set_of_the_hub() {
    enumerate("data", &scenarios::Data::new());
}

#[test]
fn a_built_in_data_set() {
    enumerate("built-in data", &scenarios::BuiltIn::new());
}
