//! Elementary functions without branches, [`LANES`](super::vector::LANES) at a time.
//!
//! Coefficients are minimax fits (Lawson's iteration at 200 Chebyshev nodes) made for this file; the reductions
//! are those of Cody and Waite (Software Manual for the Elementary Functions, 1980). The errors named are the
//! greatest that the tests at the foot of the file see, in units of the last place (ulp).

use super::vector::{Isa, V};

/// ln 2 to 13 bits, so that its multiples by exponents are exact.
const LN2_HIGH: f32 = 0.693_359_4;
/// The rest of ln 2.
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// A polynomial by Horner's rule, the highest power's coefficient first.
#[inline(always)]
fn polynomial<I: Isa, const N: usize>(x: V<I>, coefficients: [f32; N]) -> V<I> {
    let mut sum = V::splat(coefficients[0]);
    for i in 1..N {
        sum = sum.fma(x, V::splat(coefficients[i]));
    }
    sum
}

/// eʳ for |r| ≤ ln(2)/2 and the integer k of `x = k·ln 2 + r`.
#[inline(always)]
fn exp_parts<I: Isa>(x: V<I>) -> (V<I>, I::Int) {
    let shifted = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let k = shifted - ROUND;
    let r = k.fma(V::splat(-LN2_LOW), k.fma(V::splat(-LN2_HIGH), x));
    let q = polynomial(r, [1.390_128e-3, 8.363_14e-3, 4.166_685_3e-2, 0.166_665_77, 0.5]);
    let k = I::sub_int(I::bits(shifted.0), I::splat_int(ROUND.to_bits()));
    ((q * r).fma(r, r) + 1.0, k)
}

/// 2ᵏ for exponents of normal numbers.
#[inline(always)]
fn power_of_two<I: Isa>(k: I::Int) -> V<I> {
    V(I::from_bits(I::shl::<23>(I::add_int(k, I::splat_int(127)))))
}

/// eˣ, within 2 ulp; results below the normal range round as they should, overflow gives +∞.
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: V<I>) -> V<I> {
    // Beyond these the result is 0 or +∞ anyway. A NaN is on the side that `min` and `max` keep.
    let x = V::splat(-104.0).max(V::splat(89.0).min(x));
    let (p, k) = exp_parts(x);
    // In two factors, because k can lie outside the exponents of normal numbers.
    let half = I::sar::<1>(k);
    p * power_of_two(half) * power_of_two(I::sub_int(k, half))
}

/// eˣ for x ≤ 0, within 2 ulp; 0 where the result would be below the normal range. The exponential of softmax.
#[inline(always)]
pub(crate) fn exp_nonpositive<I: Isa>(x: V<I>) -> V<I> {
    let least = V::splat(-87.0);
    let (p, k) = exp_parts(least.max(x));
    V::splat(0.0).or_else(least.greater(x), p * power_of_two(k))
}

