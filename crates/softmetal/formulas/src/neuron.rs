//! Activations, and their application to a matrix: `MPSCNNNeuronType` and `MPSMatrixNeuron`.

use crate::element::Element;
use crate::kernel::{Batch, Extent, Origin, scale, scale_suspect};
use crate::matrix::Matrix;
use crate::multiplication::counts;
use crate::rules::{Refusal, refuse, require};
use crate::touches::{Operand, Touches};
use crate::vector::Vector;

/// A pointwise function of `x` with the parameters `a`, `b` and `c`, numbered as in the SDK.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `x`.
    #[default]
    None,
    /// `x` for `x >= 0`, else `a x`.
    Relu(f64),
    /// `a x + b`.
    Linear(f64, f64),
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `a x + b`, clamped to 0..=1.
    HardSigmoid(f64, f64),
    /// `a tanh(b x)`.
    Tanh(f64, f64),
    /// `|x|`.
    Absolute,
    /// `a ln(1 + exp(b x))`.
    SoftPlus(f64, f64),
    /// `x / (1 + |x|)`.
    SoftSign,
    /// `x` for `x >= 0`, else `a (exp(x) - 1)`.
    Elu(f64),
    /// `min(x, b)` for `x >= 0`, else `min(a x, b)`.
    ReluN(f64, f64),
    /// `(a x + b)` to the power `c`.
    Power(f64, f64, f64),
    /// `c` to the power `a x + b`.
    Exponential(f64, f64, f64),
    /// The logarithm to the base `c` of `a x + b`.
    Logarithm(f64, f64, f64),
    /// `(1 + erf(x / sqrt 2)) x / 2`.
    Gelu,
}

impl Activation {
    /// The activation of a number of `MPSCNNNeuronType` and its parameters.
    ///
    /// # Errors
    ///
    /// `mps-neuron-type` for PReLU, whose parameter is a vector, and for an unknown number.
    pub fn from_number(number: i32, a: f64, b: f64, c: f64) -> Result<Self, Refusal> {
        Ok(match number {
            0 => Self::None,
            1 => Self::Relu(a),
            2 => Self::Linear(a, b),
            3 => Self::Sigmoid,
            4 => Self::HardSigmoid(a, b),
            5 => Self::Tanh(a, b),
            6 => Self::Absolute,
            7 => Self::SoftPlus(a, b),
            8 => Self::SoftSign,
            9 => Self::Elu(a),
            11 => Self::ReluN(a, b),
            12 => Self::Power(a, b, c),
            13 => Self::Exponential(a, b, c),
            14 => Self::Logarithm(a, b, c),
            15 => Self::Gelu,
            _ => return Err(refuse("mps-neuron-type", format!("neuron type {number}"))),
        })
    }

    /// The value of the function.
    pub fn apply(&self, x: f64) -> f64 {
        match *self {
            Self::None => x,
            Self::Relu(a) => leaky(x, a),
            Self::Linear(a, b) => a * x + b,
            Self::Sigmoid => 1. / (1. + (-x).exp()),
            Self::HardSigmoid(a, b) => (a * x + b).clamp(0., 1.),
            Self::Tanh(a, b) => a * (b * x).tanh(),
            Self::Absolute => x.abs(),
            // ln(1 + e^t) = max(t, 0) + ln(1 + e^-|t|), which overflows for no t.
            Self::SoftPlus(a, b) => a * ((b * x).max(0.) + (-(b * x).abs()).exp().ln_1p()),
            Self::SoftSign => x / (1. + x.abs()),
            Self::Elu(a) => {
                if x >= 0. {
                    x
                } else {
                    a * x.exp_m1()
                }
            }
            Self::ReluN(a, b) => leaky(x, a).min(b),
            Self::Power(a, b, c) => (a * x + b).powf(c),
            Self::Exponential(a, b, c) => c.powf(a * x + b),
            Self::Logarithm(a, b, c) => (a * x + b).ln() / c.ln(),
            Self::Gelu => (1. + erf(x * std::f64::consts::FRAC_1_SQRT_2)) * 0.5 * x,
        }
    }
}

fn leaky(x: f64, a: f64) -> f64 {
    if x >= 0. { x } else { a * x }
}

/// The error function, by its Taylor series below 3 and a continued fraction above; the error stays under
/// 1e-12, far below the rounding of any float type written.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z.is_nan() {
        z
    } else if z < 3. {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            let n = f64::from(n);
            term *= -z * z / n;
            sum += term / (2. * n + 1.);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(z, |below, n| z + f64::from(n) / 2. / below);
        1. - (-z * z).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.
    };
    value.copysign(x)
}

/// `y = f(alpha x + bias)` for each element of a batch of matrices; the bias has an element for each column.
///
/// Rows and columns are those of the source from its origin on, at most `extent`. The header says both "the
/// larger of" the property and what is available and, in its note, `MIN`: the smaller is meant. Operands
/// have one type, Float32 or Float16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neuron {
    /// The function.
    pub activation: Activation,
    /// Factor of the input.
    pub alpha: f64,
    /// Rows and columns taken: `sourceNumberOfFeatureVectors` and `sourceInputFeatureChannels`.
    pub extent: Extent,
    /// Where the source starts.
    pub source_origin: Origin,
    /// Where the result starts.
    pub result_origin: Origin,
    /// Matrices processed.
    pub batch: Batch,
}

