//! The commands whose operations are enumerated.

use std::path::Path;

use metal_candle::durable::fault::{Fault, LOG, PLAN, Plan};
use metal_candle::training::{Adapter, checkpoint};

use crate::hub::FakeHub;
use crate::tiny_model::Bench;
use crate::tree::{Tree, differences, tree};
use crate::{Place, Scenario};

const TRAIN: [&str; 19] = [
    "train",
    "--model",
    "model",
    "--data",
    "data",
    "--out",
    "out",
    "--json",
    "--no-samples",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--rank",
    "2",
    "--save-every",
    "1",
    "--threads",
    "1",
];

fn compare(expected: &Tree, found: &Tree) -> Result<(), String> {
    match differences(expected, found).as_slice() {
        [] => Ok(()),
        names => Err(names.join(", ")),
    }
}

/// Returns the files whose names `keep` accepts.
fn only(tree: &Tree, keep: impl Fn(&str) -> bool) -> Tree {
    tree.iter().filter(|(name, _)| keep(name)).map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
}

/// A training run, from its start or from its first checkpoint.
pub(crate) struct Train {
    template: Place,
    base: Tree,
    expected: Tree,
    resumes: bool,
}

impl Train {
    pub(crate) fn new() -> Self {
        let bench = Bench::new();
        // A file of somebody else must stay.
        std::fs::create_dir(bench.path("out")).unwrap();
        std::fs::write(bench.path("out/notes.txt"), "mine").unwrap();
        let template = Place::new(&bench.path(""), None);
        let whole = Place::new(&bench.path(""), None);
        whole.ok(&TRAIN).unwrap();
        let base =
            only(&tree(&bench.path("")), |name| name.starts_with("model/") || name.starts_with("data/"));
        Self { template, base, expected: tree(&whole.path("out")), resumes: false }
    }

    /// Stopped right after its first checkpoint.
    pub(crate) fn resumed() -> Self {
        let scenario = Self::new();
        let log = scenario.template.path("shadow/log");
        let counted = Place::new(&scenario.template.path(""), None);
        assert!(counted.command(&TRAIN).env(LOG, &log).status().unwrap().success());
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        let line = text.lines().position(|line| line.ends_with("Rename out/checkpoints/step-000001"));
        // Numbers begin at 1, and the sync of the folder follows.
        let stop = format!("stop@{}", line.unwrap() + 3);
        let stopped = scenario.template.command(&TRAIN).env(PLAN, stop).status().unwrap();
        assert!(!stopped.success() && scenario.template.path("out/checkpoints/step-000001").exists());
        Self { resumes: true, ..scenario }
    }
}

/// The newest complete checkpoint; the folder of another one, which must not be there.
fn checkpoints(out: &Path) -> Result<bool, String> {
    let names = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    let mut found = false;
    for entry in names.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-")) {
        checkpoint::load(&entry.path()).map_err(|error| error.to_string())?;
        found = true;
    }
    Ok(found)
}

impl Scenario for Train {
    fn place(&self) -> Place {
        Place::new(&self.template.path(""), None)
    }

    fn command(&self, place: &Place) -> Vec<&'static str> {
        let mut command = TRAIN.to_vec();
        let resumes = matches!(checkpoint::latest(&place.path("out")), Ok(Some(_)));
        command.push(if resumes { "--resume" } else { "--overwrite" });
        command
    }

    fn check(&self, place: &Place, plan: Plan, operations: u64) -> Result<(), String> {
        let (out, all) = (place.path("out"), tree(&place.path("")));
        let base = only(&all, |name| name.starts_with("model/") || name.starts_with("data/"));
        compare(&self.base, &base)?;
        if all.get("out/notes.txt").is_none_or(|text| text != b"mine") {
            return Err("notes.txt is lost".to_owned());
        }
        let found = checkpoints(&out)?;
        if self.resumes && !found {
            return Err("the first checkpoint is lost".to_owned());
        }
        let now = tree(&out);
        let same = |name: &str| now.get(name).is_none_or(|bytes| Some(bytes) == self.expected.get(name));
        for name in ["run.toml", "adapter_config.json", "loss.svg", "loss.png"] {
            // Curves of a run that was stopped show what there was.
            if !(same(name) || name.starts_with("loss") && self.resumes) {
                return Err(format!("{name} is neither absent nor whole"));
            }
        }
        let has = |name: &str| now.contains_key(name);
        if has("adapter_config.json") && has("adapter_model.safetensors") {
            Adapter::load(&out).map_err(|error| error.to_string())?;
        } else if self.resumes {
            return Err("the adapter is lost".to_owned());
        }
        if plan.fault == Fault::PowerCut && plan.at == operations {
            // All is done but the sync of the last curve's name.
            compare(
                &only(&self.expected, |n| n != "loss.png"),
                &only(&now, |n| n != "loss.png" && n[..1] != *"."),
            )?;
        }
        Ok(())
    }

    fn recover(&self, place: &Place) -> Result<(), String> {
        place.ok(&self.command(place))?;
        compare(&self.expected, &tree(&place.path("out")))
    }
}

