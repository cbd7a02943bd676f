//! Operations at the sizes that are measured, and how: what `metal-candle bench`, the benchmarks of `benches/` and the
//! tables of the documents share.
//!
//! Three readings tell what one figure hides. **Latency**: one result, waited for, the cost of a call included.
//! **Throughput**: [`COPIES`] results from as many different inputs, submitted together, all of them computed and waited
//! for. **Chain**: [`COPIES`] applications, each to the result of the one before. A benchmark that submits a hundred
//! results and waits for the last alone may measure one; here nothing is shared between the copies and all are read.

pub mod model;

use std::time::Instant;

use crate::Result;
use crate::backend::{Device, Program};
use crate::graph::{Graph, LazyTensor, Step};
use crate::ops::{Attention, Cost, Real};
use crate::tensor::{DType, HostTensor};

/// Results of a throughput reading, and links of a chain.
pub const COPIES: usize = 8;
/// Elements of every timed result that are compared between libraries.
pub const SAMPLES: usize = 64;
/// The rank of the measured adapters, as in the plan.
const RANK: usize = 8;
/// The small number of the norms.
const EPS: f32 = 1e-5;

/// What is computed, at which sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `[m, k]·[n, k]ᵀ`: a linear layer.
    MatMul {
        /// Rows of the result.
        m: usize,
        /// Columns of the result.
        n: usize,
        /// Inner length.
        k: usize,
    },
    /// Along the last axis of `rows` rows of n.
    Softmax {
        /// Rows.
        rows: usize,
        /// Elements of a row.
        n: usize,
    },
    /// Softmax along the axis before the last of `[outer, n, inner]`.
    SoftmaxInner {
        /// Slices.
        outer: usize,
        /// Elements along the axis.
        n: usize,
        /// Elements of the last axis.
        inner: usize,
    },
    /// Of `rows` rows of n.
    RmsNorm {
        /// Rows.
        rows: usize,
        /// Elements of a row.
        n: usize,
    },
    /// Of `rows` rows of n.
    LayerNorm {
        /// Rows.
        rows: usize,
        /// Elements of a row.
        n: usize,
    },
    /// A linear layer `[d, d]` with an adapter of rank 8 on `rows` rows.
    Lora {
        /// Rows.
        rows: usize,
        /// Width of the layer.
        d: usize,
    },
    /// Causal, of a batch of one.
    Attention {
        /// Tokens.
        t: usize,
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Elements of a head.
        d: usize,
    },
}

/// A measured operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// What and how large.
    pub kind: Kind,
    /// Type of all tensors.
    pub dtype: DType,
    /// With the gradients of half the sum of its squares with respect to all inputs but a layer's frozen weight.
    pub backward: bool,
}

/// The cases of the plan and of its comparison with other libraries.
pub fn cases(dtype: DType) -> Vec<Case> {
    let mut kinds = Vec::new();
    for d in [512, 1024, 2048] {
        kinds.push(Kind::MatMul { m: 128, n: d, k: d });
    }
    for (m, n, k) in [(128, 8, 1024), (128, 1024, 8)] {
        kinds.push(Kind::MatMul { m, n, k });
    }
    for (rows, n) in [(1, 1024), (64, 1024), (32 * 8 * 128, 128)] {
        kinds.push(Kind::Softmax { rows, n });
    }
    kinds.push(Kind::SoftmaxInner { outer: 8, n: 128, inner: 128 });
    for (rows, n) in [(1, 1024), (64, 1024), (512, 576)] {
        kinds.push(Kind::RmsNorm { rows, n });
    }
    for (rows, n) in [(1, 1024), (64, 1024), (512, 576)] {
        kinds.push(Kind::LayerNorm { rows, n });
    }
    for rows in [1, 128] {
        for d in [512, 1024, 2048] {
            kinds.push(Kind::Lora { rows, d });
        }
    }
    kinds.push(Kind::Attention { t: 256, heads: 9, kv_heads: 3, d: 64 });
    let case = |backward| kinds.iter().map(move |&kind| Case { kind, dtype, backward });
    case(false).chain(case(true)).collect()
}

