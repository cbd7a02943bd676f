//! What a model's layers look like, read from `config.json` or from the metadata of a GGUF file.

use std::path::Path;

use super::gguf::Gguf;
use super::hf_config;
use super::weights::Weights;
use crate::{Error, Result};

/// Larger than any size of a real model; a configuration that asks for more is damaged.
const LARGEST: usize = 1_000_000_000;
/// More layers than any model has.
const MAX_LAYERS: usize = 10_000;

/// A family of models. They share the decoder and differ in the fields of [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3, SmolLM2, TinyLlama; in GGUF files also Mistral.
    Llama,
    /// Mistral 7B and its like.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
}

impl Architecture {
    pub(super) const SUPPORTED: &str = "llama, mistral, qwen2 and qwen3 (for example SmolLM2, Llama 3.2, Mistral 7B, Qwen2.5 and \
                                        Qwen3)";

    /// The name as `model_type` and GGUF spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3].into_iter().find(|a| a.name() == name)
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the frequencies of rotary embeddings are changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear(f64),
    /// Llama 3.1: low frequencies divided by the factor, high ones kept, those between interpolated.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// The context before the extension.
        original_context: usize,
    },
    /// Each frequency divided by its own factor, as GGUF files store Llama 3.1's scaling.
    Factors(Vec<f32>),
}

/// The configuration of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
    /// Number of rows of the embedding.
    pub vocab: usize,
    /// Longest sequence that the model was made for.
    pub context: usize,
    /// Epsilon of the norms.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Each token attends to so many tokens, itself among them; `None` means all before it.
    pub sliding_window: Option<usize>,
    /// The output head is the embedding.
    pub tie_embeddings: bool,
    /// q, k and v have biases.
    pub attention_bias: bool,
    /// o has a bias.
    pub output_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Each query and key head is normed.
    pub qk_norm: bool,
}

