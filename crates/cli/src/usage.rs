//! The command line, read: what clap refuses becomes one line of cause and one of advice, like every other failure.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};

use crate::aliases;
use crate::args::Cli;
use crate::failure::{Code, Failure, nearest};
use crate::output::quoted;
use crate::settings::ranges;

/// Reads the command line. `Err` is the exit code after help, version or a refusal has been printed.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let words = aliases::without_module(aliases::with_two_hyphens(std::env::args_os()));
    if let Some(failure) = not_utf8(&words) {
        return Err(failure.report());
    }
    let (cli, numbers) = read(words.clone()).map_err(|error| {
        if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // A closed pipe is the only way in which printing help fails.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Code::Usage as u8));
        }
        failure(&error, &words).report()
    })?;
    numbers.map_err(|failure| failure.report())?;
    Ok(cli)
}

/// Refuses a word that is not UTF-8. Names of models, data and folders are written into `run.toml` and
/// `adapter_config.json`, which hold UTF-8 only, so that a run with such a name could not be resumed.
fn not_utf8(words: &[OsString]) -> Option<Failure> {
    let index = words.iter().position(|word| word.to_str().is_none())?;
    let word = words[index].to_string_lossy();
    let (flag, value) = match word.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => (flag.to_owned(), value),
        _ => {
            let before = words[..index].last().map(|word| word.to_string_lossy().into_owned());
            (before.filter(|word| word.starts_with('-')).unwrap_or_else(|| "argument".to_owned()), &*word)
        }
    };
    let advice =
        "rename the file or folder, or make a link to it with a name in UTF-8 (ln -s); pass text in UTF-8";
    Some(Failure::input(format!("{flag}: '{value}' is not UTF-8"), advice))
}

/// The command line, and whether its numbers are within their ranges.
fn read(words: Vec<OsString>) -> Result<(Cli, Result<(), Failure>), clap::Error> {
    let mut command = aliases::apply(Cli::command());
    let mut matches = command.try_get_matches_from_mut(words)?;
    let numbers = ranges::check_flags(&command, &matches);
    let cli = Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    Ok((cli, numbers))
}

/// Cause and advice for a refusal of clap.
fn failure(error: &clap::Error, words: &[OsString]) -> Failure {
    let text = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let mut command = aliases::apply(Cli::command());
    command.build();
    let path = path_of(&command, words);
    let help = format!("`{} --help` lists what it takes", path.join(" "));
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => unknown(&argument, &command, &path),
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            unknown_command(&word, &command)
        }
        ErrorKind::InvalidValue => {
            let values = text(ContextKind::ValidValue).unwrap_or_default();
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let flag = flag_name(&argument);
            if value.is_empty() {
                return Failure::usage(
                    format!("{flag} needs a value"),
                    format!("for example {argument}; {help}"),
                );
            }
            let advice = match text(ContextKind::SuggestedValue) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("use one of {values}"),
            };
            Failure::usage(format!("{flag}: '{value}' is unknown"), advice)
        }
        ErrorKind::ValueValidation => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            wrong_value(flag_name(&argument), &value, &reason)
        }
        ErrorKind::ArgumentConflict => {
            let other = text(ContextKind::PriorArg).unwrap_or_default();
            let (flag, other) = (flag_name(&argument), flag_name(&other));
            if flag == other || other.is_empty() {
                return given_twice(flag, &command, words);
            }
            Failure::usage(format!("{flag} and {other} contradict each other"), "give one of them")
        }
        ErrorKind::MissingRequiredArgument => {
            let example = match flag_name(&argument) {
                "--out" => "add one, for example --out merged; ",
                "--data" => "add one, for example --data my-folder/test.jsonl; ",
                _ => "",
            };
            Failure::usage(format!("`{}` needs {argument}", path.join(" ")), format!("{example}{help}"))
        }
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Failure::usage(first, help)
        }
    }
}

