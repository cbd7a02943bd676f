//! What operations mean: attributes, shape rule, gradient, cost and a scalar reference for each, without any
//! device code. How an operation runs is the business of [`crate::backend`]. `ops/README.md` says how to add one.

#![forbid(unsafe_code)]

mod accumulate;
mod adamw;
mod attention;
mod cast;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod epilogue;
mod kv_write;
mod layer_norm;
mod layout;
mod lora;
mod matmul;
mod quant_matmul;
mod reduce;
pub mod reference;
mod rms_norm;
mod rope;
mod rope_kv_write;
mod sample;
mod silu_mul;
mod softmax;
mod top_k;

use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

pub use accumulate::Accumulate;
pub use adamw::AdamW;
pub use attention::{Attention, AttentionGrad};
pub use cast::Cast;
pub use cross_entropy::CrossEntropy;
pub use dropout::Dropout;
pub(crate) use dropout::philox;
pub use elementwise::{Affine, Binary, BinaryFn, Fill, Scale, Unary, UnaryFn, UnaryGrad};
pub use embedding::{Embedding, EmbeddingGrad};
pub(crate) use epilogue::MAX_SUMS;
pub use epilogue::{Epilogue, EpilogueKind};
pub use kv_write::KvWrite;
pub use layer_norm::{LayerNorm, LayerNormGrad};
pub use layout::{Broadcast, Concat, Copy, Permute, Reshape, Slice, Unslice};
pub(crate) use lora::total_rank;
pub use lora::{Lora, LoraGrad, LoraSlot};
pub use matmul::MatMul;
pub(crate) use quant_matmul::MOST_ELEMENTS;
pub use quant_matmul::{Blocks, QuantMatMul, QuantMatMulGrad};
pub use reduce::{GlobalNorm, Reduce, ReduceFn};
use reference::Reference;
pub use rms_norm::{RmsNorm, RmsNormGrad};
pub use rope::Rope;
pub use rope_kv_write::RopeKvWrite;
pub use sample::Sample;
pub(crate) use sample::{NONE as SAMPLE_NONE, word as sample_word};
pub use silu_mul::{SiluMul, SiluMulGrad};
pub(crate) use softmax::split;
pub use softmax::{LogSoftmax, LogSoftmaxGrad, Softmax, SoftmaxGrad};
pub use top_k::{ArgMax, TopK};

/// A result of a node: which node, and which of its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node's number in its graph.
    pub node: usize,
    /// The output's number.
    pub port: usize,
}

/// An f32 attribute that can be compared and hashed (by its bits).
#[derive(Debug, Clone, Copy)]
pub struct Real(pub f32);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl From<f32> for Real {
    fn from(value: f32) -> Self {
        Self(value)
    }
}

/// What an execution of an operation moves and computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes read, each input element once.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// Whatever can record an operation: a graph, seen from a gradient rule.
pub trait Recorder {
    /// Records `op` and returns its outputs.
    fn record(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>>;
    /// Dtype and shape of a value.
    fn spec(&self, value: Value) -> TensorSpec;
    /// The number that a value is filled with, if it is known when the graph is built.
    fn known(&self, value: Value) -> Option<f32>;
}

impl dyn Recorder + '_ {
    /// Records an operation and returns its first output.
    pub fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        Ok(self.record(op.into(), inputs)?[0])
    }
}

/// What a gradient rule works with.
pub struct Backward<'a> {
    /// Where new operations are recorded.
    pub recorder: &'a mut dyn Recorder,
    /// The inputs of the forward operation.
    pub inputs: &'a [Value],
    /// Its outputs.
    pub outputs: &'a [Value],
    /// The gradient that arrives at each output; `None` where nothing depends on it.
    pub upstream: &'a [Option<Value>],
    /// Which inputs need a gradient.
    pub needed: &'a [bool],
}

impl Backward<'_> {
    /// Records an operation and returns its first output.
    pub fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value> {
        self.recorder.one(op, inputs)
    }

    /// The shape and dtype of input `index`.
    pub fn input_spec(&self, index: usize) -> TensorSpec {
        self.recorder.spec(self.inputs[index])
    }
}

/// The contract of an operation.
pub trait Operation {
    /// The operation's one name: of its file, kernel, test and bench.
    fn name(&self) -> &'static str;

    /// The shape rule: specs of the outputs, or why the inputs do not fit.
    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>>;

