//! The data sets that are part of the tool.

use std::path::PathBuf;

use crate::cache;
use crate::failure::Failure;
use crate::settings::TrainFlags;

/// Name of the data set that `train` uses by default.
pub(crate) const DEFAULT: &str = "appointments";

/// A data set whose files are part of the binary.
pub(crate) struct BuiltIn {
    /// Name that `--data` takes.
    pub(crate) name: &'static str,
    /// Name and text of each file.
    files: [(&'static str, &'static str); 3],
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltIn {
            name: $name,
            files: [
                ("train.jsonl", include_str!(concat!("../../../examples/data/", $name, "/train.jsonl"))),
                ("valid.jsonl", include_str!(concat!("../../../examples/data/", $name, "/valid.jsonl"))),
                ("test.jsonl", include_str!(concat!("../../../examples/data/", $name, "/test.jsonl"))),
            ],
        }
    };
}

const BUILT_IN: [BuiltIn; 2] = [built_in!("appointments"), built_in!("shell")];

/// Returns the built-in data set of this name.
pub(crate) fn find(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|data| data.name == name)
}

/// Returns the names of all built-in data sets, in prose.
pub(crate) fn names() -> String {
    BUILT_IN.map(|data| format!("'{}'", data.name)).join(" or ")
}

impl BuiltIn {
    /// Returns the settings that suit this data set; flags and configuration files override them.
    pub(crate) fn defaults(&self) -> TrainFlags {
        match self.name {
            // Two fifths of the rows are enough to learn the task; the rest adds time and no accuracy.
            "appointments" => TrainFlags {
                steps: Some(30),
                learning_rate: Some(2e-3),
                eval_every: Some(10),
                ..TrainFlags::default()
            },
            _ => TrainFlags::default(),
        }
    }

    /// Returns the data set's folder in the cache, after writing every file that is missing or differs.
    pub(crate) fn folder(&self) -> Result<PathBuf, Failure> {
        let folder = cache::root()?.join("data").join(self.name);
        cache::create(&folder)?;
        let differs = |name: &str, text: &str| {
            !std::fs::read(folder.join(name)).is_ok_and(|found| found == text.as_bytes())
        };
        let missing: Vec<_> = self.files.iter().filter(|(name, text)| differs(name, text)).collect();
        if missing.is_empty() {
            // A cache that cannot be written to serves as it is.
            if cache::has_unfinished(&folder) {
                drop(cache::hold(&folder));
            }
            return Ok(folder);
        }
        let _lock = cache::hold(&folder)?;
        for (name, text) in missing {
            metal_candle::atomic::write(&folder.join(name), text.as_bytes()).map_err(|error| {
                let advice = "free space in the cache folder, or set METAL_CANDLE_CACHE to another one";
                Failure::input(error.to_string(), advice)
            })?;
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Returns (prompt, answer) of every row of a file of the appointments data.
    fn rows(file: &str) -> Vec<(String, Value)> {
        let data = find("appointments").unwrap();
        let (_, text) = data.files.iter().find(|(name, _)| *name == file).unwrap();
        let row = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            let answer = serde_json::from_str(row["completion"].as_str().unwrap()).unwrap();
            (row["prompt"].as_str().unwrap().to_owned(), answer)
        };
        text.lines().map(row).collect()
    }

    /// Returns the values of a fact in all rows, a person's names apart.
    fn values(rows: &[(String, Value)], fact: &str) -> BTreeSet<String> {
        let value = |(_, answer): &(String, Value)| answer[fact].as_str().unwrap().to_owned();
        let words = |text: String| match fact {
            "who" => text.split(' ').map(str::to_owned).collect(),
            _ => vec![text],
        };
        rows.iter().map(value).flat_map(words).collect()
    }

    /// Replaces the facts of a sentence by their names, which leaves its phrasing.
    fn phrasing((prompt, answer): &(String, Value)) -> String {
        let mut text = prompt.to_lowercase();
        for fact in ["place", "who", "what", "day", "time"] {
            text = text.replace(&answer[fact].as_str().unwrap().to_lowercase(), &format!("<{fact}>"));
        }
        text.replace(" an ", " a ").replace("on <day>", "<day>")
    }

    #[test]
    fn every_fact_of_an_appointment_is_in_its_sentence() {
        for file in ["train.jsonl", "valid.jsonl", "test.jsonl"] {
            for (prompt, answer) in rows(file) {
                let facts = answer.as_object().unwrap();
                let keys: Vec<&String> = facts.keys().collect();
                assert_eq!(keys, ["who", "what", "day", "time", "place"], "{prompt}");
                for value in facts.values() {
                    let value = value.as_str().unwrap().to_lowercase();
                    assert!(prompt.to_lowercase().contains(&value), "{value} in {prompt}");
                }
            }
        }
    }

    #[test]
    fn names_places_reasons_and_phrasings_of_one_split_occur_in_no_other() {
        let splits = ["train.jsonl", "valid.jsonl", "test.jsonl"].map(rows);
        assert_eq!(splits.each_ref().map(Vec::len), [800, 48, 60]);
        for (index, split) in splits.iter().enumerate() {
            for other in &splits[index + 1..] {
                for fact in ["who", "what", "place"] {
                    let (a, b) = (values(split, fact), values(other, fact));
                    assert_eq!(a.intersection(&b).collect::<Vec<_>>(), Vec::<&String>::new(), "{fact}");
                }
                let phrasings = |rows: &[(String, Value)]| rows.iter().map(phrasing).collect::<BTreeSet<_>>();
                let (a, b) = (phrasings(split), phrasings(other));
                assert_eq!(a.intersection(&b).collect::<Vec<_>>(), Vec::<&String>::new());
            }
        }
    }
}
