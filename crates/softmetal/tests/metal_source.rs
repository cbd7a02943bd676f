//! Kernels of Metal source through the API: values, function constants, errors, and what kernels do wrong.
#![allow(missing_docs)]

mod bench;

use std::ffi::c_void;
use std::ptr::NonNull;

use bench::{Bench, Buffer, Pipeline, SHARED, UNTRACKED, broken, floats};
use objc2::rc::autoreleasepool;
use objc2_foundation::{NSRange, NSString};
use objc2_metal::*;

const SOURCE: &str = r#"
#include <metal_stdlib>
using namespace metal;

constant bool twice [[function_constant(0)]];

// y[row] = softmax(x[row]); one threadgroup a row.
kernel void softmax(device const float* x [[buffer(0)]],
                    device float* y [[buffer(1)]],
                    constant uint& n [[buffer(2)]],
                    uint row [[threadgroup_position_in_grid]],
                    uint lane [[thread_position_in_threadgroup]],
                    uint width [[threads_per_threadgroup]]) {
    threadgroup float partial[64];
    device const float* from = x + row * n;
    float most = -INFINITY;
    for (uint i = lane; i < n; i += width) most = max(most, from[i]);
    partial[lane] = most;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < width; i++) most = max(most, partial[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0;
    for (uint i = lane; i < n; i += width) sum += exp(from[i] - most);
    partial[lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = 0;
    for (uint i = 0; i < width; i++) sum += partial[i];
    for (uint i = lane; i < n; i += width) y[row * n + i] = exp(from[i] - most) / sum;
}

kernel void scaled(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]]) {
    y[i] = twice ? 2 * x[i] : x[i];
}

kernel void total(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) {
    float sum = simd_sum(x[i]);
    if (i == 0) y[0] = sum;
}

kernel void off_by_one(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
    y[i] = x[i + 1];
}

// A threadgroup turns its values round; the barrier between write and read is left out.
kernel void turned(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]]) {
    threadgroup float all[64];
    all[i] = x[i];
    y[i] = all[63 - i];
}

kernel void divergent(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    if (i < 32) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = i;
}

template <typename T, int N = 2>
[[kernel, max_total_threads_per_threadgroup(N * 32)]] void limited(
    device T* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
template [[host_name("limited")]] [[kernel]] decltype(limited<float>) limited<float>;

kernel void together(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = i;
}
"#;

fn size(width: usize) -> MTLSize {
    MTLSize { width, height: 1, depth: 1 }
}

fn pipeline(bench: &Bench, name: &str, twice: Option<bool>) -> Pipeline {
    let library = bench.device.newLibraryWithSource_options_error(&NSString::from_str(SOURCE), None);
    let library = library.expect("the source compiles");
    let name = NSString::from_str(name);
    let function = match twice {
        None => library.newFunctionWithName(&name).expect("a kernel"),
        Some(value) => {
            let constants = MTLFunctionConstantValues::new();
            let value = NonNull::from(&value).cast::<c_void>();
            // SAFETY: the value is a bool, as is said.
            unsafe { constants.setConstantValue_type_atIndex(value, MTLDataType::Bool, 0) };
            library.newFunctionWithName_constantValues_error(&name, &constants).expect("a kernel")
        }
    };
    bench.device.newComputePipelineStateWithFunction_error(&function).expect("a pipeline")
}

/// Runs a kernel with buffers and, at the index after them, a number.
fn run(
    bench: &Bench,
    pipeline: &Pipeline,
    buffers: &[&Buffer],
    number: Option<u32>,
    groups: usize,
    width: usize,
) {
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    encoder.setComputePipelineState(pipeline);
    for (index, buffer) in buffers.iter().enumerate() {
        // SAFETY: the offset lies within the buffer.
        unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), 0, index) };
    }
    if let Some(number) = number {
        // SAFETY: four bytes are given.
        unsafe { encoder.setBytes_length_atIndex(NonNull::from(&number).cast(), 4, buffers.len()) };
    }
    encoder.dispatchThreadgroups_threadsPerThreadgroup(size(groups), size(width));
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

