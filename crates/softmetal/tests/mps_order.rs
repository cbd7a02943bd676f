//! Every operand of every MPS matrix class has its place in the order of commands, and what the classes refuse has its
//! rule: also where it is known only when the kernel runs.
#![allow(missing_docs)]

mod bench;
mod operands;

use bench::{Bench, Commands, SHARED, UNTRACKED, broken};
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::{NSArray, NSData, NSRange};
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use operands::{Kind, Operand, Random};

const N: usize = 4;

/// Shapes of operands: a matrix of floats, one of indices, a vector of floats, one of indices.
#[derive(Clone, Copy)]
enum Shape {
    Matrix,
    Indices,
    Vector,
    IndexVector,
}

use Shape::{IndexVector, Indices, Matrix, Vector};

type Encode = fn(&Bench, &Commands, &[Operand]);

/// Each class with its operands, all of which are filled with zeros in turn: legal indices and offsets, too.
const KERNELS: &[(&str, &[Shape], Encode)] = &[
    ("MPSMatrixMultiplication", &[Matrix, Matrix, Matrix], |bench, commands, operands| {
        let [a, b, c] = [0, 1, 2].map(|i| operands[i].matrix());
        // SAFETY: the classes check what they are given. beta reads the result, too.
        unsafe {
            let product = MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
                MPSMatrixMultiplication::alloc(), &bench.device, false, false, N, N, N, 1.0, 1.0,
            );
            product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(commands, &a, &b, &c);
        }
    }),
    ("MPSMatrixVectorMultiplication", &[Matrix, Vector, Vector], |bench, commands, operands| {
        let (a, x, y) = (operands[0].matrix(), operands[1].vector(), operands[2].vector());
        // SAFETY: the classes check what they are given.
        unsafe {
            let product = MPSMatrixVectorMultiplication::initWithDevice_rows_columns(
                MPSMatrixVectorMultiplication::alloc(),
                &bench.device,
                N,
                N,
            );
            product.encodeToCommandBuffer_inputMatrix_inputVector_resultVector(commands, &a, &x, &y);
        }
    }),
    ("MPSMatrixSoftMax", &[Matrix, Matrix], |bench, commands, operands| {
        // SAFETY: the classes check what they are given.
        unsafe {
            let softmax = MPSMatrixSoftMax::initWithDevice(MPSMatrixSoftMax::alloc(), &bench.device);
            let [x, y] = [0, 1].map(|i| operands[i].matrix());
            softmax.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &x, &y);
        }
    }),
    ("MPSMatrixSoftMaxGradient", &[Matrix, Matrix, Matrix], |bench, commands, operands| {
        // SAFETY: the classes check what they are given.
        unsafe {
            let new = MPSMatrixSoftMaxGradient::alloc();
            let gradient = MPSMatrixSoftMaxGradient::initWithDevice(new, &bench.device);
            let [dy, y, dx] = [0, 1, 2].map(|i| operands[i].matrix());
            gradient.encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                commands, &dy, &y, &dx,
            );
        }
    }),
    ("MPSMatrixFindTopK", &[Matrix, Indices, Matrix], |bench, commands, operands| {
        // SAFETY: the classes check what they are given.
        unsafe {
            let new = MPSMatrixFindTopK::alloc();
            let top_k = MPSMatrixFindTopK::initWithDevice_numberOfTopKValues(new, &bench.device, 2);
            let [x, i, y] = [0, 1, 2].map(|i| operands[i].matrix());
            top_k.encodeToCommandBuffer_inputMatrix_resultIndexMatrix_resultValueMatrix(commands, &x, &i, &y);
        }
    }),
    ("MPSMatrixNeuron", &[Matrix, Vector, Matrix], |bench, commands, operands| {
        let (x, bias, y) = (operands[0].matrix(), operands[1].vector(), operands[2].matrix());
        // SAFETY: the classes check what they are given.
        unsafe {
            let neuron = MPSMatrixNeuron::initWithDevice(MPSMatrixNeuron::alloc(), &bench.device);
            neuron.encodeToCommandBuffer_inputMatrix_biasVector_resultMatrix(commands, &x, Some(&bias), &y);
        }
    }),
    ("MPSMatrixSum", &[Matrix, Matrix, Vector, IndexVector, Vector, Matrix], |bench, commands, operands| {
        let [scales, offsets, bias] = [2, 3, 4].map(|i| Some(operands[i].vector()));
        sum(bench, commands, operands, scales, offsets, bias);
    }),
    ("MPSMatrixCopy", &[Matrix, Matrix, IndexVector, IndexVector], |bench, commands, operands| {
        // SAFETY: the classes check what they are given.
        unsafe {
            let descriptor = MPSMatrixCopyDescriptor::descriptorWithSourceMatrix_destinationMatrix_offsets(
                &operands[0].matrix(),
                &operands[1].matrix(),
                NO_OFFSETS,
            );
            copy(bench).encodeToCommandBuffer_copyDescriptor_rowPermuteIndices_rowPermuteOffset_columnPermuteIndices_columnPermuteOffset(
                commands, &descriptor, Some(&operands[2].vector()), 0, Some(&operands[3].vector()), 0,
            );
        }
    }),
    ("MPSMatrixCopy by a vector", &[Matrix, Matrix, IndexVector], |bench, commands, operands| {
        let [from, to] = [0, 1].map(|i| NSArray::from_retained_slice(&[operands[i].matrix()]));
        // SAFETY: the classes check what they are given.
        unsafe {
            let descriptor =
                MPSMatrixCopyDescriptor::initWithSourceMatrices_destinationMatrices_offsetVector_offset(
                    MPSMatrixCopyDescriptor::alloc(),
                    &from,
                    &to,
                    Some(&operands[2].vector()),
                    0,
                );
            copy(bench).encodeToCommandBuffer_copyDescriptor(commands, &descriptor);
        }
    }),
];

