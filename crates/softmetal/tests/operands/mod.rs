//! Matrices and vectors with random shapes, strides, offsets and batches, whose every byte is known.
#![allow(dead_code, missing_docs)]

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal::*;
use objc2_metal_performance_shaders::*;

use crate::bench::{Bench, Buffer};

/// Numbers that a seed decides.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// An integer from -4 to 4: sums of products of these are exact in every type here.
    pub fn value(&mut self) -> f64 {
        self.below(9) as f64 - 4.0
    }
}

/// The type of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    U32,
}

impl Kind {
    pub fn size(self) -> usize {
        if self == Self::F16 { 2 } else { 4 }
    }

    pub fn mps(self) -> MPSDataType {
        match self {
            Self::F32 => MPSDataType::Float32,
            Self::F16 => MPSDataType::Float16,
            Self::U32 => MPSDataType::UInt32,
        }
    }

    fn bytes(self, value: f64) -> Vec<u8> {
        match self {
            Self::F32 => (value as f32).to_le_bytes().to_vec(),
            Self::F16 => half_of(value).to_le_bytes().to_vec(),
            Self::U32 => (value as u32).to_le_bytes().to_vec(),
        }
    }

    fn value(self, bytes: &[u8]) -> f64 {
        match self {
            Self::F32 => f32::from_le_bytes(bytes.try_into().expect("4 bytes")).into(),
            Self::F16 => of_half(u16::from_le_bytes(bytes.try_into().expect("2 bytes"))),
            Self::U32 => u32::from_le_bytes(bytes.try_into().expect("4 bytes")).into(),
        }
    }
}

/// The bits of a normal number or zero in f16, which must be exact.
fn half_of(value: f64) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let exponent = value.abs().log2().floor() as i32;
    let fraction = (value.abs() / 2f64.powi(exponent) - 1.0) * 1024.0;
    assert!(fraction.fract() == 0.0 && (-14..=15).contains(&exponent), "{value} is exact in f16");
    u16::from(value < 0.0) << 15 | ((exponent + 15) as u16) << 10 | fraction as u16
}

