//! Products of few rows with a weight: decode steps. W is read once. If it is stored `[n, k]`, adapters are added on the
//! way, and what the next steps do with the result is done as well: a gate, or sums with biases or a residual.

use bytemuck::NoUninit;

use super::address::ByteRange;
use super::kernel::Source;
use super::lora_slots::{SLOTS, SlotGroup};
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;
use crate::ops::{BinaryFn, Op};

pub(super) const SOURCE: Source =
    Source::new("gemv", concat!(include_str!("kernels/products.metal"), include_str!("kernels/gemv.metal")));

/// Sums that a launch takes: a bias each of q, k and v.
const SUMS: usize = 3;
/// From so many rows on the tiles of a matrix product are better filled.
const MOST_ROWS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    w_stride: u32,
    y_stride: u32,
    slots: u32,
    total: u32,
    halves: u32,
    gated_stride: u32,
    start: [u32; SLOTS],
    len: [u32; SLOTS],
    rank: [u32; SLOTS],
    first: [u32; SLOTS],
    scale: [f32; SLOTS],
    sums: u32,
    sum_start: [u32; SUMS],
    sum_len: [u32; SUMS],
    addend_stride: [u32; SUMS],
    sum_stride: [u32; SUMS],
}

/// The low-rank part.
pub(super) struct Adapters<'a> {
    pub(super) group: &'a SlotGroup<'a>,
    /// x·Aᵀ of all slots, `[m, total]`.
    pub(super) h: &'a Tensor,
    pub(super) total: usize,
    /// B of each slot, in f32.
    pub(super) b: &'a [Tensor],
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TransposedSizes {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    w_stride: u32,
    y_stride: u32,
}

/// Rows that a threadgroup does: there are kernels for these numbers.
fn rows(m: usize) -> usize {
    match m {
        1 => 1,
        2..=4 => 4,
        _ => MOST_ROWS,
    }
}

/// Whether x `[m, k]` and W, either way, are for this kernel.
pub(super) fn takes(x: &Tensor, w: &Tensor, m: usize) -> bool {
    m <= MOST_ROWS
        && x.layout.row_stride().is_some()
        && w.layout.shape.rank() == 2
        && w.layout.row_stride().is_some()
}

/// Adds the dispatch of y = x·Wᵀ, with adapters if there are any.
pub(super) fn push(
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    adapters: Option<Adapters<'_>>,
    cx: &mut OpContext<'_, '_>,
) -> Result<()> {
    let (m, k, n) = (x.rows(), x.last(), w.layout.shape[0]);
    let rows = rows(m);
    let launch = cx.kernel(SOURCE, &format!("gemv_{}_{}_{rows}", x.type_name(), w.type_name()))?;
    let mut launch = launch.read(x).read(w);
    let mut sizes = Sizes {
        m: as_u32(m),
        n: as_u32(n),
        k: as_u32(k),
        x_stride: as_u32(x.row_stride()),
        w_stride: as_u32(w.row_stride()),
        y_stride: as_u32(y.row_stride()),
        slots: 0,
        total: 0,
        halves: 0,
        gated_stride: 0,
        start: [0; SLOTS],
        len: [0; SLOTS],
        rank: [0; SLOTS],
        first: [0; SLOTS],
        scale: [0.0; SLOTS],
        sums: 0,
        sum_start: [0; SUMS],
        sum_len: [0; SUMS],
        addend_stride: [0; SUMS],
        sum_stride: [0; SUMS],
    };
    match &adapters {
        Some(Adapters { group, h, total, b }) => {
            let header = group.header(*total);
            (sizes.slots, sizes.total) = (header.count, header.total);
            (sizes.start, sizes.len, sizes.rank) = (header.start, header.len, header.rank);
            (sizes.first, sizes.scale) = (header.first, header.scale);
            launch = launch.read(h);
            for slot in 0..SLOTS {
                launch = match b.get(slot) {
                    Some(b) => launch.read(b),
                    None => launch.unused(h.first()),
                };
            }
        }
        None => launch = (0..=SLOTS).fold(launch, |launch, _| launch.unused(x.first())),
    }
    launch = launch.write(y);
    let gated = gated(y, cx);
    launch = match &gated {
        Some(gated) => {
            (sizes.halves, sizes.gated_stride) = (as_u32(n / 2), as_u32(gated.row_stride()));
            cx.done = 1;
            launch.write(gated)
        }
        None => launch.unused(x.first()),
    };
    let sums = if gated.is_some() { Vec::new() } else { sums(y, cx) };
    cx.done += sums.len();
    sizes.sums = as_u32(sums.len());
    for (i, sum) in sums.iter().enumerate() {
        (sizes.sum_start[i], sizes.sum_len[i]) = (as_u32(sum.start), as_u32(sum.to.last()));
        sizes.addend_stride[i] = as_u32(sum.addend.layout.strides[0]);
        sizes.sum_stride[i] = as_u32(sum.to.row_stride());
    }
    for i in 0..SUMS {
        launch = match sums.get(i) {
            Some(sum) => launch.read(&sum.addend),
            None => launch.unused(x.first()),
        };
    }
    for i in 0..SUMS {
        launch = match sums.get(i) {
            Some(sum) => launch.write(&sum.to),
            None => launch.unused(x.first()),
        };
    }
    cx.push(launch.constants(&sizes), [n.div_ceil(16), m.div_ceil(rows), 1], [128, 1, 1]);
    Ok(())
}

