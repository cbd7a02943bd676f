//! The files of a merged folder beside its weights: configuration, tokenizer, chat templates.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::models::{Architecture, Gguf, ModelConfig, ModelFiles, RopeScaling};
use crate::tensor::DType;
use crate::{Error, Result, atomic};

/// Files that are copied from a base folder as they are.
const COMPANIONS: [&str; 17] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
];
/// The folder of a model's chat templates beside the default one.
const TEMPLATES: &str = "additional_chat_templates";

/// Writes them. `config` is that of the merged model.
pub(super) fn write(files: &ModelFiles, config: &ModelConfig, dtype: DType, out: &Path) -> Result<()> {
    let base = files.path.join("config.json");
    if files.path.is_dir() && base.exists() {
        copy(&files.path, out)?;
        let text = std::fs::read_to_string(&base).map_err(|source| Error::io(&base, "read", source))?;
        let value: Map<String, Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|error| Error::file(&base, format!("is no JSON object: {error}")))?;
        return write_json(&out.join("config.json"), &changed(value, config, dtype, files)?);
    }
    let gguf = Gguf::open(files.weights.path())?;
    write_json(&out.join("config.json"), &changed(new_config(files, config), config, dtype, files)?)?;
    write_tokenizer(files, &gguf, out)
}

fn write_json(path: &Path, value: &Map<String, Value>) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|error| Error::file(path, error.to_string()))?;
    text.push('\n');
    atomic::write(path, text.as_bytes())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let one = |source: &Path, target: &Path| {
        let bytes = std::fs::read(source).map_err(|error| Error::io(source, "read", error))?;
        atomic::write(target, &bytes)
    };
    for name in COMPANIONS {
        let source = from.join(name);
        if source.is_file() {
            one(&source, &to.join(name))?;
        }
    }
    let templates = from.join(TEMPLATES);
    if templates.is_dir() {
        let target = to.join(TEMPLATES);
        crate::durable::create_dir_all(&target).map_err(|error| Error::io(&target, "create", error))?;
        let entries = std::fs::read_dir(&templates).map_err(|error| Error::io(&templates, "read", error))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|e| e == "jinja")) {
                one(&path, &target.join(name))?;
            }
        }
    }
    Ok(())
}

/// A configuration that says what the merged folder holds: dtype, tied or untied head, and the rotary embedding in the
/// spellings of transformers 4 (which mlx-lm reads) and 5.
fn changed(
    mut value: Map<String, Value>,
    config: &ModelConfig,
    dtype: DType,
    files: &ModelFiles,
) -> Result<Map<String, Value>> {
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    let scaling = scaling(files, &config.rope_scaling)?;
    let mut parameters = scaling.clone().unwrap_or_default();
    parameters.entry("rope_type").or_insert_with(|| json!("default"));
    parameters.insert("rope_theta".to_owned(), json!(config.rope_theta));
    for (key, new) in [
        ("architectures", json!([class(config.architecture)])),
        ("dtype", json!(name)),
        ("torch_dtype", json!(name)),
        ("tie_word_embeddings", json!(config.tie_embeddings)),
        ("rope_parameters", Value::Object(parameters)),
        ("rope_theta", json!(config.rope_theta)),
        ("rope_scaling", scaling.map_or(Value::Null, Value::Object)),
    ] {
        value.insert(key.to_owned(), new);
    }
    Ok(value)
}

fn class(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Llama => "LlamaForCausalLM",
        Architecture::Mistral => "MistralForCausalLM",
        Architecture::Qwen2 => "Qwen2ForCausalLM",
        Architecture::Qwen3 => "Qwen3ForCausalLM",
    }
}

fn scaling(files: &ModelFiles, scaling: &RopeScaling) -> Result<Option<Map<String, Value>>> {
    let value = match scaling {
        RopeScaling::None => return Ok(None),
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
    Ok(value.as_object().cloned())
}

/// The configuration of a model that has none as a file.
fn new_config(files: &ModelFiles, config: &ModelConfig) -> Map<String, Value> {
    let tokenizer = &files.tokenizer;
    let value = json!({
        "model_type": config.architecture.name(),
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.rms_eps,
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window.is_some(),
        "max_window_layers": if config.sliding_window.is_some() { 0 } else { config.layers },
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_token().and_then(|token| tokenizer.id(token)),
        "eos_token_id": tokenizer.eos_ids(),
    });
    value.as_object().cloned().unwrap_or_default()
}

/// The tokenizer of a GGUF file as transformers writes it, with all its chat templates.
fn write_tokenizer(files: &ModelFiles, gguf: &Gguf, out: &Path) -> Result<()> {
    let tokenizer = &files.tokenizer;
    atomic::write(&out.join("tokenizer.json"), tokenizer.to_json()?.as_bytes())?;
    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    let mut special = Map::new();
    let padding =
        |key: &str| -> Result<Option<String>> { Ok(gguf.token_id(key)?.and_then(|id| tokenizer.token(id))) };
    for (role, token) in [
        ("bos_token", tokenizer.bos_token().map(str::to_owned)),
        ("eos_token", tokenizer.eos_token().map(str::to_owned)),
        ("pad_token", padding("tokenizer.ggml.padding_token_id")?),
        ("unk_token", padding("tokenizer.ggml.unknown_token_id")?),
    ] {
        if let Some(token) = token {
            settings.insert(role.to_owned(), json!(token));
            special.insert(role.to_owned(), json!(token));
        }
    }
    settings.insert("model_max_length".to_owned(), json!(files.config.context));
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        atomic::write(&out.join("chat_template.jinja"), template.as_bytes())?;
        settings.insert("chat_template".to_owned(), json!(template));
    }
    let named = gguf.keys().filter_map(|key| Some((key, key.strip_prefix("tokenizer.chat_template.")?)));
    for (key, name) in
        named.filter(|(_, name)| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)))
    {
        let Some(template) = gguf.text(key)? else { continue };
        let folder = out.join(TEMPLATES);
        crate::durable::create_dir_all(&folder).map_err(|error| Error::io(&folder, "create", error))?;
        atomic::write(&folder.join(format!("{name}.jinja")), template.as_bytes())?;
    }
    write_json(&out.join("tokenizer_config.json"), &settings)?;
    write_json(&out.join("special_tokens_map.json"), &special)?;
    let generation = json!({
        "bos_token_id": tokenizer.bos_token().and_then(|token| tokenizer.id(token)),
        "eos_token_id": tokenizer.eos_ids(),
    });
    write_json(&out.join("generation_config.json"), generation.as_object().unwrap_or(&Map::new()))
}
