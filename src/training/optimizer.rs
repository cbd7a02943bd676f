//! The adapter's parameters with their gradients and AdamW state, each kind side by side in one buffer, and what updates
//! all of them.

use crate::backend::Device;
use crate::graph::{Graph, LazyTensor};
use crate::ops::{Accumulate, AdamW, GlobalNorm, Real};
use crate::tensor::{HostTensor, Parameter, TensorSpec};
use crate::{Error, Result};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    /// Decay of the mean.
    pub beta1: f32,
    /// Decay of the mean square.
    pub beta2: f32,
    /// Added to the root mean square.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; infinity for no limit.
    pub max_norm: f32,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_norm: 1.0 }
    }
}

/// Tensors that train, and everything that belongs to them.
pub(crate) struct Optimizer {
    pub(crate) parameters: Vec<Parameter>,
    gradients: Vec<Parameter>,
    means: Vec<Parameter>,
    squares: Vec<Parameter>,
    options: OptimizerOptions,
}

impl Optimizer {
    /// Places named tensors on the device, with zeroed state.
    pub(crate) fn new(
        device: &Device,
        tensors: &[(String, HostTensor)],
        options: &OptimizerOptions,
    ) -> Result<Self> {
        let parameters = side_by_side(device, tensors, "", true)?;
        for (parameter, (_, value)) in parameters.iter().zip(tensors) {
            parameter.write(value)?;
        }
        let gradients = side_by_side(device, tensors, ".grad", false)?;
        let means = side_by_side(device, tensors, ".exp_avg", false)?;
        let squares = side_by_side(device, tensors, ".exp_avg_sq", false)?;
        Ok(Self { parameters, gradients, means, squares, options: *options })
    }

    /// Records that the loss's gradients are added to those kept here; `keep` (f32 `[1]`) is 0 for the first
    /// micro-batch of a step, 1 for the others. Returns the sums, which must be computed.
    pub(crate) fn record_gradients(
        &self,
        graph: &Graph,
        loss: &LazyTensor,
        keep: &LazyTensor,
    ) -> Result<Vec<LazyTensor>> {
        let wrt: Vec<LazyTensor> = self.parameters.iter().map(|p| graph.parameter(p)).collect();
        let gradients = graph.gradients(loss, &wrt)?;
        let sums: Vec<LazyTensor> = self.gradients.iter().map(|sum| graph.parameter(sum)).collect();
        let pairs = sums.iter().zip(&gradients).flat_map(|(sum, gradient)| [sum, gradient]);
        graph.record(Accumulate, &pairs.chain([keep]).collect::<Vec<_>>())
    }

    /// Records the update of all tensors from the gradients that [`Optimizer::record_gradients`] gave, with the input
    /// [`Optimizer::hyper`]. Returns the gradients' global norm, without the factor and before clipping, and what must be
    /// computed. If the norm or the loss is not finite, nothing changes.
    pub(crate) fn record_update(
        &self,
        graph: &Graph,
        gradients: &[LazyTensor],
        loss: &LazyTensor,
    ) -> Result<(LazyTensor, Vec<LazyTensor>)> {
        let hyper = graph.input("hyper", TensorSpec::f32([3]));
        let recorded =
            |list: &[Parameter]| -> Vec<LazyTensor> { list.iter().map(|p| graph.parameter(p)).collect() };
        let [parameters, means, squares] =
            [&self.parameters, &self.means, &self.squares].map(|list| recorded(list));
        let norm = graph.record(GlobalNorm, &gradients.iter().collect::<Vec<_>>())?.remove(0);
        // Nothing times a loss that is no number is no number.
        let guarded = norm.add(&loss.reshape([1])?.affine(0.0, 0.0)?)?;
        let kinds = [&parameters[..], gradients, &means, &squares];
        let mut inputs: Vec<&LazyTensor> =
            (0..parameters.len()).flat_map(|i| kinds.map(|kind| &kind[i])).collect();
        inputs.extend([&hyper, &guarded]);
        let op = AdamW {
            beta1: Real(self.options.beta1),
            beta2: Real(self.options.beta2),
            eps: Real(self.options.eps),
            weight_decay: Real(self.options.weight_decay),
            max_norm: Real(self.options.max_norm),
        };
        let updates = graph.record(op, &inputs)?;
        Ok((norm, updates))
    }

    /// The input of an update: learning rate, step (counted from 1), and what gradients are multiplied by.
    pub(crate) fn hyper(learning_rate: f64, step: usize, factor: f64) -> Result<HostTensor> {
        HostTensor::from_slice(&[learning_rate as f32, step as f32, factor as f32], [3])
    }

    /// The accumulated gradient of a tensor.
    pub(crate) fn gradient(&self, index: usize) -> Result<HostTensor> {
        self.gradients[index].read()
    }

    /// The state, by the names under which checkpoints keep it.
    pub(crate) fn state(&self) -> Result<Vec<(String, HostTensor)>> {
        self.means.iter().chain(&self.squares).map(|p| Ok((p.name().to_owned(), p.read()?))).collect()
    }

    /// Restores tensors and state.
    pub(crate) fn restore(&self, values: &[(String, HostTensor)]) -> Result<()> {
        for parameter in self.parameters.iter().chain(&self.means).chain(&self.squares) {
            let value = values.iter().find(|(name, _)| name == parameter.name());
            let Some((_, value)) = value else {
                return Err(Error::invalid(parameter.name(), "is missing from the checkpoint"));
            };
            parameter.write(value)?;
        }
        Ok(())
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.parameters.iter().map(|p| p.spec().bytes()).sum::<usize>()
    }
}

fn side_by_side(
    device: &Device,
    tensors: &[(String, HostTensor)],
    suffix: &str,
    trainable: bool,
) -> Result<Vec<Parameter>> {
    let padded = |tensor: &HostTensor| tensor.spec().bytes().next_multiple_of(64);
    let buffer = device.allocate(tensors.iter().map(|(_, tensor)| padded(tensor)).sum())?;
    let mut offset = 0;
    tensors
        .iter()
        .map(|(name, tensor)| {
            let at = offset;
            offset += padded(tensor);
            Parameter::new(format!("{name}{suffix}"), tensor.spec().clone(), trainable, buffer.clone(), at)
        })
        .collect()
}
