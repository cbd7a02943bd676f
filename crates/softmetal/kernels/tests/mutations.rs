//! Kernels with a planted mistake: every one is found out by a wrong value or a fault within five orders of threads, and
//! the kernel without it is right in all of them.

mod harness;

use harness::*;
use softmetal_kernels::{Argument, Fault, Pipeline};

/// A kernel with inputs for which its result is known.
struct Subject {
    source: &'static str,
    name: &'static str,
    run: fn(&Pipeline, u64) -> Result<Vec<f32>, Fault>,
    expected: fn() -> Vec<f32>,
    /// What is replaced by what; each must occur once.
    mutations: &'static [(&'static str, &'static str)],
}

const ROWS: usize = 3;
const WIDTH: usize = 100;

fn rows(p: &Pipeline, x: &mut [f32], threads: u32, seed: u64) -> Result<Vec<f32>, Fault> {
    let mut y = vec![f32::NAN; x.len()];
    let arguments = [buffer(x), buffer(&mut y), bytes(WIDTH as u32)];
    run_with(p, &arguments, &[], [ROWS as u32 * threads, 1, 1], [threads, 1, 1], seed)?;
    Ok(y)
}

fn input() -> Vec<f32> {
    numbers(ROWS * WIDTH, 5).iter().map(|x| 3.0 * x).collect()
}

const SOFTMAX: Subject = Subject {
    source: "kernel void softmax(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
        constant uint& n [[buffer(2)]], uint row [[threadgroup_position_in_grid]],
        uint lane [[thread_position_in_threadgroup]]) {
        threadgroup float part[64];
        float most = -INFINITY;
        for (uint i = lane; i < n; i += 64) most = max(most, x[row * n + i]);
        part[lane] = most;
        threadgroup_barrier(mem_flags::mem_threadgroup); // first
        for (uint i = 0; i < 64; i++) most = max(most, part[i]);
        threadgroup_barrier(mem_flags::mem_threadgroup); // second
        float sum = 0;
        for (uint j = lane; j < n; j += 64) sum += exp(x[row * n + j] - most);
        part[lane] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup); // third
        sum = 0;
        for (uint i = 0; i < 64; i++) sum += part[i];
        for (uint k = lane; k < n; k += 64) y[row * n + k] = exp(x[row * n + k] - most) / sum;
    }",
    name: "softmax",
    run: |p, seed| rows(p, &mut input(), 64, seed),
    expected: || {
        let softmax = |row: &[f32]| {
            let sum: f32 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(|x| x.exp() / sum).collect::<Vec<f32>>()
        };
        input().chunks(WIDTH).flat_map(softmax).collect()
    },
    mutations: &[
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // first", ""),
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // second", ""),
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // third", ""),
        ("for (uint i = lane; i < n;", "for (uint i = lane; i <= n;"),
        ("for (uint j = lane; j < n;", "for (uint j = lane + 1; j < n;"),
        ("for (uint k = lane; k < n;", "for (uint k = lane; k + 1 < n;"),
        ("for (uint k = lane; k < n; k += 64)", "for (uint k = lane; k < n; k += 128)"),
        ("y[row * n + k] = exp(x[row * n + k] - most)", "y[row * n + k] = exp2(x[row * n + k] - most)"),
        ("part[lane] = sum;", "part[lane / 2] = sum;"),
        ("sum = 0;\n        for (uint i = 0; i < 64; i++) sum", "for (uint i = 0; i < 64; i++) sum"),
    ],
};

const RMS_NORM: Subject = Subject {
    source: "kernel void rms_norm(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
        constant uint& n [[buffer(2)]], uint row [[threadgroup_position_in_grid]],
        uint lane [[thread_position_in_threadgroup]], uint in_group [[thread_index_in_simdgroup]],
        uint group [[simdgroup_index_in_threadgroup]]) {
        threadgroup float part[4];
        float sum = 0;
        for (uint i = lane; i < n; i += 128) sum += x[row * n + i] * x[row * n + i];
        sum = simd_sum(sum);
        if (in_group == 0) part[group] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum = part[0] + part[1] + part[2] + part[3];
        float scale = rsqrt(sum / n + 1e-5f);
        for (uint k = lane; k < n; k += 128) y[row * n + k] = x[row * n + k] * scale;
    }",
    name: "rms_norm",
    run: |p, seed| rows(p, &mut input(), 128, seed),
    expected: || {
        let norm = |row: &[f32]| {
            let mean: f32 = row.iter().map(|x| x * x).sum::<f32>() / WIDTH as f32;
            row.iter().map(|x| x / (mean + 1e-5).sqrt()).collect::<Vec<f32>>()
        };
        input().chunks(WIDTH).flat_map(norm).collect()
    },
    mutations: &[
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        ("if (in_group == 0) part[group] = sum;", "if (in_group == 0) part[group + 1] = sum;"),
        ("if (in_group == 0) part[group] = sum;", "if (lane == 0) part[group] = sum;"),
        ("sum = simd_sum(sum);", "sum = simd_max(sum);"),
        ("sum = simd_sum(sum);", "sum = simd_shuffle_xor(sum, 1);"),
        ("part[2] + part[3]", "part[2] + part[2]"),
        ("sum / n + 1e-5f", "sum / n + 1e-1f"),
        ("uint lane [[thread_position_in_threadgroup]]", "uint lane [[thread_position_in_grid]]"),
    ],
};

