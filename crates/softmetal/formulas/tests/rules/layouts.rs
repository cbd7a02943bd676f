//! Faults of data types, descriptors, matrices, vectors and arrays.

use softmetal_formulas::element::Element::{self, BFloat16, Float16, Float32, Int32};
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
use softmetal_formulas::ndarray::{NdArray, NdArrayDescriptor};
use softmetal_formulas::ndarray_multiplication::NdArrayMultiplication;
use softmetal_formulas::rules::Refusal;
use softmetal_formulas::vector::{Vector, VectorDescriptor};

use crate::{Pair, address, found, made};

pub fn pairs() -> Vec<Pair> {
    let describe = |rows, columns, matrices, row_bytes, matrix_bytes| {
        made(MatrixDescriptor::batch(rows, columns, matrices, row_bytes, matrix_bytes, Float32))
    };
    let vectors = |length, vectors, bytes| made(VectorDescriptor::batch(length, vectors, bytes, Float32));
    // Two matrices of 3 x 5 in rows of 24 bytes, 96 bytes apart: the last byte needed is 96 + 48 + 20.
    let batch = MatrixDescriptor::batch(3, 5, 2, 24, 96, Float32).unwrap();
    let put = |length, offset| made(Matrix::new(address(0), length, offset, batch));
    // Three vectors of 5, 24 bytes apart: 48 + 20.
    let three = VectorDescriptor::batch(5, 3, 24, Float32).unwrap();
    let put_vector = |length, offset| made(Vector::new(address(0), length, offset, three));
    let mut pairs = vec![
        (
            "mps-element-modelled",
            made(Element::from_number(0x2000_0004)),
            made(Element::from_number(0x2000_0008)),
        ),
        ("mps-row-bytes-multiple", describe(2, 3, 1, 14, 28), describe(2, 3, 1, 16, 32)),
        ("mps-row-bytes-small", describe(2, 3, 1, 8, 16), describe(2, 3, 1, 12, 24)),
        ("mps-matrix-bytes-multiple", describe(2, 3, 2, 16, 40), describe(2, 3, 2, 16, 48)),
        ("mps-matrix-bytes-small", describe(2, 3, 2, 16, 16), describe(2, 3, 2, 16, 32)),
        ("mps-matrix-buffer-small", put(163, 0), put(164, 0)),
        ("mps-matrix-buffer-small", put(171, 8), put(172, 8)),
        ("mps-matrix-offset-alignment", put(200, 2), put(200, 4)),
        ("mps-vector-bytes-multiple", vectors(3, 2, 14), vectors(3, 2, 16)),
        ("mps-vector-bytes-small", vectors(3, 2, 8), vectors(3, 2, 12)),
        ("mps-vector-buffer-small", put_vector(67, 0), put_vector(68, 0)),
        ("mps-vector-buffer-small", put_vector(75, 8), put_vector(76, 8)),
        ("mps-vector-offset-alignment", put_vector(99, 2), put_vector(99, 4)),
        ("mps-vector-zero", vectors(0, 1, 4), vectors(1, 1, 4)),
        ("mps-vector-zero", vectors(1, 0, 4), vectors(1, 1, 4)),
    ];
    for (rows, columns, matrices) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
        pairs.push(("mps-matrix-zero", describe(rows, columns, matrices, 4, 4), describe(1, 1, 1, 4, 4)));
    }
    // Sizes whose product overflows are refused, not wrapped.
    let tall = |rows| made(MatrixDescriptor::new(rows, 1, 8, Float32));
    pairs.push(("mps-matrix-bytes-small", tall(usize::MAX / 8 + 1), tall(usize::MAX / 8)));
    let many = |matrices| {
        let descriptor = MatrixDescriptor::batch(1, 1, matrices, 8, 8, Float32).unwrap();
        made(Matrix::new(address(0), usize::MAX - 1, 0, descriptor))
    };
    pairs.push(("mps-matrix-buffer-small", many(usize::MAX), many(usize::MAX / 8)));
    pairs
}

fn described(lengths: &[usize]) -> NdArrayDescriptor {
    NdArrayDescriptor::new(Float32, lengths).unwrap()
}

fn array(slot: usize, element: Element, lengths: &[usize]) -> NdArray {
    let descriptor = NdArrayDescriptor::new(element, lengths).unwrap().with_packed_rows(true);
    NdArray::new(address(slot), 1 << 40, 0, &descriptor).unwrap()
}

/// A product of arrays of one type; lengths are fastest first, the last ones are the result's.
fn product(element: Element, lengths: &[&[usize]]) -> Vec<Refusal> {
    let mut arrays: Vec<_> = lengths.iter().enumerate().map(|(slot, l)| array(slot, element, l)).collect();
    let result = arrays.pop().unwrap();
    let kernel = NdArrayMultiplication::new(arrays.len());
    found(kernel.check(&arrays, &result), || kernel.suspects(&arrays, &result))
}

fn slice(range: std::ops::Range<usize>, dimension: usize) -> Vec<Refusal> {
    made(described(&[4, 3]).slice(dimension, range))
}

