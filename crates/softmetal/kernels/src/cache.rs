//! Compiled kernels on disk.
//!
//! The name of a file holds the hash of all that went into it, so entries are never wrong and never updated;
//! they appear by a rename, so that another process sees a whole file or none.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

/// `SOFTMETAL_CACHE`, else `softmetal` in the user's cache folder, else in the folder for temporary files.
pub(crate) fn folder() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("SOFTMETAL_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|c| c.join("softmetal")))
        .or_else(|| variable("HOME").map(|h| h.join(".cache/softmetal")))
        .unwrap_or_else(|| std::env::temp_dir().join("softmetal"))
}

/// 128 bits in hexadecimal; only ever compared with hashes of the same build.
pub(crate) fn key(parts: &[&str]) -> String {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, parts).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", hash(0), hash(1))
}

/// Makes `path` by letting `fill` write a file beside it, which is then renamed.
pub(crate) fn place<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{count}.part", std::process::id()));
    let filled = fill(&partial);
    if filled.is_err() {
        let _ = std::fs::remove_file(&partial);
        return filled;
    }
    Ok(std::fs::rename(&partial, path)?)
}

/// One lock per entry, so that threads that want the same kernel compile it once.
pub(crate) fn lock(path: &Path) -> Arc<Mutex<()>> {
    static LOCKS: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = LazyLock::new(Mutex::default);
    let mut locks = LOCKS.lock().unwrap_or_else(|e| e.into_inner());
    locks.entry(path.to_path_buf()).or_default().clone()
}
