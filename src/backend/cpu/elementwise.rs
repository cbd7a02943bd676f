//! Functions of one or two numbers, element by element, on any strides. See [`crate::ops::Unary`].

use std::ops::Range;

use super::element::SimdElement;
use super::kernel::{In, Kernel, Out, chunks, run};
use super::math::{exp, gaussian, log, normal_cdf, sigmoid, tanh};
use super::op::{Call, OpContext, real};
use super::strided::StridedIter;
use super::vector::{Isa, V};
use crate::Result;
use crate::ops::{BinaryFn, Op, UnaryFn};
use crate::tensor::{DType, Layout};

/// √(2/π)
const GELU_SCALE: f32 = 0.797_884_6;
/// The cube's factor in GELU's tanh form.
const GELU_CUBE: f32 = 0.044_715;
/// 1/√(2π)
const DENSITY: f32 = 0.398_942_3;

#[derive(Debug, Clone, Copy)]
enum Function {
    /// `mul·a + add`
    Affine(f32, f32),
    Unary(UnaryFn),
    /// `f′(b)·a`
    UnaryGrad(UnaryFn),
    Binary(BinaryFn),
}

impl Function {
    #[inline(always)]
    fn apply<I: Isa>(self, a: V<I>, b: V<I>) -> V<I> {
        match self {
            Self::Affine(mul, add) => a.fma(V::splat(mul), V::splat(add)),
            Self::Unary(function) => unary(function, a),
            Self::UnaryGrad(function) => derivative(function, b) * a,
            Self::Binary(function) => binary(function, a, b),
        }
    }
}

#[inline(always)]
fn gelu_inner<I: Isa>(x: V<I>) -> V<I> {
    tanh((x * x * GELU_CUBE).fma(x, x) * GELU_SCALE)
}

#[inline(always)]
fn unary<I: Isa>(function: UnaryFn, x: V<I>) -> V<I> {
    let one = V::<I>::splat(1.0);
    match function {
        UnaryFn::Neg => -x,
        UnaryFn::Abs => x.abs(),
        UnaryFn::Exp => exp(x),
        UnaryFn::Log => log(x),
        UnaryFn::Sqrt => x.sqrt(),
        UnaryFn::Rsqrt => one / x.sqrt(),
        UnaryFn::Recip => one / x,
        UnaryFn::Square => x * x,
        UnaryFn::Tanh => tanh(x),
        UnaryFn::Sigmoid => sigmoid(x),
        // In this order a NaN stays.
        UnaryFn::Relu => V::splat(0.0).max(x),
        UnaryFn::Silu => x * sigmoid(x),
        UnaryFn::Gelu => x * 0.5 * (gelu_inner(x) + 1.0),
        UnaryFn::GeluErf => x * normal_cdf(x),
    }
}

#[inline(always)]
fn derivative<I: Isa>(function: UnaryFn, x: V<I>) -> V<I> {
    let (zero, one) = (V::<I>::splat(0.0), V::<I>::splat(1.0));
    match function {
        UnaryFn::Neg => V::splat(-1.0),
        // 0 and NaN give themselves.
        UnaryFn::Abs => one.or_else(x.greater(zero), V::splat(-1.0).or_else(zero.greater(x), x)),
        UnaryFn::Exp => exp(x),
        UnaryFn::Log => one / x,
        UnaryFn::Sqrt => V::splat(0.5) / x.sqrt(),
        UnaryFn::Rsqrt => V::splat(-0.5) / (x * x.sqrt()),
        UnaryFn::Recip => V::splat(-1.0) / (x * x),
        UnaryFn::Square => x + x,
        UnaryFn::Tanh => {
            let t = tanh(x);
            (-t).fma(t, one)
        }
        UnaryFn::Sigmoid => {
            let s = sigmoid(x);
            s * (one - s)
        }
        UnaryFn::Relu => one.or_else(x.greater(zero), zero),
        UnaryFn::Silu => {
            let s = sigmoid(x);
            s * x.fma(one - s, one)
        }
        UnaryFn::Gelu => {
            let t = gelu_inner(x);
            let inner = (x * x * (3.0 * GELU_CUBE) + 1.0) * GELU_SCALE;
            (x * 0.5 * (-t).fma(t, one)).fma(inner, (t + 1.0) * 0.5)
        }
        UnaryFn::GeluErf => (x * gaussian(x)).fma(V::splat(DENSITY), normal_cdf(x)),
    }
}

#[inline(always)]
fn binary<I: Isa>(function: BinaryFn, a: V<I>, b: V<I>) -> V<I> {
    match function {
        BinaryFn::Add => a + b,
        BinaryFn::Sub => a - b,
        BinaryFn::Mul => a * b,
        BinaryFn::Div => a / b,
        // `max` and `min` keep a NaN in b.
        BinaryFn::Max => a.or_else(a.is_nan(), a.max(b)),
        BinaryFn::Min => a.or_else(a.is_nan(), a.min(b)),
        BinaryFn::Ge => {
            let zero = V::splat(0.0);
            let result = zero.or_else(b.greater(a), V::splat(1.0));
            zero.or_else(a.is_nan(), zero.or_else(b.is_nan(), result))
        }
    }
}

/// The dtype is looked at for every group of lanes: with one instance a dtype these functions would be three times
/// the code for little speed.
struct Map<'a> {
    walk: &'a StridedIter<3>,
    function: Function,
    dtype: DType,
    a: In<u8>,
    b: In<u8>,
    y: Out<u8>,
}

