//! Fused operations as candle's custom operations: forward on its storage, backward through its `backward()`.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage, Tensor,
};

use super::fused::Fused;
use super::program::{Pass, Stored, View, run_cpu};
use crate::Error;

/// What a forward pass leaves for later.
#[derive(Default)]
struct Saved {
    /// Outputs for the backward pass, or further ones that a caller sees.
    tensors: OnceLock<Vec<Tensor>>,
    /// The norm of `add_rms_norm_fused`, until the operation that stands for it takes it.
    norm: Mutex<Option<(Storage, Shape)>>,
}

/// One application of a fused operation.
#[derive(Clone)]
struct Apply {
    fused: Fused,
    /// Inputs without a gradient, after those that candle hands over.
    extra: Vec<Tensor>,
    /// Whether outputs for the backward pass are wanted.
    hidden: bool,
    saved: Arc<Saved>,
}

/// Wraps an error of ours in one of candle's.
pub(super) fn wrap(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// Applies an operation to up to three tensors that may have gradients, and others that have none. Returns what a caller
/// sees.
pub(super) fn apply(fused: Fused, arguments: &[&Tensor], extra: &[&Tensor]) -> Result<Vec<Tensor>> {
    let first = arguments[0];
    if let Some(other) = arguments.iter().chain(extra).find(|t| !t.device().same_device(first.device())) {
        let message = format!("tensors of {:?} and {:?} do not meet", first.device(), other.device());
        return Err(wrap(Error::invalid(fused.name(), message)));
    }
    let apply = Apply {
        fused,
        extra: extra.iter().map(|&tensor| tensor.clone()).collect(),
        hidden: arguments.iter().any(|tensor| tensor.track_op()),
        saved: Arc::default(),
    };
    let saved = Arc::clone(&apply.saved);
    let result = apply_to(arguments, apply)?;
    let mut results = vec![result];
    match fused {
        Fused::AddRmsNorm { eps } => {
            let norm = Norm { saved, backward: Apply { fused: Fused::RmsNorm { eps }, ..empty() } };
            results.push(results[0].apply_op2(extra[0], norm)?);
        }
        _ if fused.visible() > 1 => results.extend(saved.tensors.get().into_iter().flatten().cloned()),
        _ => {}
    }
    Ok(results)
}

fn empty() -> Apply {
    Apply { fused: Fused::SiluMul, extra: Vec::new(), hidden: false, saved: Arc::default() }
}

fn apply_to(arguments: &[&Tensor], apply: Apply) -> Result<Tensor> {
    match *arguments {
        [x] if apply.hidden => x.apply_op1(apply),
        [x] => x.apply_op1_no_bwd(&apply),
        [x, y] if apply.hidden => x.apply_op2(y, apply),
        [x, y] => x.apply_op2_no_bwd(y, &apply),
        [x, y, z] if apply.hidden => x.apply_op3(y, z, apply),
        [x, y, z] => x.apply_op3_no_bwd(y, z, &apply),
        _ => Err(wrap(Error::invalid(apply.fused.name(), "takes one to three tensors with gradients"))),
    }
}

/// The shape that a caller sees, from that of the first input and of the operation's own output.
fn visible_shape(fused: Fused, x: &[usize], output: &[usize]) -> Shape {
    match fused {
        Fused::CrossEntropy => Shape::from(()),
        Fused::MatMul | Fused::TopK { .. } => Shape::from(output),
        Fused::Lora { .. } => {
            let mut dims = x.to_vec();
            if let (Some(last), Some(&n)) = (dims.last_mut(), output.last()) {
                *last = n;
            }
            Shape::from(dims)
        }
        _ => Shape::from(x),
    }
}

fn tensor(storage: Storage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

impl Apply {
    fn pass(&self) -> Pass {
        Pass::Forward { hidden: self.hidden }
    }

    /// Puts the outputs after the first where they are wanted.
    fn keep(&self, rest: impl Iterator<Item = (Storage, Vec<usize>)>, x: &[usize]) {
        if matches!(self.fused, Fused::AddRmsNorm { .. }) {
            let norm = rest.last().map(|(storage, _)| (storage, Shape::from(x)));
            *self.saved.norm.lock().unwrap_or_else(PoisonError::into_inner) = norm;
            return;
        }
        let tensors: Vec<Tensor> = rest.map(|(storage, dims)| tensor(storage, dims)).collect();
        if !tensors.is_empty() {
            // A forward pass runs once.
            let _ = self.saved.tensors.set(tensors);
        }
    }

    fn forward(&self, given: &[View<'_>]) -> Result<(Storage, Shape)> {
        let guards: Vec<_> = self.extra.iter().map(Tensor::storage_and_layout).collect();
        let views = given.iter().copied().chain(guards.iter().map(|(s, layout)| View::of(s, layout)));
        let x = given[0].layout.dims();
        let mut outputs = run(self.fused, self.pass(), &views.collect::<Vec<_>>())?.into_iter();
        let (first, dims) = outputs.next().ok_or_else(|| elsewhere(self.fused))?;
        self.keep(outputs, x);
        Ok((first, visible_shape(self.fused, x, &dims)))
    }

    /// The gradients of the arguments that want one.
    fn backward(
        &self,
        arguments: &[&Tensor],
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut gradients = vec![None; arguments.len()];
        match self.fused {
            // The sum hands its gradient on; the norm is an operation of its own.
            Fused::AddRmsNorm { .. } => {
                gradients.iter_mut().for_each(|gradient| *gradient = Some(upstream.clone()));
                return Ok(gradients);
            }
            Fused::TopK { .. } => {
                let indices = self.saved.tensors.get().and_then(|tensors| tensors.first());
                let indices = indices.ok_or_else(|| elsewhere(self.fused))?;
                let zeros = arguments[0].zeros_like()?;
                let last = arguments[0].rank() - 1;
                gradients[0] = Some(zeros.scatter_add(indices, &upstream.contiguous()?, last)?);
                return Ok(gradients);
            }
            _ => {}
        }
        let wanted: Vec<usize> = (0..arguments.len()).filter(|&index| arguments[index].track_op()).collect();
        let needed = wanted.iter().fold(0, |bits, index| bits | 1 << index);
        let pass = Pass::Backward { inputs: arguments.len() + self.extra.len(), needed };
        let hidden = self.saved.tensors.get().map(Vec::as_slice).unwrap_or_default();
        let saved = std::iter::once(result).chain(hidden);
        let tensors = arguments.iter().copied().chain(&self.extra).chain(saved).chain([upstream]);
        let guards: Vec<_> = tensors.map(Tensor::storage_and_layout).collect();
        let views: Vec<_> = guards.iter().map(|(storage, layout)| View::of(storage, layout)).collect();
        for ((storage, _), index) in run(self.fused, pass, &views)?.into_iter().zip(wanted) {
            gradients[index] = Some(tensor(storage, arguments[index].dims()));
        }
        Ok(gradients)
    }
}

/// Runs a pass where the tensors are.
fn run(fused: Fused, pass: Pass, views: &[View<'_>]) -> Result<Vec<(Storage, Vec<usize>)>> {
    match views[0].stored {
        Stored::Cpu(_) => run_cpu(fused, pass, views).map_err(wrap),
        #[cfg(metal)]
        Stored::Metal(_) => super::metal::run_metal(fused, pass, views),
        _ => Err(elsewhere(fused)),
    }
}

pub(super) fn elsewhere(fused: Fused) -> candle_core::Error {
    let message =
        "runs on candle's CPU, and on its Metal device where this build has the feature custom-metal";
    wrap(Error::invalid(fused.name(), message))
}

/// The storage of a result, which is where its inputs are.
fn on_cpu((storage, shape): (Storage, Shape), fused: Fused) -> Result<(CpuStorage, Shape)> {
    if let Storage::Cpu(storage) = storage { Ok((storage, shape)) } else { Err(elsewhere(fused)) }
}

fn on_metal((storage, shape): (Storage, Shape), fused: Fused) -> Result<(MetalStorage, Shape)> {
    if let Storage::Metal(storage) = storage { Ok((storage, shape)) } else { Err(elsewhere(fused)) }
}

/// The forward passes of one of candle's three kinds of operation, by its number of inputs.
macro_rules! forward_passes {
    ($($storage:ident $layout:ident),+) => {
        fn name(&self) -> &'static str {
            self.fused.name()
        }

        fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),+) -> Result<(CpuStorage, Shape)> {
            let views = [$(View { stored: Stored::Cpu($storage), layout: $layout }),+];
            on_cpu(self.forward(&views)?, self.fused)
        }

        fn metal_fwd(&self, $($storage: &MetalStorage, $layout: &Layout),+) -> Result<(MetalStorage, Shape)> {
            let views = [$(View { stored: Stored::Metal($storage), layout: $layout }),+];
            on_metal(self.forward(&views)?, self.fused)
        }
    };
}

impl CustomOp1 for Apply {
    forward_passes!(s1 l1);

    fn bwd(&self, x: &Tensor, result: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[x], result, upstream)?.remove(0))
    }
}

