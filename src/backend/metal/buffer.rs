//! Buffers in memory that host and GPU share, and the arena of all plans.

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
use crate::backend::gpu::slabs::{MAX_CUT, Slabs};
use crate::tensor::{Buffer, HostTensor, MappedFile};
use crate::{Error, Result};

/// Storage that host and GPU share, with hazards tracked between encoders.
const SHARED: MTLResourceOptions = MTLResourceOptions(
    MTLResourceOptions::StorageModeShared.0 | MTLResourceOptions::HazardTrackingModeTracked.0,
);

/// `vm_page_size` on Apple's chips. Memory that is used in place must start and end at a multiple of it.
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

/// State that all runs share. Only the holder of its lock may run a program or access a buffer.
#[derive(Clone)]
pub(super) struct Arena(Arc<Mutex<State>>);

/// The arena's memory, and the number of the last run.
pub(super) struct State {
    memory: Option<Raw>,
    /// The allocations that small buffers are cut from.
    slabs: Slabs<Raw>,
    pub(super) runs: u64,
    pub(super) submissions: super::commands::Submissions,
}

// SAFETY: a buffer may be used from any thread; the bytes are touched under the lock only.
unsafe impl Send for State {}

impl Arena {
    pub(super) fn new(gpu: &Gpu) -> Self {
        let runs = objc2_metal::MTLSharedEvent::signaledValue(&*gpu.event);
        Self(Arc::new(Mutex::new(State {
            memory: None,
            slabs: Slabs::default(),
            runs,
            submissions: super::commands::Submissions::default(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows the arena to at least `bytes`.
    pub(super) fn reserve(&self, gpu: &Gpu, bytes: usize) -> Result<()> {
        let mut state = self.lock();
        if state.memory.as_ref().is_none_or(|memory| memory.length() < bytes + ROW_GAP) {
            // The old one is freed first, so that both never exist at the same time.
            state.memory = None;
            state.memory = Some(new_buffer(gpu, bytes + ROW_GAP, "intermediate results")?);
        }
        Ok(())
    }
}

impl State {
    /// Returns the arena's buffer, which exists once a plan was compiled.
    pub(super) fn memory(&self) -> Raw {
        self.memory.clone().expect("a compiled plan has reserved the arena")
    }
}

/// A buffer: separate memory, or pages of a mapped file that are used in place and never written.
pub(super) struct MetalBuffer {
    raw: Raw,
    /// Offset in `raw`.
    start: usize,
    bytes: usize,
    writable: bool,
    arena: Arena,
    /// The mapped file that contains `raw`.
    _file: Option<MappedFile>,
}

// SAFETY: a buffer may be used from any thread; the bytes are touched under the arena's lock only.
unsafe impl Send for MetalBuffer {}
// SAFETY: as above.
unsafe impl Sync for MetalBuffer {}

impl MetalBuffer {
    pub(super) fn new(gpu: &Gpu, bytes: usize, what: &str, arena: &Arena) -> Result<Self> {
        let (raw, start) = autoreleasepool(|_| {
            if bytes <= MAX_CUT {
                arena.lock().slabs.cut(bytes, |size| new_buffer(gpu, size, what))
            } else {
                Ok((new_buffer(gpu, bytes, what)?, 0))
            }
        })?;
        Ok(Self { raw, start, bytes, writable: true, arena: arena.clone(), _file: None })
    }

    /// Returns a buffer over a mapped tensor's pages, if Metal accepts them, and a copy otherwise.
    pub(super) fn import(gpu: &Gpu, tensor: &HostTensor, arena: &Arena) -> Result<Self> {
        let bytes = tensor.bytes();
        if let Some(file) = tensor.mapped_file() {
            // Metal accepts whole pages only. A mapping covers whole pages of the system, which are as large on Apple's chips.
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

    /// Returns the first four bytes, for the holder of the arena's lock.
    fn first_word(&self) -> u32 {
        // SAFETY: the buffer has four bytes or more, and begins at a multiple of 256.
        unsafe { self.contents().cast::<u32>().read() }
    }

    /// Returns a pointer to the first byte, for the holder of the arena's lock.
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

/// Returns the size of the system's pages.
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
