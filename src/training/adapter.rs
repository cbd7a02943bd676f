//! Adapters as files: those of PEFT, read and written so that both sides take the other's.
//!
//! `adapter_config.json` says which kind of adapter it is; `adapter_model.safetensors` holds, for each module,
//! `base_model.model.<path>.lora_A.weight` `[r, in]` and `….lora_B.weight` `[out, r]`, for the embedding
//! `….lora_embedding_A` and `….lora_embedding_B`. What this library does not compute (DoRA, trained biases, whole
//! modules, other methods) is refused, never left out. mlx-lm's folders are read too.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::adapter_tensors::pairs;
use super::base_name::{with_revision, without_revision};
use super::lora::{LoraConfig, LoraModule, Targets};
use super::mlx_adapter;
use super::peft_config::Fields;
use super::tensors::{transposed, write_tensors};
use crate::atomic;
use crate::backend::Device;
use crate::models::{AdapterParameters, LinearModule, Weights};
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// The file of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// The tensor file of older PEFT versions, a pickle.
const PICKLE: &str = "adapter_model.bin";
pub(super) const PREFIX: &str = "base_model.model.";
/// The pair of one module.
#[derive(Debug, Clone)]
pub struct AdapterModule {
    /// Path of the linear layer, or of the embedding.
    pub path: String,
    /// A `[r, in]`, f32; of the embedding `[r, tokens]`.
    pub a: HostTensor,
    /// B `[out, r]`, f32.
    pub b: HostTensor,
    /// Factor of B·A.
    pub scale: f64,
    /// Whether it is the embedding, of whose A a token picks a column.
    pub is_embedding: bool,
}

/// A copy of a base weight that an adapter's file holds beside the pairs, as PEFT saves it for an adapted embedding or
/// head.
#[derive(Debug, Clone)]
pub struct BaseCopy {
    /// Path of the module.
    pub path: String,
    /// The weight as stored.
    pub weight: HostTensor,
}

/// A LoRA adapter in host memory.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// How it was made.
    pub config: LoraConfig,
    /// The model that it belongs to, as PEFT's `base_model_name_or_path`; a revision of a repository as
    /// `owner/model@revision`.
    pub base_model: Option<String>,
    /// The pairs.
    pub modules: Vec<AdapterModule>,
    /// Copies of base weights, which must be those of the model in use ([`Adapter::check_copies`]).
    pub copies: Vec<BaseCopy>,
}

impl Adapter {
    /// Reads an adapter's folder, as PEFT or mlx-lm writes it.
    pub fn load(folder: &Path) -> Result<Self> {
        check_folder(folder)?;
        let config_path = folder.join(CONFIG_FILE);
        let tensor_path = folder.join(TENSOR_FILE);
        let bytes = std::fs::read(&config_path).map_err(|source| Error::io(&config_path, "read", source))?;
        // Editors on Windows put a byte-order mark before the text.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| Error::file(&config_path, format!("is no JSON: {error}")))?;
        if !tensor_path.exists() {
            return mlx_adapter::read(&config_path, &value, &folder.join(mlx_adapter::TENSOR_FILE));
        }
        let fields = Fields { path: &config_path, value: &value };
        fields.refuse_other_methods()?;
        let mut config = fields.lora()?;
        let base_model = value["base_model_name_or_path"].as_str();
        let base_model = base_model.map(|name| with_revision(name, value["revision"].as_str()));
        let (modules, copies) = pairs(&tensor_path, &config)?;
        if value["exclude_modules"].is_string() {
            // An expression, which only PEFT has here. What it left is in the file.
            config.exclude.clear();
            config.targets = Targets::List(modules.iter().map(|module| module.path.clone()).collect());
        }
        let has = |part: &str| modules.iter().any(|module| module.path.ends_with(part));
        if value["ensure_weight_tying"] == true && has("embed_tokens") != has("lm_head") {
            let message = "asks that embedding and head share one adapter, which is not supported; the adapter is \
                           not loaded";
            return Err(Error::file_at(&config_path, "ensure_weight_tying", message));
        }
        Ok(Self { config, base_model: base_model.filter(|name| !name.is_empty()), modules, copies })
    }

