//! Every live object by class and serial number, for naming what leaks.

use std::backtrace::Backtrace;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::{Id, count};

/// A live object.
pub struct Entry {
    /// The class's name; `block` for a copied block.
    pub class: String,
    /// Objects are numbered as they are made.
    pub serial: u64,
    /// Where it was made, if places are recorded.
    pub place: Option<Backtrace>,
}

/// An object that outlived what made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The class's name.
    pub class: String,
    /// The object's number.
    pub serial: u64,
    /// References to it.
    pub retain_count: usize,
    /// Where it was made, if places are recorded.
    pub place: Option<String>,
}

/// What was counted since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Retains of live objects.
    pub retains: usize,
    /// Releases of live objects.
    pub releases: usize,
}

type Table = HashMap<usize, Entry>;

static LIVE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
static DEAD: LazyLock<Mutex<HashMap<usize, (String, u64)>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);
static PLACES: AtomicBool = AtomicBool::new(false);
pub(crate) static RETAINS: AtomicUsize = AtomicUsize::new(0);
pub(crate) static RELEASES: AtomicUsize = AtomicUsize::new(0);

fn live() -> MutexGuard<'static, Table> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether new objects remember where they were made. Slow; also switched on by `SOFTMETAL_BACKTRACE=1`.
pub fn record_places(on: bool) {
    PLACES.store(on, Ordering::Relaxed);
}

fn places() -> bool {
    static FROM_ENVIRONMENT: LazyLock<bool> =
        LazyLock::new(|| std::env::var("SOFTMETAL_BACKTRACE").is_ok_and(|value| value != "0"));
    PLACES.load(Ordering::Relaxed) || *FROM_ENVIRONMENT
}

pub(crate) fn born(address: usize, class: String) {
    let place = places().then(Backtrace::force_capture);
    let entry = Entry { class, serial: NEXT.fetch_add(1, Ordering::Relaxed), place };
    live().insert(address, entry);
}

pub(crate) fn died(address: usize, keep: bool) {
    let Some(entry) = live().remove(&address) else { return };
    if keep {
        let mut dead = DEAD.lock().unwrap_or_else(PoisonError::into_inner);
        dead.insert(address, (entry.class, entry.serial));
    }
}

/// The class and the number of a freed object.
pub(crate) fn obituary(address: usize) -> String {
    let dead = DEAD.lock().unwrap_or_else(PoisonError::into_inner);
    dead.get(&address).map_or("an unknown object".to_owned(), |(class, serial)| format!("{class} #{serial}"))
}

/// The number that the next object gets: a mark to compare with later.
pub fn mark() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// How many objects made since `mark` are alive, by class.
pub fn living_since(mark: u64) -> BTreeMap<String, usize> {
    let mut classes = BTreeMap::new();
    for entry in live().values().filter(|entry| entry.serial >= mark) {
        *classes.entry(entry.class.clone()).or_default() += 1;
    }
    classes
}

/// The objects made since `mark` that are alive, oldest first. Classes whose objects live as long as the process
/// (the device) are not asked for; leave them out by name.
pub fn leaks_since(mark: u64, immortal: &[&str]) -> Vec<Leak> {
    let live = live();
    let mut leaks: Vec<Leak> = live
        .iter()
        .filter(|(_, entry)| entry.serial >= mark && !immortal.contains(&entry.class.as_str()))
        .map(|(&address, entry)| Leak {
            class: entry.class.clone(),
            serial: entry.serial,
            retain_count: if entry.class == crate::blocks::CLASS {
                1
            } else {
                count::references(address as Id)
            },
            place: entry.place.as_ref().map(ToString::to_string),
        })
        .collect();
    leaks.sort_by_key(|leak| leak.serial);
    leaks
}

/// Retains and releases so far.
pub fn totals() -> Totals {
    Totals { retains: RETAINS.load(Ordering::Relaxed), releases: RELEASES.load(Ordering::Relaxed) }
}
