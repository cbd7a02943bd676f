//! What each target does with an input. A target ignores errors: only a panic, an abort, a hang or too much memory is a
//! finding.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use metal_candle::backend::Device;
use metal_candle::models::{
    ChatTemplate, Decoder, Gguf, ModelConfig, ModelFiles, Tokenizer, Weights, parse_json,
};
use metal_candle::tensor::DType;
use metal_candle::training::batches::{BatchOptions, in_order};
use metal_candle::training::data::{Columns, examples, read_rows};
use metal_candle::training::{
    Adapter, Example, LoraConfig, Schedule, ScheduleKind, TrainOn, TrainOptions, Trainer, checkpoint,
};
use serde_json::{Value, json};

/// Names of the targets with their functions.
pub const TARGETS: [(&str, fn(&[u8])); 9] = [
    ("adapter", adapter),
    ("checkpoint", checkpoint),
    ("config", config),
    ("gguf", gguf),
    ("rows", rows),
    ("safetensors", safetensors),
    ("template", template),
    ("tokenizer", tokenizer),
    ("train", train),
];

/// Line between the files of an input that stands for several.
const SEPARATOR: &[u8] = b"\n%%%%\n";
/// Tensors with more elements than this are not loaded.
const MAX_ELEMENTS: usize = 1 << 20;
const TEXTS: [&str; 4] = ["", "a", "ab ab\n<|im_end|> 12", "é\u{10ffff}\u{0} \u{feff}"];

/// A folder in memory that goes away with the guard.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary folder can be made")
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a file of a temporary folder can be written");
    path
}

/// The part of an input before the first separator, and the rest.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    match data.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        Some(at) => (&data[..at], &data[at + SEPARATOR.len()..]),
        None => (data, &[]),
    }
}

fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu(1).expect("the CPU is a device")).clone()
}

fn load_all(weights: &Weights) {
    for name in weights.names() {
        let Some(shape) = weights.shape(name) else { continue };
        let elements = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        if elements.is_some_and(|elements| elements <= MAX_ELEMENTS) {
            for dtype in [DType::F32, DType::BF16] {
                let _ = weights.load(name, shape, dtype);
            }
        }
    }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = (tokenizer.encode_prompt(text), tokenizer.decode(&ids));
    }
    let mut stream = tokenizer.decode_stream();
    let last = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    for id in [0, 1, 2, 5, last.saturating_sub(1), last, u32::MAX] {
        let _ = (tokenizer.token(id), tokenizer.decode(&[id]), stream.push(id));
    }
    let _ = (stream.finish(), tokenizer.to_json(), tokenizer.eos_ids(), tokenizer.added_tokens());
}

fn use_template(template: &ChatTemplate) {
    let messages = [
        json!({"role": "system", "content": "s"}),
        json!({"role": "user", "content": "Hi <b>\n"}),
        json!({"role": "assistant", "content": "a", "reasoning_content": "r", "n": [1, 2.5, null, true]}),
    ];
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let _ = template.render(&messages, None, true);
    let _ = template.render_marked(&messages, Some(&tools), false, &serde_json::Map::new());
}

/// A GGUF file: its header, its arrays, its tensors, its configuration, tokenizer and template.
pub fn gguf(data: &[u8]) {
    let folder = folder();
    let path = write(folder.path(), "model.gguf", data);
    let Ok(gguf) = Gguf::open(&path) else { return };
    for key in gguf.keys() {
        let _ = (gguf.text(key), gguf.integer(key), gguf.real(key), gguf.flag(key), gguf.array_len(key));
        let _ = (gguf.texts(key), gguf.integers(key), gguf.reals(key));
    }
    let _ = ModelConfig::from_gguf(&gguf);
    if let Ok(weights) = Weights::from_gguf(&gguf) {
        load_all(&weights);
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        use_tokenizer(&tokenizer);
    }
    if let Ok(Some(template)) = ChatTemplate::from_gguf(&gguf) {
        use_template(&template);
    }
    if let Ok(files) = ModelFiles::open(&path) {
        let _ = Decoder::load(files.config, &files.weights, &device(), DType::F32, &|_| ());
    }
}

