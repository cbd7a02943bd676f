//! Buffers in memory that host and GPU share, and the arena that all plans share.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use objc2::rc::autoreleasepool;
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLBuffer, MTLDevice, MTLResourceOptions};

use super::device::Gpu;
use super::error::DEVICE;
use super::memory::Raw;
use crate::backend::gpu::driver::Location;
use crate::backend::gpu::library::ROW_GAP;
use crate::tensor::{Buffer, HostTensor, MappedFile};
use crate::{Error, Result};

/// Shared by host and GPU, with hazards tracked between encoders.
const SHARED: MTLResourceOptions = MTLResourceOptions(
    MTLResourceOptions::StorageModeShared.0 | MTLResourceOptions::HazardTrackingModeTracked.0,
);

/// Buffers up to this size are parts of larger ones, so that one launch reaches many of them.
const SMALL: usize = 4 << 20;
/// The size of such a larger buffer: from the first, doubled each time, to the last.
const SLABS: (usize, usize) = (1 << 20, 16 << 20);
/// Parts of a buffer begin at multiples of this.
const ALIGNMENT: usize = 256;

/// What `vm_page_size` is on Apple's chips; memory used in place must begin and end at such a boundary.
const PAGE: usize = 16 * 1024;

pub(in crate::backend) fn new_buffer(gpu: &Gpu, bytes: usize, what: &str) -> Result<Raw> {
    let bytes = bytes.max(16);
    let out_of_memory = || Error::OutOfMemory { device: DEVICE.to_owned(), bytes, what: what.to_owned() };
    if bytes > gpu.device.maxBufferLength() {
        return Err(out_of_memory());
    }
    let raw = gpu.device.newBufferWithLength_options(bytes, SHARED).ok_or_else(out_of_memory)?;
    // SAFETY: the buffer is new, shared, and has so many bytes.
    unsafe { raw.contents().as_ptr().cast::<u8>().write_bytes(0, bytes) };
    Ok(raw)
}

/// What runs share. Whoever holds its lock is the only one to run a program or to touch a buffer.
#[derive(Clone)]
pub(super) struct Arena(Arc<Mutex<State>>);

/// The arena's memory, and the number of the last run.
pub(super) struct State {
    memory: Option<Raw>,
    /// The buffer that small ones are cut from, and how much of it is in use. An older one lives as long as its parts.
    slab: Option<(Raw, usize)>,
    pub(super) runs: u64,
    pub(super) committed: super::commands::Committed,
}

// SAFETY: a buffer may be used from any thread; the bytes are touched under the lock only.
unsafe impl Send for State {}

