//! `cargo xtask mac`: the whole first run on a real Mac by one command, with a report to send.
//!
//! A failing step does not stop the ones after it. Everything goes to `target/mac-report`: `report.md` for people,
//! `report.json` for programs, the log of every step, and what the steps measured. The report is written after every step, so
//! that a machine that hangs leaves what was found before.

mod leaks;
mod machine;
mod report;
mod steps;

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use super::{Counts, cargo, root};
use report::{Outcome, Report, Verdict};
use steps::{Action, Invocation, Step};

const HELP: &str = "cargo xtask mac [--list] [--only STEP,STEP]\n\
                    runs every step on a Mac and writes target/mac-report; --list shows the steps, --only chooses some";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    List,
    Run(Vec<Step>),
}

/// Runs the task. The exit code is 0 if every step passed, 1 if one failed, 2 for wrong usage or another system.
pub(crate) fn mac(arguments: &[String]) -> ExitCode {
    let steps = match request(arguments) {
        Err(message) => {
            eprintln!("error: {message}\n{HELP}");
            return ExitCode::from(2);
        }
        Ok(Request::List) => {
            for step in steps::all() {
                println!("{:<16} {}", step.name, step.what);
            }
            return ExitCode::SUCCESS;
        }
        Ok(Request::Run(steps)) => steps,
    };
    if let Some(message) = refusal(std::env::consts::OS) {
        eprintln!("error: {message}");
        return ExitCode::from(2);
    }
    match run(&steps, &root().join(steps::FOLDER)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Why the task cannot run on a system, if it cannot.
fn refusal(system: &str) -> Option<String> {
    (system != "macos").then(|| format!("cargo xtask mac needs a Mac; this system is {system}"))
}

fn request(arguments: &[String]) -> Result<Request, String> {
    match arguments {
        [] => Ok(Request::Run(steps::all())),
        [list] if list == "--list" => Ok(Request::List),
        [only, names] if only == "--only" => {
            let all = steps::all();
            let chosen = names.split(',').map(|name| {
                let found = all.iter().find(|step| step.name == name).cloned();
                found.ok_or_else(|| {
                    let known: Vec<&str> = all.iter().map(|step| step.name).collect();
                    format!("there is no step '{name}'; the steps are {}", known.join(", "))
                })
            });
            Ok(Request::Run(chosen.collect::<Result<_, _>>()?))
        }
        _ => Err(format!("unknown arguments: {}", arguments.join(" "))),
    }
}

/// Runs the steps, with results in `folder`, and returns true if all of them passed.
fn run(steps: &[Step], folder: &Path) -> Result<bool, String> {
    prepare(folder)?;
    let mut report = Report::new(machine::describe());
    let mut model = std::env::var("METAL_CANDLE_MODEL").ok();
    for step in steps {
        println!("== {}: {}", step.name, step.what);
        let outcome = perform(step, model.as_deref(), folder);
        if step.name == steps::MODEL && outcome.verdict == Verdict::Passed {
            let log = std::fs::read_to_string(folder.join(format!("{}.log", step.name))).unwrap_or_default();
            model = model.or_else(|| model_path(&log));
        }
        println!("   {}", outcome.line());
        report.outcomes.push(outcome);
        report.write(folder)?;
    }
    collect(folder)?;
    println!("{}\nreport: {}", report.summary(), folder.join("report.md").display());
    println!("please send the folder {}", folder.display());
    Ok(report.passed())
}

/// An empty folder with a copy of the table that `bench --fill` fills, so that the repository stays as it is.
fn prepare(folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|error| failed(folder, error))?;
    }
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let table = root().join("docs/MPS_BENCHMARKS.md");
    std::fs::copy(&table, folder.join("MPS_BENCHMARKS.md")).map_err(|error| failed(&table, error))?;
    Ok(())
}

