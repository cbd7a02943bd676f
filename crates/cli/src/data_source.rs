//! From what `--data` names to rows: a folder, a file, a built-in data set, or a data set of the hub.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use metal_candle::training::data::{Format, Row, ValidationSize};
use metal_candle::training::{Columns, DataSet};
use serde::{Deserialize, Serialize};

use crate::builtin;
use crate::cache;
use crate::failure::Failure;
use crate::fetch::fetch_file;
use crate::hub::{Hub, HubError, RemoteFile};
use crate::progress::size;
use crate::session::Session;
use metal_candle::counts::counted;

/// Options for reading a data set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Split of a hub's data set to train on; `None` for `train`.
    pub(crate) split: Option<String>,
    pub(crate) columns: Columns,
    /// Number of rows to take for validation; `None` for the default.
    pub(crate) valid: Option<ValidationSize>,
    /// Set if a data set without training rows will do.
    pub(crate) any_split: bool,
}

impl Options {
    /// Parses the flags `--split` and `--columns`.
    pub(crate) fn new(split: Option<&str>, columns: Option<&str>) -> anyhow::Result<Self> {
        let columns = columns.map(str::parse).transpose()?.unwrap_or_default();
        Ok(Self { split: split.map(str::to_owned), columns, valid: None, any_split: false })
    }

    /// Refuses `--split` for a path on this machine.
    fn refuse_split(&self) -> Result<(), Failure> {
        let Some(split) = &self.split else { return Ok(()) };
        let advice = "leave out --split and pass the file to --data";
        Err(Failure::input(format!("split: '{split}' is for data sets of the hub"), advice))
    }
}

/// A data set and a short name for it.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) set: DataSet,
}

/// A data set of the hub: `org/name`, and a folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HubId {
    repository: String,
    folder: String,
}

/// The files of a data set in the cache, by split.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    train: Vec<PathBuf>,
    valid: Vec<PathBuf>,
    test: Vec<PathBuf>,
}

/// Reads the data set that `text` names.
pub(crate) fn open(text: &str, options: &Options, session: &Session) -> anyhow::Result<Named> {
    let path = crate::model_source::expand_home(text);
    let local = if path.exists() {
        Some(path)
    } else {
        builtin::find(text).map(builtin::BuiltIn::folder).transpose()?
    };
    if let Some(path) = local {
        options.refuse_split()?;
        announce_format(&path, session)?;
        let set = match options.any_split {
            true => DataSet::open_any(&path, &options.columns)?,
            false => DataSet::open_with(&path, &options.columns, options.valid)?,
        };
        let full = std::fs::canonicalize(&path).unwrap_or(path);
        let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
        let name = name.map_or_else(|| "data".to_owned(), |name| name.to_string_lossy().into_owned());
        announce_unused(&set, session);
        return Ok(Named { name, set });
    }
    let id = hub_id(text).ok_or_else(|| missing(text))?;
    let files = fetch(&id, options, session).map_err(|failure| {
        Failure::new(
            failure.code,
            format!("{text}: no such file or folder; on the hub: {}", failure.cause),
            failure.advice,
        )
    })?;
    let mut set = DataSet::from_files(&files.train, &files.valid, &files.test, &options.columns)?;
    match options.valid {
        Some(size) => set.split_off(size)?,
        None if options.any_split => {}
        None => set.split_off_validation(),
    }
    let name = id.repository.rsplit('/').next().unwrap_or("data").to_owned();
    announce_unused(&set, session);
    Ok(Named { name, set })
}

/// Reads the rows to evaluate: those of a file, or the test rows of a data set (its validation rows without those).
pub(crate) fn open_for_evaluation(
    text: &str,
    options: &Options,
    session: &Session,
) -> anyhow::Result<Vec<Row>> {
    let is_file = crate::model_source::expand_home(text).is_file();
    let options = &Options { any_split: true, ..options.clone() };
    let set = open(text, options, session)?.set;
    // A split that was asked for by name is evaluated whole, and so is a file without splits.
    if options.split.is_some() {
        return Ok([set.train, set.valid].concat());
    }
    if is_file && set.test.is_empty() && set.valid.is_empty() {
        return Ok(set.train);
    }
    if set.test.is_empty() && set.valid.is_empty() {
        let advice = "pass a file of rows, or --split train for a data set of the hub";
        return Err(Failure::input(format!("{text}: has no test or validation rows"), advice).into());
    }
    let (rows, kind) = if set.test.is_empty() { (set.valid, "validation") } else { (set.test, "test") };
    session.note(format!("{text}: evaluating {}", counted(rows.len(), &format!("{kind} row"))));
    Ok(rows)
}

