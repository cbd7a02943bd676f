//! A product with what its kernel computes from the result while it is in registers.

use super::reference::Reference;
use super::{BinaryFn, Operation, SiluMul, expect_spec};
use crate::ops::{Binary, Op};
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// Maximum number of sums of an epilogue: a bias each for q, k and v.
pub(crate) const MAX_SUMS: usize = 3;

/// What is computed from the result y `[m, n]` of a product.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EpilogueKind {
    /// `silu(y[:, ..n/2]) · y[:, n/2..]`, with [`SiluMul`] of the two halves.
    Gate,
    /// `y[:, start..start + len] + addend` for each of at most three pairs (start, len): biases and residuals.
    Sums(Vec<(usize, usize)>),
}

/// A [`MatMul`](super::MatMul) or [`Lora`](super::Lora) with an epilogue. Graphs get it by
/// [fusion](crate::graph::Target::supports_epilogue) for targets whose kernels support it.
///
/// Inputs: those of the product, then for sums each addend `[m, len]`. Outputs: those of the product, then the gated
/// `[m, n/2]` or each sum `[m, len]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epilogue {
    /// The product.
    pub product: Box<Op>,
    /// What is computed from its result.
    pub kind: EpilogueKind,
}

impl Epilogue {
    /// Number of addends.
    fn addends(&self) -> usize {
        match &self.kind {
            EpilogueKind::Gate => 0,
            EpilogueKind::Sums(sums) => sums.len(),
        }
    }

    /// Number of outputs of the product.
    pub(crate) fn product_outputs(&self) -> usize {
        if matches!(*self.product, Op::Lora(_)) { 2 } else { 1 }
    }

    /// Splits the inputs into those of the product, and the addends.
    pub(crate) fn split<'a, T>(&self, inputs: &'a [T]) -> (&'a [T], &'a [T]) {
        inputs.split_at(inputs.len().saturating_sub(self.addends()))
    }
}

impl Operation for Epilogue {
    fn name(&self) -> &'static str {
        self.product.name()
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let name = self.name();
        if !matches!(*self.product, Op::MatMul(_) | Op::Lora(_)) {
            return Err(Error::invalid(name, "has no epilogue; matmul and lora have"));
        }
        let (of_product, addends) = self.split(inputs);
        let mut outputs = self.product.contract().infer(of_product)?;
        let y = outputs[0].clone();
        if y.shape.rank() != 2 {
            return Err(Error::shape(name, "an epilogue needs a result [m, n]", &[&y.shape]));
        }
        let (m, n) = (y.shape[0], y.shape[1]);
        match &self.kind {
            EpilogueKind::Gate if n.is_multiple_of(2) => outputs.push(TensorSpec::new(y.dtype, [m, n / 2])),
            EpilogueKind::Gate => {
                return Err(Error::shape(name, "a gate needs an even number of columns", &[&y.shape]));
            }
            EpilogueKind::Sums(sums) => {
                if sums.len() > MAX_SUMS {
                    let message = format!("has {} sums; the maximum is {MAX_SUMS}", sums.len());
                    return Err(Error::invalid(name, message));
                }
                for (&(start, len), addend) in sums.iter().zip(addends) {
                    if start.checked_add(len).is_none_or(|end| end > n) {
                        let message = format!("columns {start}+{len} of a sum do not exist");
                        return Err(Error::shape(name, message, &[&y.shape]));
                    }
                    let expected = TensorSpec::new(y.dtype, [m, len]);
                    expect_spec(name, "the addend", addend, &expected)?;
                    outputs.push(expected);
                }
            }
        }
        Ok(outputs)
    }

    fn flops(&self, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> u64 {
        let (of_product, _) = self.split(inputs);
        let (products, results) = outputs.split_at(self.product_outputs());
        let each = if self.kind == EpilogueKind::Gate { 5 } else { 1 };
        let elements: usize = results.iter().map(|spec| spec.shape.elements()).sum();
        self.product.contract().flops(of_product, products) + each * elements as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (of_product, addends) = self.split(inputs);
        let mut outputs = self.product.contract().reference(of_product);
        let y = outputs[0].clone();
        let columns = |start: usize, len: usize| {
            let n = y.shape.last();
            let data = y.data.chunks_exact(n.max(1)).flat_map(|row| row[start..start + len].to_vec());
            Reference::new([y.shape[0], len], data.collect())
        };
        match &self.kind {
            EpilogueKind::Gate => {
                let half = y.shape.last() / 2;
                outputs.extend(SiluMul.reference(&[columns(0, half), columns(half, half)]));
            }
            EpilogueKind::Sums(sums) => {
                for (&(start, len), addend) in sums.iter().zip(addends) {
                    let add = Binary { function: BinaryFn::Add };
                    outputs.extend(add.reference(&[columns(start, len), addend.clone()]));
                }
            }
        }
        outputs
    }

    /// Kernels with epilogues read rows of the product's inputs, and of the addends, which may repeat one row.
    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.is_contiguous() || layout.row_stride().is_some() || repeated_row(layout)
    }
}

/// Returns true for the layout of one row that is repeated.
fn repeated_row(layout: &Layout) -> bool {
    layout.shape.rank() == 2 && layout.strides[0] == 0 && layout.is_row_contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::MatMul;

    #[test]
    fn more_sums_than_kernels_have_are_rejected() {
        let sums = |count: usize| {
            let kind = EpilogueKind::Sums(vec![(0, 4); count]);
            let op = Epilogue { product: Box::new(MatMul::new(false, true).into()), kind };
            let mut inputs = vec![TensorSpec::f32([2, 8]), TensorSpec::f32([4, 8])];
            inputs.extend(vec![TensorSpec::f32([2, 4]); count]);
            op.infer(&inputs).map(|outputs| outputs.len())
        };
        assert_eq!(sums(MAX_SUMS).unwrap(), 1 + MAX_SUMS);
        let error = sums(MAX_SUMS + 1).unwrap_err().to_string();
        assert!(error.contains("has 4 sums; the maximum is 3"), "{error}");
    }
}
