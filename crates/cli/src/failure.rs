//! Errors as a person sees them: an exit code, one line of cause, one line of advice.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the run itself failed |
//! | 2 | wrong usage: an unknown command, flag or choice, flags that contradict each other, text where a number must be |
//! | 3 | bad input: a file or a configuration is not what it must be, a number is out of its range |
//! | 4 | a model, the hub or the package index could not be reached, or gave something else |
//! | 130 | interrupted; 128 plus the number of SIGINT, as shells count |

use std::fmt;
use std::process::ExitCode;

use crate::console;
use crate::interrupt::Interrupt;

/// The exit codes, as `--help` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The run itself failed.
    Run = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// A file, a configuration or a number is not what it must be.
    Input = 3,
    /// A model, the hub or the package index could not be reached.
    Unreachable = 4,
    /// The user asked to stop.
    Interrupted = 130,
}

/// A failure that knows its exit code and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) cause: String,
    pub(crate) advice: String,
}

impl Failure {
    pub(crate) fn new(code: Code, cause: impl Into<String>, advice: impl Into<String>) -> Self {
        let (cause, advice) = (one_line(&cause.into()), one_line(&advice.into()));
        // Errors of the library end with their advice.
        let cause = match cause.strip_suffix(&advice).and_then(|before| before.strip_suffix("; ")) {
            Some(before) if !before.is_empty() => before.to_owned(),
            _ => cause,
        };
        Self { code, cause, advice }
    }

    /// A command line that cannot be understood.
    pub(crate) fn usage(cause: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Code::Usage, cause, advice)
    }

    /// Prints one line of cause and one of advice, and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        console::note_line(&format!("error: {}\n  try: {}", self.cause, self.advice));
        ExitCode::from(self.code as u8)
    }

    /// A bad file, configuration or value.
    pub(crate) fn input(cause: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Code::Input, cause, advice)
    }

    /// A model or a network that is not reached.
    pub(crate) fn unreachable(cause: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Code::Unreachable, cause, advice)
    }

    /// The user asked to stop.
    pub(crate) fn interrupted(cause: impl Into<String>) -> Self {
        Self::new(Code::Interrupted, cause, "run the same command again; what is complete is kept")
    }

    /// What `error` amounts to: the nearest failure in its chain, or the library's error, or a plain failed run.
    pub(crate) fn of(error: &anyhow::Error, interrupt: &Interrupt) -> Self {
        let cause = cause(error);
        if let Some(failure) = error.chain().find_map(|e| e.downcast_ref::<Self>()) {
            return Self::new(failure.code, cause, failure.advice.clone());
        }
        if let Some(library) = error.chain().find_map(|e| e.downcast_ref::<metal_candle::Error>()) {
            // The rendering of a template that was stopped is an error of the template's file.
            if interrupt.requested() && matches!(library, metal_candle::Error::File { .. }) {
                return Self::interrupted(cause);
            }
            let (code, advice) = of_library(library);
            return match (library, own_advice(&cause)) {
                (
                    metal_candle::Error::File { .. } | metal_candle::Error::Invalid { .. },
                    Some((cause, own)),
                ) => Self::new(code, cause, own),
                _ => Self::new(code, cause, advice),
            };
        }
        if interrupt.requested() {
            return Self::interrupted(cause);
        }
        Self::new(Code::Run, cause, "run it again with --verbose, or `metal-candle doctor`")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Failure {}

/// The advice at the end of a library error's message, apart from the cause.
fn own_advice(message: &str) -> Option<(&str, &str)> {
    const VERBS: [&str; 22] = [
        "choose", "pass", "use", "give", "fetch", "save", "copy", "remove", "convert", "store", "correct",
        "leave", "raise", "shorten", "check", "write", "join", "merge", "start", "set", "quote", "name",
    ];
    let (cause, advice) = message.rsplit_once("; ")?;
    let first = advice.split(' ').next()?;
    VERBS.contains(&first).then_some((cause, advice))
}

/// Code and advice for the library's error; its message already names the place and what was expected.
fn of_library(error: &metal_candle::Error) -> (Code, String) {
    use metal_candle::Error;
    match error {
        Error::File { .. } => (Code::Input, "correct the file named above, or pass another one".to_owned()),
        Error::Invalid { .. } => {
            (Code::Input, "correct that value; --help lists what each flag takes".to_owned())
        }
        Error::OtherRun { .. } => {
            let advice = "resume with the settings in the run's run.toml (--config), or leave out --resume";
            (Code::Input, advice.to_owned())
        }
        Error::Io { source, .. } => {
            let (code, advice) = of_io(source.kind());
            (code, advice.to_owned())
        }
        Error::Changed { .. } => {
            let advice = "put the file back as it was, and go on from the last checkpoint with --resume, or begin anew";
            (Code::Run, advice.to_owned())
        }
        Error::Diverged { advice, .. } => (Code::Run, advice.clone()),
        Error::Unsupported { advice, .. } | Error::NonFinite { advice, .. } => (Code::Run, advice.clone()),
        Error::Stopped { .. } => (Code::Interrupted, "run the same command again".to_owned()),
        Error::Interrupted { advice, .. } => (Code::Interrupted, advice.clone()),
        Error::OutOfMemory { .. } => {
            (Code::Run, "use a smaller --batch-size or --max-length, or --grad-checkpoint".to_owned())
        }
        _ => (Code::Run, "run it again with --verbose, or `metal-candle doctor`".to_owned()),
    }
}

/// Code and advice for what the system refused. A disk that is full is no fault of the input.
pub(crate) fn of_io(kind: std::io::ErrorKind) -> (Code, &'static str) {
    use std::io::ErrorKind;
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => (
            Code::Run,
            "free space on that disk (or raise its quota), then run it again; --resume goes on with a run",
        ),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (Code::Input, "choose another folder, or change the permissions of this one")
        }
        ErrorKind::NotFound => (Code::Input, "check that the path exists"),
        _ => (
            Code::Input,
            "check that the path exists, that you may use it, and that its disk is connected and works",
        ),
    }
}

