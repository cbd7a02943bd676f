//! Fused, differentiable operations on candle's tensors.
//!
//! candle's own fused softmax, norms, rotary embedding and attention have no backward: a gradient that should pass
//! through them vanishes without an error (candle issue 2168). Those of [`CustomMetalOps`] have one that candle's
//! `backward()` uses, exact to first order; the gradient of a gradient is not recorded.
//!
//! They run on candle's CPU device, by this crate's kernels on the tensors' own memory, and on its Metal device, by this
//! crate's kernels encoded into candle's own encoder, so that nothing waits. Views are read where they lie if the kernel
//! can, otherwise copied by it. Dtypes are f32, f16 and bf16; sums are f32.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use metal_candle::CustomMetalOps;
//!
//! # fn main() -> candle_core::Result<()> {
//! let x = Var::new(&[[1f32, 2., 3., 4.]], &Device::Cpu)?;
//! let weight = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
//! let loss = x.rms_norm_fused(&weight, 1e-5)?.softmax_fused(1)?.sqr()?.sum_all()?;
//! let gradients = loss.backward()?;
//! assert!(gradients.get(&x).is_some());
//! # Ok(())
//! # }
//! ```

mod fused;
mod lazy;
#[cfg(metal)]
mod metal;
#[cfg(mps)]
mod mps;
#[cfg(mps)]
mod mps_softmax;
mod op;
mod program;

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::select::Preference;
use crate::Error;
use crate::ops::Real;
use crate::tensor::Shape;
use fused::Fused;
use op::{apply, wrap};

impl super::Device {
    /// Returns candle's device for the same hardware: its Metal device for the GPU, its CPU for every other device.
    ///
    /// On macOS 14 and older candle's own `Device::new_metal` panics. [`Device::best`](super::Device::best) followed by
    /// this method returns candle's CPU there.
    ///
    /// # Errors
    /// Returns candle's error if it cannot open the GPU.
    pub fn candle(&self) -> Result<candle_core::Device> {
        match self.name().as_str() {
            "metal" => candle_core::Device::new_metal(0),
            _ => Ok(candle_core::Device::Cpu),
        }
    }
}

/// Which keys a query of [`CustomMetalOps::attention_fused`] sees.
#[derive(Debug, Clone, Copy)]
pub enum AttentionMask<'a> {
    /// All of them.
    None,
    /// Those that do not come after it: query t sees keys 0 to t.
    Causal,
    /// What this tensor, of a shape that broadcasts to `[batch, heads, t, s]`, adds to the scaled scores: 0 or −∞, or any
    /// bias. It gets no gradient.
    Additive(&'a Tensor),
}

/// Fused operations for [`candle_core::Tensor`], each with a backward.
///
/// Shapes, dtypes and devices that do not fit are errors of candle's kind with a message of ours, which names the
/// operation and the shapes.
pub trait CustomMetalOps: Sized {
    /// `self · rhs` by Metal Performance Shaders: `[…, m, k] · […, k, n]`, or a right side `[k, n]` shared by the batch.
    ///
    /// On Metal these kernels cannot be encoded into candle's command buffer (none is reachable from candle 0.9.2 on), so
    /// one call waits twice: for what candle has encoded so far, and for the product. By Apple's and others' figures
    /// that is 0.3 to 0.6 ms; the call pays for single large products, on M5 and later in f16 above all, and for checking
    /// results. What the framework must not take (see `docs/MPS_API_RESEARCH.md`) and builds without the feature `mps`
    /// take [`CustomMetalOps::matmul_fused`]. On the CPU it is that too.
    fn matmul_mps(&self, rhs: &Self) -> Result<Self>;

    /// `self · rhs` by kernels of this crate; transposed views are read where they lie. Shapes as for `matmul_mps`.
    fn matmul_fused(&self, rhs: &Self) -> Result<Self>;

    /// [`CustomMetalOps::matmul_mps`] or [`CustomMetalOps::matmul_fused`], whichever the level expects to be faster with
    /// both waits counted. The level is METAL_CANDLE_BACKEND, read once per process, or where that is not set the feature
    /// `fast`, `balanced` (the default) or `portable`; with `portable` it is candle's own product.
    fn fast_matmul(&self, rhs: &Self) -> Result<Self>;

