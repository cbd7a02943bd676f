//! Reverse-mode differentiation.
//!
//! Nodes are visited from the loss backwards, so the backward pass is recorded last block first; a plan keeps that
//! order and frees each block's memory before it reaches the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Nodes, Source};
use crate::ops::{Backward, Binary, BinaryFn, Concat, Fill, Op, Real, Recorder, Value};
use crate::{Error, Result};

pub(super) fn gradients(nodes: &mut Nodes, loss: Value, wrt: &[Value]) -> Result<Vec<Value>> {
    let loss_spec = nodes.spec(loss).clone();
    if loss_spec.shape.elements() != 1 {
        return Err(Error::shape("gradients", "the loss must have one element", &[&loss_spec.shape]));
    }
    check_path(nodes, loss, wrt)?;
    let seed = nodes.record(Fill { value: Real(1.0), spec: loss_spec }.into(), &[])?[0];
    vjp(nodes, loss, seed, wrt, &HashMap::new())
}

/// The gradients with respect to `wrt`, given the one that arrives at `result`. Where a gradient rule asks for a value
/// of the forward pass that stands in `saved`, it gets the saved one, so that nothing is computed again.
pub(super) fn vjp(
    nodes: &mut Nodes,
    result: Value,
    upstream: Value,
    wrt: &[Value],
    saved: &HashMap<Value, Value>,
) -> Result<Vec<Value>> {
    let depends = dependants(nodes, wrt);
    let mut sums: HashMap<Value, Vec<Value>> = HashMap::new();
    sums.insert(result, vec![upstream]);
    let mut copies: HashMap<u32, HashMap<usize, usize>> = HashMap::new();
    for index in (0..=result.node).rev() {
        let Source::Operation(op) = nodes.list[index].source.clone() else { continue };
        let node = nodes.list[index].clone();
        let ports: Vec<Value> = (0..node.outputs.len()).map(|port| Value { node: index, port }).collect();
        if !depends[index] || !ports.iter().any(|port| sums.contains_key(port)) {
            continue;
        }
        let mut upstream = Vec::with_capacity(ports.len());
        for port in &ports {
            upstream.push(match sums.remove(port) {
                Some(parts) => Some(total(nodes, parts)?),
                None => None,
            });
        }
        let needed: Vec<bool> = node.inputs.iter().map(|input| depends[input.node]).collect();
        let (inputs, outputs): (Vec<Value>, Vec<Value>) = match node.block {
            Some(block) => {
                let copy = match copies.entry(block) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(recompute(nodes, block, result.node)?),
                };
                let again =
                    |value: &Value| Value { node: *copy.get(&value.node).unwrap_or(&value.node), ..*value };
                (node.inputs.iter().map(again).collect(), ports.iter().map(again).collect())
            }
            None => {
                let known = |value: &Value| *saved.get(value).unwrap_or(value);
                (node.inputs.clone(), ports.iter().map(known).collect())
            }
        };
        let mut cx = Backward {
            recorder: nodes,
            inputs: &inputs,
            outputs: &outputs,
            upstream: &upstream,
            needed: &needed,
        };
        let gradients = op.contract().gradient(&mut cx)?;
        for ((input, gradient), needed) in node.inputs.iter().zip(gradients).zip(needed) {
            if let (true, Some(gradient)) = (needed, gradient) {
                sums.entry(*input).or_default().push(gradient);
            }
        }
    }
    wrt.iter()
        .map(|value| match sums.get(value) {
            Some(parts) => total(nodes, parts.clone()),
            None => Err(Error::invalid(
                name(nodes, *value),
                "the loss does not depend on it, so it has no gradient; leave it out or use it in the model",
            )),
        })
        .collect()
}

/// Which nodes depend on one of the leaves.
fn dependants(nodes: &Nodes, leaves: &[Value]) -> Vec<bool> {
    let mut depends = vec![false; nodes.list.len()];
    for leaf in leaves {
        depends[leaf.node] = true;
    }
    for index in 0..nodes.list.len() {
        let inherited = nodes.list[index].inputs.iter().any(|input| depends[input.node]);
        depends[index] |= inherited;
    }
    depends
}