impl Neuron {
    /// A function of the whole source: alpha 1, origins 0.
    pub fn new(activation: Activation) -> Self {
        Self {
            activation,
            alpha: 1.,
            extent: Extent::default(),
            source_origin: Origin::default(),
            result_origin: Origin::default(),
            batch: Batch::default(),
        }
    }

    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-neuron-types`, `-source-origin`, `-result-shape`, `-bias-length`, `mps-origin-z`,
    /// `mps-batch-start`.
    pub fn check(&self, input: &Matrix, bias: Option<&Vector>, result: &Matrix) -> Result<(), Refusal> {
        let element = input.element();
        let valid = matches!(element, Element::Float32 | Element::Float16)
            && result.element() == element
            && bias.is_none_or(|bias| bias.element() == element);
        require(valid, "mps-neuron-types", || {
            format!("{element:?}, {:?}, bias {:?}", result.element(), bias.map(Vector::element))
        })?;
        self.source_origin.check("source")?;
        self.result_origin.check("result")?;
        let extent = self.extent.clip(input, self.source_origin);
        require(!extent.is_empty(), "mps-neuron-source-origin", || {
            format!("{} x {} are left from {:?} on", extent.rows, extent.columns, self.source_origin)
        })?;
        require(extent.fits(result, self.result_origin), "mps-neuron-result-shape", || {
            format!("{} x {} are needed from {:?} on", extent.rows, extent.columns, self.result_origin)
        })?;
        let long = bias.is_none_or(|bias| bias.descriptor().length() >= extent.columns);
        require(long, "mps-neuron-bias-length", || format!("{} columns are taken", extent.columns))?;
        self.batch.check(&counts(&[input, result]))
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, input: &Matrix, bias: Option<&Vector>, result: &Matrix) -> Vec<Refusal> {
        let mut found: Vec<_> = self.batch.suspect(&counts(&[input, result])).into_iter().collect();
        found.extend(scale_suspect("alpha", self.alpha, result.element()));
        found.extend(self.touches(input, bias, result).alias_suspect(|operand| match operand {
            Operand::Input => input.buffer().addr(),
            Operand::Bias => bias.map_or(0, |bias| bias.buffer().addr()),
            _ => result.buffer().addr(),
        }));
        found
    }

    /// The bytes read and written.
    pub fn touches(&self, input: &Matrix, bias: Option<&Vector>, result: &Matrix) -> Touches {
        let matrices = self.batch.matrices(&counts(&[input, result]));
        let extent = self.extent.clip(input, self.source_origin);
        let read = extent.region(self.source_origin, matrices.clone());
        let mut touches = Touches::default();
        touches.read(Operand::Input, input.region_ranges(&read));
        if let Some(bias) = bias {
            touches.read(Operand::Bias, bias.region_ranges(0..1, 0..extent.columns));
        }
        touches.write(Operand::Result, result.region_ranges(&extent.region(self.result_origin, matrices)));
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
    /// The buffers are readable, and the result's writable, over the lengths given to their constructors,
    /// and nothing else uses them during the call.
    pub unsafe fn run(&self, input: &Matrix, bias: Option<&Vector>, result: &Matrix) -> Result<(), Refusal> {
        self.check(input, bias, result)?;
        let extent = self.extent.clip(input, self.source_origin);
        let alpha = scale(self.alpha, result.element());
        for matrix in self.batch.matrices(&counts(&[input, result])) {
            for i in 0..extent.rows {
                for j in 0..extent.columns {
                    let (from, to) = (self.source_origin, self.result_origin);
                    // SAFETY: the caller vouches for the buffers.
                    unsafe {
                        let added = bias.map_or(0., |bias| bias.read(0, j));
                        let value = alpha * input.read(matrix, from.x + i, from.y + j) + added;
                        result.write(matrix, to.x + i, to.y + j, self.activation.apply(value));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_known_values() {
        // Abramowitz and Stegun, table 7.1; both branches.
        for (x, value) in
            [(0.5, 0.5204998778), (1., 0.8427007929), (2., 0.9953222650), (3.5, 0.999999256901628)]
        {
            assert!((erf(x) - value).abs() < 1e-10, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn activations_follow_their_formulas() {
        let value = |number, x| Activation::from_number(number, 0.5, 2., 3.).unwrap().apply(x);
        let expected = [
            (0, -3.),
            (1, -1.5),
            (2, 0.5),
            (3, 1. / (1. + 3f64.exp())),
            (4, 0.5),
            (5, 0.5 * (-6f64).tanh()),
            (6, 3.),
            (7, 0.5 * (1. + (-6f64).exp()).ln()),
            (8, -0.75),
            (9, 0.5 * ((-3f64).exp() - 1.)),
            (11, -1.5),
            (12, 0.125),
            (13, 3f64.sqrt()),
            (14, 0.5f64.ln() / 3f64.ln()),
            (15, (1. - 0.9973002039367398) * 0.5 * -3.),
        ];
        for (number, y) in expected {
            assert!((value(number, -3.) - y).abs() < 1e-12, "{number}: {} {y}", value(number, -3.));
        }
        assert_eq!(value(11, 7.), 2.);
        assert_eq!(value(7, 1000.), 1000.);
    }
}
