//! Memory of a GPU: copies, frozen buffers, and what is said when there is too little.

use metal_candle::Error;
use metal_candle::backend::Device;
use metal_candle::tensor::{HostTensor, TensorSpec};

use crate::test_device;

/// The GPU under test, or `None` with a line that says that the test is skipped.
pub(crate) fn gpu() -> Option<Device> {
    if test_device::kind() != "cuda" {
        println!("SKIPPED a test of a GPU: METAL_CANDLE_TEST_DEVICE is not cuda");
        return None;
    }
    test_device::gpu()
}

#[test]
fn a_missing_gpu_is_an_error_that_says_what_is_missing() {
    let error = Device::cuda(4096).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    let text = error.to_string();
    let known = ["the NVIDIA driver", "the driver lists", "NVRTC"];
    assert!(known.iter().any(|part| text.contains(part)), "{text}");
}

#[test]
fn parameters_keep_their_bytes_and_frozen_ones_are_not_written() {
    let Some(device) = gpu() else { return };
    for count in [1_usize, 1000, 3 << 20] {
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let value = HostTensor::from_slice(&values, [count]).unwrap();
        let trainable = device.parameter("w", &value, true).unwrap();
        assert_eq!(trainable.read().unwrap().as_slice::<f32>().unwrap(), values);
        let zeros = HostTensor::zeros(TensorSpec::f32([count]));
        trainable.write(&zeros).unwrap();
        assert_eq!(trainable.read().unwrap().as_slice::<f32>().unwrap(), vec![0.0; count]);
        let frozen = device.parameter("w", &value, false).unwrap();
        assert!(frozen.write(&zeros).unwrap_err().to_string().contains("frozen"));
        assert_eq!(frozen.read().unwrap().as_slice::<f32>().unwrap(), values);
    }
}

#[test]
fn too_large_an_allocation_is_out_of_memory_with_numbers() {
    let Some(device) = gpu() else { return };
    let bytes = 1_usize << 44;
    let Err(error) = device.allocate(bytes) else { panic!("a GPU with 16 TiB") };
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&bytes.to_string()) && text.contains("bytes are free"), "{text}");
    // The device goes on.
    let value = HostTensor::from_slice(&[2.0_f32], [1]).unwrap();
    let parameter = device.parameter("w", &value, true).unwrap();
    assert_eq!(parameter.read().unwrap().as_slice::<f32>().unwrap(), [2.0]);
}

/// The arena grows for the second program, and the first one's graph is recorded anew.
#[test]
fn a_program_runs_after_the_arena_has_moved() {
    let Some(device) = gpu() else { return };
    let compile = |count: usize| {
        let graph = metal_candle::graph::Graph::new();
        let x = graph.input("x", TensorSpec::f32([count]));
        let y = x.affine(2.0, 1.0).unwrap();
        device.compile(&graph, &[y], &[]).unwrap()
    };
    let run = |program: &metal_candle::backend::Program, count: usize| {
        let x = HostTensor::from_slice(&vec![3.0_f32; count], [count]).unwrap();
        let y = program.run(&[&x]).unwrap().remove(0);
        assert_eq!(y.as_slice::<f32>().unwrap(), vec![7.0; count]);
    };
    let small = compile(16);
    run(&small, 16);
    let large = compile(4 << 20);
    run(&large, 4 << 20);
    for _ in 0..1000 {
        run(&small, 16);
    }
}