/// Notes that a file is read as rows because of its content.
fn announce_format(path: &Path, session: &Session) -> metal_candle::Result<()> {
    if !path.is_file() || Format::of(path).is_some() {
        return Ok(());
    }
    let format = match Format::detect(path)? {
        Some(Format::Csv) => "CSV",
        Some(Format::Parquet) => "Parquet",
        Some(_) => "JSON",
        None => return Ok(()),
    };
    session.note(format!("note: {} contains {format} and is read as rows", path.display()));
    Ok(())
}

/// Notes the columns that are not used.
fn announce_unused(set: &DataSet, session: &Session) {
    let rows: Vec<&Row> = [&set.train, &set.valid, &set.test].into_iter().flatten().collect();
    let unused = unused_columns(&rows);
    match unused.as_slice() {
        [] => {}
        [one] => session.note(format!("note: the column {one} is not used")),
        several => session.note(format!("note: the columns {} are not used", several.join(", "))),
    }
}

/// The names of columns that are not used, with the number of rows that have them if it is not all.
fn unused_columns(rows: &[&Row]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in rows.iter().flat_map(|row| row.unused.iter()) {
        *counts.entry(name).or_default() += 1;
    }
    let shown = |(name, count): (&str, usize)| match count == rows.len() {
        true => format!("'{name}'"),
        false => format!("'{name}' (in {})", counted(count, "row")),
    };
    counts.into_iter().map(shown).collect()
}

fn missing(text: &str) -> Failure {
    let advice = format!(
        "pass a folder with train.jsonl, a file of rows, {} for a built-in data set, or org/name for one of the hub",
        builtin::names()
    );
    Failure::input(format!("{text}: dataset not found"), advice)
}

/// `org/name`, `org/name/folder`, or either after `hf://datasets/` or the address of the hub.
fn hub_id(text: &str) -> Option<HubId> {
    let explicit = ["hf://datasets/", "https://huggingface.co/datasets/", "datasets/"];
    let stripped = explicit.iter().find_map(|prefix| text.strip_prefix(prefix));
    let rest = stripped.unwrap_or(text).trim_end_matches('/');
    let rest = rest
        .split_once("/tree/main")
        .map_or_else(|| rest.to_owned(), |(repository, folder)| format!("{repository}{folder}"));
    let parts: Vec<&str> = rest.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    if parts.len() < 2 || !parts.iter().all(plain) {
        return None;
    }
    // A path into a folder that exists is a slip in a path, as is the name of a file.
    let is_path =
        stripped.is_none() && (Path::new(parts[0]).exists() || Format::of(Path::new(text)).is_some());
    (!is_path).then(|| HubId { repository: parts[..2].join("/"), folder: parts[2..].join("/") })
}

/// Fetches the files of a data set; what the cache has is used when the hub is not reached.
fn fetch(id: &HubId, options: &Options, session: &Session) -> Result<Stored, Failure> {
    let folder = cache::root()?.join("datasets").join(id.repository.replace('/', "--"));
    let _lock = cache::lock(&folder, session)?;
    let split = options.split.as_deref().unwrap_or(if options.any_split { "any" } else { "train" });
    let key = format!("{}-{split}", id.folder.replace('/', "--"));
    let manifest = folder.join(format!("{key}.files.json"));
    let on_disk = |e: &std::io::Error| crate::download::disk(&folder.display().to_string(), e);
    match fetch_files(id, options, &folder, session) {
        Ok(stored) => {
            let text = serde_json::to_vec(&stored).unwrap_or_default();
            metal_candle::atomic::write(&manifest, &text).map_err(|e| on_disk(&std::io::Error::other(e)))?;
            Ok(stored)
        }
        Err(HubError::Failed(failure)) => Err(failure),
        Err(HubError::NotReached(why)) => {
            let known =
                std::fs::read(&manifest).ok().and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
            let whole = |stored: &Stored| {
                [&stored.train, &stored.valid, &stored.test].into_iter().flatten().all(|path| path.is_file())
            };
            known.filter(whole).ok_or_else(|| {
                Failure::unreachable(why, "pass a folder or a file of rows, or try again with a connection")
            })
        }
    }
}

