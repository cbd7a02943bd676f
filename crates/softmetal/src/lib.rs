//! A software Metal device for Linux: any Rust code on objc2's Metal crates runs on the CPU, and is checked.
//!
//! **What a green run does not mean.** Nothing here ran on a Mac. It says nothing of speed, of Apple's rounding, of
//! drivers, or of what no document tells. It does say that objects are released, that the API is used as its
//! documents ask, that kernels stay within their buffers, and that commands which touch the same bytes are ordered.
//!
//! Link it into a test (`extern crate softmetal;`) in a workspace where objc2-metal and its companions are replaced
//! by copies without their framework link attribute; `cargo xtask softmetal` makes those. Then
//! `MTLCreateSystemDefaultDevice` gives this device.
//!
//! - [`check`]: rules and violations; [`rules`] lists all of them.
//! - [`ledger`]: live objects, leaks.
//! - [`ordering`]: what is sure to run after what.
//! - [`faults`]: what a test makes go wrong. [`system`]: the Mac that the device is part of.
//! - [`counters`]: what was encoded.
//! - [`constants`]: the strings that Metal exports.
//! - [`native`]: kernels in Rust, for tests that need no Metal source.
//!
//! Environment: `SOFTMETAL_VALIDATION` (panic, log, off), `SOFTMETAL_SEED`, `SOFTMETAL_POISON`, `SOFTMETAL_BACKTRACE`,
//! `SOFTMETAL_ARCHITECTURE`, `SOFTMETAL_OS_VERSION`, `SOFTMETAL_KERNEL_RELEASE`, `METAL_CAPTURE_ENABLED`.

mod archive;
mod blit;
mod buffer;
mod capture;
mod clock;
mod command_buffer;
mod compile_options;
mod compute;
pub mod constants;
pub mod counters;
mod data;
mod descriptors;
mod device;
mod dictionary;
mod encoder;
mod encoder_set;
pub mod faults;
mod fences;
mod foundation;
mod heap;
mod heap_descriptor;
mod library;
mod memory;
mod metal_program;
mod mps;
pub mod native;
pub mod ordering;
mod pass;
mod pipeline;
mod process;
pub mod program;
mod queue;
pub mod ranges;
mod residency;
pub mod rules;
mod samples;
mod sync;
pub mod system;
mod url;
mod work;

pub use queue::quiesce;
pub use softmetal_objc::{check, ledger};
pub use work::seed;

use std::sync::Once;

/// Registers every class. Runs before `main`: with objc2's `gnustep` features classes are symbols of the linker, so
/// nothing asks for them by name first.
pub fn load() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        foundation::load();
        url::load();
        data::load();
        dictionary::load();
        process::load();
        compile_options::load();
        descriptors::load();
        constants::load();
        device::load();
        buffer::load();
        heap_descriptor::load();
        heap::load();
        library::load();
        pipeline::load();
        archive::load();
        samples::load();
        pass::load();
        queue::load();
        command_buffer::load();
        compute::load();
        blit::load();
        sync::load();
        residency::load();
        capture::load();
        mps::load();
        system::hide_classes();
        // SAFETY: the function takes and gives nothing.
        unsafe { libc::atexit(work::fail_if_unheard) };
    });
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn start() {
        load();
    }
    start
};

/// Classes whose objects live as long as the process.
pub const IMMORTAL: &[&str] = &["SoftMTLDevice", "MTLArchitecture", "MTLCaptureManager"];

/// Runs `body` while compute encoders take every call and do nothing, so that the time which remains is the caller's own.
/// Nothing is computed, checked or counted meanwhile.
pub fn without_encoding<R>(body: impl FnOnce() -> R) -> R {
    softmetal_objc::silenced(c"SoftMTLComputeCommandEncoder", c"endEncoding", body)
}

/// Runs `body` within an autorelease pool and tells which objects made by it are still alive afterwards.
pub fn leaks<R>(body: impl FnOnce() -> R) -> (R, Vec<ledger::Leak>) {
    let mark = ledger::mark();
    let result = objc2::rc::autoreleasepool(|_| body());
    quiesce();
    (result, ledger::leaks_since(mark, IMMORTAL))
}

/// Runs `body` as [`leaks`] does; objects that outlive it break the rule `objc-outlived`, which names each of them.
pub fn owned<R>(body: impl FnOnce() -> R) -> R {
    let (result, left) = leaks(body);
    if !left.is_empty() {
        let name = |leak: &ledger::Leak| {
            let place = leak.place.as_ref().map_or(String::new(), |place| format!(", made at\n{place}"));
            format!("{} #{} with {} references{place}", leak.class, leak.serial, leak.retain_count)
        };
        check::report(&rules::OUTLIVED, left.iter().map(name).collect::<Vec<_>>().join("; "));
    }
    result
}
