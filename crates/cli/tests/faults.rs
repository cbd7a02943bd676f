//! Runs that something goes wrong around: nobody reads the output, the model's file changes, the folder is deleted, the
//! numbers explode, the memory is too small. A run is never lost, and what happened is told.

#[path = "tiny_model/flags.rs"]
mod flags;
mod tiny_model;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use flags::replaced;
use metal_candle::training::{Adapter, checkpoint};
use tiny_model::Bench;

/// A training run into `out` with a checkpoint every second step.
fn train<'a>(out: &'a str, steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--model", "model", "--data", "data", "--out", out, "--no-samples"];
    arguments.extend(["--steps", steps, "--batch-size", "4", "--rank", "4", "--save-every", "2"]);
    replaced(&arguments, more)
}

/// Starts a run and waits for its first checkpoint.
fn started(bench: &Bench, arguments: &[&str], out: &str) -> Child {
    let mut child = bench.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !checkpoint::latest(&bench.path(out)).is_ok_and(|found| found.is_some()) {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its first checkpoint");
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn ended(child: Child) -> (i32, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    (status.code().unwrap_or_else(|| panic!("ended by a signal: {status}, {text}")), text)
}

/// `eprintln!` panicked at the first line after the reader had gone, and no checkpoint was left.
#[test]
fn a_run_goes_on_when_nobody_reads_its_messages() {
    let bench = Bench::new();
    // As `2>&1 | head -1`.
    let mut child = bench
        .command(&train("out", "40", &["--report-every", "1"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("rows"), "{line}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let last = checkpoint::latest(&bench.path("out")).unwrap().unwrap();
    assert!(last.ends_with("step-000040"), "{}", last.display());
    Adapter::load(&bench.path("out")).unwrap();
}

/// A device on which every write fails for lack of space.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_a_redirection_does_not_end_a_run() {
    let bench = Bench::new();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let status =
        bench.command(&train("out", "6", &[])).stdout(Stdio::null()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(checkpoint::latest(&bench.path("out")).unwrap().unwrap().ends_with("step-000006"));
    // A result that was asked for and cannot be written is an error, after everything is saved.
    let output = bench.command(&train("json", "6", &["--json"])).stdout(full()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error: standard output: cannot write the result: No space left on device"),
        "{text}"
    );
    Adapter::load(&bench.path("json")).unwrap();
}

#[test]
fn an_answer_into_a_closed_pipe_ends_quietly() {
    let bench = Bench::new();
    let arguments = ["generate", "--model", "model", "--raw", "--prompt", "ab", "--max-tokens", "60"];
    let mut child = bench.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), ""));
}

/// Each of these began a run, reached an allocation of what it asked for, or took another value silently.
#[test]
fn numbers_out_of_range_are_refused_at_once() {
    let bench = Bench::new();
    for (flag, value, range) in [
        ("--rank", "1000000000", "use a whole number from 1 to 16384"),
        ("--rank-pattern", "q_proj=1e30", "use a whole number from 1 to 16384"),
        ("--accumulation", "0", "use a whole number from 1 to 4096"),
        ("--accumulation", "1000000000000", "use a whole number from 1 to 4096"),
        ("--batch-size", "1000000000", "use a whole number from 1 to 65536"),
        ("--max-length", "99999999999", "use a whole number from 2 to 1048576"),
        ("--steps", "99999999999", "use a whole number from 1 to 1000000000"),
        ("--warmup", "99999999999", "use a whole number from 0 to 1000000000"),
        ("--weight-decay", "nan", "use a number from 0 to 10"),
        ("--weight-decay", "-1", "use a number from 0 to 10"),
        ("--learning-rate", "nan", "use a number above 0, up to 10"),
        ("--learning-rate", "inf", "use a number above 0, up to 10"),
        ("--learning-rate", "-1e-3", "use a number above 0, up to 10"),
        ("--dropout", "1", "use a number from 0 to below 1"),
        ("--alpha", "nan", "use a number above 0, up to 1000000"),
        ("--threads", "5000", "use a whole number from 0 to 1024"),
    ] {
        let set = format!("{flag}={value}");
        let (code, message) =
            bench.refused(&["train", "--model", "model", "--data", "data", "--out", "o", &set]);
        assert_eq!(code, 3, "{set}: {message}");
        assert!(message.contains(&flag[2..]) && message.contains(range), "{set}: {message}");
        assert!(!bench.path("o").exists());
    }
    for (flag, value) in [("--temperature", "nan"), ("--top-p", "0"), ("--min-p", "1"), ("--max-tokens", "0")]
    {
        let set = format!("{flag}={value}");
        let (code, message) = bench.refused(&["generate", "--model", "model", "--prompt", "x", &set]);
        assert!(code == 3 && message.contains(flag) && message.contains("use a "), "{set}: {message}");
    }
}

/// The file of the model was cut off: SIGBUS. It was overwritten: training went on with the new numbers, with exit code 0.
#[cfg(unix)]
#[test]
fn a_model_that_changes_while_it_is_trained_ends_the_run_and_the_checkpoint_stays() {
    for (change, part) in [
        (
            &(|path: &Path| File::options().write(true).open(path).unwrap().set_len(5000).unwrap())
                as &dyn Fn(&Path),
            "its size changed from",
        ),
        (
            &|path: &Path| {
                let mut bytes = std::fs::read(path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle..].reverse();
                // In place: the file keeps its inode.
                use std::io::{Seek, Write};
                let mut file = File::options().write(true).open(path).unwrap();
                file.rewind().unwrap();
                file.write_all(&bytes).unwrap();
            },
            "it was written to",
        ),
    ] {
        let bench = Bench::new();
        let child = started(&bench, &train("out", "1000000", &[]), "out");
        change(&bench.path("model/model.safetensors"));
        let (code, text) = ended(child);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("model.safetensors: was changed while it was in use") && text.contains(part),
            "{text}"
        );
        assert!(text.contains("out/run.toml --resume continues from the last checkpoint"), "{text}");
        assert!(checkpoint::latest(&bench.path("out")).unwrap().is_some());
    }
}

/// Tools that write models replace them by name. The run keeps the file that it opened.
#[cfg(unix)]
#[test]
fn a_model_that_is_replaced_by_name_does_not_disturb_a_run() {
    let bench = Bench::new();
    let child = started(&bench, &train("out", "60", &[]), "out");
    std::fs::write(bench.path("model/new"), b"another model").unwrap();
    std::fs::rename(bench.path("model/new"), bench.path("model/model.safetensors")).unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, 0, "{text}");
}