    /// Writes an adapter's folder, which must exist. Each file is replaced as a whole.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for module in &self.modules {
            let name = |part: &str| match module.is_embedding {
                true => format!("{PREFIX}{}.lora_embedding_{part}", module.path),
                false => format!("{PREFIX}{}.lora_{part}.weight", module.path),
            };
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

    /// Checks that the copies of base weights in the adapter's file are the weights of this model. Others would have to
    /// replace them, as after training with a larger vocabulary.
    pub fn check_copies(&self, weights: &Weights) -> Result<()> {
        for copy in &self.copies {
            let name = format!("{}.weight", copy.path);
            let tied = copy.path == "lm_head" && !weights.contains(&name);
            let name = if tied { "model.embed_tokens.weight" } else { &name };
            let place = || format!("adapter's copy of {}", copy.path);
            let shape = copy.weight.shape().dims();
            if weights.shape(name).is_some_and(|found| found != shape) {
                let message = format!(
                    "has shape {shape:?}, but the model's weight has {:?}; the adapter was trained on a model of another \
                     vocabulary: use that model",
                    weights.shape(name).unwrap_or_default()
                );
                return Err(Error::invalid(place(), message));
            }
            if weights.load(name, shape, copy.weight.dtype())?.bytes() != copy.weight.bytes() {
                let message = "differs from the model's weight; the adapter was trained on another model: use that \
                               model";
                return Err(Error::invalid(place(), message));
            }
        }
        Ok(())
    }

    /// Returns true if the adapter changes nothing, as before its first training step: A or B of every module is zero.
    pub fn does_nothing(&self) -> bool {
        let zero = |tensor: &HostTensor| {
            tensor.as_slice::<f32>().is_ok_and(|values| values.iter().all(|x| *x == 0.0))
        };
        self.modules.iter().all(|module| zero(&module.b) || zero(&module.a))
    }

