//! A frozen linear layer with low-rank adapters, and its gradient. See [`crate::ops::Lora`].
//!
//! For few rows, h is followed by a product that also adds the adapters; otherwise by the product and the adapters.

use bytemuck::NoUninit;

use super::address::Address;
use super::gemv;
use super::kernel::Source;
use super::library::{self, LibraryCall};
use super::lora_slots::{Slots, TILE, groups};
use super::matmul::{Matrix, product};
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{Lora, LoraGrad, total_rank};
use crate::tensor::{DType, Layout, Shape};

pub(super) const SOURCE: Source =
    Source::new("lora", concat!(include_str!("kernels/products.metal"), include_str!("kernels/lora.metal")));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    m: u32,
    k: u32,
    x_stride: u32,
    y_stride: u32,
    columns: u32,
    add: u32,
    slots: Slots,
}

/// Returns scratch memory as an f32 matrix.
fn matrix(address: Address, rows: usize, columns: usize) -> Tensor {
    Tensor { address, dtype: DType::F32, layout: Layout::contiguous(&Shape::from([rows, columns])) }
}

/// Bytes of scratch for h, if nothing else reads it.
pub(super) fn scratch(op: &Lora, inputs: &[Operand]) -> usize {
    4 * inputs[0].layout.shape[0] * total_rank(&op.slots)
}

/// Adds the dispatches of h = x′·Aᵀ and returns h.
pub(super) fn push_down(op: &Lora, cx: &mut OpContext<'_, '_>) -> Result<Tensor> {
    let first = op.first_slot_input();
    let inputs = cx.inputs.clone();
    let (x, adapter_x) = (&inputs[0], &inputs[first - 2]);
    let total = total_rank(&op.slots);
    let (m, k) = (x.layout.shape[0], x.layout.shape[1]);
    let h = cx.output(1).unwrap_or_else(|| matrix(cx.scratch, m, total));
    let a = |slot: usize| &inputs[first + 2 * slot];
    for slot in 0..op.slots.len() {
        cx.expect(a(slot), a(0).dtype)?;
        cx.expect(&inputs[first + 2 * slot + 1], a(0).dtype)?;
    }
    let rows = if m == 1 { 1 } else { TILE };
    for group in groups(&op.slots) {
        let kernel = format!("lora_down_{}_{}_{rows}", x.type_name(), a(0).type_name());
        let launch = group.bind(cx.kernel(SOURCE, &kernel)?.read(adapter_x), a).write(&h);
        let sizes = Sizes {
            m: as_u32(m),
            k: as_u32(k),
            x_stride: as_u32(adapter_x.row_stride()),
            y_stride: 0,
            columns: 0,
            add: 0,
            slots: group.header(total),
        };
        cx.push(launch.constants(&sizes), [group.tiles(), m.div_ceil(rows), 1], [256, 1, 1]);
    }
    Ok(h)
}

/// Adds the dispatches of a layer.
pub(super) fn lower(op: &Lora, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let first = op.first_slot_input();
    let inputs = cx.inputs.clone();
    let (x, w) = (&inputs[0], &inputs[first - 1]);
    let (m, total) = (x.layout.shape[0], total_rank(&op.slots));
    let (a, b) = (|slot: usize| &inputs[first + 2 * slot], |slot: usize| &inputs[first + 2 * slot + 1]);
    let h = push_down(op, cx)?;
    let Some(y) = cx.output(0) else { return Ok(()) };
    let all = groups(&op.slots);
    if !cx.prefers_library() && gemv::takes(x, w, m) && all.len() == 1 && a(0).dtype == DType::F32 {
        let pairs: Vec<Tensor> = (0..op.slots.len()).map(|slot| b(slot).clone()).collect();
        let adapters = gemv::Adapters { group: &all[0], h: &h, total, b: &pairs };
        return gemv::push(x, w, Some(&y), Some(adapters), &gemv::Results::None, cx);
    }
    product(&Matrix::new(x, false), &Matrix::new(w, true), None, &y, (1.0, 0.0), cx)?;
    if cx.prefers_library() && push_library(op, &h, b, &y, cx) {
        return Ok(());
    }
    for group in all {
        let columns: usize = group.slots.iter().map(|slot| slot.len).sum();
        let kernel = format!("lora_up_{}_{}", y.type_name(), a(0).type_name());
        let launch = group.bind(cx.kernel(SOURCE, &kernel)?.read(&h), b).update(&y);
        let sizes = Sizes {
            m: as_u32(m),
            k: 0,
            x_stride: 0,
            y_stride: as_u32(y.row_stride()),
            columns: as_u32(columns),
            add: 0,
            slots: group.header(total),
        };
        cx.push_elements(launch.constants(&sizes), m.div_ceil(TILE) * columns);
    }
    Ok(())
}

