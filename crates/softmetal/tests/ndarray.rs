//! MPSNDArray and its product: values, views, and its two ways into a command buffer.
#![allow(missing_docs)]

mod bench;
mod operands;

use std::ptr::NonNull;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use objc2::AnyThread;
use objc2::rc::{Retained, autoreleasepool};
use objc2_foundation::NSArray;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use operands::{Kind, Operand, Random};

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
    kernel_of(bench, 2)
}

fn kernel_of(bench: &Bench, sources: usize) -> Retained<MPSNDArrayMatrixMultiplication> {
    let new = MPSNDArrayMatrixMultiplication::alloc();
    // SAFETY: the class checks what it is given.
    unsafe { MPSNDArrayMatrixMultiplication::initWithDevice_sourceCount(new, &bench.device, sources) }
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

/// An operand of a product of arrays, and how its matrices are found.
struct Source {
    operand: Operand,
    array: Retained<MPSNDArray>,
    lengths: [usize; 4],
    transposed: bool,
}

impl Source {
    /// An array of `rows` x `columns`, stored the other way round if it is transposed.
    fn new(bench: &Bench, r: &mut Random, kind: Kind, lengths: [usize; 4], transposed: bool) -> Self {
        let [columns, rows, fast, slow] = lengths;
        let stored = if transposed { [rows, columns, fast, slow] } else { lengths };
        let packed = r.flag();
        let row = stored[0] * kind.size();
        let row_bytes = if packed { row } else { row.next_multiple_of(16) };
        let layout = [r.below(9) * kind.size(), row_bytes, stored[1] * row_bytes];
        let dims = [fast * slow, stored[1], stored[0]];
        let values: &mut dyn FnMut(&mut Random, [usize; 3]) -> f64 = &mut |r, _| r.value();
        let operand = Operand::with_layout(bench, r, kind, dims, layout, SHARED, values);
        let mut array = operand.array(&stored, packed);
        if transposed {
            // SAFETY: the classes check what they are given.
            array = unsafe {
                let descriptor = array.descriptor();
                descriptor.transposeDimension_withDimension(0, 1);
                array.arrayViewWithDescriptor(&descriptor).expect("a view")
            };
        }
        Self { operand, array, lengths, transposed }
    }

    /// The value at row and column of a matrix of the batch; what has length 1 is the same for all.
    fn was(&self, [fast, slow]: [usize; 2], row: usize, column: usize) -> f64 {
        let within = |at: usize, dimension: usize| if self.lengths[dimension] == 1 { 0 } else { at };
        let matrix = within(slow, 3) * self.lengths[2] + within(fast, 2);
        let [i, j] = [within(row, 1), within(column, 0)];
        self.operand.was(if self.transposed { [matrix, j, i] } else { [matrix, i, j] })
    }
}

#[test]
fn products_of_random_shapes_views_offsets_batches_and_factors() {
    let mut random = Random(41);
    for round in 0..60 {
        let r = &mut random;
        let [m, n, k] = [2 + r.below(8), 1 + r.below(9), 1 + r.below(9)];
        let kind = r.of(&[Kind::F32, Kind::F16]);
        // Batches of halves are suspected, see the table of rules.
        let [fast, slow] = if kind == Kind::F16 { [1, 1] } else { [1 + r.below(3), 1 + r.below(3)] };
        let (alpha, beta, addend, inside) = (r.of(&[1.0, 0.5, -2.0]), r.of(&[1.0, 0.25]), r.flag(), r.flag());
        let found = broken(|bench| {
            let one = |r: &mut Random, length| if r.flag() { 1 } else { length };
            let batch = |r: &mut Random| [one(r, fast), one(r, slow)];
            let ([b2, b3], [c2, c3], ta, tb) = (batch(r), batch(r), r.flag(), r.flag());
            let a = Source::new(bench, r, kind, [k, m, fast, slow], ta);
            let b = Source::new(bench, r, kind, [n, k, b2, b3], tb);
            let height = one(r, m);
            let c = Source::new(bench, r, kind, [n, height, c2, c3], false);
            let d = Source::new(bench, r, kind, [n, m, fast, slow], false);
            let mut sources = vec![a.array.clone(), b.array.clone()];
            sources.extend(addend.then(|| c.array.clone()));
            let sources = NSArray::from_retained_slice(&sources);
            let commands = bench.commands();
            // SAFETY: the classes check what they are given.
            unsafe {
                let product = kernel_of(bench, 2 + usize::from(addend));
                product.setAlpha(alpha);
                product.setBeta(beta);
                if inside {
                    let encoder = bench.serial(&commands);
                    product.encodeToCommandEncoder_commandBuffer_sourceArrays_destinationArray(
                        Some(&encoder),
                        &commands,
                        &sources,
                        &d.array,
                    );
                    encoder.endEncoding();
                } else {
                    product
                        .encodeToCommandBuffer_sourceArrays_destinationArray(&commands, &sources, &d.array);
                }
            }
            commands.commit();
            commands.waitUntilCompleted();
            assert_eq!(commands.status(), MTLCommandBufferStatus::Completed, "{:?}", commands.error());
            d.operand.check(&format!("round {round}"), |[matrix, i, j]| {
                let at = [matrix % fast, matrix / fast];
                let sum: f64 = (0..k).map(|l| a.was(at, i, l) * b.was(at, l, j)).sum();
                Some(alpha * sum + if addend { beta * c.was(at, i, j) } else { 0.0 })
            });
        });
        assert_eq!(found, Vec::<&str>::new(), "round {round}");
    }
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
