//! Products of matrices: MLX's tiles of SIMD-group matrices, ggml's quantized blocks with a vector.

use softmetal_kernels::{Argument, Fault, Pipeline};

use super::harness::*;
use super::{Mutation, Subject};

pub(crate) const SUBJECTS: [Subject; 3] = [GEMM, Q4_0, Q8_0];

// No multiple of the tiles of 32 x 32 x 16; with K = 38, some thread's vector of 4 crosses the edge.
const M: usize = 40;
const N: usize = 37;
const K: usize = 38;

/// candle's parameters of the product, as the kernel lays them out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    sizes: [i32; 3],
    leading: [i32; 3],
    tiles: [i32; 2],
    batch_strides: [i64; 3],
    swizzle_log: i32,
    iterations: i32,
    batch_dims: i32,
    padding: i32,
}

const OFF: &[u8] = &[0];

const GEMM: Subject = Subject {
    file: "mlx_gemm.metal",
    kernel: "gemm_nn_f32_f32_32_32_16_2_2",
    constants: &[(10, OFF), (100, OFF), (110, OFF), (200, OFF), (201, OFF), (202, OFF), (300, OFF)],
    left_out: &["instantiate_gemm"],
    kept: &["(nn,", "(f32, float, f32, float, 32, 32, 16, 2, 2)"],
    run: |p, seed| {
        let (mut a, mut b, mut c) = (numbers(M * K, 1), numbers(K * N, 2), vec![f32::NAN; M * N]);
        let params = Params {
            sizes: [M as i32, N as i32, K as i32],
            leading: [K as i32, N as i32, N as i32],
            tiles: [2, 2],
            batch_strides: [0; 3],
            swizzle_log: 0,
            iterations: (K / 16) as i32,
            batch_dims: 1,
            padding: 0,
        };
        let none = Argument::Unset;
        let values = [buffer(&mut a), buffer(&mut b), none.clone(), buffer(&mut c), bytes(params), none];
        let arguments = [&values[..], &[bytes(1i32), bytes([0i64; 2])]].concat();
        run_with(p, &arguments, &[], [32 * 2, 2 * 2, 2], [32, 2, 2], seed)?;
        Ok(c)
    },
    expected: || {
        let (a, b) = (numbers(M * K, 1), numbers(K * N, 2));
        let term = |i: usize, j: usize| f64::from(a[i / N * K + j]) * f64::from(b[j * N + i % N]);
        (0..M * N).map(|i| (0..K).map(|j| term(i, j)).sum::<f64>() as f32).collect()
    },
    // Sums of 38 products below 1 in float: 38 roundings of at most 2^-20.
    tolerance: 1e-5,
    mutations: &[
        Mutation(
            "the barrier after the load removed",
            "load_safe(tile_dims_B);\n      }\n\n      threadgroup_barrier(mem_flags::mem_threadgroup);",
            "load_safe(tile_dims_B);\n      }\n",
            1,
        ),
        Mutation(
            "the barrier before the next load removed",
            "threadgroup_barrier(mem_flags::mem_threadgroup);\n      // Load elements into threadgroup\n      if",
            "// Load elements into threadgroup\n      if",
            1,
        ),
        Mutation(
            "a fragment's second element is its first",
            "simd_stride_a + jump_a]);",
            "simd_stride_a + 0]);",
            1,
        ),
        Mutation("a fragment's columns by the wrong lane", "sn = (qid & 2) * 2", "sn = (qid & 2) * 1", 1),
        Mutation(
            "a fragment's rows by the wrong lane",
            "short qid = simd_lane_id / 4;",
            "short qid = simd_lane_id / 8;",
            1,
        ),
        Mutation("bound: <= for <, in the load", "&& (j < src_tile_dim.x)", "&& (j <= src_tile_dim.x)", 1),
        Mutation(
            "bound: <= for <, in the store",
            "j * TN_stride + 1 < dst_tile_dims.x",
            "j * TN_stride + 1 <= dst_tile_dims.x",
            2,
        ),
        Mutation(
            "the stride of the other side",
            "reduction_dim ? BCOLS : BROWS * src_ld",
            "reduction_dim ? BCOLS : BCOLS * src_ld",
            1,
        ),
        Mutation("no step between fragments", "As += tile_stride_a;", "", 1),
    ],
};

