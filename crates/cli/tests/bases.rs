//! Base models of adapters: they are found from every folder, and another one is announced.

mod tiny_model;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tiny_model::Bench;

/// A bench with a run of two steps in `out`.
fn trained() -> Bench {
    let bench = Bench::new();
    let run = ["train", "--model", "model", "--data", "data", "--out", "out", "--steps", "2", "--rank", "2"];
    bench.ok(&[&run[..], &["--no-samples", "--json"]].concat());
    bench
}

/// Generates in a folder and returns standard error.
fn generated(bench: &Bench, folder: &str, arguments: &[&str]) -> String {
    let output = generate(bench, folder, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    text
}

fn generate(bench: &Bench, folder: &str, arguments: &[&str]) -> Output {
    let all = ["generate", "--prompt", "1 and 1 ", "--max-tokens", "2"];
    let mut command = bench.command(&[&all, arguments].concat());
    command.current_dir(bench.path(folder)).output().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Copies the files of an adapter, and nothing of its run, with another base.
fn adapter(bench: &Bench, name: &str, base: &str) {
    std::fs::create_dir(bench.path(name)).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(bench.path("out").join(file), bench.path(name).join(file)).unwrap();
    }
    let path = bench.path(name).join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["base_model_name_or_path"] = base.into();
    std::fs::write(path, config.to_string()).unwrap();
}

/// The base was written as the path that was given, and looked for in the current folder only.
#[test]
fn a_base_on_this_machine_is_found_from_every_folder() {
    let bench = trained();
    let config = std::fs::read(bench.path("out/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let base = config["base_model_name_or_path"].as_str().unwrap();
    assert_eq!(std::fs::canonicalize(base).unwrap(), std::fs::canonicalize(bench.path("model")).unwrap());
    std::fs::create_dir(bench.path("elsewhere")).unwrap();
    copy(&bench.path("out/checkpoints/step-000002"), &bench.path("point"));
    adapter(&bench, "copied", base);
    for name in ["../out", "../out/checkpoints/step-000002", "../point", "../copied"] {
        let text = generated(&bench, "elsewhere", &["--adapter", name]);
        assert!(!text.contains("WARN"), "{name}: {text}");
    }
    // Relative bases of earlier versions and of other tools: as seen from the current folder, then from the adapter's.
    adapter(&bench, "near", "../model");
    for (folder, name) in [("elsewhere", "../near"), (".", "near"), ("model", "../near")] {
        let text = generated(&bench, folder, &["--adapter", name]);
        assert!(!text.contains("WARN"), "{folder}: {text}");
    }
    adapter(&bench, "lost", "models/tiny.v1/gone");
    let (code, message) = bench.refused(&["generate", "--adapter", "lost", "--prompt", "a"]);
    assert!(
        code == 3 && message.contains("the adapter lost was made for 'models/tiny.v1/gone'"),
        "{message}"
    );
    assert!(message.contains("--model /path/to/model"), "{message}");
    // A name of this form may be one of the hub.
    adapter(&bench, "hub", "models/tiny");
    let (code, message) = bench.refused(&["generate", "--adapter", "hub", "--prompt", "a"]);
    assert!(
        code == 4 && message.contains("the adapter hub needs its base model: 'models/tiny' is not"),
        "{message}"
    );
    assert!(message.contains("pass its base model: --model"), "{message}");
}

#[test]
fn a_base_of_other_content_is_announced_whatever_its_name() {
    let bench = trained();
    // The same weights under another name are the same base.
    copy(&bench.path("model"), &bench.path("renamed"));
    let text = generated(&bench, ".", &["--adapter", "out", "--model", "renamed"]);
    assert!(!text.contains("WARN"), "{text}");
    let weights = bench.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let text = generated(&bench, ".", &["--adapter", "out"]);
    assert!(
        text.contains("the adapter out was trained on ") && text.contains("/model, whose weights differ"),
        "{text}"
    );
    assert!(text.contains("those of the model in use, "), "{text}");
    let merge = bench.run(&["merge", "--adapter", "out", "--model", "model", "--out", "merged"]);
    assert!(
        String::from_utf8_lossy(&merge.stderr)
            .contains("whose weights differ from those of the model in use, model")
    );
    // In another dtype the content cannot be compared; the names are the same.
    let text = generated(&bench, ".", &["--adapter", "out", "--dtype", "bf16"]);
    assert!(!text.contains("WARN"), "{text}");
}

#[test]
fn an_adapter_or_a_prompt_in_the_place_of_the_model_is_named_for_what_it_is() {
    let bench = trained();
    for (arguments, cause, advice) in [
        (
            &["generate", "--model", "out", "--prompt", "a"][..],
            "out: is an adapter, not a model",
            "generate --adapter out",
        ),
        (&["train", "--model", "out", "--data", "data"], "out: is an adapter, not a model", "--adapter out"),
        (
            &["run", "out", "a b"],
            "out: is an adapter, not a model",
            "metal-candle run --adapter out --prompt 'a b'",
        ),
        (&["run", "hi there"], "'hi there' is not a model", "metal-candle run smollm2-135m 'hi there'"),
        (
            &["run", "--adapter", "out", "hi"],
            "'hi' is not a model",
            "metal-candle run --adapter out --prompt hi",
        ),
        (&["merge", "out"], "`metal-candle merge` does not take 'out'", "for an adapter use --adapter out"),
        (&["eval", "out"], "`metal-candle eval` does not take 'out'", "for an adapter use --adapter out"),
    ] {
        let (_, message) = bench.refused(arguments);
        assert!(message.contains(cause) && message.contains(advice), "{arguments:?}: {message}");
    }
}
