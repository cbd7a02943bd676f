//! `cargo xtask soak MINUTES` and `cargo xtask crash`: the long forms of two tests of the tool.

use crate::{cargo, run};

/// Soaks for so many minutes: runs, interruptions, faults and resumes, with memory, threads and handles watched.
pub(crate) fn soak(minutes: Option<&str>) -> Result<(), String> {
    let minutes = minutes.unwrap_or("60");
    if !minutes.parse::<f64>().is_ok_and(|minutes| minutes > 0.0) {
        return Err(format!("'{minutes}' is no number of minutes; an example: cargo xtask soak 60"));
    }
    let mut command = cargo();
    command.args([
        "test",
        "-p",
        "metal-candle-cli",
        "--test",
        "soak",
        "--",
        "--nocapture",
        "--exact",
        "soak",
    ]);
    run(&format!("soak, {minutes} minutes"), command.env("METAL_CANDLE_SOAK_MINUTES", minutes))
}

/// Tries every fault at every file operation of a run, a resumed run, a merge, a pull and the data cache.
pub(crate) fn crash() -> Result<(), String> {
    let mut command = cargo();
    command.args([
        "test",
        "-p",
        "metal-candle-cli",
        "--test",
        "crash",
        "--",
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    run("crash consistency, every fault at every operation", command.env("METAL_CANDLE_CRASH", "all"))
}