/// A merge of the adapter of a finished run.
pub(crate) struct Merge {
    template: Place,
    before: Tree,
    expected: Tree,
}

const MERGE: [&str; 6] = ["merge", "--adapter", "out", "--out", "models/merged", "--json"];

impl Merge {
    pub(crate) fn new() -> Self {
        let template = Place::new(&Bench::new().path(""), None);
        template.ok(&TRAIN).unwrap();
        std::fs::remove_dir_all(template.path("cache")).ok();
        let before = tree(&template.path(""));
        let whole = Place::new(&template.path(""), None);
        whole.ok(&MERGE).unwrap();
        Self { template, before, expected: tree(&whole.path("models")) }
    }
}

impl Scenario for Merge {
    fn place(&self) -> Place {
        Place::new(&self.template.path(""), None)
    }

    fn command(&self, _: &Place) -> Vec<&'static str> {
        MERGE.to_vec()
    }

    fn check(&self, place: &Place, _: Plan, _: u64) -> Result<(), String> {
        let now = tree(&place.path(""));
        compare(
            &self.before,
            &only(&now, |name| !name.starts_with("models/") && !name.starts_with("shadow/")),
        )?;
        match place.path("models/merged").exists() {
            true => {
                compare(&self.expected, &only(&tree(&place.path("models")), |name| !name.starts_with('.')))
            }
            false => Ok(()),
        }
    }

    fn recover(&self, place: &Place) -> Result<(), String> {
        if !place.path("models/merged").exists() {
            place.ok(&MERGE)?;
        }
        compare(&self.expected, &tree(&place.path("models")))
    }
}

/// A model of the hub.
pub(crate) struct Pull {
    hub: FakeHub,
    template: Place,
}

