//! The thread pool.

/// Threads that run one job at a time, each with its own number.
pub(crate) struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, the calling one among them.
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) }
    }

    /// How many threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job(thread)` for every thread number and returns when all are done.
    pub(crate) fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        for thread in 0..self.threads {
            job(thread);
        }
    }
}
