//! The range of every number that a flag or a key of the configuration file takes.
//!
//! One table serves the flags of all commands and the keys of files, so that a number outside its range is refused before
//! anything is read, fetched or allocated. A test holds every numeric flag to having a range.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::failure::Failure;

/// Numbers that a setting takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Range {
    /// Whole numbers from the first to the second.
    Whole(u64, u64),
    /// Whole numbers from the first to the second, or -1.
    WholeOrAll(u64, u64),
    /// Real numbers from the first to the second.
    Real(f64, f64),
    /// Real numbers above the first, up to the second.
    Above(f64, f64),
    /// Real numbers from the first to below the second.
    Below(f64, f64),
}

use Range::{Above, Below, Real, Whole, WholeOrAll};

/// Largest rank: the largest hidden size of the supported families, above which no weight has more rank.
pub(crate) const MAX_RANK: u64 = 16_384;
/// Longest sequence, and most new tokens.
const MAX_TOKENS: u64 = 1 << 20;
/// Most steps, and most steps between two events of a run.
const MAX_STEPS: u64 = 1_000_000_000;
const MAX_BATCH: u64 = 1 << 16;
const MAX_ALPHA: f64 = 1e6;

/// Name of each number, its range, and what is usual.
const RANGES: [(&str, Range, &str); 36] = [
    ("accumulation", Whole(1, 4096), "usually 1 to 16"),
    ("alpha", Above(0.0, MAX_ALPHA), "usually 1 to 2 times the rank"),
    ("batch-size", Whole(1, MAX_BATCH), "usually 1 to 32"),
    ("dropout", Below(0.0, 1.0), "usually 0 to 0.1"),
    ("epochs", Above(0.0, 1e6), "for one pass use 1"),
    ("eval-every", Whole(0, MAX_STEPS), "0 for only before and after"),
    ("iters", Whole(1, MAX_STEPS), "usually 100 to 10000"),
    ("keep-checkpoints", Whole(1, 1_000_000), "usually 2"),
    ("learning-rate", Above(0.0, 10.0), "for LoRA usually 1e-5 to 1e-3"),
    ("length", Whole(1, MAX_TOKENS), "usually 128 to 2048"),
    ("max-grad-norm", Real(0.0, 1e9), "usually 1; 0 for no limit"),
    ("max-length", Whole(2, MAX_TOKENS), "usually 256 to 4096"),
    ("max-tokens", Whole(1, MAX_TOKENS), "usually 64 to 4096"),
    ("min-learning-rate", Real(0.0, 10.0), "usually 0; at most the learning rate"),
    ("min-p", Below(0.0, 1.0), "usually 0.05; 0 for all tokens"),
    ("num-layers", WholeOrAll(1, 100_000), "-1 for all layers"),
    ("patience", Whole(0, MAX_STEPS), "0 to never stop early"),
    ("prompt", Whole(1, MAX_TOKENS), "usually 128 to 2048"),
    ("rank", Whole(1, MAX_RANK), "usually 4 to 64"),
    ("repeats", Whole(1, 10_000), "usually 10"),
    ("repetition-penalty", Above(0.0, 100.0), "usually 1 to 1.3; 1 for no change"),
    ("report-every", Whole(1, MAX_STEPS), "usually 1 to 50"),
    ("rounds", Whole(1, 10_000), "usually 5"),
    ("rows", Whole(0, 1_000_000), "usually 3"),
    ("save-every", Whole(0, MAX_STEPS), "0 for only at the end"),
    ("seed", Whole(0, u64::MAX), "the same seed repeats a run"),
    ("steps", Whole(1, MAX_STEPS), "usually 20 to 10000, or leave it out to train by epochs"),
    ("temperature", Real(0.0, 100.0), "usually 0.6 to 1; 0 takes the most probable token"),
    ("threads", Whole(0, 1024), "0 for one thread per core"),
    ("tokens", Whole(1, MAX_TOKENS), "usually 32 to 256"),
    ("top-k", Whole(0, 1_000_000_000), "usually 20 to 100; 0 for all tokens"),
    ("top-p", Above(0.0, 1.0), "usually 0.8 to 0.95; 1 for all tokens"),
    ("valid-size", Real(0.0, 1e9), "a share as 0.05, or a number of rows; 0 for none"),
    ("warmup", Whole(0, MAX_STEPS), "usually a twentieth of the steps"),
    ("warmup-ratio", Real(0.0, 1.0), "usually 0.03 to 0.1"),
    ("weight-decay", Real(0.0, 10.0), "usually 0 to 0.1"),
];

/// Returns a setting's range and what is usual.
fn find(name: &str) -> Option<(Range, &'static str)> {
    RANGES.iter().find(|(known, ..)| *known == name).map(|&(_, range, usual)| (range, usual))
}

impl Range {
    fn contains(self, number: f64) -> bool {
        let whole =
            |least: u64, most: u64| number.fract() == 0.0 && number >= least as f64 && number <= most as f64;
        match self {
            Whole(least, most) => whole(least, most),
            WholeOrAll(least, most) => number == -1.0 || whole(least, most),
            Real(least, most) => number >= least && number <= most,
            Above(least, most) => number > least && number <= most,
            Below(least, most) => number >= least && number < most,
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            WholeOrAll(least, most) => write!(f, "-1 or a whole number from {least} to {most}"),
            Real(least, most) => write!(f, "a number from {least} to {most}"),
            Above(least, most) => write!(f, "a number above {least}, up to {most}"),
            Below(least, most) => write!(f, "a number from {least} to below {most}"),
        }
    }
}

