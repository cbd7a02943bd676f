//! The questions, each a function that gives its answer as a line of text.

use std::ffi::c_void;
use std::ptr::NonNull;

use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::UnaryFn;
use metal_candle::tensor::{DType, HostTensor};
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSRange, NSString};
use objc2_metal::{
    MTLBlitCommandEncoder, MTLBuffer, MTLCommandBuffer, MTLCommandEncoder, MTLCommandQueue,
    MTLComputeCommandEncoder, MTLComputePipelineState, MTLCreateSystemDefaultDevice, MTLDevice, MTLLibrary,
    MTLResourceOptions, MTLSize,
};

type Answer = fn() -> String;

/// What is asked, and how.
pub(super) const QUESTIONS: &[(&str, Answer)] = &[
    ("a buffer of no bytes", buffer_of_no_bytes),
    ("setBytes of no bytes", set_no_bytes),
    ("a dispatch of no threadgroups", dispatch_of_nothing),
    ("a fill of no bytes", fill_of_nothing),
    ("a copy of 3 bytes at byte 1", copy_of_odd_bytes),
    ("a second encoder beside an open one", second_encoder),
    ("a commit with an open encoder", commit_with_an_open_encoder),
    ("an encoder after the commit", encoder_after_the_commit),
    ("a wait without a commit", wait_without_a_commit),
    ("a pipeline's widths", pipeline_widths),
    ("f32 to f16", to_f16),
    ("f32 to bf16", to_bf16),
    ("gelu in f16", gelu_in_f16),
    ("exp, log, rsqrt, tanh and sigmoid in f32", functions),
    #[cfg(mps)]
    ("MPS: a matrix beyond its buffer", mps::matrix_beyond_its_buffer),
    #[cfg(mps)]
    ("MPS: rows of half an element", mps::rows_of_half_an_element),
    #[cfg(mps)]
    ("MPS: a product in bf16", mps::product_in_bf16),
    #[cfg(mps)]
    ("MPS: beta 0 over NaN", mps::beta_zero_over_nan),
    #[cfg(mps)]
    ("MPS: softmax of a row of -inf", mps::softmax_of_a_masked_row),
    #[cfg(mps)]
    ("MPS: the greatest of equals and NaN", mps::greatest_of_equals_and_nan),
    #[cfg(mps)]
    ("MPS: bits kept by an f32 product", mps::bits_of_a_product),
    #[cfg(mps)]
    ("MPS: an f16 product beyond 65504", mps::product_beyond_f16),
];

type RawDevice = Retained<ProtocolObject<dyn MTLDevice>>;
type RawBuffer = Retained<ProtocolObject<dyn MTLBuffer>>;

const SHARED: MTLResourceOptions = MTLResourceOptions::StorageModeShared;
const ONE: MTLSize = MTLSize { width: 1, height: 1, depth: 1 };
const KERNEL: &str = "
    #include <metal_stdlib>
    using namespace metal;
    kernel void add_one(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
        x[i] = x[i] + 1.0f;
    }";

fn device() -> RawDevice {
    MTLCreateSystemDefaultDevice().unwrap()
}

fn buffer(device: &RawDevice, bytes: &[u8]) -> RawBuffer {
    let start = NonNull::from(bytes).cast::<c_void>();
    // SAFETY: the bytes are valid for their length, and copied.
    unsafe { device.newBufferWithBytes_length_options(start, bytes.len(), SHARED) }.unwrap()
}

fn commands(device: &RawDevice) -> Retained<ProtocolObject<dyn MTLCommandBuffer>> {
    device.newCommandQueue().unwrap().commandBuffer().unwrap()
}

fn pipeline(device: &RawDevice) -> Retained<ProtocolObject<dyn MTLComputePipelineState>> {
    let library = device.newLibraryWithSource_options_error(&NSString::from_str(KERNEL), None).unwrap();
    let function = library.newFunctionWithName(&NSString::from_str("add_one")).unwrap();
    device.newComputePipelineStateWithFunction_error(&function).unwrap()
}

/// Commits, waits, and says so.
fn accepted(commands: &ProtocolObject<dyn MTLCommandBuffer>) -> String {
    commands.commit();
    commands.waitUntilCompleted();
    format!("accepted, status {}", commands.status().0)
}

fn buffer_of_no_bytes() -> String {
    match device().newBufferWithLength_options(0, SHARED) {
        None => "none".to_owned(),
        Some(buffer) => format!("a buffer of {}", buffer.length()),
    }
}

fn set_no_bytes() -> String {
    let device = device();
    let commands = commands(&device);
    let encoder = commands.computeCommandEncoder().unwrap();
    // SAFETY: no byte is read from the pointer.
    unsafe { encoder.setBytes_length_atIndex(NonNull::<c_void>::dangling(), 0, 1) };
    encoder.endEncoding();
    accepted(&commands)
}

