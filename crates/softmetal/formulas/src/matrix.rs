//! Matrices: `MPSMatrixDescriptor` and `MPSMatrix`.

use std::ops::Range;

use crate::element::Element;
use crate::rules::{Refusal, require};
use crate::touches::coalesce;

/// The bytes between rows that give the best speed: packed rows, rounded up to 16 bytes.
///
/// The header recommends this stride and requires only that a row fits. Apple's figure varies by device; the
/// 16 is this model's.
pub fn recommended_row_bytes(columns: usize, element: Element) -> usize {
    columns.saturating_mul(element.size()).checked_next_multiple_of(16).unwrap_or(usize::MAX)
}

/// Sizes, strides and data type of a batch of matrices, row by row.
///
/// Element `(i, j)` of matrix `k` is at byte `k * matrix_bytes + i * row_bytes + j * element size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixDescriptor {
    rows: usize,
    columns: usize,
    matrices: usize,
    row_bytes: usize,
    matrix_bytes: usize,
    element: Element,
}

impl MatrixDescriptor {
    /// One matrix; its `matrix_bytes` is `rows * row_bytes`.
    ///
    /// # Errors
    ///
    /// `mps-matrix-zero`, `mps-row-bytes-multiple`, `mps-row-bytes-small`; `mps-matrix-bytes-small` where
    /// `rows * row_bytes` overflows.
    pub fn new(rows: usize, columns: usize, row_bytes: usize, element: Element) -> Result<Self, Refusal> {
        // Where the product overflows, the greatest multiple is still too small and is refused as such.
        let greatest = usize::MAX - usize::MAX % row_bytes.max(1);
        Self::batch(rows, columns, 1, row_bytes, rows.checked_mul(row_bytes).unwrap_or(greatest), element)
    }

    /// One matrix without bytes between its rows.
    ///
    /// # Errors
    ///
    /// `mps-matrix-zero`.
    pub fn packed(rows: usize, columns: usize, element: Element) -> Result<Self, Refusal> {
        Self::new(rows, columns, columns.saturating_mul(element.size()), element)
    }

    /// A batch of matrices that lie `matrix_bytes` apart.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), `mps-matrix-bytes-multiple`, `mps-matrix-bytes-small`.
    pub fn batch(
        rows: usize,
        columns: usize,
        matrices: usize,
        row_bytes: usize,
        matrix_bytes: usize,
        element: Element,
    ) -> Result<Self, Refusal> {
        let size = element.size();
        require(rows > 0 && columns > 0 && matrices > 0, "mps-matrix-zero", || {
            format!("{matrices} matrices of {rows} x {columns}")
        })?;
        require(row_bytes.is_multiple_of(size), "mps-row-bytes-multiple", || {
            format!("rowBytes {row_bytes} is not a multiple of the {size} bytes of {element:?}")
        })?;
        require(row_bytes >= columns.saturating_mul(size), "mps-row-bytes-small", || {
            format!("rowBytes {row_bytes} is less than {columns} columns of {size} bytes")
        })?;
        require(matrix_bytes.is_multiple_of(row_bytes), "mps-matrix-bytes-multiple", || {
            format!("matrixBytes {matrix_bytes} is not a multiple of rowBytes {row_bytes}")
        })?;
        require(matrix_bytes >= rows.saturating_mul(row_bytes), "mps-matrix-bytes-small", || {
            format!("matrixBytes {matrix_bytes} is less than {rows} rows of {row_bytes} bytes")
        })?;
        Ok(Self { rows, columns, matrices, row_bytes, matrix_bytes, element })
    }

    /// Rows of a matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Matrices in the batch.
    pub fn matrices(&self) -> usize {
        self.matrices
    }

    /// Bytes from a row to the next.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes from a matrix to the next.
    pub fn matrix_bytes(&self) -> usize {
        self.matrix_bytes
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes from the first element to the end of the last one; `usize::MAX` where that overflows.
    pub fn bytes(&self) -> usize {
        let matrices = (self.matrices - 1).saturating_mul(self.matrix_bytes);
        let rows = (self.rows - 1).saturating_mul(self.row_bytes);
        matrices.saturating_add(rows).saturating_add(self.columns * self.element.size())
    }
}

/// Part of a batch of matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Matrices of the batch.
    pub matrices: Range<usize>,
    /// Rows of each matrix.
    pub rows: Range<usize>,
    /// Columns of each row.
    pub columns: Range<usize>,
}

/// A batch of matrices in a buffer. Nothing is read or written before an operation's `run`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    buffer: *mut u8,
    offset: usize,
    descriptor: MatrixDescriptor,
}

