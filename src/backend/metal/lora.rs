//! A frozen linear layer with low-rank adapters, and its gradient. See [`crate::ops::Lora`].
//!
//! With few rows: h, then the product with the adapters as its last step. Otherwise h, the product, and the adapters.

use bytemuck::NoUninit;

use super::gemv;
use super::launch::Address;
use super::matmul::{Matrix, product};
use super::pipeline::Source;
use super::site::{Builder, Site, Tensor, small};
use crate::Result;
use crate::graph::Operand;
use crate::ops::{Lora, LoraGrad, LoraSlot, total_rank};
use crate::tensor::{DType, Layout, Shape};

pub(super) const SOURCE: Source =
    Source::new("lora", concat!(include_str!("kernels/products.metal"), include_str!("kernels/lora.metal")));

/// As many slots as a launch takes.
pub(super) const SLOTS: usize = 4;

/// Ranks of a tile, and rows that a threadgroup or a thread does at a time.
const TILE: usize = 4;

/// The struct of the same name in `lora.metal`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Slots {
    count: u32,
    total: u32,
    start: [u32; SLOTS],
    len: [u32; SLOTS],
    rank: [u32; SLOTS],
    first: [u32; SLOTS],
    scale: [f32; SLOTS],
}

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

/// Slots that share a launch, with the A and B of each, or whatever takes their place.
pub(super) struct Part<'a> {
    pub(super) slots: &'a [LoraSlot],
    /// Where the ranks of each slot begin.
    pub(super) first: Vec<usize>,
    /// Which slot of the layer is the first of these.
    index: usize,
}

impl Part<'_> {
    /// Tiles of ranks; none has ranks of two slots.
    fn tiles(&self) -> usize {
        self.slots.iter().map(|slot| slot.rank.div_ceil(TILE)).sum()
    }

    fn header(&self, total: usize) -> Slots {
        let mut header = Slots {
            count: small(self.slots.len()),
            total: small(total),
            start: [0; SLOTS],
            len: [0; SLOTS],
            rank: [0; SLOTS],
            first: [0; SLOTS],
            scale: [0.0; SLOTS],
        };
        for (i, slot) in self.slots.iter().enumerate() {
            header.start[i] = small(slot.start);
            header.len[i] = small(slot.len);
            header.rank[i] = small(slot.rank);
            header.first[i] = small(self.first[i]);
            header.scale[i] = slot.scale.0;
        }
        header
    }
}

/// The slots of a layer, in parts that a launch takes.
pub(super) fn parts(slots: &[LoraSlot]) -> Vec<Part<'_>> {
    let mut before = 0;
    let mut parts = Vec::new();
    for (number, slots) in slots.chunks(SLOTS).enumerate() {
        let first = slots
            .iter()
            .map(|slot| {
                before += slot.rank;
                before - slot.rank
            })
            .collect();
        parts.push(Part { slots, first, index: number * SLOTS });
    }
    parts
}

/// Binds one tensor a slot; the places that remain get the first again.
fn bind<'t>(launch: Builder, part: &Part<'_>, tensor: impl Fn(usize) -> &'t Tensor) -> Builder {
    (0..SLOTS).fold(launch, |launch, slot| {
        if slot < part.slots.len() {
            launch.read(tensor(part.index + slot))
        } else {
            launch.unused(&tensor(part.index).first())
        }
    })
}

/// Binds the outputs of a part's slots.
fn bind_outputs(launch: Builder, part: &Part<'_>, outputs: &[Tensor]) -> Builder {
    (0..SLOTS).fold(launch, |launch, slot| {
        if slot < part.slots.len() {
            launch.write(&outputs[part.index + slot])
        } else {
            launch.unused(&outputs[part.index].first())
        }
    })
}

/// f32 working memory as a matrix.
fn matrix(address: &Address, rows: usize, columns: usize) -> Tensor {
    Tensor {
        address: address.clone(),
        dtype: DType::F32,
        layout: Layout::contiguous(&Shape::from([rows, columns])),
    }
}