    /// Returns true if a gradient with respect to input `input` exists.
    fn differentiable(&self, _input: usize) -> bool {
        false
    }

    /// Records the gradient with respect to each needed input.
    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![None; cx.inputs.len()])
    }

    /// Floating-point operations of one execution.
    fn flops(&self, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> u64;

    /// The definition, in f64, element by element. Used by tests only.
    fn reference(&self, inputs: &[Reference]) -> Vec<Reference>;

    /// Returns true if kernels take input `input` in this layout; otherwise the planner copies it.
    fn accepts(&self, _input: usize, layout: &Layout) -> bool {
        layout.is_contiguous()
    }

    /// Pairs (input, output) that may share memory when the input is not needed afterwards.
    fn donations(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Pairs (input, output) that do share memory: the operation updates the input in place.
    fn updates(&self, _inputs: usize) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// The output as a view of the input, for operations that move nothing.
    fn view(&self, _input: &Layout) -> Option<Layout> {
        None
    }
}

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// Any operation. The set is the same whatever features are on.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each variant is the struct of the same name")]
        #[non_exhaustive]
        pub enum Op {
            $($name($name),)*
        }

        impl Op {
            /// The operation's contract.
            pub fn contract(&self) -> &dyn Operation {
                match self {
                    $(Self::$name(op) => op,)*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self {
                Self::$name(op)
            }
        })*
    };
}

operations!(
    Accumulate,
    AdamW,
    Affine,
    ArgMax,
    Attention,
    AttentionGrad,
    Binary,
    Broadcast,
    Cast,
    Concat,
    Copy,
    CrossEntropy,
    Dropout,
    Embedding,
    EmbeddingGrad,
    Epilogue,
    Fill,
    GlobalNorm,
    KvWrite,
    LayerNorm,
    LayerNormGrad,
    LogSoftmax,
    LogSoftmaxGrad,
    Lora,
    LoraGrad,
    MatMul,
    Permute,
    QuantMatMul,
    QuantMatMulGrad,
    Reduce,
    Reshape,
    RmsNorm,
    RmsNormGrad,
    Rope,
    RopeKvWrite,
    Sample,
    Scale,
    SiluMul,
    SiluMulGrad,
    Slice,
    Softmax,
    SoftmaxGrad,
    TopK,
    Unary,
    UnaryGrad,
    Unslice,
);

impl Op {
    /// The operation's name.
    pub fn name(&self) -> &'static str {
        self.contract().name()
    }

    /// What one execution moves and computes.
    pub fn cost(&self, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Cost {
        let bytes = |specs: &[TensorSpec]| specs.iter().map(|spec| spec.bytes() as u64).sum();
        Cost { flops: self.contract().flops(inputs, outputs), read: bytes(inputs), written: bytes(outputs) }
    }
}

/// Checks the number of inputs.
pub(crate) fn expect_inputs(op: &'static str, inputs: &[TensorSpec], count: usize) -> Result<()> {
    if inputs.len() == count {
        return Ok(());
    }
    Err(Error::invalid(op, format!("takes {count} inputs, {} given", inputs.len())))
}

/// Checks that an input holds real numbers.
pub(crate) fn expect_float(op: &'static str, inputs: &[&TensorSpec]) -> Result<()> {
    if inputs.iter().all(|spec| spec.dtype.is_float()) {
        return Ok(());
    }
    let dtypes: Vec<_> = inputs.iter().map(|spec| spec.dtype).collect();
    Err(Error::dtype(op, "takes f32, f16 or bf16", &dtypes))
}

/// Checks an input's dtype and shape together.
pub(crate) fn expect_spec(
    op: &'static str,
    what: &str,
    found: &TensorSpec,
    expected: &TensorSpec,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    if found.dtype != expected.dtype {
        return Err(Error::dtype(
            op,
            format!("{what} must be {expected}, is {found}"),
            &[found.dtype, expected.dtype],
        ));
    }
    Err(Error::shape(op, format!("{what} must be {expected}, is {found}"), &[&found.shape, &expected.shape]))
}

/// Checks an input's shape.
pub(crate) fn expect_shape(
    op: &'static str,
    what: &str,
    found: &TensorSpec,
    expected: &[usize],
) -> Result<()> {
    if found.shape.dims() == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} must have shape {expected:?}"), &[&found.shape]))
}
