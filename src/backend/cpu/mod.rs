//! The CPU backend.

pub(crate) mod attention;
pub(crate) mod matmul;
pub(crate) mod pool;
pub(crate) mod rows;
