//! Keys of axolotl's YAML that are not a flag of ours by another name.

use serde_json::{Map, Value};

use super::keys::plain;
use super::{Found, Refusal};

/// Whether a key is read here. `adapter` is axolotl's where it names a kind of adapter, not a folder.
pub(crate) fn applies(name: &str, value: &Value, all: &Map<String, Value>) -> bool {
    match name {
        "adapter" => {
            matches!(value.as_str(), Some("lora" | "qlora" | "llama-adapter"))
                || all.contains_key("base_model")
        }
        "lora-target-linear" | "datasets" | "test-datasets" | "val-set-size" | "train-on-inputs" => true,
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
        ("val-set-size", "0" | "0.0") => Ok(Found::nothing()),
        ("val-set-size", _) => Err((
            format!("{text}: no rows are split off for validation"),
            "put a valid.jsonl beside train.jsonl and set val_set_size to 0".to_owned(),
        )),
        ("datasets", _) => datasets(value),
        _ => Err((
            "is not read".to_owned(),
            "put a valid.jsonl and a test.jsonl beside train.jsonl, and leave the key out".to_owned(),
        )),
    }
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
    let mut found = Found::setting("data", path);
    for (name, value) in entry.as_object().into_iter().flatten() {
        match name.as_str() {
            "path" => {}
            "type" | "ds_type" | "data_files" if value.is_null() => {}
            "type" | "ds_type" => {
                found.note = Some(format!("{name} is not used: rows are recognized by their columns"));
            }
            "split" if value == "train" => {}
            _ => {
                let advice =
                    "leave it out, and write rows with messages, prompt and completion, or text".to_owned();
                return Err((format!("'{name}' of a data set is not supported"), advice));
            }
        }
    }
    Ok(found)
}
