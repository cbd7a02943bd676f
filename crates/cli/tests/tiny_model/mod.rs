//! A tiny model with data in a folder of its own, and the tool run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// A folder with a model of 256 byte tokens, a data set and a cache of its own.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

/// GPT-2's letters for bytes.
fn letters() -> Vec<char> {
    let plain = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256)
        .map(|byte| {
            if plain(byte) {
                return char::from_u32(byte).unwrap();
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        })
        .collect()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let model = bench.path("model");
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join(file), model.join(file)).unwrap();
        }
        let vocab: serde_json::Map<String, Value> =
            letters().iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
        let level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let data = bench.path("data");
        std::fs::create_dir(&data).unwrap();
        let line = |i: usize| {
            json!({"prompt": format!("{i} and {i} "), "completion": format!("make {}", 2 * i)}).to_string()
        };
        let lines = |range: std::ops::Range<usize>| range.map(|i| line(i) + "\n").collect::<String>();
        std::fs::write(data.join("train.jsonl"), lines(0..40)).unwrap();
        std::fs::write(data.join("valid.jsonl"), lines(40..46)).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(arguments).current_dir(self.folder.path()).env("METAL_CANDLE_CACHE", self.path("cache"));
        command.env("METAL_CANDLE_OFFLINE", "1").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and the message of a run that must fail: one line of cause, one of advice.
    pub(crate) fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<&str> =
            text.lines().filter(|l| l.starts_with("error: ") || l.starts_with("  try: ")).collect();
        assert_eq!(lines.len(), 2, "{arguments:?}: {text}");
        (output.status.code().unwrap(), lines.join("\n"))
    }
}
