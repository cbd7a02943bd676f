//! Rewrites: fewer, larger operations that compute the same.
//!
//! The old nodes are visited in order and recorded anew. A pattern is replaced where its first node stands; its
//! other results are noted, so that the nodes they came from are passed over when their turn comes.

mod target;

use std::collections::HashMap;

use super::{Node, Nodes, Source, Target};
use crate::ops::{
    BinaryFn, Lora, LoraSlot, MatMul, Op, Real, Recorder, RmsNorm, SiluMul, Slice, UnaryFn, Value,
};
use crate::{Error, Result};

/// The rewritten nodes, and where `values` are in them. Nodes that `values` do not need are left out.
pub(super) fn fused(old: &Nodes, values: &[Value]) -> Result<(Nodes, Vec<Value>)> {
    // Products are joined last, when an adapter and its base product are one operation.
    let (nodes, values) = rewritten(old, values, Stage::Patterns)?;
    rewritten(&nodes, &values, Stage::Products)
}

/// The nodes rewritten for the kernels of a device, and where `values` are in them.
pub(super) fn fused_for(old: &Nodes, values: &[Value], target: &dyn Target) -> Result<(Nodes, Vec<Value>)> {
    rewritten(old, values, Stage::Target(target))
}

#[derive(Clone, Copy)]
enum Stage<'a> {
    Patterns,
    Products,
    Target(&'a dyn Target),
}

fn rewritten(old: &Nodes, values: &[Value], stage: Stage<'_>) -> Result<(Nodes, Vec<Value>)> {
    let mut live = vec![false; old.list.len()];
    values.iter().for_each(|value| live[value.node] = true);
    for index in (0..old.list.len()).rev() {
        live[index] |= !matches!(old.list[index].source, Source::Operation(_));
        if live[index] {
            old.list[index].inputs.iter().for_each(|input| live[input.node] = true);
        }
    }
    let mut consumers = old.consumers();
    for nodes in consumers.values_mut() {
        nodes.retain(|&node| live[node]);
    }
    consumers.retain(|_, nodes| !nodes.is_empty());
    let mut rewriter = Rewriter { old, consumers, new: Nodes::default(), map: HashMap::new(), stage };
    // Leaves first: a pattern may need a later leaf where its first node stands.
    for (index, node) in old.list.iter().enumerate() {
        if !matches!(node.source, Source::Operation(_)) {
            rewriter.copy(index, node);
        }
    }
    for (index, node) in old.list.iter().enumerate().filter(|&(index, _)| live[index]) {
        let Source::Operation(op) = &node.source else { continue };
        if rewriter.map.contains_key(&Value { node: index, port: 0 }) {
            continue;
        }
        rewriter.new.block = node.block;
        if !rewriter.rewrite(index, op)? {
            rewriter.copy(index, node);
        }
    }
    rewriter.new.block = None;
    rewriter.new.blocks = old.blocks;
    let find = |value: &Value| {
        let message =
            "a result that the rewrites leave out was asked for; ask for it on the graph as recorded";
        rewriter.map.get(value).copied().ok_or_else(|| Error::invalid("fused", message))
    };
    let values = values.iter().map(find).collect::<Result<_>>()?;
    Ok((rewriter.new, values))
}

struct Rewriter<'a> {
    old: &'a Nodes,
    consumers: HashMap<Value, Vec<usize>>,
    new: Nodes,
    map: HashMap<Value, Value>,
    stage: Stage<'a>,
}

/// A linear layer with one adapter or none: the parts of a joined product.
struct Linear {
    node: usize,
    adapter_input: Option<Value>,
    adapter: Option<(Value, Value, Real)>,
    weight: Value,
    start: usize,
    len: usize,
}

