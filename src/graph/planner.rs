//! Assigns memory to the nodes of a graph.
//!
//! Steps run in recording order. Every intermediate result has a place in one arena for as long as it is needed; an operation
//! may write over an input that nothing needs afterward. Views cost nothing; where a kernel cannot read one, a copy is
//! inserted.

use std::collections::{HashMap, HashSet};

use super::arena::{Interval, pack, peak};
use super::plan::{Operand, Place, Plan, PlanInput, Step};
use super::{Nodes, Source, Target};
use crate::ops::{Copy, Op, Value};
use crate::tensor::{Constant, DType, Layout, Parameter, TensorSpec};
use crate::{Error, Result};

/// A buffer before it has a place.
#[derive(Debug, Clone)]
struct Storage {
    bytes: usize,
    /// Where it lies, if that is not in the arena.
    fixed_place: Option<Place>,
    first: usize,
    last: usize,
}

/// A value as a view of a storage.
#[derive(Debug, Clone)]
struct View {
    storage: usize,
    dtype: DType,
    layout: Layout,
}

struct PendingStep {
    op: Op,
    node: usize,
    inputs: Vec<View>,
    outputs: Vec<Option<View>>,
    output_specs: Vec<TensorSpec>,
}

pub(super) struct Planner<'a> {
    nodes: &'a Nodes,
    live: Vec<bool>,
    used: HashSet<Value>,
    pending: Vec<PendingStep>,
    storages: Vec<Storage>,
    views: HashMap<Value, View>,
    copies: HashMap<Value, View>,
    superseded: HashSet<Value>,
    inputs: Vec<(String, View, Option<Constant>)>,
    parameters: Vec<Parameter>,
    pinned: HashSet<usize>,
    direct: bool,
}

impl<'a> Planner<'a> {
    pub(super) fn new(nodes: &'a Nodes, outputs: &[Value], updates: &[Value], direct: bool) -> Self {
        let mut live = vec![false; nodes.list.len()];
        let mut used: HashSet<Value> = outputs.iter().copied().collect();
        for value in outputs.iter().chain(updates) {
            live[value.node] = true;
        }
        for index in (0..nodes.list.len()).rev() {
            if live[index] {
                for &input in &nodes.list[index].inputs {
                    live[input.node] = true;
                    used.insert(input);
                }
            }
        }
        Self {
            nodes,
            live,
            used,
            pending: Vec::new(),
            storages: Vec::new(),
            views: HashMap::new(),
            copies: HashMap::new(),
            superseded: HashSet::new(),
            inputs: Vec::new(),
            parameters: Vec::new(),
            pinned: HashSet::new(),
            direct,
        }
    }

    fn storage(&mut self, bytes: usize, fixed_place: Option<Place>) -> usize {
        let now = self.pending.len();
        self.storages.push(Storage { bytes, fixed_place, first: now, last: now });
        self.storages.len() - 1
    }

    /// The next input of the plan.
    fn given(&mut self, spec: &TensorSpec) -> View {
        if !self.direct {
            let view = self.contiguous(spec);
            self.storages[view.storage].first = 0;
            return view;
        }
        let storage = self.storage(0, Some(Place::Input(self.inputs.len())));
        View { storage, dtype: spec.dtype, layout: Layout::contiguous(&spec.shape) }
    }

    fn contiguous(&mut self, spec: &TensorSpec) -> View {
        let storage = self.storage(spec.bytes(), None);
        View { storage, dtype: spec.dtype, layout: Layout::contiguous(&spec.shape) }
    }

