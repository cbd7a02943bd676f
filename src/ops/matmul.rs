//! Matrix product.

use super::reference::Reference;
use super::{Backward, Operation, Real, Reshape, Value, expect_float};
use crate::tensor::layout::collapse;
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// `C = alpha · op(A) · op(B) + beta · C₀`, where op transposes the last two axes if asked to.
///
/// Inputs: A `[…, m, k]`, B `[k, n]` shared by the batch or `[…, k, n]` with the same leading axes, and C₀
/// `[…, m, n]` if beta is not 0. Output `[…, m, n]` in A's dtype. Sums in f32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MatMul {
    /// A is stored `[…, k, m]`.
    pub transpose_a: bool,
    /// B is stored `[…, n, k]`.
    pub transpose_b: bool,
    /// Factor of the product.
    pub alpha: Real,
    /// Factor of C₀; with 0 there is no third input.
    pub beta: Real,
}

impl MatMul {
    /// The plain product of stored or transposed matrices.
    pub fn new(transpose_a: bool, transpose_b: bool) -> Self {
        Self { transpose_a, transpose_b, alpha: Real(1.0), beta: Real(0.0) }
    }

    /// (batch, m, n, k) for inputs that fit.
    pub(crate) fn sizes(&self, inputs: &[TensorSpec]) -> Result<(usize, usize, usize, usize)> {
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        let wrong = |message: &str| Err(Error::shape("matmul", message, &[a, b]));
        if a.rank() < 2 || b.rank() < 2 {
            return wrong("both sides need two axes or more");
        }
        let (leading_a, last_a) = a.dims().split_at(a.rank() - 2);
        let (leading_b, last_b) = b.dims().split_at(b.rank() - 2);
        let (m, k) = if self.transpose_a { (last_a[1], last_a[0]) } else { (last_a[0], last_a[1]) };
        let (k_b, n) = if self.transpose_b { (last_b[1], last_b[0]) } else { (last_b[0], last_b[1]) };
        if k != k_b {
            return wrong("the inner lengths differ");
        }
        if leading_b.is_empty() && !leading_a.is_empty() && self.transpose_a {
            return wrong("a batch of transposed left matrices needs a batch on the right");
        }
        if !leading_b.is_empty() && leading_a != leading_b {
            return wrong("the leading axes differ");
        }
        Ok((leading_a.iter().product(), m, n, k))
    }
}

impl Operation for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let has_c = self.beta.0 != 0.0;
        super::expect_inputs("matmul", inputs, 2 + usize::from(has_c))?;
        expect_float("matmul", &inputs.iter().collect::<Vec<_>>())?;
        let (_, m, n, _) = self.sizes(inputs)?;
        let a = &inputs[0];
        let mut dims = a.shape.dims()[..a.shape.rank() - 2].to_vec();
        dims.extend([m, n]);
        let output = TensorSpec::new(a.dtype, dims);
        if has_c {
            super::expect_spec("matmul", "the addend", &inputs[2], &output)?;
        }
        Ok(vec![output])
    }

    fn differentiable(&self, _input: usize) -> bool {
        true
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; cx.inputs.len()]) };
        let (a, b) = (cx.inputs[0], cx.inputs[1]);
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        let product = |ta, tb| Self { transpose_a: ta, transpose_b: tb, alpha: self.alpha, beta: Real(0.0) };
        let mut gradients = vec![None; cx.inputs.len()];
        if cx.needed[0] {
            let da = if ta {
                cx.one(product(tb, true), &[b, dy])?
            } else {
                cx.one(product(false, !tb), &[dy, b])?
            };
            gradients[0] = Some(super::cast::to_dtype_of(cx.recorder, da, a)?);
        }
        if cx.needed[1] {
            // A matrix shared by the batch collects from all of it: fold the batch into the rows.
            let (a_spec, b_rank) = (cx.input_spec(0), cx.input_spec(1).shape.rank());
            let (mut a, mut dy) = (a, dy);
            if a_spec.shape.rank() > b_rank {
                let dy_spec = cx.recorder.spec(dy);
                a = cx.one(Reshape::new([a_spec.shape.rows(), a_spec.shape.last()]), &[a])?;
                dy = cx.one(Reshape::new([dy_spec.shape.rows(), dy_spec.shape.last()]), &[dy])?;
            }
            let db = if tb {
                cx.one(product(true, ta), &[dy, a])?
            } else {
                cx.one(product(!ta, false), &[a, dy])?
            };
            gradients[1] = Some(super::cast::to_dtype_of(cx.recorder, db, b)?);
        }
        if cx.needed.get(2) == Some(&true) {
            gradients[2] = Some(cx.one(super::Affine { mul: self.beta, add: Real(0.0) }, &[dy])?);
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        self.sizes(inputs).map_or(0, |(batch, m, n, k)| 2 * (batch * m * n * k) as u64)
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let specs: Vec<_> = inputs.iter().map(|x| TensorSpec::f32(x.shape.clone())).collect();
        let (batch, m, n, k) = self.sizes(&specs).expect("shapes fit");
        let shape = self.infer(&specs).expect("shapes fit").remove(0).shape;
        let (a, b) = (&inputs[0].data, &inputs[1].data);
        let shared = inputs[1].shape.rank() == 2;
        let mut data = Vec::with_capacity(batch * m * n);
        for index in 0..batch.max(1) * m * n {
            let (item, row, column) = (index / (m * n), index / n % m, index % n);
            let b_item = if shared { 0 } else { item };
            let sum: f64 = (0..k)
                .map(|inner| {
                    let x = if self.transpose_a { inner * m + row } else { row * k + inner };
                    let y = if self.transpose_b { column * k + inner } else { inner * n + column };
                    a[item * m * k + x] * b[b_item * k * n + y]
                })
                .sum();
            let addend = inputs.get(2).map_or(0.0, |c| f64::from(self.beta.0) * c.data[index]);
            data.push(f64::from(self.alpha.0) * sum + addend);
        }
        vec![Reference::new(shape, data)]
    }

    /// Any strides within a matrix; the batch must be one run of equal steps.
    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        let rank = layout.shape.rank();
        input < 2 && collapse(&layout.shape.dims()[..rank - 2], &layout.strides[..rank - 2]).is_some()
            || layout.is_contiguous()
    }

    fn donations(&self) -> Vec<(usize, usize)> {
        if self.beta.0 == 0.0 { Vec::new() } else { vec![(2, 0)] }
    }
}
