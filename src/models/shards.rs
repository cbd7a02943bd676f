//! Names of models that are split over several files, such as `model-00002-of-00003.safetensors`.

use std::path::{Path, PathBuf};

/// The name of one file of a split model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard<'a> {
    /// The name before the numbers.
    pub(super) stem: &'a str,
    /// Number of this file, from 1.
    pub(super) number: usize,
    /// Number of files.
    pub(super) count: usize,
    /// Number of digits in which both are written.
    digits: usize,
    ending: &'a str,
}

impl<'a> Shard<'a> {
    /// Reads a name. `None` if it is not that of one file among several.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (front, ending) = name.rsplit_once('.')?;
        let (front, count) = front.rsplit_once("-of-")?;
        let (stem, number) = front.rsplit_once('-')?;
        let digits = number.len();
        let is_number = |text: &str| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        if !(4..=6).contains(&digits) || !is_number(number) || !is_number(count) {
            return None;
        }
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (1..=count).contains(&number).then_some(Self { stem, number, count, digits, ending })
    }

    /// The names of all files of the model, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = String> + '_ {
        let Self { stem, count, digits, ending, .. } = self;
        (1..=*count).map(move |number| format!("{stem}-{number:0digits$}-of-{count:0digits$}.{ending}"))
    }
}

/// Returns the names of all files of the split model to which a file belongs, the first one first; only this name if it is
/// that of a whole model. Folders before the name stay.
pub fn files_of_model(file: &str) -> Vec<String> {
    let (folder, name) = file.rfind('/').map_or(("", file), |at| file.split_at(at + 1));
    match Shard::parse(name) {
        Some(shard) => shard.all().map(|name| format!("{folder}{name}")).collect(),
        None => vec![file.to_owned()],
    }
}

/// The first file that is missing in a folder among those of the split models to which the names belong.
pub(super) fn first_missing<'a>(folder: &Path, names: impl IntoIterator<Item = &'a str>) -> Option<PathBuf> {
    let shards = names.into_iter().filter_map(Shard::parse);
    let mut seen: Vec<(&str, usize)> = Vec::new();
    for shard in shards {
        if seen.contains(&(shard.stem, shard.count)) {
            continue;
        }
        seen.push((shard.stem, shard.count));
        if let Some(missing) = shard.all().map(|name| folder.join(name)).find(|path| !path.is_file()) {
            return Some(missing);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_split_models_are_read() {
        let shard = Shard::parse("model-00002-of-00003.safetensors").unwrap();
        assert_eq!((shard.stem, shard.number, shard.count), ("model", 2, 3));
        let names: Vec<String> = shard.all().collect();
        assert_eq!(names[0], "model-00001-of-00003.safetensors");
        assert_eq!((names[2].as_str(), names.len()), ("model-00003-of-00003.safetensors", 3));
        let gguf = Shard::parse("Q8-of-x-00010-of-00012.gguf").unwrap();
        assert_eq!((gguf.stem, gguf.number, gguf.count), ("Q8-of-x", 10, 12));
        for name in [
            "model.safetensors",
            "model-00000-of-00003.safetensors",
            "model-00004-of-00003.safetensors",
            "model-1-of-3.safetensors",
            "model-00001-of-0003.safetensors",
            "00001-of-00003.safetensors",
            "model-00001-of-00003",
        ] {
            assert_eq!(Shard::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_files_of_a_model_are_in_its_folder() {
        let all = ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf"];
        assert_eq!(files_of_model(all[1]), all);
        assert_eq!(files_of_model("q/a.gguf"), ["q/a.gguf"]);
    }

    #[test]
    fn the_first_missing_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "x").unwrap();
        let missing = |names: &[&str]| {
            let path = first_missing(folder.path(), names.iter().copied())?;
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        write("a-00001-of-00003.gguf");
        write("a-00003-of-00003.gguf");
        write("b-00001-of-00001.gguf");
        assert_eq!(missing(&["x.gguf", "b-00001-of-00001.gguf"]), None);
        assert_eq!(missing(&["a-00003-of-00003.gguf"]).as_deref(), Some("a-00002-of-00003.gguf"));
        write("a-00002-of-00003.gguf");
        assert_eq!(missing(&["a-00003-of-00003.gguf"]), None);
    }
}
