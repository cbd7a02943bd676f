//! The greatest values of each row: `MPSMatrixFindTopK`.

use std::cmp::Ordering;

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin};
use crate::matrix::Matrix;
use crate::multiplication::counts;
use crate::rules::{Refusal, require};
use crate::touches::{Operand, Touches};

/// The `count` greatest values of each row, greatest first, and their columns.
///
/// A column is counted from the source origin and `index_offset` is added to it. Source and values have one
/// type, Float32 or Float16; indices are UInt32. The header is silent on ties and NaN: here the lower column
/// wins a tie, and NaN is less than every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// Values per row, 1 to 16: `numberOfTopKValues`.
    pub count: usize,
    /// Added to every index.
    pub index_offset: usize,
    /// Rows and columns taken: `sourceRows` and `sourceColumns`.
    pub extent: Extent,
    /// Where the source starts.
    pub source_origin: Origin,
    /// Where both results start.
    pub result_origin: Origin,
    /// Matrices processed.
    pub batch: Batch,
}

impl TopK {
    /// `count` values per row of the whole source.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            index_offset: 0,
            extent: Extent::default(),
            source_origin: Origin::default(),
            result_origin: Origin::default(),
            batch: Batch::default(),
        }
    }

    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-top-k-count`, `-value-types`, `-index-type`, `-source-origin`, `-columns`, `-index-shape`,
    /// `-value-shape`, `mps-origin-z`, `mps-batch-start`.
    pub fn check(&self, input: &Matrix, indices: &Matrix, values: &Matrix) -> Result<(), Refusal> {
        require((1..=16).contains(&self.count), "mps-top-k-count", || format!("{} values", self.count))?;
        let types = (input.element(), values.element());
        let valid = types.0 == types.1 && matches!(types.0, Element::Float32 | Element::Float16);
        require(valid, "mps-top-k-value-types", || format!("source and values are {types:?}"))?;
        require(indices.element() == Element::UInt32, "mps-top-k-index-type", || {
            format!("indices are {:?}", indices.element())
        })?;
        self.source_origin.check("source")?;
        self.result_origin.check("result")?;
        let extent = self.extent.clip(input, self.source_origin);
        let inside = extent.rows > 0 && self.source_origin.y < input.descriptor().columns();
        require(inside, "mps-top-k-source-origin", || {
            format!("{} x {} are left from {:?} on", extent.rows, extent.columns, self.source_origin)
        })?;
        require(extent.columns >= self.count, "mps-top-k-columns", || {
            format!("{} columns for {} values", extent.columns, self.count)
        })?;
        let written = self.written(input);
        for (id, matrix) in [("mps-top-k-index-shape", indices), ("mps-top-k-value-shape", values)] {
            require(written.fits(matrix, self.result_origin), id, || {
                format!("{} x {} are needed from {:?} on", written.rows, written.columns, self.result_origin)
            })?;
        }
        self.batch.check(&counts(&[input, indices, values]))
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, input: &Matrix, indices: &Matrix, values: &Matrix) -> Vec<Refusal> {
        let counts = counts(&[input, indices, values]);
        let mut found: Vec<_> = self.batch.suspect(&counts).into_iter().collect();
        found.extend(self.touches(input, indices, values).alias_suspect(|operand| match operand {
            Operand::Input => input.buffer().addr(),
            Operand::ResultIndices => indices.buffer().addr(),
            _ => values.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written.
    pub fn touches(&self, input: &Matrix, indices: &Matrix, values: &Matrix) -> Touches {
        let matrices = self.batch.matrices(&counts(&[input, indices, values]));
        let read = self.extent.clip(input, self.source_origin).region(self.source_origin, matrices.clone());
        let written = self.written(input).region(self.result_origin, matrices);
        let mut touches = Touches::default();
        touches.read(Operand::Input, input.region_ranges(&read));
        touches.write(Operand::ResultIndices, indices.region_ranges(&written));
        touches.write(Operand::ResultValues, values.region_ranges(&written));
        touches
    }

    /// Checks and computes.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check); nothing is written then.
    ///
    /// # Safety
    ///
    /// The buffers are readable, and the results' writable, over the lengths given to [`Matrix::new`], and
    /// nothing else uses them during the call.
    pub unsafe fn run(&self, input: &Matrix, indices: &Matrix, values: &Matrix) -> Result<(), Refusal> {
        self.check(input, indices, values)?;
        let extent = self.extent.clip(input, self.source_origin);
        let source = extent.region(self.source_origin, 0..1);
        for matrix in self.batch.matrices(&counts(&[input, indices, values])) {
            // SAFETY: the caller vouches for the buffers.
            let all = unsafe { input.read_rows(matrix, source.rows.clone(), source.columns.clone()) };
            for (i, row) in all.chunks_exact(extent.columns).enumerate() {
                let mut order: Vec<usize> = (0..row.len()).collect();
                // A stable sort keeps the lower column first among equals.
                order.sort_by(|&one, &other| descending(row[one], row[other]));
                for (rank, &column) in order[..self.count].iter().enumerate() {
                    let at = (self.result_origin.x + i, self.result_origin.y + rank);
                    // SAFETY: as above.
                    unsafe {
                        indices.write(matrix, at.0, at.1, (column + self.index_offset) as f64);
                        values.write(matrix, at.0, at.1, row[column]);
                    }
                }
            }
        }
        Ok(())
    }

    fn written(&self, input: &Matrix) -> Extent {
        Extent { rows: self.extent.clip(input, self.source_origin).rows, columns: self.count }
    }
}

fn descending(one: f64, other: f64) -> Ordering {
    other.partial_cmp(&one).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}
