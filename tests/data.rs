//! The data set that the tool carries: format, duplicates, leakage between its splits.

use std::collections::HashSet;
use std::path::Path;

use metal_candle::training::data::{Columns, read_rows};
use metal_candle::training::{Record, Row};

fn split(name: &str) -> Vec<(String, String)> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/shell").join(format!("{name}.jsonl"));
    let pair = |row: Row| match row.record {
        Record::Completion { prompt, completion } => (prompt, completion),
        other => panic!("{name}: {other:?}"),
    };
    read_rows(&path, &Columns::default()).unwrap().into_iter().map(pair).collect()
}

fn words(text: &str) -> HashSet<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

fn normal(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>().to_lowercase()
}

fn command(completion: &str) -> &str {
    completion.split('\n').next().unwrap()
}

#[test]
fn every_answer_is_a_command_and_one_short_sentence() {
    let (train, valid, test) = (split("train"), split("valid"), split("test"));
    assert!(train.len() + valid.len() + test.len() >= 600 && valid.len() >= 50 && test.len() >= 50);
    for (prompt, completion) in train.iter().chain(&valid).chain(&test) {
        let lines: Vec<&str> = completion.split('\n').collect();
        assert_eq!(lines.len(), 2, "{prompt}: {completion}");
        let inner = lines[0].strip_prefix('`').and_then(|line| line.strip_suffix('`'));
        assert!(inner.is_some_and(|inner| !inner.is_empty() && !inner.contains('`')), "{completion}");
        assert!(lines[1].ends_with('.') && (3..=16).contains(&lines[1].split(' ').count()), "{completion}");
        assert!((3..=24).contains(&prompt.split(' ').count()), "{prompt}");
    }
}

#[test]
fn nothing_stands_twice_or_leaks_between_splits() {
    let splits = ["train", "valid", "test"].map(split);
    let mut prompts = HashSet::new();
    for (prompt, _) in splits.iter().flatten() {
        assert!(prompts.insert(normal(prompt)), "{prompt} stands twice");
    }
    let commands = |pairs: &[(String, String)]| -> HashSet<String> {
        pairs.iter().map(|p| command(&p.1).to_owned()).collect()
    };
    let [train, valid, test] = splits.each_ref().map(|pairs| commands(pairs));
    assert!(train.is_disjoint(&valid) && train.is_disjoint(&test) && valid.is_disjoint(&test));
    let known: Vec<HashSet<String>> = splits[0].iter().map(|(prompt, _)| words(prompt)).collect();
    for (prompt, _) in splits[1].iter().chain(&splits[2]) {
        let mine = words(prompt);
        for other in &known {
            let shared = mine.intersection(other).count() as f64;
            let all = (mine.len() + other.len()) as f64 - shared;
            assert!(shared / all <= 0.8, "{prompt} is nearly in train.jsonl");
        }
    }
}
