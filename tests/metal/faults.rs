//! Every fault of the device ends in an error that names it, and the next run works.

use metal_candle::backend::{Device, Program};
use metal_candle::error::DeviceFault;
use metal_candle::graph::Graph;
use metal_candle::tensor::{HostTensor, TensorSpec};
use metal_candle::{Error, Result};
use softmetal::faults::{self, CommandBufferError};

fn program(device: &Device, n: usize) -> Result<Program> {
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([n]));
    let mut y = x.affine(1.0, 1.0)?;
    // More dispatches than one command buffer holds.
    for _ in 0..100 {
        y = y.affine(1.0, 1.0)?.reshape([1, n])?.softmax(0)?.reshape([n])?;
    }
    device.compile(&graph, &[y], &[])
}

fn run(program: &Program, n: usize) -> Result<HostTensor> {
    Ok(program.run(&[&HostTensor::zeros(TensorSpec::f32([n]))])?.remove(0))
}

#[test]
fn every_error_of_a_command_buffer_is_typed_and_the_next_run_works() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let program = program(&device, 8).unwrap();
    for (error, expected) in [
        (CommandBufferError::Internal, DeviceFault::Internal),
        (CommandBufferError::PageFault, DeviceFault::PageFault),
        (CommandBufferError::AccessRevoked, DeviceFault::AccessRevoked),
        (CommandBufferError::NotPermitted, DeviceFault::NotPermitted),
        (CommandBufferError::OutOfMemory, DeviceFault::OutOfMemory),
        (CommandBufferError::InvalidResource, DeviceFault::InvalidResource),
        (CommandBufferError::DeviceRemoved, DeviceFault::DeviceRemoved),
        (CommandBufferError::Memoryless, DeviceFault::Unknown(10)),
        (CommandBufferError::StackOverflow, DeviceFault::Unknown(12)),
    ] {
        for after in [0, 1] {
            faults::fail_command_buffer_after(after, error);
            let failed = run(&program, 8);
            faults::clear();
            let Err(Error::Device { what, fault, .. }) = failed else { panic!("{error:?}: {failed:?}") };
            assert_eq!(fault, expected);
            assert!(what.contains("affine") && what.contains("dispatches"), "{what}");
            assert_eq!(run(&program, 8).unwrap().as_slice::<f32>().unwrap(), [1.0; 8], "after {error:?}");
        }
    }
}

#[test]
fn after_a_timeout_command_buffers_are_smaller_and_the_run_is_done_again() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let program = program(&device, 8).unwrap();
    softmetal::counters::take();
    run(&program, 8).unwrap();
    let before = softmetal::counters::take().command_buffers;
    faults::fail_command_buffer_after(1, CommandBufferError::Timeout);
    assert_eq!(run(&program, 8).unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
    faults::clear();
    softmetal::counters::take();
    run(&program, 8).unwrap();
    let after = softmetal::counters::take().command_buffers;
    assert!(after > before, "{before} command buffers before, {after} after");
}

/// An update must not be done twice: the run is not repeated, and the error says so.
#[test]
fn a_step_with_an_update_is_not_repeated() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let sum = device.state("sum", TensorSpec::f32([4])).unwrap();
    let graph = Graph::new();
    let g = graph.input("g", TensorSpec::f32([4]));
    let keep = graph.input("keep", TensorSpec::f32([1]));
    let updated = graph.record(metal_candle::ops::Accumulate, &[&graph.parameter(&sum), &g, &keep]).unwrap();
    let program = device.compile(&graph, &[], &updated).unwrap();
    let one = HostTensor::from_slice(&[1.0_f32; 4], [4]).unwrap();
    let keep = HostTensor::scalar(1.0_f32);
    program.run(&[&one, &keep]).unwrap();
    faults::fail_command_buffer_after(0, CommandBufferError::Timeout);
    let failed = program.run(&[&one, &keep]);
    faults::clear();
    assert!(matches!(failed, Err(Error::Device { fault: DeviceFault::Timeout, .. })), "{failed:?}");
    assert_eq!(sum.read().unwrap().as_slice::<f32>().unwrap(), [1.0; 4], "nothing was added");
    program.run(&[&one, &keep]).unwrap();
    assert_eq!(sum.read().unwrap().as_slice::<f32>().unwrap(), [2.0; 4]);
}

/// A timeout makes the command buffers of the next run smaller even where this one cannot be done again: a training step.
#[test]
fn after_a_timeout_in_training_the_next_steps_are_smaller() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let sum = device.state("sum", TensorSpec::f32([8])).unwrap();
    let graph = Graph::new();
    let mut g = graph.input("g", TensorSpec::f32([8]));
    for _ in 0..60 {
        g = g.affine(1.0, 0.0).unwrap().reshape([1, 8]).unwrap().softmax(0).unwrap().reshape([8]).unwrap();
    }
    let keep = graph.constant(HostTensor::scalar(0.0_f32));
    let updated = graph.record(metal_candle::ops::Accumulate, &[&graph.parameter(&sum), &g, &keep]).unwrap();
    let program = device.compile(&graph, &[], &updated).unwrap();
    let g = HostTensor::zeros(TensorSpec::f32([8]));
    let buffers = || {
        softmetal::counters::take();
        program.run(&[&g]).unwrap();
        softmetal::counters::take().command_buffers
    };
    let before = buffers();
    faults::fail_command_buffer_after(0, CommandBufferError::Timeout);
    let failed = program.run(&[&g]);
    faults::clear();
    assert!(matches!(failed, Err(Error::Device { fault: DeviceFault::Timeout, .. })), "{failed:?}");
    let after = buffers();
    assert!(after > before, "{before} command buffers before, {after} after");
    assert_eq!(sum.read().unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
}

