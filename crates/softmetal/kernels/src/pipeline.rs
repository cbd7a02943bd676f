//! A kernel that can be dispatched.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use msl::{AddressSpace, Kernel, Role};

use crate::engine::{Engine, Job, MOST_THREADS, Stop};
use crate::fault::Fault;
use crate::memory::{Access, Kind, Memory, Wrong};
use crate::object::Object;

/// Buffers, and threadgroup arguments, that a kernel can have.
pub(crate) const SLOTS: usize = 31;

/// What is bound to a buffer index.
#[derive(Clone, Debug, Default)]
pub enum Argument {
    /// Nothing. An access through it is [`Fault::UnsetArgument`].
    #[default]
    Unset,
    /// Constant data, as `setBytes:length:atIndex:` takes it.
    Bytes(Vec<u8>),
    /// Part of a buffer.
    Buffer {
        /// The first byte: the buffer's start and the bound offset.
        start: *mut u8,
        /// Bytes from there to the end of the buffer.
        len: usize,
    },
}

/// One dispatch.
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// By buffer index; indices past the end are unset.
    pub arguments: &'a [Argument],
    /// Bytes of threadgroup memory by `[[threadgroup(n)]]` index.
    pub threadgroup_lengths: &'a [usize],
    /// Threads of the grid; need not be a multiple of `threadgroup`.
    pub grid: [u32; 3],
    /// Threads of a threadgroup; 1024 at most in all.
    pub threadgroup: [u32; 3],
    /// Order of threads: 0 is the natural one, others are random and repeatable.
    pub seed: u64,
    /// Whether [`Report::accesses`] is wanted.
    pub record_accesses: bool,
}

/// What a dispatch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Threads that ran.
    pub threads: u64,
    /// Times that a thread waited or ended.
    pub switches: u64,
    /// SIMD-group operations, each counted once per group.
    pub simd_ops: u64,
    /// Threadgroup barriers, each counted once per threadgroup.
    pub barriers: u64,
    /// SIMD-group operations at which lanes waited at different places of the code.
    pub divergent: u64,
    /// Bytes that were read and written, by argument; empty unless asked for.
    pub accesses: Vec<Access>,
}

/// A compiled kernel with its function constants.
pub struct Pipeline {
    kernel: Kernel,
    object: Arc<Object>,
    constants: BTreeMap<u32, Vec<u8>>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("kernel", &self.kernel.name).finish_non_exhaustive()
    }
}

/// Addresses that nothing may touch, and zeros for arguments that are turned off.
struct Reserved {
    unset: usize,
    zeros: usize,
}

const UNSET: usize = 1 << 30;
const ZEROS: usize = 1 << 20;

fn reserved() -> &'static Reserved {
    static RESERVED: LazyLock<Reserved> = LazyLock::new(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let map = |size, protection| {
            // SAFETY: new anonymous mappings, placed by the kernel, touch no other memory.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
            assert!(start != libc::MAP_FAILED, "no address space for unset arguments");
            start as usize
        };
        Reserved { unset: map(UNSET * 2 * SLOTS, libc::PROT_NONE), zeros: map(ZEROS, libc::PROT_READ) }
    });
    &RESERVED
}

/// Memory of a dispatch, 64-byte aligned, with a gap after it that belongs to nobody.
struct Block(Vec<[u64; 8]>);

impl Block {
    fn new(len: usize) -> Self {
        Block(vec![[0; 8]; len.div_ceil(64) + 2])
    }

    fn start(&mut self) -> *mut u8 {
        // The vector's own alignment is 8.
        let start = self.0.as_mut_ptr().cast::<u8>();
        start.wrapping_add(start.align_offset(64))
    }
}

impl Pipeline {
    pub(crate) fn new(kernel: Kernel, object: Arc<Object>, constants: BTreeMap<u32, Vec<u8>>) -> Self {
        Pipeline { kernel, object, constants }
    }

    /// What the kernel takes.
    pub fn signature(&self) -> &Kernel {
        &self.kernel
    }

    /// Bytes of threadgroup memory that the kernel's own variables take, padding to 16 bytes included.
    pub fn static_threadgroup_bytes(&self) -> usize {
        self.object.shared.len()
    }

    /// The most threads of a threadgroup that the kernel's source allows, where it says so.
    pub fn max_threads(&self) -> Option<usize> {
        (self.object.limit > 0).then_some(self.object.limit as usize)
    }