/// The command and its subcommands that the words name, as they are typed.
fn path_of(command: &Command, words: &[OsString]) -> Vec<String> {
    let mut path = vec![command.get_name().to_owned()];
    let mut current = command;
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(found) = current.find_subcommand(word) {
            path.push(found.get_name().to_owned());
            current = found;
        }
    }
    path
}

/// A flag that is given twice, perhaps by two of its names.
fn given_twice(flag: &str, command: &Command, words: &[OsString]) -> Failure {
    let mut current = command;
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        current = current.find_subcommand(word).unwrap_or(current);
    }
    let argument = current.get_arguments().find(|argument| argument.get_long() == flag.strip_prefix("--"));
    let mut names: Vec<String> = Vec::new();
    for word in words.iter().filter_map(|word| word.to_str()) {
        let name = word.split('=').next().unwrap_or(word);
        let is_one =
            argument.is_some_and(|argument| match (name.strip_prefix("--"), name.strip_prefix('-')) {
                (Some(long), _) => {
                    argument.get_long() == Some(long)
                        || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
                }
                (None, Some(short)) => short.chars().next().is_some_and(|letter| {
                    argument.get_short() == Some(letter)
                        || argument.get_all_short_aliases().is_some_and(|aliases| aliases.contains(&letter))
                }),
                _ => false,
            });
        if is_one && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    match names.as_slice() {
        [one, other, ..] => Failure::usage(
            format!("{one} and {other} are one flag, which is given twice"),
            "give one of them",
        ),
        _ => Failure::usage(format!("{flag} is given twice"), "give it once"),
    }
}

fn unknown(argument: &str, command: &Command, path: &[String]) -> Failure {
    let named = path.join(" ");
    let help = format!("`{named} --help` lists every flag");
    let Some(word) = argument.strip_prefix('-') else {
        let cause = format!("`{named}` does not take '{argument}'");
        return Failure::usage(cause, for_word(argument, path.get(1).map(String::as_str)).unwrap_or(help));
    };
    let word = word.trim_start_matches('-');
    let cause = format!("`{named}` has no flag {argument}");
    match aliases::foreign_flag(word) {
        Some(("", advice)) => return Failure::usage(cause, advice),
        Some((tool, advice)) => return Failure::usage(format!("{cause}, which {tool} has"), advice),
        None => {}
    }
    let plain = word.replace('_', "-");
    let owner = command.get_subcommands().find(|other| {
        let mut flags = other.get_arguments();
        flags.any(|arg| {
            arg.get_long() == Some(&plain)
                || arg.get_all_aliases().is_some_and(|a| a.contains(&plain.as_str()))
        })
    });
    if let Some(owner) = owner {
        return Failure::usage(cause, format!("`metal-candle {}` has it", owner.get_name()));
    }
    let own = path.get(1).and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    match near_flag(&plain, own) {
        Some(near) => Failure::usage(cause, format!("did you mean --{near}?")),
        None => Failure::usage(cause, help),
    }
}

/// The flag of a command that a word is a slip of, or of one of its other names.
fn near_flag(word: &str, command: &Command) -> Option<String> {
    let names: Vec<(&str, &str)> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long().map(|long| (argument, long)))
        .flat_map(|(argument, long)| {
            let aliases = argument.get_all_aliases().unwrap_or_default();
            std::iter::once((long, long)).chain(aliases.into_iter().map(move |alias| (alias, long)))
        })
        .collect();
    let near = nearest(word, names.iter().map(|(name, _)| *name))?;
    names.iter().find(|(name, _)| *name == near).map(|(_, long)| (*long).to_owned())
}

