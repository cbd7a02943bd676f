//! Data types: the numbers of `MPSDataType`, their sizes, and exact conversion to and from `f64`.

use half::{bf16, f16};

use crate::rules::{Refusal, refuse};

/// A data type of one element, named and numbered as `MPSDataType` of the SDK is.
///
/// The low bits of the number are the width in bits; the high bits are the kind (float 0x1000_0000, signed
/// 0x2000_0000, alternate encoding 0x8000_0000). Types narrower than a byte, complex and normalised types
/// exist in the SDK and are not modelled: [`Element::from_number`] refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Element {
    /// IEEE binary32.
    Float32 = 0x1000_0020,
    /// IEEE binary16.
    Float16 = 0x1000_0010,
    /// The upper half of a binary32.
    BFloat16 = 0x9000_0010,
    /// Signed, 8 bits.
    Int8 = 0x2000_0008,
    /// Signed, 16 bits.
    Int16 = 0x2000_0010,
    /// Signed, 32 bits.
    Int32 = 0x2000_0020,
    /// Signed, 64 bits; values past 2^53 are not exact in `f64`.
    Int64 = 0x2000_0040,
    /// Unsigned, 8 bits.
    UInt8 = 0x8,
    /// Unsigned, 16 bits.
    UInt16 = 0x10,
    /// Unsigned, 32 bits.
    UInt32 = 0x20,
    /// Unsigned, 64 bits; values past 2^53 are not exact in `f64`.
    UInt64 = 0x40,
    /// One byte, 0 or 1.
    Bool = 0x8000_0008,
}

/// Every modelled data type.
pub const ELEMENTS: [Element; 12] = [
    Element::Float32,
    Element::Float16,
    Element::BFloat16,
    Element::Int8,
    Element::Int16,
    Element::Int32,
    Element::Int64,
    Element::UInt8,
    Element::UInt16,
    Element::UInt32,
    Element::UInt64,
    Element::Bool,
];

impl Element {
    /// The data type of a number of the SDK.
    ///
    /// # Errors
    ///
    /// `mps-element-modelled` for a number that names no modelled type.
    pub fn from_number(number: u32) -> Result<Self, Refusal> {
        ELEMENTS.into_iter().find(|element| element.number() == number).ok_or_else(|| {
            refuse("mps-element-modelled", format!("data type {number:#x} is unknown or not modelled"))
        })
    }

    /// The number of the SDK.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        (self.number() & 0xffff) as usize / 8
    }

    /// True for the floating point types.
    pub const fn is_float(self) -> bool {
        self.number() & 0x1000_0000 != 0
    }

    /// The largest finite value of the type.
    pub fn largest(self) -> f64 {
        match self {
            Element::Float32 => f64::from(f32::MAX),
            Element::Float16 => f16::MAX.to_f64(),
            Element::BFloat16 => bf16::MAX.to_f64(),
            Element::Int8 => f64::from(i8::MAX),
            Element::Int16 => f64::from(i16::MAX),
            Element::Int32 => f64::from(i32::MAX),
            Element::Int64 => i64::MAX as f64,
            Element::UInt8 => f64::from(u8::MAX),
            Element::UInt16 => f64::from(u16::MAX),
            Element::UInt32 => f64::from(u32::MAX),
            Element::UInt64 => u64::MAX as f64,
            Element::Bool => 1.,
        }
    }

    /// The value nearest to `value` that the type holds: ties to even, overflow to infinity for floats and
    /// to the nearest bound for integers, NaN to 0 for integers, any value but 0 to 1 for `Bool`.
    pub fn round(self, value: f64) -> f64 {
        let mut bytes = [0u8; 8];
        // SAFETY: no type is wider than the 8 bytes.
        unsafe {
            self.write(bytes.as_mut_ptr(), value);
            self.read(bytes.as_ptr())
        }
    }

    /// Reads one element; the pointer need not be aligned.
    ///
    /// # Safety
    ///
    /// `at` is valid for reading [`size`](Self::size) initialised bytes.
    pub unsafe fn read(self, at: *const u8) -> f64 {
        // SAFETY: the caller vouches for `size` bytes, and `read_unaligned` asks for no alignment.
        unsafe {
            match self {
                Element::Float32 => f64::from(at.cast::<f32>().read_unaligned()),
                Element::Float16 => at.cast::<f16>().read_unaligned().to_f64(),
                Element::BFloat16 => at.cast::<bf16>().read_unaligned().to_f64(),
                Element::Int8 => f64::from(at.cast::<i8>().read_unaligned()),
                Element::Int16 => f64::from(at.cast::<i16>().read_unaligned()),
                Element::Int32 => f64::from(at.cast::<i32>().read_unaligned()),
                Element::Int64 => at.cast::<i64>().read_unaligned() as f64,
                Element::UInt8 => f64::from(at.read_unaligned()),
                Element::UInt16 => f64::from(at.cast::<u16>().read_unaligned()),
                Element::UInt32 => f64::from(at.cast::<u32>().read_unaligned()),
                Element::UInt64 => at.cast::<u64>().read_unaligned() as f64,
                Element::Bool => f64::from(u8::from(at.read_unaligned() != 0)),
            }
        }
    }

    /// Writes one element, rounded as [`round`](Self::round) says; the pointer need not be aligned.
    ///
    /// # Safety
    ///
    /// `at` is valid for writing [`size`](Self::size) bytes.
    pub unsafe fn write(self, at: *mut u8, value: f64) {
        let whole = value.round_ties_even();
        // SAFETY: the caller vouches for `size` bytes, and `write_unaligned` asks for no alignment.
        unsafe {
            match self {
                Element::Float32 => at.cast::<f32>().write_unaligned(value as f32),
                Element::Float16 => at.cast::<f16>().write_unaligned(f16::from_f32(to_odd(value))),
                Element::BFloat16 => at.cast::<bf16>().write_unaligned(bf16::from_f32(to_odd(value))),
                Element::Int8 => at.cast::<i8>().write_unaligned(whole as i8),
                Element::Int16 => at.cast::<i16>().write_unaligned(whole as i16),
                Element::Int32 => at.cast::<i32>().write_unaligned(whole as i32),
                Element::Int64 => at.cast::<i64>().write_unaligned(whole as i64),
                Element::UInt8 => at.write_unaligned(whole as u8),
                Element::UInt16 => at.cast::<u16>().write_unaligned(whole as u16),
                Element::UInt32 => at.cast::<u32>().write_unaligned(whole as u32),
                Element::UInt64 => at.cast::<u64>().write_unaligned(whole as u64),
                Element::Bool => at.write_unaligned(u8::from(value != 0.)),
            }
        }
    }
}