const NO_OFFSETS: MPSMatrixCopyOffsets = MPSMatrixCopyOffsets {
    sourceRowOffset: 0,
    sourceColumnOffset: 0,
    destinationRowOffset: 0,
    destinationColumnOffset: 0,
};

fn copy(bench: &Bench) -> Retained<MPSMatrixCopy> {
    // SAFETY: the class checks what it is given.
    unsafe {
        MPSMatrixCopy::initWithDevice_copyRows_copyColumns_sourcesAreTransposed_destinationsAreTransposed(
            MPSMatrixCopy::alloc(),
            &bench.device,
            N,
            N,
            false,
            false,
        )
    }
}

type Given = Option<Retained<MPSVector>>;

fn sum(bench: &Bench, commands: &Commands, operands: &[Operand], scales: Given, offsets: Given, bias: Given) {
    // SAFETY: the classes check what they are given.
    unsafe {
        let new = MPSMatrixSum::alloc();
        let sum =
            MPSMatrixSum::initWithDevice_count_rows_columns_transpose(new, &bench.device, 2, N, N, false);
        let sources = NSArray::from_retained_slice(&[operands[0].matrix(), operands[1].matrix()]);
        sum.encodeToCommandBuffer_sourceMatrices_resultMatrix_scaleVector_offsetVector_biasVector_startIndex(
            commands,
            &sources,
            &operands.last().expect("a result").matrix(),
            scales.as_deref(),
            offsets.as_deref(),
            bias.as_deref(),
            0,
        );
    }
}

/// Operands of these shapes, full of `index`.
fn operands(bench: &Bench, shapes: &[Shape], index: f64, options: MTLResourceOptions) -> Vec<Operand> {
    let of = |shape: &Shape| {
        let (kind, rows) = match shape {
            Matrix => (Kind::F32, N),
            Indices => (Kind::U32, N),
            Vector => (Kind::F32, 1),
            IndexVector => (Kind::U32, 1),
        };
        Operand::new(bench, &mut Random(3), kind, [1, rows, N], options, |_, _| index)
    };
    shapes.iter().map(of).collect()
}

/// Fills one operand, then encodes the kernel; an event orders them, or nothing does.
fn fill_then(bench: &Bench, shapes: &[Shape], encode: Encode, filled: usize, ordered: bool) {
    let operands = operands(bench, shapes, 0.0, UNTRACKED);
    let event = bench.device.newEvent().expect("an event");
    let commands = bench.commands();
    let blit = commands.blitCommandEncoder().expect("an encoder");
    let buffer = &operands[filled].buffer;
    blit.fillBuffer_range_value(buffer, NSRange::new(0, buffer.length()), 0);
    blit.endEncoding();
    if ordered {
        commands.encodeSignalEvent_value(&event, 1);
        commands.encodeWaitForEvent_value(&event, 1);
    }
    encode(bench, &commands, &operands);
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(commands.status(), MTLCommandBufferStatus::Completed, "{:?}", commands.error());
}

