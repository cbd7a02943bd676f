//! Memory for tests: every byte starts as 0xff, which is NaN in each float type, so that a read outside the
//! region shows in the result and a write outside it shows in the bytes. Values are read and written here
//! with `half` and the standard library, not with the crate under test.

use std::collections::BTreeSet;
use std::ops::Range;

use half::{bf16, f16};
use softmetal_formulas::element::Element;
use softmetal_formulas::kernel::Origin;
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
use softmetal_formulas::touches::{Operand, Touches};
use softmetal_formulas::vector::{Vector, VectorDescriptor};

pub struct Memory {
    pub bytes: Vec<u8>,
    pub set: BTreeSet<usize>,
}

impl Memory {
    pub fn new(length: usize) -> Self {
        Self { bytes: vec![0xff; length], set: BTreeSet::new() }
    }

    pub fn put(&mut self, element: Element, at: usize, value: f64) {
        let bytes = match element {
            Element::Float32 => (value as f32).to_le_bytes().to_vec(),
            Element::Float16 => f16::from_f32(value as f32).to_le_bytes().to_vec(),
            Element::BFloat16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
            Element::UInt32 => (value as u32).to_le_bytes().to_vec(),
            Element::Int8 => (value as i8).to_le_bytes().to_vec(),
            Element::Int16 => (value as i16).to_le_bytes().to_vec(),
            other => panic!("{other:?} is not used in tests"),
        };
        self.set.extend(at..at + bytes.len());
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    pub fn get(&self, element: Element, at: usize) -> f64 {
        let four = || self.bytes[at..at + 4].try_into().unwrap();
        let two = || self.bytes[at..at + 2].try_into().unwrap();
        match element {
            Element::Float32 => f32::from_le_bytes(four()).into(),
            Element::UInt32 => u32::from_le_bytes(four()).into(),
            Element::Float16 => f16::from_le_bytes(two()).into(),
            Element::BFloat16 => bf16::from_le_bytes(two()).into(),
            other => panic!("{other:?} is not used in tests"),
        }
    }

    /// Asserts that nothing but the given bytes differs from `before`.
    pub fn assert_untouched_except(&self, before: &[u8], written: &BTreeSet<usize>) {
        for (at, (now, then)) in self.bytes.iter().zip(before).enumerate() {
            assert!(now == then || written.contains(&at), "byte {at} changed from {then} to {now}");
        }
    }
}

/// A matrix of a test: its layout, and an origin inside it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub rows: usize,
    pub columns: usize,
    pub matrices: usize,
    pub row_bytes: usize,
    pub matrix_bytes: usize,
    pub offset: usize,
    pub element: Element,
    pub origin: (usize, usize),
}

impl Layout {
    /// A layout with room for `rows x columns` from its origin on, and with gaps chosen by `random`.
    pub fn around(
        rows: usize,
        columns: usize,
        matrices: usize,
        element: Element,
        random: &mut Random,
    ) -> Self {
        let origin = (random.below(3), random.below(3));
        let (height, width) = (rows + origin.0 + random.below(2), columns + origin.1 + random.below(2));
        let row_bytes = (width + random.below(4)) * element.size();
        let matrix_bytes = (height + random.below(2)) * row_bytes;
        let offset = random.below(5) * element.size();
        Self { rows: height, columns: width, matrices, row_bytes, matrix_bytes, offset, element, origin }
    }

    pub fn memory(&self) -> Memory {
        Memory::new(self.offset + self.matrices * self.matrix_bytes + 7)
    }

    pub fn at(&self, matrix: usize, row: usize, column: usize) -> usize {
        let (row, column) = (row + self.origin.0, column + self.origin.1);
        self.offset + matrix * self.matrix_bytes + row * self.row_bytes + column * self.element.size()
    }

    pub fn fill(
        &self,
        memory: &mut Memory,
        matrices: Range<usize>,
        rows: usize,
        columns: usize,
        random: &mut Random,
    ) {
        for matrix in matrices {
            for row in 0..rows {
                for column in 0..columns {
                    memory.put(self.element, self.at(matrix, row, column), random.value());
                }
            }
        }
    }

    pub fn get(&self, memory: &Memory, matrix: usize, row: usize, column: usize) -> f64 {
        memory.get(self.element, self.at(matrix, row, column))
    }

    pub fn bytes(&self, matrices: Range<usize>, rows: usize, columns: usize) -> BTreeSet<usize> {
        let mut bytes = BTreeSet::new();
        for matrix in matrices {
            for row in 0..rows {
                let start = self.at(matrix, row, 0);
                bytes.extend(start..start + columns * self.element.size());
            }
        }
        bytes
    }

    pub fn matrix(&self, memory: &mut Memory) -> Matrix {
        let Self { rows, columns, matrices, row_bytes, matrix_bytes, element, .. } = *self;
        let descriptor =
            MatrixDescriptor::batch(rows, columns, matrices, row_bytes, matrix_bytes, element).unwrap();
        Matrix::new(memory.bytes.as_mut_ptr(), memory.bytes.len(), self.offset, descriptor).unwrap()
    }

    pub fn start(&self) -> Origin {
        Origin::at(self.origin.0, self.origin.1)
    }
}

pub fn vector(memory: &mut Memory, element: Element, length: usize) -> Vector {
    let descriptor = VectorDescriptor::new(length, element).unwrap();
    Vector::new(memory.bytes.as_mut_ptr(), memory.bytes.len(), 0, descriptor).unwrap()
}

/// The bytes of an operand among touches, one by one.
pub fn bytes_of(touches: &[(Operand, Range<usize>)], operand: Operand) -> BTreeSet<usize> {
    touches.iter().filter(|touch| touch.0 == operand).flat_map(|touch| touch.1.clone()).collect()
}

pub fn assert_writes(touches: &Touches, operand: Operand, expected: &BTreeSet<usize>) {
    assert_eq!(&bytes_of(&touches.writes, operand), expected, "writes of {operand:?}");
}

pub fn assert_reads(touches: &Touches, operand: Operand, expected: &BTreeSet<usize>) {
    assert_eq!(&bytes_of(&touches.reads, operand), expected, "reads of {operand:?}");
}

/// Small numbers from a seed, by a linear congruence.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }

    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// An eighth between -2 and 2: sums of products of these are exact in `f32`, so that a test may ask for
    /// the one rounded result.
    pub fn value(&mut self) -> f64 {
        self.below(33) as f64 / 8. - 2.
    }

    pub fn float(&mut self) -> Element {
        if self.flag() { Element::Float32 } else { Element::Float16 }
    }
}

/// The value as the type stores it; exact inputs round once.
pub fn rounded(element: Element, value: f64) -> f64 {
    match element {
        Element::Float16 => f16::from_f32(value as f32).into(),
        Element::BFloat16 => bf16::from_f32(value as f32).into(),
        _ => f64::from(value as f32),
    }
}

/// Half a unit in the last place of the type, relative, twice over: one rounding by the crate, one by `half`.
pub fn tolerance(element: Element, value: f64) -> f64 {
    match element {
        Element::Float16 => value.abs() * 2f64.powi(-10) + 2f64.powi(-24),
        _ => value.abs() * 2f64.powi(-23) + 1e-40,
    }
}