/// The flag for a word that a command does not take as it is.
fn for_word(word: &str, command: Option<&str>) -> Option<String> {
    let shown = quoted(Path::new(word));
    if Path::new(word).join("adapter_config.json").is_file() && command != Some("train") {
        return Some(format!("for an adapter use --adapter {shown}"));
    }
    Some(match command? {
        "train" => format!("for a data set use --data {shown}, for a model --model {shown}"),
        "generate" => format!("for a prompt use --prompt \"{word}\""),
        "chat" => format!("for a model use --model {shown}, for an adapter --adapter {shown}"),
        "eval" | "data" => format!("for a data set use --data {shown}"),
        "merge" => format!("for an adapter use --adapter {shown}, for the new folder --out {shown}"),
        _ => return None,
    })
}

fn unknown_command(word: &str, command: &Command) -> Failure {
    let cause = format!("there is no command '{word}'");
    if let Some((tool, advice)) = aliases::foreign_command(word) {
        return Failure::usage(format!("{cause} as {tool} has it"), advice);
    }
    let names: Vec<&str> = command
        .get_subcommands()
        .flat_map(|c| std::iter::once(c.get_name()).chain(c.get_all_aliases()))
        .collect();
    match nearest(word, names.iter().copied()) {
        Some(near) => {
            let ours = command.find_subcommand(near).map_or(near, Command::get_name);
            Failure::usage(cause, format!("did you mean `metal-candle {ours}`?"))
        }
        None => Failure::usage(cause, "`metal-candle --help` lists the commands"),
    }
}

/// A value that is no number at all is wrong usage; a number outside its range is bad input, as it is in a file.
fn wrong_value(flag: &str, value: &str, reason: &str) -> Failure {
    if let Some((cause, advice)) = ranges::refusal(flag.trim_start_matches('-'), value) {
        return Failure::input(format!("{flag}: {cause}"), advice);
    }
    let whole = reason.contains("digit") || reason.contains("number too") || reason.contains(" is not in ");
    if whole || reason.contains("float") {
        return Failure::usage(
            format!("{flag}: '{value}' is not a number"),
            format!("for example {flag} {}", example(flag.trim_start_matches('-'))),
        );
    }
    // The tool's own checks give cause and advice in one.
    let (cause, advice) = reason.split_once("; ").unwrap_or((reason, "correct that value"));
    Failure::usage(format!("{flag}: {cause}"), advice)
}

/// A usual value of a flag that takes a number.
fn example(name: &str) -> &'static str {
    match name {
        "learning-rate" => "1e-4",
        "min-learning-rate" => "1e-5",
        "dropout" | "warmup-ratio" | "min-p" | "valid-size" => "0.05",
        "weight-decay" => "0.01",
        "temperature" => "0.8",
        "top-p" => "0.95",
        "repetition-penalty" => "1.1",
        _ => "8",
    }
}

