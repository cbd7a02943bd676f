//! Matrix product. See [`crate::ops::MatMul`].
//!
//! Products of matrices of one type whose rows or columns have adjacent elements are computed by MLX's GEMM kernel, which the
//! crate candle-metal-kernels contains, if the driver has it; all others by a kernel that accepts any strides and types.

use bytemuck::NoUninit;

use super::chip::ChipClass;
use super::gemv;
use super::kernel::{Constant, Kernel, Source};
use super::library::{self, LibraryCall, MatrixLayout};
use super::op::{DispatchBuilder, OpContext, Tensor, as_u32, type_name};
use crate::Result;
use crate::backend::select::Implementation;
use crate::ops::MatMul;
use crate::tensor::DType;
use crate::tensor::layout::collapse;

pub(super) const SOURCE: Source = Source::new("matmul", include_str!("kernels/matmul.metal"));

/// A batch of matrices as operands of a product.
#[derive(Clone)]
pub(super) struct Matrix {
    tensor: Tensor,
    batch: usize,
    rows: usize,
    columns: usize,
    /// Elements from row to row, from column to column, and from matrix to matrix.
    row: usize,
    column: usize,
    step: usize,
}

impl Matrix {
    /// Returns the matrices of a tensor's last two axes, transposed if `transposed`.
    pub(super) fn new(tensor: &Tensor, transposed: bool) -> Self {
        let layout = &tensor.layout;
        let rank = layout.shape.rank();
        let (dims, strides) = (layout.shape.dims(), &layout.strides);
        let step =
            collapse(&dims[..rank - 2], &strides[..rank - 2]).expect("the operation accepts no other layout");
        let (mut a, mut b) = ((dims[rank - 2], strides[rank - 2]), (dims[rank - 1], strides[rank - 1]));
        if transposed {
            std::mem::swap(&mut a, &mut b);
        }
        let batch = dims[..rank - 2].iter().product();
        Self { tensor: tensor.clone(), batch, rows: a.0, columns: b.0, row: a.1, column: b.1, step }
    }

    /// Returns whether the matrix is stored transposed, and the elements between its stored rows; `None` if neither rows nor
    /// columns have adjacent elements.
    fn leading(&self) -> Option<(bool, usize)> {
        if self.column == 1 || self.columns == 1 {
            Some((false, if self.rows == 1 { self.columns } else { self.row }))
        } else if self.row == 1 || self.rows == 1 {
            Some((true, if self.columns == 1 { self.rows } else { self.column }))
        } else {
            None
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    a_row: u32,
    a_column: u32,
    b_row: u32,
    b_column: u32,
    d_row: u32,
    a_batch: u32,
    b_batch: u32,
    d_batch: u32,
    alpha: f32,
    beta: f32,
}

/// `GEMMParams` of MLX.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GemmParams {
    m: i32,
    n: i32,
    k: i32,
    lda: i32,
    ldb: i32,
    ldd: i32,
    tiles_n: i32,
    tiles_m: i32,
    a_batch: i64,
    b_batch: i64,
    d_batch: i64,
    swizzle: i32,
    whole_depths: i32,
    batch_axes: i32,
    padding: i32,
}

/// `GEMMAddMMParams` of MLX.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GemmAddendParams {
    ldc: i32,
    fdc: i32,
    c_batch: i64,
    alpha: f32,
    beta: f32,
}

/// Adds the dispatch of a product.
pub(super) fn lower(op: &MatMul, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(d) = cx.output(0) else { return Ok(()) };
    let (x, w) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let plain = !op.transpose_a && op.alpha.0 == 1.0 && cx.inputs.len() == 2;
    if !cx.prefers_library() && plain && x.last() > 0 && gemv::takes(&x, &w, x.rows()) && x.dtype == d.dtype {
        return match op.transpose_b {
            true => gemv::push(&x, &w, Some(&d), None, &gemv::Results::None, cx),
            false => gemv::push_transposed(&x, &w, &d, cx),
        };
    }
    let a = Matrix::new(&cx.inputs[0], op.transpose_a);
    let b = Matrix::new(&cx.inputs[1], op.transpose_b);
    let c = cx.inputs.get(2).cloned();
    product(&a, &b, c.as_ref(), &d, (op.alpha.0, op.beta.0), cx)
}

