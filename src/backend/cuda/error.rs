//! What CUDA reports when work fails, as errors of the library.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::Error;
use crate::error::DeviceFault;

/// Name of this device in messages.
pub(super) const DEVICE: &str = "cuda";

/// Returns the error of work that failed on the device.
pub(super) fn failed(what: impl Into<String>, fault: DeviceFault, message: impl Into<String>) -> Error {
    Error::Device { device: DEVICE.to_owned(), what: what.into(), fault, message: message.into() }
}

/// Returns the fault of a code of the driver.
fn fault(code: CUresult) -> DeviceFault {
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_INVALID_DEVICE
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUresult::CUDA_ERROR_DEVICE_NOT_LICENSED
        | CUresult::CUDA_ERROR_SYSTEM_NOT_READY
        | CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | CUresult::CUDA_ERROR_STUB_LIBRARY => DeviceFault::Unavailable,
        CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_NOT_FOUND
        | CUresult::CUDA_ERROR_INVALID_SOURCE
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => DeviceFault::Kernel,
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => DeviceFault::Timeout,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR => DeviceFault::PageFault,
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceFault::OutOfMemory,
        CUresult::CUDA_ERROR_INVALID_HANDLE
        | CUresult::CUDA_ERROR_INVALID_CONTEXT
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_DEINITIALIZED => DeviceFault::InvalidResource,
        CUresult::CUDA_ERROR_NOT_PERMITTED | CUresult::CUDA_ERROR_NOT_SUPPORTED => DeviceFault::NotPermitted,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            DeviceFault::DeviceRemoved
        }
        CUresult::CUDA_ERROR_LAUNCH_FAILED | CUresult::CUDA_ERROR_UNKNOWN => DeviceFault::Internal,
        other => DeviceFault::Unknown(i64::from(other as u32)),
    }
}

/// Returns the error of a call of the driver.
pub(super) fn of_driver(what: impl Into<String>, error: DriverError) -> Error {
    let DriverError(code) = error;
    let name = format!("{code:?}");
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    failed(what, fault(code), text.map_or(name.clone(), |text| format!("{text} ({name})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_driver_become_faults() {
        for (code, expected) in [
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, DeviceFault::OutOfMemory),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, DeviceFault::PageFault),
            (CUresult::CUDA_ERROR_LAUNCH_TIMEOUT, DeviceFault::Timeout),
            (CUresult::CUDA_ERROR_NO_DEVICE, DeviceFault::Unavailable),
            (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, DeviceFault::Kernel),
            (CUresult::CUDA_ERROR_INVALID_VALUE, DeviceFault::Unknown(1)),
        ] {
            assert_eq!(fault(code), expected, "{code:?}");
        }
    }
}