/// Bytes for h, if nothing reads it later.
pub(super) fn scratch(op: &Lora, inputs: &[Operand]) -> usize {
    4 * inputs[0].layout.shape[0] * total_rank(&op.slots)
}

/// Adds the launches of a layer.
pub(super) fn compile(op: &Lora, site: &mut Site<'_>) -> Result<()> {
    let first = op.first_slot_input();
    let inputs = site.inputs.clone();
    let (x, adapter_x, w) = (&inputs[0], &inputs[first - 2], &inputs[first - 1]);
    let total = total_rank(&op.slots);
    let (m, k) = (x.layout.shape[0], x.layout.shape[1]);
    let h = site.output(1).unwrap_or_else(|| matrix(&site.scratch, m, total));
    let (a, b) = (|slot: usize| &inputs[first + 2 * slot], |slot: usize| &inputs[first + 2 * slot + 1]);
    for slot in 0..op.slots.len() {
        site.expect(a(slot), a(0).dtype)?;
        site.expect(b(slot), a(0).dtype)?;
    }
    let rows = if m == 1 { 1 } else { TILE };
    for part in parts(&op.slots) {
        let kernel = format!("lora_down_{}_{}_{rows}", x.type_name(), a(0).type_name());
        let launch = bind(site.kernel(SOURCE, &kernel)?.read(adapter_x), &part, a).write(&h);
        let sizes = Sizes {
            m: small(m),
            k: small(k),
            x_stride: small(adapter_x.row_stride()),
            y_stride: 0,
            columns: 0,
            add: 0,
            slots: part.header(total),
        };
        site.push(launch.constants(&sizes), [part.tiles(), m.div_ceil(rows), 1], [256, 1, 1]);
    }
    let Some(y) = site.output(0) else { return Ok(()) };
    let all = parts(&op.slots);
    let few = site.gpu.preference() != crate::backend::select::Preference::Mps;
    if few && gemv::takes(x, w, m) && all.len() == 1 && a(0).dtype == DType::F32 {
        let pairs: Vec<Tensor> = (0..op.slots.len()).map(|slot| b(slot).clone()).collect();
        return gemv::push(x, w, &y, Some(gemv::Adapters { part: &all[0], h: &h, total, b: &pairs }), site);
    }
    product(&Matrix::new(x, false), &Matrix::new(w, true), None, &y, (1.0, 0.0), site)?;
    #[cfg(mps)]
    if site.prefers_shaders() && shaders(op, &h, b, &y, site) {
        return Ok(());
    }
    for part in all {
        let columns: usize = part.slots.iter().map(|slot| slot.len).sum();
        let kernel = format!("lora_up_{}_{}", y.type_name(), a(0).type_name());
        let launch = bind(site.kernel(SOURCE, &kernel)?.read(&h), &part, b).update(&y);
        let sizes = Sizes {
            m: small(m),
            k: 0,
            x_stride: 0,
            y_stride: small(y.row_stride()),
            columns: small(columns),
            add: 0,
            slots: part.header(total),
        };
        site.push_elements(launch.constants(&sizes), m.div_ceil(TILE) * columns);
    }
    Ok(())
}

/// Adds `y += scale·h·Bᵀ` of every slot by Metal Performance Shaders, which accumulate with beta = 1. False, and nothing is
/// added, if one is refused: y and h of different types, for example.
#[cfg(mps)]
fn shaders<'t>(
    op: &Lora,
    h: &Tensor,
    b: impl Fn(usize) -> &'t Tensor,
    y: &Tensor,
    site: &mut Site<'_>,
) -> bool {
    use crate::backend::mps::{Operand, product};

    let (before, m, mut first) = (site.items.len(), h.rows(), 0);
    for (index, slot) in op.slots.iter().enumerate() {
        let columns = |tensor: &Tensor, first: usize, count: usize| {
            let address = tensor.first().plus(first * tensor.dtype.size());
            Operand::single(address, tensor.dtype, (m, count), tensor.row_stride())
        };
        let (left, right) = (columns(h, first, slot.rank), b(index).row_matrix());
        let result = columns(y, slot.start, slot.len);
        let name = site.step.op.name();
        let item = product(site.gpu, name, (left, false), (right, true), &result, (slot.scale.0, 1.0));
        if !site.take(item) {
            site.items.truncate(before);
            return false;
        }
        first += slot.rank;
    }
    true
}