impl Case {
    /// The operation's name, with `+ gradient` where there is one.
    pub fn op(&self) -> String {
        let name = match self.kind {
            Kind::MatMul { .. } => "matmul",
            Kind::Softmax { .. } | Kind::SoftmaxInner { .. } => "softmax",
            Kind::RmsNorm { .. } => "rms_norm",
            Kind::LayerNorm { .. } => "layer_norm",
            Kind::Lora { .. } => "lora",
            Kind::Attention { .. } => "attention",
        };
        if self.backward { format!("{name} + gradient") } else { name.to_owned() }
    }

    /// The sizes, for people.
    pub fn shape(&self) -> String {
        match self.kind {
            Kind::MatMul { m, n, k } => format!("{m}x{k} · {k}x{n}"),
            Kind::Softmax { rows, n } | Kind::RmsNorm { rows, n } | Kind::LayerNorm { rows, n } => {
                format!("{rows}x{n}")
            }
            Kind::SoftmaxInner { outer, n, inner } => format!("{outer}x{n}x{inner}, axis 1"),
            Kind::Lora { rows, d } => format!("{rows} rows, {d}x{d}, r = {RANK}"),
            Kind::Attention { t, heads, kv_heads, d } => {
                format!("{t} tokens, {heads}/{kv_heads} heads of {d}")
            }
        }
    }

    /// The shapes of the inputs, the one that a chain runs through first.
    pub fn inputs(&self) -> Vec<Vec<usize>> {
        match self.kind {
            Kind::MatMul { m, n, k } => vec![vec![m, k], vec![n, k]],
            Kind::Softmax { rows, n } => vec![vec![rows, n]],
            Kind::SoftmaxInner { outer, n, inner } => vec![vec![outer, n, inner]],
            Kind::RmsNorm { rows, n } => vec![vec![rows, n], vec![n]],
            Kind::LayerNorm { rows, n } => vec![vec![rows, n], vec![n], vec![n]],
            Kind::Lora { rows, d } => vec![vec![rows, d], vec![d, d], vec![RANK, d], vec![d, RANK]],
            Kind::Attention { t, heads, kv_heads, d } => {
                vec![vec![1, t, heads, d], vec![1, t, kv_heads, d], vec![1, t, kv_heads, d]]
            }
        }
    }

    /// Returns true if a gradient with respect to an input is wanted: an adapter's layer is frozen.
    pub fn differentiated(&self, index: usize) -> bool {
        !(index == 1 && matches!(self.kind, Kind::Lora { .. }))
    }

    /// Returns true if a result has the shape of the first input, so that a chain can be made.
    pub fn chains(&self) -> bool {
        !self.backward && !matches!(self.kind, Kind::MatMul { n, k, .. } if n != k)
    }