const HEIGHT: usize = 16;
const VECTORS: usize = 2;
/// Twenty blocks a row, so that some lanes take two.
const WIDTH: usize = 640;

/// The quantum of `row` and column `j`, from -8 to 7.
fn quantum(row: usize, j: usize) -> i8 {
    ((row * 5 + j * 3 + j / 7) % 16) as i8 - 8
}

/// Runs a product with blocks of 32 quanta that `pack` makes, each behind a scale in half of 1/8.
fn multiply(p: &Pipeline, seed: u64, pack: impl Fn(&[i8]) -> Vec<u8>) -> Result<Vec<f32>, Fault> {
    let mut a = Vec::new();
    for block in 0..HEIGHT * WIDTH / 32 {
        let quanta: Vec<i8> =
            (0..32).map(|j| quantum(block / (WIDTH / 32), block % (WIDTH / 32) * 32 + j)).collect();
        a.extend(0x3000u16.to_le_bytes());
        a.extend(pack(&quanta));
    }
    let (mut x, mut y) = (numbers(VECTORS * WIDTH, 2), vec![f32::NAN; VECTORS * HEIGHT]);
    let (row, all) = (a.len() / HEIGHT, a.len());
    let sizes = [WIDTH, HEIGHT, 1, 1, row, all, WIDTH, VECTORS, 1, 4, 4 * WIDTH, 4 * WIDTH * VECTORS];
    let mut arguments = vec![buffer(&mut a), buffer(&mut x), buffer(&mut y)];
    arguments.extend(sizes.map(bytes));
    arguments.extend([bytes(HEIGHT), bytes(VECTORS), bytes(1u32), bytes(1u32)]);
    // A threadgroup of two SIMD groups takes eight rows.
    run_with(p, &arguments, &[], [8 * HEIGHT as u32 / 8, 8 * VECTORS as u32, 1], [8, 8, 1], seed)?;
    Ok(y)
}

const Q8_0: Subject = Subject {
    file: "quantized.metal",
    kernel: "kernel_mul_mv_q8_0_f32",
    constants: &[],
    left_out: &["template [[host_name("],
    kept: &[],
    run: |p, seed| multiply(p, seed, |quanta| quanta.iter().map(|q| *q as u8).collect()),
    expected: || {
        let x = numbers(VECTORS * WIDTH, 2);
        let term = |i: usize, j: usize| {
            f64::from(quantum(i % HEIGHT, j)) / 8.0 * f64::from(x[i / HEIGHT * WIDTH + j])
        };
        (0..VECTORS * HEIGHT).map(|i| (0..WIDTH).map(|j| term(i, j)).sum::<f64>() as f32).collect()
    },
    // Sums of 640 products below 1 in float: a few hundred roundings of at most 2^-20 that mostly cancel.
    tolerance: 1e-4,
    mutations: &[
        Mutation("the wrong lane of a block", "il = tiisg%4;", "il = tiisg%2;", 1),
        Mutation("a step too short", "yb += NB_Q8_0 * nw;", "yb += NB_Q8_0 * nw / 2;", 1),
        Mutation("scale dropped", "sumq*x[ib+row*nb].d;", "sumq;", 1),
    ],
};

const Q4_0: Subject = Subject {
    kernel: "kernel_mul_mv_q4_0_f32",
    // The first half of a block is in the low four bits.
    run: |p, seed| {
        let pair = |low: i8, high: i8| (low + 8) as u8 | ((high + 8) as u8) << 4;
        multiply(p, seed, |quanta| (0..16).map(|i| pair(quanta[i], quanta[i + 16])).collect())
    },
    mutations: &[
        Mutation("the wrong zero", "(sumy * -8.f + acc[0] + acc[1])", "(sumy * -7.f + acc[0] + acc[1])", 1),
        Mutation("a shift too short", "yb[i+17]/4096.f;", "yb[i+17]/256.f;", 1),
        Mutation(
            "the wrong half of a block",
            "const int il = (tiisg%2)*8;",
            "const int il = (tiisg%2)*4;",
            1,
        ),
        Mutation("blocks of the wrong lane", "const int ix = (tiisg/2);", "const int ix = (tiisg/4);", 1),
    ],
    ..Q8_0
};
