//! candle's own kernels with a planted mistake in each: every one is found out by a wrong value or a fault within five
//! orders of threads, and the kernels without it are right in all of them.

#[path = "../harness/mod.rs"]
mod harness;

mod attention;
mod elements;
mod indexing;
mod products;
mod rows;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::*;
use softmetal_kernels::{CompileOptions, Fault, Library, Pipeline};

/// A kernel of candle with inputs for which its result is known.
struct Subject {
    /// File of candle-metal-kernels, and the kernel in it that is run.
    file: &'static str,
    kernel: &'static str,
    constants: &'static [(u32, &'static [u8])],
    /// Lines that begin like one of these are left out, unless they hold one of `kept`: instances of templates that the
    /// run does not use, which would take most of the time that clang needs.
    left_out: &'static [&'static str],
    kept: &'static [&'static str],
    run: fn(&Pipeline, u64) -> Result<Vec<f32>, Fault>,
    expected: fn() -> Vec<f32>,
    /// How far a value may be from the expected one, in units of 1 + the expected one. A NaN is never near.
    tolerance: f32,
    mutations: &'static [Mutation],
}

/// What the mistake is, the text that is replaced, by what, and how often it must occur in candle's file.
struct Mutation(&'static str, &'static str, &'static str, usize);

const SUBJECTS: [&[Subject]; 5] =
    [&products::SUBJECTS, &attention::SUBJECTS, &rows::SUBJECTS, &indexing::SUBJECTS, &elements::SUBJECTS];

/// Orders of threads that a mistake has to show in.
const SEEDS: u64 = 5;

/// The first order of threads that gives a fault or a wrong value, and which.
type Finding = Option<(u64, String)>;

/// A table's line and whether it is as it must be.
type Line = (String, bool);

/// Of `text`, what `subject` is compiled from. Lines keep their numbers.
fn lean(text: &str, subject: &Subject) -> String {
    let line = |line: &str| {
        let begins = |part: &&str| line.trim_start().starts_with(part);
        let dropped = subject.left_out.iter().any(begins) && !subject.kept.iter().any(|k| line.contains(k));
        match (dropped, line.ends_with('\\')) {
            (false, _) => format!("{line}\n"),
            (true, true) => "\\\n".to_owned(),
            (true, false) => "\n".to_owned(),
        }
    };
    text.lines().map(line).collect()
}

/// Compiles `source` and runs it in five orders of threads.
///
/// # Errors
/// It does not compile: what clang says.
fn run_in_all_orders(subject: &Subject, source: &str) -> Result<Finding, String> {
    let options = CompileOptions { name: subject.file.to_owned(), ..options() };
    let library = Library::from_source(&lean(source, subject), &options).map_err(|e| e.to_string())?;
    let constants = subject.constants.iter().map(|(index, value)| (*index, value.to_vec())).collect();
    let pipeline = library.pipeline(subject.kernel, &constants).map_err(|e| e.to_string())?;
    let expected = (subject.expected)();
    Ok((0..SEEDS).find_map(|seed| {
        let how = match (subject.run)(&pipeline, seed) {
            Err(fault) => Some(fault.to_string()),
            Ok(found) => difference(&found, &expected, subject.tolerance),
        };
        Some((seed, how?))
    }))
}

fn difference(found: &[f32], expected: &[f32], tolerance: f32) -> Option<String> {
    assert_eq!(found.len(), expected.len());
    let near = |(f, e): (&f32, &f32)| (f - e).abs() <= tolerance * (1.0 + e.abs());
    let at = found.iter().zip(expected).position(|pair| !near(pair))?;
    Some(format!("element {at} is {}, must be {}", found[at], expected[at]))
}

/// One kernel, with a mistake or without.
fn examine(subject: &Subject, source: &str, mutation: Option<&Mutation>) -> Line {
    let Mutation(what, from, to, times) = mutation.unwrap_or(&Mutation("none (control)", "", "", 0));
    let mut text = source.to_owned();
    let head = format!("{:<38} {:<26} {what:<44}", subject.file, subject.kernel);
    if mutation.is_some() {
        let occurs = source.matches(from).count();
        if occurs != *times {
            return (format!("{head} `{from}` occurs {occurs} times, not {times}"), false);
        }
        text = source.replace(from, to);
    }
    match (run_in_all_orders(subject, &text), mutation) {
        (Err(error), _) => (format!("{head} does not compile: {error}"), false),
        (Ok(Some((seed, how))), found) => (format!("{head} seed {seed}: {how}"), found.is_some()),
        (Ok(None), Some(_)) => (format!("{head} NOT FOUND: `{from}` -> `{to}`"), false),
        (Ok(None), None) => (format!("{head} right in all {SEEDS} orders"), true),
    }
}

#[test]
fn every_mutation_of_candles_kernels_is_found_out_and_no_kernel_without_one() {
    let folder = candle_folder()
        .expect("candle-metal-kernels 0.11.1 in cargo's registry: run `cargo fetch` in crates/softmetal");
    let subjects = || SUBJECTS.into_iter().flatten();
    let sources: Vec<String> =
        subjects().map(|s| std::fs::read_to_string(folder.join(s.file)).unwrap()).collect();
    let mut jobs = Vec::new();
    for (subject, source) in subjects().zip(&sources) {
        jobs.push((subject, source, None));
        jobs.extend(subject.mutations.iter().map(|mutation| (subject, source, Some(mutation))));
    }
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(vec![None; jobs.len()]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((subject, source, mutation)) = jobs.get(at) else { break };
                    let line = examine(subject, source, *mutation);
                    lines.lock().unwrap()[at] = Some(line);
                }
            });
        }
    });
    let lines: Vec<Line> = lines.into_inner().unwrap().into_iter().map(Option::unwrap).collect();
    lines.iter().for_each(|(line, _)| println!("{line}"));
    let wrong: Vec<&str> = lines.iter().filter(|(_, right)| !right).map(|(line, _)| line.as_str()).collect();
    assert!(wrong.is_empty(), "{} of {} lines are wrong:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
    let mutations = lines.len() - subjects().count();
    println!("{mutations} mutations of {} kernels", subjects().count());
    assert!(mutations >= 20, "{mutations} mutations");
}

/// What the table says of a replacement that is no mistake, and of a text that candle's file does not have.
#[test]
fn a_mutation_that_changes_nothing_or_is_not_there_is_reported() {
    let folder = candle_folder()
        .expect("candle-metal-kernels 0.11.1 in cargo's registry: run `cargo fetch` in crates/softmetal");
    let subject = &elements::SUBJECTS[0];
    let source = std::fs::read_to_string(folder.join(subject.file)).unwrap();
    let (from, to) = ("fma(float(input[i]), mul, add)", "fma(mul, float(input[i]), add)");
    let (line, right) = examine(subject, &source, Some(&Mutation("factors swapped", from, to, 1)));
    assert!(!right && line.contains("NOT FOUND"), "{line}");
    let (line, right) = examine(subject, &source, Some(&Mutation("factors swapped", to, from, 1)));
    assert!(!right && line.contains("occurs 0 times, not 1"), "{line}");
    let (line, right) = examine(subject, &source, Some(&Mutation("no expression", from, "fma(", 1)));
    assert!(!right && line.contains("does not compile"), "{line}");
}