/// Refuses a path on which a gradient would be lost.
fn check_path(nodes: &Nodes, loss: Value, wrt: &[Value]) -> Result<()> {
    let mut reaches = vec![false; nodes.list.len()];
    reaches[loss.node] = true;
    for index in (0..=loss.node).rev() {
        if reaches[index] {
            for input in &nodes.list[index].inputs {
                reaches[input.node] = true;
            }
        }
    }
    let trainable = nodes.list.iter().enumerate().filter_map(|(node, entry)| match &entry.source {
        Source::Parameter(parameter) if parameter.trainable() => Some(Value { node, port: 0 }),
        _ => None,
    });
    for leaf in wrt.iter().copied().chain(trainable) {
        let depends = dependants(nodes, &[leaf]);
        for index in leaf.node + 1..=loss.node {
            let node = &nodes.list[index];
            let Source::Operation(op) = &node.source else { continue };
            if !reaches[index] {
                continue;
            }
            for (input, value) in node.inputs.iter().enumerate() {
                if depends[value.node] && !op.contract().differentiable(input) {
                    let parameter = name(nodes, leaf);
                    return Err(Error::NoGradient { op: op.name(), node: index, input, parameter });
                }
            }
        }
    }
    Ok(())
}

fn name(nodes: &Nodes, value: Value) -> String {
    match &nodes.list[value.node].source {
        Source::Parameter(parameter) => parameter.name().to_owned(),
        Source::Input(name) | Source::View(name, _) => name.clone(),
        Source::Constant(_) => format!("constant {}", value.node),
        Source::Candle(_) => format!("tensor {}", value.node),
        Source::Operation(op) => format!("{} (node {})", op.name(), value.node),
    }
}

/// Adds up the gradients that arrive at one value. Slices that tile the value are put side by side instead.
fn total(nodes: &mut Nodes, mut parts: Vec<Value>) -> Result<Value> {
    if let Some(joined) = tiles(nodes, &parts) {
        return joined;
    }
    let mut sum = parts.remove(0);
    for part in parts {
        sum = nodes.record(Binary { function: BinaryFn::Add }.into(), &[sum, part])?[0];
    }
    Ok(sum)
}

fn tiles(nodes: &mut Nodes, parts: &[Value]) -> Option<Result<Value>> {
    let mut pieces = Vec::new();
    let mut frame = None;
    for &part in parts {
        let Some(Op::Unslice(op)) = nodes.operation(part) else { return None };
        if *frame.get_or_insert((op.axis, op.total)) != (op.axis, op.total) {
            return None;
        }
        let piece = nodes.list[part.node].inputs[0];
        pieces.push((op.start, nodes.spec(piece).shape[op.axis], piece));
    }
    let (axis, full) = frame?;
    pieces.sort_unstable();
    let mut end = 0;
    for &(start, len, _) in &pieces {
        if start != end {
            return None;
        }
        end += len;
    }
    (end == full).then(|| {
        let inputs: Vec<Value> = pieces.into_iter().map(|(_, _, piece)| piece).collect();
        Ok(nodes.record(Concat { axis }.into(), &inputs)?[0])
    })
}

/// Records the forward nodes of a block again, from the block's inputs. What the backward pass does not use of
/// it, the plan leaves out.
fn recompute(nodes: &mut Nodes, block: u32, last: usize) -> Result<HashMap<usize, usize>> {
    let mut copy = HashMap::new();
    for index in 0..=last {
        let node = nodes.list[index].clone();
        if node.block != Some(block) {
            continue;
        }
        let Source::Operation(op) = node.source else { continue };
        let inputs: Vec<Value> = node
            .inputs
            .iter()
            .map(|input| Value { node: *copy.get(&input.node).unwrap_or(&input.node), ..*input })
            .collect();
        let outputs = nodes.record(op, &inputs)?;
        copy.insert(index, outputs[0].node);
    }
    Ok(copy)
}
