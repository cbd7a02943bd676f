//! What people bring: adapters without their base or for another one, special tokens, quantized folders, and flags that
//! contradict each other, as the tool meets them.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use metal_candle::tensor::HostTensor;
use metal_candle::training::{Adapter, AdapterModule, LoraConfig, Targets};
use serde_json::{Value, json};

#[path = "../../../tests/byte_model/mod.rs"]
mod byte_model;

/// A folder with the tiny model in `model`, and a cache of its own.
struct Bench {
    folder: tempfile::TempDir,
}

struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }

    fn failed(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        &self.err
    }
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        let model = bench.path("model");
        std::fs::create_dir(&model).unwrap();
        byte_model::write(&model);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(arguments).current_dir(self.folder.path()).env("METAL_CANDLE_CACHE", self.path("cache"));
        command.env("METAL_CANDLE_OFFLINE", "1").env("HF_HUB_CACHE", self.path("hub"));
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        // A run that is refused before it reads its input closes the pipe.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn generate(&self, arguments: &[&str]) -> Run {
        let all = ["generate", "--device", "cpu", "--max-tokens", "4", "--json"];
        self.run(&[&all, arguments].concat(), "")
    }

    /// Changes a JSON file of the model.
    fn change(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path("model").join(file);
        let mut value =
            std::fs::read(&path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    /// An adapter on q_proj of the first layer.
    fn adapter(&self, name: &str, base: Option<&str>, size: f32) {
        let numbers =
            |seed: usize| -> Vec<f32> { (0..256).map(|i| size * ((i * 31 + seed) as f32).sin()).collect() };
        let module = AdapterModule {
            path: "model.layers.0.self_attn.q_proj".into(),
            a: HostTensor::from_slice(&numbers(1), [4, 64]).unwrap(),
            b: HostTensor::from_slice(&numbers(2), [64, 4]).unwrap(),
            scale: 2.0,
            is_embedding: false,
        };
        let targets = Targets::List(vec!["q_proj".into()]);
        let config = LoraConfig { rank: 4, alpha: 8.0, targets, ..LoraConfig::default() };
        let adapter = Adapter {
            config,
            base_model: base.map(str::to_owned),
            modules: vec![module],
            copies: Vec::new(),
        };
        std::fs::create_dir(self.path(name)).unwrap();
        adapter.save(&self.path(name)).unwrap();
    }
}

#[test]
fn without_a_model_the_adapters_own_base_is_used() {
    let bench = Bench::new();
    let model = bench.path("model");
    let prompt = ["--raw", "--prompt", "abc"];
    let with = |more: &[&str]| bench.generate(&[&prompt, more].concat());
    bench.adapter("local", Some(model.to_str().unwrap()), 0.3);
    let found = with(&["--adapter", "local"]);
    assert_eq!(found.json()["tokens"], with(&["--adapter", "local", "--model", "model"]).json()["tokens"]);
    assert!(!found.err.contains("was made for"), "{}", found.err);

    // A run of ours wrote down which model it was started with.
    bench.adapter("ours", Some("Tiny of no place"), 0.3);
    std::fs::write(bench.path("ours/run.toml"), "model = \"model\"\n").unwrap();
    let found = with(&["--adapter", "ours"]);
    assert_eq!((found.code, found.err.contains("was made for")), (0, false), "{}", found.err);

    bench.adapter("hub", Some("someone/tiny"), 0.3);
    let error = with(&["--adapter", "hub"]);
    assert!(error.failed(4).contains("'someone/tiny' is not in the cache"), "{}", error.err);
    bench.adapter("elsewhere", Some("/home/someone/tiny"), 0.3);
    let error = with(&["--adapter", "elsewhere"]);
    assert!(
        error.failed(3).contains("made for '/home/someone/tiny', which is neither a folder"),
        "{}",
        error.err
    );
    // The repository of the default model's file, whose adapters name it.
    bench.adapter("default", Some("HuggingFaceTB/SmolLM2-135M-Instruct"), 0.3);
    let error = with(&["--adapter", "default"]);
    assert!(
        error.failed(4).contains("the adapter default needs its base model: smollm2-135m cannot be fetched"),
        "{}",
        error.err
    );
    bench.adapter("nameless", None, 0.3);
    assert!(with(&["--adapter", "nameless"]).failed(3).contains("does not name its base model"));
}

#[test]
fn another_base_and_an_untrained_adapter_are_announced() {
    let bench = Bench::new();
    bench.change("config.json", |config| config["_name_or_path"] = json!("someone/tiny-llama"));
    bench.adapter("other", Some("Qwen/Qwen3-0.6B"), 0.3);
    bench.adapter("same", Some("someone/tiny-llama"), 0.3);
    bench.adapter("zero", Some("someone/tiny-llama"), 0.0);
    let warning = |adapter: &str| {
        let found = bench.generate(&["--model", "model", "--adapter", adapter, "--raw", "--prompt", "abc"]);
        assert_eq!(found.code, 0, "{}", found.err);
        found.err
    };
    let text = warning("other");
    assert!(
        text.contains("made for Qwen/Qwen3-0.6B") && text.contains("model (someone/tiny-llama)"),
        "{text}"
    );
    assert!(!warning("same").contains("WARN"));
    let text = warning("zero");
    assert!(text.contains("zero changes nothing") && !text.contains("\u{1b}"), "{text}");
}

#[test]
fn special_tokens_stop_an_answer_and_do_not_end_a_prompt() {
    let bench = Bench::new();
    // The norm's weights at zero make every logit 0, so that the first token, a special one, is always taken.
    bench.change("tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"] = json!([{"id": 0, "content": "Ā", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}]);
    });
    let weights = bench.path("model/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offsets = &header["model.norm.weight"]["data_offsets"];
    let at = |index: usize| 8 + length + offsets[index].as_u64().unwrap() as usize;
    let mut silent = bytes.clone();
    silent[at(0)..at(1)].fill(0);
    std::fs::write(&weights, silent).unwrap();
    let stopped = |stop: &str| {
        let found = bench.generate(&["--model", "model", "--raw", "--prompt", "abc", "--stop", stop]).json();
        (found["finish"].as_str().unwrap().to_owned(), found["tokens"].as_array().unwrap().len())
    };
    assert_eq!(stopped("Ā"), ("stop".to_owned(), 1));
    assert_eq!(stopped("ĀĀĀ"), ("stop".to_owned(), 3));
    assert_eq!(stopped("Āx"), ("length".to_owned(), 4));
    std::fs::write(&weights, bytes).unwrap();

    let settings = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "add_eos_token": true,
        "bos_token": "!", "eos_token": "\""});
    std::fs::write(bench.path("model/tokenizer_config.json"), settings.to_string()).unwrap();
    let tokens = |arguments: &[&str], input: &str| {
        let all = ["generate", "--device", "cpu", "--model", "model", "--raw", "--max-tokens", "1", "--json"];
        bench.run(&[&all, arguments].concat(), input).json()["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(&["--prompt", "abc"], ""), 4);
    for input in ["abc\n", "abc\r\n", "\u{feff}abc\r\n"] {
        assert_eq!(tokens(&[], input), 4, "{input:?}");
    }
}

#[test]
fn a_system_message_that_goes_nowhere_is_refused() {
    let bench = Bench::new();
    let with = |more: &[&str]| {
        bench.generate(&[&["--model", "model", "--prompt", "abc", "--system", "be good"], more].concat())
    };
    let error = with(&[]);
    assert!(
        error.failed(3).contains("--system has no effect here: the model has no chat template"),
        "{}",
        error.err
    );
    bench.change("tokenizer_config.json", |settings| {
        settings["chat_template"] = json!("{{ messages[0].content }}")
    });
    assert_eq!(with(&[]).json()["prompt_tokens"], 7);
    let error = with(&["--raw"]);
    assert!(error.failed(2).contains("contradict each other"), "{}", error.err);
}

#[test]
fn training_goes_on_with_an_adapters_own_settings() {
    let bench = Bench::new();
    bench.adapter("start", Some("someone/tiny"), 0.3);
    std::fs::create_dir(bench.path("data")).unwrap();
    let line = json!({"prompt": "one two ", "completion": "three"}).to_string() + "\n";
    std::fs::write(bench.path("data/train.jsonl"), line.repeat(8)).unwrap();
    let train = |more: &[&str]| {
        let all = [
            "train",
            "--device",
            "cpu",
            "--model",
            "model",
            "--data",
            "data",
            "--adapter",
            "start",
            "--json",
        ];
        bench.run(&[&all[..], &["--steps", "2", "--out", "out"], more].concat(), "")
    };
    for (flag, value) in [
        ("--rank", "16"),
        ("--alpha", "9"),
        ("--targets", "v_proj"),
        ("--dropout", "0.5"),
        ("--layers", "1"),
        ("--rank-pattern", "q_proj=2"),
    ] {
        let error = train(&[flag, value]);
        assert!(
            error.failed(3).contains(&format!("{flag} is not that of the adapter start")),
            "{}",
            error.err
        );
        assert!(!bench.path("out").exists());
    }
    let done = train(&["--rank", "4", "--targets", "q_proj"]);
    assert_eq!(done.json()["steps"], 2);
    assert!(done.err.contains("made for someone/tiny"), "{}", done.err);
    let settings = std::fs::read_to_string(bench.path("out/run.toml")).unwrap();
    for line in ["rank = 4", "alpha = 8.0", "targets = \"q_proj\""] {
        assert!(settings.contains(line), "{settings}");
    }
    let again = bench.run(&["train", "--config", "out/run.toml", "--out", "again", "--json"], "");
    assert_eq!(again.json()["steps"], 2);
}

/// The order of names is not a setting: neither `--adapter` nor `--resume` refuses another one.
#[test]
fn targets_in_another_order_are_the_same() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("data")).unwrap();
    let line = json!({"prompt": "one two ", "completion": "three"}).to_string() + "\n";
    std::fs::write(bench.path("data/train.jsonl"), line.repeat(8)).unwrap();
    let train = |targets: &str, out: &str, more: &[&str]| {
        let all =
            ["train", "--device", "cpu", "--model", "model", "--data", "data", "--schedule", "constant"];
        bench.run(&[&all[..], &["--json", "--targets", targets, "--out", out], more].concat(), "")
    };
    train("q_proj,v_proj", "one", &["--steps", "2"]).json();
    let resumed = train("v_proj,q_proj", "one", &["--steps", "4", "--resume"]);
    assert_eq!(resumed.json()["steps"], 4);
    assert_eq!(train("v_proj,q_proj", "two", &["--steps", "1", "--adapter", "one"]).json()["steps"], 1);
    let error = train("v_proj", "three", &["--steps", "1", "--adapter", "one"]);
    assert!(error.failed(3).contains("--targets is not that of the adapter one"), "{}", error.err);
    // What all-linear stood for is what the file lists.
    train("all-linear", "four", &["--steps", "1"]).json();
    train("all-linear", "five", &["--steps", "1", "--adapter", "four"]).json();
}

