//! What new users type, with the flags, keys, commands and names of the tools that they know: message and exit code.

mod tiny_model;

use serde_json::Value;
use tiny_model::Bench;

/// A command line that must fail: words, exit code, part of the cause, part of the advice.
type Refused = (&'static str, i32, &'static str, &'static str);

const REFUSED: &[Refused] = &[
    // Numbers outside their range: a sentence about the range, whoever refuses them.
    ("train --seed -1", 3, "--seed: -1 is out of range", "from 0 to 18446744073709551615"),
    ("train --rank -4", 3, "--rank: -4 is out of range", "from 1"),
    ("train --rank 0", 3, "--rank: 0 is out of range", "from 1 to 16384; usually 4 to 64"),
    ("train --steps -5", 3, "--steps: -5 is out of range", "from 1"),
    ("train --steps 0", 3, "--steps: 0 is out of range", "from 1"),
    ("train --batch-size 2.5", 3, "--batch-size: 2.5 is not a whole number", "from 1"),
    ("train --learning-rate -1e-4", 3, "--learning-rate: -0.0001 is out of range", "above 0, up to 10"),
    ("train --dropout -0.1", 3, "--dropout: -0.1 is out of range", "from 0 to below 1"),
    ("train --weight-decay -1", 3, "--weight-decay: -1 is out of range", "from 0 to 10"),
    ("train --epochs -1", 3, "--epochs: -1 is out of range", "for one pass use 1"),
    ("train --warmup-ratio 2", 3, "--warmup-ratio: 2 is out of range", "from 0 to 1"),
    ("train --num-layers 99", 3, "num-layers: is 99, but the model has 2 layers", "-1 for all"),
    ("generate --prompt x --seed -1", 3, "--seed: -1 is out of range", "from 0"),
    ("generate --prompt x --max-tokens -1", 3, "--max-tokens: -1 is out of range", "from 1"),
    ("generate --prompt x --temp -1", 3, "--temperature: -1 is out of range", "from 0 to 100"),
    ("train --rank-pattern nosuch=4", 3, "rank pattern: 'nosuch' matches no adapted module", ""),
    ("train --exclude q_prj", 3, "excluded modules: 'q_prj' is no linear layer", ""),
    ("generate --prompt x --stop=", 3, "stop: is an empty text", "leave it out"),
    // Words that are no number, no choice, no flag, no command.
    ("train --rank many", 2, "--rank: 'many' is not a number", ""),
    ("train --schedule cosin", 2, "--schedule: 'cosin' is unknown", "did you mean 'cosine'?"),
    ("train --dtype int8", 2, "--dtype: 'int8' is unknown", ""),
    ("train --train-on answers", 2, "--train-on: 'answers' is unknown", "completion or all"),
    (
        "data --data data --model model --train-on answers",
        2,
        "--train-on: 'answers' is unknown",
        "completion or all",
    ),
    ("train --max_steps -1", 3, "--steps: -1 is out of range", "leave it out to train by epochs"),
    (
        "train --val_set_size 1.5",
        3,
        "valid-size: 1.5 is neither a share nor a number of rows",
        "--valid-size 0.05",
    ),
    ("train --valid-size 0.1", 3, "the data has 6 rows for validation already", "leave it out"),
    // Flags without an effect.
    ("data --data data --train-on all", 2, "--model", ""),
    ("data --data data --max-length 9", 2, "--model", ""),
    ("data --data data --template-var a=1", 2, "--model", ""),
    (
        "data --data data/train.jsonl --split train",
        3,
        "split: 'train' is for data sets of the hub",
        "leave out --split",
    ),
    (
        "eval --data data/valid.jsonl --split test",
        3,
        "split: 'test' is for data sets of the hub",
        "leave out --split",
    ),
    (
        "eval --data book.txt --train-on completion",
        2,
        "is a text file, and --train-on is for rows",
        "leave out --train-on",
    ),
    ("eval --data book.txt --exact", 2, "is a text file, and --exact is for rows", "leave out --exact"),
    ("eval --data book.txt --template-var a=1", 2, "is a text file, and --template-var is for rows", ""),
    ("generate --prompt x --template-var a=1", 3, "--template-var has no effect here", "leave it out"),
    ("train --template-var a=1", 3, "--template-var has no effect here", "leave it out"),
    ("train --dry-run --profile", 2, "contradict each other", "give one of them"),
    ("train --dry-run --trace x.json", 2, "contradict each other", "give one of them"),
    (
        "bench train --model model --tokens 9",
        2,
        "--tokens has no effect here",
        "`metal-candle bench generate` obeys it",
    ),
    (
        "bench generate --model model --length 9",
        2,
        "--length has no effect here",
        "`metal-candle bench train` obeys it",
    ),
    ("pull model --force", 3, "model: is a path on this machine", "--force"),
    ("pull model --from pip", 3, "model: is a path on this machine", "--from"),
    (
        "generate --prompt x --device rocm",
        2,
        "this build has no backend for 'rocm'",
        "metal on a Mac, cuda on a PC, or cpu",
    ),
    (
        "eval --data data/valid.jsonl --device metall",
        2,
        "--device: 'metall' is unknown",
        "did you mean 'metal'?",
    ),
    ("pull --from nowhere", 2, "--from: 'nowhere' is unknown", "auto, hub, pip"),
    ("train --rnak 4", 2, "`metal-candle train` has no flag --rnak", "did you mean --rank?"),
    ("train --prompt x", 2, "`metal-candle train` has no flag --prompt", "`metal-candle generate` has it"),
    ("generate hello", 2, "`metal-candle generate` does not take 'hello'", "--prompt \"hello\""),
    ("tarin", 2, "there is no command 'tarin'", "did you mean `metal-candle train`?"),
    ("eval", 2, "`metal-candle eval` needs --data", "--help"),
    ("train --rank", 2, "--rank needs a value", ""),
    (
        "train --data text.jsonl --template-var a=1",
        3,
        "--template-var has no effect here: all rows are plain text",
        "leave it out",
    ),
    ("eval --data text.jsonl --template-var a=1", 3, "--template-var has no effect here: all rows", ""),
    (
        "data --data text.jsonl --model model --template-var a=1",
        3,
        "--template-var has no effect here: all rows",
        "",
    ),
    // Flags that are given twice, also by two names.
    ("train --data data --data other", 2, "--data is given twice", "give it once"),
    ("train --lr 1e-4 --learning-rate 1e-3", 2, "--lr and --learning-rate are one flag", "give one of them"),
    ("generate -p x --prompt y", 2, "-p and --prompt are one flag", "give one of them"),
    ("train --steps 3 --max_steps 4", 2, "--steps and --max_steps are one flag", "give one of them"),
    ("train --iters 3 --steps 4", 2, "contradict each other", "give one of them"),
    ("train --split train[:50%]", 2, "--split: 'train[:50%]' is not a single split", "name one split"),
    // Suggestions are near, or there is none.
    ("generate --greedy", 2, "has no flag --greedy", "--temperature 0, the default"),
    ("generate --prompt-file x", 2, "has no flag --prompt-file", "standard input"),
    ("generate --zebra x", 2, "has no flag --zebra", "--help"),
    ("mlx_lm.lora --mask-prompt", 2, "which mlx-lm has", "--train-on completion"),
    ("python -m mlx_lm.server", 2, "there is no command 'server' as mlx-lm has it", ""),
    // Flags that contradict each other.
    ("train --epochs 2 --steps 9", 2, "contradict each other", "give one of them"),
    ("train --epochs 2 --iters 9", 2, "contradict each other", "give one of them"),
    ("train --layers 0 --num-layers 1", 2, "contradict each other", "give one of them"),
    ("train --warmup 1 --warmup-ratio 0.1", 2, "contradict each other", "give one of them"),
    ("train --resume --overwrite", 2, "contradict each other", "give one of them"),
    ("generate --prompt x --raw --system y", 2, "contradict each other", "give one of them"),
    // The model has no chat template.
    (
        "generate --prompt x --system y",
        3,
        "--system has no effect here: the model has no chat template",
        "into the prompt",
    ),
    ("chat", 3, "model has no chat template", "generate --raw"),
    // Flags of known tools that have no counterpart.
    ("lora --mask-prompt", 2, "which mlx-lm has", "--train-on completion"),
    ("train --val-batches 5", 2, "which mlx-lm has", "the whole validation set"),
    ("train --fine-tune-type dora", 2, "which mlx-lm has", "LoRA"),
    ("train --resume-adapter-file a.safetensors", 2, "which mlx-lm has", "--adapter"),
    ("train --bf16", 2, "which transformers has", "--dtype bf16"),
    ("train --load-in-4bit", 2, "which PEFT has", "--dtype bf16"),
    ("generate --prompt x -ngl 99", 2, "which llama.cpp has", "--device"),
    ("generate --prompt x --ctx-size 4096", 2, "which llama.cpp has", "the model's own"),
    ("generate --prompt x -c 4096", 2, "which llama.cpp has", "the model's own"),
    ("generate --prompt x --keepalive 5m", 2, "which ollama has", ""),
    ("fuse --adapter-path a --save-path b --de-quantize", 2, "which mlx-lm has", "--dtype"),
    ("serve", 2, "there is no command 'serve' as ollama has it", "generate --json"),
    ("show x", 2, "there is no command 'show' as ollama has it", "metal-candle list"),
    ("rm x", 2, "there is no command 'rm' as ollama has it", "metal-candle list"),
    ("convert", 2, "there is no command 'convert' as mlx-lm has it", ""),
    // Names of models.
    ("pull https://huggingface.co/datasets/a/b", 3, "is a data set, not a model", "train --data"),
    ("pull https://example.org/m.gguf", 3, "is not an address of the Hugging Face hub", "org/name"),
    ("pull llama3.2:1b", 4, "'llama3.2:1b' is not a model", ""),
    ("pull hf://org/name", 4, "'org/name' is not in the cache", "--model /path/to"),
    ("pull hf.co/org/name:Q4_K_M", 4, "'org/name' is not in the cache", "--model /path/to"),
    ("pull https://huggingface.co/org/name/blob/main/q/m.gguf", 4, "'org/name' is not in the cache", ""),
    // Configuration files.
    ("train nowhere.yaml", 3, "nowhere.yaml: cannot read", "--config"),
    ("train data", 3, "data: is a folder, not a configuration file", "--data"),
];

#[test]
fn what_is_refused_says_why_and_what_to_do() {
    let bench = Bench::new();
    std::fs::write(bench.path("book.txt"), "Once upon a time").unwrap();
    std::fs::write(bench.path("text.jsonl"), "{\"text\": \"a b c\"}\n".repeat(9)).unwrap();
    let needs_model = ["train", "lora", "generate", "chat", "eval"];
    for (line, code, cause, advice) in REFUSED {
        let mut words: Vec<&str> = line.split(' ').collect();
        if needs_model.contains(&words[0]) && *line != "eval" {
            words.extend(["--model", "model"]);
        }
        if words[0] == "train" && !line.contains("yaml") && !line.contains("--data") {
            words.extend(["--data", "data"]);
        }
        let (found, message) = bench.refused(&words);
        let (first, second) = message.split_once('\n').unwrap();
        assert_eq!(found, *code, "{line}: {message}");
        assert!(first.contains(cause) && second.contains(advice), "{line}: {message}");
    }
    assert!(!bench.path("adapters").exists(), "a refused run leaves no folder");
}

/// The settings that a training command amounts to.
fn settings(bench: &Bench, line: &str) -> toml::Table {
    let words: Vec<&str> = line.split(' ').chain(["--dry-run"]).collect();
    bench.ok(&words).parse().unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn flags_of_other_trainers_mean_ours() {
    let bench = Bench::new();
    let ours = settings(
        &bench,
        "train --model model --data data --out o --steps 6 --batch-size 2 --max-length 64 --learning-rate 1e-4 --layers 1-1 \
         --eval-every 3 --report-every 2 --save-every 2 --grad-checkpoint",
    );
    assert_eq!(ours["steps"].as_integer(), Some(6));
    for line in [
        "mlx_lm.lora --train --model model --data data --adapter-path o --iters 6 --batch-size 2 --max-seq-length 64 \
         --learning-rate 1e-4 --num-layers 1 --steps-per-eval 3 --steps-per-report 2 --save-every 2 --grad-checkpoint",
        "finetune --model_name_or_path model --dataset_name data --output_dir o --max_steps 6 \
         --per_device_train_batch_size 2 --max_seq_length 64 --lr 1e-4 --layers_to_transform 1-1 --eval_steps 3 \
         --logging_steps 2 --save_steps 2 --gradient_checkpointing",
    ] {
        assert_eq!(settings(&bench, line), ours, "{line}");
    }
    let ours = settings(
        &bench,
        "train --model model --data data --rank 4 --alpha 8 --dropout 0.1 --targets q_proj,v_proj --accumulation 2 --epochs 2 \
         --schedule constant --rslora --keep-checkpoints 3 --dtype bf16",
    );
    let peft = settings(
        &bench,
        "sft --model model --data data --lora_r 4 --lora_alpha 8 --lora_dropout 0.1 --lora_target_modules q_proj,v_proj \
         --gradient_accumulation_steps 2 --num_train_epochs 2 --lr_scheduler_type constant_with_warmup --use_rslora \
         --save_total_limit 3 --torch_dtype bfloat16",
    );
    assert_eq!(peft, ours);
    // With accumulation mlx-lm's iterations are batches, not updates.
    let accumulated =
        settings(&bench, "train --model model --data data --iters 8 --grad-accumulation-steps 4");
    assert_eq!(accumulated["steps"].as_integer(), Some(2));
}

#[test]
fn configuration_files_of_other_trainers_are_read() {
    let bench = Bench::new();
    let mlx = "model: model\ntrain: true\nfine_tune_type: lora\ndata: data\nseed: 0\nnum_layers: 1\nbatch_size: 2\niters: 6\n\
               val_batches: 25\nlearning_rate: 1e-4\nsteps_per_report: 2\nsteps_per_eval: 3\nadapter_path: o\nsave_every: 2\n\
               test: false\ntest_batches: 100\nmax_seq_length: 64\ngrad_checkpoint: true\nresume_adapter_file: null\n\
               lora_parameters:\n  keys: [\"self_attn.q_proj\", \"self_attn.v_proj\"]\n  rank: 4\n  scale: 2.0\n  dropout: 0.1\n";
    std::fs::write(bench.path("lora_config.yaml"), mlx).unwrap();
    let found = settings(&bench, "lora -c lora_config.yaml");
    let ours = settings(
        &bench,
        "train --model model --data data --layers 1-1 --batch-size 2 --steps 6 --learning-rate 1e-4 --report-every 2 \
         --eval-every 3 --out o --save-every 2 --max-length 64 --grad-checkpoint --rank 4 --alpha 8 --dropout 0.1 \
         --targets self_attn.q_proj,self_attn.v_proj --train-on all --schedule constant --warmup 0 --max-grad-norm 0",
    );
    assert_eq!(found, ours);
    let output = bench.run(&["train", "lora_config.yaml", "--dry-run"]);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("set mask_prompt to true to train the answers only"), "{notes}");
    assert!(notes.contains("'val_batches': is not used: the whole validation set is evaluated"), "{notes}");
    // Flags win over the file, also in other words.
    let flags = settings(&bench, "train lora_config.yaml --epochs 1 --num-layers -1 --rank 2");
    assert_eq!((flags["steps"].as_integer(), flags["rank"].as_integer()), (Some(20), Some(2)));
    assert!(!flags.contains_key("layers"));
    let axolotl = "base_model: model\ndatasets:\n  - path: data\n    type: completion\nadapter: lora\nlora_r: 4\n\
                   lora_alpha: 8\nlora_target_linear: true\nmicro_batch_size: 2\ngradient_accumulation_steps: 1\n\
                   num_epochs: 1\nsequence_len: 64\nval_set_size: 0\noutput_dir: o\nlearning_rate: 0.0001\nload_in_8bit: true\n";
    std::fs::write(bench.path("axolotl.yml"), axolotl).unwrap();
    let found = settings(&bench, "train axolotl.yml");
    let ours = settings(
        &bench,
        "train --model model --data data --rank 4 --alpha 8 --batch-size 2 --epochs 1 --max-length 64 --out o \
         --learning-rate 1e-4 --valid-size 0",
    );
    assert_eq!(found, ours);
    // A file with a mistake is bad input, with the line.
    std::fs::write(bench.path("axolotl.yml"), axolotl.replace("adapter: lora", "adapter: prompt-tuning"))
        .unwrap();
    let (code, message) = bench.refused(&["train", "axolotl.yml"]);
    assert!(code == 3 && message.contains("axolotl.yml (line 5): 'adapter': 'prompt-tuning'"), "{message}");
}

#[test]
fn flags_of_other_generators_mean_ours() {
    let bench = Bench::new();
    let text = |line: &str| -> Value {
        let words: Vec<&str> = line.split(' ').collect();
        serde_json::from_str::<Value>(&bench.ok(&words)).unwrap()["tokens"].clone()
    };
    let ours = text(
        "generate --model model --prompt ab --max-tokens 6 --temperature 0.8 --top-k 40 --top-p 0.9 --min-p 0.01 \
         --repetition-penalty 1.1 --seed 3 --threads 1 --json",
    );
    assert_eq!(ours.as_array().unwrap().len(), 6);
    for line in [
        "generate -m model -p ab -n 6 --temp 0.8 --top-k 40 --top-p 0.9 --min-p 0.01 --repeat-penalty 1.1 -s 3 -t 1 --json",
        "generate -m model -p ab --n-predict 6 --temp 0.8 --top_k 40 --top_p 0.9 --min_p 0.01 --repeat_penalty 1.1 --seed 3 \
         -t 1 --json",
        "run model ab --num-predict 6 --temperature 0.8 --top-k 40 --top-p 0.9 --min-p 0.01 --repeat-penalty 1.1 --seed 3 \
         --json",
        "generate --model model --prompt ab --max_new_tokens 6 --temperature 0.8 --top_k 40 --top_p 0.9 --min_p 0.01 \
         --repetition_penalty 1.1 --seed 3 --json",
    ] {
        assert_eq!(text(line), ours, "{line}");
    }
    // At temperature 0 they would be dropped without a word.
    let output = bench.run(&["generate", "-m", "model", "-p", "ab", "-n", "1", "--top-k", "40"]);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && notes.contains("--top-k has no effect at --temperature 0"), "{notes}");
}

