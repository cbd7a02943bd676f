//! The product of arrays: `MPSNDArrayMatrixMultiplication`.

use crate::element::Element;
use crate::kernel::{scale, scale_suspect};
use crate::ndarray::NdArray;
use crate::rules::{Refusal, refuse, require};
use crate::touches::{Operand, Touches};

/// `D = alpha A B + beta C` for each matrix of arrays of up to four dimensions; C only with three sources.
///
/// Dimension 0 counts columns and dimension 1 rows: A has lengths `[K, M, ..]`, B `[N, K, ..]`, C and D
/// `[N, M, ..]`. A source whose dimension 2 or 3 has length 1 is repeated along it; an addend of one row, or
/// one column, is repeated too. Types: Float32, Float16, BFloat16. alpha and beta are rounded, and clamped,
/// to the type of D. With beta 0 C is not read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NdArrayMultiplication {
    /// 2, or 3 with an addend: `sourceCount`.
    pub sources: usize,
    /// Factor of the product, 1 by default.
    pub alpha: f64,
    /// Factor of the addend, 1 by default.
    pub beta: f64,
}

impl NdArrayMultiplication {
    /// A product with 2 or 3 sources, alpha 1 and beta 1.
    pub fn new(sources: usize) -> Self {
        Self { sources, alpha: 1., beta: 1. }
    }

    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-product-sources`, `-rank`, `-types`, `-interior`, `-result-shape`, `-batch-shape`,
    /// `-addend-shape`.
    pub fn check(&self, sources: &[NdArray], result: &NdArray) -> Result<(), Refusal> {
        let counted = matches!(self.sources, 2 | 3) && sources.len() == self.sources;
        require(counted, "mps-ndarray-product-sources", || {
            format!("{} sources for a product of {}", sources.len(), self.sources)
        })?;
        for array in sources.iter().chain([result]) {
            let flat = (4..array.rank()).all(|dimension| array.length(dimension) == 1);
            require(flat, "mps-ndarray-product-rank", || format!("{} dimensions", array.rank()))?;
            let float = matches!(array.element(), Element::Float32 | Element::Float16 | Element::BFloat16);
            require(float, "mps-ndarray-product-types", || format!("{:?}", array.element()))?;
        }
        let (left, right) = (&sources[0], &sources[1]);
        require(left.length(0) == right.length(1), "mps-ndarray-product-interior", || {
            format!("left has {} columns, right has {} rows", left.length(0), right.length(1))
        })?;
        for dimension in 2..4 {
            let wanted = result.length(dimension);
            let lengths: Vec<usize> = sources.iter().map(|source| source.length(dimension)).collect();
            // A result longer than every source has nothing to be broadcast from.
            let greatest = lengths.iter().copied().max().unwrap_or(1);
            require(wanted == greatest, "mps-ndarray-product-result-shape", || {
                format!("the result has length {wanted} in dimension {dimension}, the sources {lengths:?}")
            })?;
            let broadcast = lengths.iter().all(|length| *length == 1 || *length == wanted);
            require(broadcast, "mps-ndarray-product-batch-shape", || {
                format!("dimension {dimension} has lengths {lengths:?}, the result {wanted}")
            })?;
        }
        let (rows, columns) = (left.length(1), right.length(0));
        let shape = (result.length(1), result.length(0));
        require(shape == (rows, columns), "mps-ndarray-product-result-shape", || {
            format!("the result is {shape:?}, the product {rows} x {columns}")
        })?;
        if let Some(addend) = sources.get(2) {
            let held = (addend.length(1), addend.length(0));
            let broadcast = (held.0 == rows || held.0 == 1) && (held.1 == columns || held.1 == 1);
            require(broadcast, "mps-ndarray-product-addend-shape", || {
                format!("the addend is {held:?}, the product {rows} x {columns}")
            })?;
        }
        Ok(())
    }

    /// Lists what is legal but known to fail somewhere, or unsaid.
    pub fn suspects(&self, sources: &[NdArray], result: &NdArray) -> Vec<Refusal> {
        let mut found: Vec<_> = sources.iter().chain([result]).flat_map(NdArray::suspects).collect();
        let mut suspect = |holds: bool, id: &str, text: String| {
            if !holds {
                found.push(refuse(id, text));
            }
        };
        let element = result.element();
        let mixed = sources.iter().any(|source| source.element() != element);
        let types: Vec<_> = sources.iter().map(NdArray::element).collect();
        suspect(!mixed, "mps-ndarray-product-mixed-types", format!("{types:?} give {element:?}"));
        let matrices = result.length(2) * result.length(3);
        suspect(matrices <= 65535, "mps-ndarray-product-batch", format!("{matrices} matrices"));
        let half = element.size() == 2 && matrices > 1;
        suspect(!half, "mps-ndarray-product-half-batch", format!("{matrices} matrices of {element:?}"));
        let row = sources.len() == 3 && result.length(1) == 1;
        suspect(!row, "mps-ndarray-product-addend-row", "an addend and one row".to_string());
        for (index, source) in sources.iter().enumerate() {
            let transposed = source.length(0) > 1 && source.stride(0) != source.element().size();
            let held = !(transposed && source.element() == Element::BFloat16);
            suspect(held, "mps-ndarray-product-transposed-bfloat16", format!("source {index}"));
        }
        found.extend(scale_suspect("alpha", self.alpha, element));
        if sources.len() == 3 {
            found.extend(scale_suspect("beta", self.beta, element));
        }
        found.extend(self.touches(sources, result).alias_suspect(|operand| match operand {
            Operand::Source(index) => sources[index].buffer().addr(),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written; an addend is read only if beta is not 0.
    pub fn touches(&self, sources: &[NdArray], result: &NdArray) -> Touches {
        let mut touches = Touches::default();
        for (index, source) in sources.iter().enumerate() {
            if index < 2 || scale(self.beta, result.element()) != 0. {
                touches.read(Operand::Source(index), source.ranges());
            }
        }
        touches.write(Operand::Result, result.ranges());
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
    /// The buffers are readable, and the result's writable, over the lengths given to [`NdArray::new`], and
    /// nothing else uses them during the call.
    pub unsafe fn run(&self, sources: &[NdArray], result: &NdArray) -> Result<(), Refusal> {
        self.check(sources, result)?;
        let (left, right) = (&sources[0], &sources[1]);
        let (columns, rows, interior) = (result.length(0), result.length(1), left.length(0));
        let alpha = scale(self.alpha, result.element());
        let beta = scale(self.beta, result.element());
        for slow in 0..result.length(3) {
            for fast in 0..result.length(2) {
                let matrix = [fast, slow];
                // Brought to rows along K, which the inner loop then walks in order.
                // SAFETY: the caller vouches for the buffers.
                let a = unsafe { gather(left, matrix, rows, interior, |i, k| (k, i)) };
                // SAFETY: as above.
                let b = unsafe { gather(right, matrix, columns, interior, |j, k| (j, k)) };
                for i in 0..rows {
                    for j in 0..columns {
                        let terms = a[i * interior..(i + 1) * interior].iter();
                        let terms = terms.zip(&b[j * interior..(j + 1) * interior]);
                        let mut value = alpha * terms.map(|(x, y)| x * y).sum::<f64>();
                        // SAFETY: as above.
                        unsafe {
                            if let (Some(addend), true) = (sources.get(2), beta != 0.) {
                                value += beta * addend.read(&clamped(addend, [j, i, fast, slow]));
                            }
                            result.write(&[j, i, fast, slow], value);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The index with every dimension of length 1 at 0: what a broadcast reads.
fn clamped(array: &NdArray, mut index: [usize; 4]) -> [usize; 4] {
    for (dimension, at) in index.iter_mut().enumerate() {
        if array.length(dimension) == 1 {
            *at = 0;
        }
    }
    index
}

/// # Safety
///
/// The buffer of the array is readable and nothing writes it.
unsafe fn gather(
    array: &NdArray,
    matrix: [usize; 2],
    outer: usize,
    inner: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<f64> {
    let mut values = Vec::with_capacity(outer * inner);
    for o in 0..outer {
        for i in 0..inner {
            let (column, row) = place(o, i);
            let index = clamped(array, [column, row, matrix[0], matrix[1]]);
            // SAFETY: passed on to the caller.
            values.push(unsafe { array.read(&index) });
        }
    }
    values
}
