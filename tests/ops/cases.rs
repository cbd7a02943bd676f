//! One case an operation: its attributes and inputs for given sizes and random numbers.

use metal_candle::ops::*;
use metal_candle::tensor::{DType, HostTensor, Shape};

/// Random numbers (Knuth's linear congruential generator, upper bits).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In [−1, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        f64::from(self.next()) / f64::from(1_u32 << 30) - 1.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }

    pub(crate) fn tensor(&mut self, shape: impl Into<Shape>) -> HostTensor {
        self.spread(shape, 1.0, 0.0)
    }

    /// Numbers in [centre − spread, centre + spread).
    pub(crate) fn spread(&mut self, shape: impl Into<Shape>, spread: f64, centre: f64) -> HostTensor {
        let shape = shape.into();
        let values: Vec<f64> = (0..shape.elements()).map(|_| spread * self.unit() + centre).collect();
        HostTensor::from_f64(&values, DType::F32, shape).unwrap()
    }

    /// A weight with every pattern of bits in all but the blocks' factors, which are between -0.02 and 0.02.
    pub(crate) fn blocks(&mut self, op: &QuantMatMul) -> HostTensor {
        let mut bytes: Vec<u8> = (0..op.n * op.row_bytes()).map(|_| self.below(256) as u8).collect();
        let factors: &[usize] = match op.blocks {
            Blocks::Q4_1 | Blocks::Q4_K => &[0, 2],
            Blocks::Q6_K => &[208],
            Blocks::Q4_0 | Blocks::Q8_0 => &[0],
        };
        for block in bytes.chunks_mut(op.blocks.bytes()) {
            for &at in factors {
                let factor = half::f16::from_f64(0.02 * self.unit());
                block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
            }
        }
        op.weight(&bytes).unwrap()
    }

    fn indices(&mut self, count: usize, limit: usize) -> HostTensor {
        let values: Vec<u32> = (0..count).map(|_| self.below(limit) as u32).collect();
        HostTensor::from_slice(&values, [count]).unwrap()
    }
}

/// An operation with inputs.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<HostTensor>,
}

fn case(op: impl Into<Op>, inputs: Vec<HostTensor>) -> Case {
    Case { op: op.into(), inputs }
}

fn scalar(x: f32) -> HostTensor {
    HostTensor::scalar(x)
}

/// Sizes of the cases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Rows, tokens, queries.
    pub(crate) m: usize,
    /// Columns.
    pub(crate) n: usize,
    /// Inner length of products, half of a head's size.
    pub(crate) k: usize,
    /// Batch.
    pub(crate) b: usize,
}

/// A case for every operation and every variant of it, as far as these sizes allow one.
pub(crate) fn all(s: Sizes, seed: u64) -> Vec<Case> {
    let r = &mut Random::new(seed);
    let mut cases = Vec::new();
    products(&mut cases, s, r);
    rows(&mut cases, s, r);
    elementwise(&mut cases, s, r);
    attention(&mut cases, s, r);
    layout(&mut cases, s, r);
    training(&mut cases, s, r);
    // While an operation is written: OPS=softmax,lora runs theirs alone.
    if let Ok(wanted) = std::env::var("OPS") {
        cases.retain(|case| wanted.split(',').any(|name| case.op.name() == name));
    }
    cases
}

/// A product `[m, n]` with a gate, where n is even, and with sums of all columns, of a part, and of one repeated row.
fn epilogues(cases: &mut Vec<Case>, product: &Op, inputs: &[HostTensor], r: &mut Random) {
    let specs: Vec<_> = inputs.iter().map(|input| input.spec().clone()).collect();
    let y = product.contract().infer(&specs).unwrap().remove(0);
    let (m, n) = (y.shape[0], y.shape[1]);
    if n.is_multiple_of(2) {
        let op = Epilogue { product: Box::new(product.clone()), kind: EpilogueKind::Gate };
        cases.push(case(op, inputs.to_vec()));
    }
    let sums = vec![(0, n), (n / 2, n - n / 2)];
    let mut with_addends = inputs.to_vec();
    with_addends.extend(sums.iter().map(|&(_, len)| r.tensor([m, len])));
    let op = Epilogue { product: Box::new(product.clone()), kind: EpilogueKind::Sums(sums) };
    cases.push(case(op, with_addends));
}

