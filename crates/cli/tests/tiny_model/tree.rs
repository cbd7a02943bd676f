//! The files of a finished run, compared with those of a run that nothing disturbed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Every file below a folder by its relative path. Of metrics only what does not depend on the clock.
pub(crate) type Tree = BTreeMap<String, Vec<u8>>;

/// Reads a folder.
pub(crate) fn tree(folder: &Path) -> Tree {
    let mut files = Tree::new();
    add(folder, "", &mut files);
    files
}

/// The same without checkpoints of earlier steps than the last one: a run that is interrupted leaves one where it was
/// interrupted.
pub(crate) fn result(folder: &Path) -> Tree {
    let mut files = tree(folder);
    // A lock that could not be removed holds nobody off.
    files.remove(".lock");
    let step = |name: &str| {
        name.strip_prefix("checkpoints/").and_then(|name| name.split('/').next().map(str::to_owned))
    };
    let last = files.keys().filter_map(|name| step(name)).filter(|name| name.starts_with("step-")).max();
    files.retain(|name, _| step(name).is_none_or(|step| !step.starts_with("step-") || Some(step) == last));
    files
}

fn add(folder: &Path, prefix: &str, files: &mut Tree) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            add(&entry.path(), &format!("{name}/"), files);
            continue;
        }
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let bytes = match name.rsplit('/').next().unwrap_or_default() {
            "metrics.jsonl" if prefix.is_empty() => without_speed(&bytes),
            "run.toml" | "adapter_config.json" => without_places(&bytes),
            "manifest.json" => without_checksum_of_places(&bytes),
            _ => bytes,
        };
        files.insert(name, bytes);
    }
}

/// A text whose absolute paths, which depend on the test's folder, are their last parts.
fn without_places(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let last = |text: &str| match text.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
        None => text.to_owned(),
    };
    text.split('"').map(last).collect::<Vec<_>>().join("\"").into_bytes()
}

/// A manifest without the entry of the file that has a path in it, which is compared itself.
fn without_checksum_of_places(bytes: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(mut manifest) => {
            if let Some(files) = manifest.as_object_mut() {
                files.remove("adapter_config.json");
            }
            manifest.to_string().into_bytes()
        }
        Err(_) => bytes.to_vec(),
    }
}

fn without_speed(bytes: &[u8]) -> Vec<u8> {
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(mut report) => {
            if let Some(report) = report.as_object_mut() {
                report.remove("tokens_per_second");
            }
            format!("{report}\n")
        }
        Err(_) => format!("{line}\n"),
    };
    String::from_utf8_lossy(bytes).lines().map(line).collect::<String>().into_bytes()
}

/// The first line in which two texts differ, for messages.
fn first_difference(expected: &[u8], found: &[u8]) -> String {
    let [mut expected, mut found] =
        [expected, found].map(|bytes| bytes.split(|byte| *byte == b'\n').map(String::from_utf8_lossy));
    let line = (1..).find_map(|line| match (expected.next(), found.next()) {
        (None, None) => Some(String::new()),
        (expected, found) if expected == found => None,
        (expected, found) => Some(format!(" (line {line} is {found:?}, expected {expected:?})")),
    });
    line.unwrap_or_default()
}

/// The names of files that differ, are missing, or should not be there.
pub(crate) fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut names: Vec<String> = expected
        .iter()
        .filter_map(|(name, bytes)| match found.get(name) {
            None => Some(format!("{name} is missing")),
            Some(other) if other == bytes => None,
            Some(other) if name.ends_with(".jsonl") => {
                Some(format!("{name} differs{}", first_difference(bytes, other)))
            }
            Some(_) => Some(format!("{name} differs")),
        })
        .collect();
    names.extend(
        found.keys().filter(|name| !expected.contains_key(*name)).map(|name| format!("{name} is left over")),
    );
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_checkpoints_the_last_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["step-000002", "step-000010", ".writing-1"] {
            std::fs::create_dir_all(folder.path().join("checkpoints").join(name)).unwrap();
            std::fs::write(folder.path().join("checkpoints").join(name).join("a"), "x").unwrap();
        }
        std::fs::write(folder.path().join("b"), "x").unwrap();
        let names: Vec<String> = result(folder.path()).into_keys().collect();
        assert_eq!(names, ["b", "checkpoints/.writing-1/a", "checkpoints/step-000010/a"]);
    }

    #[test]
    fn places_do_not_count_but_names_do() {
        assert_eq!(without_places(b"model = \"/tmp/a/model\"\nrank = 2"), b"model = \"model\"\nrank = 2");
        assert_eq!(without_places(b"{\"base\": \"org/name\"}"), b"{\"base\": \"org/name\"}");
        let one = without_checksum_of_places(b"{\"adapter_config.json\": 1, \"a\": 2}");
        assert_eq!(one, without_checksum_of_places(b"{\"adapter_config.json\": 3, \"a\": 2}"));
        assert_ne!(one, without_checksum_of_places(b"{\"adapter_config.json\": 1, \"a\": 3}"));
    }

    #[test]
    fn every_difference_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a", "1");
        write("b", "2");
        write("metrics.jsonl", "{\"step\":1,\"tokens_per_second\":5.0}\n");
        let before = tree(folder.path());
        write("metrics.jsonl", "{\"step\":1,\"tokens_per_second\":6.0}\n");
        assert_eq!(differences(&before, &tree(folder.path())), [] as [&str; 0]);
        write("a", "3");
        std::fs::rename(folder.path().join("b"), folder.path().join("c")).unwrap();
        write("metrics.jsonl", "{\"step\":2}\n");
        assert_eq!(
            differences(&before, &tree(folder.path())),
            [
                "a differs",
                "b is missing",
                "metrics.jsonl differs (line 1 is Some(\"{\\\"step\\\":2}\"), expected Some(\"{\\\"step\\\":1}\"))",
                "c is left over"
            ]
        );
    }
}