fn fetch_files(id: &HubId, options: &Options, folder: &Path, session: &Session) -> Result<Stored, HubError> {
    let hub = Hub::from_env()?;
    let mut repository = hub.dataset(&id.repository, "main", session)?;
    if !repository.files.iter().any(|file| is_data(&file.name)) {
        // Data sets made by a script are there as Parquet on a branch that the hub maintains.
        if let Ok(converted) = hub.dataset(&id.repository, "refs%2Fconvert%2Fparquet", session) {
            repository = converted;
        }
    }
    let chosen = choose(&repository.files, id, options)?;
    let all: Vec<&RemoteFile> = chosen.iter().flatten().collect();
    let target = |file: &RemoteFile| folder.join(&repository.commit).join(&file.name);
    let absent: Vec<&&RemoteFile> = all
        .iter()
        .filter(|file| target(file).metadata().ok().is_none_or(|data| Some(data.len()) != file.size))
        .collect();
    if !absent.is_empty() {
        let bytes: u64 = absent.iter().filter_map(|file| file.size).sum();
        let files = counted(absent.len(), "file");
        session.note(format!("fetching {}: {files} ({})", id.repository, size(bytes)));
    }
    for file in absent {
        let path = target(file);
        if let Some(parent) = path.parent() {
            cache::create(parent)?;
        }
        fetch_file(&hub, &format!("datasets/{}", id.repository), &repository.commit, file, &path, session)?;
    }
    let paths = |files: &[RemoteFile]| files.iter().map(target).collect();
    let [train, valid, test] = &chosen;
    Ok(Stored { train: paths(train), valid: paths(valid), test: paths(test) })
}

/// Returns whether a file of a repository contains rows.
fn is_data(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let about = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];
    Format::of(Path::new(name)).is_some() && !about.contains(&file)
}

