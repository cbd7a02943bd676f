//! What Metal says when work fails, as errors of the library.

use objc2_foundation::NSError;
use objc2_metal::MTLCommandBufferError;

use crate::Error;
use crate::error::DeviceFault;

/// The name under which errors speak of this device.
pub(super) const DEVICE: &str = "metal";

/// The kind of a command buffer's error.
pub(super) fn kind(error: Option<&NSError>) -> DeviceFault {
    let Some(error) = error else { return DeviceFault::Unknown(0) };
    if error.domain().to_string() != "MTLCommandBufferErrorDomain" {
        return DeviceFault::Unknown(error.code() as i64);
    }
    match MTLCommandBufferError(error.code() as usize) {
        MTLCommandBufferError::Timeout => DeviceFault::Timeout,
        MTLCommandBufferError::PageFault => DeviceFault::PageFault,
        MTLCommandBufferError::OutOfMemory => DeviceFault::OutOfMemory,
        MTLCommandBufferError::InvalidResource => DeviceFault::InvalidResource,
        MTLCommandBufferError::AccessRevoked => DeviceFault::AccessRevoked,
        MTLCommandBufferError::NotPermitted => DeviceFault::NotPermitted,
        MTLCommandBufferError::DeviceRemoved => DeviceFault::DeviceRemoved,
        MTLCommandBufferError::Internal => DeviceFault::Internal,
        other => DeviceFault::Unknown(other.0 as i64),
    }
}

/// The error of work that failed on the device.
pub(in crate::backend) fn failed(
    what: impl Into<String>,
    fault: DeviceFault,
    message: impl Into<String>,
) -> Error {
    Error::Device { device: DEVICE.to_owned(), what: what.into(), fault, message: message.into() }
}
