//! Repositories of the hub in the cache.
//!
//! The files are in `models/hub/<org>--<name>/<commit>`, those of adapters in `models/adapters/…`; `<revision>.ref` beside it names the commit and is written
//! last, so that a folder without it is an unfinished download that the next run continues.

use std::path::{Path, PathBuf};

use crate::cache;
use crate::download::disk;
use crate::failure::Failure;
use crate::fetch::{LOCAL, Model, Options, fetch_file, stored, usable};
use crate::hub::{self, Hub, HubError, RemoteFile, Repository};
use crate::model_name::{has_quantization, is_gguf};
use crate::model_source::HubSource;
use crate::progress::size;
use crate::record::Record;
use crate::session::Session;
use metal_candle::atomic;
use metal_candle::counts::counted;
use metal_candle::models::files_of_model;

/// What is fetched of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Adapter,
}

/// The model of a repository, fetched if it is not here.
pub(crate) fn resolve(source: &HubSource, options: Options, session: &Session) -> Result<Model, Failure> {
    resolve_kind(Kind::Model, source, options, session)
}

/// Returns true if the model of a repository need not be fetched.
pub(crate) fn is_here(source: &HubSource, session: &Session) -> bool {
    let Ok(models) = cache::models() else { return false };
    let folder = models.join("hub").join(source.id.replace('/', "--"));
    in_our_cache(&folder, source, Options::default(), session).is_some()
        || in_python_cache(Kind::Model, source).is_some()
}

/// The adapter of a repository, fetched if it is not here.
pub(crate) fn resolve_adapter(
    source: &HubSource,
    options: Options,
    session: &Session,
) -> Result<Model, Failure> {
    resolve_kind(Kind::Adapter, source, options, session)
}

fn resolve_kind(
    kind: Kind,
    source: &HubSource,
    options: Options,
    session: &Session,
) -> Result<Model, Failure> {
    let (place, local) = match kind {
        Kind::Model => ("hub", LOCAL),
        Kind::Adapter => ("adapters", "pass an adapter's folder on this machine: --adapter /path/to/adapter"),
    };
    let folder = cache::models()?.join(place).join(source.id.replace('/', "--"));
    if !options.force
        && let Some(path) =
            in_our_cache(&folder, source, options, session).or_else(|| in_python_cache(kind, source))
    {
        return Ok(Model { path, fetched: false });
    }
    let flatten = |error: HubError| match error {
        HubError::Failed(failure) => failure,
        HubError::NotReached(why) => Failure::unreachable(
            format!("'{}' is not in the cache and the hub gives nothing: {why}", source.id),
            local,
        ),
    };
    let hub = Hub::from_env().map_err(flatten)?;
    let _lock = cache::lock(&folder, session)?;
    // Another process may have fetched it while this one waited.
    if !options.force
        && let Some(path) = in_our_cache(&folder, source, options, session)
    {
        return Ok(Model { path, fetched: false });
    }
    let repository = hub.repository(&source.id, &source.revision, session).map_err(flatten)?;
    let files = match kind {
        Kind::Model => wanted(&repository, source)?,
        Kind::Adapter => wanted_of_adapter(&repository, source)?,
    };
    let snapshot = folder.join(&repository.commit);
    cache::create(&snapshot)?;
    cache::clean(&snapshot);
    let total: u64 = files.iter().filter_map(|f| f.size).sum();
    session.note(format!(
        "fetching {} ({}, {}) from {}",
        source.id,
        counted(files.len(), "file"),
        size(total),
        hub.endpoint
    ));
    let on_disk = |e: std::io::Error| disk(&snapshot.display().to_string(), &e);
    let mut record = Record::read(&snapshot);
    for file in &files {
        let target = snapshot.join(&file.name);
        if let Some(parent) = target.parent() {
            cache::create(parent)?;
        }
        if options.force
            || !usable(&mut record, (&snapshot, &file.name), file.sha256.as_deref(), options, session)
        {
            let sum =
                fetch_file(&hub, &source.id, &repository.commit, file, &target, session).map_err(flatten)?;
            record.add(&file.name, &sum).map_err(on_disk)?;
        }
    }
    if source.file.is_none() {
        record.complete().map_err(on_disk)?;
    }
    atomic::write(&reference(&folder, &source.revision), repository.commit.as_bytes())
        .map_err(|e| Failure::input(format!("{e:#}"), "check the cache folder"))?;
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    Ok(stored(model_path(&snapshot, &names), session))
}

fn reference(folder: &Path, revision: &str) -> PathBuf {
    folder.join(format!("{revision}.ref"))
}

