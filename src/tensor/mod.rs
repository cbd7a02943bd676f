//! Dtypes, shapes and tensors in host memory.

mod buffer;
mod dtype;
mod host;
pub(crate) mod layout;
mod mapped_file;
mod shape;

pub use buffer::{Buffer, Parameter};
pub use dtype::{DType, Element};
pub use host::HostTensor;
pub use layout::Layout;
pub use mapped_file::MappedFile;
pub use shape::{Shape, TensorSpec};