    /// `exp(x − max x) / Σ exp(x − max x)` along an axis. A slice of −∞ only, or with +∞ or NaN, gives NaN.
    fn softmax_fused(&self, axis: usize) -> Result<Self>;

    /// [`CustomMetalOps::softmax_fused`] with a choice of implementation by the level (see
    /// [`CustomMetalOps::fast_matmul`]): candle's unfused operations for `portable`; for `mps`, along the last axis of a Metal
    /// tensor, `MPSMatrixSoftMax` and its gradient, each of which waits twice as `matmul_mps` does; our kernel otherwise,
    /// because a softmax is limited by memory bandwidth and no implementation gains what two waits cost.
    fn fast_softmax(&self, axis: usize) -> Result<Self>;

    /// `x − max x − log Σ exp(x − max x)` along an axis.
    fn log_softmax_fused(&self, axis: usize) -> Result<Self>;

    /// `x / √(mean x² + eps) · weight` along the last axis (Zhang and Sennrich, 2019, arXiv:1910.07467); weight `[n]`.
    fn rms_norm_fused(&self, weight: &Self, eps: f32) -> Result<Self>;

    /// `s = x + residual` and the RMS norm of s, as (norm, s), in one pass.
    fn add_rms_norm_fused(&self, residual: &Self, weight: &Self, eps: f32) -> Result<(Self, Self)>;

    /// `(x − mean x) / √(var x + eps) · weight + bias` along the last axis (Ba et al., 2016, arXiv:1607.06450), with the
    /// biased variance; weight and bias `[n]`.
    fn layer_norm_fused(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self>;

    /// Rotary embedding in the half-split form (Su et al., 2021, arXiv:2104.09864), as `candle_nn::rotary_emb::rope`:
    /// x `[batch, heads, t, d]`, cos and sin `[t or more, d/2]` in f32 or x's dtype. cos and sin get no gradient.
    fn rope_fused(&self, cos: &Self, sin: &Self) -> Result<Self>;

    /// `x / (1 + exp(−x)) · up` (SwiGLU without its products; Shazeer, 2020, arXiv:2002.05202).
    fn silu_mul_fused(&self, up: &Self) -> Result<Self>;

    /// `softmax(scale · q·kᵀ + mask) · v` for q `[batch, heads, t, d]`, k and v `[batch, kv_heads, s, d]`, where heads is a
    /// multiple of kv_heads. Without a tensor as mask it goes by tiles and never holds the scores (Dao et al., 2022,
    /// arXiv:2205.14135); with one it is the chain of products. The result is a view of `[batch, t, heads, d]`.
    fn attention_fused(&self, k: &Self, v: &Self, mask: AttentionMask<'_>, scale: f32) -> Result<Self>;

    /// `x·wᵀ + scale·(x·aᵀ)·bᵀ` (Hu et al., 2021, arXiv:2106.09685) for x `[…, k]`, w `[n, k]`, a `[r, k]`, b `[n, r]`, all
    /// of one dtype. x, a and b get gradients; w is frozen, and refused if it wants one.
    fn lora_forward_fused(&self, w: &Self, a: &Self, b: &Self, scale: f32) -> Result<Self>;

    /// The mean of `log Σ exp(logits) − logits[target]` over the rows of `[…, classes]`, for u32 targets `[…]`: a scalar in
    /// f32. The gradient comes from the same pass. A target beyond the classes is an error on the CPU; on Metal, where
    /// nobody can look without a wait, it counts as the last class.
    fn cross_entropy_fused(&self, targets: &Self) -> Result<Self>;

    /// The k greatest elements along the last axis, greatest first, and their indices (u32). Ties go to the lower index; NaN
    /// counts as greater than any number. The values' gradient goes to where they came from.
    fn top_k(&self, k: usize) -> Result<(Self, Self)>;
}

/// Refuses a gradient that would vanish.
fn frozen(op: &'static str, what: &str, tensor: &Tensor) -> Result<()> {
    if !tensor.track_op() {
        return Ok(());
    }
    let message =
        format!("{what} gets no gradient here, but depends on a variable: detach it, or use candle's own");
    Err(wrap(Error::invalid(op, message)))
}

fn shape(tensor: &Tensor) -> Shape {
    Shape::from(tensor.dims().to_vec())
}

fn one(mut outputs: Vec<Tensor>) -> Tensor {
    outputs.swap_remove(0)
}

/// Returns the level of `fast_matmul` and `fast_softmax`, `None` for `portable`. The environment is read once per process.
fn level() -> Result<Option<Preference>> {
    static LEVEL: OnceLock<std::result::Result<Option<Preference>, String>> = OnceLock::new();
    let read = || level_of(std::env::var("METAL_CANDLE_BACKEND").ok().as_deref());
    LEVEL.get_or_init(|| read().map_err(|error| error.to_string())).clone().map_err(candle_core::Error::Msg)
}

/// Returns the level by the value of METAL_CANDLE_BACKEND or, where it is not set, by the features.
fn level_of(set: Option<&str>) -> crate::Result<Option<Preference>> {
    match set {
        Some("portable") => Ok(None),
        Some(name) => Preference::named(name).map(Some),
        None if cfg!(feature = "fast") => Ok(Some(Preference::Fast)),
        None if cfg!(feature = "portable") && !cfg!(feature = "balanced") => Ok(None),
        None => Ok(Some(Preference::default())),
    }
}

/// candle's own product, with a right side `[k, n]` shared by a batch.
fn portable_matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // candle multiplies equal dtypes only.
    if a.dtype() != b.dtype() {
        return a.matmul_fused(b);
    }
    if b.rank() != 2 || a.rank() <= 2 {
        return a.matmul(b);
    }
    let mut dims = a.dims().to_vec();
    *dims.last_mut().expect("at least three axes") = b.dims()[1];
    a.flatten_to(a.rank() - 2)?.matmul(b)?.reshape(dims)
}

impl CustomMetalOps for Tensor {
    fn matmul_mps(&self, rhs: &Self) -> Result<Self> {
        #[cfg(mps)]
        if let candle_core::Device::Metal(_) = self.device() {
            return mps::matmul_mps(self, rhs);
        }
        self.matmul_fused(rhs)
    }

