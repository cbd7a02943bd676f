//! Faults of products and of operations on rows.

use softmetal_formulas::element::Element::{self, BFloat16, Float16, Float32, Int8, Int16, Int32, UInt32};
use softmetal_formulas::kernel::{Batch, Extent, Origin};
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
use softmetal_formulas::multiplication::Multiplication;
use softmetal_formulas::neuron::{Activation, Neuron};
use softmetal_formulas::rules::Refusal;
use softmetal_formulas::softmax::Softmax;
use softmetal_formulas::softmax_gradient::SoftmaxGradient;
use softmetal_formulas::top_k::TopK;
use softmetal_formulas::vector_multiplication::VectorMultiplication;

use crate::{Pair, found, made, matrices, matrix, place, vector};

fn multiply(kernel: Multiplication, operands: [Matrix; 3]) -> Vec<Refusal> {
    let [a, b, c] = &operands;
    found(kernel.check(a, b, c), || kernel.suspects(a, b, c))
}

/// A product of operands that fit exactly.
fn exact(m: usize, n: usize, k: usize) -> Vec<Refusal> {
    let operands = [matrix(0, m, k, Float32), matrix(1, k, n, Float32), matrix(2, m, n, Float32)];
    multiply(Multiplication::new(m, n, k), operands)
}

fn typed(types: [Element; 3]) -> Vec<Refusal> {
    let [a, b, c] = types;
    multiply(Multiplication::new(1, 1, 1), [matrix(0, 1, 1, a), matrix(1, 1, 1, b), matrix(2, 1, 1, c)])
}

fn batched(counts: [usize; 3], start: usize, size: usize) -> Vec<Refusal> {
    let kernel = Multiplication { batch: Batch { start, size }, ..Multiplication::new(1, 1, 1) };
    multiply(kernel, [0, 1, 2].map(|slot| matrices(slot, counts[slot], 1, 1, Float32)))
}

fn padded(rows: usize, row_bytes: usize) -> Vec<Refusal> {
    let column = |slot| place(slot, MatrixDescriptor::new(rows, 1, row_bytes, Float32).unwrap());
    multiply(Multiplication::new(rows, 1, 1), [column(0), matrix(1, 1, 1, Float32), column(2)])
}