/// The chain's messages in one. Some errors end with that of their source already; it is not said twice.
fn cause(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for message in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = message;
        } else if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
    }
    text
}

/// Joins lines, so that scripts can rely on one line of cause and one of advice.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Returns the known name nearest to `given`, if it is near enough to be what was meant: a letter or two that are wrong,
/// missing, added or swapped.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |text: &str| {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>()
    };
    let given = letters(given);
    let near = known.into_iter().filter_map(|name| {
        let letters = letters(name);
        let allowed = match given.chars().count().max(letters.chars().count()) {
            0..=2 => 0,
            3..=7 => 1,
            8..=11 => 2,
            _ => 3,
        };
        let distance = strsim::damerau_levenshtein(&given, &letters);
        (distance <= allowed).then_some((distance, name))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failure_under_context_keeps_its_code_and_advice() {
        let error: anyhow::Error = Result::<(), _>::Err(Failure::input("line 3:\n  bad", "mend it"))
            .context("reading a.toml")
            .unwrap_err();
        let failure = Failure::of(&error, &Interrupt::default());
        assert_eq!(failure, Failure::input("reading a.toml: line 3:; bad", "mend it"));
    }

    #[test]
    fn library_errors_map_to_codes() {
        let code = |error: metal_candle::Error| Failure::of(&error.into(), &Interrupt::default()).code;
        assert_eq!(code(metal_candle::Error::invalid("rank", "must be at least 1")), Code::Input);
        assert_eq!(code(metal_candle::Error::file("a.gguf", "truncated")), Code::Input);
        let stopped = metal_candle::Error::Interrupted { step: 4, advice: "--resume".into() };
        assert_eq!(code(stopped), Code::Interrupted);
        let full = metal_candle::Error::io("out", "write", std::io::ErrorKind::StorageFull.into());
        let full = Failure::of(&full.into(), &Interrupt::default());
        assert_eq!(full.code, Code::Run);
        assert!(full.cause.contains("no storage space") && full.advice.starts_with("free space"), "{full:?}");
        let plain = Failure::of(&anyhow::anyhow!("disk on fire"), &Interrupt::default());
        assert_eq!((plain.code, plain.cause.as_str()), (Code::Run, "disk on fire"));
    }

    #[test]
    fn a_source_that_is_part_of_the_message_is_said_once() {
        let missing = std::io::Error::other("no such file");
        let error: anyhow::Error = metal_candle::Error::io("a.jsonl", "read", missing).into();
        let failure = Failure::of(&error.context("valid data"), &Interrupt::default());
        assert_eq!(failure.cause, "valid data: a.jsonl: cannot read: no such file");
    }

    /// Advice that a library error ends with was printed as part of the cause, and again below it.
    #[test]
    fn advice_is_said_once() {
        let advice = "use a lower learning rate".to_owned();
        let error = metal_candle::Error::Diverged { step: 3, what: "the loss rose".into(), advice };
        let failure = Failure::of(&error.into(), &Interrupt::default());
        assert_eq!(failure.cause, "step 3: training made the model worse: the loss rose");
        assert_eq!(failure.advice, "use a lower learning rate");
    }

    /// "correct the file named above" stood below causes that had said what to do.
    #[test]
    fn an_error_with_advice_of_its_own_has_no_other() {
        let of = |message: &str| {
            let error = metal_candle::Error::file("m", message);
            let failure = Failure::of(&error.into(), &Interrupt::default());
            (failure.cause, failure.advice)
        };
        let expected = ("m: holds files already".to_owned(), "choose a new or an empty folder".to_owned());
        assert_eq!(of("holds files already; choose a new or an empty folder"), expected);
        let general = "correct the file named above, or pass another one".to_owned();
        assert_eq!(of("is cut; the rest is missing"), ("m: is cut; the rest is missing".to_owned(), general));
    }

    #[test]
    fn nearest_finds_slips_and_nothing_far() {
        let known = ["learning-rate", "batch-size", "rank"];
        assert_eq!(nearest("learnin-rate", known), Some("learning-rate"));
        assert_eq!(nearest("batchsize", known), Some("batch-size"));
        assert_eq!(nearest("zzz", known), None);
        let known = ["seed", "profile", "rank-pattern", "train", "temperature"];
        for far in ["greedy", "prompt-file", "lora-task-type", "rate", "time"] {
            assert_eq!(nearest(far, known), None, "{far}");
        }
        for near in ["tarin", "trian", "TRAIN", "trains"] {
            assert_eq!(nearest(near, known), Some("train"), "{near}");
        }
    }
}
