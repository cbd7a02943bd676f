//! Element-by-element operations.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_inputs, expect_spec};
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnaryFn {
    /// −x
    Neg,
    /// |x|, with gradient 0 at 0
    Abs,
    /// eˣ
    Exp,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// 1/√x
    Rsqrt,
    /// 1/x
    Recip,
    /// x²
    Square,
    /// tanh x
    Tanh,
    /// 1/(1 + e⁻ˣ)
    Sigmoid,
    /// max(x, 0), with gradient 0 at 0
    Relu,
    /// x/(1 + e⁻ˣ)
    Silu,
    /// GELU in its tanh form: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
    Gelu,
    /// GELU, exact: x/2·(1 + erf(x/√2))
    GeluErf,
}

impl UnaryFn {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Neg,
        Self::Abs,
        Self::Exp,
        Self::Log,
        Self::Sqrt,
        Self::Rsqrt,
        Self::Recip,
        Self::Square,
        Self::Tanh,
        Self::Sigmoid,
        Self::Relu,
        Self::Silu,
        Self::Gelu,
        Self::GeluErf,
    ];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Neg => "neg",
            Self::Abs => "abs",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Rsqrt => "rsqrt",
            Self::Recip => "recip",
            Self::Square => "square",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluErf => "gelu_erf",
        }
    }

    /// The value in f64.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Neg => -x,
            Self::Abs => x.abs(),
            Self::Exp => x.exp(),
            Self::Log => x.ln(),
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Recip => 1.0 / x,
            Self::Square => x * x,
            Self::Tanh => x.tanh(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Relu => {
                if x.is_nan() {
                    x
                } else {
                    x.max(0.0)
                }
            }
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Gelu => 0.5 * x * (1.0 + (GELU_SCALE * (x + 0.044715 * x.powi(3))).tanh()),
            Self::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        }
    }

    /// The derivative in f64.
    pub fn derivative(self, x: f64) -> f64 {
        match self {
            Self::Neg => -1.0,
            Self::Abs => {
                if x == 0.0 {
                    0.0
                } else {
                    x.signum()
                }
            }
            Self::Exp => x.exp(),
            Self::Log => 1.0 / x,
            Self::Sqrt => 0.5 / x.sqrt(),
            Self::Rsqrt => -0.5 / (x * x.sqrt()),
            Self::Recip => -1.0 / (x * x),
            Self::Square => 2.0 * x,
            Self::Tanh => 1.0 - x.tanh().powi(2),
            Self::Sigmoid => {
                let s = Self::Sigmoid.value(x);
                s * (1.0 - s)
            }
            Self::Relu => f64::from(u8::from(x > 0.0)),
            Self::Silu => {
                let s = Self::Sigmoid.value(x);
                s * (1.0 + x * (1.0 - s))
            }
            Self::Gelu => {
                let t = (GELU_SCALE * (x + 0.044715 * x.powi(3))).tanh();
                let inner = GELU_SCALE * (1.0 + 3.0 * 0.044715 * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
            }
            Self::GeluErf => {
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
            }
        }
    }
}

/// √(2/π)
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;

/// The error function, to f64 rounding for the sizes that occur: its Maclaurin series up to |x| = 3, beyond
/// that one minus the continued fraction of erfc (Abramowitz and Stegun 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let magnitude = x.abs();
    if magnitude > 6.0 {
        return x.signum();
    }
    if magnitude < 3.0 {
        let (mut term, mut sum) = (magnitude, magnitude);
        for n in 1..100 {
            term *= -magnitude * magnitude / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..=60).rev().fold(magnitude, |tail, n| magnitude + 0.5 * f64::from(n) / tail);
    let complement = (-magnitude * magnitude).exp() / (fraction * std::f64::consts::PI.sqrt());
    x.signum() * (1.0 - complement)
}

/// A function of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BinaryFn {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// the greater of a and b; NaN if either is
    Max,
    /// the lesser of a and b; NaN if either is
    Min,
    /// 1 if a ≥ b, otherwise 0; no gradient
    Ge,
}

impl BinaryFn {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Max, Self::Min, Self::Ge];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Max => "max",
            Self::Min => "min",
            Self::Ge => "ge",
        }
    }

    /// The value in f64.
    pub fn value(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Max if a.is_nan() || b.is_nan() => f64::NAN,
            Self::Min if a.is_nan() || b.is_nan() => f64::NAN,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
            Self::Ge => f64::from(u8::from(a >= b)),
        }
    }
}

/// `y = f(x)`, element by element, any strides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unary {
    /// The function.
    pub function: UnaryFn,
}

/// The gradient of [`Unary`]: `dx = f′(x)·dy`. Inputs: dy, x.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UnaryGrad {
    /// The function f.
    pub function: UnaryFn,
}

/// `y = f(a, b)`, element by element. Inputs of one shape and dtype (broadcast first: that is a view).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Binary {
    /// The function.
    pub function: BinaryFn,
}

/// `y = mul·x + add`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Affine {
    /// The factor.
    pub mul: Real,
    /// The addend.
    pub add: Real,
}

/// `y = s·x` with a factor on the device. Inputs: x, s f32 `[1]`. The gradient goes to x only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scale;

/// A tensor with the same value everywhere. No inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fill {
    /// The value.
    pub value: Real,
    /// Dtype and shape.
    pub spec: TensorSpec,
}