/// The run ended with "cannot read metrics.jsonl" after the last step, and the best adapter was nowhere.
#[cfg(unix)]
#[test]
fn a_folder_that_is_deleted_during_a_run_is_made_again() {
    let bench = Bench::new();
    let child = started(&bench, &train("out", "120", &["--eval-every", "40"]), "out");
    let aside = bench.path("aside");
    std::fs::rename(bench.path("out"), &aside).unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("warning: out was deleted while the run was writing into it; it is made again"),
        "{text}"
    );
    Adapter::load(&bench.path("out")).unwrap();
    assert!(bench.path("out/run.toml").exists());
    let again = bench.ok(&["train", "--config", "out/run.toml", "--resume", "--json", "--no-samples"]);
    assert!(again.contains("\"steps\":120"), "{again}");
}

#[cfg(unix)]
#[test]
fn an_adapter_whose_folder_cannot_be_made_again_is_saved_elsewhere() {
    let bench = Bench::new();
    let child = started(&bench, &train("deep/out", "1000000", &[]), "deep/out");
    std::fs::rename(bench.path("deep"), bench.path("aside")).unwrap();
    std::fs::write(bench.path("deep"), "in the way").unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, 3, "{text}");
    let folder = text.split("is saved in ").nth(1).and_then(|rest| rest.lines().next()).expect(&text);
    Adapter::load(&bench.path(folder)).unwrap();
}

/// The command that a full memory asks for, and the one that runs anyway.
#[test]
fn a_run_that_does_not_fit_says_so_before_it_begins() {
    let bench = Bench::new();
    let with_limit = |limit: &str, more: &[&str]| {
        let mut command = bench.command(&train("out", "2", more));
        let output = command.env("METAL_CANDLE_MEMORY_LIMIT", limit).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = with_limit("1000", &[]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("METAL_CANDLE_MEMORY_LIMIT allows 1000 B") && text.contains("--no-memory-check"),
        "{text}"
    );
    assert!(!bench.path("out").exists(), "nothing is written for a run that cannot start");
    let (code, text) = with_limit("1000", &["--no-memory-check"]);
    assert_eq!(code, 0, "{text}");
}

/// A loss of ln V, from logits that overflow, was the best so far where the untrained model was worse, and the run ended
/// with exit code 0.
#[test]
fn settings_that_destroy_the_model_are_told_and_fail() {
    let bench = Bench::new();
    let output = bench.run(&train("out", "400", &["--learning-rate", "10", "--alpha", "1000000"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("training has diverged") && text.contains("lower learning rate"), "{text}");
    assert!(!text.contains("best so far"), "{text}");
}