/// Sides of the tiled product.
const SIDE: usize = 32;

const PRODUCT: Subject = Subject {
    source: "kernel void product(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
        device float* c [[buffer(2)]], uint2 at [[thread_position_in_grid]],
        uint2 in [[thread_position_in_threadgroup]]) {
        threadgroup float left[8][8];
        threadgroup float right[8][8];
        float sum = 0;
        for (uint k = 0; k < 32; k += 8) {
            left[in.y][in.x] = a[at.y * 32 + k + in.x];
            right[in.y][in.x] = b[(k + in.y) * 32 + at.x];
            threadgroup_barrier(mem_flags::mem_threadgroup); // loaded
            for (uint l = 0; l < 8; l++) sum += left[in.y][l] * right[l][in.x];
            threadgroup_barrier(mem_flags::mem_threadgroup); // used
        }
        c[at.y * 32 + at.x] = sum;
    }",
    name: "product",
    run: |p, seed| {
        let (mut a, mut b) = (numbers(SIDE * SIDE, 1), numbers(SIDE * SIDE, 2));
        let mut c = vec![f32::NAN; SIDE * SIDE];
        let arguments: [Argument; 3] = [buffer(&mut a), buffer(&mut b), buffer(&mut c)];
        run_with(p, &arguments, &[], [SIDE as u32, SIDE as u32, 1], [8, 8, 1], seed)?;
        Ok(c)
    },
    expected: || {
        let (a, b) = (numbers(SIDE * SIDE, 1), numbers(SIDE * SIDE, 2));
        let element = |i: usize| (0..SIDE).map(|l| a[i / SIDE * SIDE + l] * b[l * SIDE + i % SIDE]).sum();
        (0..SIDE * SIDE).map(element).collect()
    },
    mutations: &[
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // loaded", ""),
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // used", ""),
        ("for (uint l = 0; l < 8; l++)", "for (uint l = 0; l < 7; l++)"),
        ("for (uint k = 0; k < 32; k += 8)", "for (uint k = 0; k < 40; k += 8)"),
        ("right[l][in.x]", "right[in.x][l]"),
        ("left[in.y][in.x] = a", "left[in.x][in.y] = a"),
        ("threadgroup float right[8][8];", "threadgroup float right[8][7];"),
    ],
};

/// The first of five orders of threads that gives a wrong value or a fault.
fn found_out(subject: &Subject, source: &str) -> Option<String> {
    let p = kernel(source, subject.name);
    let expected = (subject.expected)();
    (0..5).find_map(|seed| match (subject.run)(&p, seed) {
        Err(fault) => Some(format!("seed {seed}: {fault}")),
        Ok(found) => {
            // Sums of up to 128 terms in another order; a NaN is never near.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            let wrong = found.iter().zip(&expected).position(|pair| !near(pair));
            wrong.map(|at| format!("seed {seed}: element {at} is {}, must be {}", found[at], expected[at]))
        }
    })
}

#[test]
fn every_mutation_is_found_out_and_no_kernel_without_one() {
    let mut count = 0;
    for subject in [SOFTMAX, RMS_NORM, PRODUCT] {
        assert_eq!(found_out(&subject, subject.source), None, "{} as it is", subject.name);
        for (from, to) in subject.mutations {
            assert_eq!(subject.source.matches(from).count(), 1, "{}: {from}", subject.name);
            let mutant = subject.source.replace(from, to);
            let how = found_out(&subject, &mutant);
            println!("{}: {from} -> {to}: {how:?}", subject.name);
            assert!(how.is_some(), "{}: {from} -> {to} is not found out", subject.name);
            count += 1;
        }
    }
    assert!(count >= 20, "{count} mutations");
}