    /// Turns live nodes into steps on storages that all have their own memory.
    pub(super) fn lower(&mut self) -> Result<()> {
        for index in 0..self.nodes.list.len() {
            // Every recorded input is part of the plan, read or not, so that callers give them by position.
            let source = &self.nodes.list[index].source;
            if !self.live[index] && !matches!(source, Source::Input(_) | Source::View(..)) {
                continue;
            }
            let node = &self.nodes.list[index];
            let value = Value { node: index, port: 0 };
            match &node.source {
                Source::Input(name) => {
                    let view = self.given(&node.outputs[0]);
                    self.inputs.push((name.clone(), view.clone(), None));
                    self.views.insert(value, view);
                }
                Source::View(name, layout) => {
                    if !self.direct {
                        let message = "has strides of its own, which this device cannot read in place";
                        return Err(Error::invalid(name.clone(), message));
                    }
                    let view = View { layout: layout.clone(), ..self.given(&node.outputs[0]) };
                    self.inputs.push((name.clone(), view.clone(), None));
                    self.views.insert(value, view);
                }
                Source::Constant(tensor) => {
                    let view = self.given(&node.outputs[0]);
                    let constant = Constant::Host(tensor.clone());
                    self.inputs.push((format!("constant {index}"), view.clone(), Some(constant)));
                    self.views.insert(value, view);
                }
                Source::Candle(tensor) => {
                    let mut view = self.given(&node.outputs[0]);
                    if self.direct {
                        view.layout = tensor.layout().clone();
                    }
                    let constant = Constant::Candle(tensor.clone());
                    self.inputs.push((format!("tensor {index}"), view.clone(), Some(constant)));
                    self.views.insert(value, view);
                }
                Source::Parameter(parameter) => {
                    self.parameters.push(parameter.clone());
                    let storage = self.storage(0, Some(Place::Parameter(self.parameters.len() - 1)));
                    let layout = Layout::contiguous(&node.outputs[0].shape);
                    self.views.insert(value, View { storage, dtype: node.outputs[0].dtype, layout });
                }
                Source::Operation(op) => self.lower_operation(index, op)?,
            }
        }
        Ok(())
    }

