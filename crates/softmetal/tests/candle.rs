//! Scaled dot-product attention by candle-metal-kernels 0.11.1, encoded as candle encodes it: one query (in one pass and in
//! two), many queries with and without a causal mask, each compared with the formula in f64, and no rule broken.

extern crate softmetal;

use candle_metal_kernels::metal::{Buffer, Commands, CommandsGuard, Device, ResidencySet};
use candle_metal_kernels::{Kernels, RESOURCE_OPTIONS, SDPA_2PASS_BLOCKS, SdpaDType};
use candle_metal_kernels::{call_sdpa_full, call_sdpa_vector, call_sdpa_vector_2pass};
use objc2::rc::autoreleasepool;
use softmetal::check::{Violation, capture};

const BATCH: usize = 2;
/// Heads of queries; two of them share keys and values.
const HEADS: usize = 4;
const SIZE: usize = 32;
const SCALE: f32 = 0.3;

/// Numbers in -1..1 that are the same in every run.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Queries, keys and values: `[batch, heads, positions, size]`.
struct Case {
    queries: usize,
    keys: usize,
    causal: bool,
}

impl Case {
    fn shapes(&self) -> [[usize; 4]; 2] {
        [[BATCH, HEADS, self.queries, SIZE], [BATCH, HEADS / 2, self.keys, SIZE]]
    }

    fn values(&self) -> [Vec<f32>; 3] {
        let [q, k] = self.shapes().map(|shape| shape.iter().product());
        [numbers(q, 1), numbers(k, 2), numbers(k, 3)]
    }

    /// softmax(scale q kᵀ) v in f64; a causal query sees the keys up to its own position, the last query all.
    fn expected(&self) -> Vec<f64> {
        let [q, k, v] = self.values();
        let mut out = Vec::with_capacity(q.len());
        for (row, q) in q.chunks(SIZE).enumerate() {
            let (head, position) = (row / self.queries, row % self.queries);
            let seen = if self.causal { self.keys - self.queries + position + 1 } else { self.keys };
            let at = |key: usize| (head / 2 * self.keys + key) * SIZE;
            let dot =
                |key: usize| (0..SIZE).map(|j| f64::from(q[j]) * f64::from(k[at(key) + j])).sum::<f64>();
            let weights: Vec<f64> = (0..seen).map(|key| (f64::from(SCALE) * dot(key)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..SIZE).map(|j| {
                weights.iter().enumerate().map(|(key, w)| w * f64::from(v[at(key) + j])).sum::<f64>() / sum
            }));
        }
        out
    }
}

/// The device, and what a call of candle's takes.
struct Bench {
    device: Device,
    kernels: Kernels,
    buffers: [Buffer; 3],
    output: Buffer,
}

/// Encodes by `call` and waits: what is in the output, or why the command buffer failed; and the rules that were broken.
fn attention(
    case: &Case,
    call: impl Fn(&Bench, &CommandsGuard<'_>),
) -> (Result<Vec<f32>, String>, Vec<Violation>) {
    let run = || {
        let device = Device::system_default().expect("the software device");
        let new = |values: &[f32]| {
            let start = values.as_ptr().cast();
            device.new_buffer_with_data(start, size_of_val(values), RESOURCE_OPTIONS).expect("a buffer")
        };
        let [q, k, v] = case.values();
        let output = device.new_buffer(4 * q.len(), RESOURCE_OPTIONS).expect("a buffer");
        let buffers = [new(&q), new(&k), new(&v)];
        let queue = device.new_command_queue().expect("a queue");
        let commands = Commands::new(queue, &ResidencySet::new(&device)).expect("commands");
        let bench = Bench { device, kernels: Kernels::new(), buffers, output };
        let encoder = commands.command_encoder().expect("an encoder");
        call(&bench, &encoder);
        drop(encoder);
        commands.wait_until_completed().map_err(|error| error.to_string())?;
        let start = bench.output.contents().cast::<f32>();
        // SAFETY: the buffer has so many floats, and the device has finished.
        Ok((0..q.len()).map(|i| unsafe { start.add(i).read() }).collect())
    };
    capture(|| {
        let result = autoreleasepool(|_| run());
        softmetal::quiesce();
        result
    })
}

/// The output is that of the formula, and no rule was broken.
fn check(case: &Case, (found, broken): (Result<Vec<f32>, String>, Vec<Violation>)) {
    assert_eq!(broken, []);
    let (found, expected) = (found.expect("a completed command buffer"), case.expected());
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Scores below 0.3 x 32 with roundings of 2^-21 each; a NaN is never near.
        let near = (f64::from(*found) - expected).abs() <= 1e-5 * (1.0 + expected.abs());
        assert!(near, "element {i} is {found}, must be {expected}");
    }
}

