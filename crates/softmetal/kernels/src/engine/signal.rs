//! Turns a processor fault inside a kernel into the end of its dispatch.
//!
//! Accesses are checked before they happen, so this is for what is not an access of the kernel's own text:
//! an overflow of the stack, a call into nowhere, a division by zero.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use super::{ENGINE, Stop, fiber};
use crate::memory::Wrong;

const SIGNALS: [c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];

static OLD: OnceLock<[libc::sigaction; 3]> = OnceLock::new();

/// Installs the handler once per process, and a stack for it once per thread.
pub(super) fn install() {
    OLD.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: an all-zero `sigaction` is valid; the handler has the signature that SA_SIGINFO asks for.
            unsafe {
                let mut new: libc::sigaction = std::mem::zeroed();
                let mut old: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = handler as *const () as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &new, &mut old);
                old
            }
        })
    });
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if !DONE.replace(true) {
        alternate_stack();
    }
}

/// The handler cannot run on a stack that has overflowed. Rust's own threads have an alternate one already.
fn alternate_stack() {
    const SIZE: usize = 64 * 1024;
    // SAFETY: the calls read and write the structures given; the new stack is leaked, so it stays valid.
    unsafe {
        let mut old: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &mut old);
        if old.ss_flags & libc::SS_DISABLE != 0 {
            let memory = Box::leak(vec![0u8; SIZE].into_boxed_slice());
            let new = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIZE };
            libc::sigaltstack(&new, std::ptr::null_mut());
        }
    }
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: see `running`; the interrupted code is a kernel, which holds no reference to the engine.
    let engine = unsafe { ENGINE.get().as_mut() }.filter(|e| !e.current.is_null());
    let Some(engine) = engine else {
        chain(signal);
        return;
    };
    let thread = engine.thread();
    engine.stop = Some(if signal == libc::SIGFPE {
        Stop::Arithmetic { thread }
    } else {
        // SAFETY: the kernel hands a valid `siginfo_t` to SA_SIGINFO handlers.
        let address = unsafe { (*info).si_addr() } as usize;
        Stop::Access { thread, address, size: 0, write: None, wrong: Wrong::Outside { nearest: None } }
    });
    // SAFETY: the context is that of the interrupted kernel; when the handler returns, the thread continues in
    // `restore`, which leaves the fiber's stack at once.
    unsafe { redirect(&mut *context.cast::<libc::ucontext_t>(), engine.main) };
}

#[cfg(target_arch = "x86_64")]
unsafe fn redirect(context: &mut libc::ucontext_t, main: *mut u8) {
    let registers = &mut context.uc_mcontext.gregs;
    registers[libc::REG_RSI as usize] = main as i64;
    registers[libc::REG_RIP as usize] = fiber::restore as *const () as i64;
}

#[cfg(target_arch = "aarch64")]
unsafe fn redirect(context: &mut libc::ucontext_t, main: *mut u8) {
    context.uc_mcontext.regs[1] = main as u64;
    context.uc_mcontext.pc = fiber::restore as *const () as u64;
}

/// Gives the signal back to whom it belonged before; the fault is repeated when the handler returns.
fn chain(signal: c_int) {
    let index = SIGNALS.iter().position(|s| *s == signal);
    if let (Some(index), Some(old)) = (index, OLD.get()) {
        // SAFETY: `old` was filled by `sigaction` itself.
        unsafe { libc::sigaction(signal, &old[index], std::ptr::null_mut()) };
    }
}