#[test]
fn a_merge_says_what_it_read_back_and_replaces_nothing() {
    let bench = Bench::new();
    bench.adapter("mine", Some("tiny"), 0.3);
    let merge = |out: &str, more: &[&str]| {
        let all = ["merge", "--model", "model", "--adapter", "mine", "--out", out];
        bench.run(&[&all, more].concat(), "")
    };
    let done = merge("merged", &["--json"]).json();
    assert_eq!((&done["modules"], &done["untied"]), (&json!(1), &json!(false)));
    assert!(done["logits_error"].as_f64().unwrap() < 1e-5, "{done}");
    assert!(merge("merged", &[]).failed(3).contains("holds files already"));
    assert!(merge("model", &[]).failed(3).contains("holds the base model"));
    let done = merge("narrow", &["--dtype", "bf16"]);
    assert!(
        done.out.contains("1 module merged into narrow") && done.out.contains("read back, its logits"),
        "{}",
        done.out
    );
}

/// An empty folder is written into where it is, also the one that the command runs in. What cannot be written and flags
/// without an effect are refused at once.
#[test]
fn a_merge_writes_into_an_empty_folder_or_says_why_not() {
    let bench = Bench::new();
    bench.adapter("mine", Some("tiny"), 0.3);
    std::fs::create_dir(bench.path("here")).unwrap();
    let merge = |out: &str, more: &[&str]| {
        let model = ["merge", "--model", "../model", "--adapter", "../mine", "--out", out];
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(model).args(more).current_dir(bench.path("here"));
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    };
    for flag in [&["--device", "cpu"][..], &["--threads", "1"], &["--template-var", "a=1"]] {
        let error = merge(".", flag);
        assert!(error.failed(2).contains(&format!("merge` has no flag {}", flag[0])), "{}", error.err);
    }
    let done = merge(".", &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let names = |folder: &str| {
        let mut names: Vec<String> = std::fs::read_dir(bench.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("here"), ["config.json", "model.safetensors", "tokenizer.json"]);
    for (out, expected) in
        [(".", "holds files already"), ("config.json", "is a file"), ("config.json/new", "cannot")]
    {
        let error = merge(out, &[]);
        assert!(error.failed(3).contains(expected), "{out}: {}", error.err);
    }
    assert_eq!(names("here").len(), 3);
}

#[test]
fn quantized_folders_are_named_for_what_they_are() {
    let bench = Bench::new();
    let eval = || bench.generate(&["--model", "model", "--raw", "--prompt", "abc"]);
    bench.change("config.json", |config| config["quantization"] = json!({"group_size": 64, "bits": 4}));
    let error = eval();
    assert!(error.failed(3).contains("quantized by MLX in 4 bits"), "{}", error.err);
    bench.change("config.json", |config| {
        config.as_object_mut().unwrap().remove("quantization");
        config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    });
    assert!(eval().failed(3).contains("quantized by bitsandbytes"));
}
