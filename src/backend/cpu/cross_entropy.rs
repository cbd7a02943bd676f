//! Cross-entropy, fused with the output head's product. See [`crate::ops::CrossEntropy`].
//!
//! Logits exist for a few rows at a time: product, softmax and its gradient in place, product back.

use std::ops::Range;

use super::element::FloatElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::math::{exp, exp_nonpositive, log};
use super::matmul::{Product, Side};
use super::op::{Call, OpContext, Run, Tensor, real};
use super::vector::{Isa, V};
use crate::Result;
use crate::backend::reference::index_error;
use crate::graph::Operand;
use crate::ops::CrossEntropy;
use crate::tensor::{DType, Layout};

/// The most bytes of logits at a time, if that is more than [`LEAST_ROWS`].
const LOGITS: usize = 24 << 20;
const LEAST_ROWS: usize = 24;

/// Loss of each row, and the gradient with respect to its logits.
struct Rows<T> {
    logits: In<T>,
    stride: usize,
    dx: Option<Out<T>>,
    targets: In<u32>,
    weights: In<f32>,
    losses: Out<f32>,
    n: usize,
}

impl<T: FloatElement> Kernel for Rows<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let n = self.n;
        for row in range {
            // SAFETY: the row is one of the kernel's, its target was checked; a group of lanes is read before it
            // is written.
            unsafe {
                let weight = self.weights.at(row).read();
                if weight == 0.0 {
                    self.losses.at(row).write(0.0);
                    if let Some(dx) = self.dx {
                        chunks!(n, |i, len| {
                            V::<I>::splat(0.0).store(dx.at(row * n + i), len);
                        });
                    }
                    continue;
                }
                let x = self.logits.at(row * self.stride);
                let target = self.targets.at(row).read() as usize;
                let at_target = x.add(target).read().get();
                let mut max = V::<I>::splat(f32::NEG_INFINITY);
                chunks!(n, |i, len| {
                    // A NaN is passed over here and comes back through the sum.
                    max = V::load(x.add(i), len, f32::NEG_INFINITY).max(max);
                });
                let max = max.greatest();
                let mut total = V::<I>::splat(0.0);
                chunks!(n, |i, len| {
                    total = total + exp_nonpositive(V::load(x.add(i), len, f32::NEG_INFINITY) - max);
                });
                let log_sum = log(V::<I>::splat(total.sum())).to_array()[0];
                // The difference first: max can be much larger than the loss.
                self.losses.at(row).write((max - at_target) + log_sum);
                let Some(dx) = self.dx else { continue };
                chunks!(n, |i, len| {
                    let p = exp(V::<I>::load(x.add(i), len, 0.0) - max - log_sum);
                    (p * weight).store(dx.at(row * n + i), len);
                });
                let to = dx.at(row * n + target);
                let p = exp(V::<I>::splat((at_target - max) - log_sum)).to_array()[0];
                to.write(T::of(weight * (p - 1.0)));
            }
        }
    }
}

struct Narrowed<T> {
    from: In<f32>,
    to: Out<T>,
    n: usize,
}

impl<T: FloatElement> Kernel for Narrowed<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for row in range {
            // SAFETY: the row is one of the kernel's.
            unsafe {
                chunks!(self.n, |i, len| {
                    V::<I>::load(self.from.at(row * self.n + i), len, 0.0)
                        .store(self.to.at(row * self.n + i), len);
                });
            }
        }
    }
}

/// How the head's work is cut, for `m` rows.
struct Head {
    rows: usize,
    forward: Product,
    back: Product,
}

impl Head {
    fn new(x: (DType, &Layout), w: (DType, &Layout)) -> Self {
        let (m, h, v) = (x.1.shape[0], x.1.shape[1], w.1.shape[0]);
        let rows = (LOGITS / (4 * v).max(1)).max(LEAST_ROWS).min(m.max(1));
        let x = Side { dtype: x.0, rows: x.1.row_stride().expect("rows lie evenly"), columns: 1, batch: 0 };
        let w = Side { dtype: w.0, rows: h, columns: 1, batch: 0 };
        let logits = Side { dtype: DType::F32, rows: v, columns: 1, batch: 0 };
        let transposed = Side { rows: w.columns, columns: w.rows, ..w };
        Self {
            rows,
            forward: Product::new((rows, v, h), x, transposed),
            back: Product::new((rows, h, v), logits, w),
        }
    }

    /// Bytes of logits, of the gradient before it is rounded, and of the products' working memory.
    fn scratch(&self, threads: usize) -> [usize; 3] {
        let logits = (4 * self.rows * self.forward.n).next_multiple_of(64);
        let gradient = (4 * self.rows * self.forward.k).next_multiple_of(64);
        [logits, gradient, self.forward.scratch(threads).max(self.back.scratch(threads))]
    }
}

fn losses_bytes(m: usize) -> usize {
    (4 * m).next_multiple_of(64)
}

pub(super) fn scratch(op: &CrossEntropy, inputs: &[Operand], threads: usize) -> usize {
    let (x, m) = (&inputs[0], inputs[0].layout.shape[0]);
    let head = if op.head {
        let w = &inputs[1];
        Head::new((x.dtype, &x.layout), (w.dtype, &w.layout)).scratch(threads).iter().sum()
    } else {
        0
    };
    losses_bytes(m) + head
}

/// What every run of a step needs.
struct Step {
    targets: Tensor,
    weights: Tensor,
    loss: Option<Tensor>,
    losses: Option<Tensor>,
    m: usize,
    classes: usize,
}

