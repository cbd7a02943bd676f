//! Functions of one or two numbers, element by element, on any strides. See [`crate::ops::Unary`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, Tensor, as_u32};
use super::strided::{Walk, walks};
use crate::Result;
use crate::ops::{BinaryFn, Op, UnaryFn};
use crate::tensor::Layout;

pub(super) const SOURCE: Source = Source::new("elementwise", include_str!("kernels/elementwise.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    function: u32,
    mul: f32,
    add: f32,
    a: Walk,
    b: Walk,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct FillSizes {
    count: u32,
    value: f32,
}

/// Returns the function's number in the kernel: its position in `ALL`, plus 100 for derivatives and 200 for functions of two
/// numbers.
fn number(op: &Op) -> (u32, f32, f32) {
    let place = |found: Option<usize>| as_u32(found.expect("ALL has every function"));
    let unary = |f: UnaryFn| place(UnaryFn::ALL.iter().position(|&other| other == f));
    match op {
        Op::Unary(op) => (unary(op.function), 1.0, 0.0),
        Op::UnaryGrad(op) => (100 + unary(op.function), 1.0, 0.0),
        Op::Binary(op) => (200 + place(BinaryFn::ALL.iter().position(|&f| f == op.function)), 1.0, 0.0),
        Op::Affine(op) => (300, op.mul.0, op.add.0),
        _ => (301, 1.0, 0.0),
    }
}

fn fill(value: f32, y: &Tensor, cx: &mut OpContext<'_, '_>) -> Result<()> {
    let launch = cx.kernel(SOURCE, &format!("fill_{}", y.type_name()))?;
    let sizes = FillSizes { count: as_u32(y.elements()), value };
    cx.push_elements(launch.write(y).constants(&sizes), y.elements());
    Ok(())
}

/// Adds the dispatch of an elementwise function.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    if let Op::Fill(op) = &cx.step.op {
        return fill(op.value.0, &y, cx);
    }
    let (function, mul, add) = number(&cx.step.op);
    let a = cx.inputs[0].clone();
    let scale = matches!(cx.step.op, Op::Scale(_));
    let b = if cx.inputs.len() == 2 && !scale { cx.inputs[1].clone() } else { a.clone() };
    cx.expect(&a, y.dtype)?;
    cx.expect(&b, y.dtype)?;
    let walks = walks([&a.layout, &b.layout, &Layout::contiguous(&y.layout.shape)]);
    let Some([walk_a, walk_b, walk_y]) = walks else {
        return Err(cx.unsupported(a.dtype, "copy the inputs first: their strides have too many axes"));
    };
    debug_assert!(y.elements() <= 1 || walk_y.is_contiguous(), "outputs are contiguous");
    let sizes = Sizes { count: as_u32(y.elements()), function, mul, add, a: walk_a, b: walk_b };
    let launch = cx.kernel(SOURCE, &format!("elementwise_{}", y.type_name()))?.read(&a).read(&b);
    let launch = if scale { launch.read(&cx.inputs[1]) } else { launch.unused(a.first()) };
    cx.push_elements(launch.write(&y).constants(&sizes), y.elements());
    Ok(())
}
