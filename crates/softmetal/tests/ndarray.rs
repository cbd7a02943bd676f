//! MPSNDArray and its product: values, views, and its two ways into a command buffer.
#![allow(missing_docs)]

mod bench;

use std::ptr::NonNull;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use objc2::AnyThread;
use objc2::rc::{Retained, autoreleasepool};
use objc2_foundation::NSArray;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;

/// An array in a buffer; `lengths` has the fastest dimension first.
fn array(buffer: &Buffer, lengths: &[usize], transposed: bool) -> Retained<MPSNDArray> {
    // SAFETY: the classes check what they are given.
    unsafe {
        let sizes = NonNull::new(lengths.as_ptr().cast_mut()).expect("lengths");
        let describe = || {
            let descriptor = MPSNDArrayDescriptor::descriptorWithDataType_dimensionCount_dimensionSizes(
                MPSDataType::Float32,
                lengths.len(),
                sizes,
            );
            descriptor.setPreferPackedRows(true);
            descriptor
        };
        let whole = MPSNDArray::initWithBuffer_offset_descriptor(MPSNDArray::alloc(), buffer, 0, &describe());
        if !transposed {
            return whole;
        }
        let descriptor = whole.descriptor();
        descriptor.transposeDimension_withDimension(0, 1);
        whole.arrayViewWithDescriptor(&descriptor).expect("a view")
    }
}

fn filled(bench: &Bench, count: usize, seed: usize, options: MTLResourceOptions) -> (Buffer, Vec<f32>) {
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + seed * 11) % 19) as f32 / 4.0 - 2.0).collect();
    let buffer = bench.buffer(count, options);
    let start = buffer.contents().cast::<f32>();
    for (index, &value) in values.iter().enumerate() {
        // SAFETY: the buffer has as many floats.
        unsafe { start.add(index).write(value) };
    }
    (buffer, values)
}

fn kernel(bench: &Bench) -> Retained<MPSNDArrayMatrixMultiplication> {
    // SAFETY: the class checks what it is given.
    unsafe {
        MPSNDArrayMatrixMultiplication::initWithDevice_sourceCount(
            MPSNDArrayMatrixMultiplication::alloc(),
            &bench.device,
            2,
        )
    }
}

#[test]
fn batched_products_with_transposed_views() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        for (round, transposed) in [false, true, false, true].into_iter().enumerate() {
            let (batch, m, n, k) = (1 + round, 3 + round, 5, 4);
            let (a, x) = filled(&bench, batch * m * k, 1, SHARED);
            let (b, y) = filled(&bench, batch * k * n, 2, SHARED);
            let c = bench.buffer(batch * m * n, SHARED);
            let left = array(&a, &[k, m, batch], false);
            let right =
                if transposed { array(&b, &[k, n, batch], true) } else { array(&b, &[n, k, batch], false) };
            let product = kernel(&bench);
            let commands = bench.commands();
            // SAFETY: the class checks what it is given.
            unsafe {
                product.setAlpha(0.5);
                product.encodeToCommandBuffer_sourceArrays_destinationArray(
                    &commands,
                    &NSArray::from_retained_slice(&[left, right]),
                    &array(&c, &[n, m, batch], false),
                );
            }
            commands.commit();
            commands.waitUntilCompleted();
            let found = floats(&c, batch * m * n);
            for (index, &value) in found.iter().enumerate() {
                let (of, row, column) = (index / (m * n), index / n % m, index % n);
                let sum: f64 = (0..k)
                    .map(|l| {
                        let at = if transposed { column * k + l } else { l * n + column };
                        f64::from(x[(of * m + row) * k + l]) * f64::from(y[of * k * n + at])
                    })
                    .sum();
                assert!((f64::from(value) - 0.5 * sum).abs() < 1e-6, "round {round}, {index}");
            }
        }
    });
}

/// `count` writes the left matrix in a concurrent encoder, the product is encoded into the same one.
fn in_encoder(bench: &Bench, barrier: bool) {
    let (a, _) = filled(bench, 16, 1, UNTRACKED);
    let (b, _) = filled(bench, 16, 2, UNTRACKED);
    let c = bench.buffer(16, UNTRACKED);
    let commands = bench.commands();
    let encoder = bench.concurrent(&commands);
    bench.dispatch(&encoder, "count", &[(&a, 0)], 16);
    if barrier {
        encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
    }
    let sources = [&a, &b].map(|buffer| array(buffer, &[4, 4], false));
    // SAFETY: the class checks what it is given.
    unsafe {
        kernel(bench).encodeToCommandEncoder_commandBuffer_sourceArrays_destinationArray(
            Some(&encoder),
            &commands,
            &NSArray::from_retained_slice(&sources),
            &array(&c, &[4, 4], false),
        );
    }
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn the_encoder_form_needs_a_barrier_and_no_events() {
    assert_eq!(broken(|bench| in_encoder(bench, false)), ["order-within-encoder"]);
    assert!(broken(|bench| in_encoder(bench, true)).is_empty());
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let product = |interior: usize| {
        broken(move |bench| {
            let (a, _) = filled(bench, 16, 1, SHARED);
            let (b, _) = filled(bench, 16, 2, SHARED);
            let c = bench.buffer(16, SHARED);
            let commands = bench.commands();
            let sources = [array(&a, &[4, 4], false), array(&b, &[4, interior], false)];
            // SAFETY: the class checks what it is given.
            unsafe {
                kernel(bench).encodeToCommandBuffer_sourceArrays_destinationArray(
                    &commands,
                    &NSArray::from_retained_slice(&sources),
                    &array(&c, &[4, 4], false),
                );
            }
        })
    };
    assert_eq!(product(3), ["mps-ndarray-product-interior"]);
    assert_eq!(product(4), Vec::<&str>::new());
}
