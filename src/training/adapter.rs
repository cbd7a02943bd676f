//! Adapters as files: those of PEFT, read and written so that both sides take the other's.
//!
//! `adapter_config.json` says which kind of adapter it is; `adapter_model.safetensors` holds, for each module,
//! `base_model.model.<path>.lora_A.weight` `[r, in]` and `….lora_B.weight` `[out, r]`. What this library does not
//! compute (DoRA, trained biases, whole modules, other methods) is refused, never left out.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::lora::{LoraConfig, LoraModule, Targets};
use super::tensors::{read_tensors, write_tensors};
use crate::atomic;
use crate::backend::Device;
use crate::models::{AdapterParameters, LinearModule};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// The file of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
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

/// The pair of one module.
#[derive(Debug, Clone)]
pub struct AdapterModule {
    /// Path of the linear layer.
    pub path: String,
    /// A `[r, in]`, f32.
    pub a: HostTensor,
    /// B `[out, r]`, f32.
    pub b: HostTensor,
    /// Factor of B·A.
    pub scale: f64,
}

/// A LoRA adapter in host memory.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// How it was made.
    pub config: LoraConfig,
    /// The model that it belongs to, as PEFT's `base_model_name_or_path`.
    pub base_model: Option<String>,
    /// The pairs.
    pub modules: Vec<AdapterModule>,
}

impl Adapter {
    /// Reads an adapter's folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let config_path = folder.join(CONFIG_FILE);
        let tensor_path = folder.join(TENSOR_FILE);
        if !config_path.exists() || !tensor_path.exists() {
            let message = format!("is no adapter folder: it must hold {CONFIG_FILE} and {TENSOR_FILE}");
            return Err(Error::file(folder, message));
        }
        let text = std::fs::read(&config_path).map_err(|source| Error::io(&config_path, "read", source))?;
        let value: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::file(&config_path, format!("is no JSON: {error}")))?;
        let fields = Fields { path: &config_path, value: &value };
        fields.refuse_other_methods()?;
        let config = fields.lora()?;
        let base_model = value["base_model_name_or_path"].as_str().map(str::to_owned);
        let modules = pairs(&tensor_path, &config)?;
        Ok(Self { config, base_model, modules })
    }

    /// Writes an adapter's folder, which must exist. Each file is replaced as a whole.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for module in &self.modules {
            let name = |part: &str| format!("{PREFIX}{}.lora_{part}.weight", module.path);
            tensors.extend([(name("A"), module.a.clone()), (name("B"), module.b.clone())]);
        }
        write_tensors(&folder.join(TENSOR_FILE), &tensors)?;
        let path = folder.join(CONFIG_FILE);
        let mut text = serde_json::to_string_pretty(&self.peft_config())
            .map_err(|error| Error::file(&path, error.to_string()))?;
        text.push('\n');
        atomic::write(&path, text.as_bytes())
    }

    /// Checks that every module exists in a model and has its shape.
    pub fn check(&self, modules: &[LinearModule]) -> Result<()> {
        for module in &self.modules {
            let Some(linear) = modules.iter().find(|linear| linear.path == module.path) else {
                let message = "is no linear layer of this model; the adapter belongs to another one";
                return Err(Error::invalid(format!("adapter module {}", module.path), message));
            };
            let found = (module.b.shape()[0], module.a.shape()[1]);
            if found != (linear.out_features, linear.in_features) {
                let message = format!(
                    "is for a layer of {} x {}, the model's has {} x {}; the adapter belongs to another model",
                    found.0, found.1, linear.out_features, linear.in_features
                );
                return Err(Error::invalid(format!("adapter module {}", module.path), message));
            }
        }
        Ok(())
    }

    /// Places the adapter on a device, frozen, for a decoder to use.
    pub fn on(&self, device: &Device) -> Result<AdapterParameters> {
        let mut parameters = AdapterParameters::default();
        for module in &self.modules {
            let place =
                |part: &str, value| device.parameter(format!("{}.lora_{part}", module.path), value, false);
            parameters.insert(
                module.path.clone(),
                place("A", &module.a)?,
                place("B", &module.b)?,
                module.scale as f32,
            );
        }
        Ok(parameters)
    }

    /// The modules' sizes, ranks and scales.
    pub fn lora_modules(&self) -> Vec<LoraModule> {
        let module = |module: &AdapterModule| LoraModule {
            path: module.path.clone(),
            in_features: module.a.shape()[1],
            out_features: module.b.shape()[0],
            rank: module.a.shape()[0],
            scale: module.scale,
        };
        self.modules.iter().map(module).collect()
    }

    /// The configuration in PEFT's words and order.
    fn peft_config(&self) -> Value {
        let config = &self.config;
        let targets = match &config.targets {
            Targets::List(names) => json!(names),
            Targets::Regex(expression) => json!(expression),
            Targets::AllLinear => json!(self.module_names()),
        };
        let exclude = if config.exclude.is_empty() { Value::Null } else { json!(config.exclude) };
        // PEFT writes whole alphas as integers.
        let number = |x: f64| if x.fract() == 0.0 { json!(x as i64) } else { json!(x) };
        let alphas: Map<String, Value> =
            config.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        // The shortest decimal that is this f32, not that of its f64 neighbour.
        let dropout: f64 = config.dropout.to_string().parse().unwrap_or(0.0);
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "exclude_modules": exclude,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": config.layers,
            "lora_alpha": number(config.alpha),
            "lora_bias": false,
            "lora_dropout": dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": config.rank,
            "rank_pattern": config.rank_pattern,
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": config.rslora,
        })
    }

    /// The last parts of the modules' paths, once each.
    fn module_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .modules
            .iter()
            .map(|module| module.path.rsplit('.').next().unwrap_or(&module.path))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A PEFT configuration with the file that it came from.