fn products(cases: &mut Vec<Case>, Sizes { m, n, k, b }: Sizes, r: &mut Random) {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let a = if ta { [k, m] } else { [m, k] };
        let w = if tb { [n, k] } else { [k, n] };
        let inputs = vec![r.tensor(a), r.tensor(w)];
        if (ta, tb) == (false, true) {
            epilogues(cases, &MatMul::new(ta, tb).into(), &inputs, r);
        }
        cases.push(case(MatMul::new(ta, tb), inputs));
        let batched = |d: [usize; 2]| [b, d[0], d[1]];
        let mut inputs = vec![r.tensor(batched(a)), r.tensor(batched(w))];
        cases.push(case(MatMul::new(ta, tb), inputs.clone()));
        inputs.push(r.tensor([b, m, n]));
        let op = MatMul { alpha: Real(0.5), beta: Real(-1.5), ..MatMul::new(ta, tb) };
        cases.push(case(op, inputs));
        if !ta {
            cases.push(case(MatMul::new(ta, tb), vec![r.tensor(batched(a)), r.tensor(w)]));
        }
    }
    let slots = vec![
        LoraSlot { start: 0, len: n, rank: 2, scale: Real(2.0) },
        LoraSlot { start: n + 1, len: n + 2, rank: 5, scale: Real(0.5) },
    ];
    for separate in [false, true] {
        let x = r.tensor([m, k]);
        let mut shared = if separate { vec![x.clone(), r.tensor([m, k])] } else { vec![x.clone()] };
        let w = r.tensor([2 * n + 4, k]);
        let pairs = vec![r.tensor([2, k]), r.tensor([n, 2]), r.tensor([5, k]), r.tensor([n + 2, 5])];
        shared.push(w.clone());
        shared.extend(pairs.clone());
        let lora = Lora { slots: slots.clone(), separate };
        epilogues(cases, &lora.clone().into(), &shared, r);
        cases.push(case(lora, shared));
        let mut inputs = vec![r.tensor([m, 2 * n + 4]), x, r.tensor([m, 7]), w];
        inputs.extend(pairs);
        cases.push(case(LoraGrad { slots: slots.clone(), separate }, inputs));
    }
    for blocks in Blocks::ALL {
        // Some rows beyond those that one decoding serves; more would only take longer.
        let (m, n) = (m.min(19), n.min(21));
        let op = QuantMatMul { blocks, n, k: blocks.elements() * (1 + k % 2) };
        let w = r.blocks(&op);
        cases.push(case(op.clone(), vec![r.tensor([m, op.k]), w.clone()]));
        cases.push(case(QuantMatMulGrad { of: op }, vec![r.tensor([m, n]), w]));
    }
    let (targets, weights) = (r.indices(m, n), r.tensor([m]));
    cases.push(case(
        CrossEntropy { head: false },
        vec![r.spread([m, n], 4.0, 0.0), targets.clone(), weights.clone()],
    ));
    let inputs = vec![r.tensor([m, k]), r.spread([n, k], 2.0, 0.0), targets, weights];
    cases.push(case(CrossEntropy { head: true }, inputs));
}

