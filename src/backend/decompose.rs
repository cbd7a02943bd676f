//! Splits a fused step into steps of its parts, for backends and layouts without a kernel for the whole.

use crate::graph::{Operand, Place, Step};
use crate::ops::{Binary, BinaryFn, Epilogue, EpilogueKind, KvWrite, Op, Rope, RopeKvWrite, SiluMul};
use crate::tensor::{Layout, TensorSpec};

/// Scratch memory of the parts begins at multiples of this.
const ALIGNMENT: usize = 64;

/// Bytes of scratch memory that the parts of a step need.
type Scratch<'a> = &'a dyn Fn(&Op, &[Operand], &[TensorSpec]) -> usize;

/// Returns the bytes of scratch memory that the parts of an operation need, or `None` if it has no parts. `of_part` returns
/// those of a part.
pub(super) fn scratch(
    op: &Op,
    inputs: &[Operand],
    outputs: &[TensorSpec],
    of_part: Scratch<'_>,
) -> Option<usize> {
    match op {
        Op::Epilogue(op) => {
            let product = of_part(&op.product, op.split(inputs).0, &outputs[..op.product_outputs()]);
            Some(product.next_multiple_of(ALIGNMENT) + outputs[0].bytes())
        }
        Op::RopeKvWrite(_) => Some(outputs[1].bytes()),
        _ => None,
    }
}

/// Returns the parts of a step in order, or `None` if it has none. `of_part` is that of [`scratch`].
pub(super) fn decompose(step: &Step, of_part: Scratch<'_>) -> Option<Vec<Step>> {
    match &step.op {
        Op::Epilogue(op) => Some(epilogue(op, step, of_part)),
        Op::RopeKvWrite(op) => Some(rope_kv_write(op, step)),
        _ => None,
    }
}

/// Returns an output or, if nothing reads it, a place for it in scratch memory.
fn output_or_scratch(step: &Step, port: usize, offset: usize) -> Operand {
    let spec = &step.output_specs[port];
    step.outputs[port].clone().unwrap_or_else(|| Operand {
        place: Place::Arena(step.scratch.0 + offset),
        dtype: spec.dtype,
        layout: Layout::contiguous(&spec.shape),
    })
}

fn part(
    step: &Step,
    op: Op,
    inputs: Vec<Operand>,
    outputs: Vec<Option<Operand>>,
    specs: &[TensorSpec],
) -> Step {
    Step { op, node: step.node, inputs, outputs, output_specs: specs.to_vec(), scratch: step.scratch }
}

fn epilogue(op: &Epilogue, step: &Step, of_part: Scratch<'_>) -> Vec<Step> {
    let ports = op.product_outputs();
    let (of_product, addends) = op.split(&step.inputs);
    let (specs, results) = step.output_specs.split_at(ports);
    let used = of_part(&op.product, of_product, specs);
    let y = output_or_scratch(step, 0, used.next_multiple_of(ALIGNMENT));
    let mut outputs = step.outputs[..ports].to_vec();
    outputs[0] = Some(y.clone());
    let mut parts = vec![part(step, (*op.product).clone(), of_product.to_vec(), outputs, specs)];
    let columns = |start, len| Operand { layout: y.layout.sliced(1, start, len), ..y.clone() };
    match &op.kind {
        EpilogueKind::Gate => {
            let half = y.layout.shape[1] / 2;
            let inputs = vec![columns(0, half), columns(half, half)];
            parts.push(part(step, SiluMul.into(), inputs, step.outputs[ports..].to_vec(), results));
        }
        EpilogueKind::Sums(sums) => {
            for (index, (&(start, len), addend)) in sums.iter().zip(addends).enumerate() {
                let inputs = vec![columns(start, len), addend.clone()];
                let add = Binary { function: BinaryFn::Add };
                let output = vec![step.outputs[ports + index].clone()];
                parts.push(part(step, add.into(), inputs, output, &results[index..=index]));
            }
        }
    }
    parts.retain(|part| part.outputs.iter().any(Option::is_some));
    parts
}

fn rope_kv_write(_: &RopeKvWrite, step: &Step) -> Vec<Step> {
    let rotated = output_or_scratch(step, 1, 0);
    let pick =
        |numbers: &[usize]| numbers.iter().map(|&number| step.inputs[number].clone()).collect::<Vec<_>>();
    let specs = |port: usize| &step.output_specs[port..=port];
    let rope = || Op::from(Rope { inverse: false });
    let mut parts = Vec::new();
    if step.outputs[0].is_some() {
        parts.push(part(step, rope(), pick(&[0, 3, 4, 5]), vec![step.outputs[0].clone()], specs(0)));
    }
    parts.push(part(step, rope(), pick(&[1, 3, 4, 5]), vec![Some(rotated.clone())], specs(1)));
    let keys = vec![step.inputs[6].clone(), rotated, step.inputs[8].clone()];
    parts.push(part(step, KvWrite.into(), keys, vec![step.outputs[2].clone()], specs(2)));
    parts.push(part(step, KvWrite.into(), pick(&[7, 2, 8]), vec![step.outputs[3].clone()], specs(3)));
    parts
}
