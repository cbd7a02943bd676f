//! Rotary position embedding.

use super::reference::Reference;
use super::{Backward, Operation, Value, expect_float, expect_inputs, expect_shape};
use crate::tensor::{DType, Layout, TensorSpec};
use crate::{Error, Result};

/// Rotates each pair `(x[i], x[i + d/2])` of a head by the angle of its position (Su et al., 2021,
/// arXiv:2104.09864, in the half-split form of Llama's Hugging Face weights):
/// `y[i] = x[i]·cos − x[i+d/2]·sin`, `y[i+d/2] = x[i+d/2]·cos + x[i]·sin`.
///
/// Inputs: x `[tokens, heads, d]`, cos and sin `[positions, d/2]` in f32, position of each token u32
/// `[tokens]`. The inverse rotation is the gradient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rope {
    /// Rotate backwards.
    pub inverse: bool,
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("rope", inputs, 4)?;
        let (x, cos, sin, positions) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        expect_float("rope", &[x])?;
        if x.shape.rank() != 3 || x.shape[2] % 2 != 0 {
            return Err(Error::shape("rope", "x must be [tokens, heads, d] with even d", &[&x.shape]));
        }
        if cos.dtype != DType::F32 || sin != cos || positions.dtype != DType::U32 {
            let dtypes = [cos.dtype, sin.dtype, positions.dtype];
            return Err(Error::dtype("rope", "cos and sin must be equal f32 tables, positions u32", &dtypes));
        }
        expect_shape("rope", "positions", positions, &[x.shape[0]])?;
        if cos.shape.rank() != 2 || cos.shape[1] != x.shape[2] / 2 {
            return Err(Error::shape("rope", "the tables must be [positions, d/2]", &[&cos.shape, &x.shape]));
        }
        Ok(vec![x.clone()])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; 4];
        if let Some(dy) = cx.upstream[0] {
            let inputs = [dy, cx.inputs[1], cx.inputs[2], cx.inputs[3]];
            gradients[0] = Some(cx.one(Self { inverse: !self.inverse }, &inputs)?);
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        3 * inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (x, cos, sin, positions) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        let (heads, half) = (x.shape[1], x.shape[2] / 2);
        let mut y = x.clone();
        for row in 0..x.shape.rows() {
            let position = positions.data[row / heads] as usize;
            for i in 0..half {
                let (c, s) =
                    (cos.at(position, i), sin.at(position, i) * if self.inverse { -1.0 } else { 1.0 });
                let (a, b) = (x.at(row, i), x.at(row, i + half));
                y.data[row * 2 * half + i] = a * c - b * s;
                y.data[row * 2 * half + half + i] = b * c + a * s;
            }
        }
        vec![y]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        if input == 0 { layout.is_row_contiguous() } else { layout.is_contiguous() }
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}
