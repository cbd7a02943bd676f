//! Attention of one query over the keys before it.

use super::harness::*;
use super::{Mutation, Subject};

pub(crate) const SUBJECTS: [Subject; 1] = [SDPA];

const HEADS: usize = 4;
const KEYS: usize = 45;
const SIZE: usize = 64;

/// Keys or values: two heads, each for two heads of queries.
fn pair(seed: u32) -> Vec<f32> {
    numbers(2 * KEYS * SIZE, seed)
}

const SDPA: Subject = Subject {
    file: "scaled_dot_product_attention.metal",
    kernel: "sdpa_vector_float_64",
    constants: &[(20, &[0])],
    left_out: &["instantiate_attn", "instantiate_sdpa_vector"],
    kept: &["(float)", "(type, 64)"],
    run: |p, seed| {
        let (mut q, mut k, mut v) = (numbers(HEADS * SIZE, 1), pair(2), pair(3));
        let mut out = vec![f32::NAN; HEADS * SIZE];
        let values = [buffer(&mut q), buffer(&mut k), buffer(&mut v), buffer(&mut out)];
        let sizes = [bytes(2i32), bytes(KEYS as i32), bytes(KEYS * SIZE), bytes(KEYS * SIZE)];
        let arguments = [&values[..], &sizes, &[bytes(0.3f32), bytes(1f32)]].concat();
        run_with(p, &arguments, &[], [1024, HEADS as u32, 1], [1024, 1, 1], seed)?;
        Ok(out)
    },
    expected: || {
        let (q, k, v) = (numbers(HEADS * SIZE, 1), pair(2), pair(3));
        let mut out = Vec::new();
        for head in 0..HEADS {
            let at = |i: usize| (head / 2 * KEYS + i) * SIZE;
            let term = |i: usize, j: usize| f64::from(q[head * SIZE + j]) * f64::from(k[at(i) + j]);
            let score = |i: usize| 0.3 * (0..SIZE).map(|j| term(i, j)).sum::<f64>();
            let weights: Vec<f64> = (0..KEYS).map(|i| score(i).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |j: usize| (0..KEYS).map(|i| weights[i] * f64::from(v[at(i) + j])).sum::<f64>() / sum;
            out.extend((0..SIZE).map(|j| value(j) as f32));
        }
        out
    },
    // Scores of 64 products, up to 20: their roundings (2^-24 x 20) become relative errors of the weights.
    tolerance: 1e-5,
    mutations: &[
        Mutation("the wrong lane's maximum", "= max_scores[simd_lid];", "= max_scores[simd_gid];", 1),
        Mutation(
            "no rescale of the sum so far",
            "o[j] = o[j] * factor + exp_score * values[j];",
            "o[j] = o[j] + exp_score * values[j];",
            1,
        ),
        Mutation(
            "bound: <= for <",
            "for (int i = simd_gid; i < N; i += BN) {",
            "for (int i = simd_gid; i <= N; i += BN) {",
            1,
        ),
        Mutation(
            "tile not transposed",
            "outputs[simd_lid * BD + simd_gid] = o[i];",
            "outputs[simd_gid * BD + simd_lid] = o[i];",
            2,
        ),
        Mutation("keys of the wrong head", "head_idx / gqa_factor;", "head_idx % gqa_factor;", 2),
        Mutation("scale dropped", "static_cast<U>(scale) * queries[i];", "queries[i];", 2),
        Mutation(
            "the barrier after the maxima removed",
            "threadgroup_barrier(mem_flags::mem_threadgroup);\n  max_score = max_scores[simd_lid];",
            "max_score = max_scores[simd_lid];",
            1,
        ),
        Mutation(
            "the barrier before reading a tile removed",
            "= o[i];\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
            "= o[i];",
            2,
        ),
    ],
};
