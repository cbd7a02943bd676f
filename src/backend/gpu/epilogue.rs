//! Products of few rows with an epilogue, in one dispatch. See [`crate::ops::Epilogue`].

use super::driver::Driver;
use super::gemv::{self, Adapters, Results, Sum};
use super::lora;
use super::lora_slots::{SLOTS, groups};
use super::op::OpContext;
use crate::Result;
use crate::backend::select::Preference;
use crate::graph::{Operand, Step};
use crate::ops::{Epilogue, EpilogueKind, Op, total_rank};
use crate::tensor::{DType, TensorSpec};

/// Returns true if the kernel for few rows computes a product of these inputs.
pub(super) fn supports(driver: &dyn Driver, product: &Op, inputs: &[TensorSpec]) -> bool {
    let (x, w) = match product {
        Op::MatMul(_) => (&inputs[0], &inputs[1]),
        Op::Lora(op) => {
            let first = op.first_slot_input();
            if op.slots.len() > SLOTS || inputs[first..].iter().any(|spec| spec.dtype != DType::F32) {
                return false;
            }
            (&inputs[0], &inputs[first - 1])
        }
        _ => return false,
    };
    driver.choices().preference != Preference::Mps
        && gemv::takes_rows(x.shape.rows())
        && x.shape.last() > 0
        && w.shape.rank() == 2
}

/// Positions of x and W among the inputs of a product.
fn operands(op: &Epilogue) -> (usize, usize) {
    match &*op.product {
        Op::Lora(op) => (0, op.first_slot_input() - 1),
        _ => (0, 1),
    }
}

/// Returns true if the kernel computes a step and reads the operands in their layouts.
pub(super) fn has_kernel(driver: &dyn Driver, op: &Epilogue, step: &Step) -> bool {
    let (x, w) = operands(op);
    let (of_product, addends) = op.split(&step.inputs);
    let specs: Vec<TensorSpec> = of_product.iter().map(Operand::spec).collect();
    if !supports(driver, &op.product, &specs) {
        return false;
    }
    step.inputs[x].layout.row_stride().is_some()
        && step.inputs[w].layout.row_stride().is_some()
        && addends.iter().all(|addend| addend.layout.is_row_contiguous())
}

/// Adds the dispatches.
pub(super) fn lower(op: &Epilogue, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let inputs = cx.inputs.clone();
    let (x, w) = operands(op);
    let (x, w) = (&inputs[x], &inputs[w]);
    let (y, ports) = (cx.output(0), op.product_outputs());
    let (_, addends) = op.split(&inputs);
    let results = match &op.kind {
        EpilogueKind::Gate => cx.output(ports).map_or(Results::None, Results::Gate),
        EpilogueKind::Sums(sums) => {
            let mut read = Vec::new();
            for (index, (&(start, _), addend)) in sums.iter().zip(addends).enumerate() {
                cx.expect(addend, x.dtype)?;
                if let Some(to) = cx.output(ports + index) {
                    read.push(Sum { start, addend: addend.clone(), to });
                }
            }
            Results::Sums(read)
        }
    };
    match &*op.product {
        Op::Lora(lora) => {
            let h = lora::push_down(lora, cx)?;
            let all = groups(&lora.slots);
            let first = lora.first_slot_input();
            let b: Vec<_> = (0..lora.slots.len()).map(|slot| inputs[first + 2 * slot + 1].clone()).collect();
            let (group, total) = (&all[0], total_rank(&lora.slots));
            gemv::push(x, w, y.as_ref(), Some(Adapters { group, h: &h, total, b: &b }), &results, cx)
        }
        _ => gemv::push(x, w, y.as_ref(), None, &results, cx),
    }
}
