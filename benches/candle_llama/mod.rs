//! A training step of a Llama by candle's single operations, whose gradients candle has.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use metal_candle::bench::model::{Sizes, training_rows};
use metal_candle::models::{ModelConfig, Weights};
use metal_candle::training::Adapter;

const RATE: f64 = 1e-4;
const BETAS: (f64, f64) = (0.9, 0.999);

/// An adapter's matrix with AdamW's state.
struct Trained {
    value: Var,
    mean: Tensor,
    square: Tensor,
}

/// A module's pair and its scale.
struct Pair {
    path: String,
    a: usize,
    b: usize,
    scale: f64,
}

/// The model, the adapter and the batch.
pub(crate) struct Step {
    config: ModelConfig,
    weights: std::collections::HashMap<String, Tensor>,
    trained: Vec<Trained>,
    pairs: Vec<Pair>,
    ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    steps: i32,
}

impl Step {
    pub(crate) fn new(
        config: &ModelConfig,
        weights: &Weights,
        adapter: &Adapter,
        sizes: Sizes,
        device: &Device,
    ) -> Result<Self> {
        let all = weights.names().map(|name| {
            let shape = weights.shape(name).unwrap_or_default().to_vec();
            let value = weights.load(name, &shape, metal_candle::tensor::DType::F32);
            let value = value.map_err(candle_core::Error::wrap)?;
            Ok((name.to_owned(), super::tensor(&value, device)))
        });
        let weights = all.collect::<Result<_>>()?;
        let (mut trained, mut pairs) = (Vec::new(), Vec::new());
        for module in &adapter.modules {
            for matrix in [&module.a, &module.b] {
                let value = Var::from_tensor(&super::tensor(matrix, device))?;
                let zeros = value.zeros_like()?;
                trained.push(Trained { value, mean: zeros.clone(), square: zeros });
            }
            let (a, b) = (trained.len() - 2, trained.len() - 1);
            pairs.push(Pair { path: module.path.clone(), a, b, scale: module.scale });
        }
        let ids: Vec<u32> = training_rows(sizes, config.vocab).concat();
        let (t, half) = (sizes.length, config.head_dim / 2);
        let angle = |i: usize| {
            let power = 2.0 * (i % half) as f64 / config.head_dim as f64;
            (i / half) as f64 / config.rope_theta.powf(power)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..t * half).map(|i| f(angle(i)) as f32).collect();
            Tensor::from_vec(values, (t, half), device)
        };
        let hidden = |i: usize| if i % t <= i / t { 0.0 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..t * t).map(hidden).collect();
        Ok(Self {
            config: config.clone(),
            weights,
            trained,
            pairs,
            ids: Tensor::from_vec(ids, (sizes.rows, t), device)?,
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            mask: Tensor::from_vec(mask, (t, t), device)?,
            steps: 0,
        })
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        let missing = || candle_core::Error::Msg(format!("the model has no {name}"));
        self.weights.get(&format!("{name}.weight")).ok_or_else(missing)
    }

    fn linear(&self, path: &str, x: &Tensor) -> Result<Tensor> {
        let y = x.broadcast_matmul(&self.weight(path)?.t()?)?;
        let Some(pair) = self.pairs.iter().find(|pair| pair.path == path) else { return Ok(y) };
        let [a, b] = [pair.a, pair.b].map(|index| self.trained[index].value.as_tensor());
        y + (x.broadcast_matmul(&a.t()?)?.broadcast_matmul(&b.t()?)? * pair.scale)?
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(mean + self.config.rms_eps)?.sqrt()?)?;
        x.broadcast_mul(self.weight(name)?)
    }

    /// `[b, t, count·d]` to heads, rotated or not.
    fn heads(&self, x: &Tensor, count: usize, turned: bool) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let d = self.config.head_dim;
        let x = x.reshape((b, t, count, d))?.transpose(1, 2)?.contiguous()?;
        if !turned {
            return Ok(x);
        }
        let (first, second) = (x.narrow(3, 0, d / 2)?, x.narrow(3, d / 2, d / 2)?);
        let turn = |a: &Tensor, b: &Tensor| a.broadcast_mul(&self.cos)? + b.broadcast_mul(&self.sin)?;
        Tensor::cat(&[turn(&first, &second.neg()?)?, turn(&second, &first)?], 3)
    }

    fn loss(&self) -> Result<Tensor> {
        let config = &self.config;
        let (b, t) = self.ids.dims2()?;
        let embeddings = self.weight("model.embed_tokens")?;
        let mut h = embeddings.index_select(&self.ids.flatten_all()?, 0)?.reshape((b, t, ()))?;
        for layer in 0..config.layers {
            let path = |name: &str| format!("model.layers.{layer}.{name}");
            let x = self.norm(&path("input_layernorm"), &h)?;
            let part = |name: &str, count, turned| {
                self.heads(&self.linear(&path(&format!("self_attn.{name}")), &x)?, count, turned)
            };
            let q = part("q_proj", config.heads, true)?;
            let groups = config.heads / config.kv_heads;
            let repeated = |x: Tensor| -> Result<Tensor> {
                let (b, h, t, d) = x.dims4()?;
                x.unsqueeze(2)?.broadcast_as((b, h, groups, t, d))?.reshape((b, h * groups, t, d))
            };
            let k = repeated(part("k_proj", config.kv_heads, true)?)?;
            let v = repeated(part("v_proj", config.kv_heads, false)?)?;
            let scores = (q.matmul(&k.t()?.contiguous()?)? / (config.head_dim as f64).sqrt())?;
            let scores = super::softmax(&scores.broadcast_add(&self.mask)?, 3)?;
            let y = scores.matmul(&v)?.transpose(1, 2)?.reshape((b, t, ()))?;
            h = (h + self.linear(&path("self_attn.o_proj"), &y)?)?;
            let x = self.norm(&path("post_attention_layernorm"), &h)?;
            let gate = self.linear(&path("mlp.gate_proj"), &x)?.silu()?;
            let up = self.linear(&path("mlp.up_proj"), &x)?;
            h = (h + self.linear(&path("mlp.down_proj"), &(gate * up)?)?)?;
        }
        let h = self.norm("model.norm", &h)?.narrow(1, 0, t - 1)?.reshape((b * (t - 1), ()))?;
        let head = self.weights.get("lm_head.weight").unwrap_or(embeddings);
        let logits = h.matmul(&head.t()?)?;
        let targets = self.ids.narrow(1, 1, t - 1)?.contiguous()?.reshape((b * (t - 1), 1))?;
        let top = logits.max_keepdim(1)?.detach();
        let lse = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?;
        (lse - logits.gather(&targets, 1)?)?.mean_all()
    }

    /// Forward, backward, clipping to norm 1 and AdamW; the loss before the update.
    pub(crate) fn run(&mut self) -> Result<f64> {
        let loss = self.loss()?;
        let gradients: GradStore = loss.backward()?;
        let missing = || candle_core::Error::Msg("candle loses a gradient".to_owned());
        let all = self.trained.iter().map(|t| gradients.get(t.value.as_tensor()).ok_or_else(missing));
        let all: Vec<&Tensor> = all.collect::<Result<_>>()?;
        let squares = all.iter().map(|g| g.sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
        let norm = Tensor::stack(&squares, 0)?.sum_all()?.to_scalar::<f32>()?.sqrt();
        let factor = (1.0 / (f64::from(norm) + 1e-6)).min(1.0);
        self.steps += 1;
        let [first, second] = [BETAS.0, BETAS.1].map(|beta| 1.0 - beta.powi(self.steps));
        for (trained, gradient) in self.trained.iter_mut().zip(all) {
            let gradient = (gradient * factor)?.detach();
            trained.mean = ((&trained.mean * BETAS.0)? + (&gradient * (1.0 - BETAS.0))?)?;
            trained.square = ((&trained.square * BETAS.1)? + (gradient.sqr()? * (1.0 - BETAS.1))?)?;
            let root = ((&trained.square / second)?.sqrt()? + 1e-8)?;
            let change = ((&trained.mean / first)? / root)?;
            trained.value.set(&(trained.value.as_detached_tensor() - (change * RATE)?)?)?;
        }
        Ok(f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?))
    }
}
