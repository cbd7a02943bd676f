//! Recording operations, differentiating them, rewriting them, planning their execution.
//!
//! A [`Graph`] is a list of nodes in the order in which they were recorded; a [`LazyTensor`] is one result in it.
//! [`Graph::gradients`] appends the backward pass, [`Graph::fused`] rewrites, and [`Plan`] gives every
//! intermediate its place in one arena. Nothing here knows a device.

#![forbid(unsafe_code)]

mod arena;
mod fuse;
mod grad;
mod lazy;
mod plan;
mod planner;
mod target;

use std::sync::{Arc, Mutex, MutexGuard};

pub use lazy::LazyTensor;
#[cfg(test)]
mod tests;

pub use plan::{Operand, Place, Plan, PlanInput, Step};
pub use target::Target;

use crate::Result;
use crate::ops::{Op, Recorder, Value};
use crate::tensor::{CandleTensor, DType, HostTensor, Layout, Parameter, TensorSpec};

/// Where a node's outputs come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Given at every run.
    Input(String),
    /// Given at every run as a view of more memory than its elements.
    View(String, Layout),
    /// Lives on the device.
    Parameter(Parameter),
    /// Known when the graph is recorded.
    Constant(HostTensor),
    /// A tensor of candle's.
    Candle(CandleTensor),
    /// Computed.
    Operation(Op),
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) source: Source,
    pub(crate) inputs: Vec<Value>,
    pub(crate) outputs: Vec<TensorSpec>,
    /// The checkpointed block that the node belongs to.
    pub(crate) block: Option<u32>,
}

/// The nodes of a graph, each after its inputs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    pub(crate) list: Vec<Node>,
    block: Option<u32>,
    blocks: u32,
}

impl Nodes {
    pub(crate) fn push(&mut self, source: Source, inputs: Vec<Value>, outputs: Vec<TensorSpec>) -> usize {
        self.list.push(Node { source, inputs, outputs, block: self.block });
        self.list.len() - 1
    }

    pub(crate) fn spec(&self, value: Value) -> &TensorSpec {
        &self.list[value.node].outputs[value.port]
    }

    pub(crate) fn operation(&self, value: Value) -> Option<&Op> {
        match &self.list[value.node].source {
            Source::Operation(op) => Some(op),
            _ => None,
        }
    }

    fn leaf(&mut self, source: Source, spec: TensorSpec) -> Value {
        let block = self.block.take();
        let node = self.push(source, Vec::new(), vec![spec]);
        self.block = block;
        Value { node, port: 0 }
    }

    pub(crate) fn parameter(&mut self, parameter: &Parameter) -> Value {
        let known = self.list.iter().position(|node| match &node.source {
            Source::Parameter(other) => other.same(parameter),
            _ => false,
        });
        match known {
            Some(node) => Value { node, port: 0 },
            None => self.leaf(Source::Parameter(parameter.clone()), parameter.spec().clone()),
        }
    }

    /// For each value, the nodes that read it.
    pub(crate) fn consumers(&self) -> std::collections::HashMap<Value, Vec<usize>> {
        let mut consumers = std::collections::HashMap::<Value, Vec<usize>>::new();
        for (index, node) in self.list.iter().enumerate() {
            for &input in &node.inputs {
                consumers.entry(input).or_default().push(index);
            }
        }
        consumers
    }
}

impl Recorder for Nodes {
    fn record(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>> {
        let specs: Vec<TensorSpec> = inputs.iter().map(|&value| self.spec(value).clone()).collect();
        let outputs = op.contract().infer(&specs)?;
        let ports = outputs.len();
        let node = self.push(Source::Operation(op), inputs.to_vec(), outputs);
        Ok((0..ports).map(|port| Value { node, port }).collect())
    }

    fn spec(&self, value: Value) -> TensorSpec {
        Self::spec(self, value).clone()
    }

    fn known(&self, value: Value) -> Option<f32> {
        match self.operation(value) {
            Some(Op::Fill(fill)) => Some(fill.value.0),
            _ => None,
        }
    }
}

/// A recording. Cloning gives another handle of the same recording.
///
/// ```
/// use metal_candle::backend::Device;
/// use metal_candle::graph::Graph;
/// use metal_candle::tensor::HostTensor;
///
/// # fn main() -> metal_candle::Result<()> {
/// let graph = Graph::new();
/// let x = graph.constant(HostTensor::from_slice(&[1.0_f32, 2.0, 3.0], [1, 3])?);
/// let y = x.softmax(1)?.eval(&Device::cpu(1)?)?;
/// assert!((y.as_slice::<f32>()?[2] - 0.665_240_94).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Graph(Arc<Mutex<Nodes>>);

impl Graph {
    /// An empty recording.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tensor(&self, value: Value) -> LazyTensor {
        LazyTensor::new(self.clone(), value)
    }

