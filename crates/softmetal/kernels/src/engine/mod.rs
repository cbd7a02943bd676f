//! Runs a kernel: one fiber per thread of the GPU, all on the calling thread.
//!
//! A fiber runs until it ends, or waits at a SIMD-group operation or a barrier. The order in which fibers,
//! SIMD groups and threadgroups run follows from a seed ([`schedule`]), so a race that one order hides is
//! repeatable in another.

mod fiber;
mod schedule;
mod signal;

use std::cell::Cell;
use std::ffi::c_void;

use crate::memory::{Memory, Wrong};
use fiber::{Stack, give_stack, restore, switch, take_stack};

/// Lanes of a SIMD group.
pub(crate) const LANES: usize = 32;
/// Most threads of a threadgroup.
pub(crate) const MOST_THREADS: usize = 1024;

type Triple = [u32; 3];
type Operation = unsafe extern "C" fn(*mut *mut c_void);

/// Mirrors `softmetal_context` of `prelude/abi.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Context {
    buffers: *const *mut u8,
    threadgroups: *const *mut u8,
    thread_position_in_grid: Triple,
    thread_position_in_threadgroup: Triple,
    threadgroup_position_in_grid: Triple,
    threads_per_threadgroup: Triple,
    dispatch_threads_per_threadgroup: Triple,
    threadgroups_per_grid: Triple,
    threads_per_grid: Triple,
    thread_index_in_threadgroup: u32,
    thread_index_in_simdgroup: u32,
    simdgroup_index_in_threadgroup: u32,
    simdgroups_per_threadgroup: u32,
    dispatch_simdgroups_per_threadgroup: u32,
    threads_per_simdgroup: u32,
}

/// Mirrors `softmetal_hook_table` of `prelude/abi.h`.
#[repr(C)]
pub(crate) struct Hooks {
    load: extern "C" fn(usize, usize),
    store: extern "C" fn(usize, usize),
    simd: unsafe extern "C" fn(Option<Operation>, *mut c_void, usize),
    barrier: unsafe extern "C" fn(usize, u32),
    lane: extern "C" fn() -> u32,
}

pub(crate) const HOOKS: Hooks =
    Hooks { load: load_hook, store: store_hook, simd: simd_hook, barrier: barrier_hook, lane: lane_hook };

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Waits for the lanes of its SIMD group.
    Simd,
    /// Waits for the threads of its threadgroup.
    Barrier,
    Done,
}

struct Fiber {
    state: State,
    stack: Option<Stack>,
    pointer: *mut u8,
    context: Context,
    operation: Option<Operation>,
    block: *mut c_void,
    site: usize,
    line: u32,
}

/// Counts of a dispatch.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) threads: u64,
    pub(crate) switches: u64,
    pub(crate) simd_operations: u64,
    pub(crate) barriers: u64,
    pub(crate) divergent: u64,
}

/// Why a dispatch stopped.
pub(crate) enum Stop {
    Access { thread: Triple, address: usize, size: usize, write: Option<bool>, wrong: Wrong },
    Arithmetic { thread: Triple },
    Barrier { threadgroup: Triple, line: u32, waiting: u32, other: Option<u32>, others: u32 },
}

/// What is run.
pub(crate) struct Job<'a> {
    pub(crate) kernel: unsafe extern "C" fn(*const Context),
    pub(crate) buffers: &'a [*mut u8; 31],
    pub(crate) threadgroups: &'a [*mut u8; 31],
    /// Threadgroup memory, filled with NaNs before each threadgroup.
    pub(crate) shared: &'a [(*mut u8, usize)],
    pub(crate) grid: Triple,
    pub(crate) threadgroup: Triple,
    pub(crate) seed: u64,
}

pub(crate) struct Engine<'a> {
    job: Job<'a>,
    pub(crate) memory: Memory,
    pub(crate) counts: Counts,
    fibers: Vec<Fiber>,
    main: *mut u8,
    /// The fiber that runs; null while the engine itself does.
    current: *mut Fiber,
    stack: usize,
    stop: Option<Stop>,
}

thread_local! {
    static ENGINE: Cell<*mut Engine<'static>> = const { Cell::new(std::ptr::null_mut()) };
}

/// The engine of this thread, while a fiber runs.
fn running() -> Option<&'static mut Engine<'static>> {
    let engine = ENGINE.get();
    // SAFETY: non-null between `Engine::run` and its end only, on the thread that runs it; the engine itself
    // holds no reference while a fiber runs, since it is suspended in `resume`.
    let engine = unsafe { engine.as_mut() }?;
    (!engine.current.is_null()).then_some(engine)
}

extern "C" fn load_hook(address: usize, size: usize) {
    check(address, size, false);
}

