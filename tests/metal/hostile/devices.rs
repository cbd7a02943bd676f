//! GPUs that the library must find, and GPUs that it must refuse.

use candle_core::{Device as CandleDevice, Tensor};
use metal_candle::CustomMetalOps;
use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::error::DeviceFault;
use softmetal::system::{Devices, Gpu, Mac};

use super::{assert_right, border_is_right, device_error};

#[test]
fn without_a_default_device_the_first_of_the_list_is_used() {
    let _alone = crate::alone();
    let _mac = Mac { devices: Devices::ListOnly, ..Mac::default() }.install();
    assert!(!metal_candle::backend::metal::device_info::read().unwrap().name.is_empty());
    assert_right(&Device::metal().unwrap());
    border_is_right();
}

#[test]
fn without_any_device_the_error_says_so() {
    let _alone = crate::alone();
    let _mac = Mac { devices: Devices::None, ..Mac::default() }.install();
    let (fault, text) = device_error(Device::metal());
    assert_eq!(fault, DeviceFault::Unavailable);
    assert!(text.contains("GPU"), "{text}");
    assert!(metal_candle::backend::metal::device_info::read().unwrap_err().to_string().contains("GPU"));
}

/// The message of a refusal names the GPU, what is missing, and what to use instead.
fn assert_refused(text: &str, name: &str) {
    assert!(text.contains(name) && text.contains("Apple7"), "{text}");
    assert!(text.contains("cpu"), "no advice: {text}");
}

fn refused(gpu: Gpu) {
    let name = gpu.name.clone();
    let _mac = Mac::with(gpu).install();
    for preference in [Preference::Metal, Preference::Mps] {
        let (fault, text) = device_error(Device::metal_with(preference));
        assert_eq!(fault, DeviceFault::Unavailable);
        assert_refused(&text, &name);
    }
    objc2::rc::autoreleasepool(|_| {
        let device = CandleDevice::new_metal(0).unwrap();
        let x = Tensor::zeros((3, 8), candle_core::DType::F32, &device).unwrap();
        for result in [
            x.softmax_fused(1),
            x.fast_softmax(1),
            x.matmul_mps(&x.t().unwrap()),
            x.fast_matmul(&x.t().unwrap()),
        ] {
            assert_refused(&result.unwrap_err().to_string(), &name);
        }
    });
}

#[test]
fn a_paravirtual_gpu_is_refused_by_name() {
    let _alone = crate::alone();
    refused(Gpu::paravirtual());
}

/// A newer virtual machine may report a newer family; its GPU is still none of Apple's.
#[test]
fn a_paravirtual_gpu_that_reports_family_7_is_refused_by_name() {
    let _alone = crate::alone();
    let gpu = Gpu { name: Gpu::paravirtual().name, ..Gpu::default() };
    let _mac = Mac::with(gpu.clone()).install();
    let facts = metal_candle::backend::metal::device_info::read().unwrap();
    assert!(facts.families.contains(&"Apple7"), "{:?}", facts.families);
    assert_eq!(facts.unsupported(), Some("is virtual"));
    refused(gpu);
}

#[test]
fn an_amd_gpu_is_refused_by_name() {
    let _alone = crate::alone();
    refused(Gpu::amd());
}

/// An Apple GPU that Metal Performance Shaders do not support keeps the library's own kernels, whatever is preferred.
#[test]
fn a_gpu_without_mps_uses_the_own_kernels_and_is_asked_once() {
    let _alone = crate::alone();
    let _mac = Mac::with(Gpu { mps: false, ..Gpu::default() }).install();
    for preference in [Preference::Metal, Preference::Mps] {
        softmetal::counters::take();
        let device = Device::metal_with(preference).unwrap();
        assert_right(&device);
        let counted = softmetal::counters::take();
        assert!(counted.mps_support_queries <= 1, "{} questions", counted.mps_support_queries);
        let shaders: Vec<_> = counted.commands.keys().filter(|name| name.starts_with("MPS")).collect();
        assert_eq!(shaders, [""; 0], "no call of the framework");
    }
    softmetal::counters::take();
    border_is_right();
    let counted = softmetal::counters::take();
    assert!(counted.mps_support_queries <= 1, "{} questions", counted.mps_support_queries);
}

#[test]
fn a_gpu_with_mps_is_asked_once() {
    let _alone = crate::alone();
    let _mac = Mac::default().install();
    softmetal::counters::take();
    let device = Device::metal_with(Preference::Mps).unwrap();
    assert_right(&device);
    assert_eq!(softmetal::counters::take().mps_support_queries, 1);
}
