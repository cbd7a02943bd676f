//! Runs Metal kernels on the CPU, to find out what is wrong with them.
//!
//! [`Library::from_source`] takes the text of a Metal library. It is preprocessed by clang, read by the crate
//! `msl`, turned into C++ by replacing parts of its text, and checked as a whole. [`Library::pipeline`]
//! compiles one kernel, which takes a fraction of a second, and keeps the result on disk.
//! [`Pipeline::dispatch`] runs it.
//!
//! Every thread of the GPU is a fiber with its own small stack. It runs until it needs the others: SIMD-group
//! operations wait for the lanes of the SIMD group, barriers for the threadgroup. What the kernel does is
//! checked on the way:
//!
//! - each access to memory must lie in an argument, in threadgroup memory, in the library's constants or on
//!   the thread's own stack ([`Fault::Access`], [`Fault::UnsetArgument`]);
//! - all threads of a threadgroup must come to the same barriers ([`Fault::Barrier`]);
//! - threadgroup memory starts as NaNs, so what was not written shows;
//! - a seed changes the order of threads ([`Dispatch::seed`]), so a missing barrier shows.
//!
//! What this cannot tell: speed, Apple's rounding and fast-math, and whether other dispatches run meanwhile.
//!
//! clang 17 or later must be installed (`SOFTMETAL_CLANG` names another program); compiled kernels are kept in
//! `SOFTMETAL_CACHE` or the user's cache folder.

mod cache;
mod compiler;
mod dialect;
mod engine;
mod error;
mod fault;
mod instrument;
mod library;
mod memory;
mod object;
mod pipeline;
mod translate;

pub use dialect::{Requirements, StructLayout, check_layouts, check_rules};
pub use error::CompileError;
pub use fault::Fault;
pub use library::{CompileOptions, Library};
pub use memory::Access;
pub use msl;
pub use pipeline::{Argument, Dispatch, Pipeline, Report};
