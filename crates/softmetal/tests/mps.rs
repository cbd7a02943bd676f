//! The MPS classes through objc2-metal-performance-shaders: values, refusals, and their place in the order of commands.
#![allow(missing_docs)]

mod bench;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use objc2::AnyThread;
use objc2::rc::{Retained, autoreleasepool};
use objc2_metal::*;
use objc2_metal_performance_shaders::*;

/// Numbers in (-1, 1) that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }
}

fn filled(bench: &Bench, values: &[f32], options: MTLResourceOptions) -> Buffer {
    let buffer = bench.buffer(values.len(), options);
    let start = buffer.contents().cast::<f32>();
    for (index, &value) in values.iter().enumerate() {
        // SAFETY: the buffer has as many floats, and the device does not use it yet.
        unsafe { start.add(index).write(value) };
    }
    buffer
}

/// Rows and columns at an offset in floats, rows `stride` floats apart.
fn matrix(buffer: &Buffer, offset: usize, rows: usize, columns: usize, stride: usize) -> Retained<MPSMatrix> {
    // SAFETY: the classes check what they are given.
    unsafe {
        let descriptor = MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(
            rows,
            columns,
            4 * stride,
            MPSDataType::Float32,
        );
        MPSMatrix::initWithBuffer_offset_descriptor(MPSMatrix::alloc(), buffer, 4 * offset, &descriptor)
    }
}

fn run(bench: &Bench, encode: impl FnOnce(&bench::Commands)) {
    let commands = bench.commands();
    encode(&commands);
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(commands.status(), MTLCommandBufferStatus::Completed, "{:?}", commands.error());
}

#[test]
fn products_of_any_shape_stride_and_factor() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let r = &mut Random(7);
        for round in 0..40 {
            let [m, n, k] = std::array::from_fn(|_| 1 + r.below(17));
            let (ta, tb) = (r.below(2) == 1, r.below(2) == 1);
            let (alpha, beta) = ([1.0, 0.5, -2.0][r.below(3)], [0.0, 1.0, 0.25][r.below(3)]);
            let (pad, offset) = (r.below(4), 4 * r.below(3));
            let shape =
                |rows, columns, swapped: bool| if swapped { (columns, rows) } else { (rows, columns) };
            let ((ar, ac), (br, bc)) = (shape(m, k, ta), shape(k, n, tb));
            let a = r.floats(offset + ar * (ac + pad));
            let b = r.floats(offset + br * (bc + pad));
            let c = r.floats(offset + m * (n + pad));
            let [x, y, z] = [&a, &b, &c].map(|values| filled(&bench, values, SHARED));
            run(&bench, |commands| {
                // SAFETY: the classes check what they are given.
                unsafe {
                    let product = MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
                        MPSMatrixMultiplication::alloc(), &bench.device, ta, tb, m, n, k, alpha, beta,
                    );
                    product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
                        commands,
                        &matrix(&x, offset, ar, ac, ac + pad),
                        &matrix(&y, offset, br, bc, bc + pad),
                        &matrix(&z, offset, m, n, n + pad),
                    );
                }
            });
            let found = floats(&z, c.len());
            for i in 0..m {
                for j in 0..n {
                    let at = |values: &[f32], row: usize, column: usize, stride: usize| {
                        f64::from(values[offset + row * stride + column])
                    };
                    let sum: f64 = (0..k)
                        .map(|l| {
                            let left = if ta { at(&a, l, i, ac + pad) } else { at(&a, i, l, ac + pad) };
                            let right = if tb { at(&b, j, l, bc + pad) } else { at(&b, l, j, bc + pad) };
                            left * right
                        })
                        .sum();
                    let old = if beta == 0.0 { 0.0 } else { beta * at(&c, i, j, n + pad) };
                    let place = offset + i * (n + pad) + j;
                    let error = (f64::from(found[place]) - (alpha * sum + old)).abs();
                    // One rounding to f32 of a value of magnitude up to 40.
                    assert!(error < 3e-6, "round {round}, {m}x{n}x{k}: {error}");
                }
            }
            // Nothing between the rows is written.
            for row in 0..m {
                let gap = offset + row * (n + pad) + n..offset + (row + 1) * (n + pad);
                assert_eq!(found[gap.clone()], c[gap]);
            }
        }
    });
}

