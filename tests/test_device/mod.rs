//! The device that the tests of operations, models and training use.

use metal_candle::backend::Device;

/// Kind of the device under test: "metal" in a build with Metal, "cuda" where METAL_CANDLE_TEST_DEVICE is `cuda`, otherwise
/// "cpu".
pub(crate) fn kind() -> &'static str {
    if cfg!(metal) {
        return "metal";
    }
    match std::env::var("METAL_CANDLE_TEST_DEVICE").as_deref() {
        Ok("cuda") => "cuda",
        Ok("cpu" | "") | Err(_) => "cpu",
        Ok(other) => panic!("METAL_CANDLE_TEST_DEVICE is '{other}'; it must be cpu or cuda"),
    }
}

/// Opens the GPU under test; `None` where the tests run on the CPU.
pub(crate) fn gpu() -> Option<Device> {
    match kind() {
        "metal" => Some(Device::metal().unwrap()),
        "cuda" => Some(Device::cuda(0).unwrap()),
        _ => None,
    }
}
