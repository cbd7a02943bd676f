//! [`Isa`] for AVX2 with FMA and F16C, and for AVX-512.

use std::arch::x86_64::*;

use super::vector::Isa;

/// Applies an expression to each register.
macro_rules! map {
    (|$a:ident| $body:expr) => {{
        let source = $a;
        let mut result = source;
        for r in 0..source.len() {
            let $a = source[r];
            // SAFETY: the machine has the instruction set, as `Isa` demands.
            result[r] = unsafe { $body };
        }
        result
    }};
    (|$a:ident, $b:ident| $body:expr) => {{
        let (first, second) = ($a, $b);
        let mut result = first;
        for r in 0..first.len() {
            let ($a, $b) = (first[r], second[r]);
            // SAFETY: the machine has the instruction set, as `Isa` demands.
            result[r] = unsafe { $body };
        }
        result
    }};
    ([$init:expr; $count:expr], |$r:ident| $body:expr) => {{
        // SAFETY: the machine has the instruction set, as `Isa` demands.
        #[allow(unused_unsafe, reason = "some initial values are plain numbers")]
        let mut result = [unsafe { $init }; $count];
        for $r in 0..$count {
            // SAFETY: as above, and pointers are valid for LANES elements.
            result[$r] = unsafe { $body };
        }
        result
    }};
}