impl ModelConfig {
    /// Reads a folder's `config.json`, or the file itself.
    pub fn from_hf(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let config = hf_config::read(&path)?;
        config.validate(&path, hf_config::key)?;
        Ok(config)
    }

    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.text("general.architecture")?.ok_or_else(|| missing(gguf, "general.architecture"))?;
        let Some(architecture) = Architecture::from_name(name) else {
            return Err(Error::file_at(
                gguf.path(),
                "general.architecture",
                format!("'{name}' is not supported; supported are {}", Architecture::SUPPORTED),
            ));
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let optional = |suffix: &str| gguf.integer(&key(suffix));
        let required = |suffix: &str| optional(suffix)?.ok_or_else(|| missing(gguf, &key(suffix)));
        let has = |tensor: &str| gguf.tensors().contains_key(tensor);
        if optional("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(Error::file_at(
                gguf.path(),
                key("expert_count"),
                "mixtures of experts are not supported",
            ));
        }
        let hidden = required("embedding_length")?;
        let heads = required("attention.head_count")?;
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden / heads.max(1));
        for suffix in ["attention.value_length", "rope.dimension_count"] {
            if optional(suffix)?.is_some_and(|width| width != head_dim) {
                return Err(Error::file_at(
                    gguf.path(),
                    key(suffix),
                    format!("must be the width of a head, {head_dim}; other widths are not supported"),
                ));
            }
        }
        let embedding_rows = gguf.tensors().get("token_embd.weight").map(|tensor| tensor.shape[0]);
        let vocab = embedding_rows.or(gguf.array_len("tokenizer.ggml.tokens")).or(optional("vocab_size")?);
        let window = optional("attention.sliding_window")?;
        let config = Self {
            architecture,
            hidden,
            layers: required("block_count")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate: required("feed_forward_length")?,
            vocab: vocab.ok_or_else(|| missing(gguf, "tokenizer.ggml.tokens"))?,
            context: required("context_length")?,
            rms_eps: gguf.real(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope_theta: gguf.real(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: gguf_rope_scaling(gguf, name)?,
            sliding_window: window.filter(|&window| window > 0),
            tie_embeddings: !has("output.weight"),
            attention_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            qk_norm: has("blk.0.attn_q_norm.weight"),
        };
        config.validate(gguf.path(), |field| gguf_key(architecture, field))?;
        Ok(config)
    }

    /// Refuses sizes that no model has. `key` gives a field's name in the file.
    fn validate(&self, path: &Path, key: impl Fn(&str) -> String) -> Result<()> {
        let error = |field: &str, message: String| Err(Error::file_at(path, key(field), message));
        let sizes = [
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate", self.intermediate),
            ("vocab", self.vocab),
            ("context", self.context),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        for (field, size) in sizes {
            let largest = if field == "layers" { MAX_LAYERS } else { LARGEST };
            if size == 0 || size > largest {
                return error(field, format!("is {size}, expected 1 to {largest}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return error("kv_heads", format!("{} heads cannot share {} evenly", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return error(
                "head_dim",
                format!("is {}, but rotary embeddings need an even width", self.head_dim),
            );
        }
        let products = [
            ("vocab", self.vocab, self.hidden),
            ("intermediate", self.intermediate, self.hidden),
            ("heads", self.heads, self.head_dim),
            ("context", self.context, self.head_dim),
        ];
        for (field, a, b) in products {
            if a.checked_mul(b).is_none_or(|product| product > isize::MAX as usize / 8) {
                return error(field, format!("{a} times {b} is not plausible"));
            }
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return error("rms_eps", format!("is {}, expected more than 0 and less than 1", self.rms_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return error("rope_theta", format!("is {}, expected at least 1", self.rope_theta));
        }
        let positive = |factors: &[f64]| factors.iter().all(|factor| *factor > 0.0 && factor.is_finite());
        let sound = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear(factor) => positive(&[*factor]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive(&[*factor, *low_freq_factor, *high_freq_factor])
                    && high_freq_factor > low_freq_factor
                    && (1..=LARGEST).contains(original_context)
            }
            RopeScaling::Factors(factors) => {
                factors.len() == self.head_dim / 2 && factors.iter().all(|f| *f > 0.0 && f.is_finite())
            }
        };
        if !sound {
            return error("rope_scaling", format!("{:?} is not plausible", self.rope_scaling));
        }
        Ok(())
    }

    /// Refuses more layers than the weights can have, so that nothing is allocated by a number that only a header claims.
    /// The other sizes are compared with the shape of each weight before it is loaded.
    pub(crate) fn check_weights(&self, weights: &Weights) -> Result<()> {
        let tensors = weights.names().count();
        if self.layers <= tensors {
            return Ok(());
        }
        let message = format!(
            "the configuration has {} layers, but there are only {tensors} tensors; configuration and weights do not \
             belong together",
            self.layers
        );
        Err(Error::file(weights.path(), message))
    }

    /// Cosines and sines of the rotary angles, each row-major `[positions, head_dim / 2]`.
    ///
    /// The angle of position p and pair i is `p · theta^(-2i/head_dim)`, scaled. Frequencies and angles are
    /// rounded to f32 where transformers rounds them: at large positions that rounding is far larger than the
    /// error of the cosine, and a model has been trained with it.
    pub fn rope_tables(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.rope_frequencies();
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for position in 0..positions {
            for frequency in &frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        (cos, sin)
    }

    /// The rotary frequency of each pair of a head.
    pub(super) fn rope_frequencies(&self) -> Vec<f32> {
        let plain = (0..self.head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / self.head_dim as f32;
            1.0 / self.rope_theta.powf(f64::from(exponent)) as f32
        });
        match &self.rope_scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear(factor) => plain.map(|f| f / *factor as f32).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let context = *original_context as f64;
                let (longest, shortest) = (context / low_freq_factor, context / high_freq_factor);
                let scale = |f: f32| {
                    let wavelength = (2.0 * std::f64::consts::PI) as f32 / f;
                    if wavelength > longest as f32 {
                        return f / *factor as f32;
                    }
                    if wavelength < shortest as f32 {
                        return f;
                    }
                    let smooth = (context as f32 / wavelength - *low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * f / *factor as f32 + smooth * f
                };
                plain.map(scale).collect()
            }
        }
    }
}

/// The key of a field in a GGUF file.
fn gguf_key(architecture: Architecture, field: &str) -> String {
    let suffix = match field {
        "hidden" => "embedding_length",
        "layers" => "block_count",
        "heads" => "attention.head_count",
        "kv_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "intermediate" => "feed_forward_length",
        "vocab" => "vocab_size",
        "context" => "context_length",
        "sliding_window" => "attention.sliding_window",
        "rms_eps" => "attention.layer_norm_rms_epsilon",
        "rope_theta" => "rope.freq_base",
        "rope_scaling" => "rope.scaling",
        other => other,
    };
    format!("{architecture}.{suffix}")
}

fn missing(gguf: &Gguf, key: &str) -> Error {
    Error::file_at(gguf.path(), key, "is missing; the file is no language model or its conversion failed")
}

fn gguf_rope_scaling(gguf: &Gguf, name: &str) -> Result<RopeScaling> {
    let key = |suffix: &str| format!("{name}.rope.{suffix}");
    let kind = gguf.text(&key("scaling.type"))?.unwrap_or("none");
    if let Some(tensor) = gguf.tensors().get("rope_freqs.weight") {
        if !matches!(kind, "none" | "llama3") {
            return Err(refused(gguf, &key("scaling.type"), kind));
        }
        return gguf.rope_factors(tensor).map(RopeScaling::Factors);
    }
    let factor = match gguf.real(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => gguf.real(&key("scale_linear"))?,
    };
    match (kind, factor) {
        ("none", None) => Ok(RopeScaling::None),
        // Converters write a factor of 1 (or 0, "not set") for models without scaling.
        ("none" | "linear", Some(factor)) if factor == 1.0 || factor == 0.0 => Ok(RopeScaling::None),
        ("none", Some(_)) if !gguf.has(&key("scale_linear")) => Ok(RopeScaling::None),
        ("none" | "linear", Some(factor)) => Ok(RopeScaling::Linear(factor)),
        ("linear", None) => Err(missing(gguf, &key("scaling.factor"))),
        _ => Err(refused(gguf, &key("scaling.type"), kind)),
    }
}

fn refused(gguf: &Gguf, key: &str, kind: &str) -> Error {
    Error::file_at(gguf.path(), key, format!("rope scaling '{kind}' is not supported; supported is linear"))
}