/// The value of f16 bits; NaN for the poison of new buffers, and for infinities, which no test expects.
fn of_half(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let value = match exponent {
        31 => f64::NAN,
        0 => fraction * 2f64.powi(-24),
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if sign == 1 { -value } else { value }
}

/// A batch of matrices in a buffer. A vector is a row; a batch of vectors are rows.
pub struct Operand {
    pub buffer: Buffer,
    pub kind: Kind,
    pub matrices: usize,
    pub rows: usize,
    pub columns: usize,
    row_bytes: usize,
    matrix_bytes: usize,
    offset: usize,
    /// What the buffer held at first.
    before: Vec<u8>,
}

impl Operand {
    /// Random strides and offset, values from `value` by matrix, row and column.
    pub fn new(
        bench: &Bench,
        random: &mut Random,
        kind: Kind,
        [matrices, rows, columns]: [usize; 3],
        options: MTLResourceOptions,
        mut value: impl FnMut(&mut Random, [usize; 3]) -> f64,
    ) -> Self {
        let row_bytes = (columns + random.below(4)) * kind.size();
        let layout = [random.below(9) * kind.size(), row_bytes, (rows + random.below(2)) * row_bytes];
        Self::with_layout(bench, random, kind, [matrices, rows, columns], layout, options, &mut value)
    }

    /// The same with offset, bytes of a row and bytes of a matrix as given.
    pub fn with_layout(
        bench: &Bench,
        random: &mut Random,
        kind: Kind,
        [matrices, rows, columns]: [usize; 3],
        [offset, row_bytes, matrix_bytes]: [usize; 3],
        options: MTLResourceOptions,
        value: &mut dyn FnMut(&mut Random, [usize; 3]) -> f64,
    ) -> Self {
        let size = kind.size();
        // A buffer's length is a multiple of four, as blits ask for.
        let length = (offset + matrices * matrix_bytes).next_multiple_of(4);
        let buffer = bench.device.newBufferWithLength_options(length, options).expect("a buffer");
        let mut this = Self {
            buffer,
            kind,
            matrices,
            rows,
            columns,
            row_bytes,
            matrix_bytes,
            offset,
            before: Vec::new(),
        };
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        for matrix in 0..matrices {
            for row in 0..rows {
                for column in 0..columns {
                    let at = this.place([matrix, row, column]);
                    bytes[at..at + size].copy_from_slice(&kind.bytes(value(random, [matrix, row, column])));
                }
            }
        }
        let start = this.buffer.contents().cast::<u8>();
        // SAFETY: the buffer is as long as the bytes, and the device does not use it yet.
        unsafe { start.copy_from_nonoverlapping(std::ptr::NonNull::from(&mut bytes[0]), length) };
        this.before = bytes;
        this
    }

    fn place(&self, [matrix, row, column]: [usize; 3]) -> usize {
        self.offset + matrix * self.matrix_bytes + row * self.row_bytes + column * self.kind.size()
    }

    /// The bytes that an element takes from the start of the buffer.
    fn bytes_of(&self, at: [usize; 3]) -> std::ops::Range<usize> {
        self.place(at)..self.place(at) + self.kind.size()
    }

    /// An element as it was at first.
    pub fn was(&self, at: [usize; 3]) -> f64 {
        self.kind.value(&self.before[self.bytes_of(at)])
    }

    /// Compares every byte: `expected` tells the elements that are to be written, all others are to be as they were.
    pub fn check(&self, what: &str, expected: impl Fn([usize; 3]) -> Option<f64>) {
        let start = self.buffer.contents().cast::<u8>();
        // SAFETY: the buffer has so many bytes, and the test has waited for the device.
        let now: Vec<u8> = (0..self.before.len()).map(|i| unsafe { start.add(i).read() }).collect();
        let mut rest = self.before.clone();
        for matrix in 0..self.matrices {
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let at = [matrix, row, column];
                    let Some(expected) = expected(at) else { continue };
                    let found = self.kind.value(&now[self.bytes_of(at)]);
                    // Half a unit of the last place of what f32 or f16 holds of the value.
                    let unit = if self.kind == Kind::F16 { 1.0 / 2048.0 } else { 1.0 / f64::from(1 << 24) };
                    let close = (found - expected).abs() <= unit * expected.abs().max(1e-4);
                    assert!(close, "{what}: {found} instead of {expected} at {at:?}");
                    rest[self.bytes_of(at)].copy_from_slice(&now[self.bytes_of(at)]);
                }
            }
        }
        assert!(now == rest, "{what}: a byte was written that is none of the result");
    }

    pub fn matrix(&self) -> Retained<MPSMatrix> {
        // SAFETY: the classes check what they are given.
        unsafe {
            let descriptor =
                MPSMatrixDescriptor::matrixDescriptorWithRows_columns_matrices_rowBytes_matrixBytes_dataType(
                    self.rows,
                    self.columns,
                    self.matrices,
                    self.row_bytes,
                    self.matrix_bytes,
                    self.kind.mps(),
                );
            MPSMatrix::initWithBuffer_offset_descriptor(
                MPSMatrix::alloc(),
                &self.buffer,
                self.offset,
                &descriptor,
            )
        }
    }

    /// An array with these lengths, the fastest first: the rows and columns of the matrices, then what the matrices
    /// are split into.
    pub fn array(&self, lengths: &[usize], packed: bool) -> Retained<MPSNDArray> {
        // SAFETY: the classes check what they are given.
        unsafe {
            let descriptor = MPSNDArrayDescriptor::descriptorWithDataType_dimensionCount_dimensionSizes(
                self.kind.mps(),
                lengths.len(),
                std::ptr::NonNull::new(lengths.as_ptr().cast_mut()).expect("lengths"),
            );
            descriptor.setPreferPackedRows(packed);
            MPSNDArray::initWithBuffer_offset_descriptor(
                MPSNDArray::alloc(),
                &self.buffer,
                self.offset,
                &descriptor,
            )
        }
    }

    /// The rows as vectors.
    pub fn vector(&self) -> Retained<MPSVector> {
        // SAFETY: the classes check what they are given.
        unsafe {
            let descriptor = MPSVectorDescriptor::vectorDescriptorWithLength_vectors_vectorBytes_dataType(
                self.columns,
                self.rows,
                self.row_bytes,
                self.kind.mps(),
            );
            MPSVector::initWithBuffer_offset_descriptor(
                MPSVector::alloc(),
                &self.buffer,
                self.offset,
                &descriptor,
            )
        }
    }
}
