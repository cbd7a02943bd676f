//! What a system has for CUDA, for people who ask what runs where.

use std::path::PathBuf;

/// An NVIDIA GPU, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Name of the device, such as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability: major and minor number.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
}

/// What was found, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaInfo {
    /// Version of CUDA that the driver supports, and its GPUs; otherwise what is missing.
    pub driver: Result<((u32, u32), Vec<GpuInfo>), String>,
    /// File and version of the kernel compiler NVRTC; otherwise what to install.
    pub compiler: Result<(PathBuf, (u32, u32)), String>,
}

/// Returns what the system has; `None` if this build does not contain the CUDA backend.
pub fn read() -> Option<CudaInfo> {
    #[cfg(cuda)]
    return Some(CudaInfo { driver: super::device::describe(), compiler: super::nvrtc::describe() });
    #[cfg(not(cuda))]
    None
}

#[cfg(all(test, cuda))]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let info = read().unwrap();
        match info.driver {
            Ok((version, _)) => assert!(version.0 >= 11, "{version:?}"),
            Err(message) => assert!(message.contains("driver"), "{message}"),
        }
        match info.compiler {
            Ok((path, version)) => assert!(path.to_string_lossy().contains("nvrtc") && version.0 >= 11),
            Err(message) => assert!(message.contains("pip install nvidia-cuda-nvrtc"), "{message}"),
        }
    }
}