    fn matmul_fused(&self, rhs: &Self) -> Result<Self> {
        Ok(one(apply(Fused::MatMul, &[self, rhs], &[])?))
    }

    fn fast_matmul(&self, rhs: &Self) -> Result<Self> {
        match level()? {
            None => portable_matmul(self, rhs),
            #[cfg(mps)]
            Some(preference) if mps::prefers_mps(self, rhs, preference)? => self.matmul_mps(rhs),
            Some(_) => self.matmul_fused(rhs),
        }
    }

    fn softmax_fused(&self, axis: usize) -> Result<Self> {
        Ok(one(apply(Fused::Softmax { axis, log: false }, &[self], &[])?))
    }

    fn fast_softmax(&self, axis: usize) -> Result<Self> {
        match level()? {
            None => {
                let exponentials = self.broadcast_sub(&self.max_keepdim(axis)?)?.exp()?;
                exponentials.broadcast_div(&exponentials.sum_keepdim(axis)?)
            }
            #[cfg(mps)]
            Some(preference) if mps_softmax::prefers_mps(self, axis, preference) => {
                mps_softmax::softmax_mps(self)
            }
            Some(_) => self.softmax_fused(axis),
        }
    }

    fn log_softmax_fused(&self, axis: usize) -> Result<Self> {
        Ok(one(apply(Fused::Softmax { axis, log: true }, &[self], &[])?))
    }

    fn rms_norm_fused(&self, weight: &Self, eps: f32) -> Result<Self> {
        Ok(one(apply(Fused::RmsNorm { eps: Real(eps) }, &[self, weight], &[])?))
    }

    fn add_rms_norm_fused(&self, residual: &Self, weight: &Self, eps: f32) -> Result<(Self, Self)> {
        let mut outputs = apply(Fused::AddRmsNorm { eps: Real(eps) }, &[self, residual], &[weight])?;
        let norm = outputs.swap_remove(1);
        Ok((norm, one(outputs)))
    }

    fn layer_norm_fused(&self, weight: &Self, bias: Option<&Self>, eps: f32) -> Result<Self> {
        let fused = Fused::LayerNorm { eps: Real(eps) };
        Ok(one(match bias {
            Some(bias) => apply(fused, &[self, weight, bias], &[])?,
            None => apply(fused, &[self, weight], &[])?,
        }))
    }

