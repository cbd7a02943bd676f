//! Data as people bring it: `data`, `eval` and `train` on files of every form, and data sets of the hub.

#[allow(dead_code)]
mod hub;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use hub::FakeHub;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A folder with a model of one token per byte, of which three are special.
struct Workplace {
    folder: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        let model = place.path("model");
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join(file), model.join(file)).unwrap();
        }
        let mut extra = 0x100;
        let mut names: Vec<String> = Vec::new();
        for byte in 0_u32..256 {
            let plain = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            names.push(char::from_u32(if plain { byte } else { extra }).unwrap().to_string());
            extra += u32::from(!plain);
        }
        let special = [(2, "</s>"), (3, "<|im_start|>"), (4, "<|im_end|>")];
        let added: Vec<Value> = special
            .iter()
            .map(|(id, name)| {
                names[*id] = (*name).to_owned();
                json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let vocab: serde_json::Map<String, Value> =
            names.into_iter().enumerate().map(|(id, name)| (name, id.into())).collect();
        let level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let settings = json!({"eos_token": "</s>", "chat_template": CHATML});
        std::fs::write(model.join("tokenizer_config.json"), settings.to_string()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn run(&self, arguments: &[&str], endpoint: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("METAL_CANDLE_CACHE", self.path("cache")).env("HF_HOME", self.path("home"));
        match endpoint {
            Some(url) => command.env("HF_ENDPOINT", url),
            None => command.env("METAL_CANDLE_OFFLINE", "1"),
        };
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments, None);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments, None);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn evaluated(&self, data: &str) -> Value {
        self.json(&[
            "eval",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--model",
            "model",
            "--data",
            data,
            "--json",
        ])
    }
}

#[test]
fn every_form_of_the_same_rows_is_evaluated_alike() {
    let place = Workplace::new();
    place.write("a.jsonl", "{\"prompt\": \"hi\", \"completion\": \"yes\"}\n");
    let expected = place.evaluated("a.jsonl");
    assert_eq!(expected["tokens"], 4, "three letters and the end token");
    place.write("b.JSONL", "\u{feff}{\"prompt\": \"hi\", \"completion\": \"yes\", \"text\": null}\r\n\r\n");
    place.write("c.csv", "prompt,completion\r\nhi,yes\r\n");
    place.write("d.json", "[{\"instruction\": \"hi\", \"input\": \"\", \"output\": \"yes\"}]");
    place.write("e.ndjson", "{\"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}, {\"from\": \"gpt\", \"value\": \"yes\"}]}");
    let utf16: Vec<u8> = "\u{feff}{\"prompt\": \"hi\", \"completion\": \"yes\"}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    place.write("f.jsonl", utf16);
    for file in ["b.JSONL", "c.csv", "d.json", "e.ndjson", "f.jsonl"] {
        assert_eq!(place.evaluated(file), expected, "{file}");
    }
    std::fs::create_dir(place.path("set")).unwrap();
    place.write("set/train.jsonl", "{\"text\": \"other\"}\n");
    place.write("set/test.csv", "prompt,completion\nhi,yes\n");
    assert_eq!(place.evaluated("set"), expected);
}

#[test]
fn prose_is_evaluated_whole_and_unreadable_files_are_refused() {
    let place = Workplace::new();
    place.write("book.txt", "Once upon a time\r\nthere was");
    place.write("unix.txt", "Once upon a time\nthere was");
    assert_eq!(place.evaluated("book.txt"), place.evaluated("unix.txt"));
    place.write("a.jsonl.gz", "x");
    place.write("a.csv", "prompt,completion\nhi,yes\nhi\n");
    for (data, words) in [
        ("a.jsonl.gz", "unpack it first"),
        ("a.csv", "a.csv (line 3): has 1 cell, but the header has 2"),
        ("gone.jsonl", "gone.jsonl"),
    ] {
        let (code, message) = place.refused(&["eval", "--model", "model", "--data", data]);
        assert_eq!(code, 3, "{message}");
        assert!(message.contains(words), "{message}");
    }
}

/// Rows under other names were evaluated as prose.
#[test]
fn rows_under_any_name_are_evaluated_as_rows_and_said() {
    let place = Workplace::new();
    place.write("a.jsonl", "{\"prompt\": \"hi\", \"completion\": \"yes\"}\n");
    let expected = place.evaluated("a.jsonl");
    for name in ["rows.txt", "rows.log", "rows"] {
        std::fs::copy(place.path("a.jsonl"), place.path(name)).unwrap();
        assert_eq!(place.evaluated(name), expected, "{name}");
        for command in ["eval", "data"] {
            let output = place.run(&[command, "--model", "model", "--data", name], None);
            let notes = String::from_utf8(output.stderr).unwrap();
            assert!(notes.contains(&format!("note: {name} contains JSON and is read as rows")), "{notes}");
        }
    }
    // The test rows of a file with splits are evaluated.
    let splits =
        "{\"train\": [{\"text\": \"other\"}], \"test\": [{\"prompt\": \"hi\", \"completion\": \"yes\"}]}";
    place.write("all.json", splits);
    assert_eq!(place.evaluated("all.json"), expected);
    place.write("broken.txt", "{\"prompt\": \"hi\"}\n");
    let (code, message) = place.refused(&["eval", "--model", "model", "--data", "broken.txt"]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("broken.txt (line 1): has 'prompt', but 'completion' is missing"), "{message}");
}

#[test]
fn columns_that_are_not_used_are_announced_once() {
    let place = Workplace::new();
    place.write(
        "a.jsonl",
        "{\"prompt\": \"hi\", \"completion\": \"yes\", \"id\": 1, \"source\": \"x\"}\n{\"prompt\": \"hi\", \"completion\": \"no\", \"id\": 2}\n",
    );
    for arguments in [
        &["data", "--data", "a.jsonl"][..],
        &["data", "--data", "a.jsonl", "--model", "model"],
        &["eval", "--data", "a.jsonl", "--model", "model", "--device", "cpu"],
        &["train", "--data", "a.jsonl", "--model", "model", "--device", "cpu", "--dry-run", "--steps", "1"],
    ] {
        let output = place.run(arguments, None);
        let notes = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{notes}");
        let expected = "note: the columns 'id', 'source' (in 1 row) are not used\n";
        assert_eq!(notes.matches(expected).count(), 1, "{arguments:?}: {notes}");
    }
    place.write("b.csv", "prompt,completion,note\nhi,yes,x\n");
    let output = place.run(&["data", "--data", "b.csv"], None);
    assert!(String::from_utf8(output.stderr).unwrap().contains("note: the column 'note' is not used\n"));
}

#[test]
fn data_says_what_of_the_rows_is_not_trained() {
    let place = Workplace::new();
    let messages = json!([
        {"role": "Human", "content": "hi"}, {"role": "AI", "content": "yes", "reasoning": "hm"},
        {"role": "user", "content": "and"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "so"},
    ]);
    let row = json!({"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]});
    place.write("a.jsonl", row.to_string());
    let output = place.run(&["data", "--data", "a.jsonl", "--model", "model"], None);
    let text = String::from_utf8(output.stdout).unwrap();
    let remarks = [
        "reasoning of 1 answer is not trained, because the chat template leaves it out",
        "1 answer is empty, so only the end of the turn is trained",
        "1 chat ends with a question without an answer, which is not trained",
        "tools of 1 row are not in the text, because the chat template leaves them out",
    ];
    assert!(text.contains(&format!("; {}\n", remarks.join("; "))), "{text}");
    for remark in remarks {
        assert!(text.contains(&format!("({remark})\n")), "{text}");
    }
    let counts = &place.json(&["data", "--data", "a.jsonl", "--model", "model", "--json"])["splits"]["train"];
    for key in ["reasoning_left_out", "empty_answers", "unanswered", "tools_left_out"] {
        assert_eq!(counts[key], 1, "{key}");
    }
    place.write("b.jsonl", "{\"messages\": [{\"role\": \"narrator\", \"content\": \"a\"}]}\n");
    let (code, message) = place.refused(&["data", "--data", "b.jsonl", "--model", "model"]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("b.jsonl (line 1): message 1 has the role 'narrator'"), "{message}");
}

#[test]
fn data_shows_what_is_trained_and_what_is_left_out() {
    let place = Workplace::new();
    let long = "x".repeat(60);
    let rows = [
        json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}),
        json!({"messages": [{"role": "system", "content": "s"}]}),
        json!({"prompt": "hi", "completion": long}),
        json!({"prompt": long, "completion": "yes"}),
    ];
    place.write("a.jsonl", rows.map(|row| row.to_string() + "\n").concat());
    let arguments = ["data", "--data", "a.jsonl", "--model", "model", "--max-length", "40", "--rows", "2"];
    let output = place.run(&arguments, None);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("a.jsonl, line 1: 26 tokens, 4 trained\n<|im_start|>user\nhi<|im_end|>\n"),
        "{text}"
    );
    assert!(text.contains("<|im_start|>assistant\n⟦yes<|im_end|>⟧\n"), "{text}");
    assert!(text.contains("a.jsonl, line 2: left out: no assistant answer to train\n"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains("line 3:"), "{text}");
    let summary = "train: 4 rows, 66 tokens, 23 trained; 1 sequence cut to 40 tokens; 1 row left out: no assistant answer to \
                   train (first: line 2); 1 row left out: the prompt alone reaches the maximum length (first: line 4)\n";
    assert!(text.contains(summary), "{text}");

    let shown = place.json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(shown["splits"]["train"]["rows"], 4);
    assert_eq!(shown["splits"]["train"]["left_out"][0]["place"], "line 2");
    let parts = &shown["rows"][0]["samples"][0]["parts"];
    assert_eq!(parts[1], json!({"text": "yes<|im_end|>", "trained": true}));
    let without = place.json(&["data", "--data", "a.jsonl", "--json", "--rows", "1"]);
    assert_eq!(without["rows"][0]["messages"], rows_of_first());
}

fn rows_of_first() -> Value {
    json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
}

#[test]
fn a_file_is_trained_with_rows_taken_for_validation() {
    let place = Workplace::new();
    let lines: String = (0..40).map(|i| format!("\"question {i}\",answer {i}\n")).collect();
    place.write("mine.csv", format!("q,a\n{lines}"));
    let arguments = [
        "train",
        "--model",
        "model",
        "--data",
        "mine.csv",
        "--columns",
        "prompt=q,completion=a",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--dry-run",
        "--json",
    ];
    let output = place.run(&arguments, None);
    let notes = String::from_utf8(output.stderr).unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["examples"], 38, "{notes}");
    assert!(
        notes.contains("train: 38 rows, ") && notes.contains("valid: 2 rows taken from train"),
        "{notes}"
    );
}