fn in_our_cache(folder: &Path, source: &HubSource, options: Options, session: &Session) -> Option<PathBuf> {
    let named = std::fs::read_to_string(reference(folder, &source.revision)).ok();
    let named = named.filter(|commit| !commit.trim().is_empty());
    let snapshot = folder.join(named.as_deref().map_or(source.revision.as_str(), str::trim));
    let mut record = Record::read(&snapshot);
    let files: Vec<String> = match &source.file {
        Some(file) if is_gguf(file) => files_of_model(file),
        Some(wanted) => {
            only_model(record.names().filter(|name| is_gguf(name) && has_quantization(name, wanted)))?
        }
        None => record.whole()?.into_iter().map(str::to_owned).collect(),
    };
    let sound = files.iter().all(|file| usable(&mut record, (&snapshot, file), None, options, session));
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    sound.then(|| model_path(&snapshot, &names))
}

/// Returns the path to load: a GGUF file (the first one of a split model), or the folder.
fn model_path(snapshot: &Path, files: &[&str]) -> PathBuf {
    let first = files.iter().min().map(|file| files_of_model(file));
    match first.as_deref() {
        Some([first, ..]) if is_gguf(first) && files.len() == files_of_model(first).len() => {
            snapshot.join(first)
        }
        _ => snapshot.to_owned(),
    }
}

/// The files of the one model that all these files belong to. `None` if there are several, of which the hub tells which
/// was meant.
fn only_model<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    let files = files_of_model(names.next()?);
    names.all(|name| files.iter().any(|file| file == name)).then_some(files)
}

/// A snapshot that Python's tools fetched, if everything needed is in it.
fn in_python_cache(kind: Kind, source: &HubSource) -> Option<PathBuf> {
    let folder = hub::python_cache()?.join(format!("models--{}", source.id.replace('/', "--")));
    let named = std::fs::read_to_string(folder.join("refs").join(&source.revision)).ok();
    let snapshot =
        folder.join("snapshots").join(named.as_deref().map_or(source.revision.as_str(), str::trim));
    match &source.file {
        Some(file) if is_gguf(file) => whole_gguf(&snapshot, &files_of_model(file)),
        Some(wanted) => {
            let entries = std::fs::read_dir(&snapshot).ok()?.flatten().map(|entry| entry.path());
            let names = entries.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
            let fits = |name: &String| is_gguf(name) && has_quantization(name, wanted);
            let names: Vec<String> = names.filter(fits).collect();
            whole_gguf(&snapshot, &only_model(names.iter().map(String::as_str))?)
        }
        None if kind == Kind::Adapter => is_adapter(|name| snapshot.join(name).is_file()).then_some(snapshot),
        None => is_whole(&snapshot).then_some(snapshot),
    }
}

/// The first of these files, if all of them are there.
fn whole_gguf(folder: &Path, files: &[String]) -> Option<PathBuf> {
    files.iter().all(|file| folder.join(file).is_file()).then(|| folder.join(&files[0]))
}

/// Returns true if a folder has a configuration, a tokenizer and every weight file that its index names.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let shards = || -> Option<bool> {
        let text = std::fs::read_to_string(folder.join("model.safetensors.index.json")).ok()?;
        let index: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(index.get("weight_map")?.as_object()?.values().all(|file| file.as_str().is_some_and(has)))
    };
    has("config.json") && has("tokenizer.json") && (has("model.safetensors") || shards().unwrap_or(false))
}

/// The tensor files of adapters, of PEFT and of mlx-lm.
const ADAPTER_TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Returns true if files of these names make an adapter.
fn is_adapter(has: impl Fn(&str) -> bool) -> bool {
    has(ADAPTER_CONFIG) && ADAPTER_TENSORS.iter().any(|name| has(name))
}

/// Which files of a repository make the adapter.
fn wanted_of_adapter(repository: &Repository, source: &HubSource) -> Result<Vec<RemoteFile>, Failure> {
    let has = |name: &str| repository.files.iter().any(|file| file.name == name);
    if is_adapter(has) {
        let is_part = |name: &str| name == ADAPTER_CONFIG || ADAPTER_TENSORS.contains(&name);
        return Ok(repository.files.iter().filter(|file| is_part(&file.name)).cloned().collect());
    }
    if has("adapter_model.bin") {
        return Err(Failure::input(
            format!("'{}' has its adapter as adapter_model.bin only, a pickle, which is not read", source.id),
            "save it again with PEFT's save_pretrained, which writes adapter_model.safetensors",
        ));
    }
    Err(Failure::input(
        format!("'{}' holds no adapter: {ADAPTER_CONFIG} or its tensors are missing", source.id),
        "choose the repository of an adapter; a whole model is passed by --model",
    ))
}

