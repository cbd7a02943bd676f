//! Matrices of Metal Performance Shaders over the Metal backend's buffers.

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal_performance_shaders::{MPSDataType, MPSMatrix, MPSMatrixDescriptor};

use crate::backend::metal::buffer::Raw;
use crate::backend::metal::launch::{Address, Span};
use crate::tensor::DType;

/// Matrices of one shape at equal distances.
#[derive(Clone)]
pub(in crate::backend) struct Operand {
    pub(in crate::backend) address: Address,
    pub(in crate::backend) dtype: DType,
    pub(in crate::backend) rows: usize,
    pub(in crate::backend) columns: usize,
    /// Elements from row to row, at least `columns`.
    pub(in crate::backend) row: usize,
    pub(in crate::backend) batch: usize,
    /// Elements from matrix to matrix: a multiple of `row`, at least all rows.
    pub(in crate::backend) step: usize,
}

impl Operand {
    /// Whether the framework takes this layout.
    pub(super) fn fits(&self) -> bool {
        self.row >= self.columns
            && (self.batch == 1 || self.step >= self.rows * self.row && self.step.is_multiple_of(self.row))
    }

    /// Some of its rows, or of its columns.
    pub(super) fn part(&self, of_rows: bool, first: usize, length: usize) -> Self {
        let elements = if of_rows { first * self.row } else { first };
        let mut part = self.clone();
        part.address = self.address.plus(elements * self.dtype.size());
        if of_rows {
            part.rows = length;
        } else {
            part.columns = length;
        }
        part
    }

    /// The bytes that it covers.
    pub(super) fn span(&self) -> Span {
        let elements = (self.batch - 1) * self.step + (self.rows - 1) * self.row + self.columns;
        Span::new(&self.address, elements * self.dtype.size())
    }

    /// The framework's object over the arena, or over the parameter's buffer. Cheap, and made at every encoding, as the
    /// arena may have been replaced by a larger one.
    pub(super) fn matrix(&self, arena: &Raw) -> Retained<MPSMatrix> {
        let size = self.dtype.size();
        let (buffer, offset) = self.address.resolve(arena);
        let step = if self.batch == 1 { self.rows * self.row } else { self.step };
        // SAFETY: rows and matrices lie within the buffer, as the planner placed them; the strides are what `fits` asks for.
        unsafe {
            let descriptor =
                MPSMatrixDescriptor::matrixDescriptorWithRows_columns_matrices_rowBytes_matrixBytes_dataType(
                    self.rows,
                    self.columns,
                    self.batch,
                    self.row * size,
                    step * size,
                    data_type(self.dtype),
                );
            MPSMatrix::initWithBuffer_offset_descriptor(MPSMatrix::alloc(), buffer, offset, &descriptor)
        }
    }
}

/// The framework's name of an element type.
pub(super) fn data_type(dtype: DType) -> MPSDataType {
    match dtype {
        DType::F32 => MPSDataType::Float32,
        DType::F16 => MPSDataType::Float16,
        DType::BF16 => MPSDataType::BFloat16,
        DType::U32 => MPSDataType::UInt32,
    }
}
