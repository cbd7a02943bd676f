//! Keys of transformers, PEFT and LLaMA-Factory, as they appear in YAML files of training runs, that are not a flag of ours
//! by another name.

use serde_json::Value;

use super::{Found, Refusal};

/// Meaning of a key.
pub(crate) enum Key {
    /// It changes nothing that is computed here; the reason is reported.
    Unused(&'static str),
    /// Only these values are what is done anyway; any other is refused with the advice.
    Only(&'static [&'static str], &'static str),
    /// true sets one of our settings to this word.
    Switch(&'static str, &'static str),
    /// true trains answers only if this is true, and everything if it is not; false the other way.
    Answers(bool),
    /// When something is done; its steps are one of our settings, which "no" sets to 0.
    Strategy(&'static str),
    /// The name of one of our columns.
    Column(&'static str),
    /// The split to train on.
    Split,
    /// The file of rows: its path, or a list of this one.
    File,
    /// Variables of the chat template: an object of them, or the value of the one with the key's name.
    Variables,
}

/// Finds a key, written with hyphens.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|(names, _)| names.contains(&name)).map(|(_, key)| key)
}

impl Key {
    /// Reads the key's value.
    pub(crate) fn read(&self, name: &str, value: &Value) -> Result<Found, Refusal> {
        let text = plain(value);
        match self {
            Self::Unused(_) if matches!(text.as_str(), "false" | "" | "none" | "[]" | "{}") => {
                Ok(Found::nothing())
            }
            Self::Unused(reason) => Ok(Found::note(format!("is not used: {reason}"))),
            Self::Only(allowed, advice) => {
                if allowed.iter().any(|allowed| same(allowed, &text)) {
                    return Ok(Found::nothing());
                }
                Err((format!("{text} is not supported"), (*advice).to_owned()))
            }
            Self::Switch(setting, word) => match value {
                Value::Bool(true) => Ok(Found::setting(setting, *word)),
                Value::Bool(false) => Ok(Found::nothing()),
                // axolotl leaves it to the hardware.
                Value::String(auto) if auto == "auto" => Ok(Found::note(format!(
                    "is not used: the default is {setting} f32; for {word} set it to true"
                ))),
                _ => Err(must_be_flag(name)),
            },
            Self::Answers(answers) => match value.as_bool() {
                Some(flag) => {
                    Ok(Found::setting("train-on", if flag == *answers { "completion" } else { "all" }))
                }
                None => Err(must_be_flag(name)),
            },
            Self::Strategy(setting) => match text.as_str() {
                "steps" => Ok(Found::nothing()),
                "no" => Ok(Found::setting(setting, 0)),
                _ => Ok(Found::note(format!("is not used: {STEPS}"))),
            },
            Self::Column(ours) if text == *ours => Ok(Found::nothing()),
            Self::Column(ours) => Ok(Found::setting("columns", format!("{ours}={text}"))),
            Self::Split if text == "train" => Ok(Found::nothing()),
            Self::Split => Ok(Found::setting("split", text)),
            Self::File => one_file(value).map(|file| Found::setting("data", file)),
            Self::Variables => Ok(Found::setting("template-var", variables(name, value))),
        }
    }
}

/// The one file of rows that a value names.
pub(crate) fn one_file(value: &Value) -> Result<Value, Refusal> {
    let files = match value {
        Value::Array(files) => files.iter().collect(),
        Value::Object(splits) => splits.values().collect(),
        other => vec![other],
    };
    match files.as_slice() {
        [Value::String(file)] => Ok(Value::from(file.clone())),
        [inner @ Value::Array(_)] => one_file(inner),
        _ => Err((
            format!("names {} files, of which one is read", files.len()),
            "put train.jsonl, valid.jsonl and test.jsonl into one folder, and name it with `data: FOLDER`"
                .to_owned(),
        )),
    }
}

fn must_be_flag(name: &str) -> Refusal {
    (format!("'{name}' must be true or false"), "correct that value".to_owned())
}

/// `NAME=JSON` for each variable.
fn variables(name: &str, value: &Value) -> Vec<String> {
    match value.as_object() {
        Some(entries) => entries.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        None => vec![format!("{}={value}", name.replace('-', "_"))],
    }
}

/// A value without the quotes of JSON.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns whether two values are the same text or number.
fn same(allowed: &str, text: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    allowed.eq_ignore_ascii_case(text) || number(allowed).is_some_and(|n| number(text) == Some(n))
}

const LOGS: &str = "OUT/metrics.jsonl has one JSON object for each report";
const MEMORY: &str = "weights stay as they are loaded; `dtype: bf16` halves their memory";
const ALWAYS: &str = "attention and batches have one implementation each";
const HUB: &str = "nothing is uploaded; the output folder's files are PEFT's";
const STEPS: &str = "set the number of steps with eval_steps and save_steps";
const LORA: &str = "only LoRA is trained: leave the key out";
const DEVICE: &str = "one device is used, that of the key 'device'";
const LATER: &str = "it is not implemented: leave the key out";
const ONE_FILE: &str = "put the rows to be used into one file, and leave the key out";

/// All keys, by what becomes of them.
static KEYS: &[(&[&str], Key)] = &[
    (&["task-type", "lora-task-type"], Key::Only(&["CAUSAL_LM"], "only language models are trained")),
    (&["peft-type", "finetuning-type"], Key::Only(&["LORA"], LORA)),
    (&["stage"], Key::Only(&["sft"], "only supervised fine-tuning is implemented")),
    (&["do-train"], Key::Only(&["true"], "for evaluation use `metal-candle eval`")),
    (&["bias"], Key::Only(&["none"], "biases are not trained: leave the key out")),
    (&["use-dora", "peft-use-dora", "lora-bias"], Key::Only(&["false"], LORA)),
    (
        &["modules-to-save", "lora-modules-to-save", "trainable-token-indices"],
        Key::Only(&["[]"], "whole modules are not trained: leave the key out"),
    ),
    (&["fan-in-fan-out", "lora-fan-in-fan-out", "inference-mode"], Key::Only(&["false"], LORA)),
    (
        &["init-lora-weights"],
        Key::Only(&["true"], "A starts as PEFT's default has it, B with zeros: leave the key out"),
    ),
    (
        &["neftune-noise-alpha", "noisy-embedding-alpha", "label-smoothing-factor"],
        Key::Only(&["0"], "it is not implemented: leave the key out"),
    ),
    (&["adam-beta1"], Key::Only(&["0.9"], "it is 0.9: leave the key out")),
    (&["adam-beta2"], Key::Only(&["0.999"], "it is 0.999: leave the key out")),
    (&["adam-epsilon"], Key::Only(&["1e-8"], "it is 1e-8: leave the key out")),
    (&["loraplus-lr-ratio", "loraplus-lr-embedding", "embedding-lr"], Key::Only(&[], LORA)),
    (
        &["rl", "reward-model", "process-reward-model"],
        Key::Only(&["false", ""], "only supervised fine-tuning is implemented"),
    ),
    (
        &[
            "unfrozen-parameters",
            "relora-steps",
            "relora",
            "tokens",
            "added-tokens-overrides",
            "new-special-tokens",
        ],
        Key::Only(&["[]", "{}", ""], LATER),
    ),
    (
        &[
            "pissa-init",
            "resize-vocab",
            "mask-history",
            "curriculum-sampling",
            "streaming",
            "use-dft-loss",
            "full-determinism",
        ],
        Key::Only(&["false"], LATER),
    ),
    (
        &["rope-scaling", "lr-scheduler-kwargs", "optim-args", "additional-target"],
        Key::Only(&["{}", ""], LATER),
    ),
    (&["cosine-min-lr-ratio"], Key::Only(&["0"], "use min_learning_rate, which is the rate itself")),
    (&["max-samples", "dataset-dir", "eval-dataset", "mix-strategy"], Key::Only(&[], ONE_FILE)),
    (&["dataset-exact-deduplication"], Key::Only(&["false"], ONE_FILE)),
    (
        &["do-predict", "predict-with-generate"],
        Key::Only(&["false"], "for evaluation use `metal-candle eval`"),
    ),
    (&["use-peft"], Key::Only(&["true"], LORA)),
    (&["model-revision"], Key::Only(&["main"], "name the revision with `model: org/name@revision`")),
    (&["eos-token"], Key::Only(&[], "the tokenizer's own token is used: change it in tokenizer_config.json")),
    (
        &["overwrite-output-dir", "overwrite"],
        Key::Unused("only the flag --overwrite replaces the run in a folder"),
    ),
    (&["pad-token"], Key::Unused("padding is masked")),
    (&["eot-tokens"], Key::Unused("the token that ends a turn is found in what the chat template writes")),
    (&["assistant-only-loss", "completion-only-loss"], Key::Answers(true)),
    (&["train-on-prompt"], Key::Answers(false)),
    (&["evaluation-strategy", "eval-strategy"], Key::Strategy("eval-every")),
    (&["save-strategy"], Key::Strategy("save-every")),
    (&["dataset-text-field"], Key::Column("text")),
    (&["dataset-train-split"], Key::Split),
    (&["data-files", "train-file", "train-files"], Key::File),
    (&["dataset-config"], Key::Only(&["default"], "name it with `data: org/name/CONFIGURATION`")),
    (&["dataset-test-split"], Key::Unused("validation uses the data's validation rows")),
    (&["chat-template-kwargs", "enable-thinking"], Key::Variables),
    (
        &["chat-template", "template"],
        Key::Only(&["tokenizer_default"], "the model's own chat template is used: leave the key out"),
    ),
    (
        &["resume-from-checkpoint", "auto-resume-from-checkpoints"],
        Key::Only(&["false"], "use --resume: it takes the newest checkpoint in the output folder"),
    ),
    (&["bf16", "pure-bf16"], Key::Switch("dtype", "bf16")),
    (&["fp16"], Key::Switch("dtype", "f16")),
    (
        &[
            "load-in-8bit",
            "load-in-4bit",
            "quantization-bit",
            "gptq",
            "gptq-groupsize",
            "gptq-model-v1",
            "bnb-config-kwargs",
            "quantization-method",
            "bnb-4bit-quant-type",
            "bnb-4bit-compute-dtype",
            "bnb-4bit-use-double-quant",
            "use-bnb-nested-quant",
        ],
        Key::Unused(MEMORY),
    ),
    (&["tf32", "low-cpu-mem-usage", "lora-on-cpu", "torch-compile"], Key::Unused(ALWAYS)),
    (
        &[
            "flash-attention",
            "flash-attn",
            "sdp-attention",
            "xformers-attention",
            "s2-attention",
            "eager-attention",
            "attn-implementation",
            "sample-packing",
            "eval-sample-packing",
            "multipack-real-batches",
            "packing",
            "pad-to-sequence-len",
            "group-by-length",
            "lora-mlp-kernel",
            "lora-qkv-kernel",
            "lora-o-kernel",
            "flash-optimum",
            "gradient-checkpointing-kwargs",
            "shuffle-merged-datasets",
            "shuffle-before-merging-datasets",
            "cut-cross-entropy",
            "neat-packing",
            "use-unsloth",
            "use-liger-kernel",
            "enable-liger-kernel",
            "liger-rope",
            "liger-rms-norm",
            "liger-glu-activation",
            "liger-layer-norm",
            "liger-fused-linear-cross-entropy",
            "auto-find-batch-size",
            "torchdistx-path",
        ],
        Key::Unused(ALWAYS),
    ),
    (
        &[
            "wandb",
            "wandb-project",
            "wandb-entity",
            "wandb-watch",
            "wandb-name",
            "wandb-run-id",
            "wandb-log-model",
            "wandb-mode",
            "mlflow-tracking-uri",
            "mlflow-experiment-name",
            "use-mlflow",
            "use-comet",
            "use-wandb",
            "report-to",
            "project-name",
            "run-name",
            "plot-loss",
            "logging-dir",
            "logging-strategy",
            "debug",
            "eval-table-size",
            "use-tensorboard",
            "logging-first-step",
            "log-level",
            "disable-tqdm",
            "include-tokens-per-second",
            "eval-causal-lm-metrics",
            "loss-watchdog-threshold",
            "loss-watchdog-patience",
        ],
        Key::Unused(LOGS),
    ),
    (
        &["hub-model-id", "hub-strategy", "push-to-hub", "push-dataset-to-hub", "hf-use-auth-token"],
        Key::Unused(HUB),
    ),
    (
        &[
            "evals-per-epoch",
            "saves-per-epoch",
            "eval-on-start",
            "save-first-step",
            "eval-max-new-tokens",
            "do-eval",
            "do-bench-eval",
        ],
        Key::Unused(STEPS),
    ),
    (
        &[
            "deepspeed",
            "fsdp",
            "fsdp-config",
            "fsdp-version",
            "local-rank",
            "ddp-timeout",
            "ddp-find-unused-parameters",
            "device-map",
            "gpu-memory-limit",
            "world-size",
        ],
        Key::Unused(DEVICE),
    ),
    (
        &[
            "model-type",
            "tokenizer-type",
            "tokenizer-use-fast",
            "tokenizer-legacy",
            "is-llama-derived-model",
            "is-mistral-derived-model",
            "is-falcon-derived-model",
            "is-qwen-derived-model",
            "trust-remote-code",
            "auto-mapping",
        ],
        Key::Unused("models are recognized by their config.json, and none of their code is run"),
    ),
    (
        &[
            "dataset-prepared-path",
            "dataset-processes",
            "dataset-num-proc",
            "dataloader-num-workers",
            "preprocessing-num-workers",
            "overwrite-cache",
            "remove-unused-columns",
            "dataset-keep-in-memory",
            "preprocess-iterations",
            "dataset-kwargs",
            "dataloader-drop-last",
            "dataloader-pin-memory",
            "dataloader-prefetch-factor",
        ],
        Key::Unused("rows become tokens when a run starts, which takes seconds"),
    ),
    (
        &[
            "save-safetensors",
            "save-only-model",
            "strict",
            "ddp",
            "load-best-model-at-end",
            "metric-for-best-model",
            "greater-is-better",
            "peft-version",
            "revision",
        ],
        Key::Unused("the best adapter is kept as safetensors in any case"),
    ),
    (
        &["eval-batch-size", "per-device-eval-batch-size"],
        Key::Unused("validation uses the batch size of training"),
    ),
    (&["clear-cache-threshold"], Key::Unused("memory is planned before the run")),
];
