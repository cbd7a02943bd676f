//! Adding up gradients over the micro-batches of a step.

use super::reference::Reference;
use super::{Operation, expect_inputs, expect_spec};
use crate::Result;
use crate::tensor::{DType, TensorSpec};

/// `acc ← keep·acc + g`, in place; with keep = 0 the old content does not matter, not even NaN.
/// Inputs: acc f32, g of the same shape, keep f32 `[1]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Accumulate;

impl Operation for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("accumulate", inputs, 3)?;
        let expected = TensorSpec::new(DType::F32, inputs[0].shape.clone());
        expect_spec("accumulate", "acc", &inputs[0], &expected)?;
        expect_spec("accumulate", "g", &inputs[1], &expected)?;
        expect_spec("accumulate", "keep", &inputs[2], &TensorSpec::f32([1]))?;
        Ok(vec![expected])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        2 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let keep = inputs[2].data[0];
        let mut sum = inputs[1].clone();
        if keep != 0.0 {
            sum.data.iter_mut().zip(&inputs[0].data).for_each(|(g, acc)| *g += keep * acc);
        }
        vec![sum]
    }

    fn updates(&self, _inputs: usize) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}
