//! Adapters of mlx-lm: `adapters.safetensors` beside an `adapter_config.json` that holds the settings of the run.
//!
//! A module's tensors are `<path>.lora_a` `[in, r]` and `<path>.lora_b` `[r, out]`, the transposes of PEFT's, and `scale` is
//! the factor of the update itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::adapter::{Adapter, AdapterModule};
use super::adapter_tensors::checked;
use super::lora::{LoraConfig, Targets};
use super::tensors::{read_tensors, transposed};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// The file of the tensors.
pub(super) const TENSOR_FILE: &str = "adapters.safetensors";

/// Reads the tensors by the configuration that was read from `config_path`.
pub(super) fn read(config_path: &Path, config: &Value, tensor_path: &Path) -> Result<Adapter> {
    let wrong = |key: &str, message: String| Error::file_at(config_path, key, message);
    let kind = config["fine_tune_type"].as_str().unwrap_or("lora");
    if kind != "lora" {
        let message = format!("is {kind}; of mlx-lm's adapters only lora can be used");
        return Err(wrong("fine_tune_type", message));
    }
    let parameters = &config["lora_parameters"];
    if !parameters.is_object() {
        return Err(wrong(
            "lora_parameters",
            "is missing; is this the folder of an mlx-lm adapter?".to_owned(),
        ));
    }
    let number = |key: &str| parameters[key].as_f64();
    if parameters["scale"].is_null() && !parameters["alpha"].is_null() {
        let message = "is missing; mlx-lm reads scale, not alpha: write the factor of the update there";
        return Err(wrong("lora_parameters.scale", message.to_owned()));
    }
    let scale = number("scale").filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
        wrong("lora_parameters.scale", format!("is {}, must be a number above 0", parameters["scale"]))
    })?;
    let modules = modules(tensor_path, scale)?;
    let rank = modules.first().map_or(1, |module| module.a.shape()[0]);
    if let Some(other) = modules.iter().find(|module| module.a.shape()[0] != rank) {
        let message = format!("has rank {}, other modules have {rank}", other.a.shape()[0]);
        return Err(Error::file_at(tensor_path, other.path.as_str(), message));
    }
    if parameters["rank"].as_u64().is_some_and(|stated| stated != rank as u64) {
        let message = format!("is {}, but the tensors have rank {rank}", parameters["rank"]);
        return Err(wrong("lora_parameters.rank", message));
    }
    let mut names: Vec<String> = modules.iter().map(|module| module.path.clone()).collect();
    names.sort_unstable();
    let base_model = config["model"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let lora = LoraConfig {
        rank,
        alpha: scale * rank as f64,
        dropout: number("dropout").unwrap_or(0.0) as f32,
        targets: Targets::List(names),
        ..LoraConfig::default()
    };
    lora.validate().map_err(|error| Error::file(config_path, error.to_string()))?;
    Ok(Adapter { config: lora, base_model, modules, copies: Vec::new() })
}

fn modules(path: &Path, scale: f64) -> Result<Vec<AdapterModule>> {
    let mut found: BTreeMap<String, [Option<HostTensor>; 2]> = BTreeMap::new();
    for (name, tensor) in read_tensors(path)? {
        let (module, index) = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => {
                let message = "is neither lora_a nor lora_b; the adapter is of a kind that is not supported (such as \
                               DoRA) and is not loaded";
                return Err(Error::file_at(path, name, message));
            }
        };
        found.entry(module.to_owned()).or_default()[index] =
            Some(transposed(&checked(path, &name, tensor)?)?);
    }
    if found.is_empty() {
        return Err(Error::file(path, "holds no tensors"));
    }
    let module = |(module, pair): (String, [Option<HostTensor>; 2])| {
        let [Some(a), Some(b)] = pair else {
            let message = "has only one of lora_a and lora_b; the file is incomplete";
            return Err(Error::file_at(path, module, message));
        };
        if a.shape()[0] != b.shape()[1] {
            let message = format!("has ranks {} and {}, which differ", a.shape()[0], b.shape()[1]);
            return Err(Error::file_at(path, module, message));
        }
        if module.ends_with("embed_tokens") {
            let message = "is the embedding, whose adapter mlx-lm also applies to the head of a model that ties both; that \
                           is not supported: merge it with `mlx_lm.fuse` and use the fused model";
            return Err(Error::file_at(path, module, message));
        }
        Ok(AdapterModule { path: module, a, b, scale, is_embedding: false })
    };
    found.into_iter().map(module).collect()
}
