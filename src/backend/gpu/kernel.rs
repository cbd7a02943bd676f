//! Kernels by source file, function and function constants, before a driver compiles them.

/// Source text of `common.metal`, which precedes each of our kernel files.
pub(in crate::backend) const COMMON: &str = include_str!("kernels/common.metal");

/// The text of a kernel library.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Source {
    /// Name for messages; each name stands for one text.
    pub(in crate::backend) name: &'static str,
    /// The text without `common.metal`.
    pub(in crate::backend) text: &'static str,
    /// True if `common.metal` precedes the text.
    pub(in crate::backend) includes_common: bool,
    /// True if the compiler may reorder sums and assume that there are no NaNs and infinities.
    pub(in crate::backend) fast_math: bool,
}

impl Source {
    /// One of our kernel files, compiled with exact semantics of NaN and infinity.
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, includes_common: true, fast_math: false }
    }

    /// A kernel file of another crate, compiled with that crate's options.
    pub(in crate::backend) const fn third_party(name: &'static str, text: &'static str) -> Self {
        Self { name, text, includes_common: false, fast_math: true }
    }
}

/// A function constant: its index and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) enum Constant {
    Bool(usize, bool),
}

/// A function of a kernel library with the values of its function constants.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Kernel {
    pub(in crate::backend) source: Source,
    pub(in crate::backend) function: String,
    pub(in crate::backend) constants: Vec<Constant>,
}