/// Copies the answers to the calibration questions, which the tests write to `target/calibration`.
fn collect(folder: &Path) -> Result<(), String> {
    let Ok(entries) = std::fs::read_dir(root().join("target/calibration")) else { return Ok(()) };
    for entry in entries.flatten() {
        let to = folder.join(entry.file_name());
        std::fs::copy(entry.path(), &to).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(())
}

/// Finds the path that `metal-candle pull --json` printed.
fn model_path(log: &str) -> Option<String> {
    let objects = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    objects.filter_map(|object| object["path"].as_str().map(str::to_owned)).next_back()
}

/// Runs one step, with everything it prints in `<step>.log`. Tests and benchmarks find the default model by `model`.
fn perform(step: &Step, model: Option<&str>, folder: &Path) -> Outcome {
    let log = folder.join(format!("{}.log", step.name));
    let begun = Instant::now();
    let verdict = match &step.action {
        Action::Run(invocation) => execute(&command(invocation, model), &log, step.limit),
        Action::Leaks(check) => leaks::check(check, &log, step.limit),
    };
    let text = std::fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Outcome {
        name: step.name,
        what: step.what,
        command: step.action.to_string(),
        place: (verdict != Verdict::Passed).then(|| report::place(&text)).flatten(),
        verdict,
        seconds: begun.elapsed().as_secs_f64(),
        tests: Counts::read(&text),
    }
}

/// A command as data: program, arguments and variables.
struct Line {
    program: String,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

fn command(invocation: &Invocation, model: Option<&str>) -> Line {
    let fixed = invocation.variables.iter().map(|&(name, value)| (name, value.to_owned()));
    let variables = fixed.chain(model.map(|path| ("METAL_CANDLE_MODEL", path.to_owned())));
    Line {
        program: cargo().get_program().to_string_lossy().into_owned(),
        arguments: invocation.arguments.iter().map(ToString::to_string).collect(),
        variables: variables.collect(),
    }
}

/// Runs a command with its output appended to the log, and ends it after the time limit.
fn execute(line: &Line, log: &Path, limit: Duration) -> Verdict {
    let output = || File::options().create(true).append(true).open(log);
    let (stdout, stderr) = match (output(), output()) {
        (Ok(stdout), Ok(stderr)) => (stdout, stderr),
        (Err(error), _) | (_, Err(error)) => {
            return Verdict::NotStarted(format!("{}: {error}", log.display()));
        }
    };
    let mut command = Command::new(&line.program);
    command.args(&line.arguments).envs(line.variables.iter().map(|(name, value)| (name, value)));
    command.current_dir(root()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Verdict::NotStarted(format!("{}: {error}", line.program)),
    };
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Verdict::Passed,
            Ok(Some(status)) => return Verdict::Failed(status.to_string()),
            Ok(None) if begun.elapsed() > limit => {
                // cargo's own child, which may wait for the GPU for ever, then cargo.
                let children = ["-KILL", "-P", &child.id().to_string()];
                let _ = Command::new("pkill").args(children).status();
                let _ = child.kill();
                let _ = child.wait();
                return Verdict::TimedOut(limit);
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Verdict::NotStarted(format!("{}: {error}", line.program)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn other_systems_are_refused_in_one_sentence() {
        assert_eq!(refusal("macos"), None);
        assert_eq!(refusal("linux").unwrap(), "cargo xtask mac needs a Mac; this system is linux");
        if std::env::consts::OS != "macos" {
            assert_eq!(format!("{:?}", mac(&[])), format!("{:?}", ExitCode::from(2)));
        }
    }

    #[test]
    fn steps_are_chosen_by_name() {
        assert_eq!(request(&[]), Ok(Request::Run(steps::all())));
        assert_eq!(request(&words("--list")), Ok(Request::List));
        let Ok(Request::Run(chosen)) = request(&words("--only tune,kernels")) else { panic!("two steps") };
        assert_eq!(chosen.iter().map(|step| step.name).collect::<Vec<_>>(), ["tune", "kernels"]);
        let error = request(&words("--only kernel")).unwrap_err();
        assert!(error.starts_with("there is no step 'kernel'; the steps are kernels, doctor, "), "{error}");
        assert_eq!(request(&words("--fast")).unwrap_err(), "unknown arguments: --fast");
    }

    #[test]
    fn the_model_is_what_the_tool_has_pulled() {
        let log = "downloading 12 %\n{\"path\": \"/cache/a.gguf\", \"bytes\": 94}\n";
        assert_eq!(model_path(log).as_deref(), Some("/cache/a.gguf"));
        assert_eq!(model_path("error: not reached\n"), None);
        let invocation = Invocation { arguments: vec!["test"], variables: &[("A", "1")] };
        let line = command(&invocation, Some("/cache/a.gguf"));
        let found: Vec<(&str, &str)> =
            line.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(found, [("A", "1"), ("METAL_CANDLE_MODEL", "/cache/a.gguf")]);
        assert_eq!(line.arguments, ["test"]);
    }

    fn shell(script: &str) -> Line {
        Line {
            program: "sh".to_owned(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            variables: Vec::new(),
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("metal-candle-mac-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_command_passes_fails_or_cannot_start_and_leaves_its_output() {
        let folder = scratch("execute");
        let (log, limit) = (folder.join("log"), Duration::from_secs(60));
        assert_eq!(execute(&shell("echo one; echo two >&2"), &log, limit), Verdict::Passed);
        let failed = execute(&shell("echo three; exit 7"), &log, limit);
        assert_eq!(failed, Verdict::Failed("exit status: 7".to_owned()));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\nthree\n");
        let missing = Line { program: "no-such-program".to_owned(), ..shell("") };
        assert!(
            matches!(execute(&missing, &log, limit), Verdict::NotStarted(why) if why.contains("no-such-program"))
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failing_step_does_not_stop_the_others() {
        let folder = scratch("run");
        let step = |name, arguments: &[&'static str]| {
            let invocation = Invocation { arguments: arguments.to_vec(), variables: &[] };
            let limit = Duration::from_secs(60);
            Step { name, what: "a step", action: Action::Run(invocation), limit }
        };
        let steps = [step("first", &["no-such-command"]), step("second", &["--version"])];
        assert_eq!(run(&steps, &folder), Ok(false));
        assert_eq!(run(&steps[1..], &folder), Ok(true), "an old report is replaced");
        assert_eq!(run(&steps, &folder), Ok(false));
        let text = std::fs::read_to_string(folder.join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let results = [0, 1].map(|index| report["steps"][index]["result"].as_str().unwrap().to_owned());
        assert_eq!(results, ["failed", "passed"]);
        let place = report["steps"][0]["place"].as_str().unwrap();
        assert!(place.contains("no-such-command"), "{place}");
        assert!(std::fs::read_to_string(folder.join("second.log")).unwrap().starts_with("cargo "));
        assert!(folder.join("MPS_BENCHMARKS.md").exists() && folder.join("report.md").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_child() {
        let folder = scratch("hang");
        let begun = Instant::now();
        let limit = Duration::from_millis(300);
        let verdict = execute(&shell("sleep 600; true"), &folder.join("log"), limit);
        assert_eq!(verdict, Verdict::TimedOut(limit));
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