/// An index, if there are two parts, and a safetensors file.
pub fn safetensors(data: &[u8]) {
    let folder = folder();
    let (first, second) = split(data);
    if second.is_empty() {
        write(folder.path(), "model.safetensors", first);
    } else {
        write(folder.path(), "model.safetensors.index.json", first);
        write(folder.path(), "model-00001-of-00001.safetensors", second);
    }
    if let Ok(weights) = Weights::open(folder.path()) {
        load_all(&weights);
    }
}

/// A `config.json`.
pub fn config(data: &[u8]) {
    let folder = folder();
    write(folder.path(), "config.json", data);
    let Ok(config) = ModelConfig::from_hf(folder.path()) else { return };
    if config.head_dim <= 1 << 16 {
        config.rope_tables(3);
    }
}

/// A `tokenizer.json`, and the `tokenizer_config.json` beside it if there are two parts.
pub fn tokenizer(data: &[u8]) {
    let folder = folder();
    let (first, second) = split(data);
    write(folder.path(), "tokenizer.json", first);
    if !second.is_empty() {
        write(folder.path(), "tokenizer_config.json", second);
    }
    if let Ok(tokenizer) = Tokenizer::from_folder(folder.path()) {
        use_tokenizer(&tokenizer);
    }
    if let Ok(Some(template)) = ChatTemplate::from_folder(folder.path()) {
        use_template(&template);
    }
}

/// An `adapter_config.json` and an `adapter_model.safetensors`.
pub fn adapter(data: &[u8]) {
    let folder = folder();
    let (config, weights) = split(data);
    write(folder.path(), "adapter_config.json", config);
    write(folder.path(), "adapter_model.safetensors", weights);
    let Ok(adapter) = Adapter::load(folder.path()) else { return };
    let _ = (adapter.does_nothing(), adapter.lora_modules(), adapter.on(&device()));
    let _ = adapter.save(&folder.path().join("again"));
    if let Some(model) = model() {
        let _ = adapter.check(&model.linear_modules());
    }
}

/// Rows of JSON lines, of a JSON list or of CSV, by the first byte.
pub fn rows(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let folder = folder();
    let name = ["rows.jsonl", "rows.json", "rows.csv"][usize::from(*kind % 3)];
    let path = write(folder.path(), name, data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_json(text);
    }
    let Ok(rows) = read_rows(&path, &Columns::default()) else { return };
    if let Some(files) = files() {
        for train_on in [TrainOn::Completion, TrainOn::All] {
            let _ = examples(&rows, files, train_on, 64);
        }
    }
}

/// A chat template.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    if let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) {
        use_template(&template);
    }
}

/// The files of a checkpoint: adapter configuration, adapter, optimizer, state. The manifest is made to fit, as it would
/// refuse every mutation.
pub fn checkpoint(data: &[u8]) {
    let folder = folder();
    let (config, rest) = split(data);
    let (state, rest) = split(rest);
    let (adapter, optimizer) = split(rest);
    let files = [
        ("adapter_config.json", config),
        ("adapter_model.safetensors", adapter),
        ("optimizer.safetensors", optimizer),
        ("trainer_state.json", state),
    ];
    let mut manifest = serde_json::Map::new();
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        manifest.insert(name.to_owned(), json!({"bytes": bytes.len(), "checksum": format!("{hash:016x}")}));
    }
    write(folder.path(), "manifest.json", Value::from(manifest).to_string().as_bytes());
    let Ok((adapter, _, state)) = checkpoint::load(folder.path()) else { return };
    let _ = (adapter.does_nothing(), state.best());
}

/// Bytes of an input as choices. Without bytes left every choice is the first.
struct Choices<'d>(&'d [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }
}