#[test]
fn every_operand_is_known_to_the_ordering_model() {
    for (name, shapes, encode) in KERNELS {
        for filled in 0..shapes.len() {
            let found = broken(|bench| fill_then(bench, shapes, *encode, filled, false));
            assert_eq!(found, ["order-between-encoders"], "{name}, operand {filled}");
            let found = broken(|bench| fill_then(bench, shapes, *encode, filled, true));
            assert_eq!(found, Vec::<&str>::new(), "{name}, operand {filled}, ordered");
        }
    }
}

/// Encodes a kernel of the list with indices of one value.
fn with_indices(bench: &Bench, name: &str, index: f64) {
    let (_, shapes, encode) = KERNELS.iter().find(|(known, ..)| *known == name).expect("a kernel");
    let operands = operands(bench, shapes, index, SHARED);
    let commands = bench.commands();
    encode(bench, &commands, &operands);
    commands.commit();
    commands.waitUntilCompleted();
    let ended = if index == 0.0 { MTLCommandBufferStatus::Completed } else { MTLCommandBufferStatus::Error };
    assert_eq!(commands.status(), ended);
}

#[test]
fn what_is_known_only_when_a_kernel_runs_has_its_rule() {
    for (name, rule) in [
        ("MPSMatrixCopy", "mps-copy-permutation-index"),
        ("MPSMatrixCopy by a vector", "mps-copy-source-shape"),
        ("MPSMatrixSum", "mps-sum-source-shape"),
    ] {
        assert_eq!(broken(|bench| with_indices(bench, name, N as f64)), [rule], "{name}");
        assert_eq!(broken(|bench| with_indices(bench, name, 0.0)), Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn what_is_missing_has_its_rule() {
    let shapes = KERNELS.iter().find(|(name, ..)| *name == "MPSMatrixSum").expect("a kernel").1;
    let sum_without = |scales: bool, offsets: bool| {
        broken(|bench| {
            let operands = operands(bench, shapes, 0.0, SHARED);
            let [s, o] = [2, 3].map(|i| operands[i].vector());
            sum(bench, &bench.commands(), &operands, scales.then_some(s), offsets.then_some(o), None);
        })
    };
    assert_eq!(sum_without(false, true), ["mps-sum-scale-type"]);
    assert_eq!(sum_without(true, false), ["mps-sum-offset-type"]);
    assert!(sum_without(true, true).is_empty());

    let neuron = |prelu: bool| {
        broken(|bench| {
            let operands = operands(bench, &[Matrix, Matrix], 0.0, SHARED);
            // SAFETY: the classes check what they are given.
            unsafe {
                let neuron = MPSMatrixNeuron::initWithDevice(MPSMatrixNeuron::alloc(), &bench.device);
                if prelu {
                    neuron.setNeuronToPReLUWithParametersA(&NSData::with_bytes(&[0; 4 * N]));
                }
                let [x, y] = [0, 1].map(|i| operands[i].matrix());
                neuron.encodeToCommandBuffer_inputMatrix_biasVector_resultMatrix(
                    &bench.commands(),
                    &x,
                    None,
                    &y,
                );
            }
        })
    };
    assert_eq!(neuron(true), ["mps-neuron-type"]);
    assert!(neuron(false).is_empty());

    let set = |indices: &[usize]| {
        broken(|bench| {
            let operands = operands(bench, &[Matrix, Matrix, Matrix, Matrix], 0.0, SHARED);
            // SAFETY: the classes check what they are given.
            unsafe {
                let new = MPSMatrixCopyDescriptor::alloc();
                let descriptor = MPSMatrixCopyDescriptor::initWithDevice_count(new, &bench.device, 2);
                for &index in indices {
                    descriptor.setCopyOperationAtIndex_sourceMatrix_destinationMatrix_offsets(
                        index,
                        &operands[2 * index % 4].matrix(),
                        &operands[2 * index % 4 + 1].matrix(),
                        NO_OFFSETS,
                    );
                }
                copy(bench).encodeToCommandBuffer_copyDescriptor(&bench.commands(), &descriptor);
            }
        })
    };
    assert_eq!(set(&[0]), ["mps-copy-count"], "the second copy is not set");
    assert_eq!(set(&[0, 1, 2]), ["mps-copy-count"], "there is no third copy");
    assert!(set(&[0, 1]).is_empty());
}
