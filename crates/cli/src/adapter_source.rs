//! Adapters that `--adapter` names, in a folder or a repository of the hub, and their base models.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::training::{Adapter, LoraConfig, Targets, checkpoint};

use crate::base_name::{same_model, short_name_for};
use crate::failure::{Code, Failure};
use crate::fetch::Options;
use crate::model_source::{self, expand_home, parse_hub};
use crate::session::Session;
use crate::settings::TrainFlags;
use crate::snapshot;

const PASS_BASE: &str = "pass its base model: --model /path/to/model or --model org/name";

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
    fn base(&self, session: &Session) -> Result<String, Failure> {
        let stated = self.adapter.base_model.clone();
        if let Some(found) = self.model_of_run().iter().chain(&stated).find_map(|name| self.located(name)) {
            if let Some(short) = short_name_for(&found, session) {
                session.note(format!(
                    "note: the adapter's base {found} is used in 4 bits, as {short}; --model {found} uses the whole one"
                ));
                return Ok(short.to_owned());
            }
            return Ok(found);
        }
        match stated {
            Some(base) => Err(Failure::input(
                format!(
                    "the adapter {} was made for '{base}', which is neither a folder on this machine nor a hub id",
                    self.name
                ),
                PASS_BASE,
            )),
            None => Err(Failure::input(
                format!("the adapter {} does not name its base model", self.name),
                "pass the model that it was trained on: --model …",
            )),
        }
    }

    /// Returns the location of a base: its path from the current folder or from the adapter's folder, or its hub id.
    fn located(&self, base: &str) -> Option<String> {
        if !expand_home(base).exists() && self.beside(base).exists() {
            return Some(self.beside(base).display().to_string());
        }
        model_source::parse(base).is_ok().then(|| base.to_owned())
    }

    /// A relative path as seen from the adapter's folder.
    fn beside(&self, base: &str) -> PathBuf {
        self.folder.join(base)
    }

    /// Adds to an error about the adapter's own base, which the user did not name, where its name comes from.
    pub(crate) fn base_not_reached(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<Failure>() {
            Some(failure) if failure.code == Code::Unreachable => {
                let cause = format!("the adapter {} needs its base model: {}", self.name, failure.cause);
                Failure::new(failure.code, cause, PASS_BASE).into()
            }
            _ => error,
        }
    }

    /// The model in the settings of the run that wrote the adapter, which may be one of the run's checkpoints.
    fn model_of_run(&self) -> Option<String> {
        let folder = std::path::absolute(&self.folder).ok()?;
        let of_checkpoint = folder.parent().filter(|parent| parent.ends_with("checkpoints"));
        let run = of_checkpoint.and_then(Path::parent).unwrap_or(&folder);
        let text = std::fs::read_to_string(run.join("run.toml")).ok()?;
        let settings: toml::Table = text.parse().ok()?;
        settings.get("model")?.as_str().map(str::to_owned)
    }

    /// Warns if the adapter was made for another model than the one in use, or changes nothing. The content of the base
    /// decides where the adapter's run recorded it, and otherwise the names. `content` returns the hash of the
    /// model's content in a dtype, if it can be had.
    pub(crate) fn announce(
        &self,
        model: &str,
        files: &ModelFiles,
        content: &dyn Fn(&str) -> metal_candle::Result<Option<String>>,
    ) -> metal_candle::Result<()> {
        let Self { adapter, name, .. } = self;
        let of_run = self.model_of_run();
        let bases: Vec<&str> = adapter.base_model.iter().chain(&of_run).map(String::as_str).collect();
        let shown = files.base_model.as_deref().filter(|known| *known != model);
        let shown = shown.map_or_else(|| model.to_owned(), |known| format!("{model} ({known})"));
        let recorded = checkpoint::recorded_base(&self.folder);
        let found = recorded.as_ref().map(|base| content(&base.dtype)).transpose()?.flatten();
        match recorded.zip(found) {
            Some((base, found)) if base.content == found => {}
            Some(_) => tracing::warn!(
                "the adapter {name} was trained on {}, whose weights differ from those of the model in use, {shown}; its \
                 answers may be wrong",
                bases.first().unwrap_or(&"another model")
            ),
            None if bases.iter().any(|base| self.is_base(base, model, files)) => {}
            None => {
                if let Some(base) = bases.first() {
                    tracing::warn!(
                        "the adapter {name} was made for {base}, but the model in use is {shown}; if that is another \
                         model, its answers are wrong"
                    );
                }
            }
        }
        if adapter.does_nothing() {
            tracing::warn!(
                "the adapter {name} changes nothing: A or B of every module is zero, as before training"
            );
        }
        Ok(())
    }

    /// Returns true if a base's name can be that of the model in use.
    fn is_base(&self, base: &str, model: &str, files: &ModelFiles) -> bool {
        let used =
            [Some(model), Some(files.name.as_str()), files.base_model.as_deref(), files.title.as_deref()];
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let same_folder = |path: &Path| real(path).is_some_and(|path| Some(path) == real(&files.path));
        same_folder(Path::new(base))
            || same_folder(&self.beside(base))
            || used.iter().flatten().any(|used| same_model(base, used))
            || model_source::is_converted(model, base)
    }

    /// The adapter for training on a model. It keeps the name of its base if that can be the model's and is found from
    /// every folder.
    pub(crate) fn on_base(&self, stated: String, model: &str, files: &ModelFiles) -> Adapter {
        let own = self.adapter.base_model.clone().filter(|base| self.is_base(base, model, files));
        let is_relative = |base: &String| expand_home(base).exists() || self.beside(base).exists();
        let base_model = own.filter(|base| Path::new(base).is_absolute() || !is_relative(base));
        Adapter { base_model: Some(base_model.unwrap_or(stated)), ..self.adapter.clone() }
    }

    /// Settings of a run that goes on from this adapter: its rank, targets and the like are the adapter's. A setting that
    /// contradicts them is refused.
    pub(crate) fn settle(&self, given: TrainFlags, session: &Session) -> anyhow::Result<TrainFlags> {
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
            None => self.base(session)?,
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
pub(crate) fn model(
    given: Option<&str>,
    adapter: Option<&Chosen>,
    session: &Session,
) -> Result<String, Failure> {
    match (given, adapter) {
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(adapter)) => adapter.base(session),
        (None, None) => Ok(model_source::DEFAULT.to_owned()),
    }
}

/// Returns the hash of a loaded model's content, if it is loaded in this dtype.
pub(crate) fn content_of(decoder: &Decoder) -> impl Fn(&str) -> metal_candle::Result<Option<String>> {
    |dtype| (decoder.dtype().to_string() == dtype).then(|| decoder.content_hash()).transpose()
}
