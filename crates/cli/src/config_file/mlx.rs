//! Keys of mlx-lm's `lora_config.yaml` that are not a flag of ours by another name.

use serde_json::{Map, Value};

use super::keys::plain;
use super::{Found, Refusal};

const KEYS: [&str; 19] = [
    "train",
    "test",
    "test-batches",
    "val-batches",
    "fine-tune-type",
    "training-mode",
    "train-type",
    "optimizer",
    "optimizer-config",
    "lora-parameters",
    "lr-schedule",
    "hf-dataset",
    "resume-adapter-file",
    "mask-prompt",
    "config",
    "chat-feature",
    "prompt-feature",
    "completion-feature",
    "text-feature",
];

/// Names of AdamW among the optimizers of other tools; those of few bits keep their state in f32 here.
const ADAMW: [&str; 13] = [
    "adam",
    "adamw",
    "adamw_hf",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_apex_fused",
    "adamw_anyprecision",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "adamw_torch_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw",
];

/// Keys of mlx-lm that other tools and this one have, too.
const SHARED: [&str; 15] = [
    "model",
    "data",
    "train",
    "test",
    "seed",
    "optimizer",
    "batch-size",
    "learning-rate",
    "save-every",
    "grad-checkpoint",
    "max-seq-length",
    "report-to",
    "project-name",
    "wandb",
    "trust-remote-code",
];

/// Keys that only mlx-lm has, beside those of [`KEYS`].
const OWN: [&str; 8] = [
    "iters",
    "num-layers",
    "lora-layers",
    "steps-per-report",
    "steps-per-eval",
    "adapter-path",
    "grad-accumulation-steps",
    "clear-cache-threshold",
];

/// Returns whether a file is mlx-lm's own: it has keys that only mlx-lm has, and no others but shared ones.
pub(crate) fn is_own(all: &Map<String, Value>) -> bool {
    let is_shared = |name: &String| SHARED.contains(&name.as_str());
    let is_own = |name: &String| !is_shared(name) && (applies(name) || OWN.contains(&name.as_str()));
    let names: Vec<String> = all.keys().map(|key| key.replace('_', "-")).collect();
    names.iter().any(is_own) && names.iter().all(|name| is_own(name) || is_shared(name))
}

/// The defaults of mlx-lm that differ from those of this tool: the key and value in its words, and our setting.
pub(crate) fn defaults(
    all: &Map<String, Value>,
    rank: Option<usize>,
) -> Vec<(&'static str, &'static str, Value)> {
    let mut found = vec![
        ("mask_prompt: false", "train-on", "all".into()),
        ("iters: 1000", "iters", 1000.into()),
        ("batch_size: 4", "batch-size", 4.into()),
        ("learning_rate: 1e-5", "learning-rate", 1e-5.into()),
        ("a constant rate", "schedule", "constant".into()),
        ("no warm-up", "warmup", 0.into()),
        ("num_layers: 16", "num-layers", 16.into()),
        ("scale: 20", "alpha", (20 * rank.unwrap_or(8)).into()),
        ("max_seq_length: 2048", "max-length", 2048.into()),
        ("no limit of gradients", "max-grad-norm", 0.into()),
        ("steps_per_eval: 200", "eval-every", 200.into()),
        ("steps_per_report: 10", "report-every", 10.into()),
        ("save_every: 100", "save-every", 100.into()),
    ];
    if all.get("optimizer").map(plain).is_some_and(|name| name.eq_ignore_ascii_case("adamw")) {
        found.push(("weight_decay: 0.01", "weight-decay", 0.01.into()));
    }
    found
}

/// Returns whether a key is read here.
pub(crate) fn applies(name: &str) -> bool {
    KEYS.contains(&name) || name == "optim"
}

