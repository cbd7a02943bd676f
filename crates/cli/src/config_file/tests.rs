use super::*;

fn read_as(ending: &str, text: &str) -> Result<Config, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("run.{ending}"));
    std::fs::write(&path, text).unwrap();
    read(&path)
}

fn yaml_of(text: &str) -> Config {
    read_as("yaml", text).unwrap_or_else(|failure| panic!("{failure:?}\n{text}"))
}

/// The keys and values of the example that mlx-lm ships.
const MLX: &str = r#"
model: "mlx-community/Llama-3.2-1B-Instruct"
train: true
fine_tune_type: lora
training_mode: normal
optimizer: adamw
data: "my-data"
seed: 3
num_layers: 16
batch_size: 4
iters: 1000
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: "adapters"
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: true
mask_prompt: true
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 16
  scale: 20.0
  dropout: 0.05
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [1e-5, 1000, 1e-7]
"#;

#[test]
fn mlx_lms_example_is_read_as_it_is() {
    let Config { flags, notes } = yaml_of(MLX);
    let expected = TrainFlags {
        model: Some("mlx-community/Llama-3.2-1B-Instruct".into()),
        data: Some("my-data".into()),
        seed: Some(3),
        num_layers: Some(16),
        batch_size: Some(4),
        iters: Some(1000),
        learning_rate: Some(1e-5),
        report_every: Some(10),
        eval_every: Some(200),
        out: Some("adapters".into()),
        save_every: Some(100),
        max_length: Some(2048),
        grad_checkpoint: Some(true),
        train_on: Some("completion".into()),
        targets: Some("self_attn.q_proj,self_attn.v_proj".into()),
        rank: Some(16),
        alpha: Some(320.0),
        dropout: Some(0.05),
        schedule: Some("cosine".into()),
        warmup: Some(100),
        min_learning_rate: Some(1e-7),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
    let notes = notes.join("\n");
    for part in ["'val_batches': is not used", "warmup_init is not used", "until the run ends"] {
        assert!(notes.contains(part), "{notes}");
    }
}

const AXOLOTL: &str = r#"
base_model: org/base
model_type: LlamaForCausalLM
load_in_8bit: true
load_in_4bit: false
datasets:
  - path: my-data
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0
output_dir: ./outputs/lora-out
adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
bf16: true
tf32: false
gradient_checkpointing: true
early_stopping_patience:
logging_steps: 1
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
"#;

#[test]
fn axolotls_keys_are_used_or_reported() {
    let Config { flags, notes } = yaml_of(AXOLOTL);
    let expected = TrainFlags {
        model: Some("org/base".into()),
        data: Some("my-data".into()),
        out: Some("./outputs/lora-out".into()),
        max_length: Some(2048),
        rank: Some(32),
        alpha: Some(16.0),
        dropout: Some(0.05),
        targets: Some("all-linear".into()),
        accumulation: Some(4),
        batch_size: Some(2),
        epochs: Some(3.0),
        schedule: Some("cosine".into()),
        learning_rate: Some(2e-4),
        train_on: Some("completion".into()),
        dtype: Some("bf16".into()),
        grad_checkpoint: Some(true),
        report_every: Some(1),
        warmup_ratio: Some(0.1),
        weight_decay: Some(0.0),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
    let named = |key: &str| notes.iter().any(|note| note.contains(&format!("'{key}'")));
    for key in [
        "load_in_8bit",
        "model_type",
        "sample_packing",
        "optimizer",
        "flash_attention",
        "evals_per_epoch",
        "datasets",
    ] {
        assert!(named(key), "{key} is dropped without a word: {notes:#?}");
    }
    assert!(!named("wandb_project") && !named("load_in_4bit"), "nothing is said about nothing: {notes:#?}");
}

#[test]
fn keys_of_peft_and_transformers_mean_ours_in_toml_too() {
    let text = "r = 4\nlora_alpha = 8\ntarget_modules = [\"q_proj\", \"v_proj\"]\nuse_rslora = true\nmax_steps = 7\n\
                per_device_train_batch_size = 2\nlr_scheduler_type = \"constant_with_warmup\"\nlearning_rate = \"1e-4\"\n\
                rank_pattern = { down_proj = 2 }\nbias = \"none\"\n";
    let flags = read_as("toml", text).unwrap().flags;
    let expected = TrainFlags {
        rank: Some(4),
        alpha: Some(8.0),
        targets: Some("q_proj,v_proj".into()),
        rslora: Some(true),
        steps: Some(7),
        batch_size: Some(2),
        schedule: Some("constant".into()),
        learning_rate: Some(1e-4),
        rank_pattern: Some("down_proj=2".into()),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
}

#[test]
fn what_cannot_be_done_is_refused_by_name_and_line() {
    for (text, cause, advice) in [
        (
            "rank: 4\nfine_tune_type: dora",
            "(line 2): 'fine_tune_type': 'dora' is not supported",
            "only lora is trained",
        ),
        ("optimizer: adafactor", "'optimizer': 'adafactor' is not supported", "the optimizer is AdamW"),
        ("test: true", "'test': is not done by `train`", "metal-candle eval"),
        (
            "lora_parameters: {rank: 4, keys: [q], gamma: 2}",
            "'gamma' below it is not supported",
            "rank, scale",
        ),
        (
            "lr_schedule: {name: step_decay, arguments: [1e-4, 0.9, 10]}",
            "'step_decay' is not supported",
            "cosine_decay",
        ),
        (
            "learning_rate: 1e-4\nlr_schedule: {name: cosine_decay, arguments: [1e-5, 100]}",
            "its rate differs from learning_rate",
            "make both the same",
        ),
        (
            "optimizer: adamw\noptimizer_config: {adamw: {betas: [0.9, 0.95]}}",
            "adamw.betas",
            "betas are 0.9 and 0.999",
        ),
        ("hf_dataset: {path: x}", "'hf_dataset': is not read", "data: org/name"),
        ("val_set_size: 0.05", "'val_set_size': 0.05: no rows are split off", "valid.jsonl"),
        ("datasets: [{path: a}, {path: b}]", "lists 2 data sets", "one folder"),
        ("peft_use_dora: true", "'peft_use_dora': true is not supported", "only LoRA is trained"),
        ("rl: dpo", "'rl': dpo is not supported", "supervised"),
        ("neftune_noise_alpha: 5", "'neftune_noise_alpha': 5 is not supported", "leave the key out"),
        (
            "rank: 4\nlora_r: 8",
            "(line 2): 'lora_r': says 8 about rank, but 'rank' says 4",
            "keep one of them",
        ),
        ("steps: 4\niters: 8", "'steps' and 'iters' contradict each other", "keep one of them"),
        ("rank: -4", "'rank': invalid value: integer `-4`", "use a number from 0 on"),
        ("schedule: cosin", "'schedule': 'cosin' is unknown", "did you mean 'cosine'?"),
        ("device: cuda", "'device': this build has no backend for 'cuda'", "metal"),
        ("rnak: 4", "'rnak': is not a setting", "did you mean 'rank'?"),
        ("n_gpu_layers: 4", "is not a setting here, though llama.cpp has it", "--device"),
        ("- a\n- b", "has no keys at its top level", "key: value"),
        ("rank: 4\nrank: 5", "(line 2): is not valid YAML", "key: value"),
    ] {
        let failure = read_as("yaml", text).expect_err(text);
        assert!(failure.cause.contains(cause) && failure.advice.contains(advice), "{text}\n{failure:?}");
    }
    let failure = read_as("toml", "model: x\nrank: 4\n").unwrap_err();
    assert!(
        failure.cause.contains("(line 1): is not valid TOML") && failure.advice.contains(".yaml"),
        "{failure:?}"
    );
}

#[test]
fn values_that_are_what_is_done_anyway_say_nothing() {
    let text = "bias: none\nuse_dora: false\ntask_type: CAUSAL_LM\nadam_beta2: 0.999\nmodules_to_save: []\nval_batches: -1\n\
                load_in_4bit: false\nreport_to: none\nlora_parameters:\nrank: 4\nlora_r: 4\n";
    let Config { flags, notes } = yaml_of(text);
    assert_eq!(flags, TrainFlags { rank: Some(4), ..TrainFlags::default() });
    assert_eq!(notes, [] as [&str; 0]);
    let both = yaml_of("steps: 4\nepochs: 2\n").notes;
    assert!(both[0].ends_with("'epochs' is not used, because 'steps' is given too"), "{both:?}");
}

#[test]
fn an_empty_or_marked_file_is_read() {
    assert_eq!(yaml_of("").flags, TrainFlags::default());
    assert_eq!(yaml_of("\u{feff}rank: 4\r\nalpha: 8\r\n").flags.alpha, Some(8.0));
    assert_eq!(read_as("json", r#"{"rank": 4}"#).unwrap().flags.rank, Some(4));
    let folder = tempfile::tempdir().unwrap();
    assert!(read(folder.path()).unwrap_err().cause.ends_with("is a folder, not a configuration file"));
}

/// Settings come from other people's repositories, too. Whatever the text, it is read or refused.
#[test]
fn mutated_settings_are_read_or_refused() {
    const WORDS: [&str; 24] = [
        "-1",
        "0",
        "1e999",
        "nan",
        ".inf",
        "99999999999999999999",
        "null",
        "~",
        "true",
        "[]",
        "{}",
        "\"\"",
        "[[",
        "{a: ",
        "&a",
        "*a",
        "<<",
        "!!binary",
        "\n- ",
        "\n  ",
        ": ",
        "= ",
        "é\u{0}",
        "lora_parameters",
    ];
    const TOML: &str = "model = \"a/b\"\nrank = 16\nalpha = 32.0\ntargets = [\"q_proj\"]\nlearning-rate = 1e-4\nsteps = 10\n\
                        [lora_parameters]\nrank = 8\n";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    for round in 0..4000 {
        let (ending, seed) = [("yaml", MLX), ("toml", TOML), ("json", MLX)][round % 3];
        let mut text = seed.to_owned();
        for _ in 0..=random(4) {
            let mut place = || {
                let at = random(text.len() + 1);
                (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
            };
            let (a, b) = (place(), place());
            let (start, end) = (a.min(b), a.max(b));
            match random(4) {
                0 => text.insert_str(start, WORDS[random(WORDS.len())]),
                1 => {
                    let cut = (start..=end.min(start + 9)).rev().find(|at| text.is_char_boundary(*at));
                    text.replace_range(start..cut.unwrap_or(start), "");
                }
                2 => text.insert_str(start, &text[start..end].to_owned()),
                _ => {
                    let line = text[start..].find('\n').map_or(text.len(), |at| start + at);
                    text.replace_range(start..line, WORDS[random(WORDS.len())]);
                }
            }
        }
        let start = std::time::Instant::now();
        // A failure names the file, whose name is `run` with the ending.
        if let Err(failure) = read_as(ending, &text) {
            let shown = format!("{failure:?}");
            assert!(shown.contains(&format!("run.{ending}")), "{shown}\n{text}");
        }
        assert!(start.elapsed().as_secs() < 10, "{text}");
    }
}