    fn rope_fused(&self, cos: &Self, sin: &Self) -> Result<Self> {
        let op = "rope_fused";
        frozen(op, "cos", cos)?;
        frozen(op, "sin", sin)?;
        let shapes = [shape(self), shape(cos)];
        if self.rank() != 4 || cos.rank() != 2 || cos.dims()[0] < self.dims()[2] {
            let message = "x must be [batch, heads, t, d], cos and sin [t or more, d/2]";
            return Err(wrap(Error::shape(op, message, &shapes.each_ref())));
        }
        let by_token = self.transpose(1, 2)?;
        if !self.is_contiguous() && by_token.is_contiguous() {
            let rotated = apply(Fused::Rope { heads_first: false }, &[&by_token], &[cos, sin])?;
            return one(rotated).transpose(1, 2);
        }
        Ok(one(apply(Fused::Rope { heads_first: true }, &[self], &[cos, sin])?))
    }

    fn silu_mul_fused(&self, up: &Self) -> Result<Self> {
        Ok(one(apply(Fused::SiluMul, &[self, up], &[])?))
    }

    fn attention_fused(&self, k: &Self, v: &Self, mask: AttentionMask<'_>, scale: f32) -> Result<Self> {
        let mask_shape = if let AttentionMask::Additive(mask) = mask { Some(shape(mask)) } else { None };
        fused::check_attention(&shape(self), &shape(k), mask_shape.as_ref()).map_err(wrap)?;
        let scale = Real(scale);
        if let AttentionMask::Additive(mask) = mask {
            frozen("attention_fused", "the mask", mask)?;
            return Ok(one(apply(Fused::MaskedAttention { scale }, &[self, k, v], &[mask])?));
        }
        let fused = Fused::Attention { scale, causal: matches!(mask, AttentionMask::Causal) };
        let [q, k, v] = [self.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
        one(apply(fused, &[&q, &k, &v], &[])?).transpose(1, 2)
    }

    fn lora_forward_fused(&self, w: &Self, a: &Self, b: &Self, scale: f32) -> Result<Self> {
        let op = "lora_forward_fused";
        frozen(op, "w", w)?;
        if w.rank() != 2 || a.rank() != 2 || b.rank() != 2 {
            let shapes = [shape(w), shape(a), shape(b)];
            return Err(wrap(Error::shape(op, "w must be [n, k], a [r, k], b [n, r]", &shapes.each_ref())));
        }
        Ok(one(apply(Fused::Lora { scale: Real(scale) }, &[self, a, b], &[w])?))
    }

    fn cross_entropy_fused(&self, targets: &Self) -> Result<Self> {
        let classes = self.dims().last().copied().unwrap_or(0);
        if self.rank() == 0 || self.elem_count() == 0 || targets.elem_count() * classes != self.elem_count() {
            let shapes = [shape(self), shape(targets)];
            let message = "logits [rows, classes] need as many targets as rows, and one row at least";
            return Err(wrap(Error::shape("cross_entropy_fused", message, &shapes.each_ref())));
        }
        Ok(one(apply(Fused::CrossEntropy, &[self], &[targets])?))
    }

    fn top_k(&self, k: usize) -> Result<(Self, Self)> {
        let mut outputs = apply(Fused::TopK { k }, &[self], &[])?;
        let indices = outputs.swap_remove(1);
        Ok((one(outputs), indices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_decides_before_the_features() {
        assert_eq!(level_of(Some("portable")).unwrap(), None);
        assert_eq!(level_of(Some("mps")).unwrap(), Some(Preference::Mps));
        assert_eq!(level_of(Some("")).unwrap(), Some(Preference::Balanced));
        let unset = level_of(None).unwrap();
        let portable = cfg!(feature = "portable") && !cfg!(feature = "balanced") && !cfg!(feature = "fast");
        assert_eq!(unset.is_none(), portable);
        assert!(level_of(Some("cuda")).unwrap_err().to_string().contains("METAL_CANDLE_BACKEND: 'cuda'"));
    }

    #[test]
    fn candles_product_takes_a_shared_right_side() {
        let device = candle_core::Device::Cpu;
        let a = Tensor::arange(0_f32, 12., &device).unwrap().reshape((2, 3, 2)).unwrap();
        let b = Tensor::new(&[[1_f32, 0., 2.], [0., 1., 3.]], &device).unwrap();
        let y = portable_matmul(&a, &b).unwrap();
        assert_eq!(y.dims(), [2, 3, 3]);
        assert_eq!(y.to_vec3::<f32>().unwrap()[1][2], [10., 11., 53.]);
    }
}
