//! The device's clock, which is the host's: it never goes back.

/// Nanoseconds since the system started.
pub(crate) fn nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is valid for a write; this clock is one of every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The same in seconds.
pub(crate) fn seconds() -> f64 {
    nanoseconds() as f64 * 1e-9
}