struct Fields<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, message: impl Into<String>) -> Error {
        Error::file_at(self.path, key, message)
    }

    fn refuse_other_methods(&self) -> Result<()> {
        let kind = self.value["peft_type"].as_str().unwrap_or("nothing");
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

    fn lora(&self) -> Result<LoraConfig> {
        let rank = self.number("r", 8.0)?;
        if rank < 1.0 || rank.fract() != 0.0 || rank > 1e6 {
            return Err(self.wrong("r", format!("is {rank}, must be a whole number from 1 on")));
        }
        let targets = match &self.value["target_modules"] {
            Value::String(word) if word == "all-linear" => Targets::AllLinear,
            Value::String(expression) => Targets::Regex(expression.clone()),
            _ => Targets::List(self.names("target_modules")?),
        };
        let alphas = match &self.value["alpha_pattern"] {
            Value::Null => BTreeMap::new(),
            value => serde_json::from_value(value.clone())
                .map_err(|_| self.wrong("alpha_pattern", "must map names to numbers"))?,
        };
        let layers = match &self.value["layers_to_transform"] {
            Value::Null => None,
            value => {
                let list = if value.is_number() { json!([value]) } else { value.clone() };
                let wrong = |_| self.wrong("layers_to_transform", "must be a list of layer numbers");
                Some(serde_json::from_value(list).map_err(wrong)?)
            }
        };
        let ranks = match &self.value["rank_pattern"] {
            Value::Null => BTreeMap::new(),
            value => serde_json::from_value(value.clone())
                .map_err(|_| self.wrong("rank_pattern", "must map names to whole numbers from 1 on"))?,
        };
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

/// The pairs of a tensor file, with the scales that the configuration gives them.
fn pairs(path: &Path, config: &LoraConfig) -> Result<Vec<AdapterModule>> {
    let mut found: BTreeMap<String, [Option<HostTensor>; 2]> = BTreeMap::new();
    for (name, tensor) in read_tensors(path)? {
        let parts = name.strip_prefix(PREFIX).and_then(|rest| {
            let part = |suffix, index| rest.strip_suffix(suffix).map(|path: &str| (path.to_owned(), index));
            part(".lora_A.weight", 0).or_else(|| part(".lora_B.weight", 1))
        });
        let Some((module, index)) = parts else {
            let message = "is no lora_A or lora_B weight; the adapter is of a kind that is not supported and is not loaded";
            return Err(Error::file_at(path, name, message));
        };
        if tensor.shape().rank() != 2 || !tensor.dtype().is_float() {
            return Err(Error::file_at(
                path,
                name,
                format!("is {}, must be a matrix of real numbers", tensor.spec()),
            ));
        }
        let tensor = tensor.cast(DType::F32);
        if let Some(at) = tensor.as_slice::<f32>()?.iter().position(|x| !x.is_finite()) {
            return Err(Error::file_at(
                path,
                name,
                format!("element {at} is not a finite number; the file is damaged"),
            ));
        }
        found.entry(module).or_default()[index] = Some(tensor);
    }
    if found.is_empty() {
        return Err(Error::file(path, "holds no tensors"));
    }
    let modules: Vec<LinearModule> = found
        .iter()
        .map(|(module, [a, b])| {
            let (Some(a), Some(b)) = (a, b) else {
                let missing = if a.is_none() { "lora_A" } else { "lora_B" };
                return Err(Error::file_at(
                    path,
                    module.as_str(),
                    format!("has no {missing}; the file is incomplete"),
                ));
            };
            if a.shape()[0] != b.shape()[1] {
                let message = format!("A is {} and B is {}: their ranks differ", a.spec(), b.spec());
                return Err(Error::file_at(path, module.as_str(), message));
            }
            let (in_features, out_features) = (a.shape()[1], b.shape()[0]);
            Ok(LinearModule { path: module.clone(), in_features, out_features, layer: None, is_head: false })
        })
        .collect::<Result<_>>()?;
    // Ranks and alphas by the configuration's patterns; which modules there are, the file says.
    let everything =
        LoraConfig { targets: Targets::AllLinear, layers: None, exclude: Vec::new(), ..config.clone() };
    let resolved = everything.resolve(&modules)?;
    found
        .into_iter()
        .zip(resolved)
        .map(|((module, [a, b]), wanted)| {
            let (a, b) = (a.expect("checked above"), b.expect("checked above"));
            if a.shape()[0] != wanted.rank {
                let message = format!("has rank {}, the configuration says {}", a.shape()[0], wanted.rank);
                return Err(Error::file_at(path, module, message));
            }
            Ok(AdapterModule { path: module, a, b, scale: wanted.scale })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(seed: u32, shape: [usize; 2]) -> HostTensor {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 + seed as f32).sin()).collect();
        HostTensor::from_slice(&values, shape).unwrap()
    }

    fn adapter() -> Adapter {
        let module = |path: &str, rank: usize, scale| AdapterModule {
            path: format!("model.layers.0.{path}"),
            a: tensor(1, [rank, 6]),
            b: tensor(2, [10, rank]),
            scale,
        };
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.1,
            rank_pattern: [("down_proj".to_owned(), 2)].into(),
            ..LoraConfig::default()
        };
        let modules = vec![module("mlp.down_proj", 2, 4.0), module("self_attn.q_proj", 4, 2.0)];
        Adapter { config, base_model: Some("a/b".into()), modules }
    }

    fn saved() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        adapter().save(folder.path()).unwrap();
        folder
    }

    /// What loading says after a field of the configuration was changed.
    fn changed(key: &str, value: Value) -> String {
        let folder = saved();
        change(folder.path(), key, value);
        Adapter::load(folder.path()).unwrap_err().to_string()
    }

    fn change(folder: &Path, key: &str, value: Value) {
        let path = folder.join(CONFIG_FILE);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
    }

    #[test]
    fn what_is_saved_comes_back_and_saving_again_gives_the_same_bytes() {
        let (one, two) = (saved(), tempfile::tempdir().unwrap());
        let loaded = Adapter::load(one.path()).unwrap();
        assert_eq!(loaded.base_model.as_deref(), Some("a/b"));
        let pairs: Vec<(&str, usize, f64)> =
            loaded.modules.iter().map(|m| (m.path.as_str(), m.a.shape()[0], m.scale)).collect();
        assert_eq!(
            pairs,
            [("model.layers.0.mlp.down_proj", 2, 4.0), ("model.layers.0.self_attn.q_proj", 4, 2.0)]
        );
        assert_eq!(loaded.modules[1].b.bytes(), adapter().modules[1].b.bytes());
        loaded.save(two.path()).unwrap();
        let bytes = |folder: &tempfile::TempDir, file: &str| std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(bytes(&one, TENSOR_FILE), bytes(&two, TENSOR_FILE));
        let config = String::from_utf8(bytes(&one, CONFIG_FILE)).unwrap();
        assert!(
            config.contains("\"lora_dropout\": 0.1,") && config.contains("\"lora_alpha\": 8,"),
            "{config}"
        );
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        assert!(changed("use_dora", json!(true)).contains("(use_dora): asks for DoRA"));
        assert!(changed("peft_type", json!("LOHA")).contains("is LOHA"));
        assert!(changed("bias", json!("all")).contains("(bias)"));
        assert!(changed("modules_to_save", json!(["lm_head"])).contains("trained as a whole"));
        assert!(changed("fan_in_fan_out", json!(true)).contains("transposed"));
        assert!(changed("init_lora_weights", json!("pissa")).contains("(init_lora_weights): is \"pissa\""));
        assert!(changed("r", json!(0)).contains("(r): is 0"));
        assert!(changed("r", json!(5)).contains("has rank 4, the configuration says 5"));
        assert!(changed("lora_alpha", json!("x")).contains("must be a number"));
    }

    /// PEFT repeats these initialisations when it loads, each of which replaces the base's weights.
    #[test]
    fn adapters_that_need_another_base_are_refused() {
        for name in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "of next year"] {
            let error = changed("init_lora_weights", json!(name));
            assert!(error.contains("(init_lora_weights)") && error.contains(name), "{error}");
        }
        for harmless in [json!(true), json!(false), json!(null), json!("gaussian"), json!("eva")] {
            let folder = saved();
            change(folder.path(), "init_lora_weights", harmless);
            Adapter::load(folder.path()).unwrap();
        }
    }

    #[test]
    fn switches_that_are_unknown_or_of_a_wrong_type_are_refused() {
        assert!(changed("use_bdlora", json!({"target_modules_bd_a": ["q_proj"]})).contains("(use_bdlora)"));
        assert!(changed("use_invention", json!(true)).contains("(use_invention): is not known"));
        assert!(changed("invention_config", json!({"a": 1})).contains("(invention_config)"));
        assert!(changed("use_rslora", json!("yes")).contains("(use_rslora): is \"yes\""));
        assert!(changed("layers_to_transform", json!(-1)).contains("(layers_to_transform)"));
        assert!(changed("rank_pattern", json!({"down_proj": 2.5})).contains("(rank_pattern)"));
        let folder = saved();
        change(folder.path(), "invention_config", json!(null));
        change(folder.path(), "invention_group_size", json!(16));
        Adapter::load(folder.path()).unwrap();
    }

    #[test]
    fn missing_wrong_and_unknown_tensors_are_refused() {
        let folder = saved();
        let path = folder.path().join(TENSOR_FILE);
        let reload = |tensors: &[(String, HostTensor)]| {
            write_tensors(&path, tensors).unwrap();
            Adapter::load(folder.path()).unwrap_err().to_string()
        };
        let good = read_tensors(&path).unwrap();
        assert!(reload(&good[..3]).contains("has no lora_B"));
        let mut wrong = good.clone();
        wrong[1].1 = tensor(1, [10, 3]);
        assert!(reload(&wrong).contains("their ranks differ"));
        let mut extra = good.clone();
        extra.push(("base_model.model.x.lora_magnitude_vector".into(), tensor(1, [1, 3])));
        assert!(reload(&extra).contains("lora_magnitude_vector): is no lora_A"));
        let mut broken = good;
        broken[0].1 = HostTensor::from_slice(&[f32::NAN; 12], [2, 6]).unwrap();
        assert!(reload(&broken).contains("element 0 is not a finite number"));
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..100]).unwrap();
        assert!(
            Adapter::load(folder.path()).unwrap_err().to_string().contains("no complete safetensors file")
        );
        std::fs::remove_file(&path).unwrap();
        assert!(Adapter::load(folder.path()).unwrap_err().to_string().contains("is no adapter folder"));
    }

    #[test]
    fn a_model_that_does_not_fit_is_named() {
        let linear = |path: &str, out_features| LinearModule {
            path: format!("model.layers.0.{path}"),
            in_features: 6,
            out_features,
            layer: Some(0),
            is_head: false,
        };
        adapter().check(&[linear("mlp.down_proj", 10), linear("self_attn.q_proj", 10)]).unwrap();
        let error =
            adapter().check(&[linear("mlp.down_proj", 10), linear("self_attn.q_proj", 12)]).unwrap_err();
        assert!(error.to_string().contains("is for a layer of 10 x 6, the model's has 12 x 6"));
        let error = adapter().check(&[linear("mlp.down_proj", 10)]).unwrap_err().to_string();
        assert!(error.contains("q_proj: is no linear layer of this model"), "{error}");
    }
}