/// The sum of four lanes.
#[inline(always)]
unsafe fn lanes_sum(x: __m128) -> f32 {
    // SAFETY: the machine has AVX.
    unsafe {
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// The greatest of four lanes.
#[inline(always)]
unsafe fn lanes_greatest(x: __m128) -> f32 {
    // SAFETY: as above.
    unsafe {
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
    }
}

/// All bits of the lanes whose number, counted from `start`, is below `len`.
#[inline(always)]
unsafe fn first(len: usize, start: usize) -> __m256i {
    // SAFETY: the machine has AVX2.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32 - start as i32), lanes)
    }
}

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY: the functions need AVX2, FMA and F16C only.
unsafe impl Isa for Avx2 {
    type Float = [__m256; 4];
    type Int = [__m256i; 4];
    type Mask = [__m256; 4];
    type Tile = super::microkernel::Avx2Tile;

    #[inline(always)]
    fn splat(x: f32) -> Self::Float {
        // SAFETY: the machine has AVX.
        [unsafe { _mm256_set1_ps(x) }; 4]
    }
    #[inline(always)]
    fn splat_int(x: u32) -> Self::Int {
        // SAFETY: the machine has AVX.
        [unsafe { _mm256_set1_epi32(x as i32) }; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_loadu_ps(p.add(8 * r)))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: Self::Float) {
        for r in 0..4 {
            // SAFETY: as the trait demands.
            unsafe { _mm256_storeu_ps(p.add(8 * r), a[r]) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_cvtph_ps(_mm_loadu_si128(p.add(8 * r).cast())))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut half::f16, a: Self::Float) {
        for r in 0..4 {
            // SAFETY: as the trait demands.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[r]);
                _mm_storeu_si128(p.add(8 * r).cast(), half);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8 * r).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut half::bf16, a: Self::Float) {
        for r in 0..4 {
            // SAFETY: as the trait demands.
            unsafe {
                let bits = _mm256_castps_si256(a[r]);
                let high = _mm256_srli_epi32::<16>(bits);
                let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a[r], a[r]));
                let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
                let result = _mm256_blendv_epi8(rounded, quiet, nan);
                let packed = _mm256_packus_epi32(result, result);
                let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
                _mm_storeu_si128(p.add(8 * r).cast(), _mm256_castsi256_si128(packed));
            }
        }
    }
    #[inline(always)]
    fn add(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_fmadd_ps(a[r], b[r], c[r]))
    }
    #[inline(always)]
    fn sqrt(a: Self::Float) -> Self::Float {
        map!(|a| _mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn greater(a: Self::Float, b: Self::Float) -> Self::Mask {
        map!(|a, b| _mm256_cmp_ps::<_CMP_GT_OQ>(a, b))
    }
    #[inline(always)]
    fn is_nan(a: Self::Float) -> Self::Mask {
        map!(|a| _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, a: Self::Float, b: Self::Float) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_blendv_ps(b[r], a[r], mask[r]))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        // SAFETY: the machine has AVX.
        unsafe {
            let low = _mm256_or_ps(mask[0], mask[1]);
            let high = _mm256_or_ps(mask[2], mask[3]);
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        }
    }
    #[inline(always)]
    fn sum(a: Self::Float) -> f32 {
        // SAFETY: the machine has AVX.
        unsafe {
            let x = _mm256_add_ps(_mm256_add_ps(a[0], a[2]), _mm256_add_ps(a[1], a[3]));
            lanes_sum(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))
        }
    }
    #[inline(always)]
    fn greatest(a: Self::Float) -> f32 {
        // SAFETY: the machine has AVX.
        unsafe {
            let x = _mm256_max_ps(_mm256_max_ps(a[0], a[2]), _mm256_max_ps(a[1], a[3]));
            lanes_greatest(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize, fill: f32) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| {
            let mask = first(len, 8 * r);
            let here = _mm256_maskload_ps(p.wrapping_add(8 * r), mask);
            _mm256_blendv_ps(_mm256_set1_ps(fill), here, _mm256_castsi256_ps(mask))
        })
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, a: Self::Float, len: usize) {
        for r in 0..4 {
            // SAFETY: as the trait demands: lanes that are masked out are not touched.
            unsafe { _mm256_maskstore_ps(p.wrapping_add(8 * r), first(len, 8 * r), a[r]) };
        }
    }
    #[inline(always)]
    fn bits(a: Self::Float) -> Self::Int {
        map!([_mm256_setzero_si256(); 4], |r| _mm256_castps_si256(a[r]))
    }
    #[inline(always)]
    fn from_bits(a: Self::Int) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_castsi256_ps(a[r]))
    }
    #[inline(always)]
    fn to_float(a: Self::Int) -> Self::Float {
        map!([_mm256_setzero_ps(); 4], |r| _mm256_cvtepi32_ps(a[r]))
    }
    #[inline(always)]
    fn and(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(a: Self::Int) -> Self::Int {
        map!(|a| _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }
    #[inline(always)]
    fn sar<const BITS: u32>(a: Self::Int) -> Self::Int {
        map!(|a| _mm256_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }
}

/// AVX-512 (F, BW, VL, DQ).
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY: the functions need AVX-512 F, BW, VL and DQ only.
unsafe impl Isa for Avx512 {
    type Float = [__m512; 2];
    type Int = [__m512i; 2];
    type Mask = [__mmask16; 2];
    type Tile = super::microkernel::Avx512Tile;

    #[inline(always)]
    fn splat(x: f32) -> Self::Float {
        // SAFETY: the machine has AVX-512.
        [unsafe { _mm512_set1_ps(x) }; 2]
    }
    #[inline(always)]
    fn splat_int(x: u32) -> Self::Int {
        // SAFETY: the machine has AVX-512.
        [unsafe { _mm512_set1_epi32(x as i32) }; 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_loadu_ps(p.add(16 * r)))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, a: Self::Float) {
        for r in 0..2 {
            // SAFETY: as the trait demands.
            unsafe { _mm512_storeu_ps(p.add(16 * r), a[r]) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_cvtph_ps(_mm256_loadu_si256(p.add(16 * r).cast())))
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut half::f16, a: Self::Float) {
        for r in 0..2 {
            // SAFETY: as the trait demands.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[r]);
                _mm256_storeu_si256(p.add(16 * r).cast(), half);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(16 * r).cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut half::bf16, a: Self::Float) {
        for r in 0..2 {
            // SAFETY: as the trait demands.
            unsafe {
                let bits = _mm512_castps_si512(a[r]);
                let high = _mm512_srli_epi32::<16>(bits);
                let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a[r], a[r]);
                let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
                let result = _mm512_mask_blend_epi32(nan, rounded, quiet);
                _mm256_storeu_si256(p.add(16 * r).cast(), _mm512_cvtepi32_epi16(result));
            }
        }
    }
    #[inline(always)]
    fn add(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_fmadd_ps(a[r], b[r], c[r]))
    }
    #[inline(always)]
    fn sqrt(a: Self::Float) -> Self::Float {
        map!(|a| _mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(a: Self::Float, b: Self::Float) -> Self::Float {
        map!(|a, b| _mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn greater(a: Self::Float, b: Self::Float) -> Self::Mask {
        map!([0; 2], |r| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a[r], b[r]))
    }
    #[inline(always)]
    fn is_nan(a: Self::Float) -> Self::Mask {
        map!([0; 2], |r| _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a[r], a[r]))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, a: Self::Float, b: Self::Float) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_mask_blend_ps(mask[r], b[r], a[r]))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask[0] | mask[1] != 0
    }
    #[inline(always)]
    fn sum(a: Self::Float) -> f32 {
        // SAFETY: the machine has AVX-512.
        unsafe {
            let x = _mm512_add_ps(a[0], a[1]);
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            lanes_sum(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))
        }
    }
    #[inline(always)]
    fn greatest(a: Self::Float) -> f32 {
        // SAFETY: the machine has AVX-512.
        unsafe {
            let x = _mm512_max_ps(a[0], a[1]);
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            lanes_greatest(_mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize, fill: f32) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| {
            let mask = ((1_u64 << len) - 1) >> (16 * r);
            _mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask as __mmask16, p.wrapping_add(16 * r))
        })
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, a: Self::Float, len: usize) {
        for r in 0..2 {
            let mask = ((1_u64 << len) - 1) >> (16 * r);
            // SAFETY: as the trait demands: lanes that are masked out are not touched.
            unsafe { _mm512_mask_storeu_ps(p.wrapping_add(16 * r), mask as __mmask16, a[r]) };
        }
    }
    #[inline(always)]
    fn bits(a: Self::Float) -> Self::Int {
        map!([_mm512_setzero_si512(); 2], |r| _mm512_castps_si512(a[r]))
    }
    #[inline(always)]
    fn from_bits(a: Self::Int) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_castsi512_ps(a[r]))
    }
    #[inline(always)]
    fn to_float(a: Self::Int) -> Self::Float {
        map!([_mm512_setzero_ps(); 2], |r| _mm512_cvtepi32_ps(a[r]))
    }
    #[inline(always)]
    fn and(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        map!(|a, b| _mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(a: Self::Int) -> Self::Int {
        map!(|a| _mm512_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }
    #[inline(always)]
    fn sar<const BITS: u32>(a: Self::Int) -> Self::Int {
        map!(|a| _mm512_sra_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }
}