fn rows(cases: &mut Vec<Case>, Sizes { m, n, k, b }: Sizes, r: &mut Random) {
    let eps = Real(1e-3);
    for axis in 0..3 {
        let shape = [b, m, n];
        cases.push(case(Softmax { axis }, vec![r.spread(shape, 3.0, 0.0)]));
        cases.push(case(LogSoftmax { axis }, vec![r.spread(shape, 3.0, 0.0)]));
        cases.push(case(SoftmaxGrad { axis }, vec![r.tensor(shape), r.spread(shape, 0.1, 0.1)]));
        cases.push(case(LogSoftmaxGrad { axis }, vec![r.tensor(shape), r.spread(shape, 1.0, -2.0)]));
        for function in [ReduceFn::Sum, ReduceFn::Mean, ReduceFn::Max] {
            cases.push(case(Reduce { function, axis }, vec![r.tensor(shape)]));
        }
    }
    let (x, y, w, c) = (r.tensor([m, n]), r.tensor([m, n]), r.spread([n], 0.5, 1.0), r.tensor([n]));
    cases.push(case(RmsNorm { eps, residual: false }, vec![x.clone(), w.clone()]));
    cases.push(case(RmsNorm { eps, residual: true }, vec![x.clone(), y.clone(), w.clone()]));
    cases.push(case(RmsNormGrad { eps, residual: false }, vec![x.clone(), y.clone(), w.clone()]));
    cases.push(case(
        RmsNormGrad { eps, residual: true },
        vec![x.clone(), y.clone(), w.clone(), r.tensor([m, n])],
    ));
    cases.push(case(LayerNorm { eps, bias: false }, vec![x.clone(), w.clone()]));
    cases.push(case(LayerNorm { eps, bias: true }, vec![x.clone(), w.clone(), c]));
    cases.push(case(LayerNormGrad { eps }, vec![x.clone(), y.clone(), w]));
    cases.push(case(SiluMul, vec![x.clone(), y.clone()]));
    cases.push(case(SiluMulGrad, vec![x.clone(), y, r.tensor([m, n])]));
    cases.push(case(ArgMax, vec![x.clone()]));
    for (top_k, settings) in [
        (0, [1.0, 1.0, 0.0]),
        (1 + n / 3, [0.7, 1.0, 0.0]),
        (0, [1.3, 0.8, 0.0]),
        (3, [0.5, 0.9, 0.1]),
        (0, [0.0, 1.0, 0.0]),
    ] {
        // A draw is a comparison of sums in f32: few rows, so that a random test meets no near tie.
        let logits = r.spread([m.min(4), n], 4.0, 0.0);
        let seed = HostTensor::from_slice(&[r.below(1000) as u32, 9], [2]).unwrap();
        let settings = HostTensor::from_slice(&settings, [3]).unwrap();
        cases.push(case(Sample { top_k, stream: 5 }, vec![logits, settings, seed]));
    }
    cases.push(case(TopK { k: n.min(3) }, vec![x]));
    cases.push(case(GlobalNorm, vec![r.tensor([m, n]), r.tensor([n]), r.spread([b], 100.0, 0.0)]));
    let (cos, sin, positions) = (r.tensor([9, k]), r.tensor([9, k]), r.indices(m, 9));
    for inverse in [false, true] {
        let x = r.tensor([m, b, 2 * k]);
        cases.push(case(Rope { inverse }, vec![x, cos.clone(), sin.clone(), positions.clone()]));
    }
    let ids = r.indices(m, b + 2);
    cases.push(case(Embedding { dtype: DType::F32 }, vec![r.tensor([b + 2, n]), ids.clone()]));
    cases.push(case(EmbeddingGrad { rows: b + 2 }, vec![r.tensor([m, n]), ids]));
}

/// Where a function is smooth and defined: (centre, spread).
fn domain(function: UnaryFn) -> (f64, f64) {
    match function {
        UnaryFn::Log | UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Recip => (2.0, 1.5),
        _ => (0.0, 3.0),
    }
}

fn elementwise(cases: &mut Vec<Case>, Sizes { m, n, .. }: Sizes, r: &mut Random) {
    for function in UnaryFn::ALL {
        let (centre, spread) = domain(function);
        let x = r.spread([m, n], spread, centre);
        cases.push(case(Unary { function }, vec![x.clone()]));
        cases.push(case(UnaryGrad { function }, vec![r.tensor([m, n]), x]));
    }
    for function in BinaryFn::ALL {
        let b = r.spread([m, n], 0.5, if function == BinaryFn::Div { 1.0 } else { 0.0 });
        cases.push(case(Binary { function }, vec![r.tensor([m, n]), b]));
    }
    cases.push(case(Affine { mul: Real(-2.5), add: Real(0.25) }, vec![r.tensor([m, n])]));
    cases.push(case(Scale, vec![r.tensor([m, n]), scalar(-1.75)]));
    let spec = metal_candle::tensor::TensorSpec::f32([m, n]);
    cases.push(case(Fill { value: Real(1.5), spec }, vec![]));
    let seed = HostTensor::from_slice(&[r.below(1000) as u32, 7], [2]).unwrap();
    cases.push(case(Dropout { p: Real(0.3), stream: 3 }, vec![r.tensor([m, n]), seed]));
}

