//! Faults that tests inject into the layer: the n-th operation fails, or the process stops at it as if it was killed or
//! the power went off.
//!
//! The plan comes from the environment (`METAL_CANDLE_FAULT`) for a process that a test starts, or from [`arm`] for the
//! test's own process. Only builds with the feature `fault-injection` contain this module.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::{Operation, injected};

/// Environment variable with the plan of a process: `stop@17`, or `count`.
pub const PLAN: &str = "METAL_CANDLE_FAULT";
/// Environment variable with the file to which every operation is appended: its number, kind and path.
pub const LOG: &str = "METAL_CANDLE_FAULT_LOG";
/// Environment variable with an empty folder on the same disk, which keeps what is replaced or removed until that lasts.
pub const SHADOW: &str = "METAL_CANDLE_FAULT_SHADOW";
/// Environment variable with a folder that is a disk of its own: only operations in it are counted and fail, with an
/// input/output error as on a disk that was taken away.
pub const DISK: &str = "METAL_CANDLE_FAULT_DISK";

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and the process continues.
    Error,
    /// The operation and all that follow fail, as on a disk that is full or gone.
    Dead,
    /// The process stops before the operation, and everything so far is on the disk.
    Stop,
    /// Half of the bytes are written, then the process stops. Operations other than writes are not done.
    Tear,
    /// The process stops, and files that were not synced have lost what was written to them.
    LostData,
    /// The process stops; files that were not synced and names in folders that were not synced are as they were before.
    PowerCut,
}

/// Number of the error of a disk that does not answer.
const EIO: i32 = 5;

/// All faults, in the order in which tests try them.
pub const FAULTS: [Fault; 6] =
    [Fault::Error, Fault::Dead, Fault::Stop, Fault::Tear, Fault::LostData, Fault::PowerCut];

impl Fault {
    /// The name in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Dead => "dead",
            Self::Stop => "stop",
            Self::Tear => "tear",
            Self::LostData => "lost-data",
            Self::PowerCut => "power-cut",
        }
    }
}

/// A fault at an operation, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What happens.
    pub fault: Fault,
    /// At which operation.
    pub at: u64,
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{PLAN}: '{text}' is no plan; an example is stop@17");
        let (name, at) = text.split_once('@').ok_or_else(wrong)?;
        let fault = FAULTS.into_iter().find(|fault| fault.name() == name).ok_or_else(wrong)?;
        Ok(Self { fault, at: at.parse().map_err(|_| wrong())? })
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.fault.name(), self.at)
    }
}

/// How to take back a change of names.
#[derive(Debug)]
enum Undo {
    /// Removes what was created.
    Created(PathBuf),
    /// Renames back, and puts back what was replaced.
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf>, replaced_folder: bool },
    /// Puts a removed file back.
    RemovedFile { path: PathBuf, kept: PathBuf },
    /// Creates a removed folder again.
    RemovedFolder(PathBuf),
}

/// A file with bytes that are not synced: its handle, and its length when it was synced last.
type Unsynced = (File, u64);

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    done: u64,
    log: Option<File>,
    shadow: Option<PathBuf>,
    disk: Option<PathBuf>,
    /// By inode.
    files: HashMap<u64, Unsynced>,
    /// Changes of names that are not synced, with the folder whose sync makes them last.
    names: Vec<(PathBuf, Undo)>,
    kept: u64,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let text = std::env::var(PLAN).unwrap_or_default();
    let log =
        std::env::var_os(LOG).and_then(|path| File::options().create(true).append(true).open(path).ok());
    let plan = match text.as_str() {
        "" | "count" => None,
        // A test with a misspelled plan must not pass as if nothing had failed.
        text => Some(text.parse().unwrap_or_else(|_| stop())),
    };
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let disk = folder(DISK).map(|disk| absolute(&disk));
    Mutex::new(State { plan, log, shadow: folder(SHADOW), disk, ..State::default() })
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Injects a fault into this process, which counts its operations from now on; `None` ends it. Returns the number of
/// operations since the last call.
pub fn arm(plan: Option<Plan>) -> u64 {
    let mut state = state();
    state.plan = plan;
    std::mem::take(&mut state.done)
}

/// Number of operations since the start or the last [`arm`].
pub fn count() -> u64 {
    state().done
}

/// Ends the process at once: no destructor, no handler, no buffered output.
fn stop() -> ! {
    std::process::abort()
}

impl State {
    /// Counts an operation, and tells what happens at it.
    fn next(&mut self, operation: Operation, path: &Path) -> Option<Fault> {
        if self.disk.as_ref().is_some_and(|disk| !absolute(path).starts_with(disk)) {
            return None;
        }
        self.done += 1;
        if let Some(log) = &mut self.log {
            // A log that cannot be written shows as missing lines in the test.
            drop(writeln!(log, "{} {operation:?} {}", self.done, path.display()));
        }
        let plan = self.plan?;
        let due = plan.at == self.done || plan.fault == Fault::Dead && plan.at < self.done;
        due.then_some(plan.fault)
    }

