//! Runs that are resumed after their end, after damage, and in another place.

#[path = "tiny_model/flags.rs"]
mod flags;
mod tiny_model;

use std::path::Path;

use flags::replaced;
use serde_json::Value;
use tiny_model::Bench;

/// A run of four steps without validation into `out`.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let arguments =
        ["train", "--model", "model", "--data", "rows", "--out", out, "--steps", "4", "--rank", "2"];
    replaced(&[&arguments[..], &["--save-every", "2", "--no-samples"]].concat(), more)
}

/// A bench whose data `rows` has no rows for validation.
fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("rows")).unwrap();
    std::fs::copy(bench.path("data/train.jsonl"), bench.path("rows/train.jsonl")).unwrap();
    bench
}

/// Standard output and standard error of a command that succeeds.
fn said(bench: &Bench, arguments: &[&str]) -> (String, String) {
    let output = bench.run(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{arguments:?}: {err}");
    (out, err)
}

/// Runs the command that an output advises after these words.
fn follow(bench: &Bench, output: &str, after: &str) -> String {
    let command =
        output.split(after).nth(1).and_then(|rest| rest.lines().next()).unwrap_or_else(|| panic!("{output}"));
    let words: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).collect();
    assert_eq!(words[0], "metal-candle", "{command}");
    said(bench, &[&words[1..], &["--no-samples"]].concat()).0
}

/// It printed "training loss NaN, 0 tokens/s", and no way to train further.
#[test]
fn a_run_that_has_ended_says_so_and_how_to_train_further() {
    let bench = bench();
    bench.ok(&train("out", &[]));
    let resume = ["train", "--config", "out/run.toml", "--resume"];
    let adapter = std::fs::read(bench.path("out/adapter_model.safetensors")).unwrap();
    let (out, _) = said(&bench, &resume);
    assert!(out.contains("the run in out has ended: all of its 4 steps are done\n"), "{out}");
    assert!(!out.contains("NaN") && !out.contains("tokens/s"), "{out}");
    assert!(std::fs::read(bench.path("out/adapter_model.safetensors")).unwrap() == adapter);
    follow(&bench, &out, "to train further: ");
    assert!(bench.path("out-2/adapter_model.safetensors").exists());
    let json: Value = serde_json::from_str(&bench.ok(&[&resume[..], &["--json"]].concat())).unwrap();
    assert_eq!((&json["ended"], &json["steps"]), (&Value::Bool(true), &Value::from(4)));
    // An adapter that a crash kept from being written is written.
    std::fs::remove_file(bench.path("out/adapter_model.safetensors")).unwrap();
    said(&bench, &resume);
    assert!(std::fs::read(bench.path("out/adapter_model.safetensors")).unwrap() == adapter);

    // A constant rate does not depend on the number of steps.
    bench.ok(&train("constant", &["--schedule", "constant"]));
    let (out, _) = said(&bench, &["train", "--config", "constant/run.toml", "--resume"]);
    assert!(
        out.contains("train further: metal-candle train --config constant/run.toml --steps 8 --resume"),
        "{out}"
    );
    follow(&bench, &out, "to train further: ");
    assert!(bench.path("constant/checkpoints/step-000008").exists());
    let (code, message) = bench.refused(&train("out", &["--steps", "9", "--resume"]));
    assert!(
        code == 3 && message.contains("metal-candle train --config out/run.toml --adapter out --out NEW"),
        "{message}"
    );
}

/// The run's own settings hold for what the command leaves out.
#[test]
fn a_run_is_resumed_by_its_folder() {
    let bench = bench();
    for (index, resume) in [
        &["train", "--resume", "--out", "out"][..],
        &["train", "out", "--resume"],
        &["train", "--config", "out", "--resume"],
    ]
    .into_iter()
    .enumerate()
    {
        let steps = (6 + 2 * index).to_string();
        bench.ok(&train("out", &["--schedule", "constant", "--overwrite"]));
        said(&bench, &[resume, &["--steps", &steps, "--no-samples"]].concat());
        assert!(bench.path(&format!("out/checkpoints/step-{steps:0>6}")).exists(), "{resume:?}");
    }
    let (code, message) = bench.refused(&["train", "--resume", "--out", "out", "--rank", "3"]);
    assert!(
        code == 3 && message.contains("settings: adapted modules was") && message.contains("rank was 2"),
        "{message}"
    );
}

