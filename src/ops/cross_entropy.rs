//! Cross-entropy of next-token prediction, fused with the output head's product.

use super::reference::Reference;
use super::{Backward, Operation, Scale, Value, expect_float, expect_inputs, expect_spec};
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// `loss = Σᵢ weightᵢ · (log Σⱼ exp(logitsᵢⱼ) − logitsᵢ[targetᵢ])`: a weighted sum, so that gradients of several
/// batches can be added and divided once by the number of tokens.
///
/// With `head`: inputs x `[m, h]`, W `[v, h]`, targets u32 `[m]`, weights f32 `[m]`, and logits = x·Wᵀ, which
/// are computed in chunks and never held whole. Without: inputs logits `[m, v]`, targets, weights.
/// Outputs: loss f32 `[1]`; the unweighted loss of each row, f32 `[m]`; and the gradient of the loss with respect
/// to input 0, computed in the same pass if anything uses it. W gets no gradient (it is frozen under LoRA; train
/// a head through `matmul` and the form without `head`). Rows of weight 0 are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrossEntropy {
    /// The head's product is part of the operation.
    pub head: bool,
}

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let head = usize::from(self.head);
        expect_inputs("cross_entropy", inputs, 3 + head)?;
        let x = &inputs[0];
        expect_float("cross_entropy", &[x])?;
        if x.shape.rank() != 2 {
            return Err(Error::shape("cross_entropy", "the first input must be a matrix", &[&x.shape]));
        }
        if self.head && (inputs[1].shape.rank() != 2 || inputs[1].shape[1] != x.shape[1]) {
            return Err(Error::shape(
                "cross_entropy",
                "x [m, h] needs W [v, h]",
                &[&x.shape, &inputs[1].shape],
            ));
        }
        let m = x.shape[0];
        expect_spec("cross_entropy", "targets", &inputs[1 + head], &TensorSpec::u32([m]))?;
        expect_spec("cross_entropy", "weights", &inputs[2 + head], &TensorSpec::f32([m]))?;
        Ok(vec![TensorSpec::f32([1]), TensorSpec::f32([m]), x.clone()])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; cx.inputs.len()];
        if cx.upstream[1].is_some() || cx.upstream[2].is_some() {
            return Err(Error::invalid("cross_entropy", "only the summed loss can be differentiated"));
        }
        if let Some(upstream) = cx.upstream[0] {
            let unit = cx.recorder.known(upstream) == Some(1.0);
            gradients[0] =
                Some(if unit { cx.outputs[2] } else { cx.one(Scale, &[cx.outputs[2], upstream])? });
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        let (m, h) = (inputs[0].shape[0], inputs[0].shape[1]);
        // Product forward and backward, and five operations a logit.
        if self.head { (4 * m * h + 5 * m) as u64 * inputs[1].shape[0] as u64 } else { 5 * (m * h) as u64 }
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let head = usize::from(self.head);
        let x = &inputs[0];
        let (m, h) = (x.shape[0], x.shape[1]);
        let v = if self.head { inputs[1].shape[0] } else { h };
        let (targets, weights) = (&inputs[1 + head], &inputs[2 + head]);
        let (mut loss, mut losses, mut dx) =
            (Reference::zeros([1]), Reference::zeros([m]), Reference::zeros([m, h]));
        for row in 0..m {
            let weight = weights.data[row];
            if weight == 0.0 {
                continue;
            }
            let logits: Vec<f64> = (0..v)
                .map(|j| {
                    if self.head {
                        (0..h).map(|i| x.at(row, i) * inputs[1].at(j, i)).sum()
                    } else {
                        x.at(row, j)
                    }
                })
                .collect();
            let max =
                logits.iter().copied().fold(f64::NEG_INFINITY, |a, b| if b.is_nan() { b } else { a.max(b) });
            let lse = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
            let target = targets.data[row] as usize;
            losses.data[row] = lse - logits[target];
            loss.data[0] += weight * losses.data[row];
            for j in 0..v {
                let d = weight * ((logits[j] - lse).exp() - if j == target { 1.0 } else { 0.0 });
                if self.head {
                    for i in 0..h {
                        dx.data[row * h + i] += d * inputs[1].at(j, i);
                    }
                } else {
                    dx.data[row * h + j] = d;
                }
            }
        }
        vec![loss, losses, dx]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input == 0 && layout.row_stride().is_some() || layout.is_contiguous()
    }
}