/// The split and the configuration's folder, from a file's path.
fn place_of(name: &str) -> (String, String) {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    if digits(stem) {
        // As in default/train/0000.parquet.
        let (outer, split) = folder.rsplit_once('/').unwrap_or(("", folder));
        return (split.to_lowercase(), outer.to_owned());
    }
    let split = match stem.split_once('-') {
        Some((split, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => split,
        _ => stem,
    };
    (split.to_lowercase(), folder.to_owned())
}

/// Names of splits for validation and for tests.
const VALID: [&str; 4] = ["validation", "valid", "val", "dev"];
const TEST: [&str; 1] = ["test"];

/// The files of train, valid and test.
fn choose(files: &[RemoteFile], id: &HubId, options: &Options) -> Result<[Vec<RemoteFile>; 3], Failure> {
    let inside = |name: &str| {
        id.folder.is_empty()
            || name.strip_prefix(id.folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut groups: BTreeMap<(String, String), Vec<RemoteFile>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_data(&file.name) && inside(&file.name)) {
        groups.entry(place_of(&file.name)).or_default().push(file.clone());
    }
    let mut names: Vec<&str> = groups.keys().map(|(split, _)| split.as_str()).collect();
    names.dedup();
    let wanted = wanted_split(&names, id, options)?;
    let folder = folder_of(&groups, &wanted, id)?;
    let of = |names: &[&str]| {
        let found = names.iter().find_map(|name| groups.get(&((*name).to_owned(), folder.clone())));
        one_format(found.cloned().unwrap_or_default())
    };
    let held_out = VALID.contains(&wanted.as_str()) || TEST.contains(&wanted.as_str());
    Ok(match options.split {
        Some(_) => [of(&[&wanted]), Vec::new(), Vec::new()],
        None if held_out => [Vec::new(), of(&VALID), of(&TEST)],
        None => [of(&[&wanted]), of(&VALID), of(&TEST)],
    })
}

/// The split to train on, or another one where that will do and there is none.
fn wanted_split(names: &[&str], id: &HubId, options: &Options) -> Result<String, Failure> {
    if names.is_empty() {
        let cause = format!("'{}' has no JSON, CSV or Parquet files", id.repository);
        return Err(Failure::input(cause, "convert the data set to JSON lines and pass the file"));
    }
    if let Some(split) = &options.split {
        return Ok(split.to_lowercase());
    }
    let held_out = TEST.iter().chain(&VALID).find(|name| names.contains(name));
    match (names, held_out) {
        _ if names.contains(&"train") => Ok("train".to_owned()),
        (_, Some(held_out)) if options.any_split => Ok((*held_out).to_owned()),
        ([only], None) => Ok((*only).to_owned()),
        _ => {
            let cause = format!("'{}' has no split 'train'", id.repository);
            Err(Failure::input(cause, format!("choose one with --split: {}", names.join(", "))))
        }
    }
}

/// The folder of a data set's configuration that has the wanted split.
fn folder_of(
    groups: &BTreeMap<(String, String), Vec<RemoteFile>>,
    wanted: &str,
    id: &HubId,
) -> Result<String, Failure> {
    let folders: Vec<&str> =
        groups.keys().filter(|(split, _)| split == wanted).map(|(_, folder)| folder.as_str()).collect();
    match folders.as_slice() {
        [] => {
            let mut names: Vec<&str> = groups.keys().map(|(split, _)| split.as_str()).collect();
            names.dedup();
            let cause = format!("'{}' has no split '{wanted}'", id.repository);
            Err(Failure::input(cause, format!("choose one with --split: {}", names.join(", "))))
        }
        [folder] => Ok((*folder).to_owned()),
        several => {
            let cause = format!("'{}' has several configurations: {}", id.repository, several.join(", "));
            Err(Failure::input(cause, format!("add one: --data {}/{}", id.repository, several[0])))
        }
    }
}

/// Files of one format only; a data set may have the same rows in several.
fn one_format(mut files: Vec<RemoteFile>) -> Vec<RemoteFile> {
    let order = [Format::Parquet, Format::JsonLines, Format::Json, Format::Csv];
    let format = |file: &RemoteFile| Format::of(Path::new(&file.name));
    if let Some(best) = order.into_iter().find(|best| files.iter().any(|file| format(file) == Some(*best))) {
        files.retain(|file| format(file) == Some(best));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], folder: &str, split: Option<&str>) -> Result<[Vec<String>; 3], String> {
        chosen_by(names, folder, &Options { split: split.map(str::to_owned), ..Options::default() })
    }

    fn chosen_by(names: &[&str], folder: &str, options: &Options) -> Result<[Vec<String>; 3], String> {
        let file = |name: &&str| RemoteFile { name: (*name).to_owned(), size: None, sha256: None };
        let files: Vec<RemoteFile> = names.iter().map(file).collect();
        let id = HubId { repository: "org/name".to_owned(), folder: folder.to_owned() };
        match choose(&files, &id, options) {
            Ok(found) => Ok(found.map(|files| files.into_iter().map(|file| file.name).collect())),
            Err(failure) => Err(format!("{} | {}", failure.cause, failure.advice)),
        }
    }

    #[test]
    fn splits_are_found_by_the_names_of_files_and_folders() {
        let shards = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ];
        let [train, valid, test] = chosen(&shards, "", None).unwrap();
        assert_eq!(train, [shards[1], shards[0]]);
        assert!(valid.is_empty());
        assert_eq!(test, [shards[2]]);
        let [train, valid, _] =
            chosen(&["Train.jsonl", "train.csv", "validation.jsonl", "dataset_infos.json"], "", None)
                .unwrap();
        assert_eq!((train, valid), (vec!["Train.jsonl".to_owned()], vec!["validation.jsonl".to_owned()]));
        let converted =
            ["default/train/0000.parquet", "default/train/0001.parquet", "default/validation/0000.parquet"];
        let [train, valid, _] = chosen(&converted, "", None).unwrap();
        assert_eq!((train.len(), valid.len()), (2, 1));
        assert_eq!(chosen(&["alpaca_data.json"], "", None).unwrap()[0], ["alpaca_data.json"]);
    }

    #[test]
    fn what_cannot_be_chosen_names_the_choices() {
        let sft = ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"];
        let error = chosen(&sft, "", None).unwrap_err();
        assert_eq!(error, "'org/name' has no split 'train' | choose one with --split: test_sft, train_sft");
        assert_eq!(chosen(&sft, "", Some("train_sft")).unwrap()[0], [sft[0]]);
        assert!(chosen(&sft, "", Some("dev")).unwrap_err().starts_with("'org/name' has no split 'dev'"));
        let two = ["main/train.jsonl", "socratic/train.jsonl"];
        let error = chosen(&two, "", None).unwrap_err();
        assert!(
            error.ends_with("several configurations: main, socratic | add one: --data org/name/main"),
            "{error}"
        );
        assert_eq!(chosen(&two, "socratic", None).unwrap()[0], [two[1]]);
        assert!(chosen(&["README.md"], "", None).unwrap_err().contains("has no JSON, CSV or Parquet files"));
    }

    #[test]
    fn held_out_rows_are_trained_only_if_asked_for() {
        let any = Options { any_split: true, ..Options::default() };
        for files in
            [&["test.jsonl"][..], &["data/validation-00000-of-00001.parquet"], &["dev.csv", "test.csv"]]
        {
            let error = chosen(files, "", None).unwrap_err();
            assert!(
                error.starts_with("'org/name' has no split 'train' | choose one with --split: "),
                "{error}"
            );
            let [train, valid, test] = chosen_by(files, "", &any).unwrap();
            assert_eq!((train.len(), valid.len() + test.len()), (0, files.len()));
        }
        assert_eq!(chosen(&["test.jsonl"], "", Some("test")).unwrap()[0], ["test.jsonl"]);
    }

    #[test]
    fn hub_ids_are_told_from_slips_in_paths() {
        let id = |text: &str| hub_id(text).map(|id| (id.repository, id.folder));
        let found = |folder: &str| Some(("org/name".to_owned(), folder.to_owned()));
        assert_eq!(id("org/name"), found(""));
        assert_eq!(id("org/name/main"), found("main"));
        assert_eq!(id("hf://datasets/org/name"), found(""));
        assert_eq!(id("https://huggingface.co/datasets/org/name/tree/main/sub"), found("sub"));
        for path in ["name", "src/name", "org/train.jsonl", "../a/b", "/a/b", "a b/c"] {
            assert_eq!(id(path), None, "{path}");
        }
    }
}
