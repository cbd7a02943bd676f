//! Stacks, and the switch between them.
//!
//! A switch saves what the platform's calling convention asks a function to preserve, and nothing else: the
//! stack pointer is the whole state of a suspended fiber.

use std::arch::naked_asm;
use std::cell::RefCell;

/// Size of a fiber's stack, its guard page included.
pub(crate) const STACK: usize = 256 * 1024;
const GUARD: usize = 16 * 1024;

/// Memory of one fiber, with an inaccessible part below, where an overflow ends.
pub(crate) struct Stack {
    start: *mut u8,
}

impl Stack {
    fn map() -> Stack {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping, placed by the kernel, touches no other memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), STACK, protection, flags, -1, 0) };
        assert!(start != libc::MAP_FAILED, "no memory for the stack of a fiber");
        // SAFETY: the range lies in the mapping just made, which nothing else refers to.
        unsafe { libc::mprotect(start, GUARD, libc::PROT_NONE) };
        Stack { start: start.cast() }
    }

    /// Lowest address.
    pub(crate) fn low(&self) -> usize {
        self.start as usize
    }

    /// Reserves `size` bytes at the top and prepares the rest so that a switch to the result calls `entry`.
    pub(crate) fn prepare(&self, size: usize, entry: extern "C" fn() -> !) -> (*mut u8, *mut u8) {
        let top = self.start as usize + STACK;
        let reserved = (top - size) & !63;
        #[cfg(target_arch = "x86_64")]
        let words: [usize; 8] = [0, 0, 0, 0, 0, 0, entry as usize, 0];
        #[cfg(target_arch = "aarch64")]
        let words: [usize; 20] = {
            let mut words = [0; 20];
            words[11] = entry as usize; // x30, the return address
            words
        };
        let pointer = reserved - size_of_val(&words);
        // SAFETY: `pointer` lies in this stack, below what is reserved, and is aligned to 8 at least.
        unsafe { (pointer as *mut [usize; _]).write(words) };
        (reserved as *mut u8, pointer as *mut u8)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no fiber runs on it any more.
        unsafe { libc::munmap(self.start.cast(), STACK) };
    }
}

thread_local! {
    static FREE: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
}

/// A stack that another fiber of this thread has left, or a new one.
pub(crate) fn take_stack() -> Stack {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(Stack::map)
}

/// Keeps a stack for the next fiber.
pub(crate) fn give_stack(stack: Stack) {
    FREE.with_borrow_mut(|free| free.push(stack));
}

/// Saves the running context at `*from` and continues the one saved as `to`.
///
/// # Safety
/// `to` must come from [`Stack::prepare`] or from an earlier switch that saved it, and be continued once only.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(from: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "jmp {restore}",
        restore = sym restore,
    )
}

/// The second half of [`switch`]: continues `to` and forgets what runs.
///
/// # Safety
/// As for [`switch`].
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn restore(_unused: usize, to: *mut u8) {
    naked_asm!("mov rsp, rsi", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret")
}

/// Saves the running context at `*from` and continues the one saved as `to`.
///
/// # Safety
/// `to` must come from [`Stack::prepare`] or from an earlier switch that saved it, and be continued once only.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(from: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "b {restore}",
        restore = sym restore,
    )
}

/// The second half of [`switch`]: continues `to` and forgets what runs.
///
/// # Safety
/// As for [`switch`].
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn restore(_unused: usize, to: *mut u8) {
    naked_asm!(
        "mov sp, x1",
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "ret",
    )
}
