//! SimdElement types as kernels see them: loaded to f32, stored with rounding to nearest even.

use super::vector::{Isa, LANES, gather, scatter};
use crate::tensor::Element;

/// An element type with which kernels compute, in f32.
pub(crate) trait SimdElement: Element {
    /// The value in f32, to nearest.
    fn get(self) -> f32;
    /// The nearest value to `x`, ties to even (u32: truncated and clamped, NaN to 0).
    fn of(x: f32) -> Self;
    /// [`LANES`] numbers.
    ///
    /// # Safety
    /// `p` is valid for [`LANES`] reads, and `I` is there.
    unsafe fn load<I: Isa>(p: *const Self) -> I::Float;
    /// [`LANES`] numbers.
    ///
    /// # Safety
    /// `p` is valid for [`LANES`] writes, and `I` is there.
    unsafe fn store<I: Isa>(p: *mut Self, a: I::Float);
    /// The first `len` numbers; lanes beyond them hold `fill`.
    ///
    /// # Safety
    /// `p` is valid for `len` reads, at most [`LANES`], and `I` is there.
    #[inline(always)]
    unsafe fn load_first<I: Isa>(p: *const Self, len: usize, fill: f32) -> I::Float {
        let mut lanes = [fill; LANES];
        // SAFETY: as the caller promises.
        unsafe {
            gather(p, 1, len, &mut lanes);
            I::load(lanes.as_ptr())
        }
    }
    /// Writes the first `len` lanes.
    ///
    /// # Safety
    /// `p` is valid for `len` writes, at most [`LANES`], and `I` is there.
    #[inline(always)]
    unsafe fn store_first<I: Isa>(p: *mut Self, a: I::Float, len: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: as the caller promises.
        unsafe {
            I::store(lanes.as_mut_ptr(), a);
            scatter(p, &lanes, len);
        }
    }
}

/// An element type for real numbers: f32, f16 or bf16.
pub(crate) trait FloatElement: SimdElement {}

impl FloatElement for f32 {}
impl FloatElement for half::f16 {}
impl FloatElement for half::bf16 {}

impl SimdElement for f32 {
    #[inline(always)]
    unsafe fn load_first<I: Isa>(p: *const Self, len: usize, fill: f32) -> I::Float {
        // SAFETY: as the caller promises.
        unsafe { I::load_first(p, len, fill) }
    }
    #[inline(always)]
    unsafe fn store_first<I: Isa>(p: *mut Self, a: I::Float, len: usize) {
        // SAFETY: as the caller promises.
        unsafe { I::store_first(p, a, len) }
    }
    #[inline(always)]
    unsafe fn load<I: Isa>(p: *const Self) -> I::Float {
        // SAFETY: as the caller promises.
        unsafe { I::load(p) }
    }
    #[inline(always)]
    unsafe fn store<I: Isa>(p: *mut Self, a: I::Float) {
        // SAFETY: as the caller promises.
        unsafe { I::store(p, a) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }
}

impl SimdElement for u32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(p: *const Self) -> I::Float {
        // SAFETY: as the caller promises.
        unsafe { I::load(p.cast::<[Self; LANES]>().read_unaligned().map(Self::get).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store<I: Isa>(p: *mut Self, a: I::Float) {
        // SAFETY: as the caller promises.
        unsafe {
            {
                let mut lanes = [0.0; LANES];
                I::store(lanes.as_mut_ptr(), a);
                p.cast::<[Self; LANES]>().write_unaligned(lanes.map(Self::of));
            }
        }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn of(x: f32) -> Self {
        x as Self
    }
}

// The conversions of the `half` crate ask the processor for its features at every call, which keeps loops from
// being vectorised. These are free of branches.

impl SimdElement for half::bf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(p: *const Self) -> I::Float {
        // SAFETY: as the caller promises.
        unsafe { I::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<I: Isa>(p: *mut Self, a: I::Float) {
        // SAFETY: as the caller promises.
        unsafe { I::store_bf16(p, a) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn of(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self::from_bits(if x.is_nan() { nan } else { rounded } as u16)
    }
}

impl SimdElement for half::f16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(p: *const Self) -> I::Float {
        // SAFETY: as the caller promises.
        unsafe { I::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<I: Isa>(p: *mut Self, a: I::Float) {
        // SAFETY: as the caller promises.
        unsafe { I::store_f16(p, a) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7fff;
        // The product moves the exponent's bias from 15 to 127 and normalises subnormal numbers.
        let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
        let infinite = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(scaled.to_bits() | infinite | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn of(x: f32) -> Self {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Adding 0.5 puts the last bit of a subnormal f16 at the last bit of the sum, which rounds it.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let rebiased = magnitude.wrapping_sub(112 << 23);
        let normal = rebiased.wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let huge = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let result = if magnitude >= 143 << 23 { huge } else { finite };
        Self::from_bits((result | sign) as u16)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_f16_converts_as_in_half() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let ours = SimdElement::get(value);
            assert!(ours == value.to_f32() || (ours.is_nan() && value.is_nan()), "{bits:#x}");
        }
    }

    #[test]
    fn rounding_to_16_bits_is_as_in_half() {
        let patterns = (0..=u32::MAX).step_by(997).chain((0..1u32 << 16).map(|i| i << 16 | 0x8000));
        for x in patterns.map(f32::from_bits) {
            let (a, b) = (<f16 as SimdElement>::of(x), f16::from_f32(x));
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 of {x:e}");
            let (a, b) = (<bf16 as SimdElement>::of(x), bf16::from_f32(x));
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 of {x:e}");
        }
    }
}
