//! PEFT's `adapter_config.json`: what is read of it, and what is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::lora::{LoraConfig, Targets};
use crate::{Error, Result};

/// Fields that are read, or that say nothing about what the adapter computes.
const KNOWN: [&str; 15] = [
    "alpha_pattern",
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "rank_pattern",
    "target_modules",
    "use_rslora",
];

/// A PEFT configuration with the file that it came from.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) value: &'a Value,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, message: impl Into<String>) -> Error {
        Error::file_at(self.path, key, message)
    }

    /// Refuses what this library does not compute, by the name of the field that asks for it.
    pub(super) fn refuse_other_methods(&self) -> Result<()> {
        if !self.value.is_object() {
            return Err(Error::file(self.path, "must be a JSON object, as PEFT writes it"));
        }
        let Some(kind) = self.value["peft_type"].as_str() else {
            return Err(
                self.wrong("peft_type", "is missing; this is not the configuration of a PEFT adapter")
            );
        };
        if kind != "LORA" {
            return Err(self.wrong("peft_type", format!("is {kind}; only LORA adapters can be used")));
        }
        let unset = |key: &str| match &self.value[key] {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        for (key, what) in [
            ("use_dora", "DoRA"),
            ("fan_in_fan_out", "transposed weights"),
            ("lora_bias", "a bias on B"),
            ("modules_to_save", "modules trained as a whole"),
            ("trainable_token_indices", "trained token embeddings"),
            ("target_parameters", "adapted parameters that are no linear layer"),
            ("layer_replication", "replicated layers"),
            ("use_qalora", "QA-LoRA"),
            ("alora_invocation_tokens", "activated LoRA"),
            ("arrow_config", "routed adapters"),
            ("use_bdlora", "block-diagonal LoRA"),
            ("kasa_config", "KaSA"),
            ("megatron_config", "layers of Megatron"),
        ] {
            if !unset(key) {
                let message = format!("asks for {what}, which is not supported; the adapter is not loaded");
                return Err(self.wrong(key, message));
            }
        }
        // PEFT's other ways (PiSSA, OLoRA, CorDA, LoftQ) take something out of the base model's weights, again whenever
        // the adapter is loaded.
        let init = &self.value["init_lora_weights"];
        let same_base = matches!(init.as_str(), Some("gaussian" | "eva" | "orthogonal"));
        if !(init.is_null() || init.is_boolean() || same_base) {
            let message = format!(
                "is {init}, which changes the base model's weights; convert the adapter with PEFT first"
            );
            return Err(self.wrong("init_lora_weights", message));
        }
        if let Some(other) = self.value["bias"].as_str().filter(|bias| *bias != "none") {
            return Err(self.wrong("bias", format!("is '{other}': trained biases are not supported")));
        }
        self.refuse_unknown_switches()
    }

    /// A variant that PEFT gains later is told by a switch that is on or a configuration of its own.
    fn refuse_unknown_switches(&self) -> Result<()> {
        let Some(fields) = self.value.as_object() else { return Ok(()) };
        for (key, value) in fields {
            let on = match value {
                Value::Bool(on) => *on,
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => false,
            };
            if on && !KNOWN.contains(&key.as_str()) {
                let message = "is not known and may change what the adapter computes, so it is not loaded; remove it from the \
                               file if it does not";
                return Err(self.wrong(key, message));
            }
        }
        Ok(())
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match &self.value[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.wrong(key, format!("is {value}, must be a number"))),
        }
    }

    fn names(&self, key: &str) -> Result<Vec<String>> {
        match &self.value[key] {
            Value::Null => Ok(Vec::new()),
            Value::String(one) => Ok(vec![one.clone()]),
            value => serde_json::from_value(value.clone())
                .map_err(|_| self.wrong(key, format!("is {value}, must be a list of names"))),
        }
    }

    /// Values by pattern, in the order of the file, which decides between patterns that match the same module.
    fn pattern<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>> {
        let wrong = || self.wrong(key, format!("must map names to {kind}"));
        let none = Map::new();
        let map = match &self.value[key] {
            Value::Null => &none,
            value => value.as_object().ok_or_else(wrong)?,
        };
        map.iter().map(|(name, value)| Ok((name.clone(), read(value).ok_or_else(wrong)?))).collect()
    }

    /// The configuration of the adapters.
    pub(super) fn lora(&self) -> Result<LoraConfig> {
        let rank = self.number("r", 8.0)?;
        if rank < 1.0 || rank.fract() != 0.0 || rank > 1e6 {
            return Err(self.wrong("r", format!("is {rank}, must be a whole number from 1 on")));
        }
        let targets = match &self.value["target_modules"] {
            Value::String(word) if word == "all-linear" => Targets::AllLinear,
            Value::String(expression) => Targets::Regex(expression.clone()),
            _ => Targets::List(self.names("target_modules")?),
        };
        let alphas = self.pattern("alpha_pattern", "numbers", Value::as_f64)?;
        let layers = match &self.value["layers_to_transform"] {
            Value::Null => None,
            value => {
                let list = if value.is_number() { json!([value]) } else { value.clone() };
                let wrong = |_| self.wrong("layers_to_transform", "must be a list of layer numbers");
                Some(serde_json::from_value(list).map_err(wrong)?)
            }
        };
        let whole = |value: &Value| value.as_u64().and_then(|rank| usize::try_from(rank).ok());
        let ranks = self.pattern("rank_pattern", "whole numbers from 1 on", whole)?;
        let rslora = match &self.value["use_rslora"] {
            Value::Null => false,
            value => value
                .as_bool()
                .ok_or_else(|| self.wrong("use_rslora", format!("is {value}, must be true or false")))?,
        };
        let config = LoraConfig {
            rank: rank as usize,
            alpha: self.number("lora_alpha", 8.0)?,
            dropout: self.number("lora_dropout", 0.0)? as f32,
            rslora,
            targets,
            exclude: self.names("exclude_modules")?,
            rank_pattern: ranks,
            alpha_pattern: alphas,
            layers,
            seed: 0,
        };
        config.validate().map_err(|error| Error::file(self.path, error.to_string()))?;
        Ok(config)
    }
}
