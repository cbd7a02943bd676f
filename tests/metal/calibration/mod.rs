//! What only a Mac can tell: rules of Metal's validation, lengths of zero, rounding, and what Metal Performance Shaders make
//! of values that no document speaks of. Every question is asked in a process of its own, as a wrong answer of ours ends it.
//!
//! The answers are kept in this folder, a file a device. The software device's must be those on record, and those of every
//! Mac on record but for what [`DIFFERS`] names. A Mac without a file writes its own to `target/calibration`; to commit it
//! here is to calibrate the software device.

mod questions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use metal_candle::backend::metal::device_info;
use questions::QUESTIONS;

/// Names the question to a process that is to answer it.
const QUESTION: &str = "METAL_CANDLE_QUESTION";
/// What stands before an answer.
const ANSWER: &str = "ANSWER ";
/// Questions on which the software device is known to differ from Macs, each with the reason. No Mac has answered yet.
#[cfg(softmetal)]
const DIFFERS: [&str; 0] = [];

type Answers = BTreeMap<String, String>;

/// The answers of this device, each from a process of its own.
fn ask() -> Answers {
    let program = std::env::current_exe().unwrap();
    let ask = |name: &str| {
        let output = Command::new(&program)
            .args(["--exact", "calibration::the_answers_are_those_on_record", "--nocapture"])
            .env(QUESTION, name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The harness writes the test's name without ending the line.
        let answer =
            text.lines().find_map(|line| line.split_once(ANSWER)).map(|(_, answer)| answer.to_owned());
        match (output.status.success(), answer) {
            (true, Some(answer)) => answer,
            (true, None) => panic!("'{name}' has no answer: {text}"),
            (false, _) => "ends the process".to_owned(),
        }
    };
    QUESTIONS.iter().map(|(name, _)| ((*name).to_owned(), ask(name))).collect()
}

/// The device's name as a file's.
fn name() -> String {
    if cfg!(softmetal) {
        return "software".to_owned();
    }
    let facts = device_info::read().unwrap();
    let (major, minor, _) = facts.system;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("{}-macos-{major}-{minor}", facts.name.chars().map(plain).collect::<String>())
}

fn read(path: &Path) -> Answers {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, answers: &Answers) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_string_pretty(answers).unwrap() + "\n").unwrap();
}

/// Where the two differ, one a line.
fn differences(found: &Answers, recorded: &Answers, but: &[&str]) -> String {
    let line = |(name, answer): (&String, &String)| {
        let old = recorded.get(name).map_or("not asked", String::as_str);
        (old != answer && !but.contains(&name.as_str()))
            .then(|| format!("{name}: {answer}; on record: {old}\n"))
    };
    found.iter().filter_map(line).collect()
}

#[test]
fn the_answers_are_those_on_record() {
    if let Ok(question) = std::env::var(QUESTION) {
        let (_, answer) = QUESTIONS.iter().find(|(name, _)| *name == question).unwrap();
        println!("{ANSWER}{}", answer());
        return;
    }
    let _alone = crate::alone();
    let root = Path::new(env!("METAL_CANDLE_ROOT"));
    let folder = root.join("tests/metal/calibration");
    let found = ask();
    let own: PathBuf = folder.join(name()).with_extension("json");
    if std::env::var_os("UPDATE_CALIBRATION").is_some() {
        write(&own, &found);
    }
    if !own.exists() {
        let kept = root.join("target/calibration").join(name()).with_extension("json");
        write(&kept, &found);
        let advice = format!("{} holds the first answers: commit them to {}", kept.display(), own.display());
        // The software device's answers are in the repository; a Mac's first ones are news, no failure.
        if cfg!(softmetal) {
            panic!("{advice}");
        }
        println!("{advice}");
        return;
    }
    let differences_here = differences(&found, &read(&own), &[]);
    assert!(differences_here.is_empty(), "{}:\n{differences_here}", own.display());
    #[cfg(softmetal)]
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") && path != own {
            let differences = differences(&found, &read(&path), &DIFFERS);
            assert!(differences.is_empty(), "a Mac answered otherwise ({}):\n{differences}", path.display());
        }
    }
}

/// The comparison itself sees a difference, and forgives one that is named.
#[test]
fn a_changed_answer_is_a_difference() {
    let answers = |pairs: [(&str, &str); 2]| pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    let (old, new): (Answers, Answers) =
        (answers([("a", "1"), ("b", "2")]), answers([("a", "1"), ("b", "3")]));
    assert_eq!(differences(&old, &old, &[]), "");
    assert_eq!(differences(&new, &old, &[]), "b: 3; on record: 2\n");
    assert_eq!(differences(&new, &old, &["b"]), "");
}