#[test]
fn matrix_times_vector() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let r = &mut Random(9);
        let (rows, columns) = (5, 7);
        let (a, v) = (r.floats(rows * columns), r.floats(columns));
        let (x, input, result) =
            (filled(&bench, &a, SHARED), filled(&bench, &v, SHARED), bench.buffer(rows, SHARED));
        // SAFETY: the classes check what they are given.
        let vector = |buffer: &Buffer, length: usize| unsafe {
            let descriptor =
                MPSVectorDescriptor::vectorDescriptorWithLength_dataType(length, MPSDataType::Float32);
            MPSVector::initWithBuffer_descriptor(MPSVector::alloc(), buffer, &descriptor)
        };
        run(&bench, |commands| {
            // SAFETY: as above.
            unsafe {
                let product = MPSMatrixVectorMultiplication::initWithDevice_rows_columns(
                    MPSMatrixVectorMultiplication::alloc(),
                    &bench.device,
                    rows,
                    columns,
                );
                product.encodeToCommandBuffer_inputMatrix_inputVector_resultVector(
                    commands,
                    &matrix(&x, 0, rows, columns, columns),
                    &vector(&input, columns),
                    &vector(&result, rows),
                );
            }
        });
        for (row, found) in floats(&result, rows).into_iter().enumerate() {
            let sum: f64 = (0..columns).map(|c| f64::from(a[row * columns + c]) * f64::from(v[c])).sum();
            assert!((f64::from(found) - sum).abs() < 1e-6, "{found} {sum}");
        }
    });
}

#[test]
fn softmax_log_softmax_and_their_gradients() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let r = &mut Random(11);
        let (rows, columns) = (3, 6);
        let (x, dy) = (r.floats(rows * columns), r.floats(rows * columns));
        let (input, upstream) = (filled(&bench, &x, SHARED), filled(&bench, &dy, SHARED));
        let of = |buffer: &Buffer| matrix(buffer, 0, rows, columns, columns);
        let outputs: [Buffer; 4] = std::array::from_fn(|_| bench.buffer(rows * columns, SHARED));
        run(&bench, |commands| {
            // SAFETY: the classes check what they are given. A log-softmax is a softmax.
            unsafe {
                let plain = MPSMatrixSoftMax::initWithDevice(MPSMatrixSoftMax::alloc(), &bench.device);
                let log = MPSMatrixLogSoftMax::initWithDevice(MPSMatrixLogSoftMax::alloc(), &bench.device);
                let softmaxes: [&MPSMatrixSoftMax; 2] = [&plain, &log];
                for (softmax, output) in softmaxes.into_iter().zip(&outputs) {
                    softmax.encodeToCommandBuffer_inputMatrix_resultMatrix(
                        commands,
                        &of(&input),
                        &of(output),
                    );
                }
                let plain = MPSMatrixSoftMaxGradient::initWithDevice(
                    MPSMatrixSoftMaxGradient::alloc(),
                    &bench.device,
                );
                let log = MPSMatrixLogSoftMaxGradient::initWithDevice(
                    MPSMatrixLogSoftMaxGradient::alloc(),
                    &bench.device,
                );
                let gradients: [&MPSMatrixSoftMaxGradient; 2] = [&plain, &log];
                for (index, gradient) in gradients.into_iter().enumerate() {
                    gradient.encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                        commands,
                        &of(&upstream),
                        &of(&outputs[index]),
                        &of(&outputs[2 + index]),
                    );
                }
            }
        });
        let [y, log_y, dx, log_dx] = outputs.each_ref().map(|buffer| floats(buffer, rows * columns));
        for row in 0..rows {
            let span = row * columns..(row + 1) * columns;
            let exponentials: Vec<f64> = x[span.clone()].iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            let p: Vec<f64> = exponentials.iter().map(|e| e / sum).collect();
            let d: Vec<f64> = dy[span.clone()].iter().map(|&d| f64::from(d)).collect();
            let inner: f64 = p.iter().zip(&d).map(|(p, d)| p * d).sum();
            let total: f64 = d.iter().sum();
            for column in 0..columns {
                let at = span.start + column;
                for (found, expected) in [
                    (y[at], p[column]),
                    (log_y[at], p[column].ln()),
                    (dx[at], p[column] * (d[column] - inner)),
                    (log_dx[at], d[column] - p[column] * total),
                ] {
                    assert!((f64::from(found) - expected).abs() < 1e-6, "{found} {expected}");
                }
            }
        }
    });
}

