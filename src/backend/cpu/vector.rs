//! Thirty-two numbers at a time, in the registers of whatever instruction set the machine has.
//!
//! Kernels are written once over [`V`], a value of [`LANES`] f32 that supports the operators, and compiled for
//! every [`Isa`]. All functions here are `#[inline(always)]`: they take the instruction set of their caller.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::element::SimdElement;

/// How many numbers a [`V`] holds: four AVX registers, two of AVX-512, eight of NEON.
pub(crate) const LANES: usize = 32;

/// An instruction set: registers for [`LANES`] numbers and what can be done with them.
///
/// # Safety
/// The functions of an implementation may run only on a machine that has the instruction set; [`super::kernel`]
/// sees to that, and is the only place that names an implementation. Pointers must be valid for [`LANES`]
/// elements; they need not be aligned.
pub(crate) unsafe trait Isa: Copy {
    /// Numbers.
    type Float: Copy;
    /// Integers, or the bits of numbers.
    type Int: Copy;
    /// A truth value for each lane.
    type Mask: Copy;
    /// Registers for dense products.
    type Tile: super::microkernel::Tile;

    fn splat(x: f32) -> Self::Float;
    fn splat_int(x: u32) -> Self::Int;
    unsafe fn load(p: *const f32) -> Self::Float;
    unsafe fn store(p: *mut f32, a: Self::Float);
    unsafe fn load_f16(p: *const half::f16) -> Self::Float;
    unsafe fn store_f16(p: *mut half::f16, a: Self::Float);
    unsafe fn load_bf16(p: *const half::bf16) -> Self::Float;
    unsafe fn store_bf16(p: *mut half::bf16, a: Self::Float);

    fn add(a: Self::Float, b: Self::Float) -> Self::Float;
    fn sub(a: Self::Float, b: Self::Float) -> Self::Float;
    fn mul(a: Self::Float, b: Self::Float) -> Self::Float;
    fn div(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a·b + c`, rounded once where the hardware can.
    fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    fn sqrt(a: Self::Float) -> Self::Float;
    /// `a > b ? a : b`
    fn max(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a < b ? a : b`
    fn min(a: Self::Float, b: Self::Float) -> Self::Float;
    fn greater(a: Self::Float, b: Self::Float) -> Self::Mask;
    fn is_nan(a: Self::Float) -> Self::Mask;
    /// `mask ? a : b`
    fn select(mask: Self::Mask, a: Self::Float, b: Self::Float) -> Self::Float;
    fn any(mask: Self::Mask) -> bool;
    /// The sum of the lanes: halves are added until one number is left.
    fn sum(a: Self::Float) -> f32 {
        // SAFETY: the instruction set is there, as for every function.
        unsafe { fold::<Self>(a, |a, b| a + b) }
    }
    /// The greatest lane. A NaN may be passed over.
    fn greatest(a: Self::Float) -> f32 {
        // SAFETY: as above.
        unsafe { fold::<Self>(a, |a, b| if a > b { a } else { b }) }
    }

    /// The first `len` numbers at `p`; lanes beyond them hold `fill`.
    unsafe fn load_first(p: *const f32, len: usize, fill: f32) -> Self::Float {
        let mut lanes = [fill; LANES];
        // SAFETY: as the trait demands, for `len` elements.
        unsafe {
            gather(p, 1, len, &mut lanes);
            Self::load(lanes.as_ptr())
        }
    }
    /// Writes the first `len` lanes.
    unsafe fn store_first(p: *mut f32, a: Self::Float, len: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: as the trait demands, for `len` elements.
        unsafe {
            Self::store(lanes.as_mut_ptr(), a);
            scatter(p, &lanes, len);
        }
    }

    fn bits(a: Self::Float) -> Self::Int;
    fn from_bits(a: Self::Int) -> Self::Float;
    /// The signed integers as numbers.
    fn to_float(a: Self::Int) -> Self::Float;
    fn and(a: Self::Int, b: Self::Int) -> Self::Int;
    fn or(a: Self::Int, b: Self::Int) -> Self::Int;
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int;
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int;
    fn shl<const BITS: u32>(a: Self::Int) -> Self::Int;
    /// Shifts the sign in.
    fn sar<const BITS: u32>(a: Self::Int) -> Self::Int;
}

/// [`LANES`] numbers with operators.
#[derive(Clone, Copy)]
pub(crate) struct V<I: Isa>(pub(crate) I::Float);

macro_rules! operator {
    ($trait:ident, $name:ident) => {
        impl<I: Isa> $trait for V<I> {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Self(I::$name(self.0, other.0))
            }
        }

        impl<I: Isa> $trait<f32> for V<I> {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: f32) -> Self {
                Self(I::$name(self.0, I::splat(other)))
            }
        }
    };
}

operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl<I: Isa> Neg for V<I> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        let sign = I::splat_int(0x8000_0000);
        Self(I::from_bits(I::add_int(I::bits(self.0), sign)))
    }
}

impl<I: Isa> V<I> {
    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn splat(x: f32) -> Self {
        Self(I::splat(x))
    }

    /// The `len` numbers at `p`; lanes beyond them hold `fill`.
    ///
    /// # Safety
    /// `p` is valid for `len <= LANES` reads.
    #[inline(always)]
    pub(crate) unsafe fn load<T: SimdElement>(p: *const T, len: usize, fill: f32) -> Self {
        if len == LANES {
            // SAFETY: as the caller promises.
            return Self(unsafe { T::load::<I>(p) });
        }
        // SAFETY: as the caller promises.
        Self(unsafe { T::load_first::<I>(p, len, fill) })
    }

    /// The numbers at `p`, `p + stride`, …; lanes from `len` on hold `fill`.
    ///
    /// # Safety
    /// `p` is valid for these reads.
    #[inline(always)]
    pub(crate) unsafe fn gather<T: SimdElement>(p: *const T, stride: usize, len: usize, fill: f32) -> Self {
        let mut lanes = [fill; LANES];
        // SAFETY: as the caller promises.
        unsafe { gather(p, stride, len, &mut lanes) };
        Self::from_array(&lanes)
    }

    /// Writes the first `len` lanes to `p`.
    ///
    /// # Safety
    /// `p` is valid for `len <= LANES` writes.
    #[inline(always)]
    pub(crate) unsafe fn store<T: SimdElement>(self, p: *mut T, len: usize) {
        if len == LANES {
            // SAFETY: as the caller promises.
            return unsafe { T::store::<I>(p, self.0) };
        }
        // SAFETY: as the caller promises.
        unsafe { T::store_first::<I>(p, self.0, len) };
    }

    /// From an array.
    #[inline(always)]
    pub(crate) fn from_array(lanes: &[f32; LANES]) -> Self {
        // SAFETY: the array has LANES elements.
        Self(unsafe { I::load(lanes.as_ptr()) })
    }

    /// As an array.
    #[inline(always)]
    pub(crate) fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has LANES elements.
        unsafe { I::store(lanes.as_mut_ptr(), self.0) };
        lanes
    }

    /// `self·b + c`, rounded once where the hardware can.
    #[inline(always)]
    pub(crate) fn fma(self, b: Self, c: Self) -> Self {
        Self(I::fma(self.0, b.0, c.0))
    }

    /// The square root.
    #[inline(always)]
    pub(crate) fn sqrt(self) -> Self {
        Self(I::sqrt(self.0))
    }

    /// `self > other ? self : other`: other if either is NaN.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        Self(I::max(self.0, other.0))
    }

    /// `self < other ? self : other`: other if either is NaN.
    #[inline(always)]
    pub(crate) fn min(self, other: Self) -> Self {
        Self(I::min(self.0, other.0))
    }

    /// The magnitude.
    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        Self(I::from_bits(I::and(I::bits(self.0), I::splat_int(0x7fff_ffff))))
    }

    /// The magnitude of `self` with the sign of `sign`.
    #[inline(always)]
    pub(crate) fn copysign(self, sign: Self) -> Self {
        let sign = I::and(I::bits(sign.0), I::splat_int(0x8000_0000));
        Self(I::from_bits(I::or(I::bits(self.abs().0), sign)))
    }

    /// Where `self > other`; false where either is NaN.
    #[inline(always)]
    pub(crate) fn greater(self, other: Self) -> I::Mask {
        I::greater(self.0, other.0)
    }

    /// Where `self` is NaN.
    #[inline(always)]
    pub(crate) fn is_nan(self) -> I::Mask {
        I::is_nan(self.0)
    }

    /// `mask ? self : other`
    #[inline(always)]
    pub(crate) fn or_else(self, mask: I::Mask, other: Self) -> Self {
        Self(I::select(mask, self.0, other.0))
    }

    /// The sum of the lanes, pairwise.
    #[inline(always)]
    pub(crate) fn sum(self) -> f32 {
        I::sum(self.0)
    }

    /// The greatest lane. A NaN may be passed over.
    #[inline(always)]
    pub(crate) fn greatest(self) -> f32 {
        I::greatest(self.0)
    }
}

