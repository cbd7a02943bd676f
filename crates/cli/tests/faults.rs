//! Runs that something goes wrong around: nobody reads the output, the model's file changes, the folder is deleted, the
//! numbers explode, the memory is too small. A run is never lost, and what happened is told.

#[path = "tiny_model/flags.rs"]
mod flags;
mod tiny_model;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flags::replaced;
use metal_candle::durable::fault::{DISK, Fault, LOG, PLAN, Plan};
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
    started_as(bench.command(arguments), bench, out)
}

/// Starts a command and waits for the first checkpoint in `out`.
fn started_as(mut command: Command, bench: &Bench, out: &str) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
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

/// As on a disk that is pulled out: reading and writing in the folder fail with EIO, and the folder beside it is no help.
#[test]
fn an_adapter_whose_disk_is_gone_is_saved_elsewhere() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("disk")).unwrap();
    let log = bench.path("operations");
    let run = |out: &str, more: [(&str, &str); 2]| {
        let mut command = bench.command(&train(out, "6", &[]));
        command.env(DISK, bench.path("disk")).envs(more).output().unwrap()
    };
    assert!(run("disk/whole", [(LOG, log.to_str().unwrap()), (PLAN, "count")]).status.success());
    let operations = std::fs::read_to_string(&log).unwrap();
    // The first rename of a checkpoint's folder: the run has trained two steps by then.
    let at = 1 + operations
        .lines()
        .position(|line| line.contains("Rename") && line.ends_with("checkpoints/step-000002"))
        .unwrap_or_else(|| panic!("{operations}"));
    let plan = Plan { fault: Fault::Dead, at: at as u64 }.to_string();
    let output = run("disk/out", [(LOG, "/dev/null"), (PLAN, &plan)]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("Input/output error") && text.contains("its disk is connected and works"),
        "{text}"
    );
    let saved = text.split("the adapter of step 2 is saved in ").nth(1).and_then(|rest| rest.lines().next());
    let folder = bench.path(saved.unwrap_or_else(|| panic!("{text}")));
    assert!(!folder.starts_with(bench.path("disk")), "{text}");
    Adapter::load(&folder).unwrap();
    let left = std::fs::read_dir(bench.path("disk")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("adapter-step-")), "{text}");
}

/// Sends a signal by its name.
#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// The handler replaced the ignored action, so that a run under `nohup` ended with its terminal.
#[cfg(unix)]
#[test]
fn a_run_under_nohup_goes_on_without_its_terminal_and_another_one_saves() {
    for (trap, expected, last) in [("trap '' HUP", 0, Some("step-000120")), ("trap - HUP", 130, None)] {
        let bench = Bench::new();
        let tool = bench.command(&train("out", if last.is_some() { "120" } else { "1000000" }, &[]));
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", &format!("{trap}; exec \"$@\""), "sh"])
            .arg(tool.get_program())
            .args(tool.get_args());
        shell.envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.current_dir(bench.path("")).stdin(Stdio::null());
        let child = started_as(shell, &bench, "out");
        send("-HUP", &child);
        let (code, text) = ended(child);
        assert_eq!(code, expected, "{trap}: {text}");
        let found = checkpoint::latest(&bench.path("out")).unwrap().unwrap();
        assert!(last.is_none_or(|last| found.ends_with(last)), "{trap}: {}", found.display());
    }
}

/// A rendering that takes seconds was gone through to its limit of steps, and its end was an error of the file.
#[cfg(unix)]
#[test]
fn a_template_whose_loops_do_not_end_obeys_the_first_signal() {
    let bench = Bench::new();
    let loops = "{% for a in range(100000) %}".repeat(4) + &"{% endfor %}".repeat(4);
    std::fs::write(bench.path("model/chat_template.jinja"), loops + "{{ messages }}").unwrap();
    std::fs::create_dir(bench.path("chats")).unwrap();
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    std::fs::write(bench.path("chats/train.jsonl"), format!("{chat}\n").repeat(8)).unwrap();
    for signal in ["-TERM", "-INT"] {
        let arguments = ["train", "--model", "model", "--data", "chats", "--out", "out", "--steps", "2"];
        let mut child =
            bench.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "the rendering ended before the signal");
        send(signal, &child);
        let start = Instant::now();
        let (code, text) = ended(child);
        assert_eq!(code, 130, "{signal}: {text}");
        assert!(
            text.contains("chat_template.jinja") && text.contains("the rendering was interrupted"),
            "{text}"
        );
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!(!bench.path("out").exists());
    }
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
