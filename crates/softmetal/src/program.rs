//! What a compute pipeline runs: a kernel, whatever it was made from.

use std::ops::Range;
use std::sync::Arc;

use crate::memory::Memory;
use crate::ranges::Ranges;

/// Buffers that a kernel can have.
pub const ARGUMENTS: usize = 31;

/// What is bound to an argument.
#[derive(Clone, Default)]
pub(crate) enum Binding {
    #[default]
    Unset,
    Bytes(Vec<u8>),
    /// Memory of a buffer from an offset on.
    Buffer {
        memory: Arc<Memory>,
        offset: usize,
    },
}

/// A dispatch.
pub struct Launch {
    /// The kernel's name.
    pub name: String,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) touched: Vec<(Vec<Range<usize>>, Vec<Range<usize>>)>,
    /// Threads in each dimension.
    pub grid: [usize; 3],
    /// Threads of a threadgroup in each dimension.
    pub threadgroup: [usize; 3],
    /// Bytes of threadgroup memory by index.
    pub threadgroup_memory: Vec<usize>,
    /// Decides the order of threads.
    pub seed: u64,
}

/// Why a dispatch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchFault {
    /// A kernel reached outside a buffer.
    OutOfRange(String),
    /// An argument that is not set was read.
    Unset(String),
    /// Threads of a threadgroup waited at different barriers.
    Divergent(String),
    /// Anything else.
    Failed(String),
}

/// A kernel.
pub trait Program: Send + Sync {
    /// Bytes of threadgroup memory that the kernel declares itself.
    fn static_threadgroup_bytes(&self) -> usize {
        0
    }

    /// The most threads of a threadgroup that the kernel itself allows, where it says so.
    fn max_threads(&self) -> Option<usize> {
        None
    }

    /// Runs a dispatch. What it reads and writes is told to the launch.
    fn run(&self, launch: &mut Launch) -> Result<(), LaunchFault>;
}

impl Launch {
    /// The bytes bound to an argument; `None` if it is not set.
    fn bytes(&self, argument: usize) -> Option<(*mut u8, usize)> {
        match self.bindings.get(argument)? {
            Binding::Unset => None,
            Binding::Bytes(bytes) => Some((bytes.as_ptr().cast_mut(), bytes.len())),
            Binding::Buffer { memory, offset } => {
                // SAFETY: the offset was checked to lie within the buffer when it was bound.
                Some((unsafe { memory.start().add(*offset) }, memory.len() - offset))
            }
        }
    }

    /// Notes that an argument's bytes were read.
    pub fn note_read(&mut self, argument: usize, bytes: Range<usize>) {
        self.touched[argument].0.push(bytes);
    }

    /// Notes that an argument's bytes were written.
    pub fn note_write(&mut self, argument: usize, bytes: Range<usize>) {
        self.touched[argument].1.push(bytes);
    }

    fn place<T>(
        &self,
        argument: usize,
        elements: &Range<usize>,
    ) -> Result<(*mut T, Range<usize>), LaunchFault> {
        let Some((start, len)) = self.bytes(argument) else {
            return Err(LaunchFault::Unset(format!("{}: argument {argument} is not set", self.name)));
        };
        let bytes = elements.start * size_of::<T>()..elements.end * size_of::<T>();
        if bytes.end > len {
            let message = format!("{}: bytes {bytes:?} of argument {argument}, which has {len}", self.name);
            return Err(LaunchFault::OutOfRange(message));
        }
        // SAFETY: the place lies within the argument.
        Ok((unsafe { start.add(bytes.start).cast() }, bytes))
    }

    /// Reads elements of an argument, as a kernel does.
    pub fn read<T: Copy>(&mut self, argument: usize, elements: Range<usize>) -> Result<Vec<T>, LaunchFault> {
        let (start, bytes) = self.place::<T>(argument, &elements)?;
        self.note_read(argument, bytes);
        // SAFETY: the elements lie within the argument.
        Ok((0..elements.len()).map(|i| unsafe { start.add(i).read_unaligned() }).collect())
    }

    /// Writes elements of an argument, as a kernel does.
    pub fn write<T: Copy>(&mut self, argument: usize, first: usize, values: &[T]) -> Result<(), LaunchFault> {
        let (start, bytes) = self.place::<T>(argument, &(first..first + values.len()))?;
        self.note_write(argument, bytes);
        for (index, &value) in values.iter().enumerate() {
            // SAFETY: the elements lie within the argument.
            unsafe { start.add(index).write_unaligned(value) };
        }
        Ok(())
    }

    /// What was read and written of an argument.
    pub(crate) fn accesses(&self, argument: usize) -> (Ranges, Ranges) {
        let (reads, writes) = &self.touched[argument];
        (Ranges::new(reads.clone()), Ranges::new(writes.clone()))
    }
}
