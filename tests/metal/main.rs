//! The Metal backend beyond single operations, on a Mac's GPU or on the software device of `crates/softmetal`, which
//! checks ordering, lifetimes and memory while it runs. The operations themselves are in `tests/ops`.
#![cfg(metal)]

#[cfg(softmetal)]
extern crate softmetal;

mod calibration;
#[cfg(softmetal)]
mod counters;
#[cfg(softmetal)]
mod encode;
#[cfg(softmetal)]
mod estimates;
#[cfg(softmetal)]
mod faults;
mod fusion;
#[cfg(softmetal)]
mod hostile;
mod launches;
mod model;
#[cfg(mps)]
mod mps;
mod repeats;

use std::sync::{Mutex, MutexGuard, PoisonError};

use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::tensor::{HostTensor, TensorSpec};

/// Counters and faults are the process's: such tests run one at a time, and no other beside them.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers between −1 and 1 that a seed decides, as f64 on the CPU.
#[cfg(softmetal)]
pub(crate) fn numbers(seed: u64, dims: &[usize]) -> candle_core::Result<candle_core::Tensor> {
    let count = dims.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0);
    candle_core::Tensor::from_vec(values.collect::<Vec<f64>>(), dims, &candle_core::Device::Cpu)
}

/// That the host waited once: not at all if the run was over while it looked, and once more for every tenth of a second,
/// as it then looks whether a command buffer has failed.
#[cfg(softmetal)]
pub(crate) fn assert_waited_once(counted: &softmetal::counters::Counters, elapsed: std::time::Duration) {
    let allowed = 1 + elapsed.as_millis() as u64 / 100;
    assert!(counted.host_waits <= allowed, "more than {allowed} waits in {elapsed:?}: {counted:?}");
}

#[test]
fn runs_are_repeated_with_new_inputs() {
    let _alone = alone();
    let device = Device::metal().unwrap();
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([2, 3]));
    let y = x.softmax(1).unwrap().softmax(0).unwrap();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    for shift in [0.0_f32, 3.0] {
        let x = HostTensor::from_slice(&[shift; 6], [2, 3]).unwrap();
        let y = program.run(&[&x]).unwrap().remove(0);
        assert_eq!(y.as_slice::<f32>().unwrap(), [0.5; 6]);
    }
}

#[test]
fn buffers_of_any_size_are_read_and_written() {
    let _alone = alone();
    let device = Device::metal().unwrap();
    // Small ones are parts of one buffer, large ones their own.
    for bytes in [1, 4, 1000, 5 << 20] {
        let buffer = device.allocate(bytes).unwrap();
        let pattern: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let mut found = vec![1; bytes];
        buffer.read(0, &mut found).unwrap();
        assert!(found.iter().all(|&byte| byte == 0), "new memory is zero");
        buffer.write(0, &pattern).unwrap();
        buffer.read(0, &mut found).unwrap();
        assert_eq!(found, pattern);
        assert!(buffer.write(1, &pattern).unwrap_err().to_string().contains("do not exist"));
    }
}

#[test]
fn a_tensor_of_another_device_is_refused() {
    let _alone = alone();
    let (metal, cpu) = (Device::metal().unwrap(), Device::cpu(1).unwrap());
    let weight = cpu.parameter("w", &HostTensor::zeros(TensorSpec::f32([2, 2])), false).unwrap();
    let graph = Graph::new();
    let y = graph.parameter(&weight).silu().unwrap();
    let error = metal.compile(&graph, &[y], &[]).err().unwrap().to_string();
    assert_eq!(error, "w: is on another device than metal");
}

#[test]
fn the_gpu_says_what_it_is() {
    let _alone = alone();
    let facts = metal_candle::backend::metal::device_info::read().unwrap();
    assert!(!facts.name.is_empty() && !facts.families.is_empty(), "{facts:?}");
    assert!(facts.system.0 >= 15 && facts.unified_memory, "{facts:?}");
    assert!(facts.working_set >= 1 << 30 && facts.largest_buffer >= 256 << 20, "{facts:?}");
    assert!(facts.threadgroup_memory >= 32 << 10, "{facts:?}");
}

/// Compiled kernels are kept in a folder, read by the next device, and compiled again if the file is damaged.
#[test]
fn compiled_kernels_are_kept_between_runs() {
    use metal_candle::backend::select::{Choices, Preference};

    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let choices = Choices {
            preference: Preference::Metal,
            kernels: Some(folder.path().join("kernels")),
            ..Choices::default()
        };
        let device = Device::metal_with(choices).unwrap();
        let graph = Graph::new();
        let x = graph.input("x", TensorSpec::f32([2, 3]));
        let program = device.compile(&graph, &[x.softmax(1).unwrap().silu().unwrap()], &[]).unwrap();
        let y = program.run(&[&HostTensor::zeros(TensorSpec::f32([2, 3]))]).unwrap().remove(0);
        assert!((y.as_slice::<f32>().unwrap()[5] - 0.194_19).abs() < 1e-5);
    };
    let files = || -> Vec<_> {
        let entries = std::fs::read_dir(folder.path().join("kernels")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    run();
    let stored = files();
    assert_eq!(stored.len(), 1, "one file and nothing half-written: {stored:?}");
    let written = || std::fs::metadata(&stored[0]).unwrap().modified().unwrap();
    let first = written();
    run();
    assert_eq!(written(), first, "nothing was missing");
    std::fs::write(&stored[0], b"damaged").unwrap();
    run();
    assert_eq!(files(), stored);
    // The system promises no length: what counts is that the next run finds everything.
    assert_ne!(std::fs::read(&stored[0]).unwrap(), b"damaged", "written anew");
    let anew = written();
    run();
    assert_eq!(written(), anew, "nothing is missing again");
}
