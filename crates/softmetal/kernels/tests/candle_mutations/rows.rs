//! Kernels in which a threadgroup reduces a row: softmax, norms, sum, position of the largest.

use softmetal_kernels::{Argument, Fault, Pipeline};

use super::harness::*;
use super::{Mutation, Subject};

pub(crate) const SUBJECTS: [Subject; 5] = [SOFTMAX, RMS_NORM, LAYER_NORM, SUM, ARGMAX];

const ROWS: usize = 3;
const WIDTH: usize = 300;

/// Large enough for a norm to show whether it is there.
const EPSILON: f32 = 0.1;

fn input() -> Vec<f32> {
    numbers(ROWS * WIDTH, 7)
}

/// Runs a kernel that takes the number of elements, the width, the input, the output and `more`.
fn rows(p: &Pipeline, more: &[Argument], seed: u64) -> Result<Vec<f32>, Fault> {
    let (mut x, mut y) = (input(), vec![f32::NAN; ROWS * WIDTH]);
    let head = [bytes((ROWS * WIDTH) as u32), bytes(WIDTH as u32), buffer(&mut x), buffer(&mut y)];
    let arguments = [&head[..], more].concat();
    run_with(p, &arguments, &[], [128 * ROWS as u32, 1, 1], [128, 1, 1], seed)?;
    Ok(y)
}

/// `row` of each row of the input, in f64.
fn each_row(row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f32> {
    let x: Vec<f64> = input().into_iter().map(f64::from).collect();
    x.chunks(WIDTH).flat_map(|x| row(x).into_iter().map(|y| y as f32)).collect()
}

const SOFTMAX: Subject = Subject {
    file: "reduce.metal",
    kernel: "softmax_f32",
    constants: &[],
    left_out: &["impl_", "ROPE(", "softmax_case(", "rms_norm_case(", "layer_norm_case(", "CASE_MACRO("],
    kept: &["(softmax_f32", " 128)"],
    run: |p, seed| rows(p, &[], seed),
    expected: || {
        each_row(|x| {
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            x.iter().map(|x| x.exp() / sum).collect()
        })
    },
    // Values below 0.01: this is a relative error of 1e-4, where sums of 300 roundings of 2^-24 give 2e-5.
    tolerance: 1e-6,
    mutations: &[
        Mutation(
            "the barrier after the first store removed",
            "written to shared memory\n            threadgroup_barrier(mem_flags::mem_none);",
            "written to shared memory",
            1,
        ),
        Mutation(
            "the barrier in the halving removed",
            "shared[tid + s]);\n            threadgroup_barrier(mem_flags::mem_none);",
            "shared[tid + s]);",
            1,
        ),
        Mutation(
            "the barrier after the total removed",
            "md_total = md;\n    threadgroup_barrier(mem_flags::mem_none);",
            "md_total = md;",
            1,
        ),
        Mutation(
            "no rescale of the smaller sum",
            "smaller_m.d * fast_exp(smaller_m.m - bigger_m.m)",
            "smaller_m.d",
            1,
        ),
        Mutation("the wrong lane", "simd_shuffle_down(value,  4));", "simd_shuffle_down(value,  3));", 1),
        Mutation(
            "not divided by the sum",
            "fast_exp(src[idx] - md_total.m) * d_total_inverse",
            "fast_exp(src[idx] - md_total.m)",
            1,
        ),
        Mutation(
            "base 2 for e",
            "operator()(float  a) { return fast::exp(a); }",
            "operator()(float  a) { return fast::exp2(a); }",
            1,
        ),
        Mutation("bound: > for >=", "s >= 64; s >>= 1", "s > 64; s >>= 1", 1),
    ],
};

const RMS_NORM: Subject = Subject {
    kernel: "rmsnorm_f32",
    kept: &["(rmsnorm_f32", " 128)"],
    run: |p, seed| {
        let mut alpha = numbers(WIDTH, 8);
        rows(p, &[buffer(&mut alpha), bytes(EPSILON)], seed)
    },
    expected: || {
        let alpha = numbers(WIDTH, 8);
        each_row(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / WIDTH as f64;
            let root = (mean + f64::from(EPSILON)).sqrt();
            x.iter().zip(&alpha).map(|(x, a)| x / root * f64::from(*a)).collect()
        })
    },
    // A sum of 300 squares in another order, of which the root is taken.
    tolerance: 1e-5,
    mutations: &[
        Mutation("epsilon dropped", "float(el_per_block)) + eps);", "float(el_per_block)));", 1),
        Mutation("a sum, not of squares", "a.sum_sq += (b.sum_sq * b.sum_sq);", "a.sum_sq += b.sum_sq;", 1),
        Mutation("weights of the wrong column", "val *= alpha[i - offset];", "val *= alpha[i];", 1),
        Mutation(
            "the barrier after the total removed",
            "float(el_per_block)) + eps);\n    }\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
            "float(el_per_block)) + eps);\n    }",
            1,
        ),
    ],
    ..SOFTMAX
};

