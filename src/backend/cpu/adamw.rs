//! The optimizer's update. See [`crate::ops::AdamW`].

use std::ops::Range;

use super::kernel::{In, Kernel, Out, chunks, run};
use super::op::{Call, OpContext, Run, Tensor};
use super::vector::{Isa, V};
use crate::Result;
use crate::ops::AdamW;

/// Elements of an item.
const BLOCK: usize = 1024;

/// One tensor's p, g, m and v.
struct Group {
    tensors: [Tensor; 4],
    elements: usize,
}

/// The factors of one step, in f32.
#[derive(Clone, Copy)]
struct Factors {
    gradient: f32,
    beta1: f32,
    beta2: f32,
    decay: f32,
    /// lr / (1 − β₁ᵗ)
    rate: f32,
    /// 1 / √(1 − β₂ᵗ)
    correction: f32,
    eps: f32,
}

struct Updated {
    p: Out<f32>,
    g: In<f32>,
    m: Out<f32>,
    v: Out<f32>,
    factors: Factors,
    elements: usize,
}

impl Kernel for Updated {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let (start, end) = (range.start * BLOCK, self.elements.min(range.end * BLOCK));
        let f = self.factors;
        // SAFETY: the elements are the kernel's.
        unsafe {
            let (p, g, m, v) = (self.p.at(start), self.g.at(start), self.m.at(start), self.v.at(start));
            chunks!(end - start, |i, len| {
                let gradient = V::<I>::load(g.add(i), len, 0.0) * f.gradient;
                let mean = V::load(m.add(i), len, 0.0).fma(V::splat(f.beta1), gradient * (1.0 - f.beta1));
                let square = gradient * gradient * (1.0 - f.beta2);
                let square = V::load(v.add(i), len, 0.0).fma(V::splat(f.beta2), square);
                let root = square.sqrt().fma(V::splat(f.correction), V::splat(f.eps));
                let value = V::load(p.add(i), len, 0.0) * f.decay - mean / root * f.rate;
                mean.store(m.add(i), len);
                square.store(v.add(i), len);
                value.store(p.add(i), len);
            });
        }
    }
}

/// The step's factors, or none if the gradients are broken.
fn factors(op: &AdamW, hyper: [f32; 3], norm: f32) -> Option<Factors> {
    let [lr, step, factor] = hyper.map(f64::from);
    let norm = factor * f64::from(norm);
    let factor = factor * (f64::from(op.max_norm.0) / (norm + 1e-6)).min(1.0);
    if !(norm.is_finite() && factor.is_finite()) {
        return None;
    }
    let (beta1, beta2) = (f64::from(op.beta1.0), f64::from(op.beta2.0));
    Some(Factors {
        gradient: factor as f32,
        beta1: op.beta1.0,
        beta2: op.beta2.0,
        decay: (1.0 - lr * f64::from(op.weight_decay.0)) as f32,
        rate: (lr / (1.0 - beta1.powf(step))) as f32,
        correction: (1.0 / (1.0 - beta2.powf(step)).sqrt()) as f32,
        eps: op.eps.0,
    })
}

impl Group {
    /// # Safety
    /// The tensors belong to the plan that runs.
    unsafe fn update(&self, cx: &Run<'_>, factors: Factors) {
        let [p, g, m, v] = &self.tensors;
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let kernel = Updated {
                p: Out(p.at(cx)),
                g: In(g.at(cx)),
                m: Out(m.at(cx)),
                v: Out(v.at(cx)),
                factors,
                elements: self.elements,
            };
            run(cx.pool, self.elements.div_ceil(BLOCK), 4 * self.elements, &kernel);
        }
    }
}

pub(super) fn compile(op: &AdamW, context: &OpContext<'_>) -> Result<Call> {
    let tensors = op.tensors(context.inputs.len());
    let groups: Vec<Group> = context.inputs[..4 * tensors]
        .chunks(4)
        .map(|group| Group {
            elements: group[0].elements(),
            tensors: std::array::from_fn(|i| group[i].clone()),
        })
        .collect();
    let (hyper, norm) = (context.inputs[4 * tensors].clone(), context.inputs[4 * tensors + 1].clone());
    let op = op.clone();
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let Some(factors) = factors(&op, hyper.at::<[f32; 3]>(cx).read(), norm.at::<f32>(cx).read())
            else {
                return Ok(());
            };
            for group in &groups {
                group.update(cx, factors);
            }
        }
        Ok(())
    }))
}
