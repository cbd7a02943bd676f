//! Copies between matrices against loops written here.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the shared memory module")]

mod memory;

use memory::*;
use proptest::prelude::*;
use softmetal_formulas::copy::{Copies, Copy, CopyOffsets, Permutation};
use softmetal_formulas::element::Element;
use softmetal_formulas::touches::Operand;

fn offsets(source: &Layout, destination: &Layout) -> CopyOffsets {
    CopyOffsets {
        source_row: source.origin.0 as u32,
        source_column: source.origin.1 as u32,
        destination_row: destination.origin.0 as u32,
        destination_column: destination.origin.1 as u32,
    }
}

fn swapped(transpose: bool, i: usize, j: usize) -> (usize, usize) {
    if transpose { (j, i) } else { (i, j) }
}

proptest! {
    #[test]
    fn copy_equals_the_naive_loops(rows in 1usize..6, columns in 1usize..6, count in 1usize..4, seed: u64) {
        let random = &mut Random(seed);
        let (st, dt, element) = (random.flag(), random.flag(), random.float());
        let (sr, sc) = swapped(st, rows, columns);
        let (dr, dc) = swapped(dt, rows, columns);
        let from: Vec<_> = (0..count).map(|_| Layout::around(sr, sc, 1, element, random)).collect();
        let to: Vec<_> = (0..count).map(|_| Layout::around(dr, dc, 1, element, random)).collect();
        let mut fm: Vec<_> = from.iter().map(Layout::memory).collect();
        let mut tm: Vec<_> = to.iter().map(Layout::memory).collect();
        for (layout, memory) in from.iter().zip(&mut fm) {
            layout.fill(memory, 0..1, sr, sc, random);
        }
        let offsets: Vec<_> = from.iter().zip(&to).map(|(source, result)| offsets(source, result)).collect();
        let sources: Vec<_> = from.iter().zip(&mut fm).map(|(l, m)| l.matrix(m)).collect();
        let destinations: Vec<_> = to.iter().zip(&mut tm).map(|(l, m)| l.matrix(m)).collect();
        let copies = Copies {
            sources: &sources,
            destinations: &destinations,
            offsets: &offsets,
            row_permutation: None,
            column_permutation: None,
        };
        let copy = Copy { rows, columns, sources_transposed: st, destinations_transposed: dt };
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { copy.run(&copies) }.unwrap();
        let touches = copy.touches(&copies);
        for index in 0..count {
            for i in 0..rows {
                for j in 0..columns {
                    let (a, b) = swapped(st, i, j);
                    let (c, d) = swapped(dt, i, j);
                    let expected = from[index].get(&fm[index], 0, a, b);
                    prop_assert_eq!(to[index].get(&tm[index], 0, c, d), expected);
                }
            }
            let written = to[index].bytes(0..1, dr, dc);
            tm[index].assert_untouched_except(&vec![0xff; tm[index].bytes.len()], &written);
            assert_writes(&touches, Operand::Destination(index), &written);
            assert_reads(&touches, Operand::Source(index), &from[index].bytes(0..1, sr, sc));
        }
    }

    #[test]
    fn permuted_copy_scatters_rows_and_columns(rows in 1usize..6, columns in 1usize..6, seed: u64) {
        let random = &mut Random(seed);
        let element = random.float();
        let from = Layout::around(rows, columns, 1, element, random);
        let to = Layout::around(rows, columns, 1, element, random);
        let (mut fm, mut tm) = (from.memory(), to.memory());
        from.fill(&mut fm, 0..1, rows, columns, random);
        // Rotations by one, each behind two unused numbers: a permutation that is not its own inverse.
        let rotation = |count: usize| {
            let mut memory = Memory::new((count + 2) * 4);
            for index in 0..count {
                memory.put(Element::UInt32, (index + 2) * 4, ((index + 1) % count) as f64);
            }
            memory
        };
        let (mut rm, mut cm) = (rotation(rows), rotation(columns));
        let order = (vector(&mut rm, Element::UInt32, rows + 2), vector(&mut cm, Element::UInt32, columns + 2));
        let (sources, destinations) = ([from.matrix(&mut fm)], [to.matrix(&mut tm)]);
        let copies = Copies {
            sources: &sources,
            destinations: &destinations,
            offsets: &[offsets(&from, &to)],
            row_permutation: Some(Permutation { indices: &order.0, offset: 2 }),
            column_permutation: Some(Permutation { indices: &order.1, offset: 2 }),
        };
        let copy = Copy { rows, columns, sources_transposed: false, destinations_transposed: false };
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { copy.run(&copies) }.unwrap();
        for i in 0..rows {
            for j in 0..columns {
                let got = to.get(&tm, 0, (i + 1) % rows, (j + 1) % columns);
                prop_assert_eq!(got, from.get(&fm, 0, i, j));
            }
        }
        let written = to.bytes(0..1, rows, columns);
        tm.assert_untouched_except(&vec![0xff; tm.bytes.len()], &written);
        let announced = bytes_of(&copy.touches(&copies).writes, Operand::Destination(0));
        prop_assert!(announced.is_superset(&written));
    }
}

#[test]
fn offsets_are_read_from_a_vector() {
    let mut memory = Memory::new(48);
    for index in 0..8 {
        memory.put(Element::UInt32, 16 + index * 4, (index * index) as f64);
    }
    let vector = vector(&mut memory, Element::UInt32, 12);
    // SAFETY: the memory outlives the call and nothing writes it.
    let offsets = unsafe { CopyOffsets::read_packed(&vector, 16, 2) }.unwrap();
    let second =
        CopyOffsets { source_row: 16, source_column: 25, destination_row: 36, destination_column: 49 };
    assert_eq!(offsets[0].destination_column, 9);
    assert_eq!(offsets[1], second);
}
