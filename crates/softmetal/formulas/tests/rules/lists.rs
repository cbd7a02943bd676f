//! Faults of operations on lists of matrices: copies and sums.

use softmetal_formulas::copy::{Copies, Copy, CopyOffsets, Permutation};
use softmetal_formulas::element::Element::{self, BFloat16, Float16, Float32, Int32, UInt32};
use softmetal_formulas::kernel::Origin;
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
use softmetal_formulas::neuron::Activation;
use softmetal_formulas::rules::Refusal;
use softmetal_formulas::sum::{Sum, Summands};
use softmetal_formulas::vector::{Vector, VectorDescriptor};

use crate::{Pair, address, found, made, matrices, matrix, vector};

const COPY: Copy = Copy { rows: 2, columns: 3, sources_transposed: false, destinations_transposed: false };

/// Copies from each source to its destination.
fn copy(kernel: Copy, sources: &[Matrix], destinations: &[Matrix], offsets: &[[u32; 4]]) -> Vec<Refusal> {
    let offsets: Vec<_> = offsets
        .iter()
        .map(|&[source_row, source_column, destination_row, destination_column]| CopyOffsets {
            source_row,
            source_column,
            destination_row,
            destination_column,
        })
        .collect();
    let copies =
        Copies { sources, destinations, offsets: &offsets, row_permutation: None, column_permutation: None };
    found(kernel.check(&copies), || kernel.suspects(&copies))
}

fn single(source: Matrix, destination: Matrix, offsets: [u32; 4]) -> Vec<Refusal> {
    copy(COPY, &[source], &[destination], &[offsets])
}

fn permuted(indices: Vector, offset: usize) -> Vec<Refusal> {
    let copies = Copies {
        sources: &[matrix(0, 2, 3, Float32)],
        destinations: &[matrix(1, 2, 3, Float32)],
        offsets: &[CopyOffsets::default()],
        row_permutation: None,
        column_permutation: Some(Permutation { indices: &indices, offset }),
    };
    found(COPY.check(&copies), || COPY.suspects(&copies))
}

/// Runs a copy of one row whose row index is `row`, into two rows.
fn placed(row: u32) -> Vec<Refusal> {
    let (mut from, mut to, mut index) = ([1f32; 3], [0f32; 6], [row]);
    let put = |start: *mut u8, length, rows| {
        Matrix::new(start, length, 0, MatrixDescriptor::packed(rows, 3, Float32).unwrap()).unwrap()
    };
    let one = VectorDescriptor::new(1, UInt32).unwrap();
    let copies = Copies {
        sources: &[put(from.as_mut_ptr().cast(), 12, 1)],
        destinations: &[put(to.as_mut_ptr().cast(), 24, 2)],
        offsets: &[CopyOffsets::default()],
        row_permutation: Some(Permutation {
            indices: &Vector::new(index.as_mut_ptr().cast(), 4, 0, one).unwrap(),
            offset: 0,
        }),
        column_permutation: None,
    };
    // SAFETY: the arrays outlive the call and nothing else uses them.
    made(unsafe { Copy { rows: 1, ..COPY }.run(&copies) })
}

pub fn pairs() -> Vec<Pair> {
    let m = |slot, rows, columns| matrix(slot, rows, columns, Float32);
    let zero = [0; 4];
    let fits = || single(m(0, 2, 3), m(1, 2, 3), zero);
    let turned = Copy { sources_transposed: true, ..COPY };
    let turn = |source, offsets| copy(turned, &[source], &[m(1, 4, 4)], &[offsets]);
    let packed = |element: Element, byte_offset, length| {
        made(CopyOffsets::check_packed(&vector(0, length, element), byte_offset, 2))
    };
    // Two copies into one matrix, of 2 x 3 each, one below the other.
    let together =
        |row| copy(COPY, &[m(0, 2, 3), m(1, 2, 3)], &[m(2, 4, 3), m(2, 4, 3)], &[zero, [0, 0, row, 0]]);
    let onto = |row| single(m(0, 4, 3), m(0, 4, 3), [0, 0, row, 0]);
    let mut pairs = vec![
        ("mps-copy-count", copy(COPY, &[m(0, 2, 3)], &[], &[zero]), fits()),
        ("mps-copy-count", copy(COPY, &[], &[], &[]), fits()),
        ("mps-copy-source-shape", single(m(0, 2, 2), m(1, 2, 3), zero), fits()),
        (
            "mps-copy-source-shape",
            single(m(0, 2, 3), m(1, 2, 3), [1, 0, 0, 0]),
            single(m(0, 3, 3), m(1, 2, 3), [1, 0, 0, 0]),
        ),
        ("mps-copy-source-shape", turn(m(0, 2, 3), zero), turn(m(0, 3, 2), zero)),
        ("mps-copy-destination-shape", single(m(0, 2, 3), m(1, 1, 3), zero), fits()),
        (
            "mps-copy-destination-shape",
            single(m(0, 2, 3), m(1, 2, 3), [0, 0, 0, 1]),
            single(m(0, 2, 3), m(1, 2, 4), [0, 0, 0, 1]),
        ),
        ("mps-copy-alias", together(1), together(2)),
        ("mps-copy-alias", onto(1), onto(2)),
        ("mps-copy-offsets-type", packed(Int32, 0, 8), packed(UInt32, 0, 8)),
        ("mps-copy-offsets-alignment", packed(UInt32, 8, 16), packed(UInt32, 16, 16)),
        ("mps-copy-offsets-length", packed(UInt32, 16, 11), packed(UInt32, 16, 12)),
        ("mps-copy-permutation-type", permuted(vector(2, 3, Int32), 0), permuted(vector(2, 3, UInt32), 0)),
        ("mps-copy-permutation-length", permuted(vector(2, 3, UInt32), 1), permuted(vector(2, 4, UInt32), 1)),
        ("mps-copy-permutation-index", placed(2), placed(1)),
        ("mps-copy-types", single(m(0, 2, 3), matrix(1, 2, 3, Float16), zero), fits()),
        ("mps-copy-batch", single(matrices(0, 2, 2, 3, Float32), m(1, 2, 3), zero), fits()),
        ("mps-copy-transposed-offsets", turn(m(0, 4, 4), [1, 0, 0, 0]), turn(m(0, 4, 4), [1, 1, 0, 0])),
    ];
    pairs.extend(sum_pairs());
    pairs
}