/// The configuration of a tiny model, most of whose values are plausible.
fn tiny_config(choices: &mut Choices<'_>) -> Value {
    let family = choices.of(&["llama", "qwen2", "qwen3", "mistral"]);
    let mut config = json!({
        "model_type": family,
        "hidden_size": choices.of(&[8, 16, 4, 1, 0, 1_000_000_000]),
        "num_hidden_layers": choices.of(&[1, 2, 0, 10_000, 1_000_000_000]),
        "num_attention_heads": choices.of(&[2, 1, 4, 3, 0]),
        "num_key_value_heads": choices.of(&[1, 2, 3, 0]),
        "head_dim": choices.of(&[4, 2, 8, 7, 0, 1_000_000_000]),
        "intermediate_size": choices.of(&[16, 8, 1, 0, 1_000_000_000]),
        "vocab_size": choices.of(&[256, 300, 16, 1, 0, 1_000_000_000]),
        "max_position_embeddings": choices.of(&[64, 16, 1, 0, 1_000_000_000]),
        "rms_norm_eps": choices.of(&[1e-5, 0.5, 1e-30, 0.0]),
        "tie_word_embeddings": choices.of(&[false, true]),
        "rope_theta": choices.of(&[1e4, 1.0, 1e300, 0.0]),
    });
    match choices.byte() % 4 {
        1 => config["sliding_window"] = json!(choices.byte()),
        2 => config["attention_bias"] = json!(true),
        3 => {
            config["rope_scaling"] =
                json!({"rope_type": "linear", "factor": choices.of(&[2.0, 1e-300, 1e300])})
        }
        _ => {}
    }
    config
}

/// Names and shapes of the tensors that a configuration asks for, as far as they are small.
fn tensors_of(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| config[key].as_u64().unwrap_or(0).min(1024) as usize;
    let (hidden, inner, vocab, width) =
        (size("hidden_size"), size("intermediate_size"), size("vocab_size"), size("head_dim"));
    let (q, kv) = (size("num_attention_heads") * width, size("num_key_value_heads") * width);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..size("num_hidden_layers").min(2) {
        let modules = [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ];
        for (module, rows, columns) in modules {
            tensors.push((format!("model.layers.{layer}.{module}.weight"), vec![rows, columns]));
            tensors.push((format!("model.layers.{layer}.{module}.bias"), vec![rows]));
        }
        let norms = [
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
            ("self_attn.q_norm", width),
            ("self_attn.k_norm", width),
        ];
        for (norm, length) in norms {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![length]));
        }
    }
    tensors
}

/// A safetensors file whose values repeat a few bytes.
fn safetensors_of(tensors: &[(String, Vec<usize>)], pattern: &[u8]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::from(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.bytes());
    let value = |index: usize| {
        let byte = pattern.get(index % pattern.len().max(1)).copied().unwrap_or(97);
        match byte {
            255 => f32::MAX,
            254 => f32::MIN_POSITIVE / 2.0,
            byte => (f32::from(byte) - 127.0) / 256.0 + (index % 7) as f32 / 64.0,
        }
    };
    out.extend((0..end / 4).flat_map(|index| value(index).to_le_bytes()));
    out
}