/// Which files of a repository make the model.
fn wanted(repository: &Repository, source: &HubSource) -> Result<Vec<RemoteFile>, Failure> {
    let files = &repository.files;
    let select =
        |keep: &dyn Fn(&RemoteFile) -> bool| files.iter().filter(|f| keep(f)).cloned().collect::<Vec<_>>();
    let list = |files: &[RemoteFile]| files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
    let ggufs = select(&|f| is_gguf(&f.name));
    if let Some(wanted) = source.file.as_ref().filter(|name| !is_gguf(name)) {
        return of_quantization(&ggufs, wanted, source);
    }
    if let Some(name) = &source.file {
        let found = select(&|f| &f.name == name);
        return if found.is_empty() {
            Err(Failure::unreachable(
                format!("'{}' has no file '{name}'", source.id),
                format!("one of its GGUF files: {}", list(&ggufs)),
            ))
        } else {
            whole_model(&found[0], files, source)
        };
    }
    // Some repositories carry the same weights a second time as `consolidated.safetensors`.
    let is_weight = |f: &RemoteFile| f.name.ends_with(".safetensors") && f.name.starts_with("model");
    let is_text = |f: &RemoteFile| {
        let vocabulary = ["tokenizer.model", "spiece.model", "merges.txt", "vocab.txt"].contains(&&*f.name);
        let of_folder = !f.name.contains('/') && f.name.ends_with(".json");
        vocabulary || of_folder || f.name.ends_with(".jinja")
    };
    match (files.iter().any(is_weight), ggufs.as_slice()) {
        (true, _) => Ok(select(&|f| is_weight(f) || is_text(f))),
        (false, [first, others @ ..]) if others.iter().all(|other| is_of_model(first, other)) => {
            whole_model(first, files, source)
        }
        (false, [first, ..]) => Err(Failure::input(
            format!("'{}' has {} GGUF files: {}", source.id, ggufs.len(), list(&ggufs)),
            format!("name one of them: --model {}:{}", source.id, first.name),
        )),
        (false, []) => Err(Failure::input(
            format!("'{}' has neither safetensors nor GGUF weights", source.id),
            "choose a repository that has one of them",
        )),
    }
}

fn is_of_model(one: &RemoteFile, other: &RemoteFile) -> bool {
    files_of_model(&one.name).contains(&other.name)
}

/// A GGUF file with the others of its model, if that is split.
fn whole_model(
    file: &RemoteFile,
    all: &[RemoteFile],
    source: &HubSource,
) -> Result<Vec<RemoteFile>, Failure> {
    let names = files_of_model(&file.name);
    let found =
        |name: &String| all.iter().find(|file| file.name == *name).cloned().ok_or_else(|| name.clone());
    names.iter().map(found).collect::<Result<_, _>>().map_err(|missing| {
        Failure::unreachable(
            format!(
                "'{}' has a model that is split into {} files, but not its {missing}",
                source.id,
                names.len()
            ),
            "choose another quantization or another repository",
        )
    })
}

