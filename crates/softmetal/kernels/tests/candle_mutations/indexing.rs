//! Kernels that look elements up: index, gather, index-add, argsort, rope, columns of images.

use super::harness::*;
use super::{Mutation, Subject};

pub(crate) const SUBJECTS: [Subject; 6] = [INDEX, GATHER, INDEX_ADD, ARGSORT, ROPE, IM2COL];

// A tensor of LEFT x ROWS x RIGHT, indexed along ROWS.
const LEFT: usize = 2;
const ROWS: usize = 5;
const RIGHT: usize = 7;

/// An index beyond the last, which candle takes for the last.
const IDS: [u32; 4] = [3, 0, 9, 3];

const LIBRARY: &[&str] = &["INDEX_OP(", "GATHER_OP(", "SCATTER_OP(", "SCATTER_ADD_OP(", "INDEX_ADD_OP("];

const INDEX: Subject = Subject {
    file: "indexing.metal",
    kernel: "is_u32_f32",
    constants: &[],
    left_out: LIBRARY,
    kept: &["(is_u32_f32,"],
    run: |p, seed| {
        let size = LEFT * IDS.len() * RIGHT;
        let (mut x, mut ids, mut y) = (numbers(LEFT * ROWS * RIGHT, 1), IDS, vec![f32::NAN; size]);
        let sizes = [size, LEFT, ROWS, RIGHT, IDS.len()].map(bytes);
        let strides = [bytes(true), bytes([LEFT, ROWS, RIGHT]), bytes([ROWS * RIGHT, RIGHT, 1])];
        let arguments = [&sizes[..], &strides, &[buffer(&mut x), buffer(&mut ids), buffer(&mut y)]].concat();
        run_with(p, &arguments, &[], [64, 1, 1], [32, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let x = numbers(LEFT * ROWS * RIGHT, 1);
        let row = |left: usize, id: u32| (left * ROWS + (id as usize).min(ROWS - 1)) * RIGHT;
        let rows = (0..LEFT).flat_map(|left| IDS.map(|id| row(left, id)));
        rows.flat_map(|at| x[at..at + RIGHT].to_vec()).collect()
    },
    tolerance: 0.0,
    mutations: &[
        Mutation("the last row is one too far", "(src_dim_size - 1)", "(src_dim_size)", 1),
        Mutation("index of the wrong element", "(tid / right_size) % ids_size;", "tid % ids_size;", 1),
        Mutation(
            "wrong stride",
            "left_rank_i * src_dim_size * right_size + input_i",
            "left_rank_i * ids_size * right_size + input_i",
            1,
        ),
    ],
};

const GATHER: Subject = Subject {
    kernel: "gather_u32_f32",
    kept: &["(gather_u32_f32,"],
    run: |p, seed| {
        let size = LEFT * IDS.len() * RIGHT;
        let mut ids: Vec<u32> = (0..size).map(gathered).collect();
        let (mut x, mut y) = (numbers(LEFT * ROWS * RIGHT, 1), vec![f32::NAN; size]);
        let sizes = [size, LEFT, ROWS, RIGHT, IDS.len()].map(bytes);
        let arguments = [&sizes[..], &[buffer(&mut x), buffer(&mut ids), buffer(&mut y)]].concat();
        run_with(p, &arguments, &[], [64, 1, 1], [32, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let x = numbers(LEFT * ROWS * RIGHT, 1);
        let at = |i: usize| (i / RIGHT / IDS.len() * ROWS + gathered(i) as usize) * RIGHT + i % RIGHT;
        (0..LEFT * IDS.len() * RIGHT).map(|i| x[at(i)]).collect()
    },
    mutations: &[
        Mutation(
            "one index for all columns",
            "input_i = input_ids[tid];",
            "input_i = input_ids[tid / right_size];",
            1,
        ),
        Mutation(
            "wrong stride",
            "(left_rank_i * src_dim_size + input_i) * right_size",
            "(left_rank_i + src_dim_size * input_i) * right_size",
            1,
        ),
    ],
    ..INDEX
};

fn gathered(i: usize) -> u32 {
    (i * 3 % ROWS) as u32
}

const INDEX_ADD: Subject = Subject {
    kernel: "ia_u32_f32",
    kept: &["(ia_u32_f32,"],
    run: |p, seed| {
        // Rows 3 and 3 are both added to the same one.
        let (mut x, mut ids, mut y) = (numbers(LEFT * 4 * RIGHT, 1), [3u32, 0, 4, 3], vec![1f32; 70]);
        let sizes = [LEFT * RIGHT, LEFT, 4, RIGHT, ROWS, ids.len()].map(bytes);
        let arguments = [&sizes[..], &[buffer(&mut x), buffer(&mut ids), buffer(&mut y)]].concat();
        run_with(p, &arguments, &[], [32, 1, 1], [32, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let (x, mut y) = (numbers(LEFT * 4 * RIGHT, 1), vec![1f32; 70]);
        for (i, x) in x.iter().enumerate() {
            y[(i / RIGHT / 4 * ROWS + [3, 0, 4, 3][i / RIGHT % 4]) * RIGHT + i % RIGHT] += x;
        }
        y
    },
    mutations: &[
        Mutation("set, not added", "output[dst_i] += input[src_i];", "output[dst_i] = input[src_i];", 2),
        Mutation("bound: <= for <", "j < ids_dim_size;", "j <= ids_dim_size;", 1),
    ],
    ..INDEX
};

const COLUMNS: usize = 11;

const ARGSORT: Subject = Subject {
    file: "sort.metal",
    kernel: "asort_asc_f32",
    constants: &[],
    left_out: &["ARGSORT("],
    kept: &["ARGSORT(float"],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(3 * COLUMNS, 6), vec![u32::MAX; 3 * COLUMNS]);
        let arguments = [buffer(&mut x), buffer(&mut y), bytes(COLUMNS), bytes(16usize)];
        run_with(p, &arguments, &[64], [16, 3, 1], [16, 1, 1], seed)?;
        Ok(y.iter().map(|y| *y as f32).collect())
    },
    expected: || {
        let sorted = |row: &[f32]| {
            let mut order: Vec<usize> = (0..COLUMNS).collect();
            order.sort_by(|a, b| row[*a].total_cmp(&row[*b]));
            order.into_iter().map(|i| i as f32).collect::<Vec<f32>>()
        };
        numbers(3 * COLUMNS, 6).chunks(COLUMNS).flat_map(sorted).collect()
    },
    tolerance: 0.0,
    mutations: &[
        Mutation(
            "the barrier after the first values removed",
            "dst_row[col] = col;\n\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
            "dst_row[col] = col;",
            1,
        ),
        Mutation(
            "the barrier between steps removed",
            "            threadgroup_barrier(mem_flags::mem_threadgroup);",
            "",
            1,
        ),
        Mutation("bound: < for <=", "k <= ncols_pad", "k < ncols_pad", 1),
        Mutation("the padding is stored", "if (col < ncols) {", "if (col <= ncols) {", 1),
        Mutation("the other partner", "int ixj = col ^ j;", "int ixj = col ^ k;", 1),
    ],
};

// Two heads of six positions of eight.
const POSITIONS: usize = 6;
const SIZE: usize = 8;

const ROPE: Subject = Subject {
    file: "reduce.metal",
    kernel: "rope_f32",
    constants: &[],
    left_out: &["impl_", "ROPE("],
    kept: &["ROPE(rope_f32"],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(2 * POSITIONS * SIZE, 1), vec![f32::NAN; 2 * POSITIONS * SIZE]);
        let (mut cos, mut sin) = (numbers(POSITIONS * SIZE / 2, 2), numbers(POSITIONS * SIZE / 2, 3));
        let sizes = [2, POSITIONS * SIZE, SIZE, 0].map(bytes);
        let values = [buffer(&mut x), buffer(&mut cos), buffer(&mut sin), buffer(&mut y)];
        run_with(p, &[&sizes[..], &values].concat(), &[], [64, 1, 1], [64, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let x = numbers(2 * POSITIONS * SIZE, 1);
        let (cos, sin) = (numbers(POSITIONS * SIZE / 2, 2), numbers(POSITIONS * SIZE / 2, 3));
        let element = |i: usize| {
            let (at, half) = (i / SIZE % POSITIONS * SIZE / 2 + i % (SIZE / 2), SIZE / 2);
            if i % SIZE < half {
                x[i] * cos[at] - x[i + half] * sin[at]
            } else {
                x[i - half] * sin[at] + x[i] * cos[at]
            }
        };
        (0..x.len()).map(element).collect()
    },
    // Two products and a sum, which may be fused.
    tolerance: 1e-6,
    mutations: &[
        Mutation(
            "the neighbour, not the other half",
            "    size_t i2 = i1 + d / 2;",
            "    size_t i2 = i1 + 1;",
            1,
        ),
        Mutation(
            "the wrong sign",
            "dst[i1] = src[i1] * c - src[i2] * s;",
            "dst[i1] = src[i1] * c + src[i2] * s;",
            2,
        ),
        Mutation(
            "one angle for all positions",
            "    size_t i_cs = i_t * (d / 2) + i_d;\n    if (stride_b > 0) {\n      size_t",
            "    size_t i_cs = i_d;\n    if (stride_b > 0) {\n      size_t",
            1,
        ),
    ],
};

// An image of two channels, 5 x 4; a kernel of 3 x 2 with a dilation, two steps apart, one pixel of padding.
const IMAGE: [usize; 4] = [1, 2, 5, 4];
const KERNEL: [usize; 2] = [3, 2];
const STRIDE: usize = 2;
const DILATION: usize = 2;

/// Height and width of what a kernel gives, which is also how many columns there are.
fn output() -> [usize; 2] {
    [0, 1].map(|i| (IMAGE[2 + i] + 2 - DILATION * (KERNEL[i] - 1) - 1) / STRIDE + 1)
}

const IM2COL: Subject = Subject {
    file: "conv.metal",
    kernel: "im2col_f32",
    constants: &[],
    left_out: &[
        "IM2COL_OP(",
        "IM2COL1D_OP(",
        "COL2IM1D_OP(",
        "UPSAMPLE_",
        "MAXPOOL2D_OP(",
        "AVGPOOL2D_OP(",
        "CONVT",
    ],
    kept: &["im2col_f32"],
    run: |p, seed| {
        let [h, w] = output();
        let size = h * w * IMAGE[1] * KERNEL[0] * KERNEL[1];
        let (mut x, mut y) = (numbers(40, 1), vec![f32::NAN; size]);
        let sizes = [size, h, w, KERNEL[0], KERNEL[1], STRIDE, 1, DILATION].map(bytes);
        let rest = [bytes(IMAGE), bytes([40usize, 20, 4, 1]), buffer(&mut x), buffer(&mut y)];
        run_with(p, &[&sizes[..], &rest].concat(), &[], [128, 1, 1], [64, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let (x, [h, w]) = (numbers(40, 1), output());
        let mut y = Vec::new();
        for i in 0..h * w * IMAGE[1] * KERNEL[0] * KERNEL[1] {
            let (column, row) = (i % KERNEL[1], i / KERNEL[1] % KERNEL[0]);
            let (channel, place) =
                (i / KERNEL[1] / KERNEL[0] % IMAGE[1], i / KERNEL[1] / KERNEL[0] / IMAGE[1]);
            let at = |step: usize, inside: usize| (step * STRIDE + inside * DILATION).wrapping_sub(1);
            let (up, left) = (at(place / w, row), at(place % w, column));
            let within = up < IMAGE[2] && left < IMAGE[3];
            y.push(if within { x[channel * 20 + up * 4 + left] } else { 0.0 });
        }
        y
    },
    tolerance: 0.0,
    mutations: &[
        Mutation("bound: > for >=", "src_h_idx >= h_in + padding", "src_h_idx > h_in + padding", 1),
        Mutation("dilation dropped", "h_idx * stride + h_k_idx * dilation", "h_idx * stride + h_k_idx", 1),
        Mutation("padding not taken off", "    src_h_idx -= padding;\n", "", 1),
    ],
};
