//! The memory plan of a computation: steps in order, with places for all their tensors.

use super::planner::Planner;
use super::{Graph, LazyTensor, Nodes, Target, fuse};
use crate::ops::{Op, Value};
use crate::tensor::{Constant, DType, Layout, Parameter, TensorSpec};
use crate::{Error, Result};

/// Where a tensor's buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the arena, at this byte.
    Arena(usize),
    /// The plan's parameter with this number.
    Parameter(usize),
    /// The memory that is given as the plan's input of this number; it is never written.
    Input(usize),
    /// The memory that is given for the plan's output of this number.
    Output(usize),
}

/// A tensor as a kernel sees it: a place, and a layout over it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Where the buffer is.
    pub place: Place,
    /// The element type.
    pub dtype: DType,
    /// The elements within the buffer.
    pub layout: Layout,
}

impl Operand {
    /// Dtype and shape.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec::new(self.dtype, self.layout.shape.clone())
    }
}

/// One execution of an operation.
#[derive(Debug, Clone)]
pub struct Step {
    /// The operation.
    pub op: Op,
    /// Its node, for messages.
    pub node: usize,
    /// Its inputs.
    pub inputs: Vec<Operand>,
    /// Its outputs; `None` for one that nothing reads.
    pub outputs: Vec<Option<Operand>>,
    /// Dtype and shape of every output, read or not.
    pub output_specs: Vec<TensorSpec>,
    /// Working memory: the first byte in the arena, and how many.
    pub scratch: (usize, usize),
}

/// An input of a plan.
#[derive(Debug, Clone)]
pub struct PlanInput {
    /// Its name.
    pub name: String,
    /// Where it is put.
    pub operand: Operand,
    /// Its value, if it was recorded as a constant.
    pub constant: Option<Constant>,
}

/// A program for any device: steps in order, with places for everything.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What runs.
    pub steps: Vec<Step>,
    /// What is given at every run.
    pub inputs: Vec<PlanInput>,
    /// What is read after every run.
    pub outputs: Vec<Operand>,
    /// What lives on the device.
    pub parameters: Vec<Parameter>,
    /// The arena's size.
    pub arena_bytes: usize,
    /// The largest sum of what lives at one step: what a perfect packing would need.
    pub live_bytes: usize,
}

impl Plan {
    /// Plans the computation of `outputs`, and of `updates`, which are computed for their effect on parameters.
    ///
    /// Operations that the target has a common kernel for are fused first.
    ///
    /// # Errors
    /// An output belongs to another graph, or a value is read after it was updated in place.
    pub fn new(
        graph: &Graph,
        outputs: &[LazyTensor],
        updates: &[LazyTensor],
        target: &dyn Target,
    ) -> Result<Self> {
        if outputs.iter().chain(updates).any(|tensor| !tensor.graph().is(graph)) {
            return Err(Error::invalid("plan", "an output belongs to another graph"));
        }
        let values: Vec<Value> = outputs.iter().chain(updates).map(LazyTensor::value).collect();
        if target.fuses() {
            let (nodes, values) = fuse::fused_for(&graph.nodes(), &values, target)?;
            return Self::of_nodes(&nodes, &values[..outputs.len()], &values[outputs.len()..], target);
        }
        Self::of_nodes(&graph.nodes(), &values[..outputs.len()], &values[outputs.len()..], target)
    }

    fn of_nodes(nodes: &Nodes, outputs: &[Value], updates: &[Value], target: &dyn Target) -> Result<Self> {
        let mut planner = Planner::new(nodes, outputs, updates, target.in_place_io());
        planner.lower()?;
        planner.finish(outputs, target)
    }

    /// Floating-point operations of one run.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|step| step.cost().flops).sum()
    }
}

impl Step {
    /// What the step moves and computes; outputs that nothing reads are not counted as written.
    pub fn cost(&self) -> crate::ops::Cost {
        let inputs: Vec<TensorSpec> = self.inputs.iter().map(Operand::spec).collect();
        let unread: u64 = self
            .outputs
            .iter()
            .zip(&self.output_specs)
            .filter(|(operand, _)| operand.is_none())
            .map(|(_, spec)| spec.bytes() as u64)
            .sum();
        let mut cost = self.op.cost(&inputs, &self.output_specs);
        cost.written -= unread;
        cost
    }
}