/// Rounds to `f32` towards zero and sets the last bit where anything was lost.
///
/// A second rounding to a narrower type then rounds as if from the `f64` itself; rounding to nearest twice
/// would turn values just off a tie into ties.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > value.abs();
    let truncated = if beyond { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(truncated | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_size_follow_the_sdk() {
        assert_eq!(Element::from_number(0x1000_0020).unwrap(), Element::Float32);
        assert_eq!(Element::BFloat16.number(), 0x8000_0000 | 0x1000_0010);
        assert_eq!(ELEMENTS.map(Element::size), [4, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1]);
        assert_eq!(Element::from_number(0x2000_0004).unwrap_err().rule.id, "mps-element-modelled");
    }

    #[test]
    fn half_types_round_once() {
        // 1 + 2^-11 is a tie in f16; a sliver above it must round up, though f32 rounds the sliver away.
        let tie = 1. + 2f64.powi(-11);
        assert_eq!(Element::Float16.round(tie), 1.);
        assert_eq!(Element::Float16.round(tie + 2f64.powi(-40)), 1. + 2f64.powi(-10));
        let tie = 1. + 2f64.powi(-8);
        assert_eq!(Element::BFloat16.round(tie), 1.);
        assert_eq!(Element::BFloat16.round(tie + 2f64.powi(-40)), 1. + 2f64.powi(-7));
        assert_eq!(Element::BFloat16.round(-tie - 2f64.powi(-40)), -1. - 2f64.powi(-7));
    }

    #[test]
    fn bounds_and_special_values() {
        assert_eq!(Element::Float16.round(65519.9), 65504.);
        assert_eq!(Element::Float16.round(65520.), f64::INFINITY);
        assert_eq!(Element::Float16.round(2f64.powi(-24)), 2f64.powi(-24));
        assert_eq!(Element::Float16.round(2f64.powi(-25)), 0.);
        assert_eq!(Element::Float32.round(1e300), f64::INFINITY);
        assert_eq!(Element::BFloat16.round(-1e300), f64::NEG_INFINITY);
        assert!(Element::Float16.round(f64::NAN).is_nan());
        assert_eq!(Element::Int8.round(-200.), -128.);
        assert_eq!(Element::UInt8.round(2.5), 2.);
        assert_eq!(Element::UInt32.round(f64::NAN), 0.);
        assert_eq!(Element::Bool.round(-3.), 1.);
    }

    #[test]
    fn half_rounding_equals_the_nearest_of_all_values() {
        let finite: Vec<f64> =
            (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f64()).filter(|v| v.is_finite()).collect();
        for index in 0..400 {
            let value = (f64::from(index) * 0.37 - 70.).sinh() * 1e-27;
            let nearest = finite.iter().map(|v| (v - value).abs()).fold(f64::INFINITY, f64::min);
            if value.abs() < 65504. {
                assert_eq!((Element::Float16.round(value) - value).abs(), nearest, "{value}");
            }
        }
    }
}
