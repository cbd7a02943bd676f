//! Dtypes, shapes and tensors in host memory.

mod buffer;
mod dtype;
mod host;
pub(crate) mod layout;
mod shape;

pub use buffer::{Buffer, Parameter};
pub use dtype::{DType, Element};
pub use host::HostTensor;
pub use layout::Layout;
pub use shape::{Shape, TensorSpec};
