//! candle's own kernels with a planted mistake in each: every one is found out by a wrong value or a fault within five
//! orders of threads, and the kernels without it are right in all of them.

mod harness;

use harness::*;
use softmetal_kernels::{CompileOptions, Fault, Library, Pipeline};

/// A kernel of candle with inputs for which its result is known.
struct Subject {
    file: &'static str,
    name: &'static str,
    constants: &'static [(u32, &'static [u8])],
    run: fn(&Pipeline, u64) -> Result<Vec<f32>, Fault>,
    expected: fn() -> Vec<f32>,
    /// What is replaced by what, and how often it must occur in the file.
    mutations: &'static [(&'static str, &'static str, usize)],
}

const COUNT: usize = 60;

const AFFINE: Subject = Subject {
    file: "affine.metal",
    name: "affine_f32",
    constants: &[],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(COUNT, 4), vec![f32::NAN; COUNT]);
        let arguments = [bytes(COUNT), bytes(2.5f32), bytes(-1f32), buffer(&mut x), buffer(&mut y)];
        run_with(p, &arguments, &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y)
    },
    expected: || numbers(COUNT, 4).iter().map(|x| x.mul_add(2.5, -1.0)).collect(),
    mutations: &[
        ("const uint step = div_ceil<W>(dim);", "const uint step = div_ceil<W>(dim) + 1;", 3),
        ("fma(float(input[i]), mul, add)", "fma(float(input[i]), add, mul)", 1),
        ("i < dim; i += step", "i <= dim; i += step", 3),
    ],
};

const GELU: Subject = Subject {
    file: "unary.metal",
    name: "gelu_f32",
    constants: &[],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(COUNT, 1), vec![f32::NAN; COUNT]);
        run_with(p, &[bytes(COUNT), buffer(&mut x), buffer(&mut y)], &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let gelu = |x: f32| 0.5 * x * (1.0 + (0.797_884_6 * x * (1.0 + 0.044_715 * x * x)).tanh());
        numbers(COUNT, 1).iter().map(|x| gelu(*x)).collect()
    },
    mutations: &[
        ("static_cast<T>(0.044715)", "static_cast<T>(0.044175)", 2),
        ("T(precise::tanh(beta))", "T(precise::sinh(beta))", 2),
        (
            "T x_cube = x_sq * x;\n    T alpha = x + static_cast",
            "T x_cube = x_sq;\n    T alpha = x + static_cast",
            2,
        ),
    ],
};

