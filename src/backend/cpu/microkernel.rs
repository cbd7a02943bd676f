//! The innermost part of every dense product: a few rows of the left matrix times [`Tile::NR`] columns of the right
//! one, with the sums in registers.
//!
//! The right matrix lies in panels: `NR` neighbouring columns for each k, one k after the other (`ldb` apart). The
//! left one is read where it is, one number at a time. The loop is the one of Goto and van de Geijn (Anatomy of
//! High-Performance Matrix Multiplication, 2008), with registers of whatever instruction set there is.

use super::element::SimdElement;
use crate::tensor::DType;

/// The most columns of a tile on any machine; panels that hold tensors of any ISA are padded to this.
pub(crate) const MAX_NR: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;
/// How many rows prefetch packing asks for.
const PREFETCH_DISTANCE: usize = 8;

/// Registers for one row of a tile.
///
/// # Safety
/// As for [`super::vector::Isa`]: the machine has the instructions; pointers are valid for [`Tile::NR`] elements.
pub(crate) unsafe trait Tile: Copy {
    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// One row of sums.
    type Row: Copy;

    fn zero() -> Self::Row;
    unsafe fn load(p: *const f32) -> Self::Row;
    unsafe fn store(p: *mut f32, row: Self::Row);
    /// `x·b + row`
    fn fma(x: f32, b: Self::Row, row: Self::Row) -> Self::Row;
    /// Writes the transpose of the 8 x 8 block at `from`, whose rows are `from_stride` apart.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// Asks for a cache line that will be read; any address will do.
    #[inline(always)]
    fn prefetch(_p: *const u8) {}

    /// [`product`] compiled for this instruction set, once.
    unsafe fn multiply(job: &MicroGemm);
    /// [`panels`] compiled for this instruction set, once a dtype.
    unsafe fn pack_f32(b: Matrix<*const f32>, k: usize, n: usize, to: *mut f32);
    /// As [`Tile::pack_f32`].
    unsafe fn pack_f16(b: Matrix<*const half::f16>, k: usize, n: usize, to: *mut f32);
    /// As [`Tile::pack_f32`].
    unsafe fn pack_bf16(b: Matrix<*const half::bf16>, k: usize, n: usize, to: *mut f32);
}

/// A product of small matrices, all f32: `c = alpha·a·b`, or `c += alpha·a·b` if `add`; c has row stride `ldc`.
#[derive(Clone, Copy)]
pub(crate) struct MicroGemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Matrix<*const f32>,
    pub(crate) b: Panels,
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) alpha: f32,
    pub(crate) add: bool,
    pub(crate) prefetch: Prefetch,
}

/// What the product after this one will read: cache lines that are asked for on the way, a few with every tile. They
/// are pieces of rows, too short for the processor to see what comes.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    start: *const u8,
    /// Bytes from one row to the next.
    step: usize,
    /// Cache lines of a row.
    lines: usize,
    rows: usize,
}

impl Prefetch {
    /// Nothing.
    pub(crate) const NONE: Self = Self { start: std::ptr::null(), step: 0, lines: 0, rows: 0 };

    /// `rows` pieces of `bytes` bytes, `step` bytes apart. Nothing is read, so any address will do.
    pub(crate) fn new(start: *const u8, rows: usize, step: usize, bytes: usize) -> Self {
        Self { start, step, lines: bytes.div_ceil(LINE), rows }
    }

    /// Asks for all of it at once.
    #[inline(always)]
    pub(crate) fn fetch<S: Tile>(mut self) {
        let all = self.rows * self.lines;
        self.advance::<S>(&mut 0, all);
    }

    /// Asks for the next `count` lines.
    #[inline(always)]
    fn advance<S: Tile>(&mut self, line: &mut usize, count: usize) {
        for _ in 0..count {
            if self.rows == 0 {
                return;
            }
            S::prefetch(self.start.wrapping_add(*line * LINE));
            *line += 1;
            if *line == self.lines {
                *line = 0;
                self.rows -= 1;
                self.start = self.start.wrapping_add(self.step);
            }
        }
    }
}