#[test]
fn the_greatest_values_and_their_places() {
    autoreleasepool(|_| {
        let bench = Bench::new();
        let values = [0.5_f32, -1.0, 3.0, 2.0, 7.0, 1.0, 0.0, 4.0];
        let input = filled(&bench, &values, SHARED);
        let (places, best) = (bench.buffer(4, SHARED), bench.buffer(4, SHARED));
        run(&bench, |commands| {
            // SAFETY: the classes check what they are given.
            unsafe {
                let descriptor = MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(
                    2,
                    2,
                    8,
                    MPSDataType::UInt32,
                );
                let indices = MPSMatrix::initWithBuffer_descriptor(MPSMatrix::alloc(), &places, &descriptor);
                let top_k = MPSMatrixFindTopK::initWithDevice_numberOfTopKValues(
                    MPSMatrixFindTopK::alloc(),
                    &bench.device,
                    2,
                );
                top_k.encodeToCommandBuffer_inputMatrix_resultIndexMatrix_resultValueMatrix(
                    commands,
                    &matrix(&input, 0, 2, 4, 4),
                    &indices,
                    &matrix(&best, 0, 2, 2, 2),
                );
            }
        });
        assert_eq!(floats(&best, 4), [3.0, 2.0, 7.0, 4.0]);
        let found: Vec<u32> = floats(&places, 4).into_iter().map(f32::to_bits).collect();
        assert_eq!(found, [2, 3, 0, 3]);
    });
}

/// A product of 4 x 4 matrices.
fn product(bench: &Bench, commands: &bench::Commands, [a, b, c]: [&Buffer; 3]) {
    // SAFETY: the classes check what they are given.
    unsafe {
        let product = MPSMatrixMultiplication::initWithDevice_resultRows_resultColumns_interiorColumns(
            MPSMatrixMultiplication::alloc(),
            &bench.device,
            4,
            4,
            4,
        );
        let [a, b, c] = [a, b, c].map(|buffer| matrix(buffer, 0, 4, 4, 4));
        product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(commands, &a, &b, &c);
    }
}

/// `count` into x, x·x into y by MPS, `double` from y; between untracked dispatches only events order MPS.
fn between_dispatches(bench: &Bench, options: MTLResourceOptions, events: bool) {
    let [x, y, z]: [Buffer; 3] = std::array::from_fn(|_| bench.buffer(16, options));
    let event = bench.device.newEvent().expect("an event");
    let mut value = 0;
    let commands = bench.commands();
    let mut order = |commands: &bench::Commands| {
        if events {
            value += 1;
            commands.encodeSignalEvent_value(&event, value);
            commands.encodeWaitForEvent_value(&event, value);
        }
    };
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 16);
    encoder.endEncoding();
    order(&commands);
    product(bench, &commands, [&x, &x, &y]);
    order(&commands);
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "double", &[(&y, 0), (&z, 0)], 16);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    // Row 0 of x is 0 1 2 3, column 0 is 0 4 8 12: 4 + 16 + 36, doubled.
    assert_eq!(floats(&z, 1), [112.0]);
}