/// `--seed` of `--seed <SEED>`.
fn flag_name(argument: &str) -> &str {
    argument.split([' ', '=']).next().unwrap_or(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Failure {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let words = aliases::without_module(aliases::with_two_hyphens(words.into_iter()));
        let error = read(words.clone()).unwrap_err();
        failure(&error, &words)
    }

    /// clap reported such a name of a model as wrong usage without naming it, and an output folder failed only when the
    /// run was about to begin.
    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_are_refused_with_their_flag() {
        use std::os::unix::ffi::OsStringExt;
        for (before, bytes, cause) in [
            ("--out", &b"caf\xe9"[..], "--out: 'caf\u{fffd}' is not UTF-8"),
            ("--data", b"\xff", "--data: '\u{fffd}' is not UTF-8"),
            ("train", b"--model=\xff", "--model: '\u{fffd}' is not UTF-8"),
            ("train", b"\xff", "argument: '\u{fffd}' is not UTF-8"),
        ] {
            let words =
                [OsString::from("metal-candle"), OsString::from(before), OsString::from_vec(bytes.to_vec())];
            let failure = not_utf8(&words).unwrap();
            assert_eq!((failure.code, failure.cause.as_str()), (Code::Input, cause));
        }
        assert_eq!(not_utf8(&[OsString::from("é")]), None);
    }

    #[test]
    fn refusals_have_a_cause_and_an_advice() {
        for (line, code, cause, advice) in [
            (
                "metal-candle train --seed -1",
                Code::Input,
                "--seed: -1 is out of range",
                "use a whole number from 0 to 18446744073709551615; the same seed repeats a run",
            ),
            (
                "metal-candle train --rank 4.5",
                Code::Input,
                "--rank: 4.5 is not a whole number",
                "use a whole number from 1 to 16384; usually 4 to 64",
            ),
            (
                "metal-candle train --rank x",
                Code::Usage,
                "--rank: 'x' is not a number",
                "for example --rank 8",
            ),
            (
                "metal-candle train --lr high",
                Code::Usage,
                "--learning-rate: 'high' is not a number",
                "for example --learning-rate 1e-4",
            ),
            (
                "metal-candle train --epochs 2 --steps 3",
                Code::Usage,
                "--epochs and --steps contradict each other",
                "give one of them",
            ),
            (
                "metal-candle train --mask-prompt",
                Code::Usage,
                "`metal-candle train` has no flag --mask-prompt, which mlx-lm has",
                "use --train-on completion, which is the default",
            ),
            (
                "metal-candle train --rnak 3",
                Code::Usage,
                "`metal-candle train` has no flag --rnak",
                "did you mean --rank?",
            ),
            (
                "metal-candle train --prompt x",
                Code::Usage,
                "`metal-candle train` has no flag --prompt",
                "`metal-candle generate` has it",
            ),
            ("metal-candle train --data a --data b", Code::Usage, "--data is given twice", "give it once"),
            (
                "metal-candle train --lr 1 --learning-rate=2",
                Code::Usage,
                "--lr and --learning-rate are one flag, which is given twice",
                "give one of them",
            ),
            (
                "metal-candle generate -p a --prompt b",
                Code::Usage,
                "-p and --prompt are one flag, which is given twice",
                "give one of them",
            ),
            (
                "metal-candle generate --greedy",
                Code::Usage,
                "`metal-candle generate` has no flag --greedy",
                "leave it out: --temperature 0, the default, takes the most probable token",
            ),
            (
                "metal-candle generate --zzz",
                Code::Usage,
                "`metal-candle generate` has no flag --zzz",
                "`metal-candle generate --help` lists every flag",
            ),
            (
                "metal-candle train --epoch 2",
                Code::Usage,
                "`metal-candle train` has no flag --epoch",
                "did you mean --epochs?",
            ),
            (
                "metal-candle merge adapters/ok",
                Code::Usage,
                "`metal-candle merge` does not take 'adapters/ok'",
                "for an adapter use --adapter adapters/ok, for the new folder --out adapters/ok",
            ),
            (
                "metal-candle python -m mlx_lm server",
                Code::Usage,
                "there is no command 'server' as mlx-lm has it",
                "there is no server; `metal-candle generate --json` answers one prompt for a program",
            ),
            (
                "metal-candle serve",
                Code::Usage,
                "there is no command 'serve' as ollama has it",
                "there is no server; `metal-candle generate --json` answers one prompt for a program",
            ),
            (
                "metal-candle tarin",
                Code::Usage,
                "there is no command 'tarin'",
                "did you mean `metal-candle train`?",
            ),
            (
                "metal-candle generate hello",
                Code::Usage,
                "`metal-candle generate` does not take 'hello'",
                "for a prompt use --prompt \"hello\"",
            ),
            (
                "metal-candle generate -ngl 99",
                Code::Usage,
                "`metal-candle generate` has no flag --n-gpu-layers, which llama.cpp has",
                "use --device metal or --device cpu: a model is on one device as a whole",
            ),
        ] {
            let found = refused(line);
            assert_eq!(
                (found.code, found.cause.as_str(), found.advice.as_str()),
                (code, cause, advice),
                "{line}"
            );
        }
    }
}