/// A matrix in memory: where it begins and the steps between rows and columns, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<T> {
    pub(crate) start: T,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// The right matrix in panels: element (k, j) is at `panel·(j / NR) + ldb·k + j mod NR`.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) start: *const f32,
    pub(crate) panel: usize,
    pub(crate) ldb: usize,
}

/// # Safety
/// a is valid for `m` x `k`, b for `k` x `n` rounded up to [`Tile::NR`], c for `m` x `n`; nothing else uses c.
#[inline(always)]
unsafe fn product<S: Tile>(job: &MicroGemm) {
    let MicroGemm { m, n, k, a, b, mut prefetch, .. } = *job;
    let tiles = n.div_ceil(S::NR) * m.div_ceil(S::MR);
    let (mut line, share) = (0, (prefetch.rows * prefetch.lines).div_ceil(tiles.max(1)));
    for column in (0..n).step_by(S::NR) {
        let width = S::NR.min(n - column);
        // SAFETY: the panel and these columns of c exist.
        unsafe {
            let panel = b.start.add(column / S::NR * b.panel);
            let mut row = 0;
            while row < m {
                prefetch.advance::<S>(&mut line, share);
                let left = a.start.add(row * a.rows);
                let c = job.c.add(row * job.ldc + column);
                let count = S::MR.min(m - row);
                match count {
                    12.. => rows::<S, 12>(k, left, a, panel, b.ldb, c, width, job),
                    8..12 => rows::<S, 8>(k, left, a, panel, b.ldb, c, width, job),
                    6..8 => rows::<S, 6>(k, left, a, panel, b.ldb, c, width, job),
                    4..6 => rows::<S, 4>(k, left, a, panel, b.ldb, c, width, job),
                    2..4 => rows::<S, 2>(k, left, a, panel, b.ldb, c, width, job),
                    _ => rows::<S, 1>(k, left, a, panel, b.ldb, c, width, job),
                }
                row += match count {
                    12.. => 12,
                    8..12 => 8,
                    6..8 => 6,
                    4..6 => 4,
                    2..4 => 2,
                    _ => 1,
                };
            }
        }
    }
}

/// # Safety
/// See [`product`].
#[inline(always)]
unsafe fn rows<S: Tile, const R: usize>(
    k: usize,
    left: *const f32,
    a: Matrix<*const f32>,
    mut right: *const f32,
    ldb: usize,
    c: *mut f32,
    width: usize,
    job: &MicroGemm,
) {
    if R > S::MR {
        return;
    }
    let mut sums = [S::zero(); R];
    // SAFETY: as the caller promises.
    unsafe {
        // A pointer for every three rows, unknown to the compiler to be related: it would compute each from the one
        // before, a chain of additions as long as the products take.
        let mut groups = [left; 4];
        for (g, group) in groups.iter_mut().enumerate().take(R.div_ceil(3)) {
            *group = std::hint::black_box(left.add(3 * g * a.rows));
        }
        for _ in 0..k {
            let panel = S::load(right);
            for i in 0..R {
                sums[i] = S::fma(*groups[i / 3].add(i % 3 * a.rows), panel, sums[i]);
            }
            for group in groups.iter_mut().take(R.div_ceil(3)) {
                *group = group.add(a.columns);
            }
            right = right.add(ldb);
        }
        if width == S::NR {
            for i in 0..R {
                let to = c.add(i * job.ldc);
                let old = if job.add { S::load(to) } else { S::zero() };
                S::store(to, S::fma(job.alpha, sums[i], old));
            }
            return;
        }
        let mut lanes = [[0.0; MAX_NR]; R];
        for i in 0..R {
            S::store(lanes[i].as_mut_ptr(), sums[i]);
        }
        narrow(&lanes, c, width, job);
    }
}