impl Step {
    /// Checks the targets and finds how many rows there are before the weights that are 0 up to the end.
    ///
    /// # Safety
    /// The tensors belong to the plan that runs.
    unsafe fn active_rows(&self, cx: &Run<'_>) -> Result<usize> {
        // SAFETY: targets and weights are contiguous.
        let (targets, weights) = unsafe {
            let targets = std::slice::from_raw_parts(self.targets.at::<u32>(cx).cast_const(), self.m);
            (targets, std::slice::from_raw_parts(self.weights.at::<f32>(cx).cast_const(), self.m))
        };
        if let Some(&target) = targets.iter().find(|&&target| target as usize >= self.classes) {
            return Err(index_error("cross_entropy", "target", target as usize, self.classes));
        }
        Ok(weights.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1))
    }

    /// Adds up the rows' losses.
    ///
    /// # Safety
    /// As for [`Step::active_rows`]; the losses of all rows are written.
    unsafe fn finish(&self, cx: &Run<'_>, losses: *const f32) {
        let Some(loss) = &self.loss else { return };
        let mut sum = 0.0_f64;
        for row in 0..self.m {
            // SAFETY: as the caller promises.
            unsafe {
                let weight = self.weights.at::<f32>(cx).add(row).read();
                if weight != 0.0 {
                    sum += f64::from(weight) * f64::from(losses.add(row).read());
                }
            }
        }
        // SAFETY: the planner gave the tensor its place.
        unsafe { loss.at::<f32>(cx).write(sum as f32) };
    }
}

pub(super) fn compile(op: &CrossEntropy, context: &OpContext<'_>) -> Result<Call> {
    let head = usize::from(op.head);
    let x = context.inputs[0].clone();
    let m = x.layout.shape[0];
    let step = Step {
        targets: context.inputs[1 + head].clone(),
        weights: context.inputs[2 + head].clone(),
        loss: context.output(0),
        losses: context.output(1),
        m,
        classes: if op.head { context.inputs[1].layout.shape[0] } else { x.last() },
    };
    let (dx, scratch) = (context.output(2), context.scratch);
    if op.head {
        return Ok(with_head(context, step, x, dx));
    }
    let n = x.last();
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size.
        unsafe {
            step.active_rows(cx)?;
            let losses = step.losses.as_ref().map_or_else(|| cx.at(scratch), |losses| losses.at::<f32>(cx));
            real!(x.dtype, |T| {
                let kernel = Rows::<T> {
                    logits: In(x.at(cx)),
                    stride: x.row_stride(),
                    dx: dx.as_ref().map(|dx| Out(dx.at(cx))),
                    targets: In(step.targets.at(cx)),
                    weights: In(step.weights.at(cx)),
                    losses: Out(losses),
                    n,
                };
                run(cx.pool, m, 4 * m * n, &kernel);
            });
            step.finish(cx, losses);
        }
        Ok(())
    }))
}

fn with_head(context: &OpContext<'_>, step: Step, x: Tensor, dx: Option<Tensor>) -> Call {
    let w = context.inputs[1].clone();
    let head = Head::new((x.dtype, &x.layout), (w.dtype, &w.layout));
    let [logits_bytes, gradient_bytes, _] = head.scratch(context.threads);
    let (m, h, v) = (step.m, head.forward.k, head.forward.n);
    let (scratch, x_stride) = (context.scratch, head.forward.a.rows);
    Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places, and the scratch its size; products of fewer rows need
        // no more of it.
        unsafe {
            let active = step.active_rows(cx)?;
            let base = cx.at::<u8>(scratch);
            let losses = step.losses.as_ref().map_or(base.cast(), |losses| losses.at::<f32>(cx));
            let logits = base.add(losses_bytes(m));
            let (gradient, work) = (logits.add(logits_bytes), logits.add(logits_bytes + gradient_bytes));
            for row in (0..active).step_by(head.rows) {
                let rows = head.rows.min(active - row);
                let from = x.at::<u8>(cx).add(row * x_stride * x.dtype.size());
                let forward = Product { m: rows, ..head.forward };
                forward.run(cx.pool, from, w.at(cx), logits, work);
                let kernel = Rows::<f32> {
                    logits: In(logits.cast()),
                    stride: v,
                    dx: dx.as_ref().map(|_| Out(logits.cast())),
                    targets: In(step.targets.at::<u32>(cx).add(row)),
                    weights: In(step.weights.at::<f32>(cx).add(row)),
                    losses: Out(losses.add(row)),
                    n: v,
                };
                run(cx.pool, rows, 4 * rows * v, &kernel);
                let Some(dx) = &dx else { continue };
                let back = Product { m: rows, ..head.back };
                let to = dx.at::<u8>(cx).add(row * h * dx.dtype.size());
                if dx.dtype == DType::F32 {
                    back.run(cx.pool, logits, w.at(cx), to, work);
                    continue;
                }
                back.run(cx.pool, logits, w.at(cx), gradient, work);
                real!(dx.dtype, |T| {
                    run(
                        cx.pool,
                        rows,
                        rows * h,
                        &Narrowed::<T> { from: In(gradient.cast()), to: Out(to.cast()), n: h },
                    );
                });
            }
            std::ptr::write_bytes(losses.add(active), 0, m - active);
            if let Some(dx) = &dx {
                let row = h * dx.dtype.size();
                std::ptr::write_bytes(dx.at::<u8>(cx).add(active * row), 0, (m - active) * row);
            }
            step.finish(cx, losses);
        }
        Ok(())
    })
}