#[test]
fn a_data_set_of_the_hub_is_fetched_once_and_used_without_it() {
    let place = Workplace::new();
    let rows: String = (0..3).map(|i| format!("{{\"q\": \"hi {i}\", \"a\": \"yes\"}}\n")).collect();
    let hub = FakeHub::serve(
        "org/set",
        &[
            ("data/train.jsonl", rows.as_bytes()),
            ("data/test.jsonl", b"{\"q\": \"hi\", \"a\": \"yes\"}\n"),
            ("README.md", b"# set"),
        ],
    );
    let arguments = [
        "eval",
        "--device",
        "cpu",
        "--model",
        "model",
        "--data",
        "org/set",
        "--columns",
        "prompt=q,completion=a",
        "--json",
    ];
    for endpoint in [Some(hub.url.as_str()), Some(hub.url.as_str()), None] {
        let output = place.run(&arguments, endpoint);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["tokens"], 4);
    }
    assert_eq!(hub.asked("train.jsonl"), 1);
    let train = place.run(&[&arguments[..], &["--split", "train"]].concat(), Some(&hub.url));
    let found: Value = serde_json::from_slice(&train.stdout).unwrap();
    assert_eq!(found["tokens"], 12);
    let output = place.run(&[&arguments[..], &["--split", "dev"]].concat(), Some(&hub.url));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("no split 'dev'") && message.contains("--split: test, train"), "{message}");
}
