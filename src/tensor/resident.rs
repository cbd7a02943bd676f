//! How much memory the process has.

/// Memory of the process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resident {
    /// What it has in memory now.
    pub(crate) now: usize,
    /// The most that it has had in memory so far.
    pub(crate) peak: usize,
}

/// Reads the memory of the process; `None` where the system has no file of it (all but Linux).
pub(crate) fn resident() -> Option<Resident> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<usize> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
    };
    Some(Resident { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_written_to_is_counted() {
        let before = resident().unwrap();
        assert!(before.now > 0 && before.peak >= before.now, "{before:?}");
        let block = vec![1_u8; 64 << 20];
        let after = resident().unwrap();
        assert!(after.peak >= before.now + (32 << 20), "{before:?} {after:?} {}", block[1 << 20]);
    }
}
