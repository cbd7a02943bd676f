//! MPS objects live as long as they are owned. Alone in its process, since it counts all objects of it.
#![allow(missing_docs)]

mod bench;

use bench::{Bench, Buffer, SHARED, floats};
use objc2::AnyThread;
use objc2_foundation::NSRange;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use softmetal::{counters, leaks};

fn product(bench: &Bench, forget: bool) {
    let [x, y]: [Buffer; 2] = std::array::from_fn(|_| bench.buffer(16, SHARED));
    let commands = bench.commands();
    let blit = commands.blitCommandEncoder().expect("an encoder");
    blit.fillBuffer_range_value(&x, NSRange::new(0, 64), 0);
    blit.endEncoding();
    // SAFETY: the classes check what they are given.
    unsafe {
        let product = MPSMatrixMultiplication::initWithDevice_resultRows_resultColumns_interiorColumns(
            MPSMatrixMultiplication::alloc(),
            &bench.device,
            4,
            4,
            4,
        );
        let [a, b] = [&x, &y].map(|buffer| {
            let descriptor = MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(
                4,
                4,
                16,
                MPSDataType::Float32,
            );
            MPSMatrix::initWithBuffer_descriptor(MPSMatrix::alloc(), buffer, &descriptor)
        });
        product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(&commands, &a, &a, &b);
        if forget {
            std::mem::forget(b);
        }
    }
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(floats(&y, 1), [0.0]);
}

#[test]
fn kernels_and_matrices_do_not_leak() {
    for round in 0..100 {
        let (_, left) = leaks(|| product(&Bench::new(), false));
        assert_eq!(left, [], "round {round}");
        let (_, left) = leaks(|| product(&Bench::new(), true));
        // The matrix keeps its buffer.
        let classes: Vec<&str> = left.iter().map(|leak| leak.class.as_str()).collect();
        assert_eq!(classes, ["SoftMTLBuffer", "MPSMatrix"], "round {round}");
    }
    assert_eq!(counters::take().commands.get("MPSMatrixMultiplication"), Some(&200));
}
