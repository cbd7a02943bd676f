//! The gate of a Llama feed-forward block.

use super::reference::Reference;
use super::{Backward, Operation, Value, expect_float, expect_inputs, expect_spec};
use crate::Result;
use crate::tensor::{Layout, TensorSpec};

/// `y = gate / (1 + exp(−gate)) · up` (SwiGLU without its products; Shazeer, 2020, arXiv:2002.05202).
/// Inputs: gate and up of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SiluMul;

/// The gradient of [`SiluMul`]. With σ the logistic function: `dgate = dy·up·σ(g)·(1 + g·(1 − σ(g)))`,
/// `dup = dy·g·σ(g)`. Inputs: dy, gate, up. Outputs: dgate, dup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SiluMulGrad;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Operation for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("silu_mul", inputs, 2)?;
        expect_float("silu_mul", &[&inputs[0]])?;
        expect_spec("silu_mul", "up", &inputs[1], &inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        let results = cx.recorder.record(SiluMulGrad.into(), &[dy, cx.inputs[0], cx.inputs[1]])?;
        Ok(results.into_iter().map(Some).collect())
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        5 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let mut y = inputs[0].map(|g| g * sigmoid(g));
        y.data.iter_mut().zip(&inputs[1].data).for_each(|(y, up)| *y *= up);
        vec![y]
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (1, 0)]
    }
}

impl Operation for SiluMulGrad {
    fn name(&self) -> &'static str {
        "silu_mul_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("silu_mul_grad", inputs, 3)?;
        expect_spec("silu_mul_grad", "gate", &inputs[1], &inputs[0])?;
        expect_spec("silu_mul_grad", "up", &inputs[2], &inputs[0])?;
        Ok(vec![inputs[0].clone(); 2])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        10 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (mut gate, mut up) = (inputs[1].clone(), inputs[2].clone());
        for (i, dy) in inputs[0].data.iter().enumerate() {
            let (g, u) = (inputs[1].data[i], inputs[2].data[i]);
            let s = sigmoid(g);
            gate.data[i] = dy * u * s * (1.0 + g * (1.0 - s));
            up.data[i] = dy * g * s;
        }
        vec![gate, up]
    }

    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.row_stride().is_some()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}