#[test]
fn products_between_dispatches() {
    assert_eq!(broken(|bench| between_dispatches(bench, UNTRACKED, false)), ["order-between-encoders"]);
    assert!(broken(|bench| between_dispatches(bench, UNTRACKED, true)).is_empty());
    assert!(broken(|bench| between_dispatches(bench, SHARED, false)).is_empty());
}

fn with_encoder(bench: &Bench, open: bool) {
    let [x, y]: [Buffer; 2] = std::array::from_fn(|_| filled(bench, &[1.0; 16], SHARED));
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    if !open {
        encoder.endEncoding();
    }
    product(bench, &commands, [&x, &x, &y]);
    if open {
        encoder.endEncoding();
    }
}

#[test]
fn no_kernel_is_encoded_while_an_encoder_is_open() {
    assert_eq!(broken(|bench| with_encoder(bench, true)), ["mps-with-open-encoder"]);
    assert!(broken(|bench| with_encoder(bench, false)).is_empty());
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_their_rule() {
    let refused = |rows: usize, columns: usize, stride: usize, floats: usize| {
        broken(|bench| {
            let buffer = bench.buffer(floats, SHARED);
            // SAFETY: the classes check what they are given; a refused one is nil, which is not looked at.
            unsafe {
                let descriptor: Option<Retained<MPSMatrixDescriptor>> = objc2::msg_send![
                    objc2::class!(MPSMatrixDescriptor),
                    matrixDescriptorWithRows: rows,
                    columns: columns,
                    rowBytes: stride,
                    dataType: MPSDataType::Float32,
                ];
                if let Some(descriptor) = descriptor {
                    let _: Option<Retained<MPSMatrix>> = objc2::msg_send![MPSMatrix::alloc(), initWithBuffer: &*buffer, descriptor: &*descriptor];
                }
            }
        })
    };
    assert_eq!(refused(4, 4, 16, 16), Vec::<&str>::new());
    assert_eq!(refused(0, 4, 16, 16), ["mps-matrix-zero"]);
    assert_eq!(refused(4, 4, 12, 16), ["mps-row-bytes-small"]);
    assert_eq!(refused(4, 4, 18, 18), ["mps-row-bytes-multiple"]);
    assert_eq!(refused(4, 4, 16, 15), ["mps-matrix-buffer-small"]);
}

/// Two threads encode with the same object, or each with its own.
fn threads(bench: &Bench, shared: bool) {
    struct Send2<T>(T);
    // SAFETY: planted; the device is to find this out.
    unsafe impl<T> Send for Send2<T> {}
    // SAFETY: as above.
    unsafe impl<T> Sync for Send2<T> {}
    let new = || {
        // SAFETY: the class checks what it is given.
        unsafe {
            MPSMatrixMultiplication::initWithDevice_resultRows_resultColumns_interiorColumns(
                MPSMatrixMultiplication::alloc(),
                &bench.device,
                4,
                4,
                4,
            )
        }
    };
    let (first, second) = (new(), new());
    let kernels = Send2([first.clone(), if shared { first } else { second }]);
    let buffer = filled(bench, &[1.0; 16], SHARED);
    let state = Send2((bench, buffer));
    std::thread::scope(|scope| {
        for index in 0..2 {
            let (kernels, state) = (&kernels, &state);
            scope.spawn(move || {
                autoreleasepool(|_| {
                    let (bench, buffer) = &state.0;
                    let operand = matrix(buffer, 0, 4, 4, 4);
                    let result = matrix(&bench.buffer(16, SHARED), 0, 4, 4, 4);
                    for _ in 0..20_000 {
                        let commands = bench.commands();
                        // SAFETY: the class checks what it is given.
                        unsafe {
                            kernels.0[index].encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
                                &commands, &operand, &operand, &result,
                            );
                        }
                    }
                });
            });
        }
    });
}

#[test]
fn a_kernel_object_belongs_to_one_thread_at_a_time() {
    assert_eq!(broken(|bench| threads(bench, true)), ["mps-kernel-shared"]);
    assert!(broken(|bench| threads(bench, false)).is_empty());
}
