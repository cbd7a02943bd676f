//! A low-rank adapter over candle's tensors, for models that are written with candle.

use candle_core::{DType, Device, Tensor, Var};

use super::lora::{LoraConfig, init_a};
use crate::backend::candle::CustomMetalOps;
use crate::{Error, Result};

/// One adapted linear layer: `y = x·wᵀ + scale·(x·aᵀ)·bᵀ` (Hu et al., 2021, arXiv:2106.09685), or the update alone.
///
/// a `[rank, in]` begins uniform in ±1/√in and b `[out, rank]` at zero, as in PEFT; scale is alpha / rank, or alpha / √rank
/// with rsLoRA. Both are candle's variables: give [`LoRALayer::vars`] to an optimizer of candle's. The fused operations
/// under it have gradients on candle's CPU and Metal devices. Dropout is the caller's business.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use metal_candle::training::{LoRALayer, LoraConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
/// let layer = LoRALayer::new(&config, "model.layers.0.self_attn.q_proj", (16, 32), DType::F32, &Device::Cpu)?;
/// let w = Tensor::zeros((32, 16), DType::F32, &Device::Cpu)?;
/// let x = Tensor::ones((2, 16), DType::F32, &Device::Cpu)?;
/// let gradients = layer.forward_with(&x, &w)?.sqr()?.sum_all()?.backward()?;
/// assert!(layer.vars().iter().all(|var| gradients.get(var).is_some()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LoRALayer {
    lora_a: Var,
    lora_b: Var,
    scale: f32,
}

fn failed(error: candle_core::Error) -> Error {
    Error::invalid("lora layer", error.to_string())
}

impl LoRALayer {
    /// A new adapter for a layer of `features` = (in, out). `path`, the layer's name, and the configuration's seed decide
    /// the initial a, which is that of [`crate::training::Trainer`].
    pub fn new(
        config: &LoraConfig,
        path: &str,
        features: (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let (inputs, outputs) = features;
        let a =
            Tensor::from_vec(init_a(config.rank, inputs, config.seed, path), (config.rank, inputs), device);
        let a = a.and_then(|a| a.to_dtype(dtype)).map_err(failed)?;
        let b = Tensor::zeros((outputs, config.rank), dtype, device).map_err(failed)?;
        let rank = config.rank as f64;
        let divisor = if config.rslora { rank.sqrt() } else { rank };
        Self::from_tensors(&a, &b, (config.alpha / divisor) as f32)
    }

    /// An adapter from a `[rank, in]`, b `[out, rank]` and its scale, as adapter files hold them.
    pub fn from_tensors(a: &Tensor, b: &Tensor, scale: f32) -> Result<Self> {
        if a.rank() != 2 || b.rank() != 2 || a.dims()[0] != b.dims()[1] {
            let message = format!("a {:?} and b {:?} must be [rank, in] and [out, rank]", a.dims(), b.dims());
            return Err(Error::invalid("lora layer", message));
        }
        let var = |x: &Tensor| Var::from_tensor(x).map_err(failed);
        Ok(Self { lora_a: var(a)?, lora_b: var(b)?, scale })
    }

    /// The update alone: `scale·(x·aᵀ)·bᵀ` for x `[…, in]`. Both products go through
    /// [`CustomMetalOps::fast_matmul`], which chooses Metal Performance Shaders where the features and METAL_CANDLE_BACKEND say
    /// so; the gradients of a product go the way it went.
    pub fn forward(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = input.fast_matmul(&self.lora_a.t()?)?;
        hidden.fast_matmul(&self.lora_b.t()?)? * f64::from(self.scale)
    }

    /// The frozen layer w `[out, in]` with the update, as one operation.
    pub fn forward_with(&self, input: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
        input.lora_forward_fused(w, &self.lora_a, &self.lora_b, self.scale)
    }

    /// The weight that does what w and the update do: `w + scale·b·a`, in w's dtype; the product is in f32.
    pub fn merged(&self, w: &Tensor) -> candle_core::Result<Tensor> {
        let [w32, a, b] =
            [w, self.lora_a.as_tensor(), self.lora_b.as_tensor()].map(|x| x.detach().to_dtype(DType::F32));
        (w32? + (b?.matmul_fused(&a?)? * f64::from(self.scale))?)?.to_dtype(w.dtype())
    }

    /// a and b, for an optimizer.
    pub fn vars(&self) -> [&Var; 2] {
        [&self.lora_a, &self.lora_b]
    }

    /// The factor of the update.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}
