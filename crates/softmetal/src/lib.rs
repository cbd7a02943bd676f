//! A software Metal device for Linux.
pub mod ordering;
pub mod ranges;
pub use softmetal_objc::{check, ledger};