impl CustomOp2 for Apply {
    forward_passes!(s1 l1, s2 l2);

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = array(self.backward(&[x, y], result, upstream)?);
        Ok((x, y))
    }
}

impl CustomOp3 for Apply {
    forward_passes!(s1 l1, s2 l2, s3 l3);

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = array(self.backward(&[x, y, z], result, upstream)?);
        Ok((x, y, z))
    }
}

fn array<const N: usize>(gradients: Vec<Option<Tensor>>) -> [Option<Tensor>; N] {
    let mut gradients = gradients.into_iter();
    std::array::from_fn(|_| gradients.next().flatten())
}

/// The norm of a sum: its value was computed with the sum, its gradient is that of an RMS norm.
struct Norm {
    saved: Arc<Saved>,
    backward: Apply,
}

impl Norm {
    fn take(&self) -> Result<(Storage, Shape)> {
        let norm = self.saved.norm.lock().unwrap_or_else(PoisonError::into_inner).take();
        norm.ok_or_else(|| elsewhere(self.backward.fused))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "add_rms_norm_fused"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        on_cpu(self.take()?, self.backward.fused)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        on_metal(self.take()?, self.backward.fused)
    }

    fn bwd(
        &self,
        sum: &Tensor,
        weight: &Tensor,
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [sum, weight] = array(self.backward.backward(&[sum, weight], result, upstream)?);
        Ok((sum, weight))
    }
}
