//! Accumulation of gradients over the micro-batches of a step.

use super::reference::Reference;
use super::{Operation, expect_spec};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// `acc ← keep·acc + g` of every tensor, in place; with keep = 0 the previous content does not matter, not even NaN.
///
/// Inputs: for every tensor acc (f32) and g of the same shape, then keep f32 `[1]`. Outputs: acc of every tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Accumulate;

impl Operation for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        if inputs.is_empty() || inputs.len().is_multiple_of(2) {
            return Err(Error::invalid("accumulate", "takes acc and g of each tensor, then keep"));
        }
        let (tensors, keep) = inputs.split_at(inputs.len() - 1);
        expect_spec("accumulate", "keep", &keep[0], &TensorSpec::f32([1]))?;
        let mut outputs = Vec::new();
        for tensor in tensors.chunks(2) {
            let expected = TensorSpec::new(DType::F32, tensor[0].shape.clone());
            expect_spec("accumulate", "acc", &tensor[0], &expected)?;
            expect_spec("accumulate", "g", &tensor[1], &expected)?;
            outputs.push(expected);
        }
        Ok(outputs)
    }

    fn flops(&self, _inputs: &[TensorSpec], outputs: &[TensorSpec]) -> u64 {
        outputs.iter().map(|spec| 2 * spec.shape.elements() as u64).sum()
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (tensors, keep) = inputs.split_at(inputs.len() - 1);
        let keep = keep[0].data[0];
        let sum = |tensor: &[Reference]| {
            let mut sum = tensor[1].clone();
            if keep != 0.0 {
                sum.data.iter_mut().zip(&tensor[0].data).for_each(|(g, acc)| *g += keep * acc);
            }
            sum
        };
        tensors.chunks(2).map(sum).collect()
    }

    fn updates(&self, inputs: usize) -> Vec<(usize, usize)> {
        (0..inputs / 2).map(|tensor| (2 * tensor, tensor)).collect()
    }
}