/// Reads a key.
pub(crate) fn read(name: &str, value: &Value, all: &Map<String, Value>) -> Result<Found, Refusal> {
    let refuse = |cause: String, advice: &str| Err((cause, advice.to_owned()));
    let text = plain(value);
    match name {
        "train" if text == "true" => Ok(Found::nothing()),
        "train" => refuse("must be true for training".to_owned(), "for evaluation use `metal-candle eval`"),
        "test" if text == "false" => Ok(Found::nothing()),
        "test" => refuse(
            "is not done by `train`".to_owned(),
            "set it to false, and run `metal-candle eval --data DATA/test.jsonl --adapter OUT` afterwards",
        ),
        "test-batches" if all.get("test").and_then(Value::as_bool) != Some(true) => Ok(Found::nothing()),
        "test-batches" => Ok(Found::note("is not used: `metal-candle eval` evaluates all of its data")),
        "val-batches" if text == "-1" => Ok(Found::nothing()),
        "val-batches" => Ok(Found::note("is not used: the whole validation set is evaluated")),
        "fine-tune-type" | "train-type" if text.eq_ignore_ascii_case("lora") => Ok(Found::nothing()),
        "fine-tune-type" | "train-type" => {
            refuse(format!("'{text}' is not supported"), "only lora is trained")
        }
        "training-mode" if matches!(text.as_str(), "normal" | "sft") => Ok(Found::nothing()),
        "training-mode" => refuse(
            format!("'{text}' is not supported"),
            "only supervised fine-tuning is implemented: leave the key out",
        ),
        "optimizer" | "optim" => optimizer(&text),
        "optimizer-config" => optimizer_config(value, all),
        "lora-parameters" => lora_parameters(value),
        "lr-schedule" => schedule(value, all),
        "hf-dataset" => hub_data_set(value),
        "chat-feature" | "prompt-feature" | "completion-feature" | "text-feature" => {
            Ok(Found { settings: columns(all).into_iter().collect(), note: None })
        }
        "resume-adapter-file" => Ok(Found::setting("adapter", folder_of(&text))),
        "mask-prompt" => match value {
            Value::Bool(true) => Ok(Found::setting("train-on", "completion")),
            Value::Bool(false) => Ok(Found::setting("train-on", "all")),
            _ => refuse("must be true or false".to_owned(), "correct that value"),
        },
        _ => Ok(Found::note("is not used: one file is read")),
    }
}

/// Names of columns, as one setting.
fn columns(entries: &Map<String, Value>) -> Option<(&'static str, Value)> {
    let named = |ours: &str, key: &str| Some(format!("{ours}={}", entries.get(key)?.as_str()?));
    let pair = match (named("prompt", "prompt_feature"), named("completion", "completion_feature")) {
        (None, None) => None,
        (prompt, completion) => Some(format!(
            "{},{}",
            prompt.unwrap_or_else(|| "prompt=prompt".to_owned()),
            completion.unwrap_or_else(|| "completion=completion".to_owned())
        )),
    };
    let columns =
        pair.or_else(|| named("messages", "chat_feature")).or_else(|| named("text", "text_feature"))?;
    Some(("columns", columns.into()))
}

/// A data set of the hub, with its split and columns.
fn hub_data_set(value: &Value) -> Result<Found, Refusal> {
    let advice =
        || "name the data set with `data: org/name`, or put its rows as JSON lines into a folder".to_owned();
    let Some(entries) = value.as_object() else {
        return Err(("is not one data set with keys of its own".to_owned(), advice()));
    };
    let Some(path) = entries.get("path").and_then(Value::as_str) else {
        return Err(("has no path".to_owned(), advice()));
    };
    let mut found = Found::setting("data", path);
    found.settings.extend(columns(entries));
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "path" | "chat_feature" | "prompt_feature" | "completion_feature" | "text_feature" => {}
            "train_split" if value == "train" => {}
            "train_split" if value.as_str().is_some_and(|split| !split.contains(['[', '+'])) => {
                found.settings.push(("split", value.clone()));
            }
            "valid_split" | "test_split" => {
                found.note = Some(format!("{name} is not used: the data set's validation and test rows are"));
            }
            _ => return Err((format!("'{name}: {}' below it is not supported", plain(value)), advice())),
        }
    }
    Ok(found)
}

/// mlx-lm names the file of tensors, PEFT its folder.
fn folder_of(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, file)) if file.ends_with(".safetensors") => folder.to_owned(),
        None if path.ends_with(".safetensors") => ".".to_owned(),
        _ => path.to_owned(),
    }
}

fn optimizer(text: &str) -> Result<Found, Refusal> {
    let word = text.to_ascii_lowercase();
    if !ADAMW.contains(&word.as_str()) {
        return Err((
            format!("'{text}' is not supported"),
            "the optimizer is AdamW: leave the key out".to_owned(),
        ));
    }
    if word.contains("8bit") {
        return Ok(Found::note(format!("'{text}' is AdamW with its state in f32 here")));
    }
    Ok(Found::nothing())
}

fn optimizer_config(value: &Value, all: &Map<String, Value>) -> Result<Found, Refusal> {
    let chosen = all.get("optimizer").map_or_else(|| "adam".to_owned(), plain).to_ascii_lowercase();
    let Some(options) = value.get(&chosen).and_then(Value::as_object) else { return Ok(Found::nothing()) };
    let mut found = Found::nothing();
    for (name, value) in options {
        let text = plain(value);
        let number = text.parse::<f64>().ok();
        match name.as_str() {
            "weight_decay" => found.settings.push(("weight-decay", value.clone())),
            "betas" if *value == serde_json::json!([0.9, 0.999]) => {}
            "eps" if number == Some(1e-8) => {}
            "bias_correction" if text == "true" => {}
            "bias_correction" => {
                found.note =
                    Some("bias_correction is not used: AdamW corrects the bias of its means".to_owned());
            }
            _ => {
                let advice = "betas are 0.9 and 0.999, eps is 1e-8: leave the key out, or set them to these";
                return Err((format!("{chosen}.{name}: {text} is not supported"), advice.to_owned()));
            }
        }
    }
    Ok(found)
}