/// Adds `y += scale·h·Bᵀ` of every slot as calls of the vendor's library, which accumulate with beta = 1. Returns false, and
/// adds nothing, if the driver rejects one, for example because the dtypes of y and h differ.
fn push_library<'t>(
    op: &Lora,
    h: &Tensor,
    b: impl Fn(usize) -> &'t Tensor,
    y: &Tensor,
    cx: &mut OpContext<'_, '_>,
) -> bool {
    let (before, m, mut first) = (cx.target.commands.len(), h.rows(), 0);
    for (index, slot) in op.slots.iter().enumerate() {
        let columns = |tensor: &Tensor, first: usize, count: usize| {
            let address = tensor.first().plus(first * tensor.dtype.size());
            library::Matrix::single(address, tensor.dtype, (m, count), tensor.row_stride())
        };
        let call = LibraryCall::MatMul {
            left: (columns(h, first, slot.rank), false),
            right: (b(index).row_matrix(), true),
            result: columns(y, slot.start, slot.len),
            alpha: slot.scale.0,
            beta: 1.0,
        };
        if !cx.push_library(call) {
            cx.target.commands.truncate(before);
            return false;
        }
        first += slot.rank;
    }
    true
}

/// Bytes of scratch for t.
pub(super) fn grad_scratch(op: &LoraGrad, inputs: &[Operand]) -> usize {
    4 * inputs[0].layout.shape[0] * total_rank(&op.slots)
}

/// Adds the dispatches of the gradient.
pub(super) fn lower_grad(op: &LoraGrad, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let inputs = cx.inputs.clone();
    let (dy, x, h, w) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
    cx.expect(x, dy.dtype)?;
    cx.expect(h, DType::F32)?;
    let total = total_rank(&op.slots);
    let (m, k) = (x.layout.shape[0], x.layout.shape[1]);
    let (a, b) = (|slot: usize| &inputs[4 + 2 * slot], |slot: usize| &inputs[5 + 2 * slot]);
    for slot in 0..op.slots.len() {
        cx.expect(a(slot), a(0).dtype)?;
        cx.expect(b(slot), a(0).dtype)?;
    }
    let separate = usize::from(op.separate);
    let dx = cx.output(0);
    let adapter_dx = if op.separate { cx.output(1) } else { dx.clone() };
    // The kernel computes the gradients of both factors of every slot.
    let gradients: Option<Vec<Tensor>> = cx.outputs[1 + separate..].iter().cloned().collect();
    let t = matrix(cx.scratch, m, total);
    if let Some(dx) = &dx {
        product(&Matrix::new(dy, false), &Matrix::new(w, false), None, dx, (1.0, 0.0), cx)?;
    }
    let some = cx.outputs[1 + separate..].iter().any(Option::is_some);
    if some && gradients.is_none() {
        return Err(cx.unsupported(dy.dtype, "train both factors of every adapter"));
    }
    for group in groups(&op.slots) {
        let sizes = Sizes {
            m: as_u32(m),
            k: as_u32(k),
            x_stride: as_u32(x.row_stride()),
            y_stride: as_u32(dy.row_stride()),
            columns: 0,
            add: 0,
            slots: group.header(total),
        };
        let types = (dy.type_name(), a(0).type_name());
        if gradients.is_some() || adapter_dx.is_some() {
            let launch = cx.kernel(SOURCE, &format!("lora_t_{}_{}", types.0, types.1))?.read(dy);
            let launch = group.bind(launch, b).write(&t).constants(&sizes);
            cx.push(launch, [group.tiles(), m.div_ceil(TILE), 1], [256, 1, 1]);
        }
        if let Some(dx) = &adapter_dx {
            let add = u32::from(!op.separate || group.index > 0);
            let launch = cx.kernel(SOURCE, &format!("lora_dx_{}_{}", types.0, types.1))?.read(&t);
            let launch = group.bind(launch, a).update(dx).constants(&Sizes { add, ..sizes });
            cx.push_elements(launch, m.div_ceil(TILE) * k);
        }
        if let Some(gradients) = &gradients {
            let (da, db): (Vec<Tensor>, Vec<Tensor>) =
                gradients.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
            let launch = cx.kernel(SOURCE, &format!("lora_da_{}", types.0))?.read(&t).read(x);
            let launch = group.bind_outputs(launch, &da).constants(&sizes);
            cx.push(launch, [k.div_ceil(32), group.tiles(), 1], [32, 8, 1]);
            let longest = group.slots.iter().map(|slot| slot.len).max().unwrap_or(0);
            let launch = cx.kernel(SOURCE, &format!("lora_db_{}", types.0))?.read(h).read(dy);
            let launch = group.bind_outputs(launch, &db).constants(&sizes);
            cx.push(launch, [longest.div_ceil(32), group.tiles(), 1], [32, 8, 1]);
        }
    }
    Ok(())
}