    /// Runs all threads, and returns when they have ended.
    ///
    /// The buffers' memory must be valid for as long as this takes, as with a GPU: the kernel writes to it.
    ///
    /// # Errors
    /// What the kernel did wrong. Buffers then hold what was written before.
    pub fn dispatch(&self, d: &Dispatch<'_>) -> Result<Report, Fault> {
        self.check_shape(d)?;
        let object = &self.object;
        let _busy = object.busy.lock().unwrap_or_else(|e| e.into_inner());
        object.set_constants(&self.constants);
        let mut memory = Memory::new(d.record_accesses);
        let (mut buffers, mut threadgroups) = ([std::ptr::null_mut(); SLOTS], [std::ptr::null_mut(); SLOTS]);
        let mut blocks = Vec::new();
        let mut shared = vec![(object.shared.start as *mut u8, object.shared.len())];
        for (position, argument) in self.kernel.arguments.iter().enumerate() {
            let number = position as u32;
            let writable = !argument.is_const && argument.address_space != Some(AddressSpace::Constant);
            let mut bind = |slot: &mut *mut u8, start: *mut u8, len: usize, kind: Kind| {
                *slot = start;
                memory.add(start as usize..start as usize + len, kind, number, writable);
            };
            // Half of the range lies before the pointer, for negative indices.
            let unset = |index: usize| (reserved().unset + UNSET * index) as *mut u8;
            let mut nothing = |slot: &mut *mut u8, index: usize| {
                bind(slot, unset(index), UNSET, Kind::Unset);
                *slot = slot.wrapping_add(UNSET / 2);
            };
            match argument.role {
                Role::Buffer(n) => {
                    let slot = &mut buffers[n as usize];
                    if !object.enabled(position) {
                        bind(slot, reserved().zeros as *mut u8, ZEROS, Kind::Disabled);
                        continue;
                    }
                    match d.arguments.get(n as usize).unwrap_or(&Argument::Unset) {
                        Argument::Unset => nothing(slot, n as usize),
                        Argument::Buffer { start, len } => bind(slot, *start, *len, Kind::Argument),
                        Argument::Bytes(bytes) => {
                            let mut block = Block::new(bytes.len());
                            let start = block.start();
                            // SAFETY: the block is new and has room for the bytes.
                            unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                            bind(slot, start, bytes.len(), Kind::Argument);
                            blocks.push(block);
                        }
                    }
                }
                Role::Threadgroup(n) => {
                    let slot = &mut threadgroups[n as usize];
                    match d.threadgroup_lengths.get(n as usize).copied().unwrap_or(0) {
                        0 => nothing(slot, SLOTS + n as usize),
                        len => {
                            let mut block = Block::new(len);
                            bind(slot, block.start(), len, Kind::Own);
                            shared.push((block.start(), len));
                            blocks.push(block);
                        }
                    }
                }
                Role::Builtin(_) => {}
            }
        }
        let mut own = |span: Range<usize>, writable| memory.add(span, Kind::Own, 0, writable);
        for table in [&buffers, &threadgroups] {
            own(table.as_ptr() as usize..table.as_ptr() as usize + size_of_val(table), false);
        }
        // Constants and the object's tables surround the threadgroup variables, which alone may be written.
        own(object.shared.clone(), true);
        for part in &object.image {
            let inside = object.shared.start.clamp(part.start, part.end)
                ..object.shared.end.clamp(part.start, part.end);
            own(part.start..inside.start, false);
            own(inside.end..part.end, false);
        }
        let job = Job {
            kernel: object.kernel,
            buffers: &buffers,
            threadgroups: &threadgroups,
            shared: &shared,
            grid: d.grid,
            threadgroup: d.threadgroup,
            seed: d.seed,
        };
        let mut engine = Engine::new(job, memory);
        engine.run().map_err(|stop| self.fault(stop))?;
        let accesses = if d.record_accesses {
            engine.memory.accesses(|position| match self.kernel.arguments[position as usize].role {
                Role::Buffer(n) => n,
                _ => u32::MAX,
            })
        } else {
            Vec::new()
        };
        let c = engine.counts;
        Ok(Report {
            threads: c.threads,
            switches: c.switches,
            simd_ops: c.simd_operations,
            barriers: c.barriers,
            divergent: c.divergent,
            accesses,
        })
    }

    fn check_shape(&self, d: &Dispatch<'_>) -> Result<(), Fault> {
        let fail = |reason| Err(Fault::Dispatch { kernel: self.kernel.name.clone(), reason });
        let threads: u64 = d.threadgroup.iter().map(|n| u64::from(*n)).product();
        if threads == 0 || threads > MOST_THREADS as u64 {
            return fail(format!("a threadgroup of {threads} threads: it must have 1 to {MOST_THREADS}"));
        }
        if let Some(limit) = self.max_threads().filter(|limit| threads > *limit as u64) {
            return fail(format!(
                "a threadgroup of {threads} threads: the kernel declares at most {limit} \
                 (max_total_threads_per_threadgroup), so a GPU would not run it"
            ));
        }
        if d.grid.contains(&0) {
            return fail(format!("a grid of {:?} has no threads", d.grid));
        }
        let slots = self.kernel.arguments.iter().filter_map(|a| match a.role {
            Role::Buffer(n) | Role::Threadgroup(n) => Some(n),
            Role::Builtin(_) => None,
        });
        match slots.max() {
            Some(n) if n as usize >= SLOTS => fail(format!("index {n} is above {}, the last", SLOTS - 1)),
            _ => Ok(()),
        }
    }

    fn fault(&self, stop: Stop) -> Fault {
        let kernel = self.kernel.name.clone();
        let name = |position: u32| self.kernel.arguments[position as usize].name.clone();
        match stop {
            Stop::Arithmetic { thread } => Fault::Arithmetic { kernel, thread },
            Stop::Barrier { threadgroup, line, waiting, other, others } => {
                Fault::Barrier { kernel, threadgroup, line, waiting, other, others }
            }
            Stop::Access { thread, wrong: Wrong::Unset { argument }, .. } => {
                Fault::UnsetArgument { kernel, argument, name: name(argument), thread }
            }
            Stop::Access { thread, address, size, write, wrong: Wrong::Outside { nearest } } => {
                Fault::Access {
                    kernel,
                    thread,
                    address,
                    size,
                    argument: nearest.map(|(n, _)| n),
                    name: nearest.map_or_else(String::new, |(n, _)| name(n)),
                    distance: nearest.map_or(0, |(_, distance)| distance),
                    write,
                }
            }
        }
    }
}
