//! Checkpoints from which a run goes on exactly where it stood.
//!
//! A checkpoint is a folder `checkpoints/step-000123` with the adapter, the optimizer's state and the trainer's
//! state. It is written under another name, and renamed when everything is on the disk; its manifest holds the size
//! and checksum (FNV-1a, 64 bits, against torn writes, not against forgery) of every file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapter::{Adapter, CONFIG_FILE, TENSOR_FILE};
use super::divergence::LossWatch;
use super::tensors::{read_tensors, write_tensors};
use crate::atomic::{self, WRITING};
use crate::durable;
use crate::tensor::HostTensor;
use crate::{Error, Result};

const FOLDER: &str = "checkpoints";
const MANIFEST: &str = "manifest.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const FILES: [&str; 4] = [CONFIG_FILE, TENSOR_FILE, OPTIMIZER, STATE];

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: usize,
    /// Batches of this pass done.
    pub batch_index: usize,
    /// The best validation loss, if there is one.
    pub best_loss: Option<f64>,
    /// Its step.
    pub best_step: usize,
    /// Validations since then.
    pub bad_evals: usize,
    /// Whether the validation of this step was interrupted. The run resumes with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub validation_due: bool,
    /// Tokens trained on, padding not counted.
    pub tokens_seen: u64,
    /// The run's seed, from which data order and dropout follow.
    pub seed: u64,
    /// What must be the same for the run to go on.
    #[serde(default)]
    pub settings: Settings,
    /// What the losses have shown so far.
    #[serde(default)]
    pub watch: LossWatch,
}

/// Everything that decides a run's result, by name, as text.
pub type Settings = BTreeMap<String, String>;

/// A setting that differs between a checkpoint and the run that is to go on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The setting's name.
    pub name: String,
    /// Its value in the checkpoint.
    pub saved: String,
    /// Its value in the run.
    pub now: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {}, now it is {}", self.name, self.saved, self.now)
    }
}

impl TrainerState {
    /// The beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            step: 0,
            epoch: 0,
            batch_index: 0,
            best_loss: None,
            best_step: 0,
            bad_evals: 0,
            validation_due: false,
            tokens_seen: 0,
            seed,
            settings: Settings::new(),
            watch: LossWatch::default(),
        }
    }

    /// The best validation loss and its step.
    pub fn best(&self) -> Option<(f64, usize)> {
        self.best_loss.map(|loss| (loss, self.best_step))
    }

    /// Takes note of a validation; true if it is the best so far.
    pub fn note_validation(&mut self, loss: f64) -> bool {
        let better = self.best_loss.is_none_or(|best| loss < best);
        if better {
            (self.best_loss, self.best_step, self.bad_evals) = (Some(loss), self.step, 0);
        } else {
            self.bad_evals += 1;
        }
        better
    }

    /// Returns true if so many validations in a row brought no improvement that the run stops; never with a patience of 0.
    pub(super) fn has_run_out_of(&self, patience: usize) -> bool {
        patience > 0 && self.bad_evals >= patience
    }

    /// Refuses to go on with other data or options than the run began with, and names all of them.
    pub fn check(&self, settings: &Settings, path: &Path) -> Result<()> {
        let absent = || "not set".to_owned();
        let names: BTreeSet<&String> = self.settings.keys().chain(settings.keys()).collect();
        let differences: Vec<Difference> = names
            .into_iter()
            .filter(|&name| self.settings.get(name) != settings.get(name))
            .map(|name| Difference {
                name: name.clone(),
                saved: self.settings.get(name).cloned().unwrap_or_else(absent),
                now: settings.get(name).cloned().unwrap_or_else(absent),
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::OtherRun { checkpoint: path.to_owned(), differences })
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    checksum: String,
}

type Manifest = BTreeMap<String, Entry>;

/// Writes a checkpoint into the run's output folder.
pub fn save(
    out: &Path,
    adapter: &Adapter,
    optimizer: &[(String, HostTensor)],
    state: &TrainerState,
) -> Result<PathBuf> {
    let folder = out.join(FOLDER);
    let failed = |path: &Path, source| Error::io(path, "write", source);
    durable::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
    let path = folder.join(format!("step-{:06}", state.step));
    // Removed when it is dropped, unless it got its name.
    let temporary = durable::temporary_folder(&folder, WRITING);
    let temporary = temporary.map_err(|source| failed(&folder, source))?;
    let inside = temporary.path();
    adapter.save(inside)?;
    write_tensors(&inside.join(OPTIMIZER), optimizer)?;
    let text = serde_json::to_vec_pretty(state).map_err(|error| Error::file(inside, error.to_string()))?;
    atomic::write(&inside.join(STATE), &text)?;
    let manifest = manifest(inside)?;
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|error| Error::file(inside, error.to_string()))?;
    atomic::write(&inside.join(MANIFEST), &text)?;
    // What is there already and the same stays, so that there is no moment without it.
    if complete(&path).is_none_or(|existing| existing != manifest) {
        let replaced = durable::temporary_folder(&folder, WRITING);
        let replaced = replaced.map_err(|source| failed(&folder, source))?;
        if path.exists() {
            durable::rename(&path, &replaced.path().join("replaced"))
                .map_err(|source| failed(&path, source))?;
        }
        durable::rename(inside, &path).map_err(|source| failed(&path, source))?;
        // What was renamed is no longer there to be removed.
        let _ = temporary.keep();
        durable::sync_folder(&folder).map_err(|source| Error::io(&folder, "write", source))?;
    }
    remove_later(out, state.step)?;
    Ok(path)
}

