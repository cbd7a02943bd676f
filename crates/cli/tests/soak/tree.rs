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

fn add(folder: &Path, prefix: &str, files: &mut Tree) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            add(&entry.path(), &format!("{name}/"), files);
            continue;
        }
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        files.insert(name.clone(), if name == "metrics.jsonl" { without_speed(&bytes) } else { bytes });
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

/// The names of files that differ, are missing, or should not be there.
pub(crate) fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut names: Vec<String> = expected
        .iter()
        .filter_map(|(name, bytes)| match found.get(name) {
            None => Some(format!("{name} is missing")),
            Some(other) => (other != bytes).then(|| format!("{name} differs")),
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
            ["a differs", "b is missing", "metrics.jsonl differs", "c is left over"]
        );
    }
}
