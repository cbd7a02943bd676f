//! A small Objective-C runtime for Linux, of the size that `objc2` and `block2` need, which counts everything.
//!
//! objc2 compiled with its `gnustep` features calls a handful of C functions (message lookup, class building,
//! reference counting, autorelease pools) and refers to classes by link-time symbols. This crate defines both. It is
//! a checker first: every object is entered in a table with its class, a serial number and, on demand, the place
//! where it was made ([`ledger`]); freed objects stay as zombies, so that a message to one, or one release too many,
//! is a violation of a rule ([`check`]) and not undefined behaviour; an object autoreleased where no pool stands is
//! one too.
//!
//! What it is not: a general runtime. No protocols (`conformsToProtocol:` says yes), no categories, no forwarding.

pub mod blocks;
pub mod check;
mod class;
mod count;
pub mod ledger;
mod message;
mod method;
mod pool;
mod root;
mod slots;

pub use class::{Class, Sel, hide};
pub use message::silenced;
pub use pool::pending;

/// An Objective-C object: what begins with a pointer to its class.
#[repr(C)]
pub struct Object {
    isa: *const Class,
}

/// A reference to an object, or null.
pub type Id = *mut Object;

/// The rules that the runtime itself checks.
pub static RULES: &[check::Rule] =
    &[count::OVER_RELEASE, count::ZOMBIE, pool::NO_POOL, message::UNKNOWN_SELECTOR, pool::WRONG_POOL];
