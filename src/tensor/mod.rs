//! Dtypes, shapes and tensors in host memory.

mod dtype;
mod host;
mod shape;

pub use dtype::{DType, Element};
pub use host::HostTensor;
pub use shape::{Shape, TensorSpec};