const PULL: [&str; 3] = ["pull", "org/tiny", "--json"];
const FILES: [(&str, &[u8]); 3] =
    [("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &[7; 200_000])];

impl Pull {
    pub(crate) fn new() -> Self {
        let empty = tempfile::tempdir().unwrap();
        Self { hub: FakeHub::serve("org/tiny", &FILES), template: Place::new(empty.path(), None) }
    }

    /// Runs `pull` and compares what it names; whether it was fetched.
    fn pull(place: &Place) -> Result<bool, String> {
        let text = place.ok(&PULL)?;
        let result: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let folder = Path::new(result["path"].as_str().unwrap_or_default()).to_owned();
        for (name, bytes) in FILES {
            if std::fs::read(folder.join(name)).ok().as_deref() != Some(bytes) {
                return Err(format!("{name} is not whole"));
            }
        }
        Ok(result["fetched"] == true)
    }
}

impl Scenario for Pull {
    fn place(&self) -> Place {
        Place::new(&self.template.path(""), Some(&self.hub.url))
    }

    fn command(&self, _: &Place) -> Vec<&'static str> {
        PULL.to_vec()
    }

    fn check(&self, place: &Place, _: Plan, _: u64) -> Result<(), String> {
        // What the cache has without the hub is whole, or it is no model yet.
        let mut offline = place.command(&PULL);
        let output = offline.env_remove("HF_ENDPOINT").env("HF_HUB_OFFLINE", "1").output().unwrap();
        match output.status.code() {
            Some(0) => Self::pull(place).map(|_| ()),
            Some(4) => Ok(()),
            _ => Err(format!("offline: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn recover(&self, place: &Place) -> Result<(), String> {
        Self::pull(place)?;
        if Self::pull(place)? {
            return Err("it is fetched again each time".to_owned());
        }
        let left: Vec<String> =
            tree(&place.path("cache")).into_keys().filter(|name| is_left_over(name)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left over: {}", left.join(", "))) }
    }
}

/// Whether a file of the cache is none that a finished command leaves.
fn is_left_over(name: &str) -> bool {
    let temporary = |part: &str| part.starts_with('.') && part != ".lock" && part != ".record.json";
    name.split('/').any(temporary) || name.ends_with(".part")
}

/// A data set of the hub.
pub(crate) struct Data {
    hub: FakeHub,
    template: Place,
    expected: String,
}

const DATA: [&str; 6] = ["data", "--data", "org/rows", "--model", "model", "--json"];

impl Data {
    pub(crate) fn new() -> Self {
        let row = |i: usize| format!("{{\"prompt\": \"{i} \", \"completion\": \"{}\"}}\n", 2 * i);
        let rows = (0..20).map(row).collect::<String>();
        let hub = FakeHub::serve(
            "org/rows",
            &[("train.jsonl", rows.as_bytes()), ("test.jsonl", row(7).as_bytes())],
        );
        let template = Place::new(&Bench::new().path(""), None);
        let place = Place::new(&template.path(""), Some(&hub.url));
        let expected = without_place(&place.ok(&DATA).unwrap(), &place);
        Self { hub, template, expected }
    }
}

impl Scenario for Data {
    fn place(&self) -> Place {
        Place::new(&self.template.path(""), Some(&self.hub.url))
    }

    fn command(&self, _: &Place) -> Vec<&'static str> {
        DATA.to_vec()
    }

    fn check(&self, place: &Place, _: Plan, _: u64) -> Result<(), String> {
        let mut offline = place.command(&DATA);
        let output = offline.env_remove("HF_ENDPOINT").env("HF_HUB_OFFLINE", "1").output().unwrap();
        match output.status.code() {
            Some(0) if without_place(&String::from_utf8_lossy(&output.stdout), place) == self.expected => {
                Ok(())
            }
            Some(4) => Ok(()),
            _ => Err(format!(
                "offline: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    fn recover(&self, place: &Place) -> Result<(), String> {
        if without_place(&place.ok(&DATA)?, place) != self.expected {
            return Err("other rows".to_owned());
        }
        let left: Vec<String> =
            tree(&place.path("cache")).into_keys().filter(|name| is_left_over(name)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left over: {}", left.join(", "))) }
    }
}

/// An output without the folder in which the tool ran.
fn without_place(output: &str, place: &Place) -> String {
    output.replace(&place.path("").display().to_string(), "")
}

/// A data set of the tool's own, written into the cache.
pub(crate) struct BuiltIn {
    template: Place,
    expected: Tree,
}

const BUILT_IN: [&str; 6] = ["data", "--data", "shell", "--model", "model", "--json"];

/// The files of the cache but for the lock.
fn built_in(place: &Place) -> Tree {
    only(&tree(&place.path("cache")), |name| !name.ends_with(".lock"))
}

impl BuiltIn {
    pub(crate) fn new() -> Self {
        let template = Place::new(&Bench::new().path(""), None);
        let whole = Place::new(&template.path(""), None);
        whole.ok(&BUILT_IN).unwrap();
        Self { template, expected: built_in(&whole) }
    }
}

impl Scenario for BuiltIn {
    fn place(&self) -> Place {
        Place::new(&self.template.path(""), None)
    }

    fn command(&self, _: &Place) -> Vec<&'static str> {
        BUILT_IN.to_vec()
    }

    fn check(&self, place: &Place, _: Plan, _: u64) -> Result<(), String> {
        let found = built_in(place);
        let whole = only(&self.expected, |name| found.contains_key(name));
        compare(&whole, &only(&found, |name| !is_left_over(name)))
    }

    fn recover(&self, place: &Place) -> Result<(), String> {
        place.ok(&BUILT_IN)?;
        compare(&self.expected, &built_in(place))
    }
}
