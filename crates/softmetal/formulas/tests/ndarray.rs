//! Arrays and their product against loops written here.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the shared memory module")]

mod memory;

use std::collections::BTreeSet;

use memory::*;
use proptest::prelude::*;
use softmetal_formulas::element::Element;
use softmetal_formulas::ndarray::{NdArray, NdArrayDescriptor};
use softmetal_formulas::ndarray_multiplication::NdArrayMultiplication;
use softmetal_formulas::touches::Operand;

/// An array of a test: lengths fastest first as the operation sees them, and where each element lies.
struct Tensor {
    memory: Memory,
    element: Element,
    lengths: [usize; 4],
    strides: [usize; 4],
    offset: usize,
    array: NdArray,
}

impl Tensor {
    /// An array stored with its first two dimensions exchanged if `transposed`, cut out of one that is longer
    /// by one in dimension 1 if `sliced`, with rows padded to 16 bytes unless `packed`.
    fn new(lengths: [usize; 4], element: Element, random: &mut Random) -> Self {
        let (transposed, sliced, packed) = (random.flag(), random.flag(), random.flag());
        let size = element.size();
        let mut stored = lengths;
        if transposed {
            stored.swap(0, 1);
        }
        stored[1] += usize::from(sliced);
        let mut row = stored[0] * size;
        if !packed {
            row = row.div_ceil(16) * 16;
        }
        let mut strides = [size, row, row * stored[1], row * stored[1] * stored[2]];
        let base = random.below(4) * size;
        let mut memory = Memory::new(base + strides[3] * stored[3] + 5);
        let offset = base + usize::from(sliced) * row;

        let mut descriptor = NdArrayDescriptor::new(element, &stored).unwrap().with_packed_rows(packed);
        if sliced {
            descriptor.slice(1, 1..stored[1]).unwrap();
        }
        if transposed {
            descriptor.transpose(0, 1).unwrap();
            strides.swap(0, 1);
        }
        let array = NdArray::new(memory.bytes.as_mut_ptr(), memory.bytes.len(), base, &descriptor).unwrap();
        Self { memory, element, lengths, strides, offset, array }
    }

    fn at(&self, index: [usize; 4]) -> usize {
        let clamped = index.iter().zip(self.lengths).map(|(at, length)| if length == 1 { 0 } else { *at });
        self.offset + clamped.zip(self.strides).map(|(at, stride)| at * stride).sum::<usize>()
    }

    fn indices(&self) -> Vec<[usize; 4]> {
        let mut indices = vec![];
        for d in 0..self.lengths[3] {
            for c in 0..self.lengths[2] {
                for b in 0..self.lengths[1] {
                    indices.extend((0..self.lengths[0]).map(|a| [a, b, c, d]));
                }
            }
        }
        indices
    }

    fn fill(&mut self, random: &mut Random) {
        for index in self.indices() {
            let at = self.at(index);
            self.memory.put(self.element, at, random.value());
        }
    }

    fn get(&self, index: [usize; 4]) -> f64 {
        self.memory.get(self.element, self.at(index))
    }

    fn bytes(&self) -> BTreeSet<usize> {
        let size = self.element.size();
        self.indices().into_iter().flat_map(|index| self.at(index)..self.at(index) + size).collect()
    }
}

proptest! {
    #[test]
    fn ndarray_multiplication_equals_the_naive_loops(
        m in 1usize..5, n in 1usize..5, k in 1usize..5, batch in (1usize..4, 1usize..3), seed: u64,
    ) {
        let random = &mut Random(seed);
        let element = [Element::Float32, Element::Float16, Element::BFloat16][random.below(3)];
        let mut source = |columns: usize, rows: usize, whole: bool| {
            let mut one = |length: usize| if !whole && random.flag() { 1 } else { length };
            let lengths = [columns, rows, one(batch.0), one(batch.1)];
            let mut tensor = Tensor::new(lengths, element, random);
            tensor.fill(random);
            tensor
        };
        let addend_rows = if seed.is_multiple_of(3) { 1 } else { m };
        let (a, b, c) = (source(k, m, true), source(n, k, false), source(n, addend_rows, false));
        let d = Tensor::new([n, m, batch.0, batch.1], element, &mut Random(seed ^ 99));
        let with_addend = seed.is_multiple_of(2);
        let (alpha, beta) = (-0.5, [0.5, 0.][(seed % 5 / 4) as usize]);
        let mut sources = vec![a.array.clone(), b.array.clone()];
        if with_addend {
            sources.push(c.array.clone());
        }
        let product = NdArrayMultiplication { alpha, beta, ..NdArrayMultiplication::new(sources.len()) };
        // SAFETY: the memories outlive the call and nothing else uses them.
        unsafe { product.run(&sources, &d.array) }.unwrap();
        for index in d.indices() {
            let [j, i, fast, slow] = index;
            let mut sum = 0.;
            for l in 0..k {
                sum += a.get([l, i, fast, slow]) * b.get([j, l, fast, slow]);
            }
            let addend = if with_addend { beta * c.get(index) } else { 0. };
            prop_assert_eq!(d.get(index), rounded(element, alpha * sum + addend));
        }
        d.memory.assert_untouched_except(&vec![0xff; d.memory.bytes.len()], &d.bytes());
        let touches = product.touches(&sources, &d.array);
        assert_writes(&touches, Operand::Result, &d.bytes());
        assert_reads(&touches, Operand::Source(0), &a.bytes());
        assert_reads(&touches, Operand::Source(1), &b.bytes());
        let read = if with_addend && beta != 0. { c.bytes() } else { BTreeSet::new() };
        assert_reads(&touches, Operand::Source(2), &read);
    }
}

#[test]
fn shape_is_slowest_first_and_permutations_add_up() {
    let mut descriptor = NdArrayDescriptor::from_shape(Element::Float32, &[5, 3, 2]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|dimension| descriptor.length(dimension)), [2, 3, 5, 1]);
    // Dimension 0 moves to 1, 1 to 2, 2 to 0.
    descriptor.permute(&[1, 2, 0]).unwrap();
    assert_eq!(descriptor.shape(), [3, 2, 5]);
    descriptor.permute(&[1, 2, 0]).unwrap();
    assert_eq!(descriptor.shape(), [2, 5, 3]);
    descriptor.permute(&[1, 2, 0]).unwrap();
    descriptor.slice(2, 1..3).unwrap();
    assert_eq!(descriptor.shape(), [2, 3, 2]);
}

#[test]
fn views_share_the_bytes_of_their_array() {
    let mut memory = Memory::new(96);
    for index in 0..24 {
        memory.put(Element::Float32, index * 4, index as f64);
    }
    let descriptor = NdArrayDescriptor::new(Element::Float32, &[4, 3, 2]).unwrap();
    let array = NdArray::new(memory.bytes.as_mut_ptr(), 96, 0, &descriptor.with_packed_rows(true)).unwrap();
    let mut slice = array.descriptor();
    slice.slice(1, 1..3).unwrap();
    slice.transpose(0, 2).unwrap();
    let view = array.view(&slice).unwrap();
    assert_eq!([0, 1, 2].map(|dimension| view.length(dimension)), [2, 2, 4]);
    // SAFETY: the memory outlives the reads and nothing writes it.
    assert_eq!(unsafe { view.read(&[1, 1, 3]) }, 23.);
    assert_eq!(view.ranges(), [16..48, 64..96]);
    let window = array.strided_view(&[3, 4], &[1, 2]).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { window.read(&[2, 3]) }, 8.);
    assert_eq!(window.ranges(), vec![0..36]);
}