    /// Places the adapter on a device, frozen, for a decoder to use.
    pub fn on(&self, device: &Device) -> Result<AdapterParameters> {
        let mut parameters = AdapterParameters::default();
        for module in &self.modules {
            let place =
                |part: &str, value| device.parameter(format!("{}.lora_{part}", module.path), value, false);
            let a = if module.is_embedding { transposed(&module.a)? } else { module.a.clone() };
            parameters.insert(
                module.path.clone(),
                place("A", &a)?,
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
            is_embedding: module.is_embedding,
        };
        self.modules.iter().map(module).collect()
    }

    /// The configuration in PEFT's words and order.
    fn peft_config(&self) -> Value {
        let config = &self.config;
        // PEFT takes layers beside a list of names only.
        let paths = || self.modules.iter().map(|module| module.path.as_str()).collect::<Vec<_>>();
        let by_path = matches!(config.targets, Targets::Regex(_)) && config.layers.is_some();
        let targets = match &config.targets {
            Targets::List(names) => json!(names),
            Targets::Regex(_) if by_path => json!(paths()),
            Targets::Regex(expression) => json!(expression),
            Targets::AllLinear => json!(self.module_names()),
        };
        let exclude = if config.exclude.is_empty() { Value::Null } else { json!(config.exclude) };
        // PEFT writes whole alphas as integers.
        let number = |x: f64| if x.fract() == 0.0 { json!(x as i64) } else { json!(x) };
        let alphas: Map<String, Value> =
            config.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let ranks: Map<String, Value> =
            config.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        // The shortest decimal that is this f32, not that of its f64 neighbour.
        let dropout: f64 = config.dropout.to_string().parse().unwrap_or(0.0);
        let (base, revision) = self.base_model.as_deref().map(without_revision).unzip();
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "exclude_modules": exclude,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": if by_path { Value::Null } else { json!(config.layers) },
            "lora_alpha": number(config.alpha),
            "lora_bias": false,
            "lora_dropout": dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": config.rank,
            "rank_pattern": ranks,
            "revision": revision.flatten(),
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

/// Refuses a place that holds no adapter, by what it is.
fn check_folder(folder: &Path) -> Result<()> {
    let has = |name: &str| folder.join(name).exists();
    if folder.is_file() {
        let message = format!("is a file; pass the folder that holds it and {CONFIG_FILE}");
        return Err(Error::file(folder, message));
    }
    let has_tensors = has(TENSOR_FILE) || has(mlx_adapter::TENSOR_FILE);
    if !has_tensors && has(PICKLE) {
        let message = format!(
            "is a pickle, which can run code and is not read; save the adapter again with PEFT's save_pretrained, which \
             writes {TENSOR_FILE}"
        );
        return Err(Error::file(folder.join(PICKLE), message));
    }
    let what = match (has(CONFIG_FILE), has_tensors) {
        (true, true) => return Ok(()),
        (true, false) => format!("it has {CONFIG_FILE}, but {TENSOR_FILE} is missing; is the copy complete?"),
        (false, true) => {
            format!(
                "{CONFIG_FILE} is missing, which holds rank and scale; copy it from where the tensors came"
            )
        }
        _ if !folder.exists() => {
            return Err(Error::file(folder, "is not there; pass an adapter's folder or its hub id"));
        }
        _ if has("config.json") => {
            "it holds a model; pass it as the model, and an adapter's folder here".to_owned()
        }
        _ => match adapter_below(folder) {
            Some(name) => format!("its folder {name} is one; pass that"),
            None => format!("it must hold {CONFIG_FILE} and {TENSOR_FILE}"),
        },
    };
    Err(Error::file(folder, format!("is no adapter folder: {what}")))
}

/// The name of the last folder in a folder that holds an adapter, such as the newest checkpoint's.
fn adapter_below(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // Numbers of steps are compared by their value.
    names
        .filter(|name| folder.join(name).join(CONFIG_FILE).is_file())
        .max_by_key(|name| (name.len(), name.clone()))
}

#[cfg(test)]
mod tests {
    use super::super::tensors::read_tensors;
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
            is_embedding: false,
        };
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.1,
            rank_pattern: vec![("down_proj".to_owned(), 2)],
            ..LoraConfig::default()
        };
        let modules = vec![module("mlp.down_proj", 2, 4.0), module("self_attn.q_proj", 4, 2.0)];
        Adapter { config, base_model: Some("a/b".into()), modules, copies: Vec::new() }
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

    /// The revision was lost when an adapter was read, and its base was fetched at another commit.
    #[test]
    fn the_revision_of_the_base_is_read_and_written() {
        let folder = saved();
        let base = || Adapter::load(folder.path()).unwrap().base_model.unwrap();
        for (revision, name) in
            [(json!("v1.0"), "a/b@v1.0"), (json!("main"), "a/b"), (json!(""), "a/b"), (json!(null), "a/b")]
        {
            change(folder.path(), "revision", revision);
            assert_eq!(base(), name);
        }
        let mut adapter = adapter();
        adapter.base_model = Some("a/b@v1.0".into());
        adapter.save(folder.path()).unwrap();
        let config = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
        assert!(config.contains("\"base_model_name_or_path\": \"a/b\","), "{config}");
        assert!(config.contains("\"revision\": \"v1.0\","), "{config}");
        assert_eq!(base(), "a/b@v1.0");
    }

    #[test]
    fn an_expression_with_layers_is_written_as_paths() {
        let folder = tempfile::tempdir().unwrap();
        let mut adapter = adapter();
        adapter.config.targets = Targets::Regex(r".*_proj".into());
        adapter.config.layers = Some(vec![0]);
        adapter.save(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["layers_to_transform"], Value::Null);
        let paths = json!(["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]);
        assert_eq!(config["target_modules"], paths);
        assert_eq!(Adapter::load(folder.path()).unwrap().modules.len(), 2);
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
            is_embedding: false,
        };
        adapter().check(&[linear("mlp.down_proj", 10), linear("self_attn.q_proj", 10)]).unwrap();
        let error =
            adapter().check(&[linear("mlp.down_proj", 10), linear("self_attn.q_proj", 12)]).unwrap_err();
        assert!(error.to_string().contains("is for a layer of 10 x 6, the model's has 12 x 6"));
        let error = adapter().check(&[linear("mlp.down_proj", 10)]).unwrap_err().to_string();
        assert!(error.contains("q_proj: is no linear layer of this model"), "{error}");
    }

    fn write_named(folder: &Path, file: &str, tensors: &[(&str, HostTensor)]) {
        let tensors: Vec<_> =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        write_tensors(&folder.join(file), &tensors).unwrap();
    }

    #[test]
    fn an_adapted_embedding_and_head_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut adapter = adapter();
        adapter.config.targets = Targets::List(vec!["embed_tokens".into(), "lm_head".into()]);
        adapter.config.rank_pattern.clear();
        let module = |path: &str, a: [usize; 2], b: [usize; 2]| AdapterModule {
            path: path.into(),
            a: tensor(3, a),
            b: tensor(4, b),
            scale: 2.0,
            is_embedding: path.ends_with("embed_tokens"),
        };
        adapter.modules =
            vec![module("lm_head", [4, 6], [20, 4]), module("model.embed_tokens", [4, 20], [6, 4])];
        adapter.save(folder.path()).unwrap();
        let names: Vec<String> = read_tensors(&folder.path().join(TENSOR_FILE))
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.lm_head.lora_B.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.embed_tokens.lora_embedding_B",
        ];
        assert_eq!(names, expected);
        let loaded = Adapter::load(folder.path()).unwrap();
        let found: Vec<(&str, bool)> =
            loaded.modules.iter().map(|m| (m.path.as_str(), m.is_embedding)).collect();
        assert_eq!(found, [("lm_head", false), ("model.embed_tokens", true)]);
        assert_eq!(loaded.modules[1].a.bytes(), adapter.modules[1].a.bytes());
        // Tied adapters are PEFT's ensure_weight_tying; a file that has one of the two relies on it.
        change(folder.path(), "ensure_weight_tying", json!(true));
        Adapter::load(folder.path()).unwrap();
        adapter.modules.remove(0);
        adapter.save(folder.path()).unwrap();
        change(folder.path(), "ensure_weight_tying", json!(true));
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("(ensure_weight_tying)"), "{error}");
    }

    #[test]
    fn tensors_that_the_configuration_does_not_name_are_refused() {
        let folder = saved();
        change(folder.path(), "target_modules", json!(["down_proj"]));
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("q_proj): has an adapter here, but target_modules"), "{error}");
        change(folder.path(), "target_modules", json!(r"model\.layers\.0\..*"));
        Adapter::load(folder.path()).unwrap();
    }

    #[test]
    fn copies_of_base_weights_must_be_those_of_the_model() {
        let folder = saved();
        let mut tensors = read_tensors(&folder.path().join(TENSOR_FILE)).unwrap();
        let copy = |values: &[f32]| HostTensor::from_slice(values, [2, 2]).unwrap();
        tensors.push(("base_model.model.lm_head.base_layer.weight".into(), copy(&[1.0, 2.0, 3.0, 4.0])));
        write_tensors(&folder.path().join(TENSOR_FILE), &tensors).unwrap();
        let adapter = Adapter::load(folder.path()).unwrap();
        assert_eq!((adapter.modules.len(), adapter.copies.len()), (2, 1));
        let base = tempfile::tempdir().unwrap();
        let check = |name: &str, weight: HostTensor| {
            write_named(base.path(), "model.safetensors", &[(name, weight)]);
            adapter.check_copies(&Weights::open(base.path()).unwrap()).map_err(|error| error.to_string())
        };
        check("lm_head.weight", copy(&[1.0, 2.0, 3.0, 4.0])).unwrap();
        // A tied head is the embedding.
        check("model.embed_tokens.weight", copy(&[1.0, 2.0, 3.0, 4.0])).unwrap();
        let error = check("lm_head.weight", copy(&[1.0, 2.0, 3.0, 5.0])).unwrap_err();
        assert!(error.contains("adapter's copy of lm_head: differs from the model's weight"), "{error}");
        let larger = HostTensor::from_slice(&[0.0; 6], [3, 2]).unwrap();
        let error = check("lm_head.weight", larger).unwrap_err();
        assert!(error.contains("has shape [2, 2]") && error.contains("another vocabulary"), "{error}");
    }

    #[test]
    fn a_place_without_an_adapter_is_named_for_what_it_is() {
        let folder = saved();
        let path = |name: &str| folder.path().join(name);
        let error = |place: &Path| Adapter::load(place).unwrap_err().to_string();
        assert!(error(&path("absent")).contains("is not there"));
        std::fs::rename(path(TENSOR_FILE), path("x")).unwrap();
        assert!(error(folder.path()).contains("adapter_model.safetensors is missing; is the copy"));
        std::fs::rename(path("x"), path(TENSOR_FILE)).unwrap();
        let text = std::fs::read(path(CONFIG_FILE)).unwrap();
        std::fs::remove_file(path(CONFIG_FILE)).unwrap();
        assert!(error(folder.path()).contains("adapter_config.json is missing"));
        std::fs::remove_file(path(TENSOR_FILE)).unwrap();
        for step in ["step-9", "step-10"] {
            std::fs::create_dir(path(step)).unwrap();
            std::fs::write(path(step).join(CONFIG_FILE), &text).unwrap();
        }
        assert!(error(folder.path()).contains("its folder step-10 is one; pass that"));
        std::fs::write(path("config.json"), "{}").unwrap();
        assert!(error(folder.path()).contains("it holds a model"));
    }

    #[test]
    fn wrong_configurations_name_their_file() {
        let folder = saved();
        let write = |text: &str| {
            std::fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
            Adapter::load(folder.path()).unwrap_err().to_string()
        };
        assert!(write("[]").contains("adapter_config.json: must be a JSON object"));
        assert!(write("{}").contains("(peft_type): is missing"));
        let error = changed("rank_pattern", json!({"(": 3}));
        assert!(error.contains("adapter_config.json") && error.contains("no regular expression"), "{error}");
        let error = changed("target_modules", json!("("));
        assert!(error.contains("adapter_config.json") && error.contains("no regular expression"), "{error}");
    }

    /// PEFT takes a single text as an expression. Training that goes on keeps the modules of the file.
    #[test]
    fn an_expression_of_exclusions_becomes_the_modules_that_are_left() {
        let folder = saved();
        change(folder.path(), "exclude_modules", json!(r".*\.(k|v)_proj"));
        let config = Adapter::load(folder.path()).unwrap().config;
        let paths = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"];
        assert_eq!(config.targets, Targets::List(paths.map(str::to_owned).to_vec()));
        assert!(config.exclude.is_empty());
    }

    #[test]
    fn pickles_are_refused_and_byte_order_marks_are_not() {
        let folder = saved();
        let path = folder.path().join(CONFIG_FILE);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, [b"\xef\xbb\xbf", text.as_slice()].concat()).unwrap();
        assert_eq!(Adapter::load(folder.path()).unwrap().modules.len(), 2);
        let file = folder.path().join(TENSOR_FILE);
        let error = Adapter::load(&file).unwrap_err().to_string();
        assert!(error.contains("is a file; pass the folder"), "{error}");
        std::fs::rename(file, folder.path().join(PICKLE)).unwrap();
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("adapter_model.bin") && error.contains("save_pretrained"), "{error}");
    }

    #[test]
    fn an_untrained_adapter_does_nothing() {
        let mut adapter = adapter();
        assert!(!adapter.does_nothing());
        adapter.modules[0].b = HostTensor::zeros(adapter.modules[0].b.spec().clone());
        assert!(!adapter.does_nothing());
        adapter.modules[1].a = HostTensor::zeros(adapter.modules[1].a.spec().clone());
        assert!(adapter.does_nothing());
    }

    /// mlx-lm's pairs are PEFT's transposed, also where a layer is square, and its scale is the factor itself.
    #[test]
    fn adapters_of_mlx_lm_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (tensor(1, [6, 2]), tensor(2, [2, 6]));
        let name = |part: &str| format!("model.layers.1.self_attn.q_proj.lora_{part}");
        let (name_a, name_b) = (name("a"), name("b"));
        let write = |config: Value, more: &[(&str, HostTensor)]| {
            std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
            let mut tensors = vec![(name_a.as_str(), a.clone()), (name_b.as_str(), b.clone())];
            tensors.extend_from_slice(more);
            write_named(folder.path(), mlx_adapter::TENSOR_FILE, &tensors);
            Adapter::load(folder.path())
        };
        let config = || {
            json!({"fine_tune_type": "lora", "model": "org/base", "num_layers": 16,
                "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.25}})
        };
        let adapter = write(config(), &[]).unwrap();
        assert_eq!((adapter.base_model.as_deref(), adapter.config.dropout), (Some("org/base"), 0.25));
        let module = &adapter.modules[0];
        assert_eq!(
            (module.path.as_str(), module.scale, module.is_embedding),
            ("model.layers.1.self_attn.q_proj", 20.0, false)
        );
        assert_eq!(module.a.bytes(), transposed(&a).unwrap().bytes());
        assert_eq!(module.b.bytes(), transposed(&b).unwrap().bytes());
        // As PEFT's files it computes the same.
        let peft = tempfile::tempdir().unwrap();
        adapter.save(peft.path()).unwrap();
        let again = Adapter::load(peft.path()).unwrap();
        assert_eq!((again.modules[0].scale, again.modules[0].a.bytes()), (20.0, module.a.bytes()));

        let refused = |key: &str, value: Value| {
            let mut config = config();
            match key {
                "scale" | "rank" => config["lora_parameters"][key] = value,
                _ => config[key] = value,
            }
            write(config, &[]).unwrap_err().to_string()
        };
        let embedding = name("x").replace("layers.1.self_attn.q_proj.lora_x", "embed_tokens.lora_");
        let parts = ["a", "b"].map(|part| format!("{embedding}{part}"));
        let error = write(config(), &[(parts[0].as_str(), a.clone()), (parts[1].as_str(), b.clone())])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("embed_tokens): is the embedding") && error.contains("mlx_lm.fuse"),
            "{error}"
        );
        assert!(refused("fine_tune_type", json!("dora")).contains("(fine_tune_type): is dora"));
        assert!(refused("fine_tune_type", json!("full")).contains("is full"));
        assert!(refused("scale", json!(null)).contains("(lora_parameters.scale)"));
        let mut older = config();
        older["lora_parameters"] = json!({"rank": 2, "alpha": 16});
        let error = write(older, &[]).unwrap_err().to_string();
        assert!(
            error.contains("(lora_parameters.scale): is missing; mlx-lm reads scale, not alpha"),
            "{error}"
        );
        assert!(refused("rank", json!(8)).contains("is 8, but the tensors have rank 2"));
        let error = write(config(), &[("model.layers.1.self_attn.q_proj.m", tensor(1, [1, 6]))]).unwrap_err();
        assert!(error.to_string().contains("q_proj.m): is neither lora_a nor lora_b"), "{error}");
    }
}