#[test]
fn memory_and_pipelines_that_cannot_be_had_are_errors() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    faults::fail_allocation_after(0);
    let failed = device.allocate(64 << 20);
    faults::clear();
    assert!(matches!(failed, Err(Error::OutOfMemory { bytes, .. }) if bytes == 64 << 20));
    faults::fail_allocation_after(0);
    let failed = program(&device, 1 << 20);
    faults::clear();
    assert!(matches!(failed, Err(Error::OutOfMemory { .. })));
    faults::fail_pipeline_after(0);
    let failed = program(&device, 16);
    faults::clear();
    let Err(Error::Device { what, fault: DeviceFault::Kernel, .. }) = failed else { panic!("no error") };
    assert!(what.starts_with("kernel '") && what.contains("' of '"), "{what}");
    assert_eq!(run(&program(&device, 16).unwrap(), 16).unwrap().as_slice::<f32>().unwrap(), [1.0; 16]);
}

#[test]
fn late_completion_is_waited_for_and_a_lost_device_is_told() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let program = program(&device, 8).unwrap();
    faults::delay_completion(std::time::Duration::from_millis(30));
    let late = run(&program, 8);
    faults::clear();
    assert_eq!(late.unwrap().as_slice::<f32>().unwrap(), [1.0; 8]);
    faults::lose_device();
    let lost = run(&program, 8);
    faults::clear();
    assert!(matches!(lost, Err(Error::Device { fault: DeviceFault::DeviceRemoved, .. })), "{lost:?}");
}

/// A fault in the middle of training: the error is typed, the last checkpoint is whole, and a resumed run ends as one
/// without a fault does.
#[test]
fn training_that_fails_leaves_its_checkpoint_and_resumes() {
    use metal_candle::training::{Adapter, Example, LoraConfig, TrainOptions, Trainer};
    use std::sync::atomic::AtomicBool;

    let _alone = crate::alone();
    let subject = crate::model::small();
    let device = Device::metal().unwrap();
    let model = crate::model::load(&subject, &device);
    let examples =
        [Example { tokens: vec![5, 17, 101, 42, 7], supervised: vec![false, false, true, true, true] }];
    let run = |folder: &std::path::Path, resume: bool, fault: bool| -> Result<Adapter> {
        let options = TrainOptions { save_every: 1, keep_checkpoints: 2, resume, ..crate::model::options(3) };
        let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
        let mut trainer = Trainer::new(&model, config, None, options, &examples, &[], folder)?;
        let mut steps = 0;
        trainer.run(&AtomicBool::new(false), &mut |event| {
            if let metal_candle::training::Event::Step { .. } = event {
                steps += 1;
                if fault && steps == 2 {
                    faults::fail_command_buffer_after(0, CommandBufferError::OutOfMemory);
                }
            }
        })?;
        trainer.adapter_now()
    };
    let whole = tempfile::tempdir().unwrap();
    let expected = run(whole.path(), false, false).unwrap();
    let broken = tempfile::tempdir().unwrap();
    let failed = run(broken.path(), false, true);
    faults::clear();
    assert!(
        matches!(failed, Err(Error::Device { fault: DeviceFault::OutOfMemory, .. })),
        "the third step fails"
    );
    let mut open = vec![broken.path().to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.starts_with(".writing") && !name.ends_with(".tmp"), "half-written: {name}");
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    let resumed = run(broken.path(), true, false).unwrap();
    assert_eq!(resumed.modules.len(), expected.modules.len());
    for (found, expected) in resumed.modules.iter().zip(&expected.modules) {
        for (found, expected) in [(&found.a, &expected.a), (&found.b, &expected.b)] {
            assert_eq!(found.as_slice::<f32>().unwrap(), expected.as_slice::<f32>().unwrap());
        }
    }
}

/// After a fault in the midst of an update the adapter on the device may be anything: the trainer says so, and does not go
/// on with it.
#[test]
fn a_trainer_does_not_go_on_with_an_adapter_in_doubt() {
    use metal_candle::training::{Example, LoraConfig, Trainer};
    use std::sync::atomic::AtomicBool;

    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let model = crate::model::load(&crate::model::small(), &device);
    let examples = [Example { tokens: vec![5, 17, 101], supervised: vec![false, true, true] }];
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let options = crate::model::options(2);
    let mut trainer = Trainer::new(&model, config, None, options, &examples, &[], folder.path()).unwrap();
    faults::fail_command_buffer_after(0, CommandBufferError::PageFault);
    let failed = trainer.run(&AtomicBool::new(false), &mut |_| ());
    faults::clear();
    assert!(matches!(failed, Err(Error::Device { fault: DeviceFault::PageFault, .. })), "{failed:?}");
    let again = trainer.run(&AtomicBool::new(false), &mut |_| ()).unwrap_err().to_string();
    assert!(again.contains("may be broken") && again.contains("--resume"), "{again}");
    assert!(!folder.path().join("adapter_model.safetensors").exists(), "nothing was saved");
}
