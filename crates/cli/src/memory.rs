//! Memory of the machine, and whether a training run fits into it.

use std::path::Path;

use metal_candle::training::{Estimate, TrainOptions, Trainer};

use crate::failure::{Code, Failure};
use crate::progress::size;

/// Number of bytes that a run may need, instead of what the machine has available.
const LIMIT: &str = "METAL_CANDLE_MEMORY_LIMIT";

/// How to run in spite of the check.
const FORCE: &str = "--no-memory-check runs it anyway";

/// Memory of the machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) total: u64,
    /// What programs can still take without swapping, where the system reports it.
    pub(crate) available: Option<u64>,
}

impl Machine {
    /// Asks the system; `None` where it does not answer.
    pub(crate) fn read() -> Option<Self> {
        if cfg!(target_os = "macos") {
            let output =
                std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
            let total = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
            return Some(Self { total, available: None });
        }
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let machine =
            Self { total: kilobytes(&text, "MemTotal:")?, available: kilobytes(&text, "MemAvailable:") };
        Some(machine.within(container()))
    }

    /// The machine as a container with a limit and so many bytes left of it sees it.
    fn within(self, container: Option<(u64, u64)>) -> Self {
        let Some((limit, left)) = container else { return self };
        let available = self.available.map_or(left, |available| available.min(left));
        Self { total: self.total.min(limit), available: Some(available) }
    }

    /// Bytes that a run can take.
    fn room(self) -> u64 {
        self.available.unwrap_or(self.total)
    }
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The limit of the control group of this process (a container's), and what is left of it: the nearest one of those
/// around it.
fn container() -> Option<(u64, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = root.join(own);
    limits
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            let limit = number(folder.join("memory.max"))?;
            let used = number(folder.join("memory.current"))?;
            let stat = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
            // Pages of files are given up when programs need memory.
            let files = stat.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse::<u64>().ok());
            Some((limit, limit.saturating_sub(used.saturating_sub(files.unwrap_or(0)))))
        })
        .min_by_key(|&(_, left)| left)
}

/// What a run may take beside what the process has already, and how that is called.
fn room() -> Option<(u64, String)> {
    if let Some(limit) = std::env::var(LIMIT).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        return Some((limit, format!("{LIMIT} allows {}", size(limit))));
    }
    let machine = Machine::read()?;
    Some((machine.room(), format!("{} of {} are available", size(machine.room()), size(machine.total))))
}

/// Refuses adapters that do not fit, before they are made. `parameters` of them train.
pub(crate) fn check_adapter(parameters: usize) -> Result<(), Failure> {
    // f32: the adapter with gradients, means and squares on the device, and once more on the host.
    let bytes = 5 * 4 * parameters as u64;
    match room() {
        Some((room, available)) if bytes > room => {
            let cause = format!("the adapter and the optimizer need about {}, but {available}", size(bytes));
            Err(Failure::new(Code::Run, cause, format!("use a smaller --rank or fewer --targets; {FORCE}")))
        }
        _ => Ok(()),
    }
}

/// Refuses a run that does not fit, and names what would make it fit.
pub(crate) fn check_run(trainer: &mut Trainer<'_>, options: &TrainOptions) -> anyhow::Result<()> {
    let needed = beyond(&trainer.estimate()?);
    let Some((room, available)) = room() else { return Ok(()) };
    if needed <= room {
        return Ok(());
    }
    let cause = format!("the run needs about {} more memory, but {available}", size(needed));
    for (flags, options) in lighter(options) {
        let needed = beyond(&trainer.estimate_with(options)?);
        if needed <= room {
            let advice = format!("use {flags} (about {}); {FORCE}", size(needed));
            return Err(Failure::new(Code::Run, cause, advice).into());
        }
    }
    let advice = format!(
        "use a smaller --max-length, --grad-checkpoint with --batch-size 1, --dtype bf16, or a smaller model; {FORCE}"
    );
    Err(Failure::new(Code::Run, cause, advice).into())
}

/// Bytes that a run takes beside those that the process has already.
fn beyond(estimate: &Estimate) -> u64 {
    estimate.bytes().saturating_sub(estimate.resident) as u64
}

/// Ways to train the same with less memory, the mildest first.
fn lighter(options: &TrainOptions) -> Vec<(String, TrainOptions)> {
    let mut ways = Vec::new();
    let mut add = |checkpoint_layers: bool, parts: usize| {
        let batch_size = options.batch_size / parts;
        let accumulation = options.accumulation * parts;
        if batch_size == 0 || !options.batch_size.is_multiple_of(parts) {
            return;
        }
        let mut flags = Vec::new();
        if checkpoint_layers && !options.checkpoint_layers {
            flags.push("--grad-checkpoint".to_owned());
        }
        if parts > 1 {
            flags.push(format!("--batch-size {batch_size} --accumulation {accumulation}"));
        }
        if !flags.is_empty() {
            let way = TrainOptions { checkpoint_layers, batch_size, accumulation, ..options.clone() };
            ways.push((flags.join(" "), way));
        }
    };
    for parts in [1, 2, 4, 8, 16, 32] {
        add(options.checkpoint_layers, parts);
        add(true, parts);
    }
    ways.dedup_by(|a, b| a.0 == b.0);
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_narrows_what_the_machine_has() {
        let machine = Machine { total: 100, available: Some(60) };
        assert_eq!(machine.within(None), machine);
        assert_eq!(machine.within(Some((50, 20))), Machine { total: 50, available: Some(20) });
        assert_eq!(machine.within(Some((200, 90))), machine);
        assert_eq!(Machine { total: 100, available: None }.room(), 100);
    }

    #[test]
    fn fields_of_the_system_are_read() {
        let text = "MemTotal:       24689124 kB\nMemFree:  5 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(kilobytes(text, "MemTotal:"), Some(24_689_124 * 1024));
        assert_eq!(kilobytes(text, "MemAvailable:"), Some(21_000_000 * 1024));
        assert_eq!(kilobytes(text, "SwapTotal:"), None);
    }
}
