//! An adapter added to its base model.

use std::path::Path;

use serde_json::json;

use super::adapter::{Adapter, AdapterModule};
use super::tensors::write_tensors;
use crate::atomic;
use crate::models::{Architecture, ModelConfig, ModelFiles, RopeScaling};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// How well a merge kept the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeReport {
    /// Modules merged.
    pub modules: usize,
    /// The greatest relative error of an update: ‖stored − base − update‖ / ‖update‖ in the Frobenius norm. Rounding
    /// to 16 bits can eat small updates; in f32 it is of the order 1e-6.
    pub worst_error: f64,
    /// The module where it is.
    pub worst_module: String,
}

/// `W + scale·B·A` of one module, in f64 sums, and the update's norm.
fn merged(weight: &HostTensor, module: &AdapterModule) -> Result<(Vec<f32>, Vec<f64>)> {
    let (n, k, r) = (weight.shape()[0], weight.shape()[1], module.a.shape()[0]);
    let (w, a, b) = (weight.as_slice::<f32>()?, module.a.as_slice::<f32>()?, module.b.as_slice::<f32>()?);
    let mut update = vec![0.0_f64; n * k];
    for (row, update) in update.chunks_mut(k).enumerate() {
        for rank in 0..r {
            let factor = module.scale * f64::from(b[row * r + rank]);
            for (sum, &a) in update.iter_mut().zip(&a[rank * k..][..k]) {
                *sum += factor * f64::from(a);
            }
        }
    }
    let sums = w.iter().zip(&update).map(|(&w, &u)| (f64::from(w) + u) as f32).collect();
    Ok((sums, update))
}

/// Writes the merged model as a Hugging Face folder, its tensors stored as `dtype`.
///
/// A base that is a folder lends its configuration and tokenizer files; of a GGUF base they are written anew.
/// `progress` is told the share that is done.
pub fn merge(
    files: &ModelFiles,
    adapter: &Adapter,
    out: &Path,
    dtype: DType,
    progress: &dyn Fn(f64),
) -> Result<MergeReport> {
    if !dtype.is_float() {
        return Err(Error::invalid("merge", "a model is stored as f32, f16 or bf16"));
    }
    std::fs::create_dir_all(out).map_err(|source| Error::io(out, "create", source))?;
    let (weights, config) = (&files.weights, &files.config);
    let mut report = MergeReport { modules: 0, worst_error: 0.0, worst_module: String::new() };
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    let mut tensors = Vec::new();
    let mut used = Vec::new();
    for (index, name) in names.iter().enumerate() {
        progress(index as f64 / names.len() as f64);
        let Some(shape) = weights.shape(name).map(<[usize]>::to_vec) else { continue };
        let module =
            adapter.modules.iter().find(|module| name.strip_suffix(".weight") == Some(module.path.as_str()));
        let Some(module) = module else {
            tensors.push((name.clone(), weights.load(name, &shape, dtype)?));
            continue;
        };
        let base = weights.load(name, &shape, DType::F32)?;
        if shape != [module.b.shape()[0], module.a.shape()[1]] {
            return Err(Error::invalid(
                module.path.clone(),
                "has another shape in this model; the adapter belongs to another one",
            ));
        }
        let (sums, update) = merged(&base, module)?;
        let stored = HostTensor::from_slice(&sums, shape.as_slice())?.cast(dtype);
        let back = stored.cast(DType::F32);
        let (mut lost, mut norm) = (0.0, 0.0);
        for ((&stored, &base), update) in
            back.as_slice::<f32>()?.iter().zip(base.as_slice::<f32>()?).zip(&update)
        {
            lost += (f64::from(stored) - f64::from(base) - update).powi(2);
            norm += update * update;
        }
        let error = if norm > 0.0 { (lost / norm).sqrt() } else { 0.0 };
        if error >= report.worst_error {
            (report.worst_error, report.worst_module) = (error, module.path.clone());
        }
        used.push(module.path.clone());
        tensors.push((name.clone(), stored));
    }
    if let Some(missing) = adapter.modules.iter().find(|module| !used.contains(&module.path)) {
        return Err(Error::invalid(
            missing.path.clone(),
            "is not in this model; the adapter belongs to another one",
        ));
    }
    report.modules = used.len();
    write_tensors(&out.join("model.safetensors"), &tensors)?;
    if files.path.is_dir() && files.path.join("config.json").exists() {
        copy_companions(&files.path, out)?;
    } else {
        write_companions(files, config, dtype, out)?;
    }
    progress(1.0);
    Ok(report)
}

const COMPANIONS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
];

fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for name in COMPANIONS {
        let source = from.join(name);
        if source.exists() {
            let bytes = std::fs::read(&source).map_err(|error| Error::io(&source, "read", error))?;
            atomic::write(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn write_companions(files: &ModelFiles, config: &ModelConfig, dtype: DType, out: &Path) -> Result<()> {
    let pretty = |value: &serde_json::Value| serde_json::to_vec_pretty(value).unwrap_or_default();
    atomic::write(&out.join("config.json"), &pretty(&hf_config(files, config, dtype)?))?;
    atomic::write(&out.join("tokenizer.json"), files.tokenizer.to_json()?.as_bytes())?;
    let tokenizer = json!({
        "bos_token": files.tokenizer.bos_token(),
        "eos_token": files.tokenizer.eos_token(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": files.chat_template.as_ref().map(|template| template.source()),
    });
    atomic::write(&out.join("tokenizer_config.json"), &pretty(&tokenizer))
}

/// The configuration as transformers writes it.
fn hf_config(files: &ModelFiles, config: &ModelConfig, dtype: DType) -> Result<serde_json::Value> {
    let (kind, class) = match config.architecture {
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Mistral => ("mistral", "MistralForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
    };
    let scaling = match &config.rope_scaling {
        RopeScaling::None => json!(null),
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
        RopeScaling::Factors(_) => {
            let message = "has rope factors as a tensor, which a Hugging Face folder cannot hold; merge into the original folder";
            return Err(Error::file(&files.path, message));
        }
    };
    Ok(json!({
        "architectures": [class],
        "model_type": kind,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "eos_token_id": files.tokenizer.eos_ids(),
        "torch_dtype": match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_update_is_scale_times_b_times_a() {
        let tensor = |values: &[f32], shape: [usize; 2]| HostTensor::from_slice(values, shape).unwrap();
        let weight = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let module = AdapterModule {
            path: "x".into(),
            a: tensor(&[1.0, 0.0, -1.0], [1, 3]),
            b: tensor(&[0.5, 2.0], [2, 1]),
            scale: 2.0,
        };
        let (sums, update) = merged(&weight, &module).unwrap();
        assert_eq!(update, [1.0, 0.0, -1.0, 4.0, 0.0, -4.0]);
        assert_eq!(sums, [2.0, 2.0, 2.0, 8.0, 5.0, 2.0]);
    }
}