    fn fail(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Error | Fault::Dead if self.disk.is_some() => Err(std::io::Error::from_raw_os_error(EIO)),
            Fault::Error | Fault::Dead => Err(injected()),
            Fault::Stop | Fault::Tear => stop(),
            Fault::LostData | Fault::PowerCut => {
                if fault == Fault::PowerCut {
                    self.take_names_back();
                }
                for (file, length) in self.files.values() {
                    // A file that is gone cannot be cut.
                    drop(file.set_len(*length));
                }
                stop()
            }
        }
    }

    /// Undoes every change of a name that is not synced, the newest first. One that cannot be undone belongs to a folder
    /// that is undone as a whole.
    fn take_names_back(&mut self) {
        for (_, undo) in std::mem::take(&mut self.names).into_iter().rev() {
            match undo {
                Undo::Created(path) if path.is_dir() => drop(std::fs::remove_dir_all(path)),
                Undo::Created(path) => drop(std::fs::remove_file(path)),
                Undo::Renamed { from, to, replaced, replaced_folder } => {
                    drop(std::fs::rename(&to, from));
                    match replaced {
                        Some(kept) => drop(std::fs::rename(kept, to)),
                        None if replaced_folder => drop(std::fs::create_dir(to)),
                        None => {}
                    }
                }
                Undo::RemovedFile { path, kept } => drop(std::fs::rename(kept, path)),
                Undo::RemovedFolder(path) => drop(std::fs::create_dir(path)),
            }
        }
    }

    /// Keeps a second name of a file in the shadow folder.
    fn keep(&mut self, path: &Path) -> Option<PathBuf> {
        let kept = self.shadow.as_ref()?.join(self.kept.to_string());
        self.kept += 1;
        std::fs::hard_link(path, &kept).ok().map(|()| kept)
    }

    /// Whether changes are tracked, which costs file handles and a shadow folder.
    fn tracks(&self) -> bool {
        self.shadow.is_some()
    }

    fn note(&mut self, path: &Path, undo: Undo) {
        if self.tracks() {
            self.names.push((absolute(super::folder_of(path)), undo));
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn identity(file: &File) -> Option<(u64, u64)> {
    let data = file.metadata().ok()?;
    #[cfg(unix)]
    return Some((std::os::unix::fs::MetadataExt::ino(&data), data.len()));
    #[cfg(not(unix))]
    Some((0, data.len()))
}

/// Counts an operation that has no further consequences for what is lost.
pub(super) fn before(operation: Operation, path: &Path) -> Result<()> {
    let mut state = state();
    match state.next(operation, path) {
        Some(fault) => state.fail(fault),
        None => Ok(()),
    }
}

pub(super) fn before_write(file: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut state = state();
    match state.next(Operation::Write, path) {
        Some(Fault::Tear) => {
            drop(file.write_all(&bytes[..bytes.len() / 2]));
            stop()
        }
        Some(fault) => state.fail(fault),
        None => {
            mark(&mut state, file);
            Ok(())
        }
    }
}

/// From now on the file has bytes that are not synced.
fn mark(state: &mut State, file: &File) {
    if state.tracks()
        && let Some((inode, length)) = identity(file)
        && !state.files.contains_key(&inode)
        && let Ok(handle) = file.try_clone()
    {
        state.files.insert(inode, (handle, length));
    }
}

/// A file is about to be cut: nothing behind that length is synced any more.
pub(super) fn cut(file: &File, length: u64) {
    let mut state = state();
    mark(&mut state, file);
    if let Some((inode, _)) = identity(file)
        && let Some((_, synced)) = state.files.get_mut(&inode)
    {
        *synced = length.min(*synced);
    }
}

pub(super) fn created(path: &Path) {
    state().note(path, Undo::Created(absolute(path)));
}

pub(super) fn synced(file: &File) {
    if let Some((inode, _)) = identity(file) {
        state().files.remove(&inode);
    }
}

pub(super) fn synced_folder(folder: &Path) {
    let folder = absolute(folder);
    state().names.retain(|(of, _)| *of != folder);
}

pub(super) fn before_rename(from: &Path, to: &Path) -> Result<()> {
    let mut state = state();
    if let Some(fault) = state.next(Operation::Rename, to) {
        return state.fail(fault);
    }
    let replaced = if to.is_file() { state.keep(to) } else { None };
    let undo =
        Undo::Renamed { from: absolute(from), to: absolute(to), replaced, replaced_folder: to.is_dir() };
    state.note(to, undo);
    Ok(())
}

pub(super) fn before_remove(path: &Path) -> Result<()> {
    let mut state = state();
    if let Some(fault) = state.next(Operation::Remove, path) {
        return state.fail(fault);
    }
    let undo = match path.is_dir() {
        true => Some(Undo::RemovedFolder(absolute(path))),
        false => state.keep(path).map(|kept| Undo::RemovedFile { path: absolute(path), kept }),
    };
    if let Some(undo) = undo {
        state.note(path, undo);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_is_written() {
        for fault in FAULTS {
            let plan = Plan { fault, at: 17 };
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        for wrong in ["stop", "stop@", "stop@x", "halt@3"] {
            assert!(wrong.parse::<Plan>().unwrap_err().contains("stop@17"), "{wrong}");
        }
    }
}
