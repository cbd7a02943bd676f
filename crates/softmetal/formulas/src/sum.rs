//! The weighted sum of matrices: `MPSMatrixSum`.

use crate::element::Element;
use crate::kernel::{Extent, Origin};
use crate::matrix::Matrix;
use crate::multiplication::stored;
use crate::neuron::Activation;
use crate::rules::{Refusal, require};
use crate::touches::{Operand, Touches};
use crate::vector::Vector;

/// The operands of a sum.
#[derive(Clone, Copy, Debug)]
pub struct Summands<'a> {
    /// The matrices summed.
    pub sources: &'a [Matrix],
    /// A factor for each matrix, Float32, from `start` on.
    pub scales: &'a Vector,
    /// A pair of UInt32, row and column, for each matrix, from pair `start` on: `MPSMatrixOffset`.
    pub offsets: &'a Vector,
    /// Added to every row of the result.
    pub bias: Option<&'a Vector>,
    /// First factor and first pair used: `startIndex`.
    pub start: usize,
}

/// `A = f(op(sum_i scale_i B_i) + bias)`, where `op` transposes if asked.
///
/// Each source is read from its own offset on. Sources, result and bias have one type, Float32 or Float16.
/// Only the first matrix of a batch takes part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    /// Matrices summed.
    pub count: usize,
    /// Rows of each source.
    pub rows: usize,
    /// Columns of each source.
    pub columns: usize,
    /// The sum is transposed before bias and activation.
    pub transpose: bool,
    /// The function applied last.
    pub activation: Activation,
    /// Where the result starts.
    pub result_origin: Origin,
}

impl Sum {
    /// Refuses operands that the header refuses. Offsets are known only when the sum runs.
    ///
    /// # Errors
    ///
    /// `mps-sum-count`, `-types`, `-scale-type`, `-offset-type`, `-vector-length`, `-source-shape`,
    /// `-result-shape`, `-bias-length`, `mps-origin-z`.
    pub fn check(&self, operands: &Summands<'_>, result: &Matrix) -> Result<(), Refusal> {
        let given = operands.sources.len();
        require(given == self.count && given > 0, "mps-sum-count", || {
            format!("{given} matrices for a sum of {}", self.count)
        })?;
        let element = result.element();
        let valid = matches!(element, Element::Float32 | Element::Float16)
            && operands.sources.iter().all(|source| source.element() == element)
            && operands.bias.is_none_or(|bias| bias.element() == element);
        require(valid, "mps-sum-types", || format!("the result is {element:?}"))?;
        let (scales, offsets) = (operands.scales, operands.offsets);
        require(scales.element() == Element::Float32, "mps-sum-scale-type", || {
            format!("{:?}", scales.element())
        })?;
        require(offsets.element() == Element::UInt32, "mps-sum-offset-type", || {
            format!("{:?}", offsets.element())
        })?;
        let needed = operands.start.saturating_add(self.count);
        let lengths = (scales.descriptor().length(), offsets.descriptor().length());
        let long = lengths.0 >= needed && lengths.1 >= needed.saturating_mul(2);
        require(long, "mps-sum-vector-length", || {
            format!("{lengths:?} numbers; {needed} factors and pairs are needed")
        })?;
        for source in operands.sources {
            require(self.source().fits(source, Origin::default()), "mps-sum-source-shape", || {
                format!("a source does not hold {:?}", self.source())
            })?;
        }
        self.result_origin.check("result")?;
        require(self.result().fits(result, self.result_origin), "mps-sum-result-shape", || {
            format!("the result does not hold {:?} from {:?} on", self.result(), self.result_origin)
        })?;
        let long = operands.bias.is_none_or(|bias| bias.descriptor().length() >= self.result().columns);
        require(long, "mps-sum-bias-length", || format!("{} columns", self.result().columns))
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, operands: &Summands<'_>, result: &Matrix) -> Vec<Refusal> {
        let address = |operand| match operand {
            Operand::Source(index) => operands.sources[index].buffer().addr(),
            Operand::Scales => operands.scales.buffer().addr(),
            Operand::Offsets => operands.offsets.buffer().addr(),
            Operand::Bias => operands.bias.map_or(0, |bias| bias.buffer().addr()),
            _ => result.buffer().addr(),
        };
        self.touches(operands, result).alias_suspect(address).into_iter().collect()
    }

    /// The bytes read and written; the offsets decide which part of a source is read, so all of it counts.
    pub fn touches(&self, operands: &Summands<'_>, result: &Matrix) -> Touches {
        let mut touches = Touches::default();
        for (index, source) in operands.sources.iter().enumerate() {
            let whole = Extent::default().clip(source, Origin::default()).region(Origin::default(), 0..1);
            touches.read(Operand::Source(index), source.region_ranges(&whole));
        }
        let used = operands.start..operands.start + self.count;
        touches.read(Operand::Scales, operands.scales.region_ranges(0..1, used.clone()));
        touches.read(Operand::Offsets, operands.offsets.region_ranges(0..1, 2 * used.start..2 * used.end));
        if let Some(bias) = operands.bias {
            touches.read(Operand::Bias, bias.region_ranges(0..1, 0..self.result().columns));
        }
        let written = self.result().region(self.result_origin, 0..1);
        touches.write(Operand::Result, result.region_ranges(&written));
        touches
    }

    /// Checks and computes.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), and `mps-sum-source-shape` for an offset that leaves a source;
    /// nothing is written then.
    ///
    /// # Safety
    ///
    /// The buffers are readable, and the result's writable, over the lengths given to their constructors,
    /// and nothing else uses them during the call.
    pub unsafe fn run(&self, operands: &Summands<'_>, result: &Matrix) -> Result<(), Refusal> {
        self.check(operands, result)?;
        let mut sum = vec![0.; self.rows * self.columns];
        for (index, source) in operands.sources.iter().enumerate() {
            let at = operands.start + index;
            // SAFETY: the caller vouches for the buffers.
            let offset = |part| unsafe { operands.offsets.read(0, 2 * at + part) } as usize;
            let origin = Origin::at(offset(0), offset(1));
            require(self.source().fits(source, origin), "mps-sum-source-shape", || {
                format!("source {index} does not hold {:?} from {origin:?} on", self.source())
            })?;
            let region = self.source().region(origin, 0..1);
            // SAFETY: as above.
            let (scale, values) =
                unsafe { (operands.scales.read(0, at), source.read_rows(0, region.rows, region.columns)) };
            for (total, value) in sum.iter_mut().zip(values) {
                *total += scale * value;
            }
        }
        let shape = self.result();
        for i in 0..shape.rows {
            for j in 0..shape.columns {
                let (row, column) = if self.transpose { (j, i) } else { (i, j) };
                let total = sum[row * self.columns + column];
                // SAFETY: as above.
                unsafe {
                    let value = total + operands.bias.map_or(0., |bias| bias.read(0, j));
                    let at = (self.result_origin.x + i, self.result_origin.y + j);
                    result.write(0, at.0, at.1, self.activation.apply(value));
                }
            }
        }
        Ok(())
    }

    fn source(&self) -> Extent {
        Extent { rows: self.rows, columns: self.columns }
    }

    fn result(&self) -> Extent {
        stored(self.transpose, self.rows, self.columns)
    }
}
