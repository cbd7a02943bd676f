//! Products of few rows with a weight, as in decoding. W is read once. If it is stored `[n, k]`, the kernel also adds adapters
//! and computes an epilogue: a gate, or sums with biases or a residual.

use bytemuck::{NoUninit, Zeroable};

use super::kernel::Source;
use super::lora_slots::{SLOTS, SlotGroup};
use super::op::{OpContext, Tensor, as_u32};
use crate::Result;

pub(super) const SOURCE: Source =
    Source::new("gemv", concat!(include_str!("kernels/products.metal"), include_str!("kernels/gemv.metal")));

/// Maximum number of sums of a dispatch, as in `gemv.metal`.
const MAX_SUMS: usize = 3;
const _: () = assert!(MAX_SUMS == crate::ops::MAX_SUMS);
/// Maximum number of rows; with more rows, the tiles of a matrix product are better filled.
const MAX_ROWS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
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
    store_y: u32,
    start: [u32; SLOTS],
    len: [u32; SLOTS],
    rank: [u32; SLOTS],
    first: [u32; SLOTS],
    scale: [f32; SLOTS],
    sums: u32,
    sum_start: [u32; MAX_SUMS],
    sum_len: [u32; MAX_SUMS],
    addend_stride: [u32; MAX_SUMS],
    sum_stride: [u32; MAX_SUMS],
}

/// The adapters of a product.
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

/// Returns the number of rows that a threadgroup processes, one of those that kernels exist for.
fn rows(m: usize) -> usize {
    match m {
        1 => 1,
        2..=4 => 4,
        _ => MAX_ROWS,
    }
}

/// Returns true if this kernel computes products of so many rows.
pub(super) fn takes_rows(m: usize) -> bool {
    m <= MAX_ROWS
}

/// Returns true if this kernel computes the product of x `[m, k]` and W, stored either way.
pub(super) fn takes(x: &Tensor, w: &Tensor, m: usize) -> bool {
    takes_rows(m)
        && x.layout.row_stride().is_some()
        && w.layout.shape.rank() == 2
        && w.layout.row_stride().is_some()
}

/// `to = y[:, start..] + addend`.
pub(super) struct Sum {
    pub(super) start: usize,
    pub(super) addend: Tensor,
    pub(super) to: Tensor,
}

/// What is computed from the result y.
pub(super) enum Results {
    None,
    /// Destination of silu(gate)·up of the two halves of y.
    Gate(Tensor),
    /// Sums of columns of y, at most [`MAX_SUMS`].
    Sums(Vec<Sum>),
}

/// Adds the dispatch of y = x·Wᵀ, with adapters if there are any, and of what is computed from y. Without `y` the product is
/// not stored.
pub(super) fn push(
    x: &Tensor,
    w: &Tensor,
    y: Option<&Tensor>,
    adapters: Option<Adapters<'_>>,
    results: &Results,
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
        y_stride: as_u32(y.map_or(n, |y| y.row_stride())),
        store_y: u32::from(y.is_some()),
        ..Sizes::zeroed()
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
    launch = launch.write_or(y, x.first());
    let gated = match results {
        Results::Gate(gated) => {
            (sizes.halves, sizes.gated_stride) = (as_u32(n / 2), as_u32(gated.row_stride()));
            Some(gated)
        }
        _ => None,
    };
    launch = launch.write_or(gated, x.first());
    let sums: &[Sum] = if let Results::Sums(sums) = results { sums } else { &[] };
    sizes.sums = as_u32(sums.len());
    for (i, sum) in sums.iter().enumerate() {
        (sizes.sum_start[i], sizes.sum_len[i]) = (as_u32(sum.start), as_u32(sum.to.last()));
        sizes.addend_stride[i] = as_u32(sum.addend.layout.strides[0]);
        sizes.sum_stride[i] = as_u32(sum.to.row_stride());
    }
    for i in 0..MAX_SUMS {
        launch = match sums.get(i) {
            Some(sum) => launch.read(&sum.addend),
            None => launch.unused(x.first()),
        };
    }
    for i in 0..MAX_SUMS {
        launch = launch.write_or(sums.get(i).map(|sum| &sum.to), x.first());
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
