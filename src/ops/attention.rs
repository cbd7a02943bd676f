//! Scaled dot-product attention with grouped heads, and its gradient.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_inputs, expect_shape, expect_spec};
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// `out = softmax(scale · q·kᵀ + mask) · v`, one head at a time, without ever holding the whole score matrix
/// (Dao et al., 2022, arXiv:2205.14135). Query head h uses key head `h / (q_heads / kv_heads)`.
///
/// Inputs: q `[batch, t, q_heads, d]`, k and v `[batch, s, kv_heads, d]`, then pos u32 `[1]` if `cached`, then
/// starts u32 `[batch, t]` if `segmented`. Outputs: out like q, and the natural log-sum-exp of the scaled
/// scores, f32 `[batch, q_heads, t]`.
/// Query t stands at position t + pos (pos = 0 if not `cached`). It sees keys `j ≤ t + pos` if `causal`, of
/// these only `j > t + pos − window` with a window, and only `j ≥ starts[t]` if `segmented` (packed sequences).
/// A query that sees no key gives zeros and −∞.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Factor of the scores, usually 1/√d.
    pub scale: Real,
    /// Keys after the query are hidden.
    pub causal: bool,
    /// How many keys back a query sees, itself included.
    pub window: Option<usize>,
    /// k and v are a cache of capacity s, and the first query's position is read when the plan runs.
    pub cached: bool,
    /// Each query has a first key that it may see.
    pub segmented: bool,
}

/// The gradient of [`Attention`], by tiles from the log-sum-exp.
///
/// With P the attention weights and δ = Σ dout·out: `dv = Pᵀ·dout`, `dS = P·(dout·vᵀ − δ)`, `dq = scale·dS·k`,
/// `dk = scale·dSᵀ·q`. Inputs: q, k, v, out, lse, dout, then starts if `segmented`. Outputs: dq, dk, dv.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AttentionGrad {
    /// Factor of the scores.
    pub scale: Real,
    /// Keys after the query are hidden.
    pub causal: bool,
    /// How many keys back a query sees, itself included.
    pub window: Option<usize>,
    /// Each query has a first key that it may see.
    pub segmented: bool,
}

fn check(op: &'static str, q: &TensorSpec, k: &TensorSpec, v: &TensorSpec) -> Result<()> {
    expect_float(op, &[q, k, v])?;
    let wrong = |message: &str| Err(Error::shape(op, message, &[&q.shape, &k.shape, &v.shape]));
    if q.shape.rank() != 4 || k.shape.rank() != 4 {
        return wrong("q must be [batch, t, heads, d], k and v [batch, s, kv_heads, d]");
    }
    expect_spec(op, "v", v, k)?;
    if q.shape[0] != k.shape[0] || q.shape[3] != k.shape[3] {
        return wrong("batch or head size differ");
    }
    if k.shape[2] == 0 || !q.shape[2].is_multiple_of(k.shape[2]) {
        return wrong("the number of query heads must be a multiple of the number of key heads");
    }
    Ok(())
}

/// Number of visible (query, key) pairs of one head, for the cost.
fn visible(q: &TensorSpec, k: &TensorSpec, causal: bool, cached: bool) -> u64 {
    let (t, s) = (q.shape[1] as u64, k.shape[1] as u64);
    if causal && !cached { t * (t + 1) / 2 } else { t * s }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("attention", inputs, 3 + usize::from(self.cached) + usize::from(self.segmented))?;
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        check("attention", q, k, v)?;
        if self.cached {
            expect_spec("attention", "pos", &inputs[3], &TensorSpec::u32([1]))?;
        }
        if self.segmented {
            let starts = TensorSpec::u32([q.shape[0], q.shape[1]]);
            expect_spec("attention", "starts", &inputs[inputs.len() - 1], &starts)?;
        }
        if self.window == Some(0) {
            return Err(Error::invalid("attention", "a window of 0 sees nothing; use 1 or more, or none"));
        }
        Ok(vec![q.clone(), TensorSpec::f32([q.shape[0], q.shape[2], q.shape[1]])])
    }

    fn differentiable(&self, input: usize) -> bool {
        input < 3 && !self.cached
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        if cx.upstream[1].is_some() {
            return Err(Error::invalid(
                "attention",
                "the log-sum-exp is for the backward pass and has no gradient of its own",
            ));
        }
        let mut gradients = vec![None; cx.inputs.len()];
        let Some(dout) = cx.upstream[0] else { return Ok(gradients) };
        let op = AttentionGrad {
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            segmented: self.segmented,
        };
        let mut inputs = cx.inputs[..3].to_vec();
        inputs.extend([cx.outputs[0], cx.outputs[1], dout]);
        inputs.extend_from_slice(&cx.inputs[3..]);
        let results = cx.recorder.record(op.into(), &inputs)?;
        for (gradient, result) in gradients.iter_mut().zip(results) {
            *gradient = Some(result);
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        let (q, k) = (&inputs[0], &inputs[1]);
        4 * (q.shape[0] * q.shape[2] * q.shape[3]) as u64 * visible(q, k, self.causal, self.cached)
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let pos = if self.cached { inputs[3].data[0] as usize } else { 0 };
        let starts = self.segmented.then(|| &inputs[inputs.len() - 1]);
        let mask = Mask { causal: self.causal, window: self.window, pos, starts };
        let (batch, t, heads, d) = (q.shape[0], q.shape[1], q.shape[2], q.shape[3]);
        let mut out = Reference::zeros(q.shape.clone());
        let mut lse = Reference::zeros([batch, heads, t]);
        for (b, h, i) in indices(batch, heads, t) {
            let row = probabilities(q, k, self.scale, &mask, b, h, i);
            lse.data[(b * heads + h) * t + i] = row.log_sum_exp;
            for (j, p) in row.weights {
                for c in 0..d {
                    out.data[((b * t + i) * heads + h) * d + c] += p * element(v, b, j, kv_head(q, k, h), c);
                }
            }
        }
        vec![out, lse]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        if input < 3 { layout.is_row_contiguous() } else { layout.is_contiguous() }
    }
}