/// ln x, within 2 ulp. ln 0 = −∞; NaN below 0.
#[inline(always)]
pub(crate) fn log<I: Isa>(x: V<I>) -> V<I> {
    let zero = V::splat(0.0);
    let tiny = V::splat(f32::MIN_POSITIVE).greater(x);
    let scaled = (x * 8_388_608.0).or_else(tiny, x);
    // The mantissa is taken between √½ and √2.
    let base = I::splat_int(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let offset = I::sub_int(I::bits(scaled.0), base);
    let k = V(I::to_float(I::sar::<23>(offset))) - V::splat(23.0).or_else(tiny, zero);
    let f = V(I::from_bits(I::add_int(I::and(offset, I::splat_int(0x007f_ffff)), base))) - 1.0;
    let q = polynomial(
        f,
        [
            0.070_375_86,
            -0.115_145_594,
            0.116_770_12,
            -0.124_201_49,
            0.142_493_22,
            -0.166_680_57,
            0.200_007_15,
            -0.249_999_94,
            0.333_333_3,
        ],
    );
    let square = f * f;
    let tail = (q * f).fma(square, k * LN2_LOW);
    let result = k.fma(V::splat(LN2_HIGH), square.fma(V::splat(-0.5), tail) + f);
    let outside = V::splat(f32::NAN).or_else(zero.greater(x), V::splat(f32::NEG_INFINITY));
    let result = result.or_else(x.greater(zero), outside);
    // +∞ and NaN give themselves.
    result.or_else(V::splat(f32::INFINITY).greater(x), x)
}

/// tanh x, within 3 ulp.
#[inline(always)]
pub(crate) fn tanh<I: Isa>(x: V<I>) -> V<I> {
    let z = x * x;
    let q = polynomial(z, [-6.096_937e-3, 2.099_735_4e-2, -5.385_095_3e-2, 0.133_327_7, -0.333_333_3]);
    let near = (q * z).fma(x, x);
    let a = x.abs();
    let far = V::splat(1.0) - V::splat(2.0) / (exp(a + a) + 1.0);
    // A NaN takes the polynomial, which keeps it.
    far.copysign(x).or_else(a.greater(V::splat(0.625)), near)
}

/// 1/(1 + e⁻ˣ), within 3 ulp while the result is normal.
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(x: V<I>) -> V<I> {
    V::splat(1.0) / (exp(-x) + 1.0)
}

/// The normal distribution's Φ(x) = erfc(−x/√2)/2, within 6 ulp in both tails while the result is normal.
///
/// With a = |x|/√2: erfc(a) = e^(−a²)·t·P(t − 0.625), t = 1/(1 + 0.4·a).
#[inline(always)]
pub(crate) fn normal_cdf<I: Isa>(x: V<I>) -> V<I> {
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = V::splat(1.0) / a.fma(V::splat(0.4), V::splat(1.0));
    let q = polynomial(
        t - 0.625,
        [
            -0.030_391_834,
            0.031_407_72,
            0.075_340_636,
            -0.075_974_03,
            -0.185_095_13,
            0.088_136_65,
            0.617_454_75,
            0.946_252_67,
            0.852_240_1,
            0.514_536_7,
        ],
    );
    let tail = t * 0.5 * q * gaussian(x);
    (V::splat(1.0) - tail).or_else(x.greater(V::splat(0.0)), tail)
}

/// e^(−x²/2), within 2 ulp. The square is split, so that the relative error does not grow with x.
#[inline(always)]
pub(crate) fn gaussian<I: Isa>(x: V<I>) -> V<I> {
    // The square of `high` is exact; low·(x + high) is what it lacks of x².
    let high = V(I::from_bits(I::and(I::bits(x.0), I::splat_int(0xffff_f000))));
    let rest = (x - high) * (x + high);
    // Where x is infinite (∞ − ∞ above) or the result is 0 anyway, the square of `high` decides.
    let rest = rest.or_else(V::splat(20.0).greater(x.abs()), V::splat(0.0));
    exp(high * high * -0.5) * exp(rest * -0.5)
}

#[cfg(test)]
mod tests {
    use super::super::vector::Portable;
    use super::*;

    type Fused = Portable<true>;
    type Separate = Portable<false>;

    /// The function of one number.
    fn of_one<I: Isa>(f: fn(V<I>) -> V<I>) -> impl Fn(f32) -> f32 {
        move |x| f(V::splat(x)).to_array()[7]
    }

    /// The greatest error in ulp of the exact result, over `range` in steps and all sizes of numbers.
    fn worst(range: std::ops::Range<f64>, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst: f64 = 0.0;
        let steps = (0..200_000).map(|i| range.start + (range.end - range.start) * f64::from(i) / 200_000.0);
        let sizes = (-120..120).flat_map(|e| [1.0, -1.37, 1.9].map(|m| m * 2f64.powi(e)));
        for x in steps.chain(sizes.filter(|x| range.contains(x))).map(|x| x as f32) {
            let want = exact(f64::from(x));
            if want.abs() < f64::from(f32::MIN_POSITIVE) || want.abs() > f64::from(f32::MAX) {
                assert!((f64::from(f(x)) - want).abs() <= 2e-38 || f(x).abs() > 3.4e38, "f({x}) = {}", f(x));
                continue;
            }
            let ulp = f64::from(f32::EPSILON) * 2f64.powi(want.abs().log2().floor() as i32);
            worst = worst.max((f64::from(f(x)) - want).abs() / ulp);
        }
        worst
    }

    fn cdf(x: f64) -> f64 {
        // Maclaurin series of erf near 0, continued fraction of erfc in the tail.
        let a = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
        let upper = if a < 2.5 {
            let (mut term, mut sum) = (a, a);
            for n in 1..80 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let fraction = (1..=80).rev().fold(a, |tail, n| a + 0.5 * f64::from(n) / tail);
            (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        if x > 0.0 { 1.0 - 0.5 * upper } else { 0.5 * upper }
    }

    #[test]
    fn errors_are_as_documented() {
        assert!(worst(-104.0..89.0, of_one(exp::<Fused>), f64::exp) < 2.0);
        assert!(worst(-104.0..89.0, of_one(exp::<Separate>), f64::exp) < 2.0);
        assert!(worst(-87.0..0.0, of_one(exp_nonpositive::<Fused>), f64::exp) < 2.0);
        assert!(worst(0.0..100.0, of_one(log::<Fused>), f64::ln) < 2.0);
        assert!(worst(0.0..1e38, of_one(log::<Separate>), f64::ln) < 2.0);
        assert!(worst(-12.0..12.0, of_one(tanh::<Fused>), f64::tanh) < 3.0);
        assert!(worst(-87.0..30.0, of_one(sigmoid::<Fused>), |x| 1.0 / (1.0 + (-x).exp())) < 3.0);
        assert!(worst(-13.0..8.0, of_one(normal_cdf::<Fused>), cdf) < 6.0);
        assert!(worst(-13.0..8.0, of_one(normal_cdf::<Separate>), cdf) < 6.0);
        assert!(worst(-13.0..13.0, of_one(gaussian::<Fused>), |x| (-0.5 * x * x).exp()) < 4.0);
    }

    #[test]
    fn limits_and_nan() {
        let inf = f32::INFINITY;
        let exp = of_one(exp::<Fused>);
        assert_eq!([-inf, -200.0, 0.0, 88.8, inf].map(exp), [0.0, 0.0, 1.0, inf, inf]);
        let least = of_one(super::exp::<Fused>)(-103.0);
        assert_eq!(least.to_bits(), 1, "the least subnormal number");
        assert_eq!([-inf, -100.0, 0.0].map(of_one(exp_nonpositive::<Fused>)), [0.0, 0.0, 1.0]);
        assert_eq!([0.0, -0.0, 1.0, inf].map(of_one(log::<Fused>)), [-inf, -inf, 0.0, inf]);
        assert!(of_one(log::<Fused>)(-1.0).is_nan());
        assert_eq!([-inf, 0.0, inf].map(of_one(tanh::<Fused>)), [-1.0, 0.0, 1.0]);
        assert_eq!([-inf, 0.0, inf].map(of_one(sigmoid::<Fused>)), [0.0, 0.5, 1.0]);
        assert_eq!([-inf, inf].map(of_one(normal_cdf::<Fused>)), [0.0, 1.0]);
        for f in [super::exp::<Fused>, exp_nonpositive, log, tanh, sigmoid, normal_cdf, gaussian] {
            assert!(of_one(f)(f32::NAN).is_nan());
        }
    }
}
