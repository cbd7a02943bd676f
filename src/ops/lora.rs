//! A frozen linear layer with low-rank adapters on parts of its output.

use super::reference::Reference;
use super::{Backward, Operation, Real, Value, expect_float, expect_shape};
use crate::tensor::{DType, Layout, TensorSpec};
use crate::{Error, Result};

/// One adapter: it adds to the columns `start..start + len` of the output.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoraSlot {
    /// First output column.
    pub start: usize,
    /// Number of output columns.
    pub len: usize,
    /// Rank r.
    pub rank: usize,
    /// Factor of the low-rank product: alpha / r, or alpha / √r (rsLoRA).
    pub scale: Real,
}

/// `y = x·Wᵀ`, and for each slot `y[:, slot] += scale · (x′·Aᵀ)·Bᵀ` (Hu et al., 2021, arXiv:2106.09685).
///
/// Inputs: x `[m, k]`; x′ `[m, k]` if `separate` (x after dropout; otherwise x′ is x); W `[n, k]`; then for
/// each slot A `[r, k]` and B `[len, r]`. Outputs: y `[m, n]` in x's dtype, and h `[m, Σr]` = x′·Aᵀ in f32,
/// which the backward needs. The gradient goes to x, x′, every A and every B, never to W.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lora {
    /// The adapters, by ascending start, without overlap.
    pub slots: Vec<LoraSlot>,
    /// The adapters have an input of their own.
    pub separate: bool,
}

/// The gradient of [`Lora`].
///
/// With t = scale · dy\[:, slot\]·B: dA = tᵀ·x′, dB = scale · dy\[:, slot\]ᵀ·h, dx = dy·W, dx′ = Σ t·A.
/// Inputs: dy `[m, n]`, x′ `[m, k]`, h `[m, Σr]`, W `[n, k]`, then each A and B. Outputs: dx `[m, k]` (which
/// includes dx′ unless `separate`), dx′ if `separate`, then dA and dB of each slot in f32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoraGrad {
    /// The adapters.
    pub slots: Vec<LoraSlot>,
    /// The adapters have an input of their own.
    pub separate: bool,
}

impl Lora {
    /// Where the first A stands among the inputs.
    pub(crate) fn first_slot_input(&self) -> usize {
        2 + usize::from(self.separate)
    }
}

/// Sum of the ranks.
pub(crate) fn total_rank(slots: &[LoraSlot]) -> usize {
    slots.iter().map(|slot| slot.rank).sum()
}

fn check_slots(
    op: &'static str,
    slots: &[LoraSlot],
    weight: &TensorSpec,
    pairs: &[TensorSpec],
) -> Result<()> {
    let (n, k) = (weight.shape[0], weight.shape[1]);
    let mut end = 0;
    for (slot, pair) in slots.iter().zip(pairs.chunks(2)) {
        if slot.rank == 0 {
            return Err(Error::invalid(op, "the rank is 0; use 1 or more"));
        }
        if slot.start < end || slot.start + slot.len > n {
            return Err(Error::shape(op, format!("slot {slot:?} does not fit"), &[&weight.shape]));
        }
        end = slot.start + slot.len;
        expect_shape(op, "A", &pair[0], &[slot.rank, k])?;
        expect_shape(op, "B", &pair[1], &[slot.len, slot.rank])?;
    }
    Ok(())
}