const LAYER_NORM: Subject = Subject {
    kernel: "layernorm_f32",
    kept: &["(layernorm_f32", " 128)"],
    run: |p, seed| {
        let (mut alpha, mut beta) = (numbers(WIDTH, 8), numbers(WIDTH, 9));
        rows(p, &[buffer(&mut alpha), buffer(&mut beta), bytes(EPSILON)], seed)
    },
    expected: || {
        let (alpha, beta) = (numbers(WIDTH, 8), numbers(WIDTH, 9));
        each_row(|x| {
            let mean = x.iter().sum::<f64>() / WIDTH as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let root = (variance + f64::from(EPSILON)).sqrt();
            let scaled = |(i, x): (usize, &f64)| (x - mean) / root * f64::from(alpha[i]) + f64::from(beta[i]);
            x.iter().enumerate().map(scaled).collect()
        })
    },
    mutations: &[
        Mutation(
            "the difference to the old mean twice",
            "a.m2 += delta1 * delta2;",
            "a.m2 += delta1 * delta1;",
            1,
        ),
        Mutation("the wrong part's share", "b.count / T(new_count);", "a.count / T(new_count);", 1),
        Mutation(
            "the barrier after the mean removed",
            "float(result.count)) + eps);\n    }\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
            "float(result.count)) + eps);\n    }",
            1,
        ),
    ],
    ..RMS_NORM
};

/// Runs a kernel that takes sizes and shape, and gives one value a row.
fn one_each<T: Copy>(p: &Pipeline, y: &mut [T; ROWS], seed: u64) -> Result<(), Fault> {
    let mut x = input();
    let sizes = [bytes((ROWS * WIDTH) as u32), bytes(2u32), bytes([ROWS as u32, WIDTH as u32])];
    let arguments = [&sizes[..], &[bytes(WIDTH as u32), buffer(&mut x), buffer(y)]].concat();
    run_with(p, &arguments, &[], [128 * ROWS as u32, 1, 1], [128, 1, 1], seed).map(drop)
}

const SUM: Subject = Subject {
    kernel: "fast_sum_f32",
    kept: &["fast_sum_f32", "(OP, NAME, T)", " 128,"],
    run: |p, seed| {
        let mut y = [f32::NAN; ROWS];
        one_each(p, &mut y, seed)?;
        Ok(y.to_vec())
    },
    expected: || each_row(|x| vec![x.iter().sum()]),
    mutations: &[
        Mutation("the wrong partner", "shared[tid + 32]);", "shared[tid + 31]);", 1),
        Mutation("half of the lanes", "if (tid < 32) {", "if (tid < 16) {", 1),
        Mutation(
            "the second element of a row first",
            "const IndexT idx = tid + offset;",
            "const IndexT idx = tid + offset + 1;",
            2,
        ),
    ],
    ..RMS_NORM
};

const ARGMAX: Subject = Subject {
    kernel: "fast_argmax_f32",
    kept: &["fast_argmax_f32", "(OP, NAME, T)", " 128,"],
    run: |p, seed| {
        let mut y = [u32::MAX; ROWS];
        one_each(p, &mut y, seed)?;
        Ok(y.map(|y| y as f32).to_vec())
    },
    expected: || {
        each_row(|x| {
            let largest = (0..WIDTH).max_by(|a, b| x[*a].total_cmp(&x[*b]));
            vec![largest.unwrap_or(WIDTH) as f64]
        })
    },
    tolerance: 0.0,
    mutations: &[
        Mutation("the index within the tensor", "i % indexer.last_dim);", "i);", 1),
        Mutation("the smallest", "return lhs.val > rhs.val ||", "return lhs.val < rhs.val ||", 1),
    ],
    ..SUM
};