fn dispatch_of_nothing() -> String {
    let device = device();
    let x = buffer(&device, &[0; 4]);
    let commands = commands(&device);
    let encoder = commands.computeCommandEncoder().unwrap();
    encoder.setComputePipelineState(&pipeline(&device));
    // SAFETY: the buffer is what the kernel takes.
    unsafe { encoder.setBuffer_offset_atIndex(Some(&x), 0, 0) };
    encoder.dispatchThreadgroups_threadsPerThreadgroup(MTLSize { width: 0, ..ONE }, ONE);
    encoder.endEncoding();
    accepted(&commands)
}

fn fill_of_nothing() -> String {
    let device = device();
    let x = buffer(&device, &[0; 4]);
    let commands = commands(&device);
    let encoder = commands.blitCommandEncoder().unwrap();
    encoder.fillBuffer_range_value(&x, NSRange::new(0, 0), 1);
    encoder.endEncoding();
    accepted(&commands)
}

fn copy_of_odd_bytes() -> String {
    let device = device();
    let (from, to) = (buffer(&device, &[1; 8]), buffer(&device, &[0; 8]));
    let commands = commands(&device);
    let encoder = commands.blitCommandEncoder().unwrap();
    // SAFETY: the bytes lie within both buffers.
    unsafe {
        encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(&from, 1, &to, 1, 3);
    }
    encoder.endEncoding();
    accepted(&commands)
}

fn second_encoder() -> String {
    let commands = commands(&device());
    let first = commands.computeCommandEncoder().unwrap();
    let second = commands.computeCommandEncoder();
    let answer = if second.is_some() { "given" } else { "none" };
    second.iter().for_each(|encoder| encoder.endEncoding());
    first.endEncoding();
    answer.to_owned()
}

fn commit_with_an_open_encoder() -> String {
    let commands = commands(&device());
    let encoder = commands.computeCommandEncoder().unwrap();
    let answer = accepted(&commands);
    encoder.endEncoding();
    answer
}

fn encoder_after_the_commit() -> String {
    let commands = commands(&device());
    accepted(&commands);
    match commands.computeCommandEncoder() {
        None => "none".to_owned(),
        Some(encoder) => {
            encoder.endEncoding();
            "given".to_owned()
        }
    }
}

/// A wait that never ends is an answer too: the process gives up after two seconds.
fn wait_without_a_commit() -> String {
    let (done, waited) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        commands(&device()).waitUntilCompleted();
        done.send(()).ok();
    });
    match waited.recv_timeout(std::time::Duration::from_secs(2)) {
        Ok(()) => "returns".to_owned(),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => "waits for ever".to_owned(),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => "ends the thread".to_owned(),
    }
}

fn pipeline_widths() -> String {
    let pipeline = pipeline(&device());
    format!(
        "{} lanes, {} threads, {} bytes of threadgroup memory",
        pipeline.threadExecutionWidth(),
        pipeline.maxTotalThreadsPerThreadgroup(),
        pipeline.staticThreadgroupMemoryLength()
    )
}

/// The bits of what kernels of ours give for these numbers.
fn bits(values: &[f32], f: impl FnOnce(&LazyTensor) -> LazyTensor) -> String {
    let device = Device::metal_with(Preference::Metal).unwrap();
    let graph = Graph::new();
    let x = graph.constant(HostTensor::from_slice(values, [values.len()]).unwrap());
    let y = device.eval(&[f(&x)]).unwrap().remove(0);
    let size = y.dtype().size();
    let word = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    y.bytes().chunks(size).map(word).collect::<Vec<_>>().join(" ")
}

/// Halfway cases both ways, the least normal and subnormal numbers and half of that, and the edge of the range.
const ROUNDED: [f32; 12] = [
    1.0 + 1.0 / 2048.0,
    1.0 + 3.0 / 2048.0,
    6.103_515_6e-5,
    5.960_464_5e-8,
    2.980_232_2e-8,
    3.1e-8,
    65_519.0,
    65_520.0,
    -70_000.0,
    1.0 + 1.0 / 256.0,
    1.0 + 3.0 / 256.0,
    f32::NAN,
];

fn to_f16() -> String {
    bits(&ROUNDED, |x| x.cast(DType::F16).unwrap())
}

fn to_bf16() -> String {
    bits(&ROUNDED, |x| x.cast(DType::BF16).unwrap())
}

fn gelu_in_f16() -> String {
    bits(&[2.0, -0.5, 0.1, 1e-4], |x| x.cast(DType::F16).unwrap().gelu().unwrap())
}

fn functions() -> String {
    let values = [0.7, 1.0, 3.3, 17.0];
    let functions = [UnaryFn::Exp, UnaryFn::Log, UnaryFn::Rsqrt, UnaryFn::Tanh, UnaryFn::Sigmoid];
    functions.map(|function| bits(&values, |x| x.unary(function).unwrap())).join(" | ")
}

#[cfg(mps)]
mod mps {
    use metal_candle::ops::{MatMul, Op, Softmax, TopK};
    use objc2::AnyThread;
    use objc2_metal_performance_shaders::{
        MPSDataType, MPSMatrix, MPSMatrixDescriptor, MPSMatrixMultiplication,
    };