fn filled(bench: &Bench, values: &[f32]) -> Buffer {
    let buffer = bench.buffer(values.len(), SHARED);
    let start = buffer.contents().cast::<f32>();
    for (index, &value) in values.iter().enumerate() {
        // SAFETY: the buffer has as many floats.
        unsafe { start.add(index).write(value) };
    }
    buffer
}

#[test]
fn a_softmax_of_every_row() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let (rows, n) = (5, 150);
        let x: Vec<f32> = (0..rows * n).map(|i| ((i * 7919) % 101) as f32 / 10.0 - 5.0).collect();
        let (from, to) = (filled(&bench, &x), bench.buffer(rows * n, SHARED));
        run(&bench, &pipeline(&bench, "softmax", None), &[&from, &to], Some(n as u32), rows, 64);
        let y = floats(&to, rows * n);
        for row in 0..rows {
            let span = row * n..(row + 1) * n;
            let e: Vec<f64> = x[span.clone()].iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = e.iter().sum();
            for (found, expected) in y[span].iter().zip(&e) {
                // f32 exponentials and a sum of 150 terms: a few units in the last place of values up to 0.1.
                assert!((f64::from(*found) - expected / sum).abs() < 1e-7, "{found} {}", expected / sum);
            }
        }
    });
}

#[test]
fn function_constants_and_simd_groups() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let (from, to) = (filled(&bench, &x), bench.buffer(64, SHARED));
        run(&bench, &pipeline(&bench, "scaled", Some(true)), &[&from, &to], None, 2, 32);
        assert_eq!(floats(&to, 64)[63], 126.0);
        run(&bench, &pipeline(&bench, "scaled", Some(false)), &[&from, &to], None, 2, 32);
        assert_eq!(floats(&to, 64)[63], 63.0);
        run(&bench, &pipeline(&bench, "total", None), &[&from, &to], None, 1, 32);
        assert_eq!(floats(&to, 1)[0], 496.0);
    });
}

#[test]
fn function_constants_by_name_and_by_range() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let library = bench.device.newLibraryWithSource_options_error(&NSString::from_str(SOURCE), None);
        let library = library.expect("the source compiles");
        let (from, to) = (filled(&bench, &[3.0; 32]), bench.buffer(32, SHARED));
        let last = |set: &dyn Fn(&MTLFunctionConstantValues)| {
            let constants = MTLFunctionConstantValues::new();
            set(&constants);
            let name = NSString::from_str("scaled");
            let function = library.newFunctionWithName_constantValues_error(&name, &constants);
            let function = function.expect("a kernel");
            let pipeline = bench.device.newComputePipelineStateWithFunction_error(&function);
            run(&bench, &pipeline.expect("a pipeline"), &[&from, &to], None, 1, 32);
            floats(&to, 32)[31]
        };
        let yes = NonNull::from(&[true, true]).cast::<c_void>();
        let named = |constants: &MTLFunctionConstantValues, name: &str| {
            // SAFETY: the values are bools, as is said.
            unsafe {
                constants.setConstantValue_type_withName(yes, MTLDataType::Bool, &NSString::from_str(name));
            }
        };
        let range = |constants: &MTLFunctionConstantValues, first: usize| {
            // SAFETY: there are two bools.
            unsafe {
                constants.setConstantValues_type_withRange(yes, MTLDataType::Bool, NSRange::new(first, 2));
            }
        };
        assert_eq!(last(&|constants| named(constants, "twice")), 6.0);
        assert_eq!(last(&|constants| named(constants, "thrice")), 3.0, "there is no such constant");
        assert_eq!(last(&|constants| range(constants, 0)), 6.0);
        assert_eq!(last(&|constants| range(constants, 1)), 3.0);
        let reset = |constants: &MTLFunctionConstantValues| {
            named(constants, "twice");
            constants.reset();
        };
        assert_eq!(last(&reset), 3.0);
    });
}

#[test]
fn a_source_that_does_not_compile_is_told_with_line_and_construct() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let source = SOURCE.replace("y[i] = x[i + 1];", "y[i] = z[i + 1];");
        let line = source.lines().position(|line| line.contains("z[i + 1]")).expect("planted") + 1;
        let result = bench.device.newLibraryWithSource_options_error(&NSString::from_str(&source), None);
        let text = result.expect_err("planted").localizedDescription().to_string();
        assert!(text.contains(&format!(":{line}")) && text.contains("off_by_one"), "{text}");
    });
}

