//! The tensors of an adapter's file, in every form in which their names are written.

use std::collections::BTreeMap;
use std::path::Path;

use super::adapter::{AdapterModule, BaseCopy, CONFIG_FILE, PREFIX};
use super::lora::{LoraConfig, Targets};
use super::tensors::read_tensors;
use crate::models::LinearModule;
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// What a tensor of an adapter's file is.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    A,
    B,
    /// A copy of the base's weight.
    Copy,
}

/// A and B of one module.
#[derive(Default)]
struct Pair {
    tensors: [Option<HostTensor>; 2],
    is_embedding: bool,
    /// True if the name was that of a model without a head, whose paths lack `model.`.
    is_bare: bool,
}

/// The parts of a tensor's name.
struct Name {
    path: String,
    part: Part,
    is_embedding: bool,
    is_bare: bool,
}

/// Reads a name. PEFT writes `base_model.model.<path>.lora_A.weight`, without the adapter's name; other tools keep it
/// (`.lora_A.default.weight`), leave out the prefix, or keep `torch.compile`'s `_orig_mod`.
fn parse(name: &str) -> Option<Name> {
    let name = name.replace("_orig_mod.", "");
    let name = name.strip_prefix(PREFIX).unwrap_or(&name);
    let (path, part, is_embedding) = split(name)?;
    let is_bare = path.starts_with("layers.") || path == "embed_tokens";
    let path = if is_bare { format!("model.{path}") } else { path.to_owned() };
    Some(Name { path, part, is_embedding, is_bare })
}

fn split(name: &str) -> Option<(&str, Part, bool)> {
    for (marker, part, is_embedding) in [
        (".lora_embedding_A", Part::A, true),
        (".lora_embedding_B", Part::B, true),
        (".lora_A", Part::A, false),
        (".lora_B", Part::B, false),
    ] {
        let Some((path, rest)) = name.split_once(marker) else { continue };
        let adapter = if is_embedding { rest } else { rest.strip_suffix(".weight")? };
        let one_word = adapter.strip_prefix('.').is_some_and(|word| !word.is_empty() && !word.contains('.'));
        return (adapter.is_empty() || one_word).then_some((path, part, is_embedding));
    }
    if let Some(path) = name.strip_suffix(".base_layer.weight") {
        return Some((path, Part::Copy, false));
    }
    let path = name.strip_suffix(".weight")?;
    let saved_whole = path == "lm_head" || path == "embed_tokens" || path.ends_with(".embed_tokens");
    saved_whole.then_some((path, Part::Copy, false))
}

/// The pairs of a tensor file, with the scales that the configuration gives them, and the copies of base weights.
pub(super) fn pairs(path: &Path, config: &LoraConfig) -> Result<(Vec<AdapterModule>, Vec<BaseCopy>)> {
    let mut found: BTreeMap<String, Pair> = BTreeMap::new();
    let mut copies = Vec::new();
    for (name, tensor) in read_tensors(path)? {
        let Some(parts) = parse(&name) else {
            let message = "is no lora_A or lora_B weight; the adapter is of a kind that is not supported and is not loaded";
            return Err(Error::file_at(path, name, message));
        };
        if parts.part == Part::Copy {
            copies.push(BaseCopy { path: parts.path, weight: tensor });
            continue;
        }
        let tensor = checked(path, &name, tensor)?;
        let pair = found.entry(parts.path).or_default();
        let place = &mut pair.tensors[usize::from(parts.part == Part::B)];
        if place.replace(tensor).is_some() {
            let message = "is the second one for its module; save each adapter in a file of its own";
            return Err(Error::file_at(path, name, message));
        }
        (pair.is_embedding, pair.is_bare) = (parts.is_embedding, parts.is_bare);
    }
    if found.is_empty() {
        return Err(Error::file(path, "holds no tensors"));
    }
    let modules: Vec<LinearModule> =
        found.iter().map(|(module, pair)| linear(path, module, pair)).collect::<Result<_>>()?;
    // The configuration is at fault if an expression of it cannot be used.
    let in_config = |error: Error| Error::file(path.with_file_name(CONFIG_FILE), error.to_string());
    for (module, pair) in &found {
        if !is_targeted(config, module, pair).map_err(in_config)? {
            let message = "has an adapter here, but target_modules of adapter_config.json does not name it; the adapter is \
                           not loaded, since PEFT would leave this part out: correct target_modules";
            return Err(Error::file_at(path, module, message));
        }
    }
    // Ranks and alphas by the configuration's patterns; which modules there are, the file says.
    let everything = LoraConfig {
        targets: Targets::Regex(".*".to_owned()),
        layers: None,
        exclude: Vec::new(),
        ..config.clone()
    };
    let resolved = everything.resolve(&modules).map_err(in_config)?;
    let modules = found
        .into_iter()
        .zip(resolved)
        .map(|((module, pair), wanted)| {
            let [a, b] = pair.tensors.map(|tensor| tensor.expect("checked above"));
            if a.shape()[0] != wanted.rank {
                let message = format!("has rank {}, the configuration says {}", a.shape()[0], wanted.rank);
                return Err(Error::file_at(path, module, message));
            }
            Ok(AdapterModule { path: module, a, b, scale: wanted.scale, is_embedding: pair.is_embedding })
        })
        .collect::<Result<_>>()?;
    Ok((modules, copies))
}

