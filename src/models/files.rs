//! Everything that makes up a model on disk.

use std::path::{Path, PathBuf};

use super::chat_template::ChatTemplate;
use super::config::ModelConfig;
use super::gguf::Gguf;
use super::read::read_json;
use super::shards::Shard;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::{Error, Result};

/// An open model: a Hugging Face folder or a GGUF file.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder or file that was opened.
    pub path: PathBuf,
    /// A short name for people: the folder's or file's.
    pub name: String,
    /// The repository that the files state for this model, as `owner/model`.
    pub base_model: Option<String>,
    /// The model's name in the metadata of a GGUF file (`general.name`), for people.
    pub title: Option<String>,
    /// What its layers look like.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelFiles {
    /// Opens a Hugging Face folder, a GGUF file, or a folder that holds one GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let files = match locate(path)? {
            Located::Folder(folder) => {
                let (config, weights) = open_folder(&folder)?;
                Self {
                    path: path.to_owned(),
                    name: name_of(&folder),
                    base_model: base_model_of_folder(&folder)?,
                    title: None,
                    config,
                    weights,
                    tokenizer: Tokenizer::from_folder(&folder)?,
                    chat_template: ChatTemplate::from_folder(&folder)?,
                }
            }
            Located::Gguf(file) => {
                let gguf = Gguf::open(&file)?;
                Self {
                    path: path.to_owned(),
                    name: name_of(&file),
                    base_model: base_model_of_gguf(&gguf, &name_of(&file))?,
                    title: gguf.text("general.name")?.map(str::to_owned),
                    config: ModelConfig::from_gguf(&gguf)?,
                    weights: Weights::from_gguf(&gguf)?,
                    tokenizer: Tokenizer::from_gguf(&gguf)?,
                    chat_template: ChatTemplate::from_gguf(&gguf)?,
                }
            }
        };
        let (tokens, rows) = (files.tokenizer.vocab_size(), files.config.vocab);
        if tokens > rows {
            tracing::warn!(
                "{}: the tokenizer has {tokens} tokens, but the embedding has {rows} rows; a text with one of the tokens \
                 from {rows} on cannot be computed",
                path.display()
            );
        }
        Ok(files)
    }

    /// Opens configuration and weights only, for models without a tokenizer.
    pub fn open_weights(path: impl AsRef<Path>) -> Result<(ModelConfig, Weights)> {
        match locate(path.as_ref())? {
            Located::Folder(folder) => open_folder(&folder),
            Located::Gguf(file) => {
                let gguf = Gguf::open(&file)?;
                Ok((ModelConfig::from_gguf(&gguf)?, Weights::from_gguf(&gguf)?))
            }
        }
    }
}

/// Configuration and weights of a folder. A head of its own is used also where the configuration ties it to the
/// embedding, since the model that was saved computed with it.
fn open_folder(folder: &Path) -> Result<(ModelConfig, Weights)> {
    const HEAD: &str = "lm_head.weight";
    let (mut config, weights) = (ModelConfig::from_hf(folder)?, Weights::open(folder)?);
    if config.tie_embeddings && weights.contains(HEAD) && !weights.equal(HEAD, "model.embed_tokens.weight")? {
        tracing::warn!(
            "{}: tie_word_embeddings is true in config.json, but {HEAD} differs from the embedding; the head is used as \
             it is stored",
            folder.display()
        );
        config.tie_embeddings = false;
    }
    Ok((config, weights))
}

enum Located {
    Folder(PathBuf),
    Gguf(PathBuf),
}

/// Finds out what a path holds.
fn locate(path: &Path) -> Result<Located> {
    if path.is_file() {
        return Ok(Located::Gguf(path.to_owned()));
    }
    if !path.is_dir() {
        return Err(Error::file(
            path,
            "is not there; give a folder with config.json and model.safetensors, or a GGUF file",
        ));
    }
    if path.join("config.json").is_file() {
        return Ok(Located::Folder(path.to_owned()));
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, "read", e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")))
        .collect();
    found.sort();
    // All files of one split model are one model.
    let model = |file: &PathBuf| {
        let name = file.file_name()?.to_str()?;
        Shard::parse(name).map(|shard| (shard.stem.to_owned(), shard.count))
    };
    found.dedup_by(|later, first| model(first).is_some() && model(later) == model(first));
    match found.len() {
        1 => Ok(Located::Gguf(found.remove(0))),
        0 if path.join("adapter_config.json").is_file() => Err(Error::file(
            path,
            "holds an adapter, not a model; give its base model here and the adapter apart",
        )),
        0 => Err(Error::file(path, "has neither config.json nor a GGUF file; is the download complete?")),
        several => Err(Error::file(path, format!("holds {several} GGUF files; name the one to open"))),
    }
}

fn name_of(path: &Path) -> String {
    // "." and ".." have no name of their own.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Some(shard) = absolute.file_name().and_then(|name| name.to_str()).and_then(Shard::parse) {
        return shard.stem.to_owned();
    }
    let name = if absolute.is_dir() { absolute.file_name() } else { absolute.file_stem() };
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// What transformers wrote down, unless that is a path of another machine.
fn base_model_of_folder(folder: &Path) -> Result<Option<String>> {
    let config = read_json(&folder.join("config.json"))?;
    let name = config.as_ref().and_then(|config| config.get("_name_or_path")?.as_str());
    Ok(name.filter(|name| is_repository(name)).map(str::to_owned))
}

/// Keys of a GGUF file for the repository that it was converted from.
const SOURCES: [&str; 4] = [
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.source.url",
    "general.repo_url",
];
/// Key for the model that this one was made from. Some converters state the converted model there, others its parent.
const PARENT: &str = "general.base_model.0.repo_url";

/// Returns the repository that a GGUF file was converted from, if it states it.
fn base_model_of_gguf(gguf: &Gguf, name: &str) -> Result<Option<String>> {
    let repository = |key: &str| -> Result<Option<String>> {
        let address = gguf.text(key)?.unwrap_or_default();
        let name = address.trim_start_matches("https://huggingface.co/").trim_end_matches('/');
        Ok(is_repository(name).then(|| name.to_owned()))
    };
    for key in SOURCES {
        if let Some(found) = repository(key)? {
            return Ok(Some(found));
        }
    }
    let letters = |text: &str| {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<String>()
    };
    let title = letters(gguf.text("general.name")?.unwrap_or_default());
    // The file's name goes on with its number format.
    let is_this = |parent: &String| {
        let parent = letters(parent.rsplit('/').next().unwrap_or(parent));
        let rest = letters(name).strip_prefix(&parent).map(str::to_owned);
        parent == title || rest.is_some_and(|rest| FORMATS.iter().any(|format| rest.starts_with(format)))
    };
    Ok(repository(PARENT)?.filter(is_this))
}

/// Beginnings of what follows a model's name in the name of its GGUF file.
const FORMATS: [&str; 8] = ["q", "iq", "f16", "f32", "bf16", "tq", "mxfp4", "ud"];

/// Whether a name is like `owner/model`.
fn is_repository(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let mut parts = name.split('/');
    let sound = |part: &str| !part.is_empty() && !part.starts_with('.');
    name.chars().all(allowed) && parts.clone().count() == 2 && parts.all(sound)
}
