//! Reads what a host needs to know about a Metal Shading Language library.
//!
//! The Metal Shading Language (MSL) is C++14 with address spaces, attributes and a standard library. A host
//! that runs or translates such a library must know its kernels: the names that `newFunctionWithName:` finds,
//! what each argument is bound to, which function constants exist, and which memory a threadgroup shares.
//! [`Library::read`] answers that from text alone; bodies of functions are not understood, only walked over.
//!
//! The text must be preprocessed (macros expanded, for example by `clang -E`). Line markers
//! (`# 12 "file.metal"`) are followed, so errors and items name the lines that the author sees.
//!
//! Every item carries the byte range of the text it was read from ([`std::ops::Range`]), so that a translator
//! can replace it and leave the rest of the text as it is.
//!
//! ```
//! let text = "kernel void twice(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] *= 2; }";
//! let library = msl::Library::read(text)?;
//! let kernel = &library.kernels[0];
//! assert_eq!(kernel.name, "twice");
//! assert_eq!(kernel.arguments[0].role, msl::Role::Buffer(0));
//! assert_eq!(kernel.arguments[1].role, msl::Role::Builtin(msl::Builtin::ThreadPositionInGrid));
//! # Ok::<(), msl::Error>(())
//! ```
//!
//! The language is described in Apple's "Metal Shading Language Specification", sections 4 (address spaces),
//! 5.1 (functions), 5.2 (attributes of arguments) and 5.8 (function constants).
#![forbid(unsafe_code)]

mod argument;
mod constant;
mod error;
mod function;
mod instantiation;
mod item;
mod kernel;
mod lexer;
mod library;
pub mod rules;
mod threadgroup;

pub use argument::{AddressSpace, Argument, Builtin, Passing, Role};
pub use constant::{DerivedConstant, FunctionConstant};
pub use error::{Error, Location};
pub use function::Function;
pub use item::{Item, ItemKind};
pub use kernel::{Kernel, TemplateParameter};
pub use lexer::{Source, Token, TokenKind};
pub use library::Library;
pub use threadgroup::ThreadgroupVariable;