pub fn pairs() -> Vec<Pair> {
    // A 2 x 3, B 3 x 4, C 2 x 4, stored with one row and one column before them where an origin says so.
    let shapes = |a: (usize, usize), b: (usize, usize), c: (usize, usize)| {
        [matrix(0, a.0, a.1, Float32), matrix(1, b.0, b.1, Float32), matrix(2, c.0, c.1, Float32)]
    };
    let plain = Multiplication::new(2, 4, 3);
    let turned = Multiplication { transpose_left: true, transpose_right: true, ..plain };
    let one = Origin::at(1, 1);
    let moved = Multiplication { left_origin: one, right_origin: one, result_origin: one, ..plain };
    let deep = |z| Multiplication { left_origin: Origin { x: 0, y: 0, z }, ..plain };
    let scaled = |alpha| {
        let cell = |slot| matrix(slot, 1, 1, Float16);
        multiply(Multiplication { alpha, ..Multiplication::new(1, 1, 1) }, [cell(0), cell(1), cell(2)])
    };
    let beside = |slot| {
        multiply(
            Multiplication::new(1, 1, 1),
            [matrix(0, 1, 1, Float32), matrix(1, 1, 1, Float32), matrix(slot, 1, 1, Float32)],
        )
    };
    let fits = || multiply(plain, shapes((2, 3), (3, 4), (2, 4)));
    let fits_turned = || multiply(turned, shapes((3, 2), (4, 3), (2, 4)));
    let fits_moved = || multiply(moved, shapes((3, 4), (4, 5), (3, 5)));
    let mut pairs = vec![
        ("mps-product-left-shape", multiply(plain, shapes((2, 2), (3, 4), (2, 4))), fits()),
        ("mps-product-right-shape", multiply(plain, shapes((2, 3), (3, 3), (2, 4))), fits()),
        ("mps-product-result-shape", multiply(plain, shapes((2, 3), (3, 4), (1, 4))), fits()),
        ("mps-product-left-shape", multiply(turned, shapes((2, 3), (4, 3), (2, 4))), fits_turned()),
        ("mps-product-right-shape", multiply(turned, shapes((3, 2), (3, 4), (2, 4))), fits_turned()),
        ("mps-product-left-shape", multiply(moved, shapes((2, 4), (4, 5), (3, 5))), fits_moved()),
        ("mps-product-right-shape", multiply(moved, shapes((3, 4), (4, 4), (3, 5))), fits_moved()),
        ("mps-product-result-shape", multiply(moved, shapes((3, 4), (4, 5), (2, 5))), fits_moved()),
        (
            "mps-origin-z",
            multiply(deep(1), shapes((2, 3), (3, 4), (2, 4))),
            multiply(deep(0), shapes((2, 3), (3, 4), (2, 4))),
        ),
        ("mps-product-input-types", typed([BFloat16, BFloat16, Float32]), typed([Float16, Float16, Float32])),
        ("mps-product-input-types", typed([Int32, Int32, Float32]), typed([Int16, Int16, Float32])),
        ("mps-product-mixed-types", typed([Float16, Float32, Float32]), typed([Float32, Float16, Float32])),
        ("mps-product-mixed-types", typed([Float32, Float16, Float16]), typed([Float32, Float16, Float32])),
        ("mps-product-result-type", typed([Int16, Int16, Float16]), typed([Int8, Int8, Float16])),
        ("mps-product-result-type", typed([Float32, Float32, Float16]), typed([Float16, Float16, Float16])),
        ("mps-product-result-type", typed([Float16, Float16, BFloat16]), typed([Int8, Int8, Float32])),
        ("mps-batch-start", batched([2, 2, 2], 2, usize::MAX), batched([2, 2, 2], 1, usize::MAX)),
        ("mps-batch-start", batched([2, 2, 2], 0, 0), batched([2, 2, 2], 0, 1)),
        ("mps-batch-clipped", batched([1, 2, 2], 0, usize::MAX), batched([1, 2, 2], 0, 1)),
        ("mps-batch-clipped", batched([2, 2, 2], 1, 2), batched([2, 2, 2], 1, 1)),
        ("mps-alias", beside(1), beside(2)),
        ("mps-scale-range", scaled(1e6), scaled(60000.)),
        ("mps-scale-range", scaled(1e-9), scaled(1e-4)),
        ("mps-product-zero", exact_empty(), exact(1, 1, 1)),
        ("mps-product-overflow", exact(1, 178_956_971, 1), exact(1, 178_956_970, 1)),
        ("mps-product-interior", exact(1, 1, 32001), exact(1, 1, 32000)),
        ("mps-product-strided", padded(32769, 8), padded(32768, 8)),
        ("mps-product-operand-bytes", padded(2, (1 << 31) - 4), padded(2, (1 << 31) - 8)),
        ("mps-product-batch", batched([65536; 3], 0, usize::MAX), batched([65536; 3], 0, 65535)),
    ];
    pairs.extend(vector_pairs());
    pairs
}

fn exact_empty() -> Vec<Refusal> {
    multiply(Multiplication::new(0, 1, 1), [0, 1, 2].map(|slot| matrix(slot, 1, 1, Float32)))
}

