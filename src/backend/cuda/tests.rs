//! Faults on a GPU. The tests run where METAL_CANDLE_TEST_DEVICE is `cuda`; elsewhere they are counted as skipped.

#![allow(clippy::print_stdout, reason = "a test says that it is skipped")]

use std::sync::Arc;

use super::backend::Cuda;
use super::device::Gpu;
use super::graph::Launch;
use super::memory::{Arena, CudaBuffer};
use crate::Error;
use crate::backend::gpu::address::{Address, Allocation};
use crate::backend::gpu::command::Argument;
use crate::backend::gpu::kernel::Kernel;
use crate::backend::gpu::kernel_files::FILES;
use crate::backend::select::Choices;
use crate::backend::{Backend, Device};
use crate::error::DeviceFault;
use crate::tensor::{Buffer, HostTensor};

/// Name of the variable that makes a test the child process of another one.
const CHILD: &str = "METAL_CANDLE_TEST_CHILD";

fn has_gpu() -> bool {
    let wanted = std::env::var("METAL_CANDLE_TEST_DEVICE").is_ok_and(|device| device == "cuda");
    if !wanted {
        println!("SKIPPED a test of a GPU: METAL_CANDLE_TEST_DEVICE is not cuda");
    }
    wanted
}

fn open(choices: Choices) -> Arc<Gpu> {
    let gpu = Arc::new(Gpu::new(0, choices).unwrap());
    gpu.activate().unwrap();
    gpu
}

/// Returns a launch that fills `count` floats at the address of its only buffer argument with 2.
fn fill(gpu: &Gpu, count: u32, threads: u32) -> Launch {
    let source = FILES.into_iter().find(|file| file.name == "elementwise").unwrap();
    let kernel = Kernel { source, function: "fill_float".to_owned(), constants: Vec::new() };
    gpu.modules.load([&kernel].into_iter()).unwrap();
    let mut sizes = count.to_ne_bytes().to_vec();
    sizes.extend(2.0_f32.to_ne_bytes());
    let address = Address::Allocated(Allocation { index: 0, bytes: 0 }, 0);
    Launch {
        op: "fill",
        function: gpu.modules.get(&kernel).unwrap(),
        arguments: vec![Argument::Buffer(address), Argument::Bytes(sizes)],
        groups: [1, 1, 1],
        threads: [threads, 1, 1],
    }
}

fn fault_of(error: &Error) -> DeviceFault {
    match error {
        Error::Device { fault, .. } => *fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rejected_launch_is_an_error_that_names_the_operation_and_the_gpu_goes_on() {
    if !has_gpu() {
        return;
    }
    let gpu = open(Choices::default());
    let buffer = CudaBuffer::new(&gpu, 64, "a test", &Arena::default()).unwrap();
    let error = fill(&gpu, 16, 2048).submit(&gpu, |_| buffer.address()).unwrap_err();
    assert_eq!(fault_of(&error), DeviceFault::Unknown(1), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("cuda: fill failed: ") && text.contains("CUDA_ERROR_INVALID_VALUE"), "{text}");
    fill(&gpu, 16, 256).submit(&gpu, |_| buffer.address()).unwrap();
    gpu.wait(|| "fill").unwrap();
    let mut bytes = [0; 64];
    buffer.read(0, &mut bytes).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes), [2.0; 16]);
}

/// A context does not survive such a fault, so a process of its own has it.
#[test]
fn an_access_outside_of_memory_is_a_typed_error_and_stays_one() {
    if !has_gpu() {
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        let gpu = open(Choices::default());
        let buffer = CudaBuffer::new(&gpu, 64, "a test", &Arena::default()).unwrap();
        fill(&gpu, 16, 256).submit(&gpu, |_| 16).unwrap();
        let error = gpu.wait(|| "fill").unwrap_err();
        assert_eq!(fault_of(&error), DeviceFault::PageFault, "{error}");
        assert!(error.to_string().contains("start the program again"), "{error}");
        let error = buffer.read(0, &mut [0; 4]).unwrap_err();
        assert_eq!(fault_of(&error), DeviceFault::PageFault, "{error}");
        println!("the fault was reported");
        return;
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name.as_str(), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("the fault was reported"), "{text}");
}

#[test]
fn damaged_files_of_compiled_kernels_are_replaced() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let choices = || Choices { kernels: Some(folder.path().to_owned()), ..Choices::default() };
    let files = || -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let gpu = open(choices());
    fill(&gpu, 1, 32);
    let [file] = files().try_into().unwrap();
    let image = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"not machine code").unwrap();
    let gpu = open(choices());
    fill(&gpu, 1, 32);
    assert_eq!(std::fs::read(&file).unwrap(), image);
}

#[test]
fn buffers_of_another_device_are_rejected_by_name() {
    if !has_gpu() {
        return;
    }
    let device = |cuda: Cuda| Device::new(Box::new(cuda) as Box<dyn Backend>);
    let [first, second] = [0, 1].map(|_| device(Cuda::new(0, Choices::default()).unwrap()));
    let value = HostTensor::from_slice(&[1.0_f32], [1]).unwrap();
    let parameter = first.parameter("w", &value, true).unwrap();
    let graph = crate::graph::Graph::new();
    let y = graph.parameter(&parameter).affine(2.0, 0.0).unwrap();
    let error = second.compile(&graph, &[y], &[]).map(drop).unwrap_err().to_string();
    assert_eq!(error, "w: is on another device than cuda");
}