impl Operation for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("attention_grad", inputs, 6 + usize::from(self.segmented))?;
        let (q, k, v, out, lse, dout) =
            (&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[4], &inputs[5]);
        check("attention_grad", q, k, v)?;
        expect_spec("attention_grad", "out", out, q)?;
        expect_shape("attention_grad", "dout", dout, q.shape.dims())?;
        expect_spec("attention_grad", "lse", lse, &TensorSpec::f32([q.shape[0], q.shape[2], q.shape[1]]))?;
        Ok(vec![q.clone(), k.clone(), v.clone()])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        let (q, k) = (&inputs[0], &inputs[1]);
        10 * (q.shape[0] * q.shape[2] * q.shape[3]) as u64 * visible(q, k, self.causal, false)
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (q, k, v, out, dout) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[5]);
        let starts = self.segmented.then(|| &inputs[6]);
        let mask = Mask { causal: self.causal, window: self.window, pos: 0, starts };
        let (batch, t, heads, d) = (q.shape[0], q.shape[1], q.shape[2], q.shape[3]);
        let mut dq = Reference::zeros(q.shape.clone());
        let (mut dk, mut dv) = (Reference::zeros(k.shape.clone()), Reference::zeros(v.shape.clone()));
        let scale = f64::from(self.scale.0);
        for (b, h, i) in indices(batch, heads, t) {
            let kv = kv_head(q, k, h);
            let delta: f64 = (0..d).map(|c| element(dout, b, i, h, c) * element(out, b, i, h, c)).sum();
            for (j, p) in probabilities(q, k, self.scale, &mask, b, h, i).weights {
                let dp: f64 = (0..d).map(|c| element(dout, b, i, h, c) * element(v, b, j, kv, c)).sum();
                let ds = scale * p * (dp - delta);
                for c in 0..d {
                    let q_index = ((b * t + i) * heads + h) * d + c;
                    let k_index = ((b * k.shape[1] + j) * k.shape[2] + kv) * d + c;
                    dq.data[q_index] += ds * k.data[k_index];
                    dk.data[k_index] += ds * q.data[q_index];
                    dv.data[k_index] += p * dout.data[q_index];
                }
            }
        }
        vec![dq, dk, dv]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        if matches!(input, 4 | 6) { layout.is_contiguous() } else { layout.is_row_contiguous() }
    }
}

struct Mask<'a> {
    causal: bool,
    window: Option<usize>,
    pos: usize,
    starts: Option<&'a Reference>,
}

impl Mask<'_> {
    fn visible(&self, batch: usize, query: usize, key: usize) -> bool {
        let position = query + self.pos;
        (!self.causal || key <= position)
            && self.window.is_none_or(|window| key + window > position)
            && self.starts.is_none_or(|starts| key >= starts.at(batch, query) as usize)
    }
}

struct Row {
    log_sum_exp: f64,
    weights: Vec<(usize, f64)>,
}

fn probabilities(
    q: &Reference,
    k: &Reference,
    scale: Real,
    mask: &Mask<'_>,
    b: usize,
    h: usize,
    i: usize,
) -> Row {
    let (d, kv) = (q.shape[3], kv_head(q, k, h));
    let scores: Vec<(usize, f64)> = (0..k.shape[1])
        .filter(|&j| mask.visible(b, i, j))
        .map(|j| (j, (0..d).map(|c| element(q, b, i, h, c) * element(k, b, j, kv, c)).sum::<f64>()))
        .map(|(j, dot)| (j, dot * f64::from(scale.0)))
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, &(_, s)| if s.is_nan() { s } else { m.max(s) });
    let sum: f64 = scores.iter().map(|&(_, s)| (s - max).exp()).sum();
    let log_sum_exp = if scores.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
    // Not exp(s − log_sum_exp): beside scores of 1e20 the logarithm of the sum is lost.
    Row { log_sum_exp, weights: scores.into_iter().map(|(j, s)| (j, (s - max).exp() / sum)).collect() }
}

fn indices(batch: usize, heads: usize, t: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..t).map(move |i| (b, h, i))))
}

fn kv_head(q: &Reference, k: &Reference, head: usize) -> usize {
    head / (q.shape[2] / k.shape[2])
}

fn element(x: &Reference, b: usize, token: usize, head: usize, c: usize) -> f64 {
    x.data[((b * x.shape[1] + token) * x.shape[2] + head) * x.shape[3] + c]
}