/// Writes the first `width` columns of a tile.
///
/// # Safety
/// c is valid for them.
#[inline(never)]
unsafe fn narrow(lanes: &[[f32; MAX_NR]], c: *mut f32, width: usize, job: &MicroGemm) {
    for (i, lanes) in lanes.iter().enumerate() {
        for (j, lane) in lanes.iter().enumerate().take(width) {
            // SAFETY: as the caller promises.
            unsafe {
                let to = c.add(i * job.ldc + j);
                let old = if job.add { to.read() } else { 0.0 };
                to.write(old + job.alpha * lane);
            }
        }
    }
}

/// Packs a matrix of a dtype known at run time; see [`panels`].
///
/// # Safety
/// See [`panels`]; `b` points to elements of `dtype`.
#[inline(always)]
pub(crate) unsafe fn pack<S: Tile>(dtype: DType, b: Matrix<*const u8>, k: usize, n: usize, to: *mut f32) {
    fn typed<T>(b: Matrix<*const u8>) -> Matrix<*const T> {
        Matrix { start: b.start.cast(), rows: b.rows, columns: b.columns }
    }
    // SAFETY: as the caller promises.
    unsafe {
        match dtype {
            DType::F32 => S::pack_f32(typed(b), k, n, to),
            DType::F16 => S::pack_f16(typed(b), k, n, to),
            DType::BF16 => S::pack_bf16(typed(b), k, n, to),
            DType::U32 => unreachable!("shape rules refuse integers here"),
        }
    }
}

/// Writes columns `0..n` of a matrix `[k, n]` as panels of NR columns, the last one filled with zeros.
///
/// # Safety
/// `b` is valid for `k` x `n`, `to` for `k` times `n` rounded up to NR.
#[inline(always)]
unsafe fn panels<S: Tile, T: SimdElement>(b: Matrix<*const T>, k: usize, n: usize, to: *mut f32) {
    if b.columns == 1 && b.rows != 1 {
        // SAFETY: as the caller promises.
        return unsafe { pack_rows::<S, T>(b, k, n, to) };
    }
    for (index, column) in (0..n).step_by(S::NR).enumerate() {
        let width = S::NR.min(n - column);
        // SAFETY: panel `index` lies within `to`, its columns within `b`.
        unsafe {
            let from = Matrix { start: b.start.add(column * b.columns), ..b };
            let to = to.add(index * k * S::NR);
            if width < S::NR {
                std::ptr::write_bytes(to, 0, k * S::NR);
            }
            if b.rows == 1 {
                pack_transposed::<S, T>(from, k, width, to);
            } else {
                pack_any::<S, T>(from, 0, k, 0, width, to);
            }
        }
    }
}

/// Rows lie one after the other in memory: each is read once, from end to end, into all panels.
///
/// # Safety
/// See [`panels`].
#[inline(always)]
unsafe fn pack_rows<S: Tile, T: SimdElement>(b: Matrix<*const T>, k: usize, n: usize, to: *mut f32) {
    let (whole, rest) = (n / S::NR, n % S::NR);
    let line = LINE / size_of::<T>();
    for p in 0..k {
        // SAFETY: the row lies within the matrix, its places within the panels.
        unsafe {
            let row = b.start.add(p * b.rows);
            for prefetch in (0..n).step_by(line) {
                S::prefetch(row.wrapping_add(PREFETCH_DISTANCE * b.rows + prefetch).cast());
            }
            let to = to.add(p * S::NR);
            for index in 0..whole {
                let (from, to) = (row.add(index * S::NR), to.add(index * k * S::NR));
                if T::DTYPE == DType::F32 {
                    S::store(to, S::load(from.cast()));
                } else {
                    for j in 0..S::NR {
                        to.add(j).write(from.add(j).read().get());
                    }
                }
            }
            if rest > 0 {
                let (from, to) = (row.add(whole * S::NR), to.add(whole * k * S::NR));
                for j in 0..S::NR {
                    to.add(j).write(if j < rest { from.add(j).read().get() } else { 0.0 });
                }
            }
        }
    }
}