fn vector_pairs() -> Vec<Pair> {
    let plain = VectorMultiplication::new(2, 3);
    let run = |kernel: VectorMultiplication, a: (usize, usize), x: usize, y: usize| {
        let (a, x, y) = (matrix(0, a.0, a.1, Float32), vector(1, x, Float32), vector(2, y, Float32));
        found(kernel.check(&a, &x, &y), || kernel.suspects(&a, &x, &y))
    };
    let turned = VectorMultiplication { transpose: true, ..plain };
    let moved =
        VectorMultiplication { input_origin: Origin::at(1, 0), result_origin: Origin::at(2, 0), ..plain };
    let aside = VectorMultiplication { input_origin: Origin::at(0, 1), ..plain };
    let typed = |types: [Element; 3]| {
        let operands = (matrix(0, 2, 3, types[0]), vector(1, 3, types[1]), vector(2, 2, types[2]));
        made(plain.check(&operands.0, &operands.1, &operands.2))
    };
    let fits = || run(plain, (2, 3), 3, 2);
    vec![
        ("mps-vector-product-matrix-shape", run(plain, (2, 2), 3, 2), fits()),
        ("mps-vector-product-matrix-shape", run(turned, (2, 3), 3, 2), run(turned, (3, 2), 3, 2)),
        ("mps-vector-product-input-length", run(plain, (2, 3), 2, 2), fits()),
        ("mps-vector-product-result-length", run(plain, (2, 3), 3, 1), fits()),
        ("mps-vector-product-input-length", run(moved, (2, 3), 3, 4), run(moved, (2, 3), 4, 4)),
        ("mps-vector-product-result-length", run(moved, (2, 3), 4, 3), run(moved, (2, 3), 4, 4)),
        ("mps-vector-product-origin", run(aside, (2, 3), 4, 2), fits()),
        ("mps-vector-product-types", typed([Float32, Float32, Float16]), typed([Float16, Float16, Float32])),
        ("mps-vector-product-types", typed([Float32, Float16, Float32]), typed([Float16, Float16, Float16])),
    ]
}

pub fn row_pairs() -> Vec<Pair> {
    let soft =
        |kernel: Softmax, x: Matrix, y: Matrix| found(kernel.check(&x, &y), || kernel.suspects(&x, &y));
    let from = |x, y| Softmax { source_origin: Origin::at(x, y), ..Softmax::default() };
    let to = |x, y| Softmax { result_origin: Origin::at(x, y), ..Softmax::default() };
    let m = |slot, rows, columns| matrix(slot, rows, columns, Float32);
    let whole = Softmax::default();
    let back = |kernel: SoftmaxGradient, operands: [Matrix; 3]| {
        let [dy, y, dx] = &operands;
        found(kernel.check(dy, y, dx), || kernel.suspects(dy, y, dx))
    };
    let gradient = SoftmaxGradient::default();
    let away = |x| SoftmaxGradient {
        forward_origin: Origin::at(x, 0),
        gradient_origin: Origin::at(x, 0),
        ..gradient
    };
    let same = |element| [0, 1, 2].map(|slot| matrix(slot, 2, 3, element));
    let sized = SoftmaxGradient { extent: Extent { rows: 2, columns: 2 }, ..gradient };
    let mut pairs = vec![
        (
            "mps-softmax-types",
            soft(whole, m(0, 2, 3), matrix(1, 2, 3, Float16)),
            soft(whole, m(0, 2, 3), m(1, 2, 3)),
        ),
        (
            "mps-softmax-types",
            soft(whole, matrix(0, 2, 3, BFloat16), matrix(1, 2, 3, BFloat16)),
            soft(whole, matrix(0, 2, 3, Float16), matrix(1, 2, 3, Float16)),
        ),
        (
            "mps-softmax-source-origin",
            soft(from(2, 0), m(0, 2, 3), m(1, 2, 3)),
            soft(from(1, 0), m(0, 2, 3), m(1, 2, 3)),
        ),
        (
            "mps-softmax-source-origin",
            soft(from(0, 3), m(0, 2, 3), m(1, 2, 3)),
            soft(from(0, 2), m(0, 2, 3), m(1, 2, 3)),
        ),
        (
            "mps-softmax-result-shape",
            soft(whole, m(0, 2, 3), m(1, 2, 2)),
            soft(from(0, 1), m(0, 2, 3), m(1, 2, 2)),
        ),
        (
            "mps-softmax-result-shape",
            soft(to(1, 0), m(0, 2, 3), m(1, 2, 3)),
            soft(to(1, 0), m(0, 2, 3), m(1, 3, 3)),
        ),
        (
            "mps-softmax-gradient-types",
            back(gradient, [m(0, 2, 3), m(1, 2, 3), matrix(2, 2, 3, Float16)]),
            back(gradient, same(Float16)),
        ),
        ("mps-softmax-gradient-types", back(gradient, same(BFloat16)), back(gradient, same(Float32))),
        ("mps-softmax-gradient-source-origin", back(away(2), same(Float32)), back(away(1), same(Float32))),
        (
            "mps-softmax-gradient-result-shape",
            back(gradient, [m(0, 2, 3), m(1, 2, 3), m(2, 2, 2)]),
            back(gradient, same(Float32)),
        ),
        (
            "mps-softmax-gradient-sizes",
            back(gradient, [m(0, 2, 3), m(1, 2, 2), m(2, 2, 3)]),
            back(sized, [m(0, 2, 3), m(1, 2, 2), m(2, 2, 3)]),
        ),
    ];
    pairs.extend(top_pairs());
    pairs.extend(neuron_pairs());
    pairs
}