/// A matrix of finite numbers, as f32.
pub(super) fn checked(path: &Path, name: &str, tensor: HostTensor) -> Result<HostTensor> {
    if tensor.shape().rank() != 2 || !tensor.dtype().is_float() {
        let message = format!("is {}, must be a matrix of real numbers", tensor.spec());
        return Err(Error::file_at(path, name, message));
    }
    let tensor = tensor.cast(DType::F32);
    if let Some(at) = tensor.as_slice::<f32>()?.iter().position(|x| !x.is_finite()) {
        let message = format!("element {at} is not a finite number; the file is damaged");
        return Err(Error::file_at(path, name, message));
    }
    Ok(tensor)
}

/// The module of a pair, both parts of which must be there and fit.
fn linear(path: &Path, module: &str, pair: &Pair) -> Result<LinearModule> {
    let [Some(a), Some(b)] = &pair.tensors else {
        let missing = if pair.tensors[0].is_none() { "lora_A" } else { "lora_B" };
        return Err(Error::file_at(path, module, format!("has no {missing}; the file is incomplete")));
    };
    if a.shape()[0] != b.shape()[1] {
        let message = format!("A is {} and B is {}: their ranks differ", a.spec(), b.spec());
        return Err(Error::file_at(path, module, message));
    }
    Ok(LinearModule {
        path: module.to_owned(),
        in_features: a.shape()[1],
        out_features: b.shape()[0],
        layer: None,
        is_head: false,
        is_embedding: pair.is_embedding,
    })
}

/// Returns false for a pair that `target_modules` does not name: PEFT would leave it out in silence.
fn is_targeted(config: &LoraConfig, module: &str, pair: &Pair) -> Result<bool> {
    let by_bare_name = pair.is_bare && config.names(module.trim_start_matches("model."))?;
    let named = by_bare_name || config.names(module)?;
    Ok(named && !(pair.is_embedding && config.targets == Targets::AllLinear))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_gives_its_module() {
        let read = |name: &str| parse(name).map(|name| (name.path, name.part, name.is_embedding));
        let q = "model.layers.0.self_attn.q_proj";
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "layers.0.self_attn.q_proj.lora_A.mine.weight",
            "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0._orig_mod.self_attn.q_proj.lora_A.default.weight",
        ] {
            assert_eq!(read(name), Some((q.to_owned(), Part::A, false)), "{name}");
        }
        let embedding = || "model.embed_tokens".to_owned();
        for name in [
            "base_model.model.model.embed_tokens.lora_embedding_B",
            "base_model.model.embed_tokens.lora_embedding_B.default",
        ] {
            assert_eq!(read(name), Some((embedding(), Part::B, true)), "{name}");
        }
        for name in [
            "base_model.model.model.embed_tokens.base_layer.weight",
            "base_model.model.model.embed_tokens.weight",
        ] {
            assert_eq!(read(name), Some((embedding(), Part::Copy, false)), "{name}");
        }
        for name in [
            "base_model.model.x.lora_magnitude_vector",
            "base_model.model.x.lora_A.bias",
            "base_model.model.x.lora_A.one.two.weight",
            "base_model.model.model.norm.weight",
        ] {
            assert_eq!(read(name), None, "{name}");
        }
    }
}
