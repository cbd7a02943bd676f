//! Matrices of a plan: where they lie among the Metal backend's buffers.

use objc2_metal::MTLBuffer as _;

use super::ffi::{Array, Matrix, MatrixLayout};
use crate::Result;
use crate::backend::metal::buffer::{ROW_GAP, Raw};
use crate::backend::metal::launch::{Address, Span};
use crate::tensor::DType;

/// Matrices of one shape at equal distances.
#[derive(Clone)]
pub(in crate::backend) struct Operand {
    pub(in crate::backend) address: Address,
    pub(in crate::backend) layout: MatrixLayout,
}

impl std::ops::Deref for Operand {
    type Target = MatrixLayout;

    fn deref(&self) -> &MatrixLayout {
        &self.layout
    }
}

impl Operand {
    /// One matrix, with `row` elements from row to row.
    pub(in crate::backend) fn single(
        address: Address,
        dtype: DType,
        (rows, columns): (usize, usize),
        row: usize,
    ) -> Self {
        Self { address, layout: MatrixLayout { dtype, rows, columns, row, batch: 1, step: 0 } }
    }

    /// Whether the framework takes it where it is. Of columns within wider rows it may count the last row whole, so the
    /// gap after the last element must exist too: in the buffer, or in what the arena keeps behind its last tensor.
    pub(super) fn fits(&self) -> bool {
        let within = || match &self.address {
            Address::Fixed(raw, start) => start + self.layout.counted_bytes() <= raw.length(),
            Address::Arena(_) | Address::Given(..) => {
                self.layout.counted_bytes().saturating_sub(self.layout.bytes()) <= ROW_GAP
            }
        };
        self.layout.fits() && within()
    }

    /// Some of its rows, or of its columns.
    pub(super) fn part(&self, of_rows: bool, first: usize, length: usize) -> Self {
        let elements = if of_rows { first * self.row } else { first };
        let mut part = self.clone();
        part.address = self.address.plus(elements * self.dtype.size());
        if of_rows {
            part.layout.rows = length;
        } else {
            part.layout.columns = length;
        }
        part
    }

    /// The bytes that it covers.
    pub(super) fn span(&self) -> Span {
        Span::new(&self.address, self.bytes())
    }

    /// The framework's object over it.
    pub(super) fn matrix(&self, arena: &Raw) -> Result<Matrix> {
        let (buffer, offset) = self.address.resolve(arena);
        Matrix::over(buffer, offset, self.layout)
    }

    /// The framework's array over it.
    pub(super) fn array(&self, transposed: bool, arena: &Raw) -> Result<Array> {
        let (buffer, offset) = self.address.resolve(arena);
        Array::over(buffer, offset, self.layout, transposed)
    }
}

#[cfg(all(test, softmetal))]
mod tests {
    use objc2_metal::{MTLDevice as _, MTLResourceOptions};

    use super::*;
    use crate::backend::metal::device::Gpu;
    use crate::backend::select::Preference;

    /// 3 rows of 4 columns of 6: the last element ends at byte 64, the last row at 72.
    #[test]
    fn columns_at_the_end_of_a_buffer_stay_with_own_kernels() {
        let gpu = Gpu::new(Preference::Mps).unwrap();
        let at = |bytes: usize, start: usize| {
            let shared = MTLResourceOptions::StorageModeShared;
            let raw = gpu.device.newBufferWithLength_options(bytes, shared).unwrap();
            Operand::single(Address::Fixed(raw, start), DType::F32, (3, 4), 6).fits()
        };
        assert_eq!([at(64, 0), at(72, 8), at(71, 0)], [false; 3]);
        assert_eq!([at(72, 0), at(80, 8)], [true; 2]);
        // The arena has room behind its last tensor, up to a limit.
        let behind = |row: usize| Operand::single(Address::Arena(64), DType::F32, (3, 4), row).fits();
        assert_eq!([behind(6), behind(4 + ROW_GAP / 4), behind(5 + ROW_GAP / 4)], [true, true, false]);
    }
}