/// # Safety
/// See [`panels`].
#[inline(always)]
unsafe fn pack_any<S: Tile, T: SimdElement>(
    from: Matrix<*const T>,
    first: usize,
    k: usize,
    left: usize,
    width: usize,
    to: *mut f32,
) {
    for p in first..k {
        for j in left..width {
            // SAFETY: as the caller promises.
            unsafe {
                to.add(p * S::NR + j).write(from.start.add(p * from.rows + j * from.columns).read().get())
            };
        }
    }
}

/// Columns lie one after the other in memory: blocks of 8 x 8 are transposed in registers.
///
/// # Safety
/// See [`panels`].
#[inline(always)]
unsafe fn pack_transposed<S: Tile, T: SimdElement>(
    from: Matrix<*const T>,
    k: usize,
    width: usize,
    to: *mut f32,
) {
    let (whole_k, whole_width) = (k / 8 * 8, width / 8 * 8);
    // SAFETY: the blocks lie within the panel and the matrix.
    unsafe {
        for j in (0..whole_width).step_by(8) {
            let columns = from.start.add(j * from.columns);
            for p in (0..whole_k).step_by(8) {
                let to = to.add(p * S::NR + j);
                for column in 0..8 {
                    S::prefetch(
                        columns.wrapping_add(column * from.columns + p).cast::<u8>().wrapping_add(256),
                    );
                }
                if T::DTYPE == DType::F32 {
                    S::transpose(columns.add(p).cast(), from.columns, to, S::NR);
                } else {
                    let mut block = [0.0_f32; 64];
                    for column in 0..8 {
                        for i in 0..8 {
                            block[column * 8 + i] = columns.add(column * from.columns + p + i).read().get();
                        }
                    }
                    S::transpose(block.as_ptr(), 8, to, S::NR);
                }
            }
        }
        pack_any::<S, T>(from, whole_k, k, 0, whole_width, to);
        pack_any::<S, T>(from, 0, k, whole_width, width, to);
    }
}

/// Any machine. The parameter says whether multiply-add is one instruction.
#[derive(Clone, Copy)]
pub(crate) struct PortableTile<const FUSED: bool>;

// SAFETY: needs no instruction set.
unsafe impl<const FUSED: bool> Tile for PortableTile<FUSED> {
    const MR: usize = 6;
    const NR: usize = 16;
    type Row = [f32; 16];

