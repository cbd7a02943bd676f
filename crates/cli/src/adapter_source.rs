//! Adapters that `--adapter` names, in a folder or a repository of the hub, and their base models.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use metal_candle::models::ModelFiles;
use metal_candle::training::{Adapter, LoraConfig, Targets};

use crate::failure::Failure;
use crate::fetch::Options;
use crate::model_source::{self, expand_home, parse_hub};
use crate::session::Session;
use crate::settings::TrainFlags;
use crate::snapshot;

/// An adapter with the folder that it was read from.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) adapter: Adapter,
    /// As the user gave it.
    name: String,
    folder: PathBuf,
}

impl Chosen {
    /// Reads the adapter that `--adapter` names. What exists on disk wins over the hub.
    pub(crate) fn open(given: &Path, session: &Session) -> anyhow::Result<Self> {
        let name = given.display().to_string();
        let local = expand_home(&name);
        let folder = match parse_hub(&name).filter(|source| !local.exists() && source.file.is_none()) {
            Some(source) => snapshot::resolve_adapter(&source, Options::default(), session)?.path,
            None => local,
        };
        Ok(Self { adapter: Adapter::load(&folder)?, name, folder })
    }

    /// Returns true if the adapter was read from this folder.
    pub(crate) fn is_in(&self, out: &Path) -> bool {
        let whole = |path: &Path| std::fs::canonicalize(path).ok();
        whole(&self.folder).is_some_and(|folder| whole(out) == Some(folder))
    }

    /// The adapter's own base model: what its run was started with if it was trained here, or else what its configuration
    /// names.
    fn base(&self) -> Result<String, Failure> {
        let is_known = |model: &String| model_source::parse(model).is_ok();
        if let Some(model) = self.model_of_run().filter(is_known) {
            return Ok(model);
        }
        match &self.adapter.base_model {
            Some(base) if is_known(base) => Ok(base.clone()),
            Some(base) => Err(Failure::input(
                format!(
                    "the adapter {} was made for '{base}', which is neither a folder on this machine nor a hub id",
                    self.name
                ),
                "pass its base model: --model /path/to/model or --model org/name",
            )),
            None => Err(Failure::input(
                format!("the adapter {} does not name its base model", self.name),
                "pass the model that it was trained on: --model …",
            )),
        }
    }

