//! Launches that would hold the GPU too long are split, since halving command buffers cannot split them.

use metal_candle::backend::Device;
use metal_candle::backend::select::{Choices, Preference};
use metal_candle::graph::Graph;
use metal_candle::ops::{Attention, Real};
use metal_candle::tensor::HostTensor;

const MASK: Attention =
    Attention { scale: Real(0.2), causal: false, window: None, cached: false, segmented: false };

/// Numbers between -1 and 1 that a seed decides.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// A tensor `[1, tokens, heads, d]`.
fn tensor(values: &[f32], heads: usize, d: usize) -> HostTensor {
    HostTensor::from_slice(values, [1, values.len() / (heads * d), heads, d]).unwrap()
}

/// How often a kernel ran since the last call, where the device counts.
fn launches(kernel: &str) -> Option<u64> {
    #[cfg(softmetal)]
    return Some(softmetal::counters::take().commands.get(kernel).copied().unwrap_or(0));
    #[cfg(not(softmetal))]
    {
        let _ = kernel;
        None
    }
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let greatest = expected.iter().fold(0.0_f64, |all, x| all.max(x.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Sums in f32 of another order, as the tests of operations allow.
        assert!((found - expected).abs() <= 1e-5 * greatest, "{what}, {at}: {found}, not {expected}");
    }
}

/// A device whose launches may take so many milliseconds by the estimate for an M1: the software device would need minutes
/// for attention that exceeds the default.
fn device(milliseconds: f64) -> Device {
    let choices = Choices { launch_milliseconds: Some(milliseconds), ..Choices::from(Preference::Metal) };
    Device::metal_with(choices).unwrap()
}

/// 6.6 million operations are 0.063 ms by the estimate. Every query is computed alone, so a launch of a few queries, which
/// is not split, must give the same.
#[test]
fn attention_of_a_long_sequence_is_split_and_gives_the_same() {
    let _alone = crate::alone();
    let device = device(0.04);
    let (tokens, heads, d) = (160, 2, 32);
    let size = heads * d;
    let [q, k, v] = [1, 2, 3].map(|seed| numbers(seed, tokens * size));
    let run = |q: &[f32]| {
        launches("");
        let graph = Graph::new();
        let [q, k, v] = [q, &k, &v].map(|values| graph.constant(tensor(values, heads, d)));
        let out = q.attention(&k, &v, MASK, &[]).unwrap();
        let found = device.eval(&[out]).unwrap().remove(0).to_f64();
        (found, launches("attention_rows_float_float"))
    };
    let (whole, count) = run(&q);
    assert!(count.is_none_or(|count| count == 2), "{count:?}");
    for first in [0, 72, 80, 136] {
        let (part, count) = run(&q[first * size..(first + 24) * size]);
        assert!(count.is_none_or(|count| count == 1), "{count:?}");
        assert_close(&whole[first * size..(first + 24) * size], &part, "queries");
    }
}

/// Queries of a head are spread over launches, with and without parts of their keys that are merged.
#[test]
fn attention_of_few_queries_is_split_and_gives_the_same() {
    let _alone = crate::alone();
    let (heads, d) = (2, 32);
    let size = heads * d;
    // By the estimate 0.0032 and 0.0197 ms: four launches of 4 of 16 rows, two of 2 of 4.
    for (queries, keys, limit, expected) in [(8, 160, 0.001, 4), (2, 2080, 0.012, 2)] {
        let [q, k, v] = [(1, queries), (2, keys), (3, keys)].map(|(seed, rows)| numbers(seed, rows * size));
        let run = |device: &Device, q: &[f32]| {
            launches("");
            let graph = Graph::new();
            let [q, k, v] = [q, &k, &v].map(|values| graph.constant(tensor(values, heads, d)));
            let out = q.attention(&k, &v, MASK, &[]).unwrap();
            let found = device.eval(&[out]).unwrap().remove(0).to_f64();
            (found, launches("attention_few_float_float"))
        };
        let (split, count) = run(&device(limit), &q);
        assert!(count.is_none_or(|count| count == expected), "{count:?}");
        let whole = Device::metal_with(Preference::Metal).unwrap();
        for query in 0..queries {
            let row = query * size..(query + 1) * size;
            let (alone, count) = run(&whole, &q[row.clone()]);
            assert!(count.is_none_or(|count| count == 1), "{count:?}");
            // The same threadgroups with the same numbers.
            assert_eq!(split[row], alone, "query {query} over {keys} keys");
        }
    }
}

/// The gradients of 128 queries: those of two halves, which are not split, side by side for q and summed for k and v.
#[test]
fn gradients_of_attention_over_a_long_sequence_are_split_and_give_the_same() {
    let _alone = crate::alone();
    let device = device(0.09);
    let (tokens, heads, d) = (128, 2, 32);
    let size = heads * d;
    let [q, k, v, g] = [1, 2, 3, 4].map(|seed| numbers(seed, tokens * size));
    let run = |q: &[f32], g: &[f32]| {
        launches("");
        let graph = Graph::new();
        let [q, k, v, g] = [q, &k, &v, g].map(|values| graph.constant(tensor(values, heads, d)));
        let loss = q.attention(&k, &v, MASK, &[]).unwrap().mul(&g).unwrap().sum_all().unwrap();
        let gradients = graph.gradients(&loss, &[q, k, v]).unwrap();
        let found = device.compile(&graph, &gradients, &[]).unwrap().run(&[]).unwrap();
        (found.iter().map(HostTensor::to_f64).collect::<Vec<_>>(), launches("attention_dkv_float"))
    };
    let half = tokens / 2 * size;
    let (whole, count) = run(&q, &g);
    assert!(count.is_none_or(|count| count >= 2), "{count:?}");
    let (first, count) = run(&q[..half], &g[..half]);
    assert!(count.is_none_or(|count| count == 1), "{count:?}");
    let (second, _) = run(&q[half..], &g[half..]);
    assert_close(&whole[0], &[&first[0][..], &second[0]].concat(), "dq");
    for (of, name) in [(1, "dk"), (2, "dv")] {
        let sum: Vec<f64> = first[of].iter().zip(&second[of]).map(|(a, b)| a + b).collect();
        assert_close(&whole[of], &sum, name);
    }
}
