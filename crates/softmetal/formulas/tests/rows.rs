//! Operations on rows (softmax, its gradient, top-k, neurons, sums) against loops written here.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the shared memory module")]

mod memory;

use memory::*;
use proptest::prelude::*;
use softmetal_formulas::element::Element;
use softmetal_formulas::kernel::{Batch, Extent, Origin};
use softmetal_formulas::neuron::{Activation, Neuron};
use softmetal_formulas::softmax::Softmax;
use softmetal_formulas::softmax_gradient::SoftmaxGradient;
use softmetal_formulas::sum::{Sum, Summands};
use softmetal_formulas::top_k::TopK;
use softmetal_formulas::touches::Operand;

proptest! {
    #[test]
    fn softmax_equals_the_naive_loops(rows in 1usize..6, columns in 1usize..9, seed: u64) {
        let random = &mut Random(seed);
        let (element, logarithm) = (random.float(), random.flag());
        let matrices = 1 + random.below(3);
        let start = random.below(matrices);
        let x = Layout::around(rows, columns, matrices, element, random);
        let y = Layout::around(rows, columns, matrices, element, random);
        let (mut xm, mut ym) = (x.memory(), y.memory());
        x.fill(&mut xm, start..matrices, rows, columns, random);
        let before = ym.bytes.clone();
        let softmax = Softmax {
            logarithm,
            extent: Extent { rows, columns },
            source_origin: x.start(),
            result_origin: y.start(),
            batch: Batch { start, size: usize::MAX },
        };
        let (input, result) = (x.matrix(&mut xm), y.matrix(&mut ym));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { softmax.run(&input, &result) }.unwrap();
        for b in start..matrices {
            for i in 0..rows {
                // The values lie in -2..=2: the plain formula cannot overflow.
                let total: f64 = (0..columns).map(|j| x.get(&xm, b, i, j).exp()).sum();
                for j in 0..columns {
                    let share = x.get(&xm, b, i, j).exp() / total;
                    let expected = if logarithm { share.ln() } else { share };
                    let got = y.get(&ym, b, i, j);
                    prop_assert!((got - expected).abs() <= tolerance(element, expected) + 1e-14, "{got} {expected}");
                }
            }
        }
        let written = y.bytes(start..matrices, rows, columns);
        ym.assert_untouched_except(&before, &written);
        let touches = softmax.touches(&input, &result);
        assert_writes(&touches, Operand::Result, &written);
        assert_reads(&touches, Operand::Input, &x.bytes(start..matrices, rows, columns));
    }

    #[test]
    fn softmax_gradient_equals_the_naive_loops(rows in 1usize..6, columns in 1usize..9, seed: u64) {
        let random = &mut Random(seed);
        let (element, logarithm) = (random.float(), random.flag());
        let layouts: Vec<_> = (0..3).map(|_| Layout::around(rows, columns, 2, element, random)).collect();
        let [dy, y, dx] = [layouts[0], layouts[1], layouts[2]];
        let (mut dym, mut ym, mut dxm) = (dy.memory(), y.memory(), dx.memory());
        dy.fill(&mut dym, 0..2, rows, columns, random);
        y.fill(&mut ym, 0..2, rows, columns, random);
        let before = dxm.bytes.clone();
        let gradient = SoftmaxGradient {
            logarithm,
            extent: Extent { rows, columns },
            gradient_origin: dy.start(),
            forward_origin: y.start(),
            result_origin: dx.start(),
            batch: Batch::default(),
        };
        let (incoming, forward, result) = (dy.matrix(&mut dym), y.matrix(&mut ym), dx.matrix(&mut dxm));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { gradient.run(&incoming, &forward, &result) }.unwrap();
        for b in 0..2 {
            for i in 0..rows {
                for j in 0..columns {
                    let at = |k: usize| (dy.get(&dym, b, i, k), y.get(&ym, b, i, k));
                    let (d, f) = at(j);
                    let expected = if logarithm {
                        d - f.exp() * (0..columns).map(|k| at(k).0).sum::<f64>()
                    } else {
                        f * (d - (0..columns).map(|k| at(k).0 * at(k).1).sum::<f64>())
                    };
                    let got = dx.get(&dxm, b, i, j);
                    prop_assert!((got - expected).abs() <= tolerance(element, expected) + 1e-13, "{got} {expected}");
                }
            }
        }
        let written = dx.bytes(0..2, rows, columns);
        dxm.assert_untouched_except(&before, &written);
        let touches = gradient.touches(&incoming, &forward, &result);
        assert_writes(&touches, Operand::Result, &written);
        assert_reads(&touches, Operand::Gradient, &dy.bytes(0..2, rows, columns));
        assert_reads(&touches, Operand::ForwardOutput, &y.bytes(0..2, rows, columns));
    }

    #[test]
    fn top_k_equals_repeated_search(rows in 1usize..5, columns in 1usize..24, seed: u64) {
        let random = &mut Random(seed);
        let element = random.float();
        let count = 1 + random.below(columns.min(16));
        let offset = random.below(9);
        let x = Layout::around(rows, columns, 2, element, random);
        let mut p = Layout::around(rows, count, 2, Element::UInt32, random);
        let mut v = Layout::around(rows, count, 2, element, random);
        // Both results start at one origin: each gets the larger of the two.
        let origin = (p.origin.0.max(v.origin.0), p.origin.1.max(v.origin.1));
        for layout in [&mut p, &mut v] {
            (layout.rows, layout.columns) = (layout.rows + 3, layout.columns + 3);
            layout.row_bytes = layout.columns * layout.element.size();
            layout.matrix_bytes = layout.rows * layout.row_bytes;
            layout.origin = origin;
        }
        let (mut xm, mut pm, mut vm) = (x.memory(), p.memory(), v.memory());
        x.fill(&mut xm, 0..2, rows, columns, random);
        let before = (pm.bytes.clone(), vm.bytes.clone());
        let top = TopK {
            index_offset: offset,
            extent: Extent { rows, columns },
            source_origin: x.start(),
            result_origin: p.start(),
            ..TopK::new(count)
        };
        let (input, indices, values) = (x.matrix(&mut xm), p.matrix(&mut pm), v.matrix(&mut vm));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { top.run(&input, &indices, &values) }.unwrap();
        for b in 0..2 {
            for i in 0..rows {
                let mut left: Vec<Option<f64>> = (0..columns).map(|j| Some(x.get(&xm, b, i, j))).collect();
                for rank in 0..count {
                    let mut best = None;
                    for j in 0..columns {
                        if left[j].is_some() && best.is_none_or(|at: usize| left[j] > left[at]) {
                            best = Some(j);
                        }
                    }
                    let best = best.unwrap();
                    prop_assert_eq!(v.get(&vm, b, i, rank), left[best].take().unwrap());
                    prop_assert_eq!(p.get(&pm, b, i, rank), (best + offset) as f64);
                }
            }
        }
        let written = (p.bytes(0..2, rows, count), v.bytes(0..2, rows, count));
        pm.assert_untouched_except(&before.0, &written.0);
        vm.assert_untouched_except(&before.1, &written.1);
        let touches = top.touches(&input, &indices, &values);
        assert_writes(&touches, Operand::ResultIndices, &written.0);
        assert_writes(&touches, Operand::ResultValues, &written.1);
        assert_reads(&touches, Operand::Input, &x.bytes(0..2, rows, columns));
    }

    #[test]
    fn neuron_equals_the_naive_loops(rows in 1usize..6, columns in 1usize..9, seed: u64) {
        let random = &mut Random(seed);
        let (element, with_bias) = (random.float(), random.flag());
        let x = Layout::around(rows, columns, 2, element, random);
        let y = Layout::around(rows, columns, 2, element, random);
        let (mut xm, mut ym) = (x.memory(), y.memory());
        x.fill(&mut xm, 0..2, rows, columns, random);
        let mut bm = Memory::new(columns * element.size());
        for j in 0..columns {
            bm.put(element, j * element.size(), random.value());
        }
        let bias = vector(&mut bm, element, columns);
        let bias = with_bias.then_some(&bias);
        let neuron = Neuron {
            alpha: 0.5,
            extent: Extent { rows, columns },
            source_origin: x.start(),
            result_origin: y.start(),
            ..Neuron::new(Activation::Relu(0.25))
        };
        let before = ym.bytes.clone();
        let (input, result) = (x.matrix(&mut xm), y.matrix(&mut ym));
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { neuron.run(&input, bias, &result) }.unwrap();
        for b in 0..2 {
            for i in 0..rows {
                for j in 0..columns {
                    let added = if with_bias { bm.get(element, j * element.size()) } else { 0. };
                    let z = 0.5 * x.get(&xm, b, i, j) + added;
                    let expected = if z < 0. { 0.25 * z } else { z };
                    prop_assert_eq!(y.get(&ym, b, i, j), rounded(element, expected));
                }
            }
        }
        let written = y.bytes(0..2, rows, columns);
        ym.assert_untouched_except(&before, &written);
        assert_writes(&neuron.touches(&input, bias, &result), Operand::Result, &written);
    }

    #[test]
    fn sum_equals_the_naive_loops(rows in 1usize..5, columns in 1usize..5, count in 1usize..4, seed: u64) {
        let random = &mut Random(seed);
        let (element, transpose, start) = (random.float(), random.flag(), random.below(3));
        let layouts: Vec<_> = (0..count).map(|_| Layout::around(rows, columns, 1, element, random)).collect();
        let mut memories: Vec<_> = layouts.iter().map(Layout::memory).collect();
        let mut scales = Memory::new((start + count) * 4);
        let mut offsets = Memory::new((start + count) * 8);
        for (index, (layout, memory)) in layouts.iter().zip(&mut memories).enumerate() {
            layout.fill(memory, 0..1, rows, columns, random);
            scales.put(Element::Float32, (start + index) * 4, random.value());
            offsets.put(Element::UInt32, (start + index) * 8, layout.origin.0 as f64);
            offsets.put(Element::UInt32, (start + index) * 8 + 4, layout.origin.1 as f64);
        }
        let shape = if transpose { (columns, rows) } else { (rows, columns) };
        let mut bm = Memory::new(shape.1 * element.size());
        for j in 0..shape.1 {
            bm.put(element, j * element.size(), random.value());
        }
        let y = Layout::around(shape.0, shape.1, 1, element, random);
        let mut ym = y.memory();
        let before = ym.bytes.clone();
        let sources: Vec<_> = layouts.iter().zip(&mut memories).map(|(l, m)| l.matrix(m)).collect();
        let bias = vector(&mut bm, element, shape.1);
        let operands = Summands {
            sources: &sources,
            scales: &vector(&mut scales, Element::Float32, start + count),
            offsets: &vector(&mut offsets, Element::UInt32, 2 * (start + count)),
            bias: Some(&bias),
            start,
        };
        let activation = Activation::Absolute;
        let sum = Sum { count, rows, columns, transpose, activation, result_origin: y.start() };
        let result = y.matrix(&mut ym);
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { sum.run(&operands, &result) }.unwrap();
        for i in 0..shape.0 {
            for j in 0..shape.1 {
                let (r, c) = if transpose { (j, i) } else { (i, j) };
                let mut expected = bm.get(element, j * element.size());
                for (index, (layout, memory)) in layouts.iter().zip(&memories).enumerate() {
                    let scale = scales.get(Element::Float32, (start + index) * 4);
                    expected += scale * layout.get(memory, 0, r, c);
                }
                prop_assert_eq!(y.get(&ym, 0, i, j), rounded(element, expected.abs()));
            }
        }
        let written = y.bytes(0..1, shape.0, shape.1);
        ym.assert_untouched_except(&before, &written);
        assert_writes(&sum.touches(&operands, &result), Operand::Result, &written);
    }
}

