//! Fusions for the kernels of a device: products with epilogues, and rotations with the writes to a cache.
//!
//! A fused operation is recorded at the position of its first part. So every other input must exist there already; views of
//! existing values are recorded early.

use super::{Rewriter, Source};
use crate::Result;
use crate::graph::Target;
use crate::ops::{BinaryFn, Epilogue, EpilogueKind, MAX_SUMS, Op, Recorder, RopeKvWrite, Value};

impl Rewriter<'_> {
    /// Records a product with what is computed from its result.
    pub(super) fn epilogue(&mut self, product: usize, op: &Op, target: &dyn Target) -> Result<bool> {
        let inputs = self.inputs(product).to_vec();
        let plain = match op {
            Op::MatMul(op) => !op.transpose_a && op.transpose_b && op.alpha.0 == 1.0 && op.beta.0 == 0.0,
            Op::Lora(_) => true,
            _ => false,
        };
        let rows = |&value: &Value| self.old.spec(value).shape.rank() == 2 && self.has_adjacent_rows(value);
        let specs: Vec<_> = inputs.iter().map(|&value| self.old.spec(value).clone()).collect();
        if !plain || !inputs.iter().all(rows) || !target.supports_epilogue(op, &specs) {
            return Ok(false);
        }
        let y = Value { node: product, port: 0 };
        if self.old.spec(y).shape.elements() == 0 {
            return Ok(false);
        }
        let (kind, addends, results) = if let Some(gated) = self.gate_of(y) {
            (EpilogueKind::Gate, Vec::new(), vec![gated])
        } else {
            let (mut sums, mut addends, mut results) = (Vec::new(), Vec::new(), Vec::new());
            for (start, addend, sum) in self.sums_of(y) {
                if sums.len() < MAX_SUMS && self.make_available(addend)? {
                    sums.push((start, self.old.spec(sum).shape[1]));
                    addends.push(self.map[&addend]);
                    results.push(sum);
                }
            }
            (EpilogueKind::Sums(sums), addends, results)
        };
        if results.is_empty() {
            return Ok(false);
        }
        let fused = Epilogue { product: Box::new(op.clone()), kind };
        let inputs: Vec<Value> = inputs.iter().map(|value| self.map[value]).chain(addends).collect();
        let ports = fused.product_outputs();
        let outputs = self.new.record(fused.into(), &inputs)?;
        for (port, &output) in outputs[..ports].iter().enumerate() {
            self.map.insert(Value { node: product, port }, output);
        }
        for (&result, &output) in results.iter().zip(&outputs[ports..]) {
            self.map.insert(result, output);
        }
        Ok(true)
    }

    /// Returns true if the elements of each row of a value are adjacent in memory, whatever layout the planner chooses.
    fn has_adjacent_rows(&self, value: Value) -> bool {
        match &self.old.list[value.node].source {
            Source::View(..) | Source::Candle(_) => false,
            Source::Operation(Op::Permute(_) | Op::Broadcast(_) | Op::Reshape(_)) => false,
            Source::Operation(Op::Slice(_)) => self.has_adjacent_rows(self.inputs(value.node)[0]),
            _ => true,
        }
    }

    fn same_block(&self, a: usize, b: usize) -> bool {
        self.old.list[a].block == self.old.list[b].block
    }

    /// The columns `(start, len, value)` of y that are read: y itself, and slices of it.
    fn columns_of(&self, y: Value) -> Vec<(usize, usize, Value)> {
        let n = self.old.spec(y).shape[1];
        let readers = self.consumers.get(&y).into_iter().flatten();
        let slices = readers.filter_map(|&node| match &self.old.list[node].source {
            Source::Operation(Op::Slice(slice)) if slice.axis == 1 => {
                Some((slice.start, slice.len, Value { node, port: 0 }))
            }
            _ => None,
        });
        let mut columns = vec![(0, n, y)];
        columns.extend(slices);
        columns
    }

    /// Returns `silu(gate)·up` of the two halves of y, if it is computed.
    fn gate_of(&self, y: Value) -> Option<Value> {
        let n = self.old.spec(y).shape[1];
        let columns = self.columns_of(y);
        let half = |start: usize| {
            columns
                .iter()
                .filter(move |&&(at, len, _)| at == start && 2 * len == n)
                .map(|&(_, _, value)| value)
        };
        for gate in half(0) {
            for &node in self.consumers.get(&gate).into_iter().flatten() {
                let gates = matches!(self.old.list[node].source, Source::Operation(Op::SiluMul(_)))
                    && self.inputs(node)[0] == gate
                    && half(n / 2).any(|up| self.inputs(node)[1] == up)
                    && self.same_block(node, y.node);
                if gates {
                    return Some(Value { node, port: 0 });
                }
            }
        }
        None
    }

    /// Returns the sums of columns of y and of another value: first column, the other value, and the sum.
    fn sums_of(&self, y: Value) -> Vec<(usize, Value, Value)> {
        let mut sums = Vec::new();
        for (start, _, part) in self.columns_of(y) {
            for &node in self.consumers.get(&part).into_iter().flatten() {
                let Source::Operation(Op::Binary(op)) = &self.old.list[node].source else { continue };
                let sum = Value { node, port: 0 };
                let [a, b] = [self.inputs(node)[0], self.inputs(node)[1]];
                let addend = if a == part { b } else { a };
                let fits = op.function == BinaryFn::Add
                    && addend != part
                    && !self.is_columns_of(addend, y)
                    && self.old.spec(addend) == self.old.spec(sum)
                    && self.old.spec(part) == self.old.spec(sum)
                    && self.same_block(node, y.node)
                    && !sums.iter().any(|&(_, _, known)| known == sum);
                if fits {
                    sums.push((start, addend, sum));
                }
            }
        }
        sums
    }

    /// Returns true if a value is y or a view of it.
    fn is_columns_of(&self, value: Value, y: Value) -> bool {
        let mut value = value;
        while value != y {
            match self.op(value) {
                Some(Op::Slice(_) | Op::Reshape(_) | Op::Permute(_) | Op::Broadcast(_)) => {
                    value = self.inputs(value.node)[0];
                }
                _ => return false,
            }
        }
        true
    }

    /// Records a value early if it is a view of one that exists. Returns false if it does not exist yet.
    fn make_available(&mut self, value: Value) -> Result<bool> {
        if self.map.contains_key(&value) {
            return Ok(true);
        }
        let Some(op) = self.op(value).cloned() else { return Ok(false) };
        if !matches!(op, Op::Slice(_) | Op::Reshape(_) | Op::Permute(_) | Op::Broadcast(_)) {
            return Ok(false);
        }
        let input = self.inputs(value.node)[0];
        if !self.make_available(input)? {
            return Ok(false);
        }
        let output = self.new.record(op, &[self.map[&input]])?[0];
        self.map.insert(value, output);
        Ok(true)
    }

    /// Records the rotations of q and k and the writes of k and v to their caches as one operation. `first` rotates q or k.
    pub(super) fn rope_kv_write(&mut self, first: usize) -> Result<bool> {
        let Some((k_rope, key_write, value_write)) = self.cache_writes_after(first) else { return Ok(false) };
        let tables = self.inputs(first)[1..].to_vec();
        let (q, k) = (self.inputs(first)[0], self.inputs(k_rope)[0]);
        let (keys, values) = (self.inputs(key_write).to_vec(), self.inputs(value_write).to_vec());
        let inputs = [q, k, values[1], tables[0], tables[1], tables[2], keys[0], values[0], keys[2]];
        for input in inputs {
            if !self.make_available(input)? {
                return Ok(false);
            }
        }
        let inputs = inputs.map(|input| self.map[&input]);
        let outputs = self.new.record(RopeKvWrite.into(), &inputs)?;
        for (node, output) in [first, k_rope, key_write, value_write].into_iter().zip(outputs) {
            self.map.insert(Value { node, port: 0 }, output);
        }
        Ok(true)
    }

    /// Finds the rotation of k by the tables with which `first` rotates q, and the writes of k and v to their caches.
    fn cache_writes_after(&self, first: usize) -> Option<(usize, usize, usize)> {
        let tables = &self.inputs(first)[1..];
        let q = self.old.spec(self.inputs(first)[0]);
        let kv_write = |node: usize| matches!(self.old.list[node].source, Source::Operation(Op::KvWrite(_)));
        let k_rope = self.consumers.get(&tables[2])?.iter().copied().find(|&node| {
            node > first
                && matches!(&self.old.list[node].source, Source::Operation(Op::Rope(op)) if !op.inverse)
                && self.inputs(node)[1..] == *tables
                && self.same_block(node, first)
                && self
                    .consumers
                    .get(&Value { node, port: 0 })
                    .into_iter()
                    .flatten()
                    .any(|&node| kv_write(node))
        })?;
        let rotated = Value { node: k_rope, port: 0 };
        let key_write = self.consumers[&rotated]
            .iter()
            .copied()
            .find(|&node| kv_write(node) && self.inputs(node)[1] == rotated)?;
        let pos = self.inputs(key_write)[2];
        let value_write = self.consumers.get(&pos)?.iter().copied().find(|&node| {
            node > key_write && kv_write(node) && self.inputs(node)[2] == pos && self.same_block(node, first)
        })?;
        let (keys, values) = (self.inputs(key_write), self.inputs(value_write));
        let caches_alike = self.old.spec(keys[0]) == self.old.spec(values[0]);
        let new_alike = self.old.spec(keys[1]) == self.old.spec(values[1]);
        let dtypes_alike = q.dtype == self.old.spec(keys[1]).dtype;
        // Nothing else may read a cache before it is updated.
        let only = |cache: Value, write: usize| self.consumers[&cache].iter().all(|&node| node == write);
        let alone = keys[0] != values[0] && only(keys[0], key_write) && only(values[0], value_write);
        (caches_alike && new_alike && dtypes_alike && alone).then_some((k_rope, key_write, value_write))
    }
}