/// Checks the number that a flag or key was given. The error is cause and advice.
pub(crate) fn check(name: &str, number: f64) -> Result<(), (String, String)> {
    let Some((range, usual)) = find(name) else { return Ok(()) };
    if range.contains(number) {
        return Ok(());
    }
    let whole = matches!(range, Whole(..) | WholeOrAll(..));
    let cause = if whole && number.is_finite() && number.fract() != 0.0 {
        format!("{number} is not a whole number")
    } else {
        format!("{number} is out of range")
    };
    Err((cause, format!("use {range}; {usual}")))
}

/// What is to be said about text that clap did not take as the value of a number: cause and advice.
pub(crate) fn refusal(name: &str, text: &str) -> Option<(String, String)> {
    let number = text.parse::<f64>().ok()?;
    match check(name, number) {
        Err(refused) => Some((refused.0.replacen(&number.to_string(), text, 1), refused.1)),
        // As 1e3 and 8.0, which are no spellings of a whole number on a command line.
        Ok(()) => {
            let range = find(name)?.0;
            Some((format!("{text} is not written as a whole number"), format!("use {range}, in digits only")))
        }
    }
}

/// Checks every number of a command line. `command` is built, and `matches` are its own.
pub(crate) fn check_flags(command: &Command, matches: &ArgMatches) -> Result<(), Failure> {
    if let Some((name, inner)) = matches.subcommand()
        && let Some(inside) = command.find_subcommand(name)
    {
        check_flags(inside, inner)?;
    }
    for argument in command.get_arguments().filter(|argument| is_number(argument)) {
        let (id, name) = (argument.get_id().as_str(), argument.get_long().unwrap_or_default());
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        for text in matches.get_raw(id).into_iter().flatten().filter_map(|raw| raw.to_str()) {
            let number = text.trim().parse::<f64>().unwrap_or(f64::NAN);
            check(name, number)
                .map_err(|(cause, advice)| Failure::input(format!("--{name}: {cause}"), advice))?;
        }
    }
    Ok(())
}

/// Returns true if an argument's value is a number.
fn is_number(argument: &clap::Arg) -> bool {
    use std::any::TypeId;
    let id = argument.get_value_parser().type_id();
    [
        TypeId::of::<usize>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<i64>(),
        TypeId::of::<f32>(),
        TypeId::of::<f64>(),
    ]
    .iter()
    .any(|number| id == *number)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn numbers(command: &Command, found: &mut Vec<String>) {
        found.extend(
            command.get_arguments().filter(|a| is_number(a)).filter_map(|a| a.get_long().map(str::to_owned)),
        );
        command.get_subcommands().for_each(|inner| numbers(inner, found));
    }

    #[test]
    fn every_numeric_flag_of_every_command_has_a_range() {
        let mut found = Vec::new();
        numbers(&Cli::command(), &mut found);
        assert!(found.len() > 50 && found.contains(&"top-p".to_owned()), "{found:?}");
        let without: Vec<&String> = found.iter().filter(|name| find(name).is_none()).collect();
        assert_eq!(without, [] as [&String; 0]);
    }

    #[test]
    fn numbers_outside_their_ranges_are_refused_with_the_range() {
        for (name, numbers) in [
            ("rank", &[0.0, 1e9, 16_385.0][..]),
            ("accumulation", &[0.0, 1e12]),
            ("weight-decay", &[f64::NAN, -1.0, 11.0]),
            ("learning-rate", &[f64::NAN, f64::INFINITY, -1e-3, 0.0, 1e6]),
            ("dropout", &[1.0, -0.1, f64::NAN]),
            ("batch-size", &[0.0, 1e9]),
            ("max-length", &[0.0, 1.0, 1e9]),
            ("epochs", &[0.0, -1.0, f64::INFINITY, f64::NAN]),
            ("max-grad-norm", &[-1.0, f64::NAN, f64::INFINITY]),
            ("temperature", &[-1.0, f64::NAN, f64::INFINITY]),
            ("top-p", &[0.0, 1.5, f64::NAN]),
            ("num-layers", &[0.0, -2.0]),
        ] {
            for &number in numbers {
                let (cause, advice) = check(name, number).unwrap_err();
                assert!(cause.ends_with(" is out of range"), "{name} {number}: {cause}");
                assert!(advice.starts_with("use "), "{name} {number}: {advice}");
            }
        }
        for (name, number) in [
            ("rank", 16_384.0),
            ("dropout", 0.0),
            ("top-p", 1.0),
            ("num-layers", -1.0),
            ("max-grad-norm", 0.0),
        ] {
            assert_eq!(check(name, number), Ok(()), "{name} {number}");
        }
        let rank = (
            "4.5 is not a whole number".to_owned(),
            "use a whole number from 1 to 16384; usually 4 to 64".to_owned(),
        );
        assert_eq!(check("rank", 4.5), Err(rank));
    }
}