// SAFETY: the pointer is used only in `unsafe` methods, whose callers vouch for the buffer on the thread of
// the call.
unsafe impl Send for Matrix {}
// SAFETY: as for `Send`; sharing gives no access that is not `unsafe`.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Places a matrix `offset` bytes into a buffer of `length` bytes.
    ///
    /// # Errors
    ///
    /// `mps-matrix-offset-alignment`, `mps-matrix-buffer-small`.
    pub fn new(
        buffer: *mut u8,
        length: usize,
        offset: usize,
        descriptor: MatrixDescriptor,
    ) -> Result<Self, Refusal> {
        let size = descriptor.element.size();
        require(offset.is_multiple_of(size), "mps-matrix-offset-alignment", || {
            format!("offset {offset} is not a multiple of the {size} bytes of {:?}", descriptor.element)
        })?;
        let needed = descriptor.bytes().saturating_add(offset);
        require(needed <= length, "mps-matrix-buffer-small", || {
            format!(
                "the buffer has {length} bytes; {needed} are needed for {} matrices of {} x {} at offset {offset}",
                descriptor.matrices, descriptor.rows, descriptor.columns
            )
        })?;
        Ok(Self { buffer, offset, descriptor })
    }

    /// The start of the buffer.
    pub fn buffer(&self) -> *mut u8 {
        self.buffer
    }

    /// Bytes from the start of the buffer to the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Sizes, strides and data type.
    pub fn descriptor(&self) -> &MatrixDescriptor {
        &self.descriptor
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.descriptor.element
    }

    /// All bytes of elements, counted from the start of the buffer, in order and coalesced.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let descriptor = &self.descriptor;
        self.region_ranges(&Region {
            matrices: 0..descriptor.matrices,
            rows: 0..descriptor.rows,
            columns: 0..descriptor.columns,
        })
    }

    /// The bytes of a region, counted from the start of the buffer, in order and coalesced: bytes between
    /// rows belong to none.
    pub fn region_ranges(&self, region: &Region) -> Vec<Range<usize>> {
        let width = region.columns.len() * self.element().size();
        let rows =
            region.matrices.clone().flat_map(|matrix| region.rows.clone().map(move |row| (matrix, row)));
        let ranges = rows.map(|(matrix, row)| {
            let start = self.position(matrix, row, region.columns.start);
            start..start + width
        });
        coalesce(ranges.collect())
    }

    fn position(&self, matrix: usize, row: usize, column: usize) -> usize {
        let descriptor = &self.descriptor;
        self.offset
            + matrix * descriptor.matrix_bytes
            + row * descriptor.row_bytes
            + column * descriptor.element.size()
    }

    /// Reads an element.
    ///
    /// # Safety
    ///
    /// The buffer is readable over the length given to [`new`](Self::new), and nothing writes it meanwhile.
    ///
    /// # Panics
    ///
    /// For an index outside the matrix.
    pub unsafe fn read(&self, matrix: usize, row: usize, column: usize) -> f64 {
        self.assert_inside(matrix, row, column);
        // SAFETY: the index is inside, `new` checked that all elements are in the buffer, and the caller
        // vouches for the buffer.
        unsafe { self.element().read(self.buffer.add(self.position(matrix, row, column))) }
    }

    /// Writes an element, rounded to the data type.
    ///
    /// # Safety
    ///
    /// The buffer is writable over the length given to [`new`](Self::new), and nothing else uses it
    /// meanwhile.
    ///
    /// # Panics
    ///
    /// For an index outside the matrix.
    pub unsafe fn write(&self, matrix: usize, row: usize, column: usize, value: f64) {
        self.assert_inside(matrix, row, column);
        // SAFETY: as for `read`.
        unsafe { self.element().write(self.buffer.add(self.position(matrix, row, column)), value) }
    }

    /// Reads the rows and columns of one matrix of a region, row by row.
    ///
    /// # Safety
    ///
    /// As for [`read`](Self::read).
    pub(crate) unsafe fn read_rows(
        &self,
        matrix: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Vec<f64> {
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        for row in rows {
            for column in columns.clone() {
                // SAFETY: passed on to the caller.
                values.push(unsafe { self.read(matrix, row, column) });
            }
        }
        values
    }

    fn assert_inside(&self, matrix: usize, row: usize, column: usize) {
        let descriptor = &self.descriptor;
        assert!(
            matrix < descriptor.matrices && row < descriptor.rows && column < descriptor.columns,
            "element ({matrix}, {row}, {column}) is outside the matrix"
        );
    }
}
