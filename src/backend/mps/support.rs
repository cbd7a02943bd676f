//! Whether Metal Performance Shaders support a GPU.

use objc2::runtime::ProtocolObject;
use objc2_metal::MTLDevice;
use objc2_metal_performance_shaders::MPSSupportsMTLDevice;

/// Returns true if Metal Performance Shaders support the GPU. Without support their initializers return nil, which
/// objc2 turns into a panic.
pub(in crate::backend) fn supports(device: &ProtocolObject<dyn MTLDevice>) -> bool {
    // SAFETY: the device is valid; the function only reads from it.
    unsafe { MPSSupportsMTLDevice(Some(device)) }
}
