//! Dtypes, shapes and tensors in host memory, and the border to candle's.

mod buffer;
pub(crate) mod candle;
mod dtype;
mod host;
pub(crate) mod layout;
mod mapped_file;
mod resident;
mod shape;

pub use buffer::{Buffer, Parameter};
pub use candle::{CandleTensor, Constant};
pub use dtype::{DType, Element};
pub use host::HostTensor;
pub(crate) use host::try_with_capacity;
pub use layout::Layout;
pub use mapped_file::MappedFile;
pub(crate) use resident::resident;
pub use shape::{Shape, TensorSpec};