#[test]
fn a_kernel_beyond_its_buffer_is_named() {
    let plant = |floats: usize| {
        broken(move |bench| {
            let (x, y) = (filled(bench, &vec![1.0; floats]), bench.buffer(64, SHARED));
            run(bench, &pipeline(bench, "off_by_one", None), &[&x, &y], None, 2, 32);
        })
    };
    assert_eq!(plant(64), ["kernel-out-of-range"]);
    assert_eq!(plant(65), Vec::<&str>::new());
}

#[test]
fn a_barrier_that_not_all_threads_reach() {
    let plant = |name: &'static str| {
        broken(move |bench| {
            let y = bench.buffer(64, SHARED);
            run(bench, &pipeline(bench, name, None), &[&y], None, 1, 64);
        })
    };
    assert_eq!(plant("divergent"), ["divergent-barrier"]);
    assert_eq!(plant("together"), Vec::<&str>::new());
}

/// A kernel's source, a descriptor, or both say how many threads a threadgroup has at the most.
#[test]
fn the_lower_limit_of_threads_holds() {
    let limit = |asked: usize| {
        autoreleasepool(|_| {
            let bench = Bench::new();
            let library = bench.device.newLibraryWithSource_options_error(&NSString::from_str(SOURCE), None);
            let function = library.expect("a library").newFunctionWithName(&NSString::from_str("limited"));
            let descriptor = MTLComputePipelineDescriptor::new();
            descriptor.setComputeFunction(function.as_deref());
            descriptor.setMaxTotalThreadsPerThreadgroup(asked);
            let pipeline = bench.device.newComputePipelineStateWithDescriptor_options_reflection_error(
                &descriptor,
                MTLPipelineOption::empty(),
                None,
            );
            pipeline.expect("a pipeline").maxTotalThreadsPerThreadgroup()
        })
    };
    assert_eq!([0, 32, 64, 128].map(limit), [64, 32, 64, 64]);
    let plant = |width: usize| {
        broken(move |bench| {
            let y = bench.buffer(96, SHARED);
            run(bench, &pipeline(bench, "limited", None), &[&y], None, 1, width);
        })
    };
    assert_eq!(plant(65), ["threads-per-threadgroup"]);
    assert_eq!(plant(64), Vec::<&str>::new());
}

/// Without the barrier some order of threads reads what is not written yet, which is a NaN.
#[test]
fn a_missing_barrier_shows_within_five_seeds() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let right: Vec<f32> = x.iter().rev().copied().collect();
        let shows = (0..5).any(|_| {
            let (from, to) = (filled(&bench, &x), bench.buffer(64, SHARED));
            run(&bench, &pipeline(&bench, "turned", None), &[&from, &to], None, 1, 64);
            floats(&to, 64) != right
        });
        assert!(shows);
    });
}

/// Kernels' own accesses are what the order of dispatches is checked by: halves of a buffer do not conflict.
#[test]
fn dispatches_conflict_by_what_they_touch() {
    let plant = |offset: usize| {
        broken(move |bench| {
            let (x, y) = (filled(bench, &[1.0; 64]), bench.buffer(64, UNTRACKED));
            let scaled = pipeline(bench, "scaled", Some(true));
            let commands = bench.commands();
            let encoder = bench.concurrent(&commands);
            encoder.setComputePipelineState(&scaled);
            for at in [0, offset] {
                // SAFETY: the offsets lie within the buffers.
                unsafe {
                    encoder.setBuffer_offset_atIndex(Some(&x), 0, 0);
                    encoder.setBuffer_offset_atIndex(Some(&y), at, 1);
                }
                encoder.dispatchThreads_threadsPerThreadgroup(size(32), size(32));
            }
            encoder.endEncoding();
            commands.commit();
            commands.waitUntilCompleted();
        })
    };
    assert_eq!(plant(128), Vec::<&str>::new());
    assert_eq!(plant(124), ["order-within-encoder"]);
}
