//! The report of `doctor` about NVIDIA GPUs.

use metal_candle::backend::cuda::device_info::{self, CudaInfo};
use serde_json::{Value, json};

use crate::progress::size;

/// Adds the GPUs of this system to the devices, and what they need to what is missing. A system without the driver has none.
pub(super) fn report(devices: &mut Vec<Value>, missing: &mut Vec<Value>) {
    if let Some(info) = device_info::read() {
        add(&info, devices, missing);
    }
}

fn add(info: &CudaInfo, devices: &mut Vec<Value>, missing: &mut Vec<Value>) {
    let Ok(((major, minor), gpus)) = &info.driver else { return };
    if gpus.is_empty() {
        return;
    }
    let gpus: Vec<Value> = gpus
        .iter()
        .map(|gpu| {
            let (major, minor) = gpu.capability;
            json!({"gpu": gpu.name, "capability": format!("{major}.{minor}"), "memory": gpu.memory})
        })
        .collect();
    let compiler = match &info.compiler {
        Ok((path, (major, minor))) => json!({"path": path, "version": format!("{major}.{minor}")}),
        Err(_) => {
            missing.push(json!({
                "what": "the CUDA kernel compiler NVRTC, which --device cuda needs",
                "advice": "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit",
            }));
            Value::Null
        }
    };
    let driver = format!("CUDA {major}.{minor}");
    devices.push(json!({"name": "cuda", "driver": driver, "gpus": gpus, "compiler": compiler}));
}

/// The lines on the GPUs.
pub(super) fn lines(device: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let gpu = |(number, gpu): (usize, &Value)| {
        format!(
            "device   cuda:{number}: {}, compute capability {}, {}",
            word(&gpu["gpu"]),
            word(&gpu["capability"]),
            size(gpu["memory"].as_u64().unwrap_or(0))
        )
    };
    let mut lines: Vec<String> =
        device["gpus"].as_array().into_iter().flatten().enumerate().map(gpu).collect();
    let compiler = match device["compiler"]["version"].as_str() {
        Some(version) => format!("NVRTC {version} ({})", word(&device["compiler"]["path"])),
        None => "no NVRTC".to_owned(),
    };
    lines.push(format!("         driver for {}; {compiler}", word(&device["driver"])));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use metal_candle::backend::cuda::device_info::GpuInfo;

    fn info(compiler: Result<(std::path::PathBuf, (u32, u32)), String>) -> CudaInfo {
        let gpu =
            GpuInfo { name: "NVIDIA H100 80GB HBM3".into(), capability: (9, 0), memory: 85_017_624_576 };
        CudaInfo { driver: Ok(((13, 0), vec![gpu])), compiler }
    }

    #[test]
    fn a_gpu_is_listed_with_its_driver_and_compiler() {
        let (mut devices, mut missing) = (Vec::new(), Vec::new());
        add(&info(Ok(("/lib/libnvrtc.so.13".into(), (13, 5)))), &mut devices, &mut missing);
        assert!(missing.is_empty());
        let lines = lines(&devices[0]);
        assert!(
            lines[0].starts_with("device   cuda:0: NVIDIA H100 80GB HBM3, compute capability 9.0, "),
            "{lines:?}"
        );
        assert_eq!(lines[1], "         driver for CUDA 13.0; NVRTC 13.5 (/lib/libnvrtc.so.13)");
    }

    #[test]
    fn a_missing_compiler_is_reported_where_there_is_a_gpu() {
        let (mut devices, mut missing) = (Vec::new(), Vec::new());
        add(&info(Err("not found".into())), &mut devices, &mut missing);
        assert_eq!(lines(&devices[0])[1], "         driver for CUDA 13.0; no NVRTC");
        assert_eq!(missing[0]["advice"], "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit");
        let none = CudaInfo { driver: Err("no driver".into()), ..info(Err("not found".into())) };
        let (mut devices, mut missing) = (Vec::new(), Vec::new());
        add(&none, &mut devices, &mut missing);
        assert!(devices.is_empty() && missing.is_empty());
    }
}
