//! Buffers in device memory, page-locked memory of the host, and the arena that all programs share.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUdeviceptr, CUresult};
use cudarc::driver::{DriverError, result};

use super::device::Gpu;
use super::error::of_driver;
use crate::backend::gpu::driver::Location;
use crate::backend::gpu::library::ROW_GAP;
use crate::backend::gpu::slabs::{MAX_CUT, Slabs};
use crate::tensor::Buffer;
use crate::{Error, Result};

/// An allocation of device memory.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    address: CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Allocates memory filled with zeros.
    ///
    /// # Errors
    /// The GPU does not have as much free memory; the message contains how much is free.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Self> {
        let bytes = bytes.max(16);
        gpu.activate()?;
        // SAFETY: the memory is released when this is dropped.
        let address = match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => address,
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(gpu.out_of_memory(bytes, what));
            }
            Err(error) => return Err(of_driver(what, error)),
        };
        let memory = Self { gpu: Arc::clone(gpu), address, bytes };
        // SAFETY: the memory was allocated above with so many bytes.
        gpu.checked(what, unsafe { result::memset_d8_async(address, 0, bytes, gpu.stream) })?;
        gpu.wait(|| what)?;
        Ok(memory)
    }

    /// Address of the first byte on the device.
    pub(super) fn address(&self) -> CUdeviceptr {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.gpu.activate().is_ok() {
            // SAFETY: the memory was allocated by `malloc_sync`; what refers to it keeps it alive, and runs wait for their end.
            if let Err(error) = unsafe { result::free_sync(self.address) } {
                tracing::debug!(?error, bytes = self.bytes, "device memory is not released");
            }
        }
    }
}

/// Page-locked memory of the host, which the device copies from and to.
pub(super) struct Staging {
    gpu: Arc<Gpu>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is accessed under the arena's lock only.
unsafe impl Send for Staging {}
// SAFETY: as above.
unsafe impl Sync for Staging {}

impl Staging {
    /// Allocates page-locked memory.
    ///
    /// # Errors
    /// The system refuses it.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(16);
        gpu.activate()?;
        // SAFETY: the memory is released when this is dropped.
        let start = match unsafe { result::malloc_host(bytes, 0) } {
            Ok(start) => start.cast::<u8>(),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let what = "page-locked memory of the host for inputs and outputs".to_owned();
                return Err(Error::OutOfMemory { device: "host".to_owned(), bytes, what });
            }
            Err(error) => return Err(of_driver("page-locked memory", error)),
        };
        // SAFETY: the memory is new and has so many bytes.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { gpu: Arc::clone(gpu), start, bytes })
    }

    /// Pointer to the byte at an offset.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "an offset within the staging memory");
        // SAFETY: the offset is within the memory.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.gpu.activate().is_ok() {
            // SAFETY: the memory was allocated by `malloc_host`, and no run is left that uses it.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}

/// What runs share. The holder of its lock is the only one that runs a program or accesses a buffer.
#[derive(Clone, Default)]
pub(super) struct Arena(Arc<Mutex<State>>);

/// The arena's memory.
#[derive(Default)]
pub(super) struct State {
    memory: Option<Memory>,
    /// The allocations that small buffers are cut from.
    slabs: Slabs<Arc<Memory>>,
}

impl Arena {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows the arena to at least `bytes`.
    pub(super) fn reserve(&self, gpu: &Arc<Gpu>, bytes: usize) -> Result<()> {
        let mut state = self.lock();
        if state.memory.as_ref().is_none_or(|memory| memory.bytes < bytes + ROW_GAP) {
            // The old one goes first, so that both never exist together.
            state.memory = None;
            state.memory = Some(Memory::new(gpu, bytes + ROW_GAP, "intermediate results")?);
        }
        Ok(())
    }
}

impl State {
    /// Address of the arena's first byte, or `None` after an allocation that failed.
    pub(super) fn address(&self) -> Option<CUdeviceptr> {
        self.memory.as_ref().map(Memory::address)
    }
}

/// A buffer: an allocation of its own, or a part of one.
pub(super) struct CudaBuffer {
    gpu: Arc<Gpu>,
    memory: Arc<Memory>,
    start: usize,
    bytes: usize,
    writable: bool,
    arena: Arena,
}

impl CudaBuffer {
    /// Allocates a buffer filled with zeros.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str, arena: &Arena) -> Result<Self> {
        let (memory, start) = if bytes <= MAX_CUT {
            arena.lock().slabs.cut(bytes, |size| Ok(Arc::new(Memory::new(gpu, size, what)?)))?
        } else {
            (Arc::new(Memory::new(gpu, bytes, what)?), 0)
        };
        Ok(Self { gpu: Arc::clone(gpu), memory, start, bytes, writable: true, arena: arena.clone() })
    }

    /// Returns the buffer as one that kernels may only read.
    pub(super) fn frozen(self) -> Self {
        Self { writable: false, ..self }
    }

    /// Returns true if the buffer is in the memory of this GPU.
    pub(super) fn is_on(&self, gpu: &Arc<Gpu>) -> bool {
        Arc::ptr_eq(&self.gpu, gpu)
    }

    /// Position of the buffer in its allocation.
    pub(super) fn location(&self) -> Location {
        Location {
            allocation: self.memory.address as usize,
            allocation_bytes: self.memory.bytes,
            offset: self.start,
            writable: self.writable,
        }
    }

    /// Address on the device of the allocation that contains the buffer.
    pub(super) fn allocation(&self) -> CUdeviceptr {
        self.memory.address
    }

    /// Address on the device.
    pub(super) fn address(&self) -> CUdeviceptr {
        self.memory.address + self.start as CUdeviceptr
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::invalid("cuda buffer", format!("bytes {offset}+{len} of {} do not exist", self.bytes)))
    }
}

/// Returns a buffer that the lowering has located on this device.
pub(super) fn of_cuda(buffer: &dyn Buffer) -> &CudaBuffer {
    buffer.as_any().downcast_ref().expect("the lowering has located every buffer on this device")
}

impl Buffer for CudaBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        if into.is_empty() {
            return Ok(());
        }
        let _running = self.arena.lock();
        self.gpu.activate()?;
        let from = self.address() + offset as CUdeviceptr;
        // SAFETY: the range is within the buffer, and the stream is waited for before the slice is returned.
        let copied = unsafe { result::memcpy_dtoh_async(into, from, self.gpu.stream) };
        self.gpu.checked("a copy from the GPU", copied)?;
        self.gpu.wait(|| "a copy from the GPU")
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        if !self.writable {
            return Err(Error::invalid("cuda buffer", "it is frozen; make a trainable one"));
        }
        if from.is_empty() {
            return Ok(());
        }
        let _running = self.arena.lock();
        self.gpu.activate()?;
        let to = self.address() + offset as CUdeviceptr;
        // SAFETY: the range is within the buffer, and the stream is waited for while the slice is borrowed.
        let copied = unsafe { result::memcpy_htod_async(to, from, self.gpu.stream) };
        self.gpu.checked("a copy to the GPU", copied)?;
        self.gpu.wait(|| "a copy to the GPU")
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