#[test]
fn list_shows_models_and_adapters() {
    let bench = Bench::new();
    let empty = bench.ok(&["list"]);
    assert!(empty.contains("No models in") && empty.contains("metal-candle pull"), "{empty}");
    assert!(empty.contains("No adapters in adapters/"), "{empty}");
    let snapshot = bench.path("cache/models/hub/org--name/c0ffee");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("m-Q4_0.gguf"), "GGUF").unwrap();
    bench.ok(&["train", "--model", "model", "--data", "data", "--steps", "1", "--json"]);
    let found: Value = serde_json::from_str(&bench.ok(&["ls", "--json"])).unwrap();
    assert_eq!(found["models"][0]["name"], "org/name:m-Q4_0.gguf");
    assert_eq!(found["models"][0]["bytes"], 4);
    assert_eq!(found["adapters"][0]["path"], "adapters/data");
    let table = bench.ok(&["list"]);
    assert!(table.contains("org/name:m-Q4_0.gguf") && table.contains("adapters/data"), "{table}");
}

/// A reader of help must find what exists, and nothing else.
#[test]
fn help_and_version_succeed() {
    let bench = Bench::new();
    for line in [&["--help"][..], &["--version"], &["train", "--help"], &["run", "--help"], &["list", "-h"]] {
        bench.ok(line);
    }
    assert!(bench.ok(&["train", "--help"]).contains("--max-seq-length (mlx-lm) is --max-length"));
    assert_eq!(bench.run(&[]).status.code(), Some(2));
}
