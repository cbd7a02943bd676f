//! `config.json` of transformers, in the spellings of its versions 4 and 5.
//!
//! A key that is absent has the default of the family's configuration class, as in transformers.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Architecture, ModelConfig, RopeScaling};
use super::read::UNQUANTIZED;
use crate::{Error, Result};

/// The key of a field.
pub(super) fn key(field: &str) -> String {
    match field {
        "hidden" => "hidden_size",
        "layers" => "num_hidden_layers",
        "heads" => "num_attention_heads",
        "kv_heads" => "num_key_value_heads",
        "intermediate" => "intermediate_size",
        "vocab" => "vocab_size",
        "context" => "max_position_embeddings",
        "rms_eps" => "rms_norm_eps",
        other => other,
    }
    .to_owned()
}

/// Reads the file; the values' ranges are still to be checked.
pub(super) fn read(path: &Path) -> Result<ModelConfig> {
    let file = File::read(path)?;
    let architecture = file.architecture()?;
    file.refuse_quantized()?;
    if let Some(activation) = file.text("hidden_act")?.filter(|name| !matches!(*name, "silu" | "swish")) {
        return Err(file.error("hidden_act", format!("'{activation}' is not supported; supported is silu")));
    }
    let heads = file.required("num_attention_heads")?;
    let hidden = file.required("hidden_size")?;
    let (default_kv_heads, default_context) = match architecture {
        Architecture::Llama => (heads, 2048),
        Architecture::Mistral => (8, 131_072),
        Architecture::Qwen2 | Architecture::Qwen3 => (32, 32_768),
    };
    let kv_heads = match file.fields.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => file.size("num_key_value_heads")?.unwrap_or(default_kv_heads),
    };
    let head_dim = match (file.size("head_dim")?, architecture) {
        (Some(width), _) => width,
        (None, Architecture::Qwen3) if !file.fields.contains_key("head_dim") => 128,
        (None, _) => hidden / heads.max(1),
    };
    let (rope_theta, rope_scaling) = file.rope()?;
    let layers = file.required("num_hidden_layers")?;
    let bias = file.flag("attention_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        architecture,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: file.required("intermediate_size")?,
        vocab: file.required("vocab_size")?,
        context: file.size("max_position_embeddings")?.unwrap_or(default_context),
        rms_eps: file.real("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        sliding_window: file.sliding_window(architecture, layers)?,
        tie_embeddings: file.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: match architecture {
            Architecture::Qwen2 => true,
            Architecture::Mistral => false,
            Architecture::Llama | Architecture::Qwen3 => bias,
        },
        output_bias: matches!(architecture, Architecture::Llama | Architecture::Qwen3) && bias,
        mlp_bias: architecture == Architecture::Llama && file.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: architecture == Architecture::Qwen3,
    })
}

struct File<'a> {
    path: &'a Path,
    fields: Map<String, Value>,
}

