//! Which calls Metal Performance Shaders may take.
//!
//! Its classes do not return errors: a wrong argument ends the process, and some right ones give wrong numbers on some
//! chips. So every call is asked for here first, in plain Rust that is tested everywhere. Sources are named at each
//! [`Refusal`]; `docs/MPS_API_RESEARCH.md` has the table.

use crate::tensor::DType;

/// Why a call must not go to Metal Performance Shaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `MPSSupportsMTLDevice` returned false.
    #[error("Metal Performance Shaders do not support this GPU")]
    Device,
    /// MPSMatrixMultiplication takes f32 and f16; anything else is an assertion of the framework.
    #[error("this dtype, or mixture of dtypes, ends the process")]
    DType,
    /// A size of zero ends the process (pytorch 143859).
    #[error("a size is zero")]
    Empty,
    /// (m + 2k)·n elements of 2³¹ bytes or more: a band of rows becomes NaN on M1 and M2 (Metal.jl 381).
    #[error("the product is so large that rows become NaN on some chips")]
    Overflow,
    /// An operand of 2³¹ bytes or more; a cautious bound from the same report.
    #[error("an operand has 2^31 bytes or more")]
    Bytes,
    /// Inner lengths above 32,000 are summed wrongly on M1 and M2 (pytorch 183535, 177116, 195163).
    #[error("the inner length is above 32000, which M1 and M2 sum wrongly")]
    Interior,
    /// More than 65,535 matrices wrap around (pytorch 189495).
    #[error("the batch has more than 65535 matrices")]
    Batch,
    /// The elements of a row must be adjacent, rows of a matrix and matrices of a batch at one distance each.
    #[error("the layout has no adjacent rows at one distance")]
    Layout,
    /// More than 16 of the greatest elements are undefined behaviour.
    #[error("k is above 16, which is undefined")]
    TopK,
    /// With three arrays and one row, M1 on macOS 26 leaves the addend out (pytorch 180778), and no header promises that
    /// an array may be source and destination.
    #[error("the product of arrays has an addend, which some systems leave out")]
    Addend,
    /// The framework does not promise to work in place.
    #[error("the result lies over an input, which is not promised to work")]
    InPlace,
    /// Arrays over a buffer, and their encoding into an encoder of the caller's, exist from macOS 15 on.
    #[error("arrays over a buffer need macOS 15")]
    System,
    /// A transposed view of bf16 ends the process on macOS 27 (pytorch 197796).
    #[error("a transposed bf16 matrix ends the process from macOS 27 on")]
    Transposed,
    /// Attention with a window, segments or a cache has scores that the chain of products does not mask.
    #[error("the mask is more than a causal one")]
    Mask,
}

/// The greatest inner length that M1 and M2 sum rightly, as far as reports go.
pub const INTERIOR: usize = 32_000;

/// A product as the guard sees it.
#[derive(Debug, Clone, Copy)]
pub struct ProductShape {
    /// Type of the left matrix.
    pub left: DType,
    /// Type of the right matrix.
    pub right: DType,
    /// Type of the result.
    pub result: DType,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The inner length.
    pub k: usize,
    /// Matrices.
    pub batch: usize,
}

const LIMIT: usize = 1 << 31;

/// Refuses every call on a GPU that Metal Performance Shaders do not support.
pub fn device(supported: bool) -> Result<(), Refusal> {
    if supported { Ok(()) } else { Err(Refusal::Device) }
}

/// Checks that MPSMatrixMultiplication may compute a product, on a chip of this generation (1 for M1).
pub fn product(shape: &ProductShape, generation: u32) -> Result<(), Refusal> {
    let ProductShape { left, right, result, m, n, k, batch } = *shape;
    let single = left == right && right == result && matches!(left, DType::F32 | DType::F16);
    let widened = left == DType::F16 && right == DType::F16 && result == DType::F32;
    if !single && !widened {
        return Err(Refusal::DType);
    }
    if m == 0 || n == 0 || k == 0 || batch == 0 {
        return Err(Refusal::Empty);
    }
    let bytes = |rows: usize, columns: usize, dtype: DType| {
        rows.checked_mul(columns)?.checked_mul(batch)?.checked_mul(dtype.size())
    };
    if [bytes(m, k, left), bytes(k, n, right), bytes(m, n, result)]
        .iter()
        .any(|b| b.is_none_or(|b| b >= LIMIT))
    {
        return Err(Refusal::Bytes);
    }
    if (m + 2 * k).checked_mul(n).and_then(|x| x.checked_mul(left.size())).is_none_or(|b| b >= LIMIT) {
        return Err(Refusal::Overflow);
    }
    if k > INTERIOR && generation < 3 {
        return Err(Refusal::Interior);
    }
    if batch > 65_535 {
        return Err(Refusal::Batch);
    }
    Ok(())
}

/// Checks that MPSNDArrayMatrixMultiplication may take a product of bf16 matrices on a system of this major version.
/// `transposed`: one of them is stored transposed. `addend`: a third matrix is added. More than one matrix is refused:
/// arrays of three axes give results that differ from run to run on M5 (pytorch 180776, 181466).
pub fn array_product(
    shape: &ProductShape,
    transposed: bool,
    addend: bool,
    system: usize,
) -> Result<(), Refusal> {
    if [shape.left, shape.right, shape.result] != [DType::BF16; 3] {
        return Err(Refusal::DType);
    }
    if system < 15 {
        return Err(Refusal::System);
    }
    if transposed && system >= 27 {
        return Err(Refusal::Transposed);
    }
    if addend {
        return Err(Refusal::Addend);
    }
    if shape.batch > 1 {
        return Err(Refusal::Batch);
    }
    // The bounds of size are no laxer than those of the matrix classes; the chips' faults are not theirs.
    product(&ProductShape { left: DType::F16, right: DType::F16, result: DType::F16, ..*shape }, u32::MAX)
}

