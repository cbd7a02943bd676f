//! Keys of axolotl's YAML that are not a flag of ours by another name.

use serde_json::{Map, Value};

use super::keys::{one_file, plain};
use super::{Found, Refusal};

/// Returns whether a key is read here. `adapter` is axolotl's where it names a kind of adapter, not a folder.
pub(crate) fn applies(name: &str, value: &Value, all: &Map<String, Value>) -> bool {
    match name {
        "adapter" => {
            matches!(value.as_str(), Some("lora" | "qlora" | "llama-adapter"))
                || all.contains_key("base_model")
        }
        "lora-target-linear" | "datasets" | "test-datasets" | "train-on-inputs" | "plugins" => true,
        "special-tokens" | "excess-length-strategy" => true,
        // With lora_target_linear axolotl adapts all linear layers, whatever the list says.
        "lora-target-modules" => all.get("lora_target_linear").and_then(Value::as_bool) == Some(true),
        _ => false,
    }
}

/// Reads a key.
pub(crate) fn read(name: &str, value: &Value) -> Result<Found, Refusal> {
    let text = plain(value);
    match (name, text.as_str()) {
        ("adapter", "lora") => Ok(Found::nothing()),
        ("adapter", "qlora") => Ok(Found::note(
            "is trained as LoRA on weights that are not quantized; `dtype: bf16` halves their memory",
        )),
        ("adapter", _) => Err((format!("'{text}' is not supported"), "only lora is trained".to_owned())),
        ("lora-target-linear", "true") => Ok(Found::setting("targets", "all-linear")),
        ("lora-target-linear", _) => Ok(Found::nothing()),
        ("lora-target-modules", _) => {
            Ok(Found::note("is not used, because lora_target_linear takes all linear layers"))
        }
        ("train-on-inputs", "true") => Ok(Found::setting("train-on", "all")),
        ("train-on-inputs", _) => Ok(Found::setting("train-on", "completion")),
        ("plugins", _) => plugins(value),
        ("special-tokens", _) => special_tokens(value),
        ("excess-length-strategy", "truncate") => Ok(Found::nothing()),
        ("excess-length-strategy", _) => {
            Ok(Found::note("is not used: longer rows are cut to the maximum length"))
        }
        ("datasets", _) => datasets(value),
        _ => Err((
            "is not read".to_owned(),
            "put a valid.jsonl and a test.jsonl beside train.jsonl, and leave the key out".to_owned(),
        )),
    }
}

/// Plugins that change only speed and memory have no counterpart.
fn plugins(value: &Value) -> Result<Found, Refusal> {
    let names: Vec<String> = value.as_array().into_iter().flatten().map(plain).collect();
    let is_speed = |name: &&String| {
        ["liger", "cut_cross_entropy", "kernels"]
            .iter()
            .any(|speed| name.to_ascii_lowercase().contains(speed))
    };
    match names.iter().find(|name| !is_speed(name)) {
        Some(other) => {
            Err((format!("'{other}' is not supported"), "plugins are not run: leave it out".to_owned()))
        }
        None if names.is_empty() => Ok(Found::nothing()),
        None => Ok(Found::note("is not used: attention and losses have one implementation each")),
    }
}

/// The padding token is never read; any other changes what is trained.
fn special_tokens(value: &Value) -> Result<Found, Refusal> {
    let entries = value.as_object().into_iter().flatten().filter(|(_, token)| !token.is_null());
    let mut found = Found::nothing();
    for (name, token) in entries {
        if name != "pad_token" {
            return Err((
                format!("{name}: {token} is not supported"),
                "the tokenizer's own special tokens are used: leave it out, or change it in tokenizer_config.json"
                    .to_owned(),
            ));
        }
        found.note = Some("pad_token is not used: padding is masked".to_owned());
    }
    Ok(found)
}