    /// The values of input `index` of copy `copy`: between −1 and 1, for weights divided by the root of the inner length
    /// so that a chain neither grows nor dies. `((i·7919 + 104729·copy + 1299709·index) mod 2003) / 1001.5 − 1`.
    pub fn values(&self, index: usize, copy: usize) -> HostTensor {
        let shape = &self.inputs()[index];
        let scale = self.scale(index);
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i: usize| {
                scale * (((i * 7919 + copy * 104_729 + index * 1_299_709) % 2003) as f32 / 1001.5 - 1.0)
            })
            .collect();
        let tensor = HostTensor::from_slice(&values, shape.as_slice()).expect("as many values as elements");
        tensor.cast(self.dtype)
    }

    /// What the values of an input are multiplied by.
    pub fn scale(&self, index: usize) -> f32 {
        match self.kind {
            Kind::MatMul { k, .. } if index == 1 => (3.0 / k as f32).sqrt(),
            Kind::Lora { d, .. } if index == 1 || index == 2 => (3.0 / d as f32).sqrt(),
            _ => 1.0,
        }
    }

    /// Records the operation.
    pub fn record(&self, t: &[LazyTensor]) -> Result<LazyTensor> {
        match self.kind {
            Kind::MatMul { .. } => t[0].linear(&t[1]),
            Kind::Softmax { .. } | Kind::SoftmaxInner { .. } => t[0].softmax(1),
            Kind::RmsNorm { .. } => t[0].rms_norm(&t[1], EPS),
            Kind::LayerNorm { .. } => t[0].layer_norm(&t[1], Some(&t[2]), EPS),
            Kind::Lora { .. } => t[0].lora(&t[1], None, &t[2], &t[3], 2.0),
            Kind::Attention { d, .. } => {
                let op = Attention {
                    scale: Real(1.0 / (d as f32).sqrt()),
                    causal: true,
                    window: None,
                    cached: false,
                    segmented: false,
                };
                t[0].attention(&t[1], &t[2], op, &[])
            }
        }
    }

    /// The program of `copies` results, or of a chain of them, on a device: parameters hold the inputs, so that a run
    /// moves nothing to it, and its outputs are those that are asked for.
    pub fn program(&self, device: &Device, form: Form) -> Result<Program> {
        let graph = Graph::new();
        let parameters = |copy: usize| -> Result<Vec<LazyTensor>> {
            let tensor = |index: usize| {
                let name = format!("x{index}.{copy}");
                let trainable = self.backward && self.differentiated(index);
                let parameter = device.parameter(name, &self.values(index, copy), trainable)?;
                Ok(graph.parameter(&parameter))
            };
            (0..self.inputs().len()).map(tensor).collect()
        };
        let outputs = match form {
            Form::One | Form::Copies => {
                let copies = if form == Form::One { 1 } else { COPIES };
                let mut outputs = Vec::new();
                for copy in 0..copies {
                    let inputs = parameters(copy)?;
                    let y = self.record(&inputs)?;
                    if self.backward {
                        // The gradient of half the sum of squares is the result itself.
                        let loss = y.mul(&y)?.cast(DType::F32)?.sum_all()?.affine(0.5, 0.0)?;
                        let wanted = (0..inputs.len()).filter(|&index| self.differentiated(index));
                        let wanted: Vec<LazyTensor> = wanted.map(|index| inputs[index].clone()).collect();
                        outputs.extend(graph.gradients(&loss, &wanted)?);
                    } else {
                        outputs.push(y);
                    }
                }
                outputs
            }
            Form::Chain => {
                let inputs = parameters(0)?;
                let mut x = inputs[0].clone();
                for _ in 0..COPIES {
                    let mut link = inputs.clone();
                    link[0] = x;
                    x = self.record(&link)?;
                }
                vec![x]
            }
        };
        device.compile(&graph, &outputs, &[])
    }
}

/// How often an operation stands in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Once.
    One,
    /// [`COPIES`] times, on different inputs.
    Copies,
    /// [`COPIES`] times, each on the result of the one before.
    Chain,
}

/// Seconds an operation, by the three readings; a chain only where a result can be an input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// One result, waited for.
    pub latency: f64,
    /// One of [`COPIES`] independent results.
    pub throughput: f64,
    /// One of [`COPIES`] dependent ones.
    pub chain: Option<f64>,
}

/// A case made ready on a device.
pub struct Subject {
    programs: [Option<Program>; 3],
    outputs: [Vec<HostTensor>; 3],
}

impl Subject {
    /// Compiles the three forms and runs each once.
    pub fn new(case: &Case, device: &Device) -> Result<Self> {
        let chain = case.chains().then(|| case.program(device, Form::Chain)).transpose()?;
        let programs =
            [Some(case.program(device, Form::One)?), Some(case.program(device, Form::Copies)?), chain];
        let mut outputs = [const { Vec::new() }; 3];
        for (program, outputs) in programs.iter().zip(&mut outputs) {
            if let Some(program) = program {
                *outputs = program.run(&[])?;
            }
        }
        Ok(Self { programs, outputs })
    }

