//! Names of base models, as adapters state them.

use metal_candle::models::ModelFiles;

use crate::model_source::{self, Origin, SHORT_NAMES, Source, absolute, parse_hub};
use crate::session::Session;
use crate::snapshot;

/// Returns the name under which an adapter states its base: the repository of a model of the hub, or the absolute path of
/// one on this machine, so that it is found from every folder.
pub(crate) fn stated(model: &str, files: &ModelFiles) -> String {
    let of_files = files.base_model.clone();
    match model_source::parse(model) {
        Ok(Source::Pinned(_, pinned)) => pinned.base.to_owned(),
        Ok(Source::Hub(hub)) => {
            let is_gguf = hub.file.is_some() || files.path.is_file();
            of_files.filter(|_| is_gguf).unwrap_or_else(|| hub.to_string())
        }
        // transformers writes down the model that a folder was made from, which need not be the one in it.
        Ok(Source::Local(_)) | Err(_) => of_files
            .filter(|base| files.path.is_file() || same_model(base, &files.name))
            .unwrap_or_else(|| absolute(model)),
    }
}

/// Returns the short name whose file is used for a repository that is not here: it was converted from it, and is fetched
/// from more places.
pub(crate) fn short_name_for(base: &str, session: &Session) -> Option<&'static str> {
    let hub = parse_hub(base).filter(|hub| hub.file.is_none() && hub.revision == "main")?;
    let is_converted = |origin: &Origin| matches!(origin, Origin::Pinned(pinned) if pinned.base == hub.id);
    let short = SHORT_NAMES.iter().find(|short| is_converted(&short.origin))?;
    (!snapshot::is_here(&hub, session)).then_some(short.name)
}

/// Returns true if two names can be those of one model: the same repository, or the same last part where one of them is a
/// path or a file, whatever the number format of a file is.
pub(crate) fn same_model(one: &str, other: &str) -> bool {
    let owner =
        |name: &str| parse_hub(name).and_then(|hub| Some(hub.id.split_once('/')?.0.to_ascii_lowercase()));
    let owners_differ = owner(one).zip(owner(other)).is_some_and(|(a, b)| a != b);
    !owners_differ && bare_name(one) == bare_name(other)
}

/// The last part of a name in lower case, without revision, number format and punctuation.
fn bare_name(name: &str) -> String {
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name);
    let last = last.split(['@', ':']).next().unwrap_or(last).to_ascii_lowercase();
    let mut words: Vec<&str> = last.split(['-', '.']).collect();
    while words.len() > 1 && words.last().is_some_and(|word| is_format(word)) {
        words.pop();
    }
    words.concat().chars().filter(char::is_ascii_alphanumeric).collect()
}

fn is_format(word: &str) -> bool {
    let digit_after = |prefix: &str| {
        word.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let known = ["gguf", "f16", "bf16", "f32", "fp16", "fp32", "4bit", "8bit", "bnb", "mlx"];
    known.contains(&word) || digit_after("q") || digit_after("iq")
}

#[cfg(test)]
#[path = "../../../tests/byte_model/mod.rs"]
mod byte_model;

#[cfg(test)]
mod tests {
    use super::*;

    /// The default model's adapters named "Smollm2 135M 8k Lc100K Mix1 Ep2", which no tool finds.
    #[test]
    fn bases_are_stated_by_repository_or_absolute_path() {
        let folder = tempfile::tempdir().unwrap();
        byte_model::write(folder.path());
        let mut files = ModelFiles::open(folder.path()).unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(stated("smollm2-135m", &files), "HuggingFaceTB/SmolLM2-135M-Instruct");
        assert_eq!(stated("qwen3-0.6b", &files), "Qwen/Qwen3-0.6B");
        for name in ["org/name", "org/name@v1", "org/name@v1:a.gguf", "org/name:Q4_K_M"] {
            assert_eq!(stated(name, &files), name);
        }
        assert_eq!(stated(path, &files), path);
        // The parent of a derived model is not its base, unless the names agree.
        files.base_model = Some("org/parent".into());
        assert_eq!(stated(path, &files), path);
        assert_eq!(stated("org/name:a.gguf", &files), "org/parent");
        files.name = "Parent".into();
        assert_eq!(stated(path, &files), "org/parent");
    }

    #[test]
    fn names_of_one_model_are_recognized() {
        for (one, other) in [
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"),
            ("Qwen/Qwen3-0.6B", "/models/Qwen3-0.6B/"),
            ("Qwen/Qwen3-0.6B", "Qwen3-0.6B.Q4_K_M.gguf"),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1"),
            (r"C:\models\tiny", "tiny"),
        ] {
            assert!(same_model(one, other), "{one} and {other}");
        }
        for (one, other) in [
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"),
            ("Qwen/Qwen3-0.6B", "someone/Qwen3-0.6B"),
            ("meta-llama/Llama-3.2-1B", "/models/Llama-3.2-1B-Instruct"),
        ] {
            assert!(!same_model(one, other), "{one} and {other}");
        }
    }
}