#[test]
fn softmax_of_extreme_rows() {
    let layout = Layout { origin: (0, 0), ..Layout::around(3, 2, 1, Element::Float32, &mut Random(3)) };
    let (mut xm, mut ym) = (layout.memory(), layout.memory());
    let values = [[1e30, 1e30], [f64::NEG_INFINITY, 0.], [f64::NEG_INFINITY, f64::NEG_INFINITY]];
    for (i, row) in values.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            xm.put(Element::Float32, layout.at(0, i, j), *value);
        }
    }
    let softmax = Softmax { extent: Extent { rows: 3, columns: 2 }, ..Softmax::default() };
    let (input, result) = (layout.matrix(&mut xm), layout.matrix(&mut ym));
    // SAFETY: the memories outlive the call and nothing else uses them.
    unsafe { softmax.run(&input, &result) }.unwrap();
    let row = |i| [layout.get(&ym, 0, i, 0), layout.get(&ym, 0, i, 1)];
    assert_eq!((row(0), row(1)), ([0.5, 0.5], [0., 1.]));
    assert!(row(2).iter().all(|value| value.is_nan()));
}

#[test]
fn top_k_of_the_headers_example() {
    let source = [6., 3., 8., 1., 9., 4., 5.];
    let layout = |columns, element| Layout {
        origin: (0, 0),
        columns,
        row_bytes: 64,
        matrix_bytes: 64,
        offset: 0,
        rows: 1,
        ..Layout::around(1, 1, 1, element, &mut Random(0))
    };
    let (x, p, v) = (layout(7, Element::Float32), layout(3, Element::UInt32), layout(3, Element::Float32));
    let (mut xm, mut pm, mut vm) = (x.memory(), p.memory(), v.memory());
    for (j, value) in source.into_iter().enumerate() {
        xm.put(Element::Float32, x.at(0, 0, j), value);
    }
    let (input, indices, values) = (x.matrix(&mut xm), p.matrix(&mut pm), v.matrix(&mut vm));
    for (index_offset, expected) in [(2, [4., 2., 6.]), (0, [2., 0., 4.])] {
        let top = TopK { index_offset, source_origin: Origin::at(0, 2), ..TopK::new(3) };
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { top.run(&input, &indices, &values) }.unwrap();
        assert_eq!([0, 1, 2].map(|j| v.get(&vm, 0, 0, j)), [9., 8., 5.]);
        assert_eq!([0, 1, 2].map(|j| p.get(&pm, 0, 0, j)), expected);
    }
}
