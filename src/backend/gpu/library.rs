//! Calls of the vendor's library (Metal Performance Shaders on Apple's systems) as data.

use super::address::{Accesses, Address, ByteRange};
use crate::tensor::DType;

/// Bytes that the arena has behind its last tensor. A library may count whole rows of a matrix whose columns are part of wider
/// rows, so the gap after the last row must exist: rows of up to 64 Ki f32 elements.
pub(in crate::backend) const ROW_GAP: usize = 256 << 10;

/// How matrices of one shape are stored, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct MatrixLayout {
    pub(in crate::backend) dtype: DType,
    pub(in crate::backend) rows: usize,
    pub(in crate::backend) columns: usize,
    /// Elements from row to row, at least `columns`.
    pub(in crate::backend) row: usize,
    pub(in crate::backend) batch: usize,
    /// Elements from matrix to matrix: a multiple of `row`, at least all rows. Not used for one matrix.
    pub(in crate::backend) step: usize,
}

impl MatrixLayout {
    /// Returns true if elements are adjacent, and rows of a matrix and matrices of a batch have one distance each.
    pub(in crate::backend) fn fits(&self) -> bool {
        self.rows > 0
            && self.columns > 0
            && self.batch > 0
            && self.row >= self.columns
            && (self.batch == 1 || self.step >= self.rows * self.row && self.step.is_multiple_of(self.row))
    }

    /// Bytes from the first element to the end of the last.
    pub(in crate::backend) fn bytes(&self) -> usize {
        let steps = if self.batch == 1 { 0 } else { (self.batch - 1) * self.step };
        (steps + (self.rows - 1) * self.row + self.columns) * self.dtype.size()
    }

    /// Bytes of whole matrices of whole rows, which a library may count.
    pub(in crate::backend) fn counted_bytes(&self) -> usize {
        let matrix = if self.batch == 1 { self.rows * self.row } else { self.step };
        self.batch * matrix * self.dtype.size()
    }
}

/// Matrices of one shape at equal distances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::backend) struct Matrix {
    pub(in crate::backend) address: Address,
    pub(in crate::backend) layout: MatrixLayout,
}

impl std::ops::Deref for Matrix {
    type Target = MatrixLayout;

    fn deref(&self) -> &MatrixLayout {
        &self.layout
    }
}

impl Matrix {
    /// One matrix, with `row` elements from row to row.
    pub(in crate::backend) fn single(
        address: Address,
        dtype: DType,
        (rows, columns): (usize, usize),
        row: usize,
    ) -> Self {
        Self { address, layout: MatrixLayout { dtype, rows, columns, row, batch: 1, step: 0 } }
    }

    /// Returns true if a library may read it in place: the gap after the last row of columns within wider rows must exist
    /// too, in the allocation or in what the arena keeps behind its last tensor.
    pub(in crate::backend) fn fits(&self) -> bool {
        let within = || match self.address {
            Address::Allocated(allocation, start) => start + self.counted_bytes() <= allocation.bytes,
            Address::Arena(_) | Address::External(..) => {
                self.counted_bytes().saturating_sub(self.bytes()) <= ROW_GAP
            }
        };
        self.layout.fits() && within()
    }

    /// Returns `length` of its rows, or of its columns, from `first` on.
    pub(in crate::backend) fn part(&self, of_rows: bool, first: usize, length: usize) -> Self {
        let elements = if of_rows { first * self.row } else { first };
        let mut part = *self;
        part.address = self.address.plus(elements * self.dtype.size());
        if of_rows {
            part.layout.rows = length;
        } else {
            part.layout.columns = length;
        }
        part
    }

    /// The bytes that it covers.
    pub(in crate::backend) fn range(&self) -> ByteRange {
        ByteRange::new(self.address, self.bytes())
    }
}

/// A matrix as an operand of a product: stored this way, and used transposed if the flag is set.
pub(in crate::backend) type Operand = (Matrix, bool);

/// A call of the vendor's library.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::backend) enum LibraryCall {
    /// `result = alpha·op(left)·op(right) + beta·result`.
    MatMul { left: Operand, right: Operand, result: Matrix, alpha: f32, beta: f32 },
    /// Softmax of rows, or its logarithm.
    Softmax { x: Matrix, y: Matrix, logarithm: bool },
    /// Gradient of [`LibraryCall::Softmax`].
    SoftmaxGrad { dy: Matrix, y: Matrix, dx: Matrix, logarithm: bool },
    /// The largest elements of each row and their indices, as many as `values` has columns.
    TopK { x: Matrix, values: Matrix, indices: Matrix },
}

impl LibraryCall {
    /// The bytes that the call reads and writes.
    pub(super) fn accesses(&self) -> Accesses {
        let ranges = |matrices: &[Matrix]| matrices.iter().map(Matrix::range).collect();
        let (reads, writes) = match self {
            Self::MatMul { left, right, result, beta, .. } => {
                let mut reads: Vec<ByteRange> = ranges(&[left.0, right.0]);
                if *beta != 0.0 {
                    reads.push(result.range());
                }
                (reads, ranges(&[*result]))
            }
            Self::Softmax { x, y, .. } => (ranges(&[*x]), ranges(&[*y])),
            Self::SoftmaxGrad { dy, y, dx, .. } => (ranges(&[*dy, *y]), ranges(&[*dx])),
            Self::TopK { x, values, indices } => (ranges(&[*x]), ranges(&[*values, *indices])),
        };
        Accesses { reads, writes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::Allocation;
    use super::*;

    /// 3 rows of 4 columns of 6: the last element ends at byte 64, the last row at 72.
    #[test]
    fn columns_at_the_end_of_a_buffer_do_not_fit() {
        let at = |bytes: usize, start: usize| {
            let address = Address::Allocated(Allocation { index: 0, bytes }, start);
            Matrix::single(address, DType::F32, (3, 4), 6).fits()
        };
        assert_eq!([at(64, 0), at(72, 8), at(71, 0)], [false; 3]);
        assert_eq!([at(72, 0), at(80, 8)], [true; 2]);
        // The arena has room behind its last tensor, up to a limit.
        let behind = |row: usize| Matrix::single(Address::Arena(64), DType::F32, (3, 4), row).fits();
        assert_eq!([behind(6), behind(4 + ROW_GAP / 4), behind(5 + ROW_GAP / 4)], [true, true, false]);
    }
}