/// Adds `d = factors.0 · a·b + factors.1 · c`. c and d are row-major matrices of one type and the same strides; c may
/// be d.
pub(super) fn product(
    a: &Matrix,
    b: &Matrix,
    c: Option<&Tensor>,
    d: &Tensor,
    factors: (f32, f32),
    cx: &mut OpContext<'_, '_>,
) -> Result<()> {
    let d = Matrix::new(d, false);
    let (mut a, mut d) = (a.clone(), d);
    // With one right matrix for the batch, equally spaced rows of all left matrices are those of one tall matrix.
    if b.batch == 1 && a.batch > 1 && a.step == a.rows * a.row && d.step == d.rows * d.row {
        for matrix in [&mut a, &mut d] {
            matrix.rows *= matrix.batch;
            matrix.batch = 1;
        }
    }
    if d.batch * d.rows * d.columns == 0 {
        return Ok(());
    }
    if push_library(&a, b, c, &d, factors, cx) {
        return Ok(());
    }
    if let Some((launch, groups, threads)) = mlx_gemm(&a, b, c, &d, factors, cx)? {
        cx.push(launch, groups, threads);
        return Ok(());
    }
    let [left, right, to] = [&a, b, &d].map(|matrix| type_name(matrix.tensor.dtype));
    let launch = cx.kernel(SOURCE, &format!("matmul_{left}_{right}_{to}"))?.read(&a.tensor).read(&b.tensor);
    let launch = match c {
        Some(c) => launch.read(c),
        None => launch.unused(d.tensor.first()),
    };
    let sizes = Sizes {
        m: as_u32(d.rows),
        n: as_u32(d.columns),
        k: as_u32(a.columns),
        a_row: as_u32(a.row),
        a_column: as_u32(a.column),
        b_row: as_u32(b.row),
        b_column: as_u32(b.column),
        d_row: as_u32(d.row),
        a_batch: as_u32(a.step),
        b_batch: if b.batch == 1 { 0 } else { as_u32(b.step) },
        d_batch: as_u32(d.step),
        alpha: factors.0,
        beta: if c.is_some() { factors.1 } else { 0.0 },
    };
    let groups = [d.columns.div_ceil(32), d.rows.div_ceil(32), d.batch];
    cx.push(launch.write(&d.tensor).constants(&sizes), groups, [16, 16, 1]);
    Ok(())
}

/// Returns true if this is the kernel that accepts any strides and types.
pub(super) fn is_general(kernel: &Kernel) -> bool {
    kernel.function.starts_with("matmul_")
}

/// Adds a product as a call of the vendor's library, if that is estimated to be faster and the driver accepts the call.
fn push_library(
    a: &Matrix,
    b: &Matrix,
    c: Option<&Tensor>,
    d: &Matrix,
    (alpha, beta): (f32, f32),
    cx: &mut OpContext<'_, '_>,
) -> bool {
    let (m, n, k) = (d.rows, d.columns, a.columns);
    let chosen = cx.driver().choices().product([m, n, k], d.batch, d.tensor.dtype, cx.driver().chip());
    // The library adds to the result only.
    let in_place = c.is_none_or(|c| c.first() == d.tensor.first());
    let (Some((a_transposed, a_row)), Some((b_transposed, b_row))) = (a.leading(), b.leading()) else {
        return false;
    };
    if chosen != Implementation::Mps || !in_place || k == 0 {
        return false;
    }
    let stored = |matrix: &Matrix, transposed: bool, row: usize| {
        let (rows, columns) =
            if transposed { (matrix.columns, matrix.rows) } else { (matrix.rows, matrix.columns) };
        let (dtype, batch, step) = (matrix.tensor.dtype, matrix.batch, matrix.step);
        let layout = MatrixLayout { dtype, rows, columns, row, batch, step };
        library::Matrix { address: matrix.tensor.first(), layout }
    };
    cx.push_library(LibraryCall::MatMul {
        left: (stored(a, a_transposed, a_row), a_transposed),
        right: (stored(b, b_transposed, b_row), b_transposed),
        result: stored(d, false, if m == 1 { n } else { d.row }),
        alpha,
        beta: if c.is_some() { beta } else { 0.0 },
    })
}

