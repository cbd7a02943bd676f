//! A frozen linear layer with adapters. See [`crate::ops::Lora`].
//!
//! The adapters' products are thin beside the frozen one: they are added to its result in place.

use super::gemv::{Epilogue, MAX_EPILOGUES};
use super::kernel::In;
use super::matmul::{Product, Side};
use super::op::{Address, Call, OpContext, Run, Tensor};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{Lora, LoraGrad, LoraSlot, total_rank};
use crate::tensor::{DType, Layout, TensorSpec};

/// A matrix `[rows, columns]` whose rows lie evenly.
fn rows_of(dtype: DType, layout: &Layout) -> Side {
    Side { dtype, rows: layout.row_stride().expect("rows lie evenly"), columns: 1, batch: 0 }
}

fn transposed(side: Side) -> Side {
    Side { rows: side.columns, columns: side.rows, ..side }
}

/// A contiguous f32 matrix with these many columns.
fn contiguous(columns: usize) -> Side {
    Side { dtype: DType::F32, rows: columns, columns: 1, batch: 0 }
}

/// A part of a tensor as an operand of a product: where it begins, in elements of its dtype.
#[derive(Clone)]
enum Place {
    Tensor(Tensor, usize),
    Scratch(usize),
}

impl Place {
    /// # Safety
    /// The place belongs to the step that runs.
    unsafe fn at(&self, cx: &Run<'_>, scratch: Address) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::Tensor(tensor, start) => tensor.at::<u8>(cx).add(start * tensor.dtype.size()),
                Self::Scratch(bytes) => cx.at::<u8>(scratch).add(*bytes),
            }
        }
    }
}

struct Stage {
    product: Product,
    a: Place,
    b: Place,
    c: Place,
    /// Adapters that are added on the way.
    epilogues: Vec<Adapter>,
}

/// h and B of a slot.
struct Adapter {
    slot: LoraSlot,
    h: Place,
    h_rows: usize,
    b: Place,
    side: Side,
}

impl Stage {
    fn new(product: Product, a: Place, b: Place, c: Place) -> Self {
        Self { product, a, b, c, epilogues: Vec::new() }
    }
}

impl Adapter {
    /// # Safety
    /// The places belong to the step that runs.
    unsafe fn epilogue(&self, cx: &Run<'_>, scratch: Address) -> Epilogue {
        let LoraSlot { start, len, rank, scale } = self.slot;
        // SAFETY: as the caller promises.
        let (h, b) = unsafe { (self.h.at(cx, scratch), self.b.at(cx, scratch)) };
        let (h, b, scale) = (In(h.cast::<f32>().cast_const()), In(b.cast_const()), scale.0);
        let (b_rows, b_dtype) = (self.side.rows, self.side.dtype);
        Epilogue { start, len, rank, scale, h, h_rows: self.h_rows, b, b_rows, b_dtype }
    }
}

/// Products in order; those of one step share the scratch from byte `shared` on.
fn in_order(stages: Vec<Stage>, scratch: Address, shared: usize) -> Call {
    Box::new(move |cx| {
        for Stage { product, a, b, c, epilogues: adapters } in &stages {
            // SAFETY: the planner gave the tensors their places, and the scratch its size.
            unsafe {
                let work = cx.at::<u8>(scratch).add(shared);
                let mut epilogues = [None; MAX_EPILOGUES];
                for (epilogue, adapter) in epilogues.iter_mut().zip(adapters) {
                    *epilogue = Some(adapter.epilogue(cx, scratch));
                }
                let (a, b, c) = (a.at(cx, scratch), b.at(cx, scratch), c.at(cx, scratch));
                product.run_with(cx.pool, a, b, c, work, epilogues);
            }
        }
        Ok(())
    })
}

/// One operand of the shape rules, as both the planner and the executor have it.
type Part<'a> = (DType, &'a Layout);

fn parts(operands: &[Operand]) -> Vec<Part<'_>> {
    operands.iter().map(|operand| (operand.dtype, &operand.layout)).collect()
}

fn tensor_parts(tensors: &[Tensor]) -> Vec<Part<'_>> {
    tensors.iter().map(|tensor| (tensor.dtype, &tensor.layout)).collect()
}

