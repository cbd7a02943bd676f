//! Devices that `mps_vs_custom` compares.

use metal_candle::backend::Device;

/// The library's devices by the names under which results are shown, and candle's device.
pub(crate) struct Devices {
    /// Metal Performance Shaders preferred, and own kernels only; without a GPU backend, the CPU.
    pub(crate) ours: Vec<(&'static str, Device)>,
    /// The device for candle's operations.
    pub(crate) candle: candle_core::Device,
}

/// Opens the devices.
///
/// # Errors
/// The library does not support this system or this GPU. candle is not asked then: its Metal device panics on macOS 14.
#[cfg(metal)]
pub(crate) fn open() -> Result<Devices, String> {
    use metal_candle::backend::select::Preference;

    let device = |preference| Device::metal_with(preference).map_err(|error| error.to_string());
    let ours = vec![("mps", device(Preference::Mps)?), ("custom", device(Preference::Metal)?)];
    let candle = candle_core::Device::new_metal(0).map_err(|error| error.to_string())?;
    Ok(Devices { ours, candle })
}

/// Opens the devices.
///
/// # Errors
/// None of the library's devices can be opened.
#[cfg(not(metal))]
pub(crate) fn open() -> Result<Devices, String> {
    let cpu = Device::cpu(2).map_err(|error| error.to_string())?;
    Ok(Devices { ours: vec![("cpu", cpu)], candle: candle_core::Device::Cpu })
}