    /// The result of the first copy: every output's elements in f64.
    pub fn result(&self) -> Vec<f64> {
        self.outputs[0].iter().flat_map(HostTensor::to_f64).collect()
    }

    /// [`SAMPLES`] evenly spaced elements of every result of the last run of the copies, then of the chain.
    pub fn samples(&self) -> Vec<Vec<f64>> {
        self.outputs[1].iter().chain(&self.outputs[2]).map(samples).collect()
    }

    /// Floating-point operations and bytes of one result.
    pub fn cost(&self) -> Cost {
        let steps = self.programs[0].iter().flat_map(|program| &program.plan().steps);
        steps.map(Step::cost).fold(Cost::default(), |sum, cost| Cost {
            flops: sum.flops + cost.flops,
            read: sum.read + cost.read,
            written: sum.written + cost.written,
        })
    }

    /// Times every form: after a run that wakes the device, runs for `seconds` and at least three, of which the median
    /// counts. A run returns when its outputs are in the host's memory.
    pub fn read(&mut self, seconds: f64) -> Result<Reading> {
        let mut medians = [None; 3];
        for ((program, outputs), median) in self.programs.iter().zip(&mut self.outputs).zip(&mut medians) {
            let Some(program) = program else { continue };
            program.run_into(&[], outputs)?;
            let (started, mut samples) = (Instant::now(), Vec::new());
            while samples.len() < 3 || started.elapsed().as_secs_f64() < seconds {
                let begun = Instant::now();
                program.run_into(&[], outputs)?;
                samples.push(begun.elapsed().as_secs_f64());
            }
            samples.sort_by(f64::total_cmp);
            *median = Some(samples[samples.len() / 2]);
        }
        let each = |seconds: f64| seconds / COPIES as f64;
        Ok(Reading {
            latency: medians[0].unwrap_or_default(),
            throughput: medians[1].map(each).unwrap_or_default(),
            chain: medians[2].map(each),
        })
    }
}

/// Evenly spaced elements.
fn samples(tensor: &HostTensor) -> Vec<f64> {
    let (bytes, size, count) = (tensor.bytes(), tensor.dtype().size(), tensor.shape().elements());
    let element = |j: usize| {
        let at = j * count / SAMPLES * size;
        match (tensor.dtype(), &bytes[at..at + size]) {
            (DType::F16, b) => f64::from(half::f16::from_le_bytes([b[0], b[1]])),
            (DType::BF16, b) => f64::from(half::bf16::from_le_bytes([b[0], b[1]])),
            (_, b) => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        }
    };
    (0..SAMPLES).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_in_every_form_and_copies_differ() {
        let device = Device::cpu(2).unwrap();
        for case in cases(DType::F32) {
            if matches!(case.kind, Kind::Softmax { rows, .. } if rows > 1000)
                || matches!(case.kind, Kind::Lora { d, .. } | Kind::MatMul { k: d, .. } if d > 1024)
            {
                continue;
            }
            let mut subject = Subject::new(&case, &device).unwrap();
            let reading = subject.read(0.0).unwrap();
            assert!(reading.latency > 0.0 && reading.throughput > 0.0, "{case:?}");
            assert_eq!(reading.chain.is_some(), case.chains());
            let per = subject.outputs[1].len() / COPIES;
            let [first, second] = [0, per].map(|at| subject.outputs[1][at].to_f64());
            assert_eq!(first, subject.outputs[0][0].to_f64());
            assert!(first != second, "{case:?}: copies are of different inputs");
            let samples = subject.samples();
            assert_eq!(samples.len(), per * COPIES + usize::from(case.chains()));
            assert_eq!((samples[0][0], samples[0].len()), (first[0], SAMPLES));
            assert_eq!(samples[0][SAMPLES - 1], first[(SAMPLES - 1) * first.len() / SAMPLES]);
            assert!(subject.result().iter().all(|x| x.is_finite()), "{case:?}");
            assert!(subject.outputs[2].iter().all(|y| y.to_f64().iter().all(|x| x.is_finite())), "{case:?}");
        }
    }
}
