//! Gradients of softmax: `MPSMatrixSoftMaxGradient` and `MPSMatrixLogSoftMaxGradient`.

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin};
use crate::matrix::Matrix;
use crate::multiplication::counts;
use crate::rules::{Refusal, refuse, require};
use crate::touches::{Operand, Touches};

/// The gradient with respect to the input of softmax, from the gradient `dY` and the output `Y`.
///
/// Softmax: `dX_ij = Y_ij (dY_ij - sum_k dY_ik Y_ik)`. Its logarithm: `dX_ij = dY_ij - exp(Y_ij) sum_k dY_ik`;
/// the header sets the closing bracket of `exp` behind the sum, which is no derivative of anything here.
/// Rows and columns are those that both sources have from their origins on, at most `extent`. All operands
/// have one type, Float32 or Float16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftmaxGradient {
    /// The forward operation gave the logarithm: `MPSMatrixLogSoftMaxGradient`.
    pub logarithm: bool,
    /// Rows and columns taken: `sourceRows` and `sourceColumns`.
    pub extent: Extent,
    /// Where the gradient starts: `primarySourceMatrixOrigin`.
    pub gradient_origin: Origin,
    /// Where the forward output starts: `secondarySourceMatrixOrigin`.
    pub forward_origin: Origin,
    /// Where the result starts.
    pub result_origin: Origin,
    /// Matrices processed.
    pub batch: Batch,
}

impl SoftmaxGradient {
    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-softmax-gradient-types`, `-source-origin`, `-result-shape`, `mps-origin-z`, `mps-batch-start`.
    pub fn check(&self, gradient: &Matrix, forward: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        let types = [gradient.element(), forward.element(), result.element()];
        let valid = types[1..].iter().all(|element| *element == types[0])
            && matches!(types[0], Element::Float32 | Element::Float16);
        require(valid, "mps-softmax-gradient-types", || format!("operands are {types:?}"))?;
        self.gradient_origin.check("gradient")?;
        self.forward_origin.check("forward output")?;
        self.result_origin.check("result")?;
        let extent = self.clip(gradient, forward);
        require(!extent.is_empty(), "mps-softmax-gradient-source-origin", || {
            format!("{} x {} are left of both sources", extent.rows, extent.columns)
        })?;
        require(extent.fits(result, self.result_origin), "mps-softmax-gradient-result-shape", || {
            format!("{} x {} are needed from {:?} on", extent.rows, extent.columns, self.result_origin)
        })?;
        self.batch.check(&counts(&[gradient, forward, result]))
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, gradient: &Matrix, forward: &Matrix, result: &Matrix) -> Vec<Refusal> {
        let counts = counts(&[gradient, forward, result]);
        let mut found: Vec<_> = self.batch.suspect(&counts).into_iter().collect();
        let offered = [
            self.extent.clip(gradient, self.gradient_origin),
            self.extent.clip(forward, self.forward_origin),
        ];
        if offered[0] != offered[1] {
            found.push(refuse("mps-softmax-gradient-sizes", format!("the sources offer {offered:?}")));
        }
        found.extend(self.touches(gradient, forward, result).alias_suspect(|operand| match operand {
            Operand::Gradient => gradient.buffer().addr(),
            Operand::ForwardOutput => forward.buffer().addr(),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written.
    pub fn touches(&self, gradient: &Matrix, forward: &Matrix, result: &Matrix) -> Touches {
        let matrices = self.batch.matrices(&counts(&[gradient, forward, result]));
        let extent = self.clip(gradient, forward);
        let place = |matrix: &Matrix, origin| matrix.region_ranges(&extent.region(origin, matrices.clone()));
        let mut touches = Touches::default();
        touches.read(Operand::Gradient, place(gradient, self.gradient_origin));
        touches.read(Operand::ForwardOutput, place(forward, self.forward_origin));
        touches.write(Operand::Result, place(result, self.result_origin));
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
    pub unsafe fn run(&self, gradient: &Matrix, forward: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        self.check(gradient, forward, result)?;
        let extent = self.clip(gradient, forward);
        let incoming = extent.region(self.gradient_origin, 0..1);
        let output = extent.region(self.forward_origin, 0..1);
        for matrix in self.batch.matrices(&counts(&[gradient, forward, result])) {
            // SAFETY: the caller vouches for the buffers.
            let dy = unsafe { gradient.read_rows(matrix, incoming.rows.clone(), incoming.columns.clone()) };
            // SAFETY: as above.
            let y = unsafe { forward.read_rows(matrix, output.rows.clone(), output.columns.clone()) };
            let rows = dy.chunks_exact(extent.columns).zip(y.chunks_exact(extent.columns));
            for (i, (dy, y)) in rows.enumerate() {
                let plain: f64 = dy.iter().sum();
                let weighted: f64 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
                for (j, (dy, y)) in dy.iter().zip(y).enumerate() {
                    let dx = if self.logarithm { dy - y.exp() * plain } else { y * (dy - weighted) };
                    let (row, column) = (self.result_origin.x + i, self.result_origin.y + j);
                    // SAFETY: as above.
                    unsafe { result.write(matrix, row, column, dx) };
                }
            }
        }
        Ok(())
    }

    fn clip(&self, gradient: &Matrix, forward: &Matrix) -> Extent {
        self.extent.clip(gradient, self.gradient_origin).clip(forward, self.forward_origin)
    }
}
