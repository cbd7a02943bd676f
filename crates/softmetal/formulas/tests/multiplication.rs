//! Products of matrices and of a matrix and a vector against loops written here.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the shared memory module")]

mod memory;

use std::collections::BTreeSet;

use memory::*;
use proptest::prelude::*;
use softmetal_formulas::element::Element;
use softmetal_formulas::kernel::{Batch, Origin};
use softmetal_formulas::multiplication::Multiplication;
use softmetal_formulas::touches::Operand;
use softmetal_formulas::vector::{Vector, VectorDescriptor};
use softmetal_formulas::vector_multiplication::VectorMultiplication;

const FACTORS: [f64; 5] = [1., 0., -1., 0.5, 2.];

proptest! {
    #[test]
    fn multiplication_equals_the_naive_loops(m in 1usize..7, n in 1usize..7, k in 1usize..7, seed: u64) {
        let random = &mut Random(seed);
        let (ta, tb) = (random.flag(), random.flag());
        let types = [
            [Element::Float32; 3],
            [Element::Float16; 3],
            [Element::Float16, Element::Float16, Element::Float32],
            [Element::Float32, Element::Float16, Element::Float32],
        ][random.below(4)];
        let (alpha, beta) = (FACTORS[random.below(5)], FACTORS[random.below(5)]);
        let matrices = 1 + random.below(3);
        let start = random.below(matrices);
        let size = if random.flag() { usize::MAX } else { 1 + random.below(matrices - start) };
        let batch = start..matrices.min(start.saturating_add(size));

        let stored = |transpose, rows, columns| if transpose { (columns, rows) } else { (rows, columns) };
        let (sa, sb) = (stored(ta, m, k), stored(tb, k, n));
        let a = Layout::around(sa.0, sa.1, matrices, types[0], random);
        let b = Layout::around(sb.0, sb.1, matrices, types[1], random);
        let c = Layout::around(m, n, matrices, types[2], random);
        let (mut am, mut bm, mut cm) = (a.memory(), b.memory(), c.memory());
        a.fill(&mut am, batch.clone(), sa.0, sa.1, random);
        b.fill(&mut bm, batch.clone(), sb.0, sb.1, random);
        // With beta 0 the old values stay NaN: whoever reads them fails.
        if beta != 0. {
            c.fill(&mut cm, batch.clone(), m, n, random);
        }
        let before = [am.bytes.clone(), bm.bytes.clone(), cm.bytes.clone()];

        let product = Multiplication {
            transpose_left: ta,
            transpose_right: tb,
            alpha,
            beta,
            left_origin: a.start(),
            right_origin: b.start(),
            result_origin: c.start(),
            batch: Batch { start, size },
            ..Multiplication::new(m, n, k)
        };
        let (left, right, result) = (a.matrix(&mut am), b.matrix(&mut bm), c.matrix(&mut cm));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { product.run(&left, &right, &result) }.unwrap();
        let touches = product.touches(&left, &right, &result);

        let mut old = c.memory();
        old.bytes.clone_from(&before[2]);
        for x in batch.clone() {
            for i in 0..m {
                for j in 0..n {
                    let mut sum = 0.;
                    for l in 0..k {
                        let left = if ta { a.get(&am, x, l, i) } else { a.get(&am, x, i, l) };
                        let right = if tb { b.get(&bm, x, j, l) } else { b.get(&bm, x, l, j) };
                        sum += left * right;
                    }
                    let addend = if beta == 0. { 0. } else { beta * c.get(&old, x, i, j) };
                    prop_assert_eq!(c.get(&cm, x, i, j), rounded(types[2], alpha * sum + addend));
                }
            }
        }
        let written = c.bytes(batch.clone(), m, n);
        cm.assert_untouched_except(&before[2], &written);
        prop_assert_eq!(&am.bytes, &before[0]);
        prop_assert_eq!(&bm.bytes, &before[1]);
        assert_writes(&touches, Operand::Result, &written);
        assert_reads(&touches, Operand::Left, &a.bytes(batch.clone(), sa.0, sa.1));
        assert_reads(&touches, Operand::Right, &b.bytes(batch, sb.0, sb.1));
        let read = if beta == 0. { BTreeSet::new() } else { written };
        assert_reads(&touches, Operand::Result, &read);
    }

    #[test]
    fn vector_multiplication_equals_the_naive_loops(rows in 1usize..8, columns in 1usize..8, seed: u64) {
        let random = &mut Random(seed);
        let transpose = random.flag();
        let types = [
            [Element::Float32; 2],
            [Element::Float16; 2],
            [Element::Float16, Element::Float32],
        ][random.below(3)];
        let (alpha, beta) = (FACTORS[random.below(5)], FACTORS[random.below(5)]);
        let matrices = 1 + random.below(3);
        let start = random.below(matrices);
        let stored = if transpose { (columns, rows) } else { (rows, columns) };
        let a = Layout::around(stored.0, stored.1, matrices, types[0], random);
        let mut am = a.memory();
        a.fill(&mut am, start..matrices, stored.0, stored.1, random);
        // A vector is laid out as a matrix of one row: only the columns of its origin count.
        let mut x = Layout::around(1, columns, matrices, types[0], random);
        let mut y = Layout::around(1, rows, matrices, types[1], random);
        (x.origin.0, y.origin.0) = (0, 0);
        let (mut xm, mut ym) = (x.memory(), y.memory());
        x.fill(&mut xm, start..matrices, 1, columns, random);
        if beta != 0. {
            y.fill(&mut ym, start..matrices, 1, rows, random);
        }
        let mut old = y.memory();
        old.bytes.clone_from(&ym.bytes);
        let place = |layout: &Layout, memory: &mut Memory| {
            let descriptor =
                VectorDescriptor::batch(layout.columns, matrices, layout.matrix_bytes, layout.element).unwrap();
            Vector::new(memory.bytes.as_mut_ptr(), memory.bytes.len(), layout.offset, descriptor).unwrap()
        };
        let product = VectorMultiplication {
            transpose,
            alpha,
            beta,
            matrix_origin: a.start(),
            input_origin: Origin::at(x.origin.1, 0),
            result_origin: Origin::at(y.origin.1, 0),
            batch: Batch { start, size: usize::MAX },
            ..VectorMultiplication::new(rows, columns)
        };
        let (matrix, input, result) = (a.matrix(&mut am), place(&x, &mut xm), place(&y, &mut ym));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { product.run(&matrix, &input, &result) }.unwrap();
        for b in start..matrices {
            for i in 0..rows {
                let sum: f64 = (0..columns)
                    .map(|j| {
                        let value = if transpose { a.get(&am, b, j, i) } else { a.get(&am, b, i, j) };
                        value * x.get(&xm, b, 0, j)
                    })
                    .sum();
                let addend = if beta == 0. { 0. } else { beta * y.get(&old, b, 0, i) };
                prop_assert_eq!(y.get(&ym, b, 0, i), rounded(types[1], alpha * sum + addend));
            }
        }
        let written = y.bytes(start..matrices, 1, rows);
        ym.assert_untouched_except(&old.bytes, &written);
        let touches = product.touches(&matrix, &input, &result);
        assert_writes(&touches, Operand::Result, &written);
        assert_reads(&touches, Operand::InputVector, &x.bytes(start..matrices, 1, columns));
        assert_reads(&touches, Operand::Left, &a.bytes(start..matrices, stored.0, stored.1));
    }
}