/// Returns the tile of a threadgroup: rows, columns, depth, and SIMD groups along rows and columns, as MLX chooses them
/// (`matmul.cpp`, also in candle). `nt`: only the right matrix is stored transposed.
fn tiles(
    class: ChipClass,
    (m, n, k, batch): (usize, usize, usize, usize),
    dtype: DType,
    nt: bool,
) -> [usize; 5] {
    let single = dtype == DType::F32;
    if m < 16 {
        return [32, 32, 16, 2, 2];
    }
    if matches!(class, ChipClass::Phone | ChipClass::BasePro) {
        return match (nt, single) {
            (true, _) => [64, 32, 32, 2, 2],
            (false, true) => [64, 64, 16, 2, 2],
            (false, false) => [64, 64, 16, 1, 2],
        };
    }
    let large = batch * m * n >= 1 << 20;
    let deep = 2 * m.max(n) <= k;
    match (single, large, nt) {
        (true, true, _) => [64, 64, 16, 2, 2],
        (true, false, true) => [32, 64, 16, 1, 2],
        (true, false, false) => [64, 32, 32, 2, 2],
        (false, true, _) if !deep => [64, 64, 16, 1, 2],
        (false, true, false) => [32, 64, 16, 1, 2],
        (false, _, true) => [64, 32, 32, 2, 2],
        (false, false, false) => [64, 64, 16, 1, 2],
    }
}

type Prepared = (DispatchBuilder, [usize; 3], [usize; 3]);