/// A tiny model made from the input: whatever loads trains a step and is asked for its estimate.
pub fn train(data: &[u8]) {
    let mut choices = Choices(data);
    let config = tiny_config(&mut choices);
    let mut tensors = tensors_of(&config);
    // Some inputs have a tensor too few, or one of another shape.
    match choices.byte() {
        byte @ 200..=227 => drop(tensors.remove(usize::from(byte) % tensors.len())),
        byte @ 228.. => {
            let at = usize::from(byte) % tensors.len();
            tensors[at].1[0] += 1;
        }
        _ => {}
    }
    let pattern = [choices.byte(), choices.byte(), choices.byte()];
    let folder = folder();
    write(folder.path(), "config.json", config.to_string().as_bytes());
    write(folder.path(), "model.safetensors", &safetensors_of(&tensors, &pattern));
    let Ok((config, weights)) = ModelFiles::open_weights(folder.path()) else { return };
    let dtype = choices.of(&[DType::F32, DType::BF16, DType::F16]);
    let Ok(model) = Decoder::load(config, &weights, &device(), dtype, &|_| ()) else { return };
    let lora = LoraConfig {
        rank: choices.of(&[1, 2, 0, 64]),
        alpha: choices.of(&[16.0, 0.0, f64::NAN, 1e30]),
        dropout: choices.of(&[0.0, 0.5, 1.0, -1.0]),
        ..LoraConfig::default()
    };
    let steps = 1 + usize::from(choices.byte() % 2);
    let max_length = choices.of(&[16, 1, 2, 0, 64]);
    let options = TrainOptions {
        schedule: Schedule {
            kind: choices.of(&[ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant]),
            learning_rate: choices.of(&[1e-3, 0.0, 1e6, f64::NAN]),
            warmup: choices.of(&[0, 1, 100]),
            steps,
            minimum: 0.0,
        },
        optimizer: Default::default(),
        steps,
        max_length,
        batch_size: choices.of(&[1, 2, 0]),
        accumulation: choices.of(&[1, 2, 0]),
        eval_every: 0,
        report_every: 0,
        save_every: 0,
        keep_checkpoints: 0,
        patience: 0,
        seed: 1,
        checkpoint_layers: choices.of(&[false, true]),
        resume: false,
    };
    let count = usize::from(choices.byte() % 3) + 1;
    let length = usize::from(choices.byte() % 20);
    let rows: Vec<Example> = (0..count)
        .map(|_| {
            let tokens: Vec<u32> = (0..length).map(|_| u32::from(choices.byte())).collect();
            Example { supervised: vec![true; tokens.len()], tokens }
        })
        .collect();
    let out = folder.path().join("out");
    let made = Trainer::new(&model, lora, None, options, &rows, &[], &out);
    let Ok(mut trainer) = made else { return };
    let _ = trainer.estimate();
    let batches = BatchOptions { batch_size: 2, max_length: 64, seed: 1 };
    if let Ok(batches) = in_order(&rows, &batches) {
        let _ = trainer.train_on(&batches);
        let _ = trainer.adapter_now();
    }
}

/// A tokenizer whose tokens are the bytes of ASCII and a few merges.
fn byte_tokenizer() -> Value {
    let mut shifted = 0xff;
    let vocab: serde_json::Map<String, Value> = (0..256_u32)
        .map(|id| {
            let printable = matches!(id, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            shifted += u32::from(!printable);
            let letter = char::from_u32(if printable { id } else { shifted });
            (letter.unwrap_or('?').to_string(), json!(id))
        })
        .collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// A tiny model with a tokenizer and a template, for targets that need one beside their input.
fn files() -> Option<&'static ModelFiles> {
    static FILES: OnceLock<Option<(tempfile::TempDir, ModelFiles)>> = OnceLock::new();
    let made = FILES.get_or_init(|| {
        let folder = folder();
        let config = tiny_config(&mut Choices(&[]));
        write(folder.path(), "config.json", config.to_string().as_bytes());
        write(folder.path(), "model.safetensors", &safetensors_of(&tensors_of(&config), &[100, 150, 120]));
        write(folder.path(), "tokenizer.json", byte_tokenizer().to_string().as_bytes());
        let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}";
        write(folder.path(), "chat_template.jinja", template.as_bytes());
        let files = ModelFiles::open(folder.path()).expect("the tiny model is whole");
        Some((folder, files))
    });
    made.as_ref().map(|(_, files)| files)
}

fn model() -> Option<&'static Decoder> {
    static MODEL: OnceLock<Option<Decoder>> = OnceLock::new();
    let made = MODEL.get_or_init(|| {
        let files = files()?;
        Decoder::load(files.config.clone(), &files.weights, &device(), DType::F32, &|_| ()).ok()
    });
    made.as_ref()
}