impl<'a> File<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        // Editors on Windows put a byte-order mark before the text.
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(fields)) => Ok(Self { path, fields }),
            Ok(_) => Err(Error::file(path, "is no JSON object")),
            Err(e) => Err(Error::file_at(path, format!("line {}", e.line()), format!("is not JSON: {e}"))),
        }
    }

    fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::file_at(self.path, key, message)
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Refuses quantized weights and names what quantized them.
    fn refuse_quantized(&self) -> Result<()> {
        let (key, settings) = match (self.get("quantization_config"), self.get("quantization")) {
            (Some(settings), _) => ("quantization_config", settings),
            (None, Some(settings)) => ("quantization", settings),
            (None, None) => return Ok(()),
        };
        let bits = settings.get("bits").and_then(Value::as_u64);
        // MLX writes no method.
        let is_mlx = key == "quantization" || settings.get("group_size").is_some();
        let tool = match settings.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes" | "bnb") => "bitsandbytes",
            Some("gptq") => "GPTQ",
            Some("awq") => "AWQ",
            Some("compressed-tensors") => "compressed-tensors",
            Some(other) => other,
            None if settings.get("load_in_4bit").or(settings.get("load_in_8bit")).is_some() => "bitsandbytes",
            None if is_mlx => "MLX",
            None => "a method that it does not name",
        };
        let bits = bits.map_or_else(String::new, |bits| format!(" in {bits} bits"));
        Err(self.error(
            key,
            format!("the weights are quantized by {tool}{bits}, which is not read; {UNQUANTIZED}"),
        ))
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        let text = |value: &'_ Value| value.as_str().is_none();
        match self.get(key) {
            Some(value) if text(value) => Err(self.error(key, format!("is {value}, expected text"))),
            value => Ok(value.and_then(Value::as_str)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, format!("is {other}, expected true or false"))),
        }
    }

    fn real(&self, key: &str) -> Result<Option<f64>> {
        self.real_in(&self.fields, key, key)
    }

    fn real_in(&self, object: &Map<String, Value>, key: &str, place: &str) -> Result<Option<f64>> {
        match object.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(place, format!("is {value}, expected a number"))),
            },
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
                Some(size) => Ok(Some(size)),
                None => {
                    Err(self.error(key, format!("is {value}, expected a whole number that is not negative")))
                }
            },
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?
            .ok_or_else(|| self.error(key, "is missing; is this the config.json of a language model?"))
    }

    fn architecture(&self) -> Result<Architecture> {
        let Some(name) = self.text("model_type")? else {
            return Err(self.error("model_type", "is missing; is this the config.json of a language model?"));
        };
        Architecture::from_name(name).ok_or_else(|| {
            let message = format!("'{name}' is not supported; supported are {}", Architecture::SUPPORTED);
            self.error("model_type", message)
        })
    }

    /// Theta and scaling, from `rope_parameters` (version 5) or from `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        if self.real("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.error("partial_rotary_factor", "partial rotary embeddings are not supported"));
        }
        let place = if self.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let none = Map::new();
        let object = match self.get(place) {
            None => &none,
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.error(place, format!("is {other}, expected an object"))),
        };
        let real = |key: &str| self.real_in(object, key, &format!("{place}.{key}"));
        let required =
            |key: &str| real(key)?.ok_or_else(|| self.error(&format!("{place}.{key}"), "is missing"));
        if real("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.error(place, "partial rotary embeddings are not supported"));
        }
        let theta = match real("rope_theta")? {
            Some(theta) => theta,
            None => self.real("rope_theta")?.unwrap_or(10_000.0),
        };
        let kind = match object.get("rope_type").or_else(|| object.get("type")) {
            None if object.values().any(Value::is_object) => {
                return Err(self.error(place, "parameters by kind of layer are not supported"));
            }
            None => "default",
            Some(kind) => kind.as_str().unwrap_or("?"),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear(required("factor")?),
            "llama3" => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_context: required("original_max_position_embeddings")? as usize,
            },
            other => {
                return Err(self.error(
                    place,
                    format!(
                        "rope scaling '{other}' is not supported; supported are default, linear and llama3"
                    ),
                ));
            }
        };
        Ok((theta, scaling))
    }

    fn sliding_window(&self, architecture: Architecture, layers: usize) -> Result<Option<usize>> {
        let window = match self.fields.get("sliding_window") {
            Some(Value::Null) => return Ok(None),
            _ => self.size("sliding_window")?.unwrap_or(4096),
        };
        match architecture {
            Architecture::Llama => Ok(None),
            Architecture::Mistral => Ok(Some(window)),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                if !self.flag("use_sliding_window")?.unwrap_or(false) {
                    return Ok(None);
                }
                let full = match self.get("layer_types").and_then(Value::as_array) {
                    Some(types) => types.iter().filter(|kind| *kind != "sliding_attention").count(),
                    None => self.size("max_window_layers")?.unwrap_or(28),
                };
                match full {
                    0 => Ok(Some(window)),
                    full if full >= layers => Ok(None),
                    full => Err(self.error(
                        "sliding_window",
                        format!("a window in all layers but {full} is not supported; it must be all or none"),
                    )),
                }
            }
        }
    }
}
