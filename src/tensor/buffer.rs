//! Memory on a device, and named tensors that live in it.

use std::any::Any;
use std::sync::Arc;

use super::{HostTensor, TensorSpec};
use crate::{Error, Result};

/// Memory of a device. Reading and writing wait for the device.
pub trait Buffer: Send + Sync {
    /// The size in bytes.
    fn bytes(&self) -> usize;
    /// Copies `into.len()` bytes from `offset` to the host.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()>;
    /// Copies `from` to the device at `offset`.
    fn write(&self, offset: usize, from: &[u8]) -> Result<()>;
    /// For the backend that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A tensor that outlives a run: a weight, an adapter, an optimizer's state, a cache. Cloning shares it.
#[derive(Clone)]
pub struct Parameter(Arc<Inner>);

struct Inner {
    name: String,
    spec: TensorSpec,
    trainable: bool,
    buffer: Arc<dyn Buffer>,
    offset: usize,
}

impl Parameter {
    /// A window of a buffer; `offset` is in bytes and must be a multiple of 16.
    pub fn new(
        name: impl Into<String>,
        spec: TensorSpec,
        trainable: bool,
        buffer: Arc<dyn Buffer>,
        offset: usize,
    ) -> Result<Self> {
        let name = name.into();
        if !offset.is_multiple_of(16)
            || offset.checked_add(spec.bytes()).is_none_or(|end| end > buffer.bytes())
        {
            let message =
                format!("{spec} does not fit at byte {offset} of a buffer of {} bytes", buffer.bytes());
            return Err(Error::invalid(name, message));
        }
        Ok(Self(Arc::new(Inner { name, spec, trainable, buffer, offset })))
    }

    /// The name, as in the model's files.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Dtype and shape.
    pub fn spec(&self) -> &TensorSpec {
        &self.0.spec
    }

    /// Returns true if training changes it.
    pub fn trainable(&self) -> bool {
        self.0.trainable
    }

    /// The buffer that holds it, and where in bytes.
    pub fn location(&self) -> (&Arc<dyn Buffer>, usize) {
        (&self.0.buffer, self.0.offset)
    }

    /// A copy of the present value.
    pub fn read(&self) -> Result<HostTensor> {
        let mut tensor = HostTensor::zeros(self.0.spec.clone());
        self.0.buffer.read(self.0.offset, tensor.bytes_mut())?;
        Ok(tensor)
    }

    /// Replaces the value; dtype and shape must be the same.
    pub fn write(&self, value: &HostTensor) -> Result<()> {
        if value.spec() != &self.0.spec {
            let message = format!("is {}, the new value is {}", self.0.spec, value.spec());
            return Err(Error::invalid(self.name(), message));
        }
        self.0.buffer.write(self.0.offset, value.bytes())
    }

    /// Returns true if both are the same tensor.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What identifies it within the process.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

impl std::fmt::Debug for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parameter({} {})", self.0.name, self.0.spec)
    }
}