/// Strides of a contiguous tensor.
fn strides(shape: [usize; 4]) -> [usize; 4] {
    [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1]
}

fn full(case: &Case) -> (Result<Vec<f32>, String>, Vec<Violation>) {
    attention(case, |bench, encoder| {
        let ([q, k], [qb, kb, vb]) = (case.shapes(), &bench.buffers);
        let (device, kernels, out) = (&bench.device, &bench.kernels, &bench.output);
        let (of_q, of_k, causal, float) = (strides(q), strides(k), case.causal, SdpaDType::F32);
        call_sdpa_full(
            device, encoder, kernels, 0, &q, &of_q, qb, 0, &k, &of_k, kb, 0, vb, &of_k, None, None, None,
            out, &of_q, SCALE, causal, float,
        )
        .expect("an encoded call");
    })
}

#[test]
fn many_queries() {
    // Neither is a multiple of the tiles of 32.
    let case = Case { queries: 40, keys: 45, causal: false };
    check(&case, full(&case));
}

#[test]
fn many_queries_behind_a_causal_mask() {
    for (queries, keys) in [(64, 64), (32, 45)] {
        let case = Case { queries, keys, causal: true };
        check(&case, full(&case));
    }
}

/// A defect of candle 0.11.1 (its pull request 3852): with a causal mask and a last tile of queries that is not full, the
/// tiles of keys are counted from the full one, so tiles beyond the last key are read. The mask hides what was read.
#[test]
fn candle_reads_beyond_the_keys_behind_a_causal_mask() {
    let (found, broken) = full(&Case { queries: 40, keys: 45, causal: true });
    let error = found.expect_err("a failed command buffer");
    assert!(error.contains("steel_attention_float32") && error.contains(": read of 4 bytes"), "{error}");
    assert_eq!(broken.iter().map(|violation| violation.rule).collect::<Vec<_>>(), ["kernel-out-of-range"]);
}

#[test]
fn one_query() {
    let case = Case { queries: 1, keys: 45, causal: false };
    let result = attention(&case, |bench, encoder| {
        let ([q, k], [qb, kb, vb]) = (case.shapes(), &bench.buffers);
        let (device, kernels, out) = (&bench.device, &bench.kernels, &bench.output);
        let (of_k, float) = (strides(k), SdpaDType::F32);
        call_sdpa_vector(
            device, encoder, kernels, 0, &q, qb, 0, &k, &of_k, kb, 0, &of_k, vb, out, SCALE, 1.0, float,
        )
        .expect("an encoded call");
    });
    check(&case, result);
}

#[test]
fn one_query_in_two_passes() {
    let case = Case { queries: 1, keys: 200, causal: false };
    let result = attention(&case, |bench, encoder| {
        let ([q, k], [qb, kb, vb]) = (case.shapes(), &bench.buffers);
        let (device, kernels, out) = (&bench.device, &bench.kernels, &bench.output);
        let (of_k, float) = (strides(k), SdpaDType::F32);
        let rows = BATCH * HEADS * SDPA_2PASS_BLOCKS;
        let new = |floats: usize| device.new_buffer(4 * floats, RESOURCE_OPTIONS).expect("a buffer");
        let (parts, sums, most) = (new(rows * SIZE), new(rows), new(rows));
        call_sdpa_vector_2pass(
            device, encoder, kernels, 0, &q, qb, 0, &k, &of_k, kb, 0, &of_k, vb, out, &parts, &sums, &most,
            SCALE, 1.0, float,
        )
        .expect("an encoded call");
    });
    check(&case, result);
}