extern "C" fn store_hook(address: usize, size: usize) {
    check(address, size, true);
}

#[inline]
fn check(address: usize, size: usize, write: bool) {
    let Some(engine) = running() else { return };
    if address.wrapping_sub(engine.stack) < fiber::STACK || size == 0 {
        return;
    }
    if let Err(wrong) = engine.memory.access(address, size, write) {
        let thread = engine.thread();
        engine.abandon(Stop::Access { thread, address, size, write: Some(write), wrong });
    }
}

unsafe extern "C" fn simd_hook(operation: Option<Operation>, block: *mut c_void, site: usize) {
    let Some(engine) = running() else { return };
    // SAFETY: `current` points to the fiber that called, which the engine keeps in place during a dispatch.
    let fiber = unsafe { &mut *engine.current };
    (fiber.state, fiber.operation, fiber.block, fiber.site) = (State::Simd, operation, block, site);
    engine.suspend();
}

unsafe extern "C" fn barrier_hook(site: usize, line: u32) {
    let Some(engine) = running() else { return };
    // SAFETY: as in `simd_hook`.
    let fiber = unsafe { &mut *engine.current };
    (fiber.state, fiber.site, fiber.line) = (State::Barrier, site, line);
    engine.suspend();
}

extern "C" fn lane_hook() -> u32 {
    // SAFETY: as in `simd_hook`.
    running().map_or(0, |engine| unsafe { (*engine.current).context.thread_index_in_simdgroup })
}

extern "C" fn fiber_entry() -> ! {
    if let Some(engine) = running() {
        // SAFETY: `current` is this fiber; its context was copied to the top of its stack by `resume`.
        unsafe {
            let context = (engine.stack + fiber::STACK - size_of::<Context>()) & !63;
            (engine.job.kernel)(context as *const Context);
        }
    }
    // The engine may have moved on to other fibers meanwhile.
    if let Some(engine) = running() {
        // SAFETY: as in `simd_hook`.
        unsafe { (*engine.current).state = State::Done };
        engine.suspend();
    }
    // A fiber that is done is never resumed.
    std::process::abort()
}

impl<'a> Engine<'a> {
    pub(crate) fn new(job: Job<'a>, memory: Memory) -> Self {
        Engine {
            job,
            memory,
            counts: Counts::default(),
            fibers: Vec::new(),
            main: std::ptr::null_mut(),
            current: std::ptr::null_mut(),
            stack: 0,
            stop: None,
        }
    }

    /// Runs all threadgroups.
    pub(crate) fn run(&mut self) -> Result<(), Stop> {
        signal::install();
        let outer = ENGINE.replace((self as *mut Engine<'a>).cast());
        let result = self.threadgroups();
        ENGINE.set(outer);
        for fiber in &mut self.fibers {
            fiber.stack.take().into_iter().for_each(give_stack);
        }
        result
    }

    fn thread(&self) -> Triple {
        // SAFETY: called while a fiber runs, so `current` points to it.
        unsafe { (*self.current).context.thread_position_in_grid }
    }

    /// Back to the engine; returns when the fiber is resumed.
    fn suspend(&mut self) {
        self.counts.switches += 1;
        // SAFETY: `main` was saved by `resume`, which waits for this switch.
        unsafe { switch(&raw mut (*self.current).pointer, self.main) }
    }

    /// Back to the engine for good.
    fn abandon(&mut self, stop: Stop) {
        self.stop = Some(stop);
        // SAFETY: as in `suspend`; what the fiber's frames hold is plain data of the kernel.
        unsafe { restore(0, self.main) }
    }

    /// Runs fiber `index` until it waits or ends.
    fn resume(&mut self, index: usize) -> Result<(), Stop> {
        let fiber = &raw mut self.fibers[index];
        // SAFETY: `fiber` points into `fibers`, which is not resized while a threadgroup runs. The stack that
        // `prepare` or an earlier switch left is continued once, here.
        unsafe {
            let fiber = &mut *fiber;
            if fiber.stack.is_none() {
                let stack = take_stack();
                let (context, pointer) = stack.prepare(size_of::<Context>(), fiber_entry);
                context.cast::<Context>().write(fiber.context);
                fiber.pointer = pointer;
                fiber.stack = Some(stack);
            }
            self.stack = fiber.stack.as_ref().map_or(0, Stack::low);
        }
        self.current = fiber;
        // SAFETY: as above.
        unsafe { switch(&raw mut self.main, (*fiber).pointer) };
        self.current = std::ptr::null_mut();
        let fiber = &mut self.fibers[index];
        if fiber.state == State::Done {
            fiber.stack.take().into_iter().for_each(give_stack);
        }
        self.stop.take().map_or(Ok(()), Err)
    }
}