/// A resume went on behind an early stop until the next validation.
#[test]
fn a_run_that_stopped_early_has_ended() {
    let bench = bench();
    let flags = [
        "--data",
        "data",
        "--patience",
        "1",
        "--eval-every",
        "1",
        "--learning-rate",
        "0.02",
        "--steps",
        "300",
    ];
    let (_, err) = said(&bench, &train("out", &flags));
    assert!(err.contains("stopped at step"), "{err}");
    let metrics = std::fs::read(bench.path("out/metrics.jsonl")).unwrap();
    let (out, _) = said(&bench, &["train", "--config", "out/run.toml", "--resume"]);
    assert!(out.contains("the run in out has ended: it stopped early after "), "{out}");
    assert!(out.contains("; best validation loss "), "{out}");
    assert!(std::fs::read(bench.path("out/metrics.jsonl")).unwrap() == metrics, "nothing was trained");
}

/// A newest checkpoint with an empty adapter was passed over without a word.
#[test]
fn a_damaged_checkpoint_is_named_with_the_one_that_is_taken() {
    let bench = bench();
    bench.ok(&train("out", &[]));
    std::fs::write(bench.path("out/checkpoints/step-000004/adapter_model.safetensors"), "").unwrap();
    let resume = ["train", "--config", "out/run.toml", "--resume", "--no-samples"];
    let (_, err) = said(&bench, &resume);
    let warning = "warning: the checkpoint step-000004 is damaged: adapter_model.safetensors has 0 of ";
    assert!(err.contains(warning) && err.contains("; the run goes on from step-000002"), "{err}");
    assert!(!said(&bench, &resume).1.contains("damaged"), "the run wrote it again");
    for step in ["step-000002", "step-000004"] {
        std::fs::remove_file(bench.path("out/checkpoints").join(step).join("manifest.json")).unwrap();
    }
    let (code, message) = bench.refused(&resume);
    let reason = "no complete checkpoint to resume from; the checkpoint step-000004 is damaged: manifest.json is missing";
    assert!(code == 3 && message.contains(reason), "{message}");
}

/// The copy of a run wrote into the original, and only from the folder in which that had begun.
#[test]
fn a_copied_run_goes_on_in_its_own_folder_from_everywhere() {
    let bench = bench();
    bench.ok(&train("one", &["--schedule", "constant"]));
    std::fs::create_dir_all(bench.path("two/checkpoints")).unwrap();
    copy(&bench.path("one"), &bench.path("two"));
    let further = |config: &str, folder: &str| {
        let arguments = ["train", "--config", config, "--steps", "6", "--resume", "--no-samples"];
        let output = bench.command(&arguments).current_dir(bench.path(folder)).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        text
    };
    let text = further("../two/run.toml", "data");
    assert!(text.contains("the run goes on in ../two, where the file is"), "{text}");
    let has = |name: &str| bench.path(name).join("checkpoints/step-000006").exists();
    assert!(has("two") && !has("one"));
    let text = further("run.toml", "one");
    assert!(has("one") && !text.contains("where the file is"), "{text}");
    // --out chooses, as ever.
    let arguments = ["train", "--config", "two/run.toml", "--out", "three", "--steps", "2", "--no-samples"];
    said(&bench, &arguments);
    assert!(bench.path("three/run.toml").exists());
    // A file of settings elsewhere: its relative paths are as seen from the current folder, or else from its own.
    std::fs::create_dir(bench.path("project")).unwrap();
    copy(&bench.path("rows"), &bench.path("project/own"));
    std::fs::write(bench.path("project/my.yaml"), "data: own\nmodel: ../model\nsteps: 1\nout: four\n")
        .unwrap();
    said(&bench, &["train", "--config", "project/my.yaml", "--no-samples"]);
    assert!(bench.path("four/adapter_model.safetensors").exists());
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

#[test]
fn commands_and_notes_fit_the_run() {
    let bench = bench();
    let (out, err) = said(&bench, &train("my out", &["--steps", "1", "--warmup", "10"]));
    assert!(out.contains("try it: metal-candle generate --adapter 'my out' --prompt"), "{out}");
    assert!(
        err.contains("the warm-up of 10 steps is longer than the run of 1 step and is cut to it"),
        "{err}"
    );
    assert!(err.contains("40 examples, 0 for validation, 1 step\n"), "{err}");
}
