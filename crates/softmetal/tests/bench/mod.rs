//! A device with a queue, buffers and native kernels for the tests.
#![allow(dead_code, missing_docs)]

use std::ptr::NonNull;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::*;
use softmetal::check::{Violation, capture};
use softmetal::native;
use softmetal::program::Launch;

pub type Device = Retained<ProtocolObject<dyn MTLDevice>>;
pub type Queue = Retained<ProtocolObject<dyn MTLCommandQueue>>;
pub type Buffer = Retained<ProtocolObject<dyn MTLBuffer>>;
pub type Commands = Retained<ProtocolObject<dyn MTLCommandBuffer>>;
pub type Compute = Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>;
pub type Function = Retained<ProtocolObject<dyn MTLFunction>>;
pub type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;

pub const SHARED: MTLResourceOptions = MTLResourceOptions::StorageModeShared;
pub const UNTRACKED: MTLResourceOptions = MTLResourceOptions::HazardTrackingModeUntracked;

/// What a test works with.
pub struct Bench {
    pub device: Device,
    pub queue: Queue,
}

impl Bench {
    pub fn new() -> Self {
        // y[i] = 2·x[i]
        native::define("double", |launch: &mut Launch| {
            let x = launch.read::<f32>(0, 0..launch.grid[0])?;
            let y: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
            launch.write(1, 0, &y)
        });
        // y[i] = i
        native::define("count", |launch: &mut Launch| {
            let y: Vec<f32> = (0..launch.grid[0]).map(|i| i as f32).collect();
            launch.write(0, 0, &y)
        });
        let device = MTLCreateSystemDefaultDevice().expect("the software device");
        let queue = device.newCommandQueue().expect("a queue");
        Self { device, queue }
    }

    pub fn buffer(&self, floats: usize, options: MTLResourceOptions) -> Buffer {
        self.device.newBufferWithLength_options(4 * floats, options).expect("a buffer")
    }

    pub fn commands(&self) -> Commands {
        self.queue.commandBuffer().expect("a command buffer")
    }

    pub fn function(&self, name: &str) -> Function {
        let library = self.device.newDefaultLibrary().expect("the default library");
        library.newFunctionWithName(&NSString::from_str(name)).expect("a kernel")
    }

    pub fn pipeline(&self, name: &str) -> Pipeline {
        let function = self.function(name);
        self.device.newComputePipelineStateWithFunction_error(&function).expect("a pipeline")
    }

    /// Encodes `count` (one buffer) or `double` (two) over the first `floats`.
    pub fn dispatch(&self, encoder: &Compute, kernel: &str, buffers: &[(&Buffer, usize)], floats: usize) {
        encoder.setComputePipelineState(&self.pipeline(kernel));
        for (index, (buffer, offset)) in buffers.iter().enumerate() {
            // SAFETY: the offsets lie within the buffers.
            unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), *offset, index) };
        }
        let grid = MTLSize { width: floats, height: 1, depth: 1 };
        encoder.dispatchThreads_threadsPerThreadgroup(grid, MTLSize { width: 32, height: 1, depth: 1 });
    }

    pub fn serial(&self, commands: &Commands) -> Compute {
        commands.computeCommandEncoder().expect("an encoder")
    }

    pub fn concurrent(&self, commands: &Commands) -> Compute {
        let encoder = commands.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent);
        encoder.expect("an encoder")
    }
}

pub fn floats(buffer: &Buffer, count: usize) -> Vec<f32> {
    let start: NonNull<f32> = buffer.contents().cast();
    // SAFETY: the buffer has so many floats, and the test has waited for the device.
    (0..count).map(|i| unsafe { start.add(i).read() }).collect()
}

/// The ids of the rules that `body` breaks, each once, in the order of first appearance.
pub fn broken(body: impl FnOnce(&Bench)) -> Vec<&'static str> {
    let ((), violations) = capture(|| {
        autoreleasepool(|_| body(&Bench::new()));
        softmetal::quiesce();
    });
    let mut ids: Vec<&'static str> = Vec::new();
    for Violation { rule, .. } in violations {
        if !ids.contains(&rule) {
            ids.push(rule);
        }
    }
    ids
}
