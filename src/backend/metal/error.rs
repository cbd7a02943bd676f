//! Converts Metal's errors.

use objc2_foundation::{NSError, NSUnderlyingErrorKey};
use objc2_metal::MTLCommandBufferError;

use crate::Error;
use crate::error::DeviceFault;

/// Name of this device in errors.
pub(super) const DEVICE: &str = "metal";

/// Returns the kind of a command buffer's error.
pub(super) fn kind(error: Option<&NSError>) -> DeviceFault {
    let Some(error) = error else { return DeviceFault::Unknown(0) };
    if error.domain().to_string() != "MTLCommandBufferErrorDomain" {
        return DeviceFault::Unknown(error.code() as i64);
    }
    if let Some(fault) = queue_fault(error) {
        return fault;
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

/// The fault of the GPU's queue behind a command buffer's error. The system's watchdog, and the discarding of command
/// buffers after another one's fault, have no code among command buffers' errors: those report an internal error, whose
/// underlying error, or whose text, says more.
fn queue_fault(error: &NSError) -> Option<DeviceFault> {
    // SAFETY: a constant string of the framework.
    let key = unsafe { NSUnderlyingErrorKey };
    let underlying = error.userInfo().objectForKey(key).and_then(|error| error.downcast::<NSError>().ok());
    if let Some(underlying) = underlying
        && underlying.domain().to_string() == "IOGPUCommandQueueErrorDomain"
    {
        return of_queue_code(underlying.code() as i64);
    }
    of_queue_text(&error.localizedDescription().to_string())
}

/// The fault that a command buffer's error names in its text: "Impacting Interactivity
/// (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)".
fn of_queue_text(text: &str) -> Option<DeviceFault> {
    let code = text.rsplit('(').next()?.split(':').next()?;
    if code.len() == 8 { of_queue_code(i64::from_str_radix(code, 16).ok()?) } else { None }
}

/// The fault of a code of IOGPUCommandQueueErrorDomain.
fn of_queue_code(code: i64) -> Option<DeviceFault> {
    match code {
        // Hang, and impacting interactivity.
        3 | 14 => Some(DeviceFault::Timeout),
        // Innocent victim: discarded because another command buffer failed.
        5 => Some(DeviceFault::Discarded),
        _ => None,
    }
}

/// Returns the error of work that failed on the device.
pub(in crate::backend) fn failed(
    what: impl Into<String>,
    fault: DeviceFault,
    message: impl Into<String>,
) -> Error {
    Error::Device { device: DEVICE.to_owned(), what: what.into(), fault, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_recognized_by_the_text_alone() {
        for (text, fault) in [
            (
                "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
                Some(DeviceFault::Timeout),
            ),
            ("Internal Error (0000000e:Internal Error)", Some(DeviceFault::Timeout)),
            (
                "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
                Some(DeviceFault::Timeout),
            ),
            (
                "Discarded (victim of GPU error/recovery) (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
                Some(DeviceFault::Discarded),
            ),
            ("Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)", None),
            ("Internal Error", None),
            ("(0000000e", Some(DeviceFault::Timeout)),
            ("Internal Error (zzzzzzzz:)", None),
            ("", None),
        ] {
            assert_eq!(of_queue_text(text), fault, "{text}");
        }
    }
}
