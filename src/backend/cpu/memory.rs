//! Buffers in the process's memory, and the arena that all plans share.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tensor::{Buffer, HostTensor};
use crate::{Error, Result};

/// Alignment of every allocation: a cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// Zeroed memory that is not moved.
pub(super) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is plain memory; who reads and writes it is settled by the arena's lock.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize, what: &str) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { device: "cpu".to_owned(), bytes, what: what.to_owned() };
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).map_err(|_| out_of_memory())?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        Ok(Self { start, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The arena. Whoever holds its lock is the only one to run a program or to touch a buffer.
#[derive(Clone, Default)]
pub(super) struct Arena(Arc<Mutex<Option<Block>>>);

pub(super) struct Running<'a>(MutexGuard<'a, Option<Block>>);

impl Arena {
    pub(super) fn lock(&self) -> Running<'_> {
        Running(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Grows the arena to at least `bytes`.
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        let mut block = self.lock().0;
        if block.as_ref().is_none_or(|block| block.layout.size() < bytes) {
            // The old one goes first, so that both never exist together.
            *block = None;
            *block = Some(Block::new(bytes, "intermediate results")?);
        }
        Ok(())
    }
}

impl Running<'_> {
    /// The arena's first byte.
    pub(super) fn start(&mut self) -> *mut u8 {
        self.0.as_ref().map_or(NonNull::dangling().as_ptr(), |block| block.start.as_ptr())
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |block| block.layout.size())
    }
}

/// A buffer: memory of its own, or a host tensor used in place and never written.
pub(super) struct CpuBuffer {
    memory: Memory,
    bytes: usize,
    arena: Arena,
}

enum Memory {
    Own(Block),
    Host(HostTensor),
}

impl CpuBuffer {
    pub(super) fn new(bytes: usize, arena: &Arena) -> Result<Self> {
        let block = Block::new(bytes, "weights and states")?;
        Ok(Self { memory: Memory::Own(block), bytes, arena: arena.clone() })
    }

    pub(super) fn import(tensor: &HostTensor, arena: &Arena) -> Self {
        Self { bytes: tensor.bytes().len(), memory: Memory::Host(tensor.clone()), arena: arena.clone() }
    }

    /// Where the bytes are. Writing is allowed only if `writable`.
    pub(super) fn start(&self) -> *mut u8 {
        match &self.memory {
            Memory::Own(block) => block.start.as_ptr(),
            Memory::Host(tensor) => tensor.bytes().as_ptr().cast_mut(),
        }
    }

    pub(super) fn writable(&self) -> bool {
        matches!(self.memory, Memory::Own(_))
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::invalid("cpu buffer", format!("bytes {offset}+{len} of {} do not exist", self.bytes)))
    }
}

impl Buffer for CpuBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        let _running = self.arena.lock();
        // SAFETY: the range lies within the buffer, and no program runs while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(self.start().add(offset), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        if !self.writable() {
            return Err(Error::invalid(
                "cpu buffer",
                "it is a host tensor used in place; make a trainable one",
            ));
        }
        let _running = self.arena.lock();
        // SAFETY: the range lies within memory of our own, and no program runs while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start().add(offset), from.len()) };
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