    use super::{
        DType, Device, Graph, HostTensor, MTLBuffer, Preference, RawBuffer, RawDevice, Retained, accepted,
        buffer, commands, device,
    };

    fn matrix(
        buffer: &RawBuffer,
        (rows, columns): (usize, usize),
        row_bytes: usize,
        dtype: MPSDataType,
    ) -> Retained<MPSMatrix> {
        // SAFETY: what is not within the rules is what is asked about; it ends this process at the worst.
        unsafe {
            let descriptor = MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(
                rows, columns, row_bytes, dtype,
            );
            MPSMatrix::initWithBuffer_descriptor(MPSMatrix::alloc(), buffer, &descriptor)
        }
    }

    /// A product of square matrices of n rows in buffers of so many bytes; C holds these bytes before.
    fn product(
        device: &RawDevice,
        n: usize,
        dtype: MPSDataType,
        size: usize,
        c: &[u8],
    ) -> (String, RawBuffer) {
        let [a, b] = [0, 1].map(|_| buffer(device, &vec![0; c.len()]));
        let c = buffer(device, c);
        let commands = commands(device);
        let [left, right, result] = [&a, &b, &c].map(|buffer| matrix(buffer, (n, n), n * size, dtype));
        // SAFETY: no encoder is open; the rest is what is asked about.
        unsafe {
            let kernel = MPSMatrixMultiplication::initWithDevice_resultRows_resultColumns_interiorColumns(
                MPSMatrixMultiplication::alloc(),
                device,
                n,
                n,
                n,
            );
            kernel
                .encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(&commands, &left, &right, &result);
        }
        (accepted(&commands), c)
    }

    pub(super) fn matrix_beyond_its_buffer() -> String {
        product(&device(), 8, MPSDataType::Float32, 4, &[0; 64]).0
    }

    pub(super) fn rows_of_half_an_element() -> String {
        let device = device();
        matrix(&buffer(&device, &[0; 64]), (2, 2), 10, MPSDataType::Float32);
        "accepted".to_owned()
    }

    pub(super) fn product_in_bf16() -> String {
        product(&device(), 4, MPSDataType::BFloat16, 2, &[0; 32]).0
    }

    pub(super) fn beta_zero_over_nan() -> String {
        let nan: Vec<u8> = [f32::NAN; 16].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_, c) = product(&device(), 4, MPSDataType::Float32, 4, &nan);
        // SAFETY: the buffer holds 16 numbers, and the work is over.
        let values = unsafe { std::slice::from_raw_parts(c.contents().as_ptr().cast::<f32>(), 16) };
        format!("{values:?}")
    }

    fn run(op: impl Into<Op>, inputs: &[HostTensor]) -> Vec<HostTensor> {
        let device = Device::metal_with(Preference::Mps).unwrap();
        let graph = Graph::new();
        let inputs: Vec<_> = inputs.iter().map(|input| graph.constant(input.clone())).collect();
        let mut outputs = graph.record(op.into(), &inputs.iter().collect::<Vec<_>>()).unwrap();
        let results = outputs.len();
        outputs.extend(inputs);
        let mut tensors = device.eval(&outputs).unwrap();
        tensors.truncate(results);
        tensors
    }

    fn row(values: &[f32]) -> HostTensor {
        HostTensor::from_slice(values, [1, values.len()]).unwrap()
    }

    pub(super) fn softmax_of_a_masked_row() -> String {
        format!("{:?}", run(Softmax { axis: 1 }, &[row(&[f32::NEG_INFINITY; 4])])[0].to_f64())
    }

    pub(super) fn greatest_of_equals_and_nan() -> String {
        let found = run(TopK { k: 3 }, &[row(&[1.0, 2.0, f32::NAN, 2.0, 0.0])]);
        format!("{:?} at {:?}", found[0].to_f64(), found[1].as_slice::<u32>().unwrap())
    }

    /// A single product of two numbers with many bits each: how many of the result's are right.
    pub(super) fn bits_of_a_product() -> String {
        let n = 64;
        let (x, y) = (1.0 + 1.0 / 8192.0 + 1.0 / 4_194_304.0, 1.0 + 1.0 / 16_384.0 + 1.0 / 8_388_608.0);
        let filled = |value: f32| HostTensor::from_slice(&vec![value; n * n], [n, n]).unwrap();
        let found = run(MatMul::new(false, false), &[filled(x), filled(y)])[0].to_f64();
        let exact = n as f64 * f64::from(x) * f64::from(y);
        let worst = found.iter().map(|value| ((value - exact) / exact).abs()).fold(0.0, f64::max);
        // Sums differ in their last bits; a product in half the bits loses ten of them.
        (if worst < 2e-6 { "all of f32" } else { "fewer" }).to_owned()
    }

    pub(super) fn product_beyond_f16() -> String {
        let filled =
            |shape: [usize; 2]| HostTensor::from_slice(&[256.0_f32; 4], shape).unwrap().cast(DType::F16);
        format!("{:?}", run(MatMul::new(false, false), &[filled([1, 4]), filled([4, 1])])[0].to_f64())
    }
}