/// The operands of a sum that may be faulty, all legal at first.
#[derive(Clone)]
struct Case {
    sources: Vec<Matrix>,
    result: Matrix,
    scales: Vector,
    offsets: Vector,
    bias: Vector,
    kernel: Sum,
}

fn case() -> Case {
    Case {
        sources: vec![matrix(0, 2, 3, Float32), matrix(1, 2, 3, Float32)],
        result: matrix(2, 2, 3, Float32),
        scales: vector(3, 3, Float32),
        offsets: vector(4, 6, UInt32),
        bias: vector(5, 3, Float32),
        kernel: Sum {
            count: 2,
            rows: 2,
            columns: 3,
            transpose: false,
            activation: Activation::None,
            result_origin: Origin::default(),
        },
    }
}

fn sum(change: impl FnOnce(&mut Case)) -> Vec<Refusal> {
    let mut case = case();
    change(&mut case);
    let operands = Summands {
        sources: &case.sources,
        scales: &case.scales,
        offsets: &case.offsets,
        bias: Some(&case.bias),
        start: 1,
    };
    found(case.kernel.check(&operands, &case.result), || case.kernel.suspects(&operands, &case.result))
}

/// Runs a sum of one matrix of 3 rows, of which 2 are taken from `row` on.
fn taken(row: u32) -> Vec<Refusal> {
    let (mut from, mut to, mut scale, mut offset) = ([1f32; 3], [0f32; 2], [2f32], [row, 0]);
    let put = |start: *mut u8, rows| {
        Matrix::new(start, rows * 4, 0, MatrixDescriptor::packed(rows, 1, Float32).unwrap()).unwrap()
    };
    let list = |start: *mut u8, length, element| {
        Vector::new(start, length * 4, 0, VectorDescriptor::new(length, element).unwrap()).unwrap()
    };
    let operands = Summands {
        sources: &[put(from.as_mut_ptr().cast(), 3)],
        scales: &list(scale.as_mut_ptr().cast(), 1, Float32),
        offsets: &list(offset.as_mut_ptr().cast(), 2, UInt32),
        bias: None,
        start: 0,
    };
    let kernel = Sum { count: 1, columns: 1, ..case().kernel };
    // SAFETY: the arrays outlive the call and nothing else uses them.
    made(unsafe { kernel.run(&operands, &put(to.as_mut_ptr().cast(), 2)) })
}

fn sum_pairs() -> Vec<Pair> {
    let fits = || sum(|_| ());
    let half = |case: &mut Case| {
        case.sources = vec![matrix(0, 2, 3, Float16), matrix(1, 2, 3, Float16)];
        (case.result, case.bias) = (matrix(2, 2, 3, Float16), vector(5, 3, Float16));
    };
    let broad = |case: &mut Case| {
        case.sources = vec![matrix(0, 2, 3, BFloat16), matrix(1, 2, 3, BFloat16)];
        (case.result, case.bias) = (matrix(2, 2, 3, BFloat16), vector(5, 3, BFloat16));
    };
    let turned = |case: &mut Case, rows, columns| {
        case.kernel.transpose = true;
        case.result = matrix(2, rows, columns, Float32);
    };
    let lower = |case: &mut Case, rows| {
        case.kernel.result_origin = Origin::at(1, 0);
        case.result = matrix(2, rows, 3, Float32);
    };
    let short = |length| {
        let descriptor = VectorDescriptor::new(length, UInt32).unwrap();
        Vector::new(address(4), 1 << 20, 0, descriptor).unwrap()
    };
    vec![
        ("mps-sum-count", sum(|case| case.kernel.count = 3), fits()),
        ("mps-sum-types", sum(|case| case.sources[1] = matrix(1, 2, 3, Float16)), sum(half)),
        ("mps-sum-types", sum(broad), sum(half)),
        ("mps-sum-scale-type", sum(|case| case.scales = vector(3, 3, Float16)), fits()),
        ("mps-sum-offset-type", sum(|case| case.offsets = vector(4, 6, Int32)), fits()),
        ("mps-sum-vector-length", sum(|case| case.scales = vector(3, 2, Float32)), fits()),
        ("mps-sum-vector-length", sum(|case| case.offsets = short(5)), sum(|case| case.offsets = short(6))),
        ("mps-sum-source-shape", sum(|case| case.sources[1] = matrix(1, 1, 3, Float32)), fits()),
        ("mps-sum-source-shape", taken(2), taken(1)),
        ("mps-sum-result-shape", sum(|case| turned(case, 2, 3)), sum(|case| turned(case, 3, 2))),
        ("mps-sum-result-shape", sum(|case| lower(case, 2)), sum(|case| lower(case, 3))),
        ("mps-sum-bias-length", sum(|case| case.bias = vector(5, 2, Float32)), fits()),
    ]
}
