//! The product of a matrix and a vector: `MPSMatrixVectorMultiplication`.

use std::ops::Range;

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin, scale, scale_suspect};
use crate::matrix::Matrix;
use crate::multiplication::stored;
use crate::rules::{Refusal, require};
use crate::touches::{Operand, Touches};
use crate::vector::Vector;

/// `y = alpha op(A) x + beta y` for each matrix and vector of a batch.
///
/// `op(A)` is `rows x columns`; with the transpose flag the matrix is stored as `columns x rows`. Types of A
/// and x, and of y: Float32 and Float32, Float16 and Float16, Float16 and Float32. alpha and beta are
/// rounded, and clamped, to the type of y. With beta 0 the old values of y are not read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VectorMultiplication {
    /// The matrix is stored as `columns x rows`.
    pub transpose: bool,
    /// Rows of `op(A)`, elements of y.
    pub rows: usize,
    /// Columns of `op(A)`, elements of x.
    pub columns: usize,
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of the old values of y.
    pub beta: f64,
    /// Where the stored matrix starts: `primarySourceMatrixOrigin`.
    pub matrix_origin: Origin,
    /// Where x starts, in `x`: `secondarySourceMatrixOrigin`.
    pub input_origin: Origin,
    /// Where y starts, in `x`: `resultMatrixOrigin`.
    pub result_origin: Origin,
    /// Matrices and vectors processed.
    pub batch: Batch,
}

impl VectorMultiplication {
    /// `y = A x`: no transpose, alpha 1, beta 0, origins 0, all matrices.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self {
            transpose: false,
            rows,
            columns,
            alpha: 1.,
            beta: 0.,
            matrix_origin: Origin::default(),
            input_origin: Origin::default(),
            result_origin: Origin::default(),
            batch: Batch::default(),
        }
    }

    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-vector-product-types`, `-matrix-shape`, `-input-length`, `-result-length`, `-origin`,
    /// `mps-origin-z`, `mps-batch-start`.
    pub fn check(&self, matrix: &Matrix, input: &Vector, result: &Vector) -> Result<(), Refusal> {
        let types = (matrix.element(), input.element(), result.element());
        let valid = matrix.element() == input.element()
            && matches!(
                (input.element(), result.element()),
                (Element::Float32, Element::Float32)
                    | (Element::Float16, Element::Float16 | Element::Float32)
            );
        require(valid, "mps-vector-product-types", || format!("matrix, input and result are {types:?}"))?;
        self.matrix_origin.check("matrix")?;
        require(self.stored().fits(matrix, self.matrix_origin), "mps-vector-product-matrix-shape", || {
            format!(
                "the matrix is {} x {}; op(A) is {} x {} from ({}, {}) on",
                matrix.descriptor().rows(),
                matrix.descriptor().columns(),
                self.rows,
                self.columns,
                self.matrix_origin.x,
                self.matrix_origin.y
            )
        })?;
        for (name, origin) in [("input", self.input_origin), ("result", self.result_origin)] {
            require(origin.y == 0 && origin.z == 0, "mps-vector-product-origin", || {
                format!("the {name} origin has y = {}, z = {}", origin.y, origin.z)
            })?;
        }
        let fits = |vector: &Vector, origin: Origin, count: usize| {
            origin.x.checked_add(count).is_some_and(|end| end <= vector.descriptor().length())
        };
        require(fits(input, self.input_origin, self.columns), "mps-vector-product-input-length", || {
            format!("{} elements; {} are needed", input.descriptor().length(), self.columns)
        })?;
        require(fits(result, self.result_origin, self.rows), "mps-vector-product-result-length", || {
            format!("{} elements; {} are needed", result.descriptor().length(), self.rows)
        })?;
        self.batch.check(&counts(matrix, input, result))
    }

    /// Lists what is legal but known to fail somewhere, or unsaid.
    pub fn suspects(&self, matrix: &Matrix, input: &Vector, result: &Vector) -> Vec<Refusal> {
        let mut found: Vec<_> = self.batch.suspect(&counts(matrix, input, result)).into_iter().collect();
        found.extend(scale_suspect("alpha", self.alpha, result.element()));
        found.extend(scale_suspect("beta", self.beta, result.element()));
        found.extend(self.touches(matrix, input, result).alias_suspect(|operand| match operand {
            Operand::Left => matrix.buffer().addr(),
            Operand::InputVector => input.buffer().addr(),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read (matrix as `Left`, x as `InputVector`) and written; y is read only if beta is not 0.
    pub fn touches(&self, matrix: &Matrix, input: &Vector, result: &Vector) -> Touches {
        let matrices = self.batch.matrices(&counts(matrix, input, result));
        let region = self.stored().region(self.matrix_origin, matrices.clone());
        let written = result.region_ranges(matrices.clone(), span(self.result_origin, self.rows));
        let mut touches = Touches::default();
        touches.read(Operand::Left, matrix.region_ranges(&region));
        let read = input.region_ranges(matrices, span(self.input_origin, self.columns));
        touches.read(Operand::InputVector, read);
        if scale(self.beta, result.element()) != 0. {
            touches.read(Operand::Result, written.clone());
        }
        touches.write(Operand::Result, written);
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
    /// The buffers are readable, and the result's writable, over the lengths given to their constructors,
    /// and nothing else uses them during the call.
    pub unsafe fn run(&self, matrix: &Matrix, input: &Vector, result: &Vector) -> Result<(), Refusal> {
        self.check(matrix, input, result)?;
        let alpha = scale(self.alpha, result.element());
        let beta = scale(self.beta, result.element());
        let region = self.stored().region(self.matrix_origin, 0..1);
        for index in self.batch.matrices(&counts(matrix, input, result)) {
            // SAFETY: the caller vouches for the buffers.
            let a = unsafe { matrix.read_rows(index, region.rows.clone(), region.columns.clone()) };
            let x: Vec<f64> = span(self.input_origin, self.columns)
                // SAFETY: as above.
                .map(|element| unsafe { input.read(index, element) })
                .collect();
            for row in 0..self.rows {
                let at =
                    |column| if self.transpose { column * self.rows + row } else { row * x.len() + column };
                let product: f64 = x.iter().enumerate().map(|(column, value)| a[at(column)] * value).sum();
                let element = self.result_origin.x + row;
                // SAFETY: as above; y is read only where beta needs it.
                unsafe {
                    let old = if beta != 0. { beta * result.read(index, element) } else { 0. };
                    result.write(index, element, alpha * product + old);
                }
            }
        }
        Ok(())
    }

    fn stored(&self) -> Extent {
        stored(self.transpose, self.rows, self.columns)
    }
}

fn span(origin: Origin, count: usize) -> Range<usize> {
    origin.x..origin.x + count
}

fn counts(matrix: &Matrix, input: &Vector, result: &Vector) -> [usize; 3] {
    [matrix.descriptor().matrices(), input.descriptor().vectors(), result.descriptor().vectors()]
}
