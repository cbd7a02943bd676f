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
        max_grad_norm: Some(0.0),
        weight_decay: Some(0.01),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
    let notes = notes.join("\n");
    assert!(
        notes.ends_with("has mlx-lm's default values: no limit of gradients, weight_decay: 0.01"),
        "{notes}"
    );
    for part in ["'val_batches': is not used", "warmup_init is not used", "until the run ends"] {
        assert!(notes.contains(part), "{notes}");
    }
}

#[test]
fn what_a_file_of_mlx_lm_leaves_out_is_as_mlx_lm_has_it() {
    let Config { flags, notes } = yaml_of("model: m\ntrain: true\ndata: d\nlora_parameters: {rank: 16}\n");
    let expected = TrainFlags {
        model: Some("m".into()),
        data: Some("d".into()),
        train_on: Some("all".into()),
        iters: Some(1000),
        batch_size: Some(4),
        learning_rate: Some(1e-5),
        schedule: Some("constant".into()),
        warmup: Some(0),
        num_layers: Some(16),
        rank: Some(16),
        alpha: Some(320.0),
        max_length: Some(2048),
        max_grad_norm: Some(0.0),
        eval_every: Some(200),
        report_every: Some(10),
        save_every: Some(100),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
    assert!(
        notes[0].contains("default values: mask_prompt: false, iters: 1000")
            && notes[0].contains("scale: 20"),
        "{notes:?}"
    );
    assert!(notes[1].contains("set mask_prompt to true to train the answers only"), "{notes:?}");
    // A file with a key of metal-candle, or with keys of all tools only, is not taken for one of mlx-lm.
    for text in ["iters: 10\nrank: 4\n", "model: m\nlearning_rate: 1e-4\n", "num_layers: 4\nlora_alpha: 8\n"]
    {
        let Config { flags, notes } = yaml_of(text);
        assert_eq!((flags.train_on, flags.batch_size, notes.len()), (None, None, 0), "{text}");
    }
    assert_eq!(read_as("toml", "iters = 10\nnum-layers = 4\n").unwrap().flags.batch_size, None);
    let masked = yaml_of(
        "mask_prompt: true\nnum_layers: -1\nlr_schedule: {name: cosine_decay, arguments: [1e-4, 1000]}\n",
    );
    assert_eq!(masked.flags.train_on.as_deref(), Some("completion"));
    assert_eq!((masked.flags.num_layers, masked.flags.schedule.as_deref()), (Some(-1), Some("cosine")));
    assert_eq!(masked.notes.len(), 1, "{:?}", masked.notes);
}

#[test]
fn columns_and_splits_of_mlx_lm_are_ours() {
    let of = |text: &str| {
        let flags = yaml_of(text).flags;
        (flags.data, flags.columns, flags.split)
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(of("prompt_feature: q\ncompletion_feature: a\n"), (None, some("prompt=q,completion=a"), None));
    assert_eq!(of("completion_feature: a\n"), (None, some("prompt=prompt,completion=a"), None));
    let hub = "hf_dataset:\n  path: org/set\n  train_split: train_sft\n  chat_feature: turns\n";
    assert_eq!(of(hub), (some("org/set"), some("messages=turns"), some("train_sft")));
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
        valid_size: Some(0.0),
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

/// Every key is a setting, or its name is in a note.
fn expect_all(text: &str, expected: TrainFlags, noted: &[&str]) {
    let Config { flags, notes } = yaml_of(text);
    assert_eq!(flags, expected, "{text}");
    for key in noted {
        assert!(notes.iter().any(|note| note.contains(&format!("'{key}'"))), "{key}: {notes:#?}");
    }
    assert_eq!(notes.len(), noted.len(), "{notes:#?}");
}

#[test]
fn data_sets_of_axolotl_name_columns_splits_and_sizes() {
    let expected = |columns: Option<&str>, split: Option<&str>, data: &str| TrainFlags {
        data: Some(data.into()),
        columns: columns.map(str::to_owned),
        split: split.map(str::to_owned),
        valid_size: Some(0.05),
        ..TrainFlags::default()
    };
    let text = |entry: &str| format!("val_set_size: 0.05\ndatasets:\n  - path: org/set\n{entry}");
    expect_all(
        &text(
            "    type: chat_template\n    field_messages: conversations\n    message_property_mappings: {role: from, content: value}\n",
        ),
        expected(None, None, "org/set"),
        &["datasets"],
    );
    expect_all(
        &text(
            "    name: main\n    split: train_sft\n    type: completion\n    field: body\n    train_on_eos: turn\n",
        ),
        expected(Some("text=body"), Some("train_sft"), "org/set/main"),
        &["datasets"],
    );
    expect_all(
        &text(
            "    field_messages: chat\n    roles_to_train: [assistant]\n    message_property_mappings: {role: role, content: content}\n",
        ),
        expected(Some("messages=chat"), None, "org/set"),
        &[],
    );
    for (entry, cause) in [
        (
            "    roles_to_train: [assistant, user]\n",
            "'roles_to_train: [\"assistant\",\"user\"]' of a data set is not supported",
        ),
        ("    message_property_mappings: {role: who, content: what}\n", "of a data set is not supported"),
        ("    train_on_eos: all\n", "'train_on_eos: all' of a data set is not supported"),
        (
            "    type: {field_instruction: q, format: '{instruction}'}\n",
            "a format of one's own is not supported",
        ),
    ] {
        let failure = read_as("yaml", &text(entry)).unwrap_err();
        assert!(
            failure.cause.contains("(line 2): 'datasets': ") && failure.cause.contains(cause),
            "{failure:?}"
        );
    }
}

#[test]
fn common_keys_of_transformers_trl_and_llama_factory_are_used_or_reported() {
    expect_all(
        "model_name_or_path: m\ndataset_name: d\nmax_steps: -1\nnum_train_epochs: 2\ngroup_by_length: true\n\
         eval_strategy: 'no'\nsave_strategy: epoch\nbf16: true\nload_in_4bit: true\nuse_peft: true\nlora_r: 4\n\
         gradient_accumulation_steps: 4\npacking: true\ndataset_text_field: body\nassistant_only_loss: true\n\
         dataset_train_split: train_sft\nmodel_revision: main\nlr_scheduler_kwargs: {}\nlogging_first_step: true\n",
        TrainFlags {
            model: Some("m".into()),
            data: Some("d".into()),
            epochs: Some(2.0),
            eval_every: Some(0),
            dtype: Some("bf16".into()),
            rank: Some(4),
            accumulation: Some(4),
            columns: Some("text=body".into()),
            train_on: Some("completion".into()),
            split: Some("train_sft".into()),
            ..TrainFlags::default()
        },
        &["group_by_length", "save_strategy", "load_in_4bit", "packing", "logging_first_step"],
    );
    expect_all(
        "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\n\
         dataset: d\ncutoff_len: 2048\npreprocessing_num_workers: 16\noutput_dir: o\nplot_loss: true\n\
         overwrite_output_dir: true\nsave_only_model: false\nreport_to: none\npure_bf16: true\nddp_timeout: 180\n\
         resume_from_checkpoint: null\nval_size: 0.1\neval_strategy: steps\neval_steps: 500\nenable_thinking: false\n",
        TrainFlags {
            model: Some("m".into()),
            rank: Some(8),
            targets: Some("all".into()),
            data: Some("d".into()),
            max_length: Some(2048),
            out: Some("o".into()),
            dtype: Some("bf16".into()),
            valid_size: Some(0.1),
            eval_every: Some(500),
            template_var: Some(vec!["enable_thinking=false".into()]),
            ..TrainFlags::default()
        },
        &["preprocessing_num_workers", "plot_loss", "overwrite_output_dir", "ddp_timeout"],
    );
    expect_all(
        "base_model: m\nplugins:\n  - axolotl.integrations.liger.LigerPlugin\nliger_rope: true\neot_tokens: [<|im_end|>]\n\
         special_tokens: {pad_token: <|end|>}\nexcess_length_strategy: drop\nsample_packing: true\n",
        TrainFlags { model: Some("m".into()), ..TrainFlags::default() },
        &[
            "plugins",
            "liger_rope",
            "eot_tokens",
            "special_tokens",
            "excess_length_strategy",
            "sample_packing",
        ],
    );
    for (text, cause) in [
        ("max_samples: 1000", "'max_samples': 1000 is not supported"),
        ("special_tokens: {eos_token: <|x|>}", "eos_token: \"<|x|>\" is not supported"),
        ("plugins: [my.Plugin]", "'my.Plugin' is not supported"),
        ("model_revision: v2", "'model_revision': v2 is not supported"),
        ("completion_only_loss: maybe", "must be true or false"),
        ("val_set_size: lots", "'val_set_size': invalid type"),
    ] {
        let failure = read_as("yaml", text).unwrap_err();
        assert!(failure.cause.contains(cause), "{failure:?}");
    }
}

/// A table was taken for the adapter `rank=8`, since llama.cpp's `--lora` names one.
#[test]
fn groups_of_settings_are_read_as_their_settings() {
    let text = "steps = 5\n[lora]\nrank = 8\nlora_alpha = 16\ntarget_modules = [\"q_proj\"]\n[training]\nlr = 1e-4\n\
                [training.schedule]\nwarmup_steps = 3\n[rank_pattern]\nk_proj = 2\n";
    let flags = read_as("toml", text).unwrap().flags;
    let expected = TrainFlags {
        steps: Some(5),
        rank: Some(8),
        alpha: Some(16.0),
        targets: Some("q_proj".into()),
        learning_rate: Some(1e-4),
        warmup: Some(3),
        rank_pattern: Some("k_proj=2".into()),
        ..TrainFlags::default()
    };
    assert_eq!(flags, expected);
    assert_eq!(yaml_of("lora:\n  r: 4\n").flags.rank, Some(4));
    for (text, cause, advice) in [
        ("[lora]\nrank = 8\nrnak = 9\n", "(line 3): 'rnak': is not a setting", "did you mean 'rank'?"),
        ("rank = 4\n[lora]\nr = 8\n", "(line 1): 'rank': says 4 about rank, but 'r' says 8", "keep one"),
        ("[rank_patern]\nq_proj = 8\n", "(line 1): 'rank_patern': is not a setting", "'rank-pattern'"),
        ("rank = 4\nrank = 5\n", "(line 2): 'rank' is given twice", "keep one of them"),
        ("[lora]\nrank = 4\n[lora]\nrank = 5\n", "(line 3): 'lora' is given twice", "keep one of them"),
    ] {
        let failure = read_as("toml", text).expect_err(text);
        assert!(failure.cause.contains(cause) && failure.advice.contains(advice), "{text}\n{failure:?}");
    }
}

#[test]
fn files_of_rows_and_homes_are_named_in_every_form() {
    let data = |text: &str| yaml_of(text).flags.data;
    for text in [
        "data_files: a.jsonl",
        "data_files: [a.jsonl]",
        "data_files: {train: [a.jsonl]}",
        "datasets: [{path: json, data_files: a.jsonl}]",
        "datasets:\n  - path: json\n    data_files:\n      - a.jsonl\n    ds_type: json\n",
    ] {
        assert_eq!(data(text).as_deref(), Some("a.jsonl"), "{text}");
    }
    let refused = |text: &str| read_as("yaml", text).unwrap_err();
    assert!(refused("data_files: [a.jsonl, b.jsonl]").cause.contains("names 2 files, of which one is read"));
    assert!(refused("datasets: [{path: a/b, data_files: a.jsonl}]").cause.contains("'data_files: a.jsonl'"));
    let part = refused("split: train[:50%]");
    assert!(part.cause.contains("(line 1): 'split': 'train[:50%]' is not a single split"), "{part:?}");
    // A shell would have expanded them.
    let home = dirs::home_dir().unwrap();
    let flags = yaml_of("model: ~/m\ndata: ~/d\nout: ~/o\nadapter: ~/a\n").flags;
    let inside = |name: &str| home.join(name).display().to_string();
    assert_eq!((flags.model, flags.data), (Some(inside("m")), Some(inside("d"))));
    assert_eq!((flags.out, flags.adapter), (Some(home.join("o")), Some(home.join("a"))));
    assert_eq!(yaml_of("lora_task_type: CAUSAL_LM\n").flags, TrainFlags::default());
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
        ("hf_dataset: [{path: x}]", "'hf_dataset': is not one data set", "data: org/name"),
        (
            "hf_dataset: {path: x, train_split: 'train[:10]'}",
            "'train_split: train[:10]' below it",
            "data: org/name",
        ),
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
        ("device: rocm", "'device': this build has no backend for 'rocm'", "metal"),
        ("rnak: 4", "'rnak': is not a setting", "did you mean 'rank'?"),
        ("n_gpu_layers: 4", "is not a setting here, though llama.cpp has it", "--device"),
        ("- a\n- b", "has no keys at its top level", "key: value"),
        ("rank: 4\nrank: 5", "(line 2): 'rank' is given twice", "keep one of them"),
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
                2 => text = format!("{}{}{}", &text[..end], &text[start..end], &text[end..]),
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
