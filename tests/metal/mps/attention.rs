//! Attention by a chain of calls.

use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::ops::{Attention, Real};
use metal_candle::tensor::DType;

use super::{Random, close, floats, run, shaders};

/// The chain of two products with a softmax between them, against the definition: causal or not, with grouped heads.
#[test]
fn attention_by_a_chain_of_calls_is_the_definition() {
    let _alone = crate::alone();
    for (causal, dtype, tolerance) in
        [(false, DType::F32, 1e-5), (true, DType::F32, 1e-5), (true, DType::F16, 2e-3)]
    {
        let r = &mut Random::new(25);
        let (q, k, v) = (r.tensor([2, 12, 4, 8]), r.tensor([2, 14, 2, 8]), r.tensor([2, 14, 2, 8]));
        let op = Attention { scale: Real(0.35), causal, window: None, cached: false, segmented: false };
        let attend = |device: &Device| {
            let graph = Graph::new();
            let [q, k, v] = [&q, &k, &v].map(|tensor| graph.constant(tensor.cast(dtype)));
            let out = q.attention(&k, &v, op.clone(), &[]).unwrap();
            let program = device.compile(&graph, &[out], &[]).unwrap();
            #[cfg(softmetal)]
            softmetal::counters::take();
            floats(&program.run(&[]).unwrap()[0])
        };
        let found = attend(&shaders());
        #[cfg(softmetal)]
        {
            let counted = softmetal::counters::take().commands;
            let softmaxes: u64 =
                counted.iter().filter(|(name, _)| name.contains("SoftMax")).map(|(_, count)| count).sum();
            assert_eq!(softmaxes, 8, "one a head: {counted:?}");
        }
        close(&found, &attend(&Device::reference()), tolerance);
    }
}

/// Heads are columns of wider rows, so the last head of the last tensor ends in a gap beyond it. The arena has room for
/// the gap, on a system that counts it.
#[cfg(softmetal)]
#[test]
fn heads_at_the_end_of_the_arena_fit_where_the_last_row_counts_whole() {
    let _alone = crate::alone();
    let _mac = softmetal::system::Mac { whole_rows: true, ..Default::default() }.install();
    let r = &mut Random::new(27);
    let op = Attention { scale: Real(0.35), causal: true, window: None, cached: false, segmented: false };
    for heads in [2, 4, 64] {
        let [q, k, v] = [(); 3].map(|()| r.tensor([1, 12, heads, 8]));
        let attend = |device: &Device| {
            let graph = Graph::new();
            let [q, k, v] = [&q, &k, &v].map(|tensor| graph.constant(tensor.clone()));
            let out = q.attention(&k, &v, op.clone(), &[]).unwrap();
            floats(&device.eval(&[out]).unwrap()[0])
        };
        softmetal::counters::take();
        let (found, broken) = softmetal::check::capture(|| attend(&shaders()));
        let counted = softmetal::counters::take().commands;
        assert_eq!(broken, [], "{heads} heads");
        assert!(counted.keys().any(|name| name.contains("SoftMax")), "{counted:?}");
        close(&found, &attend(&Device::reference()), 1e-5);
    }
}

/// A mask that the chain does not know leaves attention with the fused kernel.
#[test]
fn attention_with_a_window_stays_with_a_kernel_of_ours() {
    let _alone = crate::alone();
    let r = &mut Random::new(26);
    let q = r.tensor([1, 12, 2, 8]);
    let op = Attention { scale: Real(0.35), causal: true, window: Some(4), cached: false, segmented: false };
    let (found, used) = run(&shaders(), op.clone(), &[q.clone(), q.clone(), q.clone()]);
    assert!(used.is_empty(), "{used:?}");
    let (expected, _) = run(&Device::reference(), op, &[q.clone(), q.clone(), q]);
    close(&floats(&found[0]), &floats(&expected[0]), 1e-5);
}