#[test]
fn integers_give_floats() {
    for (input, output) in [(Element::Int8, Element::Float16), (Element::Int16, Element::Float32)] {
        let layout = |element| Layout { origin: (0, 0), ..Layout::around(2, 2, 1, element, &mut Random(7)) };
        let (a, c) = (layout(input), layout(output));
        let (mut am, mut bm, mut cm) = (a.memory(), a.memory(), c.memory());
        for (at, value) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().zip([-3., 4., 5., -6.]) {
            am.put(input, a.at(0, at.0, at.1), value);
            bm.put(input, a.at(0, at.0, at.1), value);
        }
        let operands = (a.matrix(&mut am), a.matrix(&mut bm), c.matrix(&mut cm));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { Multiplication::new(2, 2, 2).run(&operands.0, &operands.1, &operands.2) }.unwrap();
        let values = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| c.get(&cm, 0, i, j));
        assert_eq!(values, [29., -36., -45., 56.]);
    }
}

#[test]
fn factors_are_clamped_to_the_type_of_the_result() {
    let layout = Layout { origin: (0, 0), ..Layout::around(1, 1, 1, Element::Float16, &mut Random(1)) };
    let (mut am, mut bm, mut cm) = (layout.memory(), layout.memory(), layout.memory());
    am.put(Element::Float16, layout.at(0, 0, 0), 0.5);
    bm.put(Element::Float16, layout.at(0, 0, 0), 0.5);
    let product = Multiplication { alpha: 1e6, ..Multiplication::new(1, 1, 1) };
    let (a, b, c) = (layout.matrix(&mut am), layout.matrix(&mut bm), layout.matrix(&mut cm));
    // SAFETY: the memories outlive the call and nothing else uses them.
    unsafe { product.run(&a, &b, &c) }.unwrap();
    assert_eq!(layout.get(&cm, 0, 0, 0), 65504. / 4.);
}
