//! Layer norm.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_inputs, expect_shape};
use crate::Result;
use crate::tensor::{DType, Layout, TensorSpec};

/// `y = (x − mean x) / √(var x + eps) · w + b` along the last axis (Ba et al., 2016, arXiv:1607.06450); the
/// variance is the biased one. Inputs: x `[…, n]`, w `[n]`, b `[n]` if `bias`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: Real,
    /// There is a bias.
    pub bias: bool,
}

/// The gradient of [`LayerNorm`].
///
/// With x̂ = (x − mean)·ρ, ρ = 1/√(var + eps), g = dy·w: `dx = ρ·(g − mean g − x̂·mean(g·x̂))`, `dw = Σ dy·x̂`,
/// `db = Σ dy`. Inputs: dy, x, w. Outputs: dx, dw and db (f32).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerNormGrad {
    /// Added to the variance.
    pub eps: Real,
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("layer_norm", inputs, 2 + usize::from(self.bias))?;
        expect_float("layer_norm", &inputs.iter().collect::<Vec<_>>())?;
        for parameter in &inputs[1..] {
            expect_shape("layer_norm", "weight and bias", parameter, &[inputs[0].shape.last()])?;
        }
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; cx.inputs.len()]) };
        let op = LayerNormGrad { eps: self.eps };
        let results = cx.recorder.record(op.into(), &[dy, cx.inputs[0], cx.inputs[1]])?;
        let mut gradients = vec![Some(results[0])];
        for input in 1..cx.inputs.len() {
            gradients.push(if cx.needed[input] {
                Some(super::cast::to_dtype_of(cx.recorder, results[input], cx.inputs[input])?)
            } else {
                None
            });
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        7 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![inputs[0].map_rows(|row| {
            let (mean, scale) = moments(row, self.eps);
            let bias = |i: usize| inputs.get(2).map_or(0.0, |b| b.data[i]);
            row.iter().enumerate().map(|(i, x)| (x - mean) * scale * inputs[1].data[i] + bias(i)).collect()
        })]
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

/// Mean and 1/√(variance + eps).
fn moments(row: &[f64], eps: Real) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (variance + f64::from(eps.0)).sqrt())
}

impl Operation for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer_norm_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("layer_norm_grad", inputs, 3)?;
        expect_shape("layer_norm_grad", "x", &inputs[1], inputs[0].shape.dims())?;
        let parameter = TensorSpec::new(DType::F32, inputs[2].shape.clone());
        Ok(vec![inputs[1].clone(), parameter.clone(), parameter])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        12 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (dy, x, w) = (&inputs[0], &inputs[1], &inputs[2]);
        let n = x.shape.last();
        let mut dx = Reference::zeros(x.shape.clone());
        let (mut dw, mut db) = (Reference::zeros([n]), Reference::zeros([n]));
        for row in 0..x.shape.rows() {
            let (mean, scale) = moments(&x.data[row * n..][..n], self.eps);
            let normed = |i: usize| (x.at(row, i) - mean) * scale;
            let g = |i: usize| dy.at(row, i) * w.data[i];
            let mean_g = (0..n).map(g).sum::<f64>() / n as f64;
            let mean_gx = (0..n).map(|i| g(i) * normed(i)).sum::<f64>() / n as f64;
            for i in 0..n {
                dx.data[row * n + i] = scale * (g(i) - mean_g - normed(i) * mean_gx);
                dw.data[i] += dy.at(row, i) * normed(i);
                db.data[i] += dy.at(row, i);
            }
        }
        vec![dx, dw, db]
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }
}