impl Arena {
    pub(super) fn new(gpu: &Gpu) -> Self {
        let runs = objc2_metal::MTLSharedEvent::signaledValue(&*gpu.event);
        Self(Arc::new(Mutex::new(State {
            memory: None,
            slab: None,
            runs,
            committed: super::commands::Committed::default(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows the arena to at least `bytes`.
    pub(super) fn reserve(&self, gpu: &Gpu, bytes: usize) -> Result<()> {
        let mut state = self.lock();
        if state.memory.as_ref().is_none_or(|memory| memory.length() < bytes + ROW_GAP) {
            // The old one goes first, so that both never exist together.
            state.memory = None;
            state.memory = Some(new_buffer(gpu, bytes + ROW_GAP, "intermediate results")?);
        }
        Ok(())
    }
}

impl State {
    /// Cuts a part off a larger buffer: that one, and where the part begins.
    fn cut(&mut self, gpu: &Gpu, bytes: usize, what: &str) -> Result<(Raw, usize)> {
        if self.slab.as_ref().is_none_or(|(raw, used)| used + bytes > raw.length()) {
            let size = self.slab.as_ref().map_or(SLABS.0, |(raw, _)| (2 * raw.length()).min(SLABS.1));
            self.slab = Some((new_buffer(gpu, size.max(bytes), what)?, 0));
        }
        let (raw, used) = self.slab.as_mut().expect("made above");
        let start = *used;
        *used = (start + bytes).next_multiple_of(ALIGNMENT);
        Ok((raw.clone(), start))
    }

    /// The arena's buffer; there is one as soon as a plan was compiled.
    pub(super) fn memory(&self) -> Raw {
        self.memory.clone().expect("a compiled plan has reserved the arena")
    }
}

/// A buffer: memory of its own, or pages of a mapped file that are used in place and never written.
pub(super) struct MetalBuffer {
    raw: Raw,
    /// Where it begins in `raw`.
    start: usize,
    bytes: usize,
    writable: bool,
    arena: Arena,
    /// What `raw` lies in, if not in memory of its own.
    _file: Option<MappedFile>,
}

// SAFETY: a buffer may be used from any thread; the bytes are touched under the arena's lock only.
unsafe impl Send for MetalBuffer {}
// SAFETY: as above.
unsafe impl Sync for MetalBuffer {}

impl MetalBuffer {
    pub(super) fn new(gpu: &Gpu, bytes: usize, what: &str, arena: &Arena) -> Result<Self> {
        let (raw, start) = autoreleasepool(|_| {
            if bytes <= SMALL {
                arena.lock().cut(gpu, bytes, what)
            } else {
                Ok((new_buffer(gpu, bytes, what)?, 0))
            }
        })?;
        Ok(Self { raw, start, bytes, writable: true, arena: arena.clone(), _file: None })
    }

    /// A mapped tensor in place, if Metal takes the pages that it lies in; otherwise a copy.
    pub(super) fn import(gpu: &Gpu, tensor: &HostTensor, arena: &Arena) -> Result<Self> {
        let bytes = tensor.bytes();
        if let Some(file) = tensor.mapped_file() {
            // Metal takes whole pages only. A map covers whole pages of the system, which are as large on Apple's chips.
            let address = bytes.as_ptr() as usize;
            let (first, end) = (address / PAGE * PAGE, (address + bytes.len()).next_multiple_of(PAGE));
            let map = file.as_ptr() as usize;
            let inside = first >= map && end <= (map + file.len()).next_multiple_of(page_size());
            if inside
                && bytes.len() >= PAGE
                && let Some(pointer) = NonNull::new(first as *mut c_void)
            {
                // SAFETY: the pages are mapped for as long as `_file` lives, which this buffer keeps. They are only
                // read: nothing that is not writable becomes an output.
                let raw = autoreleasepool(|_| unsafe {
                    gpu.device.newBufferWithBytesNoCopy_length_options_deallocator(
                        pointer,
                        end - first,
                        SHARED,
                        None,
                    )
                });
                if let Some(raw) = raw {
                    let (start, bytes, file) = (address - first, bytes.len(), Some(file.clone()));
                    return Ok(Self {
                        raw,
                        start,
                        bytes,
                        writable: false,
                        arena: arena.clone(),
                        _file: file,
                    });
                }
            }
        }
        let buffer = Self::new(gpu, bytes.len(), "weights", arena)?;
        buffer.write(0, bytes)?;
        tensor.release_pages();
        Ok(Self { writable: false, ..buffer })
    }

    /// The Metal buffer that contains this one.
    pub(super) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Position of this buffer in the Metal buffer that contains it.
    pub(super) fn location(&self) -> Location {
        let allocation: *const ProtocolObject<dyn MTLBuffer> = &*self.raw;
        Location {
            allocation: allocation.cast::<()>() as usize,
            allocation_bytes: self.raw.length(),
            offset: self.start,
            writable: self.writable,
        }
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::invalid("metal buffer", format!("bytes {offset}+{len} of {} do not exist", self.bytes)))
    }

    /// The first four bytes, for whoever holds the arena's lock.
    fn first_word(&self) -> u32 {
        // SAFETY: the buffer has four bytes or more, and begins at a multiple of 256.
        unsafe { self.contents().cast::<u32>().read() }
    }

    /// The first byte, for whoever holds the arena's lock.
    fn contents(&self) -> *mut u8 {
        // SAFETY: `start` lies within the buffer.
        unsafe { self.raw.contents().as_ptr().cast::<u8>().add(self.start) }
    }
}

/// Returns the first word of a buffer of this device, for the holder of the arena's lock.
pub(super) fn first_word(buffer: &dyn Buffer) -> u32 {
    of_metal(buffer).first_word()
}

/// Returns a buffer that the lowering has located on this device.
pub(super) fn of_metal(buffer: &dyn Buffer) -> &MetalBuffer {
    buffer.as_any().downcast_ref().expect("the lowering has located every buffer on this device")
}

/// The system's page.
fn page_size() -> usize {
    // SAFETY: a query without side effects.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE)
}

impl Buffer for MetalBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        let _running = self.arena.lock();
        // SAFETY: the range lies within the buffer, and no program runs while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(self.contents().add(offset), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        if !self.writable {
            return Err(Error::invalid("metal buffer", "it is frozen; make a trainable one"));
        }
        let _running = self.arena.lock();
        // SAFETY: the range lies within memory of our own, and no program runs while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.contents().add(offset), from.len()) };
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