pub fn array_pairs() -> Vec<Pair> {
    let new = |lengths: &[usize]| made(NdArrayDescriptor::new(Float32, lengths));
    // Rows of 3 elements are padded to 16 bytes: 16 + 12 bytes, packed 24.
    let put = |length, offset, packed| {
        let descriptor = described(&[3, 2]).with_packed_rows(packed);
        made(NdArray::new(address(0), length, offset, &descriptor))
    };
    let huge = |length: usize| array(0, Float32, &[length]).suspects();
    let view = |lengths: &[usize]| made(array(0, Float32, &[4, 3]).view(&described(lengths)));
    let strided = |strides: &[usize]| made(array(0, Float32, &[4, 3]).strided_view(&[2, 3], strides));
    let padded = |columns: usize| {
        let whole = NdArray::new(address(0), 1 << 20, 0, &described(&[columns, 3])).unwrap();
        made(whole.strided_view(&[2, 3], &[1, 2]))
    };
    let counted = |sources: usize| {
        let arrays = [array(0, Float32, &[2, 2]), array(1, Float32, &[2, 2])];
        made(NdArrayMultiplication::new(sources).check(&arrays, &array(2, Float32, &[2, 2])))
    };
    let mixed = |right| {
        let arrays = [array(0, Float32, &[2, 2]), array(1, right, &[2, 2])];
        NdArrayMultiplication::new(2).suspects(&arrays, &array(2, Float32, &[2, 2]))
    };
    let transposed = |element| {
        let mut descriptor = NdArrayDescriptor::new(element, &[3, 2]).unwrap();
        descriptor.transpose(0, 1).unwrap();
        let right = NdArray::new(address(1), 1 << 20, 0, &descriptor).unwrap();
        let arrays = [array(0, element, &[3, 2]), right];
        NdArrayMultiplication::new(2).suspects(&arrays, &array(2, element, &[2, 2]))
    };
    let (square, row): (&[usize], &[usize]) = (&[2, 2], &[2, 1]);
    let legal = || product(Float32, &[square, square, square]);
    vec![
        ("mps-ndarray-rank", new(&[1; 17]), new(&[1; 16])),
        ("mps-ndarray-zero", new(&[2, 0]), new(&[2, 1])),
        ("mps-ndarray-elements", new(&[1 << 16, 1 << 15]), new(&[(1 << 16) - 1, 1 << 15])),
        ("mps-ndarray-bytes", huge((1 << 30) + 1), huge(1 << 30)),
        ("mps-ndarray-buffer-small", put(27, 0, false), put(28, 0, false)),
        ("mps-ndarray-buffer-small", put(24, 0, false), put(24, 0, true)),
        ("mps-ndarray-buffer-small", put(35, 8, false), put(36, 8, false)),
        ("mps-ndarray-offset-alignment", put(99, 2, true), put(99, 4, true)),
        (
            "mps-ndarray-dimension",
            made(described(&[4, 3]).transpose(0, 2)),
            made(described(&[4, 3]).transpose(0, 1)),
        ),
        ("mps-ndarray-dimension", slice(0..1, 2), slice(0..1, 1)),
        ("mps-ndarray-slice", slice(1..4, 1), slice(1..3, 1)),
        ("mps-ndarray-slice", slice(1..1, 1), slice(1..2, 1)),
        (
            "mps-ndarray-permutation",
            made(described(&[4, 3]).permute(&[0, 0])),
            made(described(&[4, 3]).permute(&[1, 0])),
        ),
        (
            "mps-ndarray-permutation",
            made(described(&[4, 3]).permute(&[0])),
            made(described(&[4, 3]).permute(&[0, 1])),
        ),
        ("mps-ndarray-view-shape", view(&[3, 4]), view(&[4, 3])),
        ("mps-ndarray-view-strides", strided(&[2, 4]), strided(&[1, 4])),
        ("mps-ndarray-view-strides", strided(&[1, 0]), strided(&[1, 1])),
        ("mps-ndarray-view-strides", strided(&[1]), strided(&[1, 2])),
        ("mps-ndarray-view-contiguous", strided(&[1, 6]), strided(&[1, 5])),
        ("mps-ndarray-view-contiguous", padded(3), padded(4)),
        ("mps-ndarray-product-sources", counted(3), counted(2)),
        (
            "mps-ndarray-product-rank",
            product(Float32, &[&[2, 2, 1, 1, 2], square, square]),
            product(Float32, &[&[2, 2, 1, 1, 1], square, square]),
        ),
        ("mps-ndarray-product-types", product(Int32, &[square, square, square]), legal()),
        ("mps-ndarray-product-mixed-types", mixed(Float16), mixed(Float32)),
        ("mps-ndarray-product-interior", product(Float32, &[&[3, 2], square, square]), legal()),
        (
            "mps-ndarray-product-batch-shape",
            product(Float32, &[&[2, 2, 4], &[2, 2, 2], &[2, 2, 4]]),
            product(Float32, &[&[2, 2, 4], &[2, 2, 1], &[2, 2, 4]]),
        ),
        ("mps-ndarray-product-result-shape", product(Float32, &[square, square, &[2, 3]]), legal()),
        (
            "mps-ndarray-product-result-shape",
            product(Float32, &[square, square, &[2, 2, 2]]),
            product(Float32, &[&[2, 2, 2], square, &[2, 2, 2]]),
        ),
        (
            "mps-ndarray-product-addend-shape",
            product(Float32, &[square, square, &[3, 2], square]),
            product(Float32, &[square, square, row, square]),
        ),
        (
            "mps-ndarray-product-batch",
            product(Float32, &[&[1, 1, 65536], &[1, 1], &[1, 1, 65536]]),
            product(Float32, &[&[1, 1, 65535], &[1, 1], &[1, 1, 65535]]),
        ),
        (
            "mps-ndarray-product-half-batch",
            product(Float16, &[&[2, 2, 2], square, &[2, 2, 2]]),
            product(Float16, &[square, square, square]),
        ),
        (
            "mps-ndarray-product-addend-row",
            product(Float32, &[row, square, row, row]),
            product(Float32, &[row, square, row]),
        ),
        ("mps-ndarray-product-transposed-bfloat16", transposed(BFloat16), transposed(Float16)),
    ]
}