/// The GGUF file of a quantization, or the files of it.
fn of_quantization(
    ggufs: &[RemoteFile],
    wanted: &str,
    source: &HubSource,
) -> Result<Vec<RemoteFile>, Failure> {
    let id = &source.id;
    // Projectors of images belong to a model, but are none.
    let is_model = |file: &&RemoteFile| !file.name.to_ascii_lowercase().contains("mmproj");
    let models: Vec<&RemoteFile> = ggufs.iter().filter(is_model).collect();
    let list = |files: &[&RemoteFile]| files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
    let fits: Vec<&RemoteFile> =
        models.iter().copied().filter(|file| has_quantization(&file.name, wanted)).collect();
    match fits.as_slice() {
        [] if models.is_empty() => Err(Failure::input(
            format!("'{id}' has no GGUF files, of which '{wanted}' would be one"),
            format!("pass the repository as it is: --model {id}"),
        )),
        [] => Err(Failure::unreachable(
            format!("'{id}' has no GGUF file of the quantization '{wanted}'"),
            format!("one of its GGUF files: {}", list(&models)),
        )),
        [first, others @ ..] if others.iter().all(|other| is_of_model(first, other)) => {
            whole_model(first, ggufs, source)
        }
        [first, ..] => Err(Failure::input(
            format!("'{id}' has {} GGUF files of '{wanted}': {}", fits.len(), list(&fits)),
            format!("name one of them: --model {id}:{}", first.name),
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
        let all = [
            "config.json",
            "README.md",
            "model.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "tokenizer.json",
            "tokenizer.model",
            "added_tokens.json",
            "notes.txt",
            "x.gguf",
        ];
        let files = wanted(&repository(&all), &source(None)).unwrap();
        let expected = [
            "config.json",
            "model.safetensors",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "tokenizer.json",
            "tokenizer.model",
            "added_tokens.json",
        ];
        assert_eq!(names(&files), expected);
        assert_eq!(model_path(Path::new("s"), &names(&files)), Path::new("s"));
    }

    #[test]
    fn an_adapter_is_its_configuration_and_its_tensors() {
        let all = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];
        let files = wanted_of_adapter(&repository(&all), &source(None)).unwrap();
        assert_eq!(names(&files), ["adapter_config.json", "adapter_model.safetensors"]);
        let mlx = ["adapter_config.json", "adapters.safetensors", "0000100_adapters.safetensors"];
        let files = wanted_of_adapter(&repository(&mlx), &source(None)).unwrap();
        assert_eq!(names(&files), ["adapter_config.json", "adapters.safetensors"]);
        let refused =
            |names: &[&str]| wanted_of_adapter(&repository(names), &source(None)).unwrap_err().cause;
        assert!(refused(&["adapter_config.json", "adapter_model.bin"]).contains("adapter_model.bin only"));
        assert!(refused(&["config.json", "model.safetensors"]).contains("holds no adapter"));
    }

    #[test]
    fn gguf_repositories_want_one_file() {
        let files = wanted(&repository(&["README.md", "x.gguf"]), &source(None)).unwrap();
        assert_eq!(model_path(Path::new("s"), &names(&files)), Path::new("s/x.gguf"));
        let two = repository(&["x.gguf", "y.gguf"]);
        assert_eq!(wanted(&two, &source(None)).unwrap_err().advice, "name one of them: --model a/b:x.gguf");
        assert_eq!(names(&wanted(&two, &source(Some("y.gguf"))).unwrap()), ["y.gguf"]);
        assert!(wanted(&two, &source(Some("z.gguf"))).unwrap_err().advice.ends_with("x.gguf, y.gguf"));
        let pickle = wanted(&repository(&["config.json", "pytorch_model.bin"]), &source(None)).unwrap_err();
        assert!(pickle.cause.contains("neither safetensors nor GGUF"));
    }

    #[test]
    fn a_quantization_is_one_model_in_any_folder() {
        let all = [
            "m-Q4_K_M.gguf",
            "BF16/m-BF16.gguf",
            "m-F16.gguf",
            "mmproj-F16.gguf",
            "Q8/m-Q8_0-00001-of-00002.gguf",
            "Q8/m-Q8_0-00002-of-00002.gguf",
        ];
        let found = |wanted: &str| wanted_names(&all, wanted);
        assert_eq!(found("q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(found("BF16").unwrap(), ["BF16/m-BF16.gguf"]);
        assert_eq!(found("F16").unwrap(), ["m-F16.gguf"]);
        // Files of a split model were refused.
        let split = ["Q8/m-Q8_0-00001-of-00002.gguf", "Q8/m-Q8_0-00002-of-00002.gguf"];
        assert_eq!(found("Q8_0").unwrap(), split);
        let by_file = |name: &str| wanted(&repository(&all), &source(Some(name)));
        assert_eq!(names(&by_file(split[1]).unwrap()), split);
        assert_eq!(names(&wanted(&repository(&split), &source(None)).unwrap()), split);
        assert_eq!(model_path(Path::new("s"), &split), Path::new("s").join(split[0]));
        let cause = wanted_names(&all[..5], "Q8_0").unwrap_err().cause;
        assert_eq!(cause, format!("'a/b' has a model that is split into 2 files, but not its {}", split[1]));
        assert!(found("Q2_K").unwrap_err().advice.contains("m-Q4_K_M.gguf, BF16/m-BF16.gguf"));
        assert!(
            wanted_names(&["config.json", "model.safetensors"], "Q4_0")
                .unwrap_err()
                .cause
                .contains("has no GGUF files")
        );
    }

    fn wanted_names(all: &[&str], quantization: &str) -> Result<Vec<String>, Failure> {
        let files = wanted(&repository(all), &source(Some(quantization)))?;
        Ok(files.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn a_python_snapshot_must_have_every_shard() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(!is_whole(folder.path()));
        write(
            "model.safetensors.index.json",
            r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#,
        );
        write("m-1.safetensors", "");
        assert!(!is_whole(folder.path()));
        write("m-2.safetensors", "");
        assert!(is_whole(folder.path()));
    }
}