impl Operation for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let first = self.first_slot_input();
        super::expect_inputs("lora", inputs, first + 2 * self.slots.len())?;
        expect_float("lora", &inputs.iter().collect::<Vec<_>>())?;
        let (x, w) = (&inputs[0], &inputs[first - 1]);
        if x.shape.rank() != 2 || w.shape.rank() != 2 || x.shape[1] != w.shape[1] {
            return Err(Error::shape("lora", "x must be [m, k] and W [n, k]", &[&x.shape, &w.shape]));
        }
        if self.separate {
            super::expect_spec("lora", "the adapters' input", &inputs[1], x)?;
        }
        check_slots("lora", &self.slots, w, &inputs[first..])?;
        let m = x.shape[0];
        Ok(vec![TensorSpec::new(x.dtype, [m, w.shape[0]]), TensorSpec::f32([m, total_rank(&self.slots)])])
    }

    fn differentiable(&self, input: usize) -> bool {
        input != self.first_slot_input() - 1
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        if cx.upstream[1].is_some() {
            return Err(Error::invalid(
                "lora",
                "the h is for the backward pass and has no gradient of its own",
            ));
        }
        let mut gradients = vec![None; cx.inputs.len()];
        let Some(dy) = cx.upstream[0] else { return Ok(gradients) };
        let first = self.first_slot_input();
        let mut inputs = vec![dy, cx.inputs[first - 2], cx.outputs[1]];
        inputs.extend_from_slice(&cx.inputs[first - 1..]);
        let op = LoraGrad { slots: self.slots.clone(), separate: self.separate };
        let results = cx.recorder.record(op.into(), &inputs)?;
        let wanted = (0..first - 1).chain(first..cx.inputs.len());
        for (input, value) in wanted.zip(results) {
            if cx.needed[input] {
                gradients[input] = Some(super::cast::to_dtype_of(cx.recorder, value, cx.inputs[input])?);
            }
        }
        Ok(gradients)
    }

    fn flops(&self, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> u64 {
        let (m, k, n) = (inputs[0].shape[0], inputs[0].shape[1], outputs[0].shape[1]);
        let adapters: usize = self.slots.iter().map(|slot| m * slot.rank * (k + slot.len)).sum();
        2 * (m * n * k + adapters) as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let first = self.first_slot_input();
        let (x, adapter_x, w) = (&inputs[0], &inputs[first - 2], &inputs[first - 1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let mut y = Reference::zeros([m, n]);
        let mut h = Reference::zeros([m, total_rank(&self.slots)]);
        for row in 0..m {
            for column in 0..n {
                y.data[row * n + column] = (0..k).map(|i| x.at(row, i) * w.at(column, i)).sum();
            }
            let mut rank_start = 0;
            for (slot, pair) in self.slots.iter().zip(inputs[first..].chunks(2)) {
                for r in 0..slot.rank {
                    let sum = (0..k).map(|i| adapter_x.at(row, i) * pair[0].at(r, i)).sum();
                    h.data[row * total_rank(&self.slots) + rank_start + r] = sum;
                    for column in 0..slot.len {
                        y.data[row * n + slot.start + column] +=
                            f64::from(slot.scale.0) * sum * pair[1].at(column, r);
                    }
                }
                rank_start += slot.rank;
            }
        }
        vec![y, h]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input < self.first_slot_input() && layout.row_stride().is_some() || layout.is_contiguous()
    }
}

impl Operation for LoraGrad {
    fn name(&self) -> &'static str {
        "lora_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        super::expect_inputs("lora_grad", inputs, 4 + 2 * self.slots.len())?;
        let (dy, x, h, w) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        expect_shape("lora_grad", "dy", dy, &[x.shape[0], w.shape[0]])?;
        super::expect_spec("lora_grad", "h", h, &TensorSpec::f32([x.shape[0], total_rank(&self.slots)]))?;
        check_slots("lora_grad", &self.slots, w, &inputs[4..])?;
        let dx = TensorSpec::new(dy.dtype, x.shape.clone());
        let mut outputs = vec![dx; 1 + usize::from(self.separate)];
        outputs.extend(inputs[4..].iter().map(|spec| TensorSpec::new(DType::F32, spec.shape.clone())));
        Ok(outputs)
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        let (m, n, k) = (inputs[0].shape[0], inputs[0].shape[1], inputs[1].shape[1]);
        let adapters: usize = self.slots.iter().map(|slot| 2 * m * slot.rank * (k + slot.len)).sum();
        2 * (m * n * k + adapters) as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (dy, x, h, w) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        let (m, n, k) = (dy.shape[0], dy.shape[1], x.shape[1]);
        let mut dx = Reference::zeros([m, k]);
        for row in 0..m {
            for i in 0..k {
                dx.data[row * k + i] = (0..n).map(|column| dy.at(row, column) * w.at(column, i)).sum();
            }
        }
        let mut adapter_dx = Reference::zeros([m, k]);
        let mut pairs = Vec::new();
        let mut rank_start = 0;
        for (slot, pair) in self.slots.iter().zip(inputs[4..].chunks(2)) {
            let (mut da, mut db) =
                (Reference::zeros([slot.rank, k]), Reference::zeros([slot.len, slot.rank]));
            let scale = f64::from(slot.scale.0);
            for row in 0..m {
                for r in 0..slot.rank {
                    let upstream = |column: usize| scale * dy.at(row, slot.start + column);
                    let t: f64 = (0..slot.len).map(|column| upstream(column) * pair[1].at(column, r)).sum();
                    for i in 0..k {
                        da.data[r * k + i] += t * x.at(row, i);
                        adapter_dx.data[row * k + i] += t * pair[0].at(r, i);
                    }
                    for column in 0..slot.len {
                        db.data[column * slot.rank + r] += upstream(column) * h.at(row, rank_start + r);
                    }
                }
            }
            rank_start += slot.rank;
            pairs.extend([da, db]);
        }
        let mut outputs = vec![dx];
        if self.separate {
            outputs.push(adapter_dx);
        } else {
            outputs[0].data.iter_mut().zip(&adapter_dx.data).for_each(|(x, y)| *x += y);
        }
        outputs.extend(pairs);
        outputs
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input < 4 && layout.row_stride().is_some() || layout.is_contiguous()
    }
}