    #[inline(always)]
    fn zero() -> Self::Row {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::Row {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<Self::Row>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, row: Self::Row) {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<Self::Row>().write_unaligned(row) }
    }
    #[inline(always)]
    fn fma(x: f32, b: Self::Row, mut row: Self::Row) -> Self::Row {
        for j in 0..16 {
            row[j] = if FUSED { x.mul_add(b[j], row[j]) } else { x * b[j] + row[j] };
        }
        row
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: as the trait demands.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
    unsafe fn multiply(job: &MicroGemm) {
        // SAFETY: as the trait demands.
        unsafe { product::<Self>(job) }
    }
    unsafe fn pack_f32(b: Matrix<*const f32>, k: usize, n: usize, to: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { panels::<Self, f32>(b, k, n, to) }
    }
    unsafe fn pack_f16(b: Matrix<*const half::f16>, k: usize, n: usize, to: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { panels::<Self, half::f16>(b, k, n, to) }
    }
    unsafe fn pack_bf16(b: Matrix<*const half::bf16>, k: usize, n: usize, to: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { panels::<Self, half::bf16>(b, k, n, to) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2Tile, Avx512Tile};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{Matrix, MicroGemm, Tile, panels, product};

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Tile;

    /// AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Tile;

    /// # Safety
    /// The machine has AVX; the pointers are valid for eight rows of eight.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let zero = _mm256_setzero_ps();
            let (mut r, mut t, mut s) = ([zero; 8], [zero; 8], [zero; 8]);
            for i in 0..8 {
                r[i] = _mm256_loadu_ps(from.add(i * from_stride));
            }
            // Pairs of rows interleaved, then pairs of pairs, then halves.
            for i in (0..8).step_by(2) {
                t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
            }
            for i in [0, 4] {
                for half in 0..2 {
                    let (a, b) = (t[i + half], t[i + half + 2]);
                    s[i + 2 * half] = _mm256_shuffle_ps::<0x44>(a, b);
                    s[i + 2 * half + 1] = _mm256_shuffle_ps::<0xee>(a, b);
                }
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(s[i], s[i + 4]));
                _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(s[i], s[i + 4]));
            }
        }
    }

    macro_rules! tile {
        ($name:ident, $features:literal, $mr:literal, $nr:literal, $register:ty, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident) => {
            // SAFETY: the functions need the instruction set of the type's name only.
            unsafe impl Tile for $name {
                const MR: usize = $mr;
                const NR: usize = $nr;
                type Row = [$register; 2];

                #[inline(always)]
                fn zero() -> Self::Row {
                    // SAFETY: the machine has the instruction set.
                    [unsafe { $zero() }; 2]
                }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> Self::Row {
                    // SAFETY: as the trait demands.
                    unsafe { [$load(p), $load(p.add($nr / 2))] }
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, row: Self::Row) {
                    // SAFETY: as the trait demands.
                    unsafe {
                        $store(p, row[0]);
                        $store(p.add($nr / 2), row[1]);
                    }
                }
                #[inline(always)]
                fn fma(x: f32, b: Self::Row, row: Self::Row) -> Self::Row {
                    // SAFETY: the machine has the instruction set.
                    unsafe {
                        let x = $splat(x);
                        [$fma(x, b[0], row[0]), $fma(x, b[1], row[1])]
                    }
                }
                #[inline(always)]
                unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
                    // SAFETY: as the trait demands.
                    unsafe { transpose(from, from_stride, to, to_stride) }
                }

                #[inline(always)]
                fn prefetch(p: *const u8) {
                    // SAFETY: SSE is part of every x86-64 processor; an address that is not mapped does no harm.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
                }

                unsafe fn multiply(job: &MicroGemm) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled(job: &MicroGemm) {
                        // SAFETY: as the trait demands.
                        unsafe { product::<$name>(job) }
                    }
                    // SAFETY: as the trait demands.
                    unsafe { compiled(job) }
                }
                unsafe fn pack_f32(b: Matrix<*const f32>, k: usize, n: usize, to: *mut f32) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled(b: Matrix<*const f32>, k: usize, n: usize, to: *mut f32) {
                        // SAFETY: as the trait demands.
                        unsafe { panels::<$name, f32>(b, k, n, to) }
                    }
                    // SAFETY: as the trait demands.
                    unsafe { compiled(b, k, n, to) }
                }
                unsafe fn pack_f16(b: Matrix<*const f16>, k: usize, n: usize, to: *mut f32) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled(b: Matrix<*const f16>, k: usize, n: usize, to: *mut f32) {
                        // SAFETY: as the trait demands.
                        unsafe { panels::<$name, f16>(b, k, n, to) }
                    }
                    // SAFETY: as the trait demands.
                    unsafe { compiled(b, k, n, to) }
                }
                unsafe fn pack_bf16(b: Matrix<*const bf16>, k: usize, n: usize, to: *mut f32) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled(b: Matrix<*const bf16>, k: usize, n: usize, to: *mut f32) {
                        // SAFETY: as the trait demands.
                        unsafe { panels::<$name, bf16>(b, k, n, to) }
                    }
                    // SAFETY: as the trait demands.
                    unsafe { compiled(b, k, n, to) }
                }
            }
        };
    }

    tile!(
        Avx2Tile,
        "avx2,fma,f16c",
        6,
        16,
        __m256,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps
    );
    tile!(
        Avx512Tile,
        "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c",
        12,
        32,
        __m512,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps
    );
}