/// Combines the two halves of the lanes until one number is left.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
unsafe fn fold<I: Isa>(a: I::Float, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the array has LANES elements.
    unsafe { I::store(lanes.as_mut_ptr(), a) };
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The first `len` lanes from numbers `stride` apart. Out of line: it is for the rest of a row.
///
/// # Safety
/// `p` is valid for these reads.
#[inline(never)]
pub(super) unsafe fn gather<T: SimdElement>(
    p: *const T,
    stride: usize,
    len: usize,
    lanes: &mut [f32; LANES],
) {
    for (l, lane) in lanes.iter_mut().enumerate().take(len) {
        // SAFETY: l < len.
        *lane = unsafe { p.add(l * stride).read() }.get();
    }
}

/// Writes the first `len` lanes.
///
/// # Safety
/// `p` is valid for `len` writes.
#[inline(never)]
pub(super) unsafe fn scatter<T: SimdElement>(p: *mut T, lanes: &[f32; LANES], len: usize) {
    for (l, &lane) in lanes.iter().enumerate().take(len) {
        // SAFETY: l < len.
        unsafe { p.add(l).write(T::of(lane)) };
    }
}

/// Any machine: arrays, with which the compiler does what it can. On x86-64, where it is for processors of before
/// 2013, its functions stay out of line: inlined, they would make up most of the library's code. The parameter says whether multiply-add is
/// one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FUSED: bool>;

#[inline(always)]
fn each<T: Copy, U: Copy, R: Copy + Default>(
    a: [T; LANES],
    b: [U; LANES],
    f: impl Fn(T, U) -> R,
) -> [R; LANES] {
    let mut result = [R::default(); LANES];
    for l in 0..LANES {
        result[l] = f(a[l], b[l]);
    }
    result
}

// SAFETY: needs no instruction set.
unsafe impl<const FUSED: bool> Isa for Portable<FUSED> {
    type Float = [f32; LANES];
    type Int = [u32; LANES];
    type Mask = [bool; LANES];
    type Tile = super::microkernel::PortableTile<FUSED>;

    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn splat(x: f32) -> Self::Float {
        [x; LANES]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn splat_int(x: u32) -> Self::Int {
        [x; LANES]
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn load(p: *const f32) -> Self::Float {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<Self::Float>().read_unaligned() }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn store(p: *mut f32, a: Self::Float) {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<Self::Float>().write_unaligned(a) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn load_f16(p: *const half::f16) -> Self::Float {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<[half::f16; LANES]>().read_unaligned() }.map(SimdElement::get)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn store_f16(p: *mut half::f16, a: Self::Float) {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<[half::f16; LANES]>().write_unaligned(a.map(SimdElement::of)) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::Float {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<[half::bf16; LANES]>().read_unaligned() }.map(SimdElement::get)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    unsafe fn store_bf16(p: *mut half::bf16, a: Self::Float) {
        // SAFETY: as the trait demands.
        unsafe { p.cast::<[half::bf16; LANES]>().write_unaligned(a.map(SimdElement::of)) }
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn add(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| a + b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn sub(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| a - b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn mul(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| a * b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn div(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| a / b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        let mut result = c;
        for l in 0..LANES {
            result[l] = if FUSED { a[l].mul_add(b[l], c[l]) } else { a[l] * b[l] + c[l] };
        }
        result
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn sqrt(a: Self::Float) -> Self::Float {
        each(a, a, |a, _| a.sqrt())
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn max(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn min(a: Self::Float, b: Self::Float) -> Self::Float {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn greater(a: Self::Float, b: Self::Float) -> Self::Mask {
        each(a, b, |a, b| a > b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn is_nan(a: Self::Float) -> Self::Mask {
        a.map(f32::is_nan)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn select(mask: Self::Mask, a: Self::Float, b: Self::Float) -> Self::Float {
        let mut result = b;
        for l in 0..LANES {
            result[l] = if mask[l] { a[l] } else { b[l] };
        }
        result
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn any(mask: Self::Mask) -> bool {
        mask.iter().any(|&m| m)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn bits(a: Self::Float) -> Self::Int {
        a.map(f32::to_bits)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn from_bits(a: Self::Int) -> Self::Float {
        a.map(f32::from_bits)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn to_float(a: Self::Int) -> Self::Float {
        a.map(|a| a as i32 as f32)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn and(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, |a, b| a & b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn or(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, |a, b| a | b)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, u32::wrapping_add)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, u32::wrapping_sub)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn shl<const BITS: u32>(a: Self::Int) -> Self::Int {
        a.map(|a| a << BITS)
    }
    #[cfg_attr(target_arch = "x86_64", inline(never))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(always))]
    fn sar<const BITS: u32>(a: Self::Int) -> Self::Int {
        a.map(|a| (a as i32 >> BITS) as u32)
    }
}