/// Checks that MPSMatrixSoftMax and its kin may take rows of this type.
pub fn softmax(dtype: DType, rows: usize, columns: usize) -> Result<(), Refusal> {
    if !matches!(dtype, DType::F32 | DType::F16) {
        return Err(Refusal::DType);
    }
    if rows == 0 || columns == 0 {
        return Err(Refusal::Empty);
    }
    if rows.checked_mul(columns).and_then(|x| x.checked_mul(dtype.size())).is_none_or(|b| b >= LIMIT) {
        return Err(Refusal::Bytes);
    }
    Ok(())
}

/// Checks that MPSMatrixFindTopK may find the k greatest elements of rows.
pub fn top_k(dtype: DType, rows: usize, columns: usize, k: usize) -> Result<(), Refusal> {
    softmax(dtype, rows, columns)?;
    if k == 0 || k > columns {
        return Err(Refusal::Empty);
    }
    if k > 16 {
        return Err(Refusal::TopK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(m: usize, n: usize, k: usize) -> ProductShape {
        ProductShape { left: DType::F32, right: DType::F32, result: DType::F32, m, n, k, batch: 1 }
    }

    #[test]
    fn types_that_end_the_process_are_refused() {
        let with = |left, right, result| product(&ProductShape { left, right, result, ..shape(8, 8, 8) }, 1);
        assert_eq!(with(DType::F32, DType::F32, DType::F32), Ok(()));
        assert_eq!(with(DType::F16, DType::F16, DType::F16), Ok(()));
        assert_eq!(with(DType::F16, DType::F16, DType::F32), Ok(()));
        for (left, right, result) in [
            (DType::BF16, DType::BF16, DType::BF16),
            (DType::F32, DType::F16, DType::F32),
            (DType::F16, DType::F32, DType::F32),
            (DType::F32, DType::F32, DType::F16),
            (DType::U32, DType::U32, DType::U32),
        ] {
            assert_eq!(with(left, right, result), Err(Refusal::DType), "{left} {right} {result}");
        }
    }

    #[test]
    fn sizes_are_refused_at_their_bounds() {
        for (m, n, k) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert_eq!(product(&shape(m, n, k), 5), Err(Refusal::Empty));
        }
        assert_eq!(product(&ProductShape { batch: 0, ..shape(1, 1, 1) }, 5), Err(Refusal::Empty));
        // (m + 2k) n elements of 4 bytes: 2^31 bytes are reached at m + 2k = 2^16 with n = 2^13.
        assert_eq!(product(&shape(2, 1 << 13, (1 << 15) - 2), 5), Ok(()));
        assert_eq!(product(&shape(2, 1 << 13, (1 << 15) - 1), 5), Err(Refusal::Overflow));
        assert_eq!(product(&shape(1 << 13, 1 << 15, 1 << 12), 5), Err(Refusal::Overflow));
        assert_eq!(product(&shape(1 << 15, 1 << 14, 1), 5), Err(Refusal::Bytes));
        assert_eq!(product(&shape(16, 16, 32_000), 1), Ok(()));
        assert_eq!(product(&shape(16, 16, 32_001), 2), Err(Refusal::Interior));
        assert_eq!(product(&shape(16, 16, 32_001), 3), Ok(()));
        assert_eq!(product(&ProductShape { batch: 65_535, ..shape(1, 1, 1) }, 1), Ok(()));
        assert_eq!(product(&ProductShape { batch: 65_536, ..shape(1, 1, 1) }, 1), Err(Refusal::Batch));
        assert_eq!(product(&shape(usize::MAX, 2, 2), 5), Err(Refusal::Bytes));
    }

    #[test]
    fn arrays_are_refused_by_type_system_and_rank() {
        let bf16 = |batch| ProductShape {
            left: DType::BF16,
            right: DType::BF16,
            result: DType::BF16,
            batch,
            ..shape(8, 8, 8)
        };
        assert_eq!(array_product(&bf16(1), true, false, 15), Ok(()));
        assert_eq!(array_product(&bf16(1), true, false, 26), Ok(()));
        assert_eq!(array_product(&bf16(1), false, true, 26), Err(Refusal::Addend));
        assert_eq!(array_product(&bf16(1), true, false, 27), Err(Refusal::Transposed));
        assert_eq!(array_product(&bf16(1), false, false, 27), Ok(()));
        assert_eq!(array_product(&bf16(1), false, false, 14), Err(Refusal::System));
        assert_eq!(array_product(&bf16(2), false, false, 15), Err(Refusal::Batch));
        assert_eq!(array_product(&shape(8, 8, 8), false, false, 15), Err(Refusal::DType));
        assert_eq!(array_product(&ProductShape { k: 0, ..bf16(1) }, false, false, 15), Err(Refusal::Empty));
    }

    #[test]
    fn rows_and_k_are_refused_at_their_bounds() {
        assert_eq!(softmax(DType::F16, 1, 1), Ok(()));
        assert_eq!(softmax(DType::BF16, 1, 1), Err(Refusal::DType));
        assert_eq!(softmax(DType::F32, 0, 4), Err(Refusal::Empty));
        assert_eq!(softmax(DType::F32, 1 << 15, 1 << 14), Err(Refusal::Bytes));
        assert_eq!(softmax(DType::F32, (1 << 15) - 1, 1 << 14), Ok(()));
        assert_eq!(top_k(DType::F32, 2, 20, 16), Ok(()));
        assert_eq!(top_k(DType::F32, 2, 20, 17), Err(Refusal::TopK));
        assert_eq!(top_k(DType::F32, 2, 3, 4), Err(Refusal::Empty));
    }
}
