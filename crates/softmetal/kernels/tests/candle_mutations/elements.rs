//! Kernels that take each element by itself: unary, affine, binary, cast, where.

use super::harness::*;
use super::{Mutation, Subject};

pub(crate) const SUBJECTS: [Subject; 6] = [AFFINE, GELU, EXP, MULTIPLY, CAST, SELECT];

const COUNT: usize = 60;

const AFFINE: Subject = Subject {
    file: "affine.metal",
    kernel: "affine_f32",
    constants: &[],
    left_out: &["init_affine(", "init_powf(", "init_elu("],
    kept: &["init_affine(f32"],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(COUNT, 4), vec![f32::NAN; COUNT]);
        let arguments = [bytes(COUNT), bytes(2.5f32), bytes(-1f32), buffer(&mut x), buffer(&mut y)];
        run_with(p, &arguments, &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y)
    },
    expected: || numbers(COUNT, 4).iter().map(|x| x.mul_add(2.5, -1.0)).collect(),
    // One fused operation, here as there.
    tolerance: 0.0,
    mutations: &[
        Mutation(
            "a step too long",
            "const uint step = div_ceil<W>(dim);",
            "const uint step = div_ceil<W>(dim) + 1;",
            3,
        ),
        Mutation(
            "factor and summand swapped",
            "fma(float(input[i]), mul, add)",
            "fma(float(input[i]), add, mul)",
            1,
        ),
        Mutation("bound: <= for <", "i < dim; i += step", "i <= dim; i += step", 3),
    ],
};

const GELU: Subject = Subject {
    file: "unary.metal",
    kernel: "gelu_f32",
    constants: &[],
    left_out: &["init_unary_float(", "init_unary(", "init_copy2d(", "init_const_set("],
    kept: &["init_unary_float(gelu,", "unary_op, f32"],
    run: |p, seed| {
        let (mut x, mut y) = (numbers(COUNT, 1), vec![f32::NAN; COUNT]);
        run_with(p, &[bytes(COUNT), buffer(&mut x), buffer(&mut y)], &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * x * (1.0 + 0.044_715 * x * x)).tanh());
        numbers(COUNT, 1).iter().map(|x| gelu(f64::from(*x)) as f32).collect()
    },
    // Ten operations of half a rounding (2^-24) each.
    tolerance: 1e-6,
    mutations: &[
        Mutation("digits of a constant swapped", "static_cast<T>(0.044715)", "static_cast<T>(0.044175)", 2),
        Mutation("another function", "T(precise::tanh(beta))", "T(precise::sinh(beta))", 2),
        Mutation("square for cube", "T x_cube = x_sq * x;", "T x_cube = x_sq;", 2),
    ],
};

const EXP: Subject = Subject {
    kernel: "exp_f32",
    kept: &["init_unary_float(exp,", "unary_op, f32"],
    expected: || numbers(COUNT, 1).iter().map(|x| f64::from(*x).exp() as f32).collect(),
    mutations: &[
        Mutation("base 2 for e", "define_unary_op(uexp, exp(x));", "define_unary_op(uexp, exp2(x));", 1),
        Mutation("the last element is left out", "i < dim; i += step", "i + 1 < dim; i += step", 2),
    ],
    ..GELU
};

const MULTIPLY: Subject = Subject {
    file: "binary.metal",
    kernel: "bmul_f32_strided",
    constants: &[],
    left_out: &["init_binary(", "init_boolean_binary("],
    kept: &["init_binary(bmul"],
    run: |p, seed| {
        let (mut a, mut b, mut c) = (numbers(COUNT, 1), numbers(10, 2), vec![f32::NAN; COUNT]);
        // The right side is one row of 10, repeated.
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
    tolerance: 0.0,
    mutations: &[
        Mutation("dimensions in reverse", "uint dim_idx = num_dims - 1 - d;", "uint dim_idx = d;", 1),
        Mutation("another dimension", "idx /= dims[dim_idx];", "idx /= dims[0];", 1),
        Mutation(
            "a dimension too long",
            "(idx % dims[dim_idx]) * strides",
            "(idx % (dims[dim_idx] + 1)) * strides",
            1,
        ),
    ],
};

/// Numbers from 0 to 1000 with a fraction.
fn large() -> Vec<f32> {
    numbers(COUNT, 3).iter().map(|x| 500.0 * (x + 1.0)).collect()
}

const CAST: Subject = Subject {
    file: "cast.metal",
    kernel: "cast_f32_u32",
    constants: &[],
    left_out: &["init_cast_all(", "init_cast(tname"],
    kept: &["init_cast_all(f32", "u32, uint32_t)"],
    run: |p, seed| {
        let (mut x, mut y) = (large(), vec![u32::MAX; COUNT]);
        run_with(p, &[bytes(COUNT), buffer(&mut x), buffer(&mut y)], &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y.iter().map(|y| *y as f32).collect())
    },
    expected: || large().iter().map(|x| x.trunc()).collect(),
    tolerance: 0.0,
    mutations: &[
        Mutation(
            "another type on the way",
            "static_cast<U>(static_cast<IR>(input[i]))",
            "static_cast<U>(static_cast<uint8_t>(input[i]))",
            1,
        ),
        Mutation("each second element is left out", "i += step", "i += 2 * step", 1),
    ],
};

const SELECT: Subject = Subject {
    file: "ternary.metal",
    kernel: "where_u8_f32",
    // Condition and first choice are contiguous, the second choice is not.
    constants: &[(0, &[1]), (1, &[1]), (2, &[0])],
    left_out: &["WHERE_OP("],
    kept: &["where_u8_f32"],
    run: |p, seed| {
        let mut condition: Vec<u8> = (0..COUNT).map(|i| u8::from(i % 3 == 0)).collect();
        let (mut yes, mut no, mut y) = (numbers(COUNT, 1), numbers(COUNT, 2), vec![f32::NAN; COUNT]);
        let (dims, rows, columns) = (bytes([6usize, 10]), bytes([10usize, 1]), bytes([1usize, 6]));
        let shape = [bytes(COUNT), bytes(2usize), dims, rows.clone(), rows, columns];
        let values = [buffer(&mut condition), buffer(&mut yes), buffer(&mut no), buffer(&mut y)];
        run_with(p, &[&shape[..], &values].concat(), &[], [30, 1, 1], [30, 1, 1], seed)?;
        Ok(y)
    },
    expected: || {
        let (yes, no) = (numbers(COUNT, 1), numbers(COUNT, 2));
        (0..COUNT).map(|i| if i % 3 == 0 { yes[i] } else { no[i % 10 * 6 + i / 10] }).collect()
    },
    tolerance: 0.0,
    mutations: &[
        Mutation(
            "the choices are swapped",
            "select(f[f_idx], t[t_idx], ids[idx])",
            "select(t[t_idx], f[f_idx], ids[idx])",
            1,
        ),
        Mutation(
            "strides of the other choice",
            "f_idx = get_strided_index(i, num_dims, dims, strides_f);",
            "f_idx = get_strided_index(i, num_dims, dims, strides_t);",
            1,
        ),
        Mutation("a contiguous index", "F_CONTIGUOUS) {", "T_CONTIGUOUS) {", 1),
    ],
};