/// Bytes for t.
pub(super) fn grad_scratch(op: &LoraGrad, inputs: &[Operand]) -> usize {
    4 * inputs[0].layout.shape[0] * total_rank(&op.slots)
}

/// Adds the launches of the gradient.
pub(super) fn compile_grad(op: &LoraGrad, site: &mut Site<'_>) -> Result<()> {
    let inputs = site.inputs.clone();
    let (dy, x, h, w) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
    site.expect(x, dy.dtype)?;
    site.expect(h, DType::F32)?;
    let total = total_rank(&op.slots);
    let (m, k) = (x.layout.shape[0], x.layout.shape[1]);
    let (a, b) = (|slot: usize| &inputs[4 + 2 * slot], |slot: usize| &inputs[5 + 2 * slot]);
    for slot in 0..op.slots.len() {
        site.expect(a(slot), a(0).dtype)?;
        site.expect(b(slot), a(0).dtype)?;
    }
    let separate = usize::from(op.separate);
    let dx = site.output(0);
    let adapter_dx = if op.separate { site.output(1) } else { dx.clone() };
    // An output that nothing reads is computed all the same, over the other's place in working memory, only if the
    // other is wanted; that both are wanted or neither is what training asks for.
    let gradients: Option<Vec<Tensor>> = site.outputs[1 + separate..].iter().cloned().collect();
    let t = matrix(&site.scratch, m, total);
    if let Some(dx) = &dx {
        product(&Matrix::new(dy, false), &Matrix::new(w, false), None, dx, (1.0, 0.0), site)?;
    }
    let some = site.outputs[1 + separate..].iter().any(Option::is_some);
    if some && gradients.is_none() {
        return Err(site.unsupported(dy.dtype, "train both factors of every adapter"));
    }
    for part in parts(&op.slots) {
        let sizes = Sizes {
            m: small(m),
            k: small(k),
            x_stride: small(x.row_stride()),
            y_stride: small(dy.row_stride()),
            columns: 0,
            add: 0,
            slots: part.header(total),
        };
        let types = (dy.type_name(), a(0).type_name());
        if gradients.is_some() || adapter_dx.is_some() {
            let launch = site.kernel(SOURCE, &format!("lora_t_{}_{}", types.0, types.1))?.read(dy);
            let launch = bind(launch, &part, b).write(&t).constants(&sizes);
            site.push(launch, [part.tiles(), m.div_ceil(TILE), 1], [256, 1, 1]);
        }
        if let Some(dx) = &adapter_dx {
            let add = u32::from(!op.separate || part.index > 0);
            let launch = site.kernel(SOURCE, &format!("lora_dx_{}_{}", types.0, types.1))?.read(&t);
            let launch = bind(launch, &part, a).update(dx).constants(&Sizes { add, ..sizes });
            site.push_elements(launch, m.div_ceil(TILE) * k);
        }
        if let Some(gradients) = &gradients {
            let (da, db): (Vec<Tensor>, Vec<Tensor>) =
                gradients.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
            let launch = site.kernel(SOURCE, &format!("lora_da_{}", types.0))?.read(&t).read(x);
            let launch = bind_outputs(launch, &part, &da).constants(&sizes);
            site.push(launch, [k.div_ceil(32), part.tiles(), 1], [32, 8, 1]);
            let longest = part.slots.iter().map(|slot| slot.len).max().unwrap_or(0);
            let launch = site.kernel(SOURCE, &format!("lora_db_{}", types.0))?.read(h).read(dy);
            let launch = bind_outputs(launch, &part, &db).constants(&sizes);
            site.push(launch, [longest.div_ceil(32), part.tiles(), 1], [32, 8, 1]);
        }
    }
    Ok(())
}