    fn from_nodes(nodes: Nodes) -> Self {
        Self(Arc::new(Mutex::new(nodes)))
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A tensor whose value is given at every run.
    pub fn input(&self, name: impl Into<String>, spec: TensorSpec) -> LazyTensor {
        let value = self.nodes().leaf(Source::Input(name.into()), spec);
        self.tensor(value)
    }

    /// A tensor whose elements are given at every run, where they lie in memory of the caller's: the first byte that is
    /// given is the layout's element 0. Only devices that read their inputs in place can plan it.
    pub(crate) fn view(&self, name: impl Into<String>, dtype: DType, layout: Layout) -> LazyTensor {
        let spec = TensorSpec::new(dtype, layout.shape.clone());
        let value = self.nodes().leaf(Source::View(name.into(), layout), spec);
        self.tensor(value)
    }

    /// A tensor on the device; recording the same one twice gives the same node.
    pub fn parameter(&self, parameter: &Parameter) -> LazyTensor {
        let value = self.nodes().parameter(parameter);
        self.tensor(value)
    }

    /// A tensor whose value is known now.
    pub fn constant(&self, tensor: HostTensor) -> LazyTensor {
        let spec = tensor.spec().clone();
        let value = self.nodes().leaf(Source::Constant(tensor), spec);
        self.tensor(value)
    }

    /// A tensor of candle's.
    pub(crate) fn candle_tensor(&self, tensor: CandleTensor) -> LazyTensor {
        let spec = tensor.spec();
        let value = self.nodes().leaf(Source::Candle(tensor), spec);
        self.tensor(value)
    }

    /// A tensor with the same value everywhere.
    pub fn full(&self, value: f32, spec: TensorSpec) -> Result<LazyTensor> {
        self.record(crate::ops::Fill { value: value.into(), spec }, &[]).map(|mut outputs| outputs.remove(0))
    }

    /// Records an operation and returns its outputs.
    pub fn record(&self, op: impl Into<Op>, inputs: &[&LazyTensor]) -> Result<Vec<LazyTensor>> {
        let op = op.into();
        if inputs.iter().any(|input| !input.graph().is(self)) {
            return Err(crate::Error::invalid(op.name(), "an input belongs to another graph"));
        }
        let values: Vec<Value> = inputs.iter().map(|input| input.value()).collect();
        let outputs = self.nodes().record(op, &values)?;
        Ok(outputs.into_iter().map(|value| self.tensor(value)).collect())
    }

    /// Records what `f` records as one checkpointed block: its intermediates are not kept for the backward pass
    /// but computed again from the block's inputs when the backward pass reaches it (Chen et al., 2016,
    /// arXiv:1604.06174). Blocks do not nest.
    pub fn checkpointed<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        {
            let mut nodes = self.nodes();
            if nodes.block.is_some() {
                return Err(crate::Error::invalid("checkpointed", "blocks do not nest"));
            }
            nodes.block = Some(nodes.blocks);
            nodes.blocks += 1;
        }
        let result = f();
        self.nodes().block = None;
        result
    }

    /// The gradients of a scalar with respect to tensors of this graph.
    ///
    /// An operation without a gradient between one of `wrt` (or any trainable parameter) and the loss is an
    /// error that names it, and so is a tensor on which the loss does not depend: no gradient vanishes in
    /// silence.
    pub fn gradients(&self, loss: &LazyTensor, wrt: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
        let values: Vec<Value> = wrt.iter().map(LazyTensor::value).collect();
        let gradients = grad::gradients(&mut self.nodes(), loss.value(), &values)?;
        Ok(gradients.into_iter().map(|value| self.tensor(value)).collect())
    }

    /// The gradients with respect to `wrt`, given the one that arrives at `result`; `saved` holds pairs of a value of the
    /// forward pass and what stands for it, if it was computed before.
    pub(crate) fn vjp(
        &self,
        result: &LazyTensor,
        upstream: &LazyTensor,
        wrt: &[LazyTensor],
        saved: &[(LazyTensor, LazyTensor)],
    ) -> Result<Vec<LazyTensor>> {
        let wrt: Vec<Value> = wrt.iter().map(LazyTensor::value).collect();
        let saved = saved.iter().map(|(value, known)| (value.value(), known.value())).collect();
        let gradients = grad::vjp(&mut self.nodes(), result.value(), upstream.value(), &wrt, &saved)?;
        Ok(gradients.into_iter().map(|value| self.tensor(value)).collect())
    }

    /// The same computation with fewer, larger operations: residual addition with RMS norm, SiLU with its
    /// product, products that share an input and lie side by side in one weight, and low-rank adapters as one
    /// operation. Returns the rewritten graph and `tensors` in it. Rewrite before asking for gradients.
    pub fn fused(&self, tensors: &[LazyTensor]) -> Result<(Self, Vec<LazyTensor>)> {
        let values: Vec<Value> = tensors.iter().map(LazyTensor::value).collect();
        let (nodes, values) = fuse::fused(&self.nodes(), &values)?;
        let graph = Self::from_nodes(nodes);
        let tensors = values.into_iter().map(|value| graph.tensor(value)).collect();
        Ok((graph, tensors))
    }

    /// How often each operation stands in the graph, by name.
    pub fn op_counts(&self) -> std::collections::BTreeMap<&'static str, usize> {
        let mut op_counts = std::collections::BTreeMap::new();
        for node in &self.nodes().list {
            if let Source::Operation(op) = &node.source {
                *op_counts.entry(op.name()).or_default() += 1;
            }
        }
        op_counts
    }
}
