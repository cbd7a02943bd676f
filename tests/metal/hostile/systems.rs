//! Versions of macOS and of the SDK that a program meets.

use candle_core::{Device as CandleDevice, Tensor};
use metal_candle::CustomMetalOps;
use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::error::DeviceFault;
use metal_candle::graph::Graph;
use metal_candle::tensor::{DType, HostTensor};
use softmetal::check::capture;
use softmetal::counters;
use softmetal::system::{Gpu, Mac};

use super::{assert_right, border_is_right, device_error, numbers};

#[path = "../../../benches/devices/mod.rs"]
mod compared;

/// The rule that macOS 27 enforces by ending the process.
const TRANSPOSED: &str = "mps-ndarray-product-transposed-bfloat16";

/// A product with a transposed bf16 side through Metal Performance Shaders, preferred: its result, and the rules that it
/// breaks.
fn transposed_product() -> (Vec<f64>, Vec<&'static str>) {
    let device = Device::metal_with(Preference::Mps).unwrap();
    let host =
        |seed, dims: &[usize]| HostTensor::from_candle(&numbers(seed, dims)).unwrap().cast(DType::BF16);
    let graph = Graph::new();
    let (x, w) = (graph.constant(host(1, &[16, 32])), graph.constant(host(2, &[24, 32])));
    let program = device.compile(&graph, &[x.linear(&w).unwrap()], &[]).unwrap();
    let (found, broken) = capture(|| program.run(&[]).unwrap().remove(0).to_f64());
    (found, broken.iter().map(|violation| violation.rule).collect())
}

#[test]
fn on_macos_27_that_reports_16_no_transposed_bf16_view_reaches_mps() {
    let _alone = crate::alone();
    let expected = transposed_product().0;
    for mac in [Mac::compatibility_version(), Mac { kernel_release: "26.0.0".to_owned(), ..Mac::default() }] {
        let _mac = mac.install();
        let (found, broken) = transposed_product();
        assert!(!broken.contains(&TRANSPOSED), "{broken:?}");
        for (found, expected) in found.iter().zip(&expected) {
            // One rounding to bf16 apart: 2⁻⁸ of a result below 8.
            assert!((found - expected).abs() <= 8.0 / 256.0, "{found}, not {expected}");
        }
    }
}

#[test]
fn on_macos_27_that_reports_16_every_path_is_right() {
    let _alone = crate::alone();
    let _mac = Mac::compatibility_version().install();
    for preference in [Preference::Metal, Preference::Mps] {
        assert_right(&Device::metal_with(preference).unwrap());
    }
    border_is_right();
    assert_eq!(metal_candle::backend::metal::device_info::read().unwrap().system.0, 27);
}

#[test]
fn macos_14_is_refused_with_the_minimum() {
    let _alone = crate::alone();
    let _mac = Mac::sonoma().install();
    let (fault, text) = device_error(Device::metal());
    assert_eq!(fault, DeviceFault::Unavailable);
    assert!(text.contains("macOS 15") && text.contains("14"), "{text}");
}

/// candle's own device needs a class of macOS 15 and panics without it, before anything of this library is reached. A
/// device that was made before is refused at the border.
#[test]
fn on_macos_14_candles_device_panics_and_the_border_refuses() {
    let _alone = crate::alone();
    objc2::rc::autoreleasepool(|_| {
        let device = CandleDevice::new_metal(0).unwrap();
        let x = Tensor::zeros((3, 8), candle_core::DType::F32, &device).unwrap();
        let _mac = Mac::sonoma().install();
        let text = x.softmax_fused(1).unwrap_err().to_string();
        assert!(text.contains("macOS 15"), "{text}");
        let panic = std::panic::catch_unwind(|| CandleDevice::new_metal(0).map(|_| ()));
        let panic = panic.expect_err("candle checks for the class now: say so in docs/MPS_INTEGRATION.md");
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("class MTLResidencySetDescriptor could not be found"), "{text}");
    });
}

/// The devices of `benches/mps_vs_custom.rs` ask the library first, so that the benchmark ends with a sentence.
#[test]
fn on_macos_14_the_benchmark_is_skipped_with_the_minimum() {
    let _alone = crate::alone();
    objc2::rc::autoreleasepool(|_| {
        {
            let _mac = Mac::sonoma().install();
            let reason = compared::open().err().expect("nothing is opened");
            assert!(reason.contains("macOS 15") && reason.contains("14"), "{reason}");
        }
        let devices = compared::open().unwrap();
        assert_eq!(devices.ours.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["mps", "custom"]);
        assert!(devices.candle.is_metal());
    });
}

#[test]
fn a_host_linked_against_an_old_sdk_still_has_bfloat() {
    let _alone = crate::alone();
    let _mac = Mac { old_sdk: true, ..Mac::default() }.install();
    counters::take();
    for preference in [Preference::Metal, Preference::Mps] {
        assert_right(&Device::metal_with(preference).unwrap());
    }
    let languages = counters::take().languages;
    assert_eq!(languages.keys().collect::<Vec<_>>(), ["3.1"], "every library names its version");
    // candle compiles its own files by the default, whose bf16 kernels are left out; ours are there.
    border_is_right();
    assert!(counters::take().languages["3.1"] > 0);
}

#[test]
fn a_chip_that_is_not_in_the_table_is_no_m1() {
    let _alone = crate::alone();
    let of = |name: &str, architecture: &str| {
        let gpu = Gpu { name: name.to_owned(), architecture: architecture.to_owned(), ..Gpu::default() };
        let _mac = Mac::with(gpu).install();
        metal_candle::backend::metal::device_info::read().unwrap().chip
    };
    let oldest = of("Apple M1", "applegpu_g13g");
    let newer = of("Apple M9 Ultra", "applegpu_g21d");
    assert!(newer.generation > oldest.generation, "{newer:?}");
}
