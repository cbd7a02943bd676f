//! The product of matrices: `MPSMatrixMultiplication`.

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin, scale, scale_suspect};
use crate::matrix::Matrix;
use crate::rules::{Refusal, refuse, require};
use crate::touches::{Operand, Touches};

/// `C = alpha op(A) op(B) + beta C` for each matrix of a batch.
///
/// `op(A)` is `rows x interior` and `op(B)` is `interior x columns`; with a transpose flag the matrix is
/// stored the other way round. Types: Float32, Float16, and Int8 or Int16 inputs with a float result. alpha
/// and beta are rounded, and clamped, to the type of C. With beta 0 the old values of C are not read, so
/// that NaN among them does no harm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multiplication {
    /// The left matrix is stored as `interior x rows`.
    pub transpose_left: bool,
    /// The right matrix is stored as `columns x interior`.
    pub transpose_right: bool,
    /// Rows of the result, M.
    pub rows: usize,
    /// Columns of the result, N.
    pub columns: usize,
    /// Columns of `op(A)`, K.
    pub interior: usize,
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of the old values of C.
    pub beta: f64,
    /// Where the stored left matrix starts.
    pub left_origin: Origin,
    /// Where the stored right matrix starts.
    pub right_origin: Origin,
    /// Where the result starts.
    pub result_origin: Origin,
    /// Matrices processed.
    pub batch: Batch,
}

impl Multiplication {
    /// `C = A B`: no transposes, alpha 1, beta 0, origins 0, all matrices.
    pub fn new(rows: usize, columns: usize, interior: usize) -> Self {
        Self {
            transpose_left: false,
            transpose_right: false,
            rows,
            columns,
            interior,
            alpha: 1.,
            beta: 0.,
            left_origin: Origin::default(),
            right_origin: Origin::default(),
            result_origin: Origin::default(),
            batch: Batch::default(),
        }
    }

    /// Refuses operands that the header or the runtime's assertions refuse.
    ///
    /// # Errors
    ///
    /// `mps-product-input-types`, `-mixed-types`, `-result-type`, `-left-shape`, `-right-shape`,
    /// `-result-shape`, `mps-origin-z`, `mps-batch-start`.
    pub fn check(&self, left: &Matrix, right: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        check_types(left.element(), right.element(), result.element())?;
        let operands = [
            ("left", "mps-product-left-shape", left, self.left_origin, self.stored_left()),
            ("right", "mps-product-right-shape", right, self.right_origin, self.stored_right()),
            ("result", "mps-product-result-shape", result, self.result_origin, self.stored_result()),
        ];
        for (name, id, matrix, origin, extent) in operands {
            origin.check(name)?;
            require(extent.fits(matrix, origin), id, || {
                let held = matrix.descriptor();
                format!(
                    "the {name} matrix is {} x {}; {} x {} are needed from ({}, {}) on",
                    held.rows(),
                    held.columns(),
                    extent.rows,
                    extent.columns,
                    origin.x,
                    origin.y
                )
            })?;
        }
        self.batch.check(&counts(&[left, right, result]))
    }

