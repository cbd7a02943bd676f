//! Threads that stay awake within a step.
//!
//! A step is hundreds of short jobs. Between two of them the threads spin, because waking one costs more than most
//! jobs take; between steps they sleep.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a thread looks for work before it offers its core to others.
const SPINS: u32 = 2_000;
/// How often it offers its core, outside a step, before it sleeps.
const YIELDS: u32 = 20;

/// Kernels are inlined whole. Compiled without optimisation, as in a debug build, their frames take megabytes.
pub(crate) const STACK: usize = 16 << 20;

type Job = *const (dyn Fn(usize) + Sync);

/// Threads that run one job at a time, each with its own number.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Callers from several threads take turns.
    turn: Mutex<()>,
}

struct Shared {
    /// The number of jobs so far; a change tells the workers that `job` is new.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the present job.
    pending: AtomicUsize,
    /// Steps that are running.
    steps: AtomicUsize,
    sleeping: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the caller that has the turn while no worker reads it: workers read it after they saw
// `epoch` change and before they lower `pending`, and the caller waits for `pending` to be 0 before it returns.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job behind the pointer is `Sync`.
unsafe impl Send for Shared {}

/// While one exists, the threads do not sleep.
pub(crate) struct Awake<'a>(&'a Shared);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.steps.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for the workers, also if the caller's own part of the job panics.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut spins = 0;
        while self.0.pending.load(Ordering::Acquire) > 0 {
            relax(&mut spins);
        }
        // SAFETY: no worker reads the job any more.
        unsafe { *self.0.job.get() = None };
    }
}

fn relax(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

impl Pool {
    /// A pool of `threads` threads, the calling one among them. If the system gives fewer, it has fewer.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            steps: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            door: Mutex::new(()),
            bell: Condvar::new(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let start = |thread: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("metal-candle-{thread}"))
                .stack_size(STACK)
                .spawn(move || shared.work(thread))
                .ok()
        };
        let workers = (1..threads).map_while(start).collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// How many threads.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Keeps the threads awake until the guard is dropped.
    pub(crate) fn awake(&self) -> Awake<'_> {
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        Awake(&self.shared)
    }

    /// Runs `job(thread)` for every thread number and returns when all are done. A job must not start another.
    pub(crate) fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: the lifetime is put away only until `Finish` has waited for every worker.
        let job_pointer = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: no job is running, so no worker reads this.
        unsafe { *shared.job.get() = Some(job_pointer) };
        shared.pending.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            let _door = shared.door.lock().unwrap_or_else(PoisonError::into_inner);
            shared.bell.notify_all();
        }
        let finish = Finish(shared);
        job(0);
        drop(finish);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel panicked on a worker thread");
    }

    /// Runs `job(item, thread)` for every item; a thread that is done with one takes the next.
    pub(crate) fn each(&self, items: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        if items <= 1 || self.workers.is_empty() {
            return (0..items).for_each(|item| job(item, 0));
        }
        let next = AtomicUsize::new(0);
        self.run(&|thread| {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    break;
                }
                job(item, thread);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _door = self.shared.door.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.bell.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        while self.wait(seen) {
            seen += 1;
            // SAFETY: the epoch changed, so the caller has written the job and waits for `pending`.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: the caller keeps the job alive until `pending` is 0.
                let call = || unsafe { (*job)(thread) };
                if catch_unwind(AssertUnwindSafe(call)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.pending.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job after number `seen`; false if there will be none.
    fn wait(&self, seen: usize) -> bool {
        let mut spins = 0;
        loop {
            if self.epoch.load(Ordering::Acquire) != seen {
                return true;
            }
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            relax(&mut spins);
            if spins > SPINS + YIELDS && self.steps.load(Ordering::Relaxed) == 0 {
                self.sleep(seen);
                spins = 0;
            }
        }
    }

    fn sleep(&self, seen: usize) {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
            door = self.bell.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_and_every_item_runs_once() {
        let pool = Pool::new(4);
        for round in 0..200 {
            if round % 50 == 0 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let counts: Vec<AtomicUsize> = (0..pool.threads()).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|thread| {
                counts[thread].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            let items: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
            pool.each(37, &|item, _| {
                items[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(items.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn callers_from_several_threads_take_turns() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _awake = pool.awake();
                        pool.run(&|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 100 * pool.threads());
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|thread| assert!(thread != 1, "planted"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.each(10, &|item, _| {
            sum.fetch_add(item, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
