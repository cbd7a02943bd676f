//! Memory between two pages that nobody may touch.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::faults;

const PAGE: usize = 4096;
/// What a buffer's length is rounded up to, so that its end can be at a page and its start still aligned.
const ALIGNMENT: usize = 16;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all buffers that exist.
pub(crate) fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// A buffer's bytes. They outlive the buffer object for as long as a command that was encoded holds them.
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
    /// The mapping with its guard pages; none if the bytes are somebody else's.
    map: Option<(NonNull<u8>, usize)>,
    /// What this is a part of.
    _whole: Option<Arc<Memory>>,
    /// Whether the buffer object is gone.
    pub(crate) released: AtomicBool,
}

// SAFETY: plain memory; like a GPU's, it is shared by the host and the queues, and the order of their accesses is what
// the ordering model checks.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// New bytes, which end right before a guard page. Filled with the bits of a NaN unless `SOFTMETAL_POISON=0`: a Mac
    /// clears new buffers, but memory from a pool or a heap is not new, and code that relies on zeros breaks there.
    pub(crate) fn new(len: usize) -> Option<Self> {
        if faults::allocation_fails() {
            return None;
        }
        let body = len.max(1).next_multiple_of(PAGE);
        let size = body + 2 * PAGE;
        // SAFETY: an anonymous mapping at an address of the system's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return None;
        }
        let map = NonNull::new(map.cast::<u8>())?;
        // SAFETY: both pages and the start lie within the mapping.
        let start = unsafe {
            libc::mprotect(map.as_ptr().cast(), PAGE, libc::PROT_NONE);
            libc::mprotect(map.add(PAGE + body).as_ptr().cast(), PAGE, libc::PROT_NONE);
            let start = map.add(PAGE + body - len.next_multiple_of(ALIGNMENT).min(body));
            if std::env::var("SOFTMETAL_POISON").as_deref() != Ok("0") {
                start.as_ptr().write_bytes(0xff, len);
            }
            start
        };
        ALLOCATED.fetch_add(len, Ordering::Relaxed);
        Some(Self { start, len, map: Some((map, size)), _whole: None, released: AtomicBool::new(false) })
    }

    /// Bytes of somebody else's, who keeps them until the buffer is gone.
    pub(crate) fn foreign(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, map: None, _whole: None, released: AtomicBool::new(false) }
    }

    /// A part of other memory, which lies within it.
    pub(crate) fn part(whole: &Arc<Self>, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= whole.len), "a part lies within its whole");
        // SAFETY: the part lies within the whole, which it holds.
        let start = unsafe { whole.start.add(offset) };
        Self { start, len, map: None, _whole: Some(Arc::clone(whole)), released: AtomicBool::new(false) }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((map, size)) = self.map {
            ALLOCATED.fetch_sub(self.len, Ordering::Relaxed);
            // SAFETY: mapped by `new` with this size; nobody else holds it.
            unsafe { libc::munmap(map.as_ptr().cast(), size) };
        }
    }
}