    /// Lists what is legal but known to fail somewhere; see [`Severity::Suspected`].
    ///
    /// [`Severity::Suspected`]: crate::rules::Severity::Suspected
    pub fn suspects(&self, left: &Matrix, right: &Matrix, result: &Matrix) -> Vec<Refusal> {
        let (m, n, k) = (self.rows, self.columns, self.interior);
        let operands = [left, right, result];
        let mut found = Vec::new();
        let mut suspect = |holds: bool, id: &str, text: String| {
            if !holds {
                found.push(refuse(id, text));
            }
        };
        let shape = format!("M = {m}, N = {n}, K = {k}");
        suspect(m > 0 && n > 0 && k > 0, "mps-product-zero", shape.clone());
        let size = operands.map(|matrix| matrix.element().size()).into_iter().max().unwrap_or(1);
        let reach = k.saturating_mul(2).saturating_add(m).saturating_mul(n).saturating_mul(size);
        suspect(reach < 1 << 31, "mps-product-overflow", format!("{shape}: {reach} bytes"));
        suspect(k <= 32000, "mps-product-interior", shape.clone());
        let padded = operands.iter().any(|matrix| {
            let held = matrix.descriptor();
            held.row_bytes() != held.columns() * held.element().size()
        });
        suspect(!padded || m.max(n).max(k) <= 1 << 15, "mps-product-strided", shape);
        let bytes = operands.map(|matrix| matrix.descriptor().bytes()).into_iter().max().unwrap_or(0);
        suspect(bytes < 1 << 31, "mps-product-operand-bytes", format!("an operand has {bytes} bytes"));
        let counts = counts(&operands);
        let matrices = self.batch.matrices(&counts).len();
        suspect(matrices <= 65535, "mps-product-batch", format!("{matrices} matrices"));
        found.extend(self.batch.suspect(&counts));
        found.extend(scale_suspect("alpha", self.alpha, result.element()));
        found.extend(scale_suspect("beta", self.beta, result.element()));
        found.extend(self.touches(left, right, result).alias_suspect(|operand| match operand {
            Operand::Left => left.buffer().addr(),
            Operand::Right => right.buffer().addr(),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written; C is read only if beta is not 0.
    pub fn touches(&self, left: &Matrix, right: &Matrix, result: &Matrix) -> Touches {
        let matrices = self.batch.matrices(&counts(&[left, right, result]));
        let place = |matrix: &Matrix, extent: Extent, origin| {
            matrix.region_ranges(&extent.region(origin, matrices.clone()))
        };
        let written = place(result, self.stored_result(), self.result_origin);
        let mut touches = Touches::default();
        touches.read(Operand::Left, place(left, self.stored_left(), self.left_origin));
        touches.read(Operand::Right, place(right, self.stored_right(), self.right_origin));
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
    /// The buffers are readable, and the result's writable, over the lengths given to [`Matrix::new`], and
    /// nothing else uses them during the call.
    pub unsafe fn run(&self, left: &Matrix, right: &Matrix, result: &Matrix) -> Result<(), Refusal> {
        self.check(left, right, result)?;
        let (m, n, k) = (self.rows, self.columns, self.interior);
        let alpha = scale(self.alpha, result.element());
        let beta = scale(self.beta, result.element());
        for matrix in self.batch.matrices(&counts(&[left, right, result])) {
            let region = self.stored_left().region(self.left_origin, 0..1);
            // SAFETY: the caller vouches for the buffers.
            let a = unsafe { left.read_rows(matrix, region.rows, region.columns) };
            let region = self.stored_right().region(self.right_origin, 0..1);
            // SAFETY: as above.
            let b = unsafe { right.read_rows(matrix, region.rows, region.columns) };
            // Both are brought to rows along K, which the inner loop then walks in order.
            let a = if self.transpose_left { transposed(&a, k, m) } else { a };
            let b = if self.transpose_right { b } else { transposed(&b, k, n) };
            for i in 0..m {
                for j in 0..n {
                    let terms = a[i * k..(i + 1) * k].iter().zip(&b[j * k..(j + 1) * k]);
                    let mut value = alpha * terms.map(|(x, y)| x * y).sum::<f64>();
                    let (row, column) = (self.result_origin.x + i, self.result_origin.y + j);
                    // SAFETY: as above; C is read only where beta needs it.
                    unsafe {
                        if beta != 0. {
                            value += beta * result.read(matrix, row, column);
                        }
                        result.write(matrix, row, column, value);
                    }
                }
            }
        }
        Ok(())
    }

    fn stored_left(&self) -> Extent {
        stored(self.transpose_left, self.rows, self.interior)
    }

    fn stored_right(&self) -> Extent {
        stored(self.transpose_right, self.interior, self.columns)
    }

    fn stored_result(&self) -> Extent {
        Extent { rows: self.rows, columns: self.columns }
    }
}

pub(crate) fn stored(transpose: bool, rows: usize, columns: usize) -> Extent {
    if transpose { Extent { rows: columns, columns: rows } } else { Extent { rows, columns } }
}

pub(crate) fn counts(matrices: &[&Matrix]) -> Vec<usize> {
    matrices.iter().map(|matrix| matrix.descriptor().matrices()).collect()
}

fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn check_types(left: Element, right: Element, result: Element) -> Result<(), Refusal> {
    use Element::{Float16, Float32, Int8, Int16};
    let types = || format!("left {left:?}, right {right:?}, result {result:?}");
    let input = |element| matches!(element, Float32 | Float16 | Int8 | Int16);
    require(input(left) && input(right), "mps-product-input-types", types)?;
    if left != right {
        let mixed = (left, right, result) == (Float32, Float16, Float32);
        return require(mixed, "mps-product-mixed-types", types);
    }
    let valid = matches!(
        (left, result),
        (Int8, Float16 | Float32) | (Int16, Float32) | (Float16, Float16 | Float32) | (Float32, Float32)
    );
    require(valid, "mps-product-result-type", types)
}