fn lora_parameters(value: &Value) -> Result<Found, Refusal> {
    let Some(entries) = value.as_object() else {
        let advice = "write rank, scale, dropout and keys below it";
        return Err(("must contain keys of its own".to_owned(), advice.to_owned()));
    };
    // mlx-lm's default.
    let rank = entries.get("rank").and_then(Value::as_f64).unwrap_or(8.0);
    let mut found = Found::nothing();
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "rank" => found.settings.push(("rank", value.clone())),
            "dropout" => found.settings.push(("dropout", value.clone())),
            "keys" => found.settings.push(("targets", value.clone())),
            // mlx-lm multiplies by the scale itself, which is alpha / rank here.
            "scale" => {
                let scale = plain(value).parse::<f64>();
                let scale = scale.map_err(|_| {
                    (format!("scale: {value} is not a number"), "correct that value".to_owned())
                })?;
                found.settings.push(("alpha", (scale * rank).into()));
            }
            "alpha" if entries.contains_key("scale") => {
                found.note = Some("alpha is not used: mlx-lm takes the scale".to_owned());
            }
            "alpha" => found.settings.push(("alpha", value.clone())),
            _ => {
                let advice = "its keys are rank, scale, dropout and keys".to_owned();
                return Err((format!("'{name}' below it is not supported"), advice));
            }
        }
    }
    Ok(found)
}

/// `name`, `warmup`, `warmup_init` and the arguments of MLX's schedules.
fn schedule(value: &Value, all: &Map<String, Value>) -> Result<Found, Refusal> {
    let name = value.get("name").map(plain).unwrap_or_default();
    let arguments: Vec<f64> = value
        .get("arguments")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|item| plain(item).parse().ok()).collect())
        .unwrap_or_default();
    let mut found = Found::nothing();
    let mut notes = Vec::new();
    let decay = match (name.as_str(), arguments.as_slice()) {
        ("cosine_decay", [from, steps, rest @ ..]) => {
            found.settings.push(("schedule", "cosine".into()));
            found.settings.push(("learning-rate", (*from).into()));
            found.settings.push(("min-learning-rate", rest.first().copied().unwrap_or(0.0).into()));
            *steps
        }
        ("linear_schedule", [from, to, steps]) => {
            found.settings.push(("schedule", "linear".into()));
            found.settings.push(("learning-rate", (*from).into()));
            found.settings.push(("min-learning-rate", (*to).into()));
            *steps
        }
        ("cosine_decay" | "linear_schedule", _) => {
            let advice =
                "cosine_decay takes [rate, steps, final rate], linear_schedule [rate, final rate, steps]";
            return Err((format!("the arguments of {name} are not complete"), advice.to_owned()));
        }
        _ => {
            let advice = "use cosine_decay or linear_schedule, or leave it out for a schedule of --schedule";
            return Err((format!("'{name}' is not supported"), advice.to_owned()));
        }
    };
    // The rate of the schedule is the one that mlx-lm uses beside `learning_rate`.
    if let Some(rate) = all.get("learning_rate").map(plain).and_then(|text| text.parse::<f64>().ok())
        && found.settings.iter().any(|(name, value)| *name == "learning-rate" && value.as_f64() != Some(rate))
    {
        return Err((
            format!("its rate differs from learning_rate, {rate}"),
            "mlx-lm uses the schedule's: make both the same".to_owned(),
        ));
    }
    let warmup = value.get("warmup").and_then(Value::as_u64).unwrap_or(0);
    found.settings.push(("warmup", warmup.into()));
    if value
        .get("warmup_init")
        .map(plain)
        .and_then(|text| text.parse::<f64>().ok())
        .is_some_and(|rate| rate != 0.0)
    {
        notes.push(
            "warmup_init is not used: the first step has the rate divided by the warm-up's steps".to_owned(),
        );
    }
    let run = all.get("iters").and_then(Value::as_f64).map(|iters| iters - warmup as f64);
    if run.is_some_and(|run| run != decay) {
        notes.push(format!("the rate falls until the run ends, not for {decay} steps after the warm-up"));
    }
    found.note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(found)
}