/// The forward's products: x·Wᵀ, then for each slot h = x′·Aᵀ and y += scale·h·Bᵀ.
fn forward(op: &Lora, inputs: &[Part<'_>], y: DType) -> Vec<[Product; 3]> {
    let first = if op.separate { 3 } else { 2 };
    let (x, adapter_x, w) = (inputs[0], inputs[first - 2], inputs[first - 1]);
    let (m, k, n) = (x.1.shape[0], x.1.shape[1], w.1.shape[0]);
    let rank = total_rank(&op.slots);
    let base =
        Product { c_dtype: y, ..Product::new((m, n, k), rows_of(x.0, x.1), transposed(rows_of(w.0, w.1))) };
    op.slots
        .iter()
        .zip(inputs[first..].chunks(2))
        .map(|(slot, pair)| {
            let down = Product {
                ldc: rank,
                ..Product::new(
                    (m, slot.rank, k),
                    rows_of(adapter_x.0, adapter_x.1),
                    transposed(rows_of(pair[0].0, pair[0].1)),
                )
            };
            let up = Product {
                c_dtype: y,
                ldc: n,
                alpha: slot.scale.0,
                add: true,
                ..Product::new(
                    (m, slot.len, slot.rank),
                    contiguous(rank),
                    transposed(rows_of(pair[1].0, pair[1].1)),
                )
            };
            [base, down, up]
        })
        .collect()
}

pub(super) fn scratch(op: &Lora, inputs: &[Operand], outputs: &[TensorSpec], threads: usize) -> usize {
    let stages = forward(op, &parts(inputs), outputs[0].dtype);
    let work = stages.iter().flatten().map(|product| product.scratch(threads)).max().unwrap_or(0);
    hidden_bytes(&outputs[1].shape) + work
}

/// Room for h, used if no one else reads it.
fn hidden_bytes(shape: &crate::tensor::Shape) -> usize {
    (4 * shape.elements()).next_multiple_of(64)
}

pub(super) fn compile(op: &Lora, context: &OpContext<'_>) -> Result<Call> {
    let (y, first) = (context.output(0), if op.separate { 3 } else { 2 });
    let hidden = |start: usize| match context.output(1) {
        Some(h) => Place::Tensor(h, start),
        None => Place::Scratch(4 * start),
    };
    let input = |index: usize| Place::Tensor(context.inputs[index].clone(), 0);
    let products = forward(op, &tensor_parts(&context.inputs), context.step.output_specs[0].dtype);
    let mut base = y.clone().zip(products.first()).map(|(y, products)| Stage {
        product: products[0],
        a: input(0),
        b: input(first - 1),
        c: Place::Tensor(y, 0),
        epilogues: Vec::new(),
    });
    // A few rows: the adapters are added while the frozen product is at their columns, so h comes first.
    let at_once =
        op.slots.len() <= MAX_EPILOGUES && base.as_ref().is_some_and(|base| base.product.takes_tails());
    let (mut downs, mut ups) = (Vec::new(), Vec::new());
    let mut start = 0;
    for (index, (slot, [_, down, up])) in op.slots.iter().zip(products).enumerate() {
        let (a, b) = (input(first + 2 * index), input(first + 2 * index + 1));
        let (h, h_rows) = (hidden(start), down.ldc);
        downs.push(Stage::new(down, input(first - 2), a, hidden(start)));
        match (&mut base, &y) {
            (Some(base), _) if at_once => {
                let side = transposed(up.b);
                base.epilogues.push(Adapter { slot: slot.clone(), h, h_rows, b, side });
            }
            (_, Some(y)) => ups.push(Stage::new(up, h, b, Place::Tensor(y.clone(), slot.start))),
            _ => {}
        }
        start += slot.rank;
    }
    let stages = downs.into_iter().chain(base).chain(ups).collect();
    Ok(in_order(stages, context.scratch, hidden_bytes(&context.step.output_specs[1].shape)))
}

/// The backward's products for one slot.
struct Backward {
    /// t = scale·dy[:, slot]·B
    t: Product,
    /// dx′ += t·A
    dx: Product,
    /// dA = tᵀ·x′
    da: Product,
    /// dB = scale·dy[:, slot]ᵀ·h
    db: Product,
}

fn base_gradient(inputs: &[Part<'_>]) -> Product {
    let (dy, x, w) = (inputs[0], inputs[1], inputs[3]);
    let (m, n, k) = (dy.1.shape[0], dy.1.shape[1], x.1.shape[1]);
    Product { c_dtype: dy.0, ..Product::new((m, k, n), rows_of(dy.0, dy.1), rows_of(w.0, w.1)) }
}

fn backward(op: &LoraGrad, inputs: &[Part<'_>]) -> Vec<Backward> {
    let (dy, x, h) = (inputs[0], inputs[1], inputs[2]);
    let (m, k) = (x.1.shape[0], x.1.shape[1]);
    let dy_side = rows_of(dy.0, dy.1);
    let each = |(index, (slot, pair)): (usize, (&LoraSlot, &[Part<'_>]))| {
        let (a, b) = (rows_of(pair[0].0, pair[0].1), rows_of(pair[1].0, pair[1].1));
        let t_side = contiguous(slot.rank);
        Backward {
            t: Product { alpha: slot.scale.0, ..Product::new((m, slot.rank, slot.len), dy_side, b) },
            // dx′ is set by the first slot if it has a place of its own.
            dx: Product {
                c_dtype: dy.0,
                add: !op.separate || index > 0,
                ..Product::new((m, k, slot.rank), t_side, a)
            },
            da: Product::new((slot.rank, k, m), transposed(t_side), rows_of(x.0, x.1)),
            db: Product {
                alpha: slot.scale.0,
                ..Product::new((slot.len, slot.rank, m), transposed(dy_side), rows_of(h.0, h.1))
            },
        }
    };
    op.slots.iter().zip(inputs[4..].chunks(2)).enumerate().map(each).collect()
}

/// Room for t of the widest slot.
fn t_bytes(op: &LoraGrad, m: usize) -> usize {
    (4 * m * op.slots.iter().map(|slot| slot.rank).max().unwrap_or(0)).next_multiple_of(64)
}

pub(super) fn grad_scratch(
    op: &LoraGrad,
    inputs: &[Operand],
    _outputs: &[TensorSpec],
    threads: usize,
) -> usize {
    let inputs = parts(inputs);
    let slots = backward(op, &inputs);
    let products = slots.iter().flat_map(|s| [s.t, s.dx, s.da, s.db]).chain([base_gradient(&inputs)]);
    t_bytes(op, inputs[0].1.shape[0]) + products.map(|product| product.scratch(threads)).max().unwrap_or(0)
}

pub(super) fn compile_grad(op: &LoraGrad, context: &OpContext<'_>) -> Result<Call> {
    let inputs = tensor_parts(&context.inputs);
    let input = |index: usize, start: usize| Place::Tensor(context.inputs[index].clone(), start);
    let outputs = 1 + usize::from(op.separate);
    let adapter_dx = context.output(outputs - 1);
    let mut stages = Vec::new();
    if let Some(dx) = context.output(0) {
        let c = Place::Tensor(dx, 0);
        stages.push(Stage::new(base_gradient(&inputs), input(0, 0), input(3, 0), c));
    }
    let mut start = 0;
    for (index, (slot, products)) in op.slots.iter().zip(backward(op, &inputs)).enumerate() {
        let (da, db) = (context.output(outputs + 2 * index), context.output(outputs + 2 * index + 1));
        let (a, b) = (4 + 2 * index, 5 + 2 * index);
        if da.is_some() || adapter_dx.is_some() {
            let c = Place::Scratch(0);
            stages.push(Stage::new(products.t, input(0, slot.start), input(b, 0), c));
        }
        if let Some(dx) = &adapter_dx {
            let c = Place::Tensor(dx.clone(), 0);
            stages.push(Stage::new(products.dx, Place::Scratch(0), input(a, 0), c));
        }
        if let Some(da) = da {
            let c = Place::Tensor(da, 0);
            stages.push(Stage::new(products.da, Place::Scratch(0), input(1, 0), c));
        }
        if let Some(db) = db {
            let c = Place::Tensor(db, 0);
            stages.push(Stage::new(products.db, input(0, slot.start), input(2, start), c));
        }
        start += slot.rank;
    }
    Ok(in_order(stages, context.scratch, t_bytes(op, inputs[0].1.shape[0])))
}