fn attention(cases: &mut Vec<Case>, Sizes { m, k, b, .. }: Sizes, r: &mut Random) {
    let d = 2 * k;
    let scale = Real(1.0 / (d as f32).sqrt());
    let plain = Attention { scale, causal: true, window: None, cached: false, segmented: false };
    for (kv_heads, group) in [(1, 3), (2, 1)] {
        let heads = kv_heads * group;
        let q = r.tensor([b, m, heads, d]);
        let kv = |r: &mut Random, s: usize| (r.tensor([b, s, kv_heads, d]), r.tensor([b, s, kv_heads, d]));
        let (keys, values) = kv(r, m);
        let inputs = vec![q.clone(), keys.clone(), values.clone()];
        cases.push(case(plain.clone(), inputs.clone()));
        cases.push(case(Attention { window: Some(3), ..plain.clone() }, inputs.clone()));
        let mut segmented = inputs.clone();
        let starts: Vec<u32> = (0..b * m).map(|i| (i % m / 3 * 3) as u32).collect();
        segmented.push(HostTensor::from_slice(&starts, [b, m]).unwrap());
        cases.push(case(Attention { segmented: true, ..plain.clone() }, segmented.clone()));
        let (more_keys, more_values) = kv(r, m + 5);
        let open = Attention { causal: false, ..plain.clone() };
        cases.push(case(open, vec![q.clone(), more_keys.clone(), more_values.clone()]));
        let pos = HostTensor::from_slice(&[4_u32], [1]).unwrap();
        let cached = Attention { cached: true, ..plain.clone() };
        cases.push(case(cached, vec![q.clone(), more_keys, more_values, pos]));
        // The gradient takes the forward's results, so these are computed first.
        for (window, starts) in [(None, None), (Some(3), None), (None, segmented.get(3))] {
            let forward = Attention { window, segmented: starts.is_some(), ..plain.clone() };
            let mut inputs = inputs.clone();
            inputs.extend(starts.cloned());
            let results = super::reference(&Case { op: forward.into(), inputs: inputs.clone() });
            let op = AttentionGrad { scale, causal: true, window, segmented: starts.is_some() };
            inputs.truncate(3);
            inputs.extend([results[0].clone(), results[1].clone(), r.tensor([b, m, heads, d])]);
            inputs.extend(starts.cloned());
            cases.push(case(op, inputs));
        }
    }
    let pos = HostTensor::from_slice(&[2_u32], [1]).unwrap();
    let cache = |r: &mut Random| r.tensor([2, m + 1, d]);
    cases.push(case(KvWrite, vec![cache(r), r.tensor([m, 2, d]), pos.clone()]));
    let (q, new) = (r.tensor([m, 3, d]), [r.tensor([m, 2, d]), r.tensor([m, 2, d])]);
    let tables = [r.tensor([m + 2, k]), r.tensor([m + 2, k])];
    let positions: Vec<u32> = (0..m).map(|i| (i + 2) as u32).collect();
    let positions = HostTensor::from_slice(&positions, [m]).unwrap();
    let [keys, values] = new;
    let [cos, sin] = tables;
    let inputs = vec![q, keys, values, cos, sin, positions, cache(r), cache(r), pos];
    cases.push(case(RopeKvWrite, inputs));
}

fn layout(cases: &mut Vec<Case>, Sizes { m, n, b, .. }: Sizes, r: &mut Random) {
    let x = r.tensor([b, m, n]);
    cases.push(case(Reshape::new([m * b, n]), vec![x.clone()]));
    cases.push(case(Permute { axes: vec![2, 0, 1] }, vec![x.clone()]));
    cases.push(case(Slice { axis: 1, start: m / 2, len: m - m / 2 }, vec![x.clone()]));
    cases.push(case(Unslice { axis: 1, start: 2, total: m + 3 }, vec![x.clone()]));
    cases.push(case(Broadcast { shape: [b, m, n].into() }, vec![r.tensor([m, 1])]));
    cases.push(case(Concat { axis: 2 }, vec![x.clone(), r.tensor([b, m, 2]), r.tensor([b, m, n])]));
    cases.push(case(Copy, vec![x.clone()]));
    cases.push(case(Cast { dtype: DType::F32 }, vec![x]));
}

fn training(cases: &mut Vec<Case>, Sizes { m, n, b, .. }: Sizes, r: &mut Random) {
    for keep in [0.0, 1.0, 0.5] {
        let pairs = [r.tensor([m, n]), r.tensor([m, n]), r.tensor([n + 1]), r.tensor([n + 1])];
        cases.push(case(Accumulate, pairs.into_iter().chain([scalar(keep)]).collect()));
    }
    let op = AdamW {
        beta1: Real(0.9),
        beta2: Real(0.99),
        eps: Real(1e-6),
        weight_decay: Real(0.1),
        max_norm: Real(0.5),
    };
    for norm in [2.0, 0.1, f32::NAN] {
        let mut inputs = Vec::new();
        for shape in [vec![m, n], vec![b]] {
            let shape = Shape::from(shape);
            inputs.extend([r.tensor(shape.clone()), r.tensor(shape.clone()), r.tensor(shape.clone())]);
            inputs.push(r.spread(shape, 0.5, 0.6));
        }
        inputs.push(HostTensor::from_slice(&[0.01_f32, 3.0, 0.25], [3]).unwrap());
        inputs.push(scalar(norm));
        cases.push(case(op.clone(), inputs));
    }
}