/// Adds the dispatch of y = x·W for W stored `[k, n]`.
pub(super) fn push_transposed(x: &Tensor, w: &Tensor, y: &Tensor, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let (m, n) = (x.rows(), w.last());
    let rows = rows(m);
    let launch = cx.kernel(SOURCE, &format!("gemv_t_{}_{}_{rows}", x.type_name(), w.type_name()))?;
    let sizes = TransposedSizes {
        m: as_u32(m),
        n: as_u32(n),
        k: as_u32(x.last()),
        x_stride: as_u32(x.row_stride()),
        w_stride: as_u32(w.row_stride()),
        y_stride: as_u32(y.row_stride()),
    };
    let launch = launch.read(x).read(w).write(y).constants(&sizes);
    cx.push(launch, [n.div_ceil(32), m.div_ceil(rows), 1], [256, 1, 1]);
    Ok(())
}

/// `to = y[:, start..] + addend`.
struct Sum {
    start: usize,
    addend: Tensor,
    to: Tensor,
}

/// What the next steps add to columns of y, as far as the launch may do it: the thread that writes a sum has its terms, but
/// nothing else that the launch reads or writes may lie there.
fn sums(y: &Tensor, cx: &OpContext<'_, '_>) -> Vec<Sum> {
    if y.layout.shape.rank() != 2 {
        return Vec::new();
    }
    let span = Tensor::range;
    let (rows, n, size) = (y.rows(), y.last(), y.dtype.size());
    let scratch = ByteRange::new(cx.scratch, cx.step.scratch.1);
    let mut found: Vec<Sum> = Vec::new();
    for step in cx.rest.iter().take(SUMS) {
        let Op::Binary(op) = &step.op else { break };
        let Some(to) = step.outputs[0].as_ref().map(cx.tensor) else { break };
        let [a, b] = [0, 1].map(|input| (cx.tensor)(&step.inputs[input]));
        let matrix = |tensor: &Tensor| {
            let layout = &tensor.layout;
            tensor.dtype == y.dtype
                && layout.shape.dims() == [rows, to.last()]
                && (layout.strides[1] == 1 || to.last() == 1)
        };
        // The first column of y that a tensor is, if it is columns of y.
        let column = |tensor: &Tensor| {
            let offset = tensor.first().offset().checked_sub(y.first().offset())? / size;
            let same = tensor.address.same_buffer(y.address)
                && (rows == 1 || tensor.layout.strides[0] == y.row_stride());
            (same && matrix(tensor) && offset + to.last() <= n).then_some(offset)
        };
        let (start, addend) = match (column(&a), column(&b)) {
            (Some(start), None) => (start, b),
            (None, Some(start)) => (start, a),
            _ => break,
        };
        let place = span(&to);
        // Exactly over its own term it is written by the thread that has read that.
        let over = |term: &Tensor, stride: usize| {
            term.first().offset() == to.first().offset() && (rows == 1 || stride == to.row_stride())
        };
        let part = Tensor { layout: y.layout.sliced(1, start, to.last()), ..y.clone() };
        let apart = |other: &ByteRange| !place.overlaps(other);
        let free = (apart(&span(y)) || over(&part, y.row_stride()))
            && (apart(&span(&addend)) || over(&addend, addend.layout.strides[0]))
            && cx.inputs.iter().all(|input| apart(&span(input)))
            && found.iter().all(|sum| {
                apart(&span(&sum.to)) && apart(&span(&sum.addend)) && !span(&sum.to).overlaps(&span(&addend))
            })
            && apart(&scratch);
        let fits = op.function == BinaryFn::Add
            && matrix(&addend)
            && to.layout.is_contiguous()
            && !span(&addend).overlaps(&span(y));
        if !fits || !free {
            break;
        }
        found.push(Sum { start, addend, to });
    }
    found
}

/// Where the next step's result goes, if that is silu(gate)·up of the two halves of y. It may be y's memory, if it lies
/// exactly over one of the halves: the thread that writes there has both.
fn gated(y: &Tensor, cx: &OpContext<'_, '_>) -> Option<Tensor> {
    let next = cx.rest.first().filter(|step| matches!(step.op, Op::SiluMul(_)))?;
    let [gate, up] = [0, 1].map(|input| (cx.tensor)(&next.inputs[input]));
    let gated = (cx.tensor)(next.outputs[0].as_ref()?);
    let (rows, half) = (y.rows(), y.last() / 2);
    let is_half = |tensor: &Tensor, offset: usize| {
        tensor.dtype == y.dtype
            && tensor.layout.shape.dims() == [rows, half]
            && (rows == 1 || tensor.layout.strides[0] == y.row_stride())
            && tensor.address.same_buffer(y.address)
            && tensor.first().offset() == y.first().offset() + offset * y.dtype.size()
    };
    let halves = y.last().is_multiple_of(2) && is_half(&gate, 0) && is_half(&up, half);
    let span = Tensor::range;
    let place = span(&gated);
    let apart = !place.overlaps(&span(y)) || rows == 1 && (place == span(&gate) || place == span(&up));
    // What is read must not be overwritten by another SIMD group: inputs, and h in working memory.
    let scratch = ByteRange::new(cx.scratch, cx.step.scratch.1);
    let inputs = cx.inputs.iter().all(|input| !place.overlaps(&span(input))) && !place.overlaps(&scratch);
    (halves && apart && inputs).then_some(gated)
}