    fn lower_operation(&mut self, index: usize, op: &Op) -> Result<()> {
        let node = &self.nodes.list[index];
        let contract = op.contract();
        if matches!(op, Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_)) {
            let mut view = self.read(node.inputs[0], op.name())?;
            let layout = match contract.view(&view.layout) {
                Some(layout) => layout,
                None => {
                    view = self.copied(node.inputs[0], &view);
                    contract.view(&view.layout).expect("a contiguous tensor has every view")
                }
            };
            let output = View { layout, ..view };
            self.views.insert(Value { node: index, port: 0 }, output);
            return Ok(());
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        let updates = contract.updates(node.inputs.len());
        for (input, &value) in node.inputs.iter().enumerate() {
            let mut view = self.read(value, op.name())?;
            // What the caller gives is not written to.
            let updated = updates.iter().any(|&(updated, _)| updated == input);
            let foreign = matches!(self.storages[view.storage].fixed_place, Some(Place::Input(_)));
            if !contract.accepts(input, &view.layout) || (updated && foreign) {
                view = self.copied(value, &view);
            }
            inputs.push(view);
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for (port, spec) in node.outputs.iter().enumerate() {
            let value = Value { node: index, port };
            if let Some(&(input, _)) = updates.iter().find(|&&(_, output)| output == port) {
                self.superseded.insert(node.inputs[input]);
                self.views.insert(value, inputs[input].clone());
                outputs.push(Some(inputs[input].clone()));
            } else if self.used.contains(&value) {
                let view = self.contiguous(spec);
                self.views.insert(value, view.clone());
                outputs.push(Some(view));
            } else {
                outputs.push(None);
            }
        }
        self.push(PendingStep {
            op: op.clone(),
            node: index,
            inputs,
            outputs,
            output_specs: node.outputs.clone(),
        });
        Ok(())
    }

    fn read(&self, value: Value, reader: &'static str) -> Result<View> {
        if self.superseded.contains(&value) {
            let message =
                format!("reads node {} after it was updated in place; read the update's result", value.node);
            return Err(Error::invalid(reader, message));
        }
        Ok(self.views[&value].clone())
    }

    /// A contiguous copy of a view, made once.
    fn copied(&mut self, value: Value, view: &View) -> View {
        if let Some(copy) = self.copies.get(&value) {
            return copy.clone();
        }
        let spec = TensorSpec::new(view.dtype, view.layout.shape.clone());
        let copy = self.contiguous(&spec);
        self.push(PendingStep {
            op: Copy.into(),
            node: value.node,
            inputs: vec![view.clone()],
            outputs: vec![Some(copy.clone())],
            output_specs: vec![spec],
        });
        self.copies.insert(value, copy.clone());
        copy
    }

    fn push(&mut self, draft: PendingStep) {
        let now = self.pending.len();
        for view in draft.inputs.iter().chain(draft.outputs.iter().flatten()) {
            self.storages[view.storage].last = now;
        }
        self.pending.push(draft);
    }

    pub(super) fn finish(mut self, outputs: &[Value], target: &dyn Target) -> Result<Plan> {
        let mut output_views = Vec::new();
        for &value in outputs {
            let mut view = self.read(value, "output")?;
            if !view.layout.is_contiguous() {
                view = self.copied(value, &view);
            }
            output_views.push(view);
        }
        let end = self.pending.len();
        for view in &output_views {
            self.storages[view.storage].last = end;
            self.pinned.insert(view.storage);
        }
        let donated_to = self.donate();
        for view in &mut output_views {
            view.storage = donated_to[view.storage];
        }
        if self.direct {
            for (index, view) in output_views.iter().enumerate() {
                let storage = &mut self.storages[view.storage];
                let bytes = view.layout.shape.elements() * view.dtype.size();
                if storage.fixed_place.is_none() && storage.bytes == bytes && view.layout.offset == 0 {
                    (storage.fixed_place, storage.bytes) = (Some(Place::Output(index)), 0);
                }
            }
        }

        let places_of =
            |storage: &Storage, offset: usize| storage.fixed_place.unwrap_or(Place::Arena(offset));
        // Scratch depends on layouts only, so operands with provisional places serve to ask for it.
        let provisional = |view: &View| Operand {
            place: places_of(&self.storages[view.storage], 0),
            dtype: view.dtype,
            layout: view.layout.clone(),
        };
        let wanted: Vec<usize> = self
            .pending
            .iter()
            .map(|draft| {
                let inputs: Vec<Operand> = draft.inputs.iter().map(provisional).collect();
                target.scratch(&draft.op, &inputs, &draft.output_specs)
            })
            .collect();
        let mut intervals: Vec<Interval> =
            self.storages.iter().map(|s| Interval { bytes: s.bytes, first: s.first, last: s.last }).collect();
        let scratch_start = intervals.len();
        intervals.extend(wanted.iter().enumerate().map(|(step, &bytes)| Interval {
            bytes,
            first: step,
            last: step,
        }));
        let (offsets, arena_bytes) = pack(&intervals);

        let operand = |view: &View| Operand {
            place: places_of(&self.storages[view.storage], offsets[view.storage]),
            dtype: view.dtype,
            layout: view.layout.clone(),
        };
        let steps = self
            .pending
            .iter()
            .enumerate()
            .map(|(index, draft)| Step {
                op: draft.op.clone(),
                node: draft.node,
                inputs: draft.inputs.iter().map(operand).collect(),
                outputs: draft.outputs.iter().map(|view| view.as_ref().map(operand)).collect(),
                output_specs: draft.output_specs.clone(),
                scratch: (offsets[scratch_start + index], wanted[index]),
            })
            .collect();
        Ok(Plan {
            steps,
            inputs: self
                .inputs
                .iter()
                .map(|(name, view, constant)| PlanInput {
                    name: name.clone(),
                    operand: operand(view),
                    constant: constant.clone(),
                })
                .collect(),
            outputs: output_views.iter().map(operand).collect(),
            live_bytes: peak(&intervals, end),
            arena_bytes,
            parameters: self.parameters,
        })
    }

    /// Lets outputs take over the memory of inputs that die at the same step. Returns the storage that each one
    /// became.
    fn donate(&mut self) -> Vec<usize> {
        let mut donated_to: Vec<usize> = (0..self.storages.len()).collect();
        for step in 0..self.pending.len() {
            let PendingStep { inputs, outputs, .. } = &mut self.pending[step];
            for view in inputs.iter_mut().chain(outputs.iter_mut().flatten()) {
                view.storage = donated_to[view.storage];
            }
            let mut served = Vec::new();
            for (input, output) in self.pending[step].op.contract().donations() {
                let draft = &self.pending[step];
                if served.contains(&output) {
                    continue;
                }
                let (Some(giver), Some(Some(taker))) = (draft.inputs.get(input), draft.outputs.get(output))
                else {
                    continue;
                };
                let (from, to) = (giver.storage, taker.storage);
                let readers = draft.inputs.iter().filter(|view| view.storage == from).count();
                let writers = draft.outputs.iter().flatten().filter(|view| view.storage == from).count();
                let (old, new) = (&self.storages[from], &self.storages[to]);
                let fits = from != to
                    && readers == 1
                    && writers == 0
                    && old.fixed_place.is_none()
                    && new.fixed_place.is_none()
                    && old.last == step
                    && new.first == step
                    && !self.pinned.contains(&from)
                    && old.bytes == new.bytes
                    && giver.layout.is_contiguous()
                    && giver.layout.offset == 0;
                if !fits {
                    continue;
                }
                served.push(output);
                self.storages[from].last = new.last;
                self.storages[to].bytes = 0;
                if self.pinned.remove(&to) {
                    self.pinned.insert(from);
                }
                for entry in &mut donated_to {
                    if *entry == to {
                        *entry = from;
                    }
                }
                for view in self.pending[step].outputs.iter_mut().flatten() {
                    view.storage = donated_to[view.storage];
                }
            }
        }
        donated_to
    }
}