/// Removes checkpoints of later steps. A run that stands here has none: they are damaged, or of an earlier run into the
/// same folder, and would take the place of newer ones.
fn remove_later(out: &Path, step: usize) -> Result<()> {
    for (_, path) in candidates(out)?.into_iter().take_while(|(later, _)| *later > step) {
        durable::remove_dir_all(&path).map_err(|source| Error::io(&path, "remove", source))?;
    }
    Ok(())
}

fn manifest(folder: &Path) -> Result<Manifest> {
    FILES
        .iter()
        .map(|name| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, "read", source))?;
            let checksum = format!("{:016x}", checksum(&bytes));
            Ok(((*name).to_owned(), Entry { bytes: bytes.len() as u64, checksum }))
        })
        .collect()
}

/// The manifest of a checkpoint, if its files are all as they were written. Files that are none of its own (a file
/// manager's) do not count.
fn complete(path: &Path) -> Option<Manifest> {
    let text = std::fs::read(path.join(MANIFEST)).ok()?;
    let written: Manifest = serde_json::from_slice(&text).ok()?;
    manifest(path).ok().filter(|found| *found == written)
}

/// All folders that could be checkpoints with their steps, the newest first.
fn candidates(out: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let folder = out.join(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let failed = |source| Error::io(&folder, "read", source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse::<usize>().ok()) {
            found.push((step, path));
        }
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// The newest complete checkpoint of a run.
pub fn latest(out: &Path) -> Result<Option<PathBuf>> {
    Ok(candidates(out)?.into_iter().map(|(_, path)| path).find(|path| complete(path).is_some()))
}

/// A folder of a checkpoint that cannot be resumed from, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Returns the checkpoints that are newer than the newest complete one, which a resume passes over.
pub fn damaged(out: &Path) -> Result<Vec<Damaged>> {
    let newer =
        candidates(out)?.into_iter().map(|(_, path)| path).take_while(|path| complete(path).is_none());
    Ok(newer.map(|path| Damaged { reason: damage(&path), path }).collect())
}

/// Says why a checkpoint is not complete.
fn damage(path: &Path) -> String {
    let Ok(text) = std::fs::read(path.join(MANIFEST)) else { return format!("{MANIFEST} is missing") };
    let Ok(written) = serde_json::from_slice::<Manifest>(&text) else {
        return format!("{MANIFEST} is damaged");
    };
    for name in FILES {
        let Some(entry) = written.get(name) else { return format!("{MANIFEST} does not list {name}") };
        match std::fs::read(path.join(name)) {
            Err(error) => return format!("{name} cannot be read: {error}"),
            Ok(bytes) if bytes.len() as u64 != entry.bytes => {
                return format!("{name} has {} of {} bytes", bytes.len(), entry.bytes);
            }
            Ok(bytes) if format!("{:016x}", checksum(&bytes)) != entry.checksum => {
                return format!("{name} was changed after it was written");
            }
            Ok(_) => {}
        }
    }
    format!("{MANIFEST} lists other files")
}

/// Name of the setting that identifies the base model.
pub(super) const BASE: &str = "base model";
/// Text before the hash of the base's content.
pub(super) const CONTENT: &str = "content ";
/// Name of the setting with the dtype of the base's weights.
pub(super) const DTYPE: &str = "dtype";

/// The base model of a run as its checkpoints record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedBase {
    /// Hash of the weights' content, as [`Decoder::content_hash`](crate::models::Decoder::content_hash) returns it.
    pub content: String,
    /// Dtype of the weights while training.
    pub dtype: String,
}

/// Returns what is recorded about the base model in a checkpoint's folder, or in the newest checkpoint of a run's folder.
pub fn recorded_base(folder: &Path) -> Option<RecordedBase> {
    let inside = candidates(folder).unwrap_or_default().into_iter().map(|(_, path)| path);
    let state = std::iter::once(folder.to_owned()).chain(inside).find_map(|path| {
        let text = std::fs::read(path.join(STATE)).ok()?;
        serde_json::from_slice::<TrainerState>(&text).ok()
    })?;
    let content = state.settings.get(BASE)?.strip_prefix(CONTENT)?;
    Some(RecordedBase { content: content.to_owned(), dtype: state.settings.get(DTYPE)?.clone() })
}

/// Reads a checkpoint: the adapter, the optimizer's state, the trainer's state.
pub fn load(path: &Path) -> Result<(Adapter, Vec<(String, HostTensor)>, TrainerState)> {
    if complete(path).is_none() {
        return Err(Error::file(
            path,
            "is no complete checkpoint: a file is missing or damaged; use an older one",
        ));
    }
    let adapter = Adapter::load(path)?;
    let optimizer = read_tensors(&path.join(OPTIMIZER))?;
    let state_path = path.join(STATE);
    let text = std::fs::read(&state_path).map_err(|source| Error::io(&state_path, "read", source))?;
    let state = serde_json::from_slice(&text)
        .map_err(|error| Error::file(&state_path, format!("is no trainer state: {error}")))?;
    Ok((adapter, optimizer, state))
}

/// Removes all but the newest `keep` checkpoints, and what an interrupted run left half written.
pub fn prune(out: &Path, keep: usize) -> Result<()> {
    let removed =
        |path: &Path| durable::remove_dir_all(path).map_err(|source| Error::io(path, "remove", source));
    for (_, path) in candidates(out)?.iter().skip(keep) {
        removed(path)?;
    }
    let folder = out.join(FOLDER);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(WRITING) {
            removed(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::adapter::AdapterModule;
    use super::super::lora::LoraConfig;
    use super::*;

    fn parts(step: usize) -> (Adapter, Vec<(String, HostTensor)>, TrainerState) {
        let tensor = |value: f32, shape: [usize; 2]| {
            HostTensor::from_slice(&vec![value; shape[0] * shape[1]], shape).unwrap()
        };
        let module = AdapterModule {
            path: "m.q".into(),
            a: tensor(0.5, [8, 3]),
            b: tensor(step as f32, [4, 8]),
            scale: 2.0,
            is_embedding: false,
        };
        let config = LoraConfig::default();
        let adapter = Adapter { config, base_model: None, modules: vec![module], copies: Vec::new() };
        let state = TrainerState { step, best_loss: Some(1.0 / 3.0), ..TrainerState::new(7) };
        (adapter, vec![("m.q.lora_A.exp_avg".into(), tensor(1e-20, [8, 3]))], state)
    }

    fn save_step(out: &Path, step: usize) -> PathBuf {
        let (adapter, optimizer, state) = parts(step);
        save(out, &adapter, &optimizer, &state).unwrap()
    }

    #[test]
    fn what_is_saved_comes_back_bit_for_bit() {
        let out = tempfile::tempdir().unwrap();
        let path = save_step(out.path(), 12);
        assert_eq!(path.file_name().unwrap(), "step-000012");
        let (adapter, optimizer, state) = load(&path).unwrap();
        let (expected, tensors, expected_state) = parts(12);
        assert_eq!(state, expected_state);
        assert_eq!(adapter.modules[0].b.bytes(), expected.modules[0].b.bytes());
        assert_eq!(optimizer[0].0, tensors[0].0);
        assert_eq!(optimizer[0].1.bytes(), tensors[0].1.bytes());
        // Saving the same step again replaces it.
        save_step(out.path(), 12);
        assert_eq!(latest(out.path()).unwrap(), Some(path));
    }

    #[test]
    fn a_damaged_or_unfinished_checkpoint_is_passed_over() {
        let out = tempfile::tempdir().unwrap();
        let (old, new) = (save_step(out.path(), 5), save_step(out.path(), 10));
        assert_eq!(latest(out.path()).unwrap(), Some(new.clone()));
        let file = new.join(OPTIMIZER);
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(latest(out.path()).unwrap(), Some(old.clone()));
        assert!(load(&new).unwrap_err().to_string().contains("no complete checkpoint"));
        std::fs::create_dir(out.path().join("checkpoints/step-000020")).unwrap();
        std::fs::create_dir(out.path().join("checkpoints/.writing-abc")).unwrap();
        assert_eq!(latest(out.path()).unwrap(), Some(old.clone()));
        prune(out.path(), 3).unwrap();
        assert!(!out.path().join("checkpoints/.writing-abc").exists());
        assert!(old.exists());
        prune(out.path(), 1).unwrap();
        assert!(!old.exists());
        assert_eq!(latest(Path::new("/nowhere")).unwrap(), None);
    }

    /// A newest checkpoint with an empty adapter was passed over without a word.
    #[test]
    fn what_is_passed_over_is_named_with_the_reason() {
        let out = tempfile::tempdir().unwrap();
        let (old, cut, bare) =
            (save_step(out.path(), 5), save_step(out.path(), 10), save_step(out.path(), 15));
        assert_eq!(damaged(out.path()).unwrap(), []);
        std::fs::remove_file(bare.join(MANIFEST)).unwrap();
        let size = std::fs::metadata(cut.join(TENSOR_FILE)).unwrap().len();
        std::fs::write(cut.join(TENSOR_FILE), "").unwrap();
        let named = |path: &Path, reason: &str| Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let reasons = [
            named(&bare, "manifest.json is missing"),
            named(&cut, &format!("{TENSOR_FILE} has 0 of {size} bytes")),
        ];
        assert_eq!(damaged(out.path()).unwrap(), reasons);
        assert_eq!(latest(out.path()).unwrap(), Some(old.clone()));
        let file = old.join(OPTIMIZER);
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let found = damaged(out.path()).unwrap();
        assert_eq!(found[2], named(&old, &format!("{OPTIMIZER} was changed after it was written")));
    }

    #[test]
    fn the_base_is_read_from_a_checkpoint_and_from_its_run() {
        let out = tempfile::tempdir().unwrap();
        assert_eq!(recorded_base(out.path()), None);
        let (adapter, optimizer, mut state) = parts(5);
        let settings = [(BASE, "content 00"), (DTYPE, "f32")];
        state.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let path = save(out.path(), &adapter, &optimizer, &state).unwrap();
        let expected = RecordedBase { content: "00".into(), dtype: "f32".into() };
        assert_eq!(recorded_base(out.path()), Some(expected.clone()));
        assert_eq!(recorded_base(&path), Some(expected));
    }

    /// A new run in the folder of an older, longer one must not lose its checkpoints to it, nor resume from it.
    #[test]
    fn a_checkpoint_replaces_those_of_later_steps() {
        let out = tempfile::tempdir().unwrap();
        save_step(out.path(), 90);
        save_step(out.path(), 100);
        let new = save_step(out.path(), 5);
        prune(out.path(), 2).unwrap();
        assert_eq!(latest(out.path()).unwrap(), Some(new));
    }

    #[test]
    fn a_foreign_file_does_not_spoil_a_checkpoint_but_a_missing_one_does() {
        let out = tempfile::tempdir().unwrap();
        let path = save_step(out.path(), 5);
        std::fs::write(path.join(".DS_Store"), "left by a file manager").unwrap();
        std::fs::create_dir(path.join("notes")).unwrap();
        assert_eq!(latest(out.path()).unwrap(), Some(path.clone()));
        load(&path).unwrap();
        std::fs::write(path.join(MANIFEST), "{}").unwrap();
        assert_eq!(latest(out.path()).unwrap(), None);
    }

    /// The same step, saved again unchanged, stays where it is: there is no moment without it.
    #[cfg(unix)]
    #[test]
    fn an_equal_checkpoint_is_not_written_again() {
        use std::os::unix::fs::MetadataExt;
        let out = tempfile::tempdir().unwrap();
        let place = |path: &Path| std::fs::metadata(path).unwrap().ino();
        let path = save_step(out.path(), 5);
        let before = place(&path.join(STATE));
        save_step(out.path(), 5);
        assert_eq!(place(&path.join(STATE)), before);
        let (adapter, optimizer, state) = parts(5);
        let state = TrainerState { bad_evals: 3, ..state };
        save(out.path(), &adapter, &optimizer, &state).unwrap();
        assert_eq!(load(&path).unwrap().2.bad_evals, 3);
        assert_eq!(std::fs::read_dir(out.path().join(FOLDER)).unwrap().count(), 1);
    }

    /// A loss that changed by one bit would make a resumed run another run.
    #[test]
    fn losses_come_back_bit_for_bit() {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let loss = 1.0 + f64::from_bits(0x3ff0_0000_0000_0000 | bits >> 12);
            let state = TrainerState { best_loss: Some(loss), ..TrainerState::new(0) };
            let text = serde_json::to_vec(&state).unwrap();
            let back: TrainerState = serde_json::from_slice(&text).unwrap();
            assert_eq!(back.best_loss.map(f64::to_bits), Some(loss.to_bits()), "{loss:?}");
        }
    }

    #[test]
    fn the_best_validation_is_kept_and_others_are_counted() {
        let mut state = TrainerState::new(0);
        let noted: Vec<bool> = [3.0, 2.0, 2.5, 2.0]
            .into_iter()
            .map(|loss| {
                state.step += 1;
                state.note_validation(loss)
            })
            .collect();
        assert_eq!(noted, [true, true, false, false]);
        assert_eq!((state.best(), state.bad_evals), (Some((2.0, 2)), 2));
    }

    #[test]
    fn every_setting_that_differs_is_named_with_both_values() {
        let settings = |pairs: &[(&str, &str)]| -> Settings {
            pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let saved = settings(&[("alpha", "16"), ("rank", "8"), ("seed", "0")]);
        let state = TrainerState { settings: saved.clone(), ..TrainerState::new(0) };
        state.check(&saved, Path::new("x")).unwrap();
        let now = settings(&[("alpha", "32"), ("dropout", "0.1"), ("rank", "8"), ("seed", "1")]);
        assert_eq!(
            state.check(&now, Path::new("out/step-1")).unwrap_err().to_string(),
            "out/step-1: cannot be resumed with other settings: alpha was 16, now it is 32; dropout was not set, now it is \
             0.1; seed was 0, now it is 1"
        );
    }
}