impl Operation for Unary {
    fn name(&self) -> &'static str {
        self.function.name()
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_float(self.name(), &[&inputs[0]])?;
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        Ok(vec![Some(cx.one(UnaryGrad { function: self.function }, &[dy, cx.inputs[0]])?)])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![inputs[0].map(|x| self.function.value(x))]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

impl Operation for UnaryGrad {
    fn name(&self) -> &'static str {
        "unary_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("unary_grad", inputs, 2)?;
        expect_spec("unary_grad", "x", &inputs[1], &inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        4 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let mut dx = inputs[0].clone();
        dx.data.iter_mut().zip(&inputs[1].data).for_each(|(dy, &x)| *dy *= self.function.derivative(x));
        vec![dx]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (1, 0)]
    }
}

impl Operation for Binary {
    fn name(&self) -> &'static str {
        self.function.name()
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_float(self.name(), &[&inputs[0]])?;
        if inputs[0].dtype != inputs[1].dtype {
            let dtypes = [inputs[0].dtype, inputs[1].dtype];
            return Err(Error::dtype(self.name(), "both sides need one dtype; cast one", &dtypes));
        }
        if inputs[0].shape != inputs[1].shape {
            let shapes = [&inputs[0].shape, &inputs[1].shape];
            return Err(Error::shape(self.name(), "both sides need one shape; broadcast one", &shapes));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        self.function != BinaryFn::Ge
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        let (a, b) = (cx.inputs[0], cx.inputs[1]);
        let binary = |function| Self { function };
        let negated = Affine { mul: Real(-1.0), add: Real(0.0) };
        let (mut da, mut db) = (None, None);
        match self.function {
            BinaryFn::Add => (da, db) = (Some(dy), Some(dy)),
            BinaryFn::Sub => {
                da = Some(dy);
                if cx.needed[1] {
                    db = Some(cx.one(negated, &[dy])?);
                }
            }
            BinaryFn::Mul => {
                if cx.needed[0] {
                    da = Some(cx.one(binary(BinaryFn::Mul), &[dy, b])?);
                }
                if cx.needed[1] {
                    db = Some(cx.one(binary(BinaryFn::Mul), &[dy, a])?);
                }
            }
            BinaryFn::Div => {
                let quotient = cx.one(binary(BinaryFn::Div), &[dy, b])?;
                da = Some(quotient);
                if cx.needed[1] {
                    let product = cx.one(binary(BinaryFn::Mul), &[quotient, cx.outputs[0]])?;
                    db = Some(cx.one(negated, &[product])?);
                }
            }
            BinaryFn::Max | BinaryFn::Min => {
                // Where both sides are equal the first one gets the gradient.
                let sides = if self.function == BinaryFn::Max { [a, b] } else { [b, a] };
                let first = cx.one(binary(BinaryFn::Ge), &sides)?;
                let second = cx.one(Affine { mul: Real(-1.0), add: Real(1.0) }, &[first])?;
                da = Some(cx.one(binary(BinaryFn::Mul), &[dy, first])?);
                db = Some(cx.one(binary(BinaryFn::Mul), &[dy, second])?);
            }
            BinaryFn::Ge => {}
        }
        Ok(vec![da, db])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let mut y = inputs[0].clone();
        y.data.iter_mut().zip(&inputs[1].data).for_each(|(a, &b)| *a = self.function.value(*a, b));
        vec![y]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (1, 0)]
    }
}

impl Operation for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("affine", inputs, 1)?;
        expect_float("affine", &[&inputs[0]])?;
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        Ok(vec![Some(cx.one(Self { mul: self.mul, add: Real(0.0) }, &[dy])?)])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        2 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![inputs[0].map(|x| f64::from(self.mul.0) * x + f64::from(self.add.0))]
    }

    fn accepts(&self, _input: usize, _layout: &Layout) -> bool {
        true
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

impl Operation for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("scale", inputs, 2)?;
        expect_float("scale", &[&inputs[0]])?;
        expect_spec("scale", "the factor", &inputs[1], &TensorSpec::f32([1]))?;
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        Ok(vec![Some(cx.one(Self, &[dy, cx.inputs[1]])?), None])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![inputs[0].map(|x| x * inputs[1].data[0])]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input == 0 || layout.is_contiguous()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

impl Operation for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("fill", inputs, 0)?;
        Ok(vec![self.spec.clone()])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, _inputs: &[Reference]) -> Vec<Reference> {
        vec![Reference::zeros(self.spec.shape.clone()).map(|_| f64::from(self.value.0))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_tabulated_values() {
        // Abramowitz and Stegun, table 7.1, and erfc(4) from its asymptotic series.
        for (x, expected) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - expected).abs() < 1e-10);
            assert!((erf(-x) + expected).abs() < 1e-10);
        }
        assert!((1.0 - erf(4.0) - 1.541_725_790_028e-8).abs() < 1e-15);
    }

    #[test]
    fn derivatives_agree_with_central_differences() {
        for function in UnaryFn::ALL {
            for x in [0.3, 0.9, 1.7] {
                let h = 1e-5;
                let numeric = (function.value(x + h) - function.value(x - h)) / (2.0 * h);
                // Central differences are off by h²·f‴/6, at most 1.3e-8 here (1/x at 0.3).
                assert!((numeric - function.derivative(x)).abs() < 2e-8, "{} at {x}", function.name());
            }
        }
    }
}
