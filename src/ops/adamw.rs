//! The optimizer's update, for all tensors at once.

use super::reference::Reference;
use super::{Operation, Real, expect_spec};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101), in torch's order:
/// `p ← p·(1 − lr·decay)`, `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
/// `p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + eps)`, with g the gradient times `factor`.
///
/// Inputs: for every tensor p, g, m, v (f32, one shape), then hyper f32 `[3]`: lr, the step t counted from 1,
/// factor; and the gradients' global norm f32 `[1]`. The factor is multiplied by
/// `min(1, max_norm / (factor·norm + 1e-6))`, and if it is not finite then, nothing changes: a broken step leaves
/// the last good state. Outputs: p, m, v of every tensor, updated in place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdamW {
    /// Decay of the mean.
    pub beta1: Real,
    /// Decay of the mean square.
    pub beta2: Real,
    /// Added to the root mean square.
    pub eps: Real,
    /// Weight decay.
    pub weight_decay: Real,
    /// Gradients are scaled down to this norm; infinity for no limit.
    pub max_norm: Real,
}

impl AdamW {
    /// How many tensors are updated.
    pub(crate) fn tensors(&self, inputs: usize) -> usize {
        (inputs - 2) / 4
    }
}

impl Operation for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        if inputs.len() < 2 || !(inputs.len() - 2).is_multiple_of(4) {
            return Err(Error::invalid("adamw", "takes p, g, m and v of each tensor, then the scalars"));
        }
        let (tensors, rest) = inputs.split_at(inputs.len() - 2);
        expect_spec("adamw", "hyper", &rest[0], &TensorSpec::f32([3]))?;
        expect_spec("adamw", "the norm", &rest[1], &TensorSpec::f32([1]))?;
        let mut outputs = Vec::new();
        for tensor in tensors.chunks(4) {
            let expected = TensorSpec::new(DType::F32, tensor[0].shape.clone());
            for part in tensor {
                expect_spec("adamw", "p, g, m and v", part, &expected)?;
            }
            outputs.extend(vec![expected; 3]);
        }
        Ok(outputs)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs.iter().map(|spec| 4 * spec.shape.elements() as u64).sum()
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let tensors = self.tensors(inputs.len());
        let hyper = &inputs[4 * tensors].data;
        let (lr, step, mut factor) = (hyper[0], hyper[1], hyper[2]);
        let norm = inputs[4 * tensors + 1].data[0];
        let limit = f64::from(self.max_norm.0) / (factor * norm + 1e-6);
        factor *= if limit >= 1.0 { 1.0 } else { limit };
        if !(factor * norm).is_finite() {
            let unchanged = |tensor: &[Reference]| [tensor[0].clone(), tensor[2].clone(), tensor[3].clone()];
            return inputs[..4 * tensors].chunks(4).flat_map(unchanged).collect();
        }
        let [beta1, beta2, eps, decay] =
            [self.beta1, self.beta2, self.eps, self.weight_decay].map(|x| f64::from(x.0));
        let mut outputs = Vec::new();
        for tensor in inputs[..4 * tensors].chunks(4) {
            let (mut p, mut m, mut v) = (tensor[0].clone(), tensor[2].clone(), tensor[3].clone());
            for i in 0..p.data.len() {
                let g = tensor[1].data[i] * factor;
                m.data[i] = beta1 * m.data[i] + (1.0 - beta1) * g;
                v.data[i] = beta2 * v.data[i] + (1.0 - beta2) * g * g;
                let root = (v.data[i] / (1.0 - beta2.powf(step))).sqrt();
                p.data[i] *= 1.0 - lr * decay;
                p.data[i] -= lr / (1.0 - beta1.powf(step)) * m.data[i] / (root + eps);
            }
            outputs.extend([p, m, v]);
        }
        outputs
    }

    fn updates(&self, inputs: usize) -> Vec<(usize, usize)> {
        (0..self.tensors(inputs))
            .flat_map(|i| [(4 * i, 3 * i), (4 * i + 2, 3 * i + 1), (4 * i + 3, 3 * i + 2)])
            .collect()
    }
}