fn top_pairs() -> Vec<Pair> {
    let run = |kernel: TopK, columns, indices: Matrix, values: Matrix| {
        let input = matrix(0, 2, columns, Float32);
        found(kernel.check(&input, &indices, &values), || kernel.suspects(&input, &indices, &values))
    };
    let sized = |count: usize, columns: usize| {
        run(TopK::new(count), columns, matrix(1, 2, 20, UInt32), matrix(2, 2, 20, Float32))
    };
    let from = |x, y, columns| {
        let kernel = TopK { source_origin: Origin::at(x, y), ..TopK::new(3) };
        run(kernel, columns, matrix(1, 2, 3, UInt32), matrix(2, 2, 3, Float32))
    };
    let few = TopK { extent: Extent { rows: usize::MAX, columns: 2 }, ..TopK::new(3) };
    let results = |kernel, p: (usize, usize, Element), v: (usize, usize, Element)| {
        run(kernel, 8, matrix(1, p.0, p.1, p.2), matrix(2, v.0, v.1, v.2))
    };
    let three = TopK::new(3);
    let lower = TopK { result_origin: Origin::at(1, 0), ..three };
    let fits = || results(three, (2, 3, UInt32), (2, 3, Float32));
    vec![
        ("mps-top-k-count", sized(17, 20), sized(16, 20)),
        ("mps-top-k-count", sized(0, 20), sized(1, 20)),
        ("mps-top-k-columns", sized(4, 3), sized(4, 4)),
        ("mps-top-k-columns", from(0, 6, 8), from(0, 5, 8)),
        ("mps-top-k-columns", results(few, (2, 3, UInt32), (2, 3, Float32)), fits()),
        ("mps-top-k-source-origin", from(2, 0, 8), from(1, 0, 8)),
        ("mps-top-k-source-origin", from(0, 8, 8), from(0, 5, 8)),
        ("mps-top-k-index-type", results(three, (2, 3, Int32), (2, 3, Float32)), fits()),
        ("mps-top-k-value-types", results(three, (2, 3, UInt32), (2, 3, Float16)), fits()),
        ("mps-top-k-index-shape", results(three, (2, 2, UInt32), (2, 3, Float32)), fits()),
        ("mps-top-k-value-shape", results(three, (2, 3, UInt32), (1, 3, Float32)), fits()),
        (
            "mps-top-k-value-shape",
            results(lower, (3, 3, UInt32), (2, 3, Float32)),
            results(lower, (3, 3, UInt32), (3, 3, Float32)),
        ),
    ]
}

fn neuron_pairs() -> Vec<Pair> {
    let kernel = Neuron::new(Activation::Sigmoid);
    let run = |kernel: Neuron, bias: usize, element, result: (usize, usize)| {
        let (x, b) = (matrix(0, 2, 3, Float32), vector(1, bias, element));
        let y = matrix(2, result.0, result.1, Float32);
        found(kernel.check(&x, Some(&b), &y), || kernel.suspects(&x, Some(&b), &y))
    };
    let from = |x| Neuron { source_origin: Origin::at(x, 0), ..kernel };
    let number = |number| made(Activation::from_number(number, 1., 1., 1.));
    let fits = || run(kernel, 3, Float32, (2, 3));
    vec![
        ("mps-neuron-type", number(10), number(9)),
        ("mps-neuron-type", number(16), number(15)),
        ("mps-neuron-types", run(kernel, 3, Float16, (2, 3)), fits()),
        ("mps-neuron-source-origin", run(from(2), 3, Float32, (2, 3)), run(from(1), 3, Float32, (2, 3))),
        ("mps-neuron-result-shape", run(kernel, 3, Float32, (2, 2)), fits()),
        ("mps-neuron-bias-length", run(kernel, 2, Float32, (2, 3)), fits()),
    ]
}