const MUL: Subject = Subject {
    file: "binary.metal",
    name: "bmul_f32_strided",
    constants: &[],
    run: |p, seed| {
        let (mut a, mut b, mut c) = (numbers(COUNT, 1), numbers(10, 2), vec![f32::NAN; COUNT]);
        let shape =
            [bytes(COUNT), bytes(2usize), bytes([6usize, 10]), bytes([10usize, 1]), bytes([0usize, 1])];
        let arguments = [&shape[..], &[buffer(&mut a), buffer(&mut b), buffer(&mut c)]].concat();
        run_with(p, &arguments, &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(c)
    },
    expected: || {
        let (a, b) = (numbers(COUNT, 1), numbers(10, 2));
        a.iter().enumerate().map(|(i, a)| a * b[i % 10]).collect()
    },
    mutations: &[
        ("uint dim_idx = num_dims - 1 - d;", "uint dim_idx = d;", 1),
        ("idx /= dims[dim_idx];", "idx /= dims[0];", 1),
        ("(idx % dims[dim_idx]) * strides", "(idx % (dims[dim_idx] + 1)) * strides", 1),
    ],
};

const ROWS: usize = 3;
const WIDTH: usize = 100;

const SOFTMAX: Subject = Subject {
    file: "reduce.metal",
    name: "softmax_f32",
    constants: &[],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(ROWS * WIDTH, 7), vec![f32::NAN; ROWS * WIDTH]);
        let arguments = [bytes(ROWS * WIDTH), bytes(WIDTH), buffer(&mut x), buffer(&mut y)];
        run_with(p, &arguments, &[], [ROWS as u32 * 64, 1, 1], [64, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let softmax = |row: &[f32]| {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            row.iter().map(|v| (f64::from(*v).exp() / sum) as f32).collect::<Vec<f32>>()
        };
        numbers(ROWS * WIDTH, 7).chunks(WIDTH).flat_map(softmax).collect()
    },
    mutations: &[
        ("threadgroup_barrier(", "(void)(", 8),
        ("smaller_m.d * fast_exp(smaller_m.m - bigger_m.m)", "smaller_m.d", 1),
        (
            "value = op(value, simd_shuffle_down(value,  4));",
            "value = op(value, simd_shuffle_down(value,  3));",
            1,
        ),
        ("fast_exp(src[idx] - md_total.m) * d_total_inverse", "fast_exp(src[idx] - md_total.m)", 1),
    ],
};

const HEADS: usize = 4;
const KEYS: usize = 45;
const SIZE: usize = 64;

const SDPA: Subject = Subject {
    file: "scaled_dot_product_attention.metal",
    name: "sdpa_vector_float_64",
    constants: &[(20, &[0])],
    run: |p, seed| {
        let pair = |seed| numbers(2 * KEYS * SIZE, seed);
        let (mut q, mut k, mut v) = (numbers(HEADS * SIZE, 1), pair(2), pair(3));
        let mut out = vec![f32::NAN; HEADS * SIZE];
        let arguments = [
            buffer(&mut q),
            buffer(&mut k),
            buffer(&mut v),
            buffer(&mut out),
            bytes(2i32),
            bytes(KEYS as i32),
            bytes(KEYS * SIZE),
            bytes(KEYS * SIZE),
            bytes(0.3f32),
            bytes(1f32),
        ];
        run_with(p, &arguments, &[], [1024, HEADS as u32, 1], [1024, 1, 1], seed)?;
        Ok(out)
    },
    expected: || {
        let pair = |seed| numbers(2 * KEYS * SIZE, seed);
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
    mutations: &[
        ("max_score = max_scores[simd_lid];", "max_score = max_scores[simd_gid];", 1),
        ("o[j] = o[j] * factor + exp_score * values[j];", "o[j] = o[j] + exp_score * values[j];", 1),
        ("for (int i = simd_gid; i < N; i += BN) {", "for (int i = simd_gid; i <= N; i += BN) {", 1),
        ("outputs[simd_lid * BD + simd_gid] = o[i];", "outputs[simd_gid * BD + simd_lid] = o[i];", 2),
        (
            "const int kv_head_idx = head_idx / gqa_factor;",
            "const int kv_head_idx = head_idx % gqa_factor;",
            2,
        ),
        ("threadgroup_barrier(", "(void)(", 14),
    ],
};

/// The first of five orders of threads that gives a wrong value or a fault.
fn found_out(subject: &Subject, source: &str) -> Option<String> {
    let options = CompileOptions { name: subject.file.to_owned(), ..options() };
    let library = Library::from_source(source, &options)
        .unwrap_or_else(|e| panic!("{} of {}: {e}\n{}", subject.name, subject.file, e.details));
    let p = pipeline(&library, subject.name, subject.constants);
    let expected = (subject.expected)();
    (0..5).find_map(|seed| match (subject.run)(&p, seed) {
        Err(fault) => Some(format!("seed {seed}: {fault}")),
        Ok(found) => {
            // Sums of up to 100 terms in another order; a NaN is never near.
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            let wrong = found.iter().zip(&expected).position(|pair| !near(pair));
            wrong.map(|at| format!("seed {seed}: element {at} is {}, must be {}", found[at], expected[at]))
        }
    })
}

fn check(subject: &Subject) {
    let Some(folder) = candle_folder() else {
        eprintln!("SKIPPED {}: candle-metal-kernels 0.11.1 is not in cargo's registry", subject.name);
        return;
    };
    let source = std::fs::read_to_string(folder.join(subject.file)).unwrap();
    assert_eq!(found_out(subject, &source), None, "{} as it is", subject.name);
    for (from, to, times) in subject.mutations {
        assert_eq!(source.matches(from).count(), *times, "{}: {from}", subject.file);
        let how = found_out(subject, &source.replace(from, to));
        println!("{}: {from} -> {to}: {how:?}", subject.name);
        assert!(how.is_some(), "{}: {from} -> {to} is not found out", subject.name);
    }
}

#[test]
fn mutations_of_affine_are_found_out() {
    check(&AFFINE);
}

#[test]
fn mutations_of_gelu_are_found_out() {
    check(&GELU);
}

#[test]
fn mutations_of_a_strided_product_are_found_out() {
    check(&MUL);
}

#[test]
fn mutations_of_softmax_are_found_out() {
    check(&SOFTMAX);
}

#[test]
fn mutations_of_attention_are_found_out() {
    check(&SDPA);
}
