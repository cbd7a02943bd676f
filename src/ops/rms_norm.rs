//! Root-mean-square norm, optionally with the residual addition before it.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_inputs, expect_shape, expect_spec};
use crate::Result;
use crate::tensor::{DType, Layout, TensorSpec};

/// `y = s / √(mean(s²) + eps) · w` along the last axis (Zhang and Sennrich, 2019, arXiv:1910.07467), with
/// s = x, or s = x + r if `residual`.
///
/// Inputs: x `[…, n]`, r of the same shape if `residual`, w `[n]`. Outputs: y, and s if `residual`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: Real,
    /// A residual is added first.
    pub residual: bool,
}

/// The gradient of [`RmsNorm`].
///
/// With ρ = 1/√(mean(s²) + eps) and g = dy·w: `ds = ρ·(g − s·ρ²·mean(g·s))` (+ the gradient that arrives at s
/// itself, if `residual`), `dw = Σ dy·s·ρ`. Inputs: dy, s, w, and the upstream of s if `residual`.
/// Outputs: ds, and dw `[n]` in f32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RmsNormGrad {
    /// Added to the mean square.
    pub eps: Real,
    /// There is a gradient at s to add.
    pub residual: bool,
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let residual = usize::from(self.residual);
        expect_inputs("rms_norm", inputs, 2 + residual)?;
        let (x, w) = (&inputs[0], &inputs[1 + residual]);
        expect_float("rms_norm", &[x, w])?;
        if self.residual {
            expect_spec("rms_norm", "the residual", &inputs[1], x)?;
        }
        expect_shape("rms_norm", "the weight", w, &[x.shape.last()])?;
        Ok(vec![x.clone(); 1 + residual])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let residual = usize::from(self.residual);
        let upstream_s = if self.residual { cx.upstream[1] } else { None };
        let Some(dy) = cx.upstream[0] else {
            let mut gradients = vec![upstream_s; 1 + residual];
            gradients.push(None);
            return Ok(gradients);
        };
        let s = if self.residual { cx.outputs[1] } else { cx.inputs[0] };
        let w = cx.inputs[1 + residual];
        let op = RmsNormGrad { eps: self.eps, residual: upstream_s.is_some() };
        let inputs: Vec<Value> = [dy, s, w].into_iter().chain(upstream_s).collect();
        let results = cx.recorder.record(op.into(), &inputs)?;
        let mut gradients = vec![Some(results[0]); 1 + residual];
        gradients.push(if cx.needed[1 + residual] {
            Some(super::cast::to_dtype_of(cx.recorder, results[1], w)?)
        } else {
            None
        });
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        (4 + u64::from(self.residual)) * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (mut s, w) = (inputs[0].clone(), inputs.last().expect("a weight"));
        if self.residual {
            s.data.iter_mut().zip(&inputs[1].data).for_each(|(x, r)| *x += r);
        }
        let y = s.map_rows(|row| {
            let scale = inverse_rms(row, self.eps);
            row.iter().zip(&w.data).map(|(x, w)| x * scale * w).collect()
        });
        if self.residual { vec![y, s] } else { vec![y] }
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        if self.residual { vec![(0, 1), (1, 1)] } else { vec![(0, 0)] }
    }
}

fn inverse_rms(row: &[f64], eps: Real) -> f64 {
    1.0 / (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + f64::from(eps.0)).sqrt()
}

impl Operation for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("rms_norm_grad", inputs, 3 + usize::from(self.residual))?;
        expect_shape("rms_norm_grad", "s", &inputs[1], inputs[0].shape.dims())?;
        expect_shape("rms_norm_grad", "the weight", &inputs[2], &[inputs[0].shape.last()])?;
        Ok(vec![inputs[1].clone(), TensorSpec::new(DType::F32, inputs[2].shape.clone())])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        9 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (dy, s, w) = (&inputs[0], &inputs[1], &inputs[2]);
        let n = s.shape.last();
        let mut ds = Reference::zeros(s.shape.clone());
        let mut dw = Reference::zeros([n]);
        for row in 0..s.shape.rows() {
            let values = &s.data[row * n..][..n];
            let scale = inverse_rms(values, self.eps);
            let g = |i: usize| dy.at(row, i) * w.data[i];
            let mean = (0..n).map(|i| g(i) * values[i]).sum::<f64>() / n as f64;
            for i in 0..n {
                let upstream = if self.residual { inputs[3].at(row, i) } else { 0.0 };
                ds.data[row * n + i] = scale * (g(i) - values[i] * scale * scale * mean) + upstream;
                dw.data[i] += dy.at(row, i) * values[i] * scale;
            }
        }
        vec![ds, dw]
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        if self.residual { vec![(3, 0), (0, 0)] } else { vec![(0, 0)] }
    }
}
