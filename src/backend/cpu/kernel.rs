//! Running a row kernel: for the best instruction set of this machine, with its items split among the threads.
//!
//! A kernel's body is written once over [`super::vector::V`], compiled for every instruction set ([`Isa`]), and
//! the best is chosen when it runs.

use std::ops::Range;

use super::pool::Pool;
use super::vector::{Isa, Portable};
#[cfg(target_arch = "x86_64")]
use super::vector_x86::{Avx2, Avx512};

/// Work on fewer elements than this stays on the calling thread: waking another one costs more.
const SMALL: usize = 16 * 1024;

/// Work that splits into independent items: rows, or blocks of elements.
pub(crate) trait Kernel: Sync {
    /// Does the items of `range`. Implementations are `#[inline(always)]`, so that they are compiled for the
    /// instruction set of their caller.
    ///
    /// # Safety
    /// The kernel's pointers are valid for these items, and no other thread works on them.
    unsafe fn items<I: Isa>(&self, range: Range<usize>);
}

/// Does all `items` of a kernel that touches `elements` elements.
///
/// # Safety
/// The kernel's pointers are valid for all items, and different items do not write to the same memory.
pub(crate) unsafe fn run<K: Kernel>(pool: &Pool, items: usize, elements: usize, kernel: &K) {
    let threads = pool.threads();
    if threads == 1 || items < 2 || elements < SMALL {
        // SAFETY: as the caller promises.
        return unsafe { dispatch(kernel, 0..items) };
    }
    pool.run(&|thread| {
        let range = thread * items / threads..(thread + 1) * items / threads;
        if !range.is_empty() {
            // SAFETY: as the caller promises; the threads' ranges are disjoint.
            unsafe { dispatch(kernel, range) }
        }
    });
}

/// Work in tasks of unequal length, which threads take one after the other.
pub(crate) trait Tasks: Sync {
    /// Does one task on the thread of this number. `#[inline(always)]`, as [`Kernel::items`].
    ///
    /// # Safety
    /// The tasks' pointers are valid, and no other thread works on this task or with this thread number.
    unsafe fn task<I: Isa>(&self, task: usize, thread: usize);
}

/// Does all tasks of a kernel that does about `work` multiply-adds.
///
/// # Safety
/// The pointers are valid for all tasks; different tasks do not write to the same memory, nor do different threads
/// to the memory that belongs to a thread number.
pub(crate) unsafe fn run_tasks<K: Tasks>(pool: &Pool, tasks: usize, work: usize, kernel: &K) {
    if tasks < 2 || work < 8 * SMALL {
        // SAFETY: as the caller promises.
        return unsafe { dispatch(&OnThread { kernel, thread: 0 }, 0..tasks) };
    }
    // SAFETY: as the caller promises.
    pool.each(tasks, &|task, thread| unsafe { dispatch(&OnThread { kernel, thread }, task..task + 1) });
}

struct OnThread<'a, K> {
    kernel: &'a K,
    thread: usize,
}

impl<K: Tasks> Kernel for OnThread<'_, K> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for task in range {
            // SAFETY: as the caller promises.
            unsafe { self.kernel.task::<I>(task, self.thread) };
        }
    }
}

/// # Safety
/// See [`Kernel::items`].
#[cfg(target_arch = "x86_64")]
unsafe fn dispatch<K: Kernel>(kernel: &K, range: Range<usize>) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn avx512<K: Kernel>(kernel: &K, range: Range<usize>) {
        // SAFETY: as the caller of `dispatch` promises.
        unsafe { kernel.items::<Avx512>(range) }
    }
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn avx2<K: Kernel>(kernel: &K, range: Range<usize>) {
        // SAFETY: as the caller of `dispatch` promises.
        unsafe { kernel.items::<Avx2>(range) }
    }
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("bmi2")
    {
        // SAFETY: the machine has these instructions (AVX-512 implies AVX2, FMA and F16C).
        unsafe { avx512(kernel, range) }
    } else if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi2")
    {
        // SAFETY: the machine has these instructions.
        unsafe { avx2(kernel, range) }
    } else {
        // SAFETY: as the caller promises.
        unsafe { kernel.items::<Portable<false>>(range) }
    }
}

/// # Safety
/// See [`Kernel::items`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn dispatch<K: Kernel>(kernel: &K, range: Range<usize>) {
    // SAFETY: as the caller promises. NEON, with a fused multiply-add, is part of every aarch64 target.
    unsafe {
        if cfg!(target_arch = "aarch64") {
            kernel.items::<Portable<true>>(range)
        } else {
            kernel.items::<Portable<false>>(range)
        }
    }
}

/// A pointer that may go to another thread.
pub(crate) struct In<T>(pub(crate) *const T);

/// A pointer to write through that may go to another thread.
pub(crate) struct Out<T>(pub(crate) *mut T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}
impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}

// SAFETY: the pointers are used in `Kernel::items` only, whose contract says that threads do not meet.
unsafe impl<T> Sync for In<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Out<T> {}

impl<T> In<T> {
    /// The pointer `count` elements on.
    ///
    /// # Safety
    /// That element, or the one before it, is inside the same tensor.
    #[inline(always)]
    pub(crate) unsafe fn at(self, count: usize) -> *const T {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(count) }
    }
}

impl<T> Out<T> {
    /// The pointer `count` elements on.
    ///
    /// # Safety
    /// That element, or the one before it, is inside the same tensor.
    #[inline(always)]
    pub(crate) unsafe fn at(self, count: usize) -> *mut T {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(count) }
    }
}

/// Runs a block for each group of lanes in `0..n`: `$i` is where it starts, `$len` its length.
macro_rules! chunks {
    ($n:expr, |$i:ident, $len:ident| $body:block) => {
        let total: usize = $n;
        let mut $i = 0usize;
        while $i < total {
            let $len = (total - $i).min($crate::backend::cpu::vector::LANES);
            $body
            $i += $crate::backend::cpu::vector::LANES;
        }
    };
}
pub(crate) use chunks;