    /// The model in the settings of the run that wrote the adapter.
    fn model_of_run(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("run.toml")).ok()?;
        let settings: toml::Table = text.parse().ok()?;
        settings.get("model")?.as_str().map(str::to_owned)
    }

    /// Warns if the adapter was made for another model than the one in use, or changes nothing.
    pub(crate) fn announce(&self, model: &str, files: &ModelFiles) {
        let Self { adapter, name, .. } = self;
        let used = [Some(model), Some(files.name.as_str()), files.base_model.as_deref()];
        let is_used = |base: &str| {
            let same_folder = std::fs::canonicalize(base).ok().zip(std::fs::canonicalize(&files.path).ok());
            same_folder.is_some_and(|(a, b)| a == b)
                || used.iter().flatten().any(|used| same_model(base, used))
        };
        let of_run = self.model_of_run();
        let bases: Vec<&str> = adapter.base_model.iter().chain(&of_run).map(String::as_str).collect();
        if let Some(base) = bases.first().filter(|_| !bases.iter().any(|base| is_used(base))) {
            let shown = files.base_model.as_deref().filter(|known| *known != model);
            let shown = shown.map_or_else(|| model.to_owned(), |known| format!("{model} ({known})"));
            tracing::warn!(
                "the adapter {name} was made for {base}, but the model in use is {shown}; if that is another model, its \
                 answers are wrong"
            );
        }
        if adapter.does_nothing() {
            tracing::warn!(
                "the adapter {name} changes nothing: A or B of every module is zero, as before training"
            );
        }
    }

    /// Settings of a run that goes on from this adapter: its rank, targets and the like are the adapter's. A setting that
    /// contradicts them is refused.
    pub(crate) fn settle(&self, given: TrainFlags) -> anyhow::Result<TrainFlags> {
        let (own, asked) = (&self.adapter.config, given.lora()?);
        let names = |lora: &LoraConfig| BTreeSet::from_iter(lora.exclude.clone());
        let layers = |lora: &LoraConfig| lora.layers.clone().map(BTreeSet::from_iter);
        let contradiction = [
            ("rank", given.rank.is_some() && asked.rank != own.rank),
            ("alpha", given.alpha.is_some() && asked.alpha != own.alpha),
            ("dropout", given.dropout.is_some() && asked.dropout != own.dropout),
            ("rslora", given.rslora.is_some() && asked.rslora != own.rslora),
            ("targets", given.targets.is_some() && !same_targets(&asked.targets, &own.targets)),
            ("exclude", given.exclude.is_some() && names(&asked) != names(own)),
            ("rank-pattern", given.rank_pattern.is_some() && asked.rank_pattern != own.rank_pattern),
            ("alpha-pattern", given.alpha_pattern.is_some() && asked.alpha_pattern != own.alpha_pattern),
            ("layers", given.layers.is_some() && layers(&asked) != layers(own)),
            ("num-layers", given.num_layers.is_some_and(|last| last != -1)),
        ];
        if let Some((flag, _)) = contradiction.iter().find(|(_, contradicts)| *contradicts) {
            let cause =
                format!("--{flag} is not that of the adapter {}, which training goes on with", self.name);
            let advice = format!("leave out --{flag}, or leave out --adapter to begin a new one");
            return Err(Failure::input(cause, advice).into());
        }
        let model = match given.model.clone() {
            Some(model) => model,
            None => self.base()?,
        };
        Ok(TrainFlags { model: Some(model), num_layers: None, ..with_lora(given, own) })
    }
}

/// Returns true if both targets name the same modules. An adapter's file lists the names that `all-linear` stood for.
fn same_targets(asked: &Targets, own: &Targets) -> bool {
    const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    asked == own || *asked == Targets::AllLinear && *own == Targets::List(ALL.map(str::to_owned).to_vec())
}

/// The settings with an adapter's own, as the flags would say them.
fn with_lora(flags: TrainFlags, lora: &LoraConfig) -> TrainFlags {
    let text = |items: Vec<String>| Some(items.join(",")).filter(|text| !text.is_empty());
    let pairs = |name: &String, value: &dyn std::fmt::Display| format!("{name}={value}");
    TrainFlags {
        rank: Some(lora.rank),
        alpha: Some(lora.alpha),
        dropout: Some(lora.dropout),
        rslora: Some(lora.rslora),
        targets: match &lora.targets {
            Targets::AllLinear => Some("all-linear".to_owned()),
            Targets::List(names) => text(names.clone()),
            Targets::Regex(expression) => Some(format!("regex:{expression}")),
        },
        exclude: text(lora.exclude.clone()),
        rank_pattern: text(lora.rank_pattern.iter().map(|(name, rank)| pairs(name, rank)).collect()),
        alpha_pattern: text(lora.alpha_pattern.iter().map(|(name, alpha)| pairs(name, alpha)).collect()),
        layers: text(lora.layers.iter().flatten().map(ToString::to_string).collect()),
        ..flags
    }
}

/// The model to load: the one that was asked for, or the adapter's own base, or the default.
pub(crate) fn model(given: Option<&str>, adapter: Option<&Chosen>) -> Result<String, Failure> {
    match (given, adapter) {
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(adapter)) => adapter.base(),
        (None, None) => Ok(model_source::DEFAULT.to_owned()),
    }
}

/// Whether two names can be those of one model: the same repository, or the same last part where one of them is a path or a
/// file, whatever the number format of a file is.
fn same_model(one: &str, other: &str) -> bool {
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
mod tests {
    use super::*;

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
