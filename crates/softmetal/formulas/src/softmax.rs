//! Softmax and its logarithm along rows: `MPSMatrixSoftMax` and `MPSMatrixLogSoftMax`.

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin};
use crate::matrix::Matrix;
use crate::multiplication::counts;
use crate::rules::{Refusal, require};
use crate::touches::{Operand, Touches};

/// `B_ij = exp(A_ij) / sum_k exp(A_ik)`, or the logarithm of it, for each row of a batch of matrices.
///
/// Rows and columns are those of the source from its origin on, at most `extent`. Source and result have one
/// type, Float32 or Float16. The greatest value of a row is subtracted before the exponentials, which changes
/// nothing but overflow. A row of -inf alone gives NaN, as the formula does (0 / 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Softmax {
    /// The result is the logarithm: `MPSMatrixLogSoftMax`.
    pub logarithm: bool,
    /// Rows and columns taken: `sourceRows` and `sourceColumns`.
    pub extent: Extent,
    /// Where the source starts.
    pub source_origin: Origin,
    /// Where the result starts.
    pub result_origin: Origin,
    /// Matrices processed.
    pub batch: Batch,
}

impl Softmax {
    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-softmax-types`, `-source-origin`, `-result-shape`, `mps-origin-z`, `mps-batch-start`.
    pub fn check(&self, input: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        let types = (input.element(), result.element());
        let valid = types.0 == types.1 && matches!(types.0, Element::Float32 | Element::Float16);
        require(valid, "mps-softmax-types", || format!("source and result are {types:?}"))?;
        self.source_origin.check("source")?;
        self.result_origin.check("result")?;
        let extent = self.extent.clip(input, self.source_origin);
        require(!extent.is_empty(), "mps-softmax-source-origin", || {
            format!("{} x {} are left from {:?} on", extent.rows, extent.columns, self.source_origin)
        })?;
        require(extent.fits(result, self.result_origin), "mps-softmax-result-shape", || {
            format!("{} x {} are needed from {:?} on", extent.rows, extent.columns, self.result_origin)
        })?;
        self.batch.check(&counts(&[input, result]))
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, input: &Matrix, result: &Matrix) -> Vec<Refusal> {
        let mut found: Vec<_> = self.batch.suspect(&counts(&[input, result])).into_iter().collect();
        found.extend(self.touches(input, result).alias_suspect(|operand| match operand {
            Operand::Input => input.buffer().addr(),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written.
    pub fn touches(&self, input: &Matrix, result: &Matrix) -> Touches {
        let matrices = self.batch.matrices(&counts(&[input, result]));
        let extent = self.extent.clip(input, self.source_origin);
        let mut touches = Touches::default();
        let read = extent.region(self.source_origin, matrices.clone());
        touches.read(Operand::Input, input.region_ranges(&read));
        touches.write(Operand::Result, result.region_ranges(&extent.region(self.result_origin, matrices)));
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
    /// The buffers are readable, and the result's writable, over the lengths given to [`Matrix::new`], and
    /// nothing else uses them during the call.
    pub unsafe fn run(&self, input: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        self.check(input, result)?;
        let extent = self.extent.clip(input, self.source_origin);
        let source = extent.region(self.source_origin, 0..1);
        for matrix in self.batch.matrices(&counts(&[input, result])) {
            // SAFETY: the caller vouches for the buffers.
            let values = unsafe { input.read_rows(matrix, source.rows.clone(), source.columns.clone()) };
            for (i, row) in values.chunks_exact(extent.columns).enumerate() {
                let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|value| (value - greatest).exp()).sum();
                for (j, value) in row.iter().enumerate() {
                    let shifted = value - greatest;
                    let output = if self.logarithm { shifted - sum.ln() } else { shifted.exp() / sum };
                    let (row, column) = (self.result_origin.x + i, self.result_origin.y + j);
                    // SAFETY: as above.
                    unsafe { result.write(matrix, row, column, output) };
                }
            }
        }
        Ok(())
    }
}