/// `len` numbers of a run, from number `i` on.
///
/// # Safety
/// They exist, `step` apart.
#[inline(always)]
unsafe fn load<I: Isa>(dtype: DType, run: *const u8, step: usize, i: usize, len: usize) -> V<I> {
    // SAFETY: as the caller promises.
    real!(dtype, |T| unsafe {
        let start = run.cast::<T>().add(i * step);
        match step {
            1 => V::load(start, len, 0.0),
            0 => V::splat(start.read().get()),
            step => V::gather(start, step, len, 0.0),
        }
    })
}

/// A function of f32 numbers that are neighbours, or one number for all, without a look at either for every group.
macro_rules! simple {
    ($map:expr, $a:expr, $b:expr, $y:expr, $n:expr, |$x:ident, $z:ident| $result:expr) => {{
        let [a_step, b_step, _] = $map.walk.steps;
        let (a_all, b_all) = (V::<I>::splat($a.read()), V::<I>::splat($b.read()));
        chunks!($n, |i, len| {
            let $x = if a_step == 0 { a_all } else { V::load($a.add(i), len, 0.0) };
            let $z = if b_step == 0 { b_all } else { V::load($b.add(i), len, 0.0) };
            ($result).store($y.add(i), len);
        });
    }};
}

impl Kernel for Map<'_> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        let ([a_step, b_step, _], dtype) = (self.walk.steps, self.dtype);
        let near = dtype == DType::F32 && a_step <= 1 && b_step <= 1;
        let two = matches!(self.function, Function::UnaryGrad(_) | Function::Binary(_));
        for item in range {
            let piece = self.walk.piece(item);
            // SAFETY: the piece lies within the tensors; a group of lanes is read before it is written.
            unsafe {
                let [a, b, y] = piece.starts.map(|start| start * dtype.size());
                let (a, b, y) = (self.a.at(a), self.b.at(b), self.y.at(y));
                let (a32, b32, y32) = (a.cast::<f32>(), b.cast::<f32>(), y.cast::<f32>());
                match self.function {
                    Function::Affine(mul, add) if near => {
                        let (mul, add) = (V::<I>::splat(mul), V::<I>::splat(add));
                        simple!(self, a32, b32, y32, piece.len, |x, _z| x.fma(mul, add));
                    }
                    Function::Binary(BinaryFn::Add) if near => {
                        simple!(self, a32, b32, y32, piece.len, |x, z| x + z);
                    }
                    Function::Binary(BinaryFn::Sub) if near => {
                        simple!(self, a32, b32, y32, piece.len, |x, z| x - z);
                    }
                    Function::Binary(BinaryFn::Mul) if near => {
                        simple!(self, a32, b32, y32, piece.len, |x, z| x * z);
                    }
                    _ => {
                        chunks!(piece.len, |i, len| {
                            let x = load::<I>(dtype, a, a_step, i, len);
                            let z = if two { load::<I>(dtype, b, b_step, i, len) } else { x };
                            let result = self.function.apply(x, z);
                            real!(dtype, |T| result.store(y.cast::<T>().add(i), len));
                        });
                    }
                }
            }
        }
    }
}

struct Filled<T> {
    y: Out<T>,
    value: f32,
    elements: usize,
}

impl<T: SimdElement> Kernel for Filled<T> {
    #[inline(always)]
    unsafe fn items<I: Isa>(&self, range: Range<usize>) {
        for i in range.start * 1024..self.elements.min(range.end * 1024) {
            // SAFETY: the element is the kernel's.
            unsafe { self.y.at(i).write(T::of(self.value)) };
        }
    }
}

pub(super) fn compile(context: &OpContext<'_>) -> Result<Call> {
    let Some(y) = context.output(0) else { return Ok(Box::new(|_| Ok(()))) };
    let elements = y.elements();
    let mut factor = None;
    let function = match &context.step.op {
        Op::Fill(op) => {
            let value = op.value.0;
            return Ok(Box::new(move |cx| {
                macro_rules! fill {
                    ($T:ty) => {{
                        // SAFETY: the planner gave the output its place.
                        unsafe {
                            let kernel = Filled::<$T> { y: Out(y.at(cx)), value, elements };
                            run(cx.pool, elements.div_ceil(1024), elements, &kernel);
                        }
                    }};
                }
                match y.dtype {
                    DType::U32 => fill!(u32),
                    dtype => real!(dtype, |T| fill!(T)),
                }
                Ok(())
            }));
        }
        Op::Affine(op) => Function::Affine(op.mul.0, op.add.0),
        Op::Scale(_) => {
            factor = Some(context.inputs[1].clone());
            Function::Affine(1.0, 0.0)
        }
        Op::Unary(op) => Function::Unary(op.function),
        Op::UnaryGrad(op) => Function::UnaryGrad(op.function),
        Op::Binary(op) => Function::Binary(op.function),
        _ => unreachable!("the executor sends no other operation here"),
    };
    let a = context.inputs[0].clone();
    let b = if matches!(function, Function::UnaryGrad(_) | Function::Binary(_)) {
        &context.inputs[1]
    } else {
        &a
    }
    .clone();
    context.expect(&a, y.dtype)?;
    context.expect(&b, y.dtype)?;
    let walk = StridedIter::new([&a.layout, &b.layout, &Layout::contiguous(&y.layout.shape)]);
    // A function with an exponential costs as much as moving several elements.
    let work =
        if matches!(function, Function::Affine(..) | Function::Binary(_)) { elements } else { 4 * elements };
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places.
        unsafe {
            let function = match &factor {
                Some(factor) => Function::Affine(factor.at::<f32>(cx).read(), 0.0),
                None => function,
            };
            let (a, b, dtype) = (In(a.at::<u8>(cx).cast_const()), In(b.at::<u8>(cx).cast_const()), y.dtype);
            let kernel = Map { walk: &walk, function, dtype, a, b, y: Out(y.at(cx)) };
            run(cx.pool, walk.items(), work, &kernel);
        }
        Ok(())
    }))
}