/// One data set; its rows are recognized by their columns.
fn datasets(value: &Value) -> Result<Found, Refusal> {
    let entries = value.as_array().map_or(&[][..], Vec::as_slice);
    let [entry] = entries else {
        let cause = format!("lists {} data sets; one is trained on", entries.len());
        return Err((cause, "put the rows of all into one folder's train.jsonl".to_owned()));
    };
    let Some(path) = entry.get("path").and_then(Value::as_str) else {
        return Err(("has no path".to_owned(), "name the data with `path:`".to_owned()));
    };
    let configuration = entry.get("name").and_then(Value::as_str).map(|name| format!("/{name}"));
    let mut found = Found::setting("data", format!("{path}{}", configuration.unwrap_or_default()));
    for (name, value) in entry.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        of_data_set(name, value, &mut found)?;
    }
    Ok(found)
}

/// One key of a data set.
fn of_data_set(name: &str, value: &Value, found: &mut Found) -> Result<(), Refusal> {
    let text = plain(value);
    let columns = |ours: &str| ("columns", Value::from(format!("{ours}={text}")));
    match (name, text.as_str()) {
        ("path", _) | ("name", _) | ("split", "train") | ("train_on_eos" | "train_on_eot", "turn") => {}
        ("type", "completion") => {
            found.note = Some(
                "type is not used: rows with text are trained whole, as axolotl's completion, and others by their columns"
                    .to_owned(),
            );
        }
        ("type", _) if value.is_string() => {
            found.note = Some(
                "type is not used: rows are recognized by their columns and written by the model's chat template"
                    .to_owned(),
            );
        }
        ("ds_type", _) => {}
        ("data_files", _) if is_loader(found) => found.settings[0].1 = one_file(value)?,
        ("split", _) => found.settings.push(("split", value.clone())),
        ("field_messages", "messages" | "conversations" | "conversation") => {}
        ("field_messages", _) => found.settings.push(columns("messages")),
        ("field", "text") => {}
        ("field", _) => found.settings.push(columns("text")),
        ("field_tools", "tools") | ("field_system", "system") => {}
        ("message_property_mappings", _) if is_known_mapping(value) => {}
        ("message_field_role", "role" | "from") | ("message_field_content", "content" | "value") => {}
        ("message_field_training", "train" | "weight" | "loss") => {}
        ("roles_to_train", _) if is_of_assistant(value) => {}
        ("chat_template", "tokenizer_default") => {}
        ("type", _) => {
            let advice = "write rows with prompt and completion, or with messages".to_owned();
            return Err((
                "a format of one's own is not supported as the type of a data set".to_owned(),
                advice,
            ));
        }
        _ => {
            let advice =
                "leave it out, and write rows with messages, prompt and completion, or text".to_owned();
            return Err((format!("'{name}: {text}' of a data set is not supported"), advice));
        }
    }
    Ok(())
}

/// Returns true if the path of a data set is the name of a format, as in `path: json` with `data_files: rows.jsonl`.
fn is_loader(found: &Found) -> bool {
    let path = found.settings.first().and_then(|(_, path)| path.as_str());
    matches!(path, Some("json" | "csv" | "parquet" | "text"))
}

/// Returns whether a mapping says what rows of messages have anyway: OpenAI's names, or ShareGPT's.
fn is_known_mapping(value: &Value) -> bool {
    let pairs: Vec<(&str, &str)> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(ours, theirs)| Some((ours.as_str(), theirs.as_str()?)))
        .collect();
    let only = |known: [(&str, &str); 2]| {
        pairs.iter().all(|pair| {
            known.contains(pair) || pair.0 == pair.1 && !known.iter().any(|(ours, _)| ours == &pair.0)
        })
    };
    only([("role", "role"), ("content", "content")]) || only([("role", "from"), ("content", "value")])
}

fn is_of_assistant(value: &Value) -> bool {
    let roles = value.as_array().map_or(&[][..], Vec::as_slice);
    !roles.is_empty() && roles.iter().all(|role| matches!(role.as_str(), Some("assistant" | "gpt" | "model")))
}