/// Returns the dispatch of MLX's kernel, if it supports these matrices.
fn mlx_gemm(
    a: &Matrix,
    b: &Matrix,
    c: Option<&Tensor>,
    d: &Matrix,
    (alpha, beta): (f32, f32),
    cx: &OpContext<'_, '_>,
) -> Result<Option<Prepared>> {
    let dtype = d.tensor.dtype;
    let name = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::U32 => return Ok(None),
    };
    let (m, n, k, batch) = (d.rows, d.columns, a.columns, d.batch);
    let (Some((a_transposed, lda)), Some((b_transposed, ldb))) = (a.leading(), b.leading()) else {
        return Ok(None);
    };
    // The kernel with a factor reads C even if C's factor is 0.
    let factor_alone = alpha != 1.0 && c.is_none();
    if a.tensor.dtype != dtype || b.tensor.dtype != dtype || k == 0 || factor_alone {
        return Ok(None);
    }
    let Some(source) = cx.driver().mlx_gemm() else { return Ok(None) };
    let nt = !a_transposed && b_transposed;
    let [bm, bn, bk, wm, wn] = tiles(cx.driver().chip().class, (m, n, k, batch), dtype, nt);
    // The form with an addend reads rows of C beyond the last row of a partial tile.
    if c.is_some() && !m.is_multiple_of(bm) {
        return Ok(None);
    }
    let letter = |transposed: bool| if transposed { "t" } else { "n" };
    let (left, right) = (letter(a_transposed), letter(b_transposed));
    let function = format!("gemm_{left}{right}_{name}_{name}_{bm}_{bn}_{bk}_{wm}_{wn}");
    let addend = c.is_some();
    let constants = [
        // Strides of one batch axis are among the sizes.
        Constant::Bool(10, false),
        Constant::Bool(100, addend),
        Constant::Bool(110, addend),
        Constant::Bool(200, m.is_multiple_of(bm)),
        Constant::Bool(201, n.is_multiple_of(bn)),
        Constant::Bool(202, k.is_multiple_of(bk)),
        Constant::Bool(300, false),
    ];
    let int = |size: usize| i32::try_from(size).expect("sizes were checked when the plan was compiled");
    let long = |size: usize| i64::from(as_u32(size));
    let ldd = if m == 1 { n } else { d.row };
    let (tiles_m, tiles_n) = (m.div_ceil(bm), n.div_ceil(bn));
    let b_step = if b.batch == 1 { 0 } else { b.step };
    let sizes = GemmParams {
        m: int(m),
        n: int(n),
        k: int(k),
        lda: int(lda),
        ldb: int(ldb),
        ldd: int(ldd),
        tiles_n: int(tiles_n),
        tiles_m: int(tiles_m),
        a_batch: long(a.step),
        b_batch: long(b_step),
        d_batch: long(d.step),
        swizzle: 0,
        whole_depths: int(k / bk),
        batch_axes: 1,
        padding: 0,
    };
    let mut launch = cx.kernel_with(source, &function, &constants)?.read(&a.tensor).read(&b.tensor);
    launch = match c {
        Some(c) => launch.read(c),
        None => launch.unbound(),
    };
    launch = launch.write(&d.tensor).constants(&sizes);
    if addend {
        launch =
            launch.constants(&GemmAddendParams { ldc: int(ldd), fdc: 1, c_batch: long(d.step), alpha, beta });
    }
    Ok(Some((launch, [tiles_n, tiles_m, batch], [32, wn, wm])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_those_that_mlx_takes_for_the_class_of_the_chip() {
        use ChipClass::{BasePro, Max, Phone, Ultra};
        use DType::{BF16, F16, F32};
        let (as_u32, large) = ((512, 1024, 1024, 1), (1024, 1024, 1024, 1));
        let deep = (1024, 1024, 2048, 1);
        for class in [Phone, BasePro] {
            for sizes in [as_u32, large, deep] {
                assert_eq!(tiles(class, sizes, F32, true), [64, 32, 32, 2, 2]);
                assert_eq!(tiles(class, sizes, BF16, true), [64, 32, 32, 2, 2]);
                assert_eq!(tiles(class, sizes, F32, false), [64, 64, 16, 2, 2]);
                assert_eq!(tiles(class, sizes, F16, false), [64, 64, 16, 1, 2]);
            }
        }
        for class in [Max, Ultra] {
            for nt in [true, false] {
                assert_eq!(tiles(class, large, F32, nt), [64, 64, 16, 2, 2]);
                assert_eq!(tiles(class, large, F16, nt), [64, 64, 16, 1, 2]);
                // A batch counts, and few rows take the smallest tiles everywhere.
                assert_eq!(tiles(class, (512, 1024, 64, 2), BF16, nt), [64, 64, 16, 1, 2]);
                assert_eq!(tiles(class, (15, 1 << 20, 64, 1), BF16, nt), [32, 32, 16, 2, 2]);
            }
            assert_eq!(tiles(class, as_u32, F32, true), [32, 64, 16, 1, 2]);
            assert_eq!(tiles(class, as_u32, F32, false), [64, 32, 32, 2, 2]);
            assert_eq!(tiles(class, as_u32, BF16, true), [64, 32, 32, 2, 2]);
            assert_eq!(tiles(class, as_u32, BF16, false), [64, 64, 16, 1, 2]);
            assert_eq!(tiles(class, deep, F16, true), [64, 32, 32, 2, 2]);
            assert_eq!(tiles(class, deep, F16, false), [32, 64, 16, 1, 2]);
        }
    }
}