impl Rewriter<'_> {
    fn copy(&mut self, index: usize, node: &Node) {
        let inputs = node.inputs.iter().map(|input| self.map[input]).collect();
        let new = self.new.push(node.source.clone(), inputs, node.outputs.clone());
        for port in 0..node.outputs.len() {
            self.map.insert(Value { node: index, port }, Value { node: new, port });
        }
    }

    fn rewrite(&mut self, index: usize, op: &Op) -> Result<bool> {
        match (self.stage, op) {
            (Stage::Patterns, Op::Binary(binary)) if binary.function == BinaryFn::Add => {
                Ok(self.composed_lora(index)? || self.residual_norm(index)?)
            }
            (Stage::Patterns, Op::Binary(binary)) if binary.function == BinaryFn::Mul => self.silu_mul(index),
            (Stage::Products, Op::MatMul(_) | Op::Lora(_)) => self.joined_products(index),
            (Stage::Target(target), Op::MatMul(_) | Op::Lora(_)) => self.epilogue(index, op, target),
            (Stage::Target(target), Op::Rope(rope)) if !rope.inverse && target.supports_rope_kv_write() => {
                self.rope_kv_write(index)
            }
            _ => Ok(false),
        }
    }

    fn op(&self, value: Value) -> Option<&Op> {
        self.old.operation(value)
    }

    fn inputs(&self, node: usize) -> &[Value] {
        &self.old.list[node].inputs
    }

    /// Returns true if nothing but the pattern at hand reads the value.
    fn used_once(&self, value: Value) -> bool {
        self.consumers.get(&value).is_some_and(|nodes| nodes.len() == 1)
    }

    /// x + r, then rms_norm: one operation with both results.
    fn residual_norm(&mut self, add: usize) -> Result<bool> {
        let sum = Value { node: add, port: 0 };
        let block = self.old.list[add].block;
        let norm = self.consumers.get(&sum).into_iter().flatten().copied().find(|&node| {
            self.old.list[node].block == block
                && self.inputs(node)[0] == sum
                && matches!(&self.old.list[node].source, Source::Operation(Op::RmsNorm(op)) if !op.residual)
                && self.map.contains_key(&self.inputs(node)[1])
        });
        let Some(norm) = norm else { return Ok(false) };
        let Source::Operation(Op::RmsNorm(op)) = &self.old.list[norm].source else { return Ok(false) };
        let (x, r, w) = (self.inputs(add)[0], self.inputs(add)[1], self.inputs(norm)[1]);
        let inputs = [self.map[&x], self.map[&r], self.map[&w]];
        let outputs = self.new.record(RmsNorm { eps: op.eps, residual: true }.into(), &inputs)?;
        self.map.insert(Value { node: norm, port: 0 }, outputs[0]);
        self.map.insert(sum, outputs[1]);
        Ok(true)
    }

    /// silu(gate) · up, in either order.
    fn silu_mul(&mut self, mul: usize) -> Result<bool> {
        let sides = [self.inputs(mul)[0], self.inputs(mul)[1]];
        let block = self.old.list[mul].block;
        let is_silu = |value: Value| {
            self.old.list[value.node].block == block
                && matches!(self.op(value), Some(Op::Unary(unary)) if unary.function == UnaryFn::Silu)
        };
        let is_silu = |value: Value| is_silu(value) && self.used_once(value);
        let (silu, up) = if is_silu(sides[0]) {
            (sides[0], sides[1])
        } else if is_silu(sides[1]) {
            (sides[1], sides[0])
        } else {
            return Ok(false);
        };
        let gate = self.inputs(silu.node)[0];
        let output = self.new.record(SiluMul.into(), &[self.map[&gate], self.map[&up]])?[0];
        self.map.insert(Value { node: mul, port: 0 }, output);
        Ok(true)
    }

    /// x·Wᵀ + scale·((x′·Aᵀ)·Bᵀ), in either order, with the scale anywhere or missing.
    fn composed_lora(&mut self, add: usize) -> Result<bool> {
        let sides = [self.inputs(add)[0], self.inputs(add)[1]];
        for (base, low_rank) in [(sides[0], sides[1]), (sides[1], sides[0])] {
            let Some((x, w, Real(1.0))) = self.linear_parts(base) else { continue };
            let Some((adapter_x, a, b, scale)) = self.low_rank_parts(low_rank) else { continue };
            if !self.used_once(base) || !self.used_once(low_rank) {
                continue;
            }
            let fits = self.old.spec(w).shape.rank() == 2
                && self.old.spec(x).shape.rank() == 2
                && self.old.spec(adapter_x) == self.old.spec(x);
            if !fits {
                continue;
            }
            let len = self.old.spec(w).shape[0];
            let rank = self.old.spec(a).shape[0];
            let op = Lora { slots: vec![LoraSlot { start: 0, len, rank, scale }], separate: adapter_x != x };
            let mut inputs = vec![self.map[&x]];
            if adapter_x != x {
                inputs.push(self.map[&adapter_x]);
            }
            inputs.extend([self.map[&w], self.map[&a], self.map[&b]]);
            let output = self.new.record(op.into(), &inputs)?[0];
            self.map.insert(Value { node: add, port: 0 }, output);
            return Ok(true);
        }
        Ok(false)
    }

    /// (x, W, alpha) if the value is `alpha·x·Wᵀ`.
    fn linear_parts(&self, value: Value) -> Option<(Value, Value, Real)> {
        match self.op(value)? {
            Op::MatMul(op) if !op.transpose_a && op.transpose_b && op.beta.0 == 0.0 => {
                let inputs = self.inputs(value.node);
                Some((inputs[0], inputs[1], op.alpha))
            }
            _ => None,
        }
    }

    fn low_rank_parts(&self, value: Value) -> Option<(Value, Value, Value, Real)> {
        let (inner, outer_scale) = match self.op(value)? {
            Op::Affine(op) if op.add.0 == 0.0 => (self.inputs(value.node)[0], op.mul.0),
            _ => (value, 1.0),
        };
        let (h, b, scale_b) = self.linear_parts(inner)?;
        let (x, a, scale_a) = self.linear_parts(h)?;
        if !self.used_once(inner) || !self.used_once(h) {
            return None;
        }
        let rank_fits = self.old.spec(a).shape.rank() == 2 && self.old.spec(b).shape.rank() == 2;
        rank_fits.then_some((x, a, b, Real(outer_scale * scale_b.0 * scale_a.0)))
    }

    /// The parts of a linear layer whose weight is a block of rows of a parameter.
    fn linear(&self, node: usize) -> Option<Linear> {
        let Source::Operation(op) = &self.old.list[node].source else { return None };
        let inputs = self.inputs(node);
        let (weight, adapter_input, adapter) = match op {
            Op::MatMul(op) if *op == MatMul::new(false, true) => (inputs[1], None, None),
            Op::Lora(op) if op.slots.len() == 1 && op.slots[0].start == 0 => {
                let first = op.first_slot_input();
                let slot = &op.slots[0];
                let adapter_input = op.separate.then(|| inputs[1]);
                let covers = self.old.spec(inputs[first - 1]).shape[0] == slot.len;
                let h = Value { node, port: 1 };
                if !covers || self.consumers.contains_key(&h) {
                    return None;
                }
                (inputs[first - 1], adapter_input, Some((inputs[first], inputs[first + 1], slot.scale)))
            }
            _ => return None,
        };
        let Some(Op::Slice(slice)) = self.op(weight) else { return None };
        let parameter = self.inputs(weight.node)[0];
        let is_rows = slice.axis == 0
            && self.old.spec(parameter).shape.rank() == 2
            && self.old.spec(inputs[0]).shape.rank() == 2
            && matches!(self.old.list[parameter.node].source, Source::Parameter(_));
        is_rows.then_some(Linear {
            node,
            adapter_input,
            adapter,
            weight: parameter,
            start: slice.start,
            len: slice.len,
        })
    }

    /// Products of one x with neighbouring rows of one parameter: a single product, then views of its columns.
    fn joined_products(&mut self, first: usize) -> Result<bool> {
        let Some(leader) = self.linear(first) else { return Ok(false) };
        let x = self.inputs(first)[0];
        let block = self.old.list[first].block;
        let mut group: Vec<Linear> = self.consumers[&x]
            .iter()
            .filter(|&&node| self.old.list[node].block == block && self.inputs(node)[0] == x)
            .filter_map(|&node| self.linear(node))
            .filter(|linear| {
                linear.weight == leader.weight
                    && (linear.adapter_input == leader.adapter_input
                        || linear.adapter.is_none()
                        || leader.adapter.is_none())
            })
            .collect();
        group.sort_by_key(|linear| linear.start);
        group.dedup_by_key(|linear| linear.node);
        // Keep the run of neighbours around the leader whose adapters share one input.
        let at = group.iter().position(|linear| linear.node == first).expect("the leader reads x");
        let mut from = at;
        while from > 0 && group[from - 1].start + group[from - 1].len == group[from].start {
            from -= 1;
        }
        let mut to = at + 1;
        while to < group.len() && group[to - 1].start + group[to - 1].len == group[to].start {
            to += 1;
        }
        let group = &group[from..to];
        let mut adapter_inputs = group.iter().filter(|l| l.adapter.is_some()).map(|l| l.adapter_input);
        let adapter_input = adapter_inputs.next().flatten();
        let leaves_ready = group.iter().all(|linear| {
            linear.adapter.is_none_or(|(a, b, _)| self.map.contains_key(&a) && self.map.contains_key(&b))
                && linear.adapter_input.is_none_or(|value| self.map.contains_key(&value))
        });
        if group.len() < 2 || !leaves_ready || adapter_inputs.any(|other| other != adapter_input) {
            return Ok(false);
        }
        self.record_joined(x, adapter_input, group)?;
        Ok(true)
    }

    fn record_joined(&mut self, x: Value, adapter_input: Option<Value>, group: &[Linear]) -> Result<()> {
        let start = group[0].start;
        let total: usize = group.iter().map(|linear| linear.len).sum();
        let mut weight = self.map[&group[0].weight];
        if total != self.new.spec(weight).shape[0] {
            weight = self.new.record(Slice { axis: 0, start, len: total }.into(), &[weight])?[0];
        }
        let mut slots = Vec::new();
        let mut pairs = Vec::new();
        for linear in group {
            if let Some((a, b, scale)) = linear.adapter {
                let rank = self.old.spec(a).shape[0];
                slots.push(LoraSlot { start: linear.start - start, len: linear.len, rank, scale });
                pairs.extend([self.map[&a], self.map[&b]]);
            }
        }
        let mut inputs = vec![self.map[&x]];
        let joined = if slots.is_empty() {
            inputs.push(weight);
            self.new.record(MatMul::new(false, true).into(), &inputs)?[0]
        } else {
            inputs.extend(adapter_input.map(|value| self.map[&value]));
            inputs.push(weight);
            inputs.extend(pairs);
            self.new.record(Lora { slots, separate: adapter_input.is_some() }.into(), &inputs)?[0]
        };
        for linear in group {
            let slice = Slice { axis: 1, start: linear.start - start, len: linear.len };
            let output = self.new.record(slice.into(), &[joined])?[0];
            self.map.insert(Value { node: linear.node, port: 0 }, output);
        }
        Ok(())
    }
}
