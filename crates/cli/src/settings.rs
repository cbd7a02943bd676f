//! The settings of a training run: flags over a TOML file over defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use metal_candle::backend::Device;
use metal_candle::backend::select::{Choices, Table};
use metal_candle::tensor::DType;
use metal_candle::training::{
    LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets, TrainOn, TrainOptions,
};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::failure::{Failure, nearest};

/// Every setting, as a flag and as a key of the TOML file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct TrainFlags {
    /// A folder, a GGUF file, a hub id (org/name) or a short name [default: smollm2-135m]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// A folder with train.jsonl, valid.jsonl, test.jsonl, a file of rows, or a data set of the hub [default: the built-in data set `appointments`]
    #[arg(long, short)]
    pub(crate) data: Option<String>,
    /// Split of a data set from the hub to train on [default: train]
    #[arg(long)]
    pub(crate) split: Option<String>,
    /// Names that the data has for our columns, e.g. prompt=question,completion=answer
    #[arg(long)]
    pub(crate) columns: Option<String>,
    /// The output folder [default: adapters/<data set's name>]
    #[arg(long, short)]
    pub(crate) out: Option<PathBuf>,
    /// Start from this adapter instead of a new one
    #[arg(long, short)]
    pub(crate) adapter: Option<PathBuf>,
    /// Passes over the data [default: 1]
    #[arg(long)]
    pub(crate) epochs: Option<f64>,
    /// Optimizer steps, instead of epochs
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Sequences in a batch [default: 8]
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Batches added up before an update [default: 1]
    #[arg(long)]
    pub(crate) accumulation: Option<usize>,
    /// The longest sequence, in tokens [default: 512]
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// The greatest learning rate [default: 1e-3]
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// constant, linear or cosine [default: cosine]
    #[arg(long)]
    pub(crate) schedule: Option<String>,
    /// Steps until the greatest rate is reached [default: a twentieth of the steps]
    #[arg(long)]
    pub(crate) warmup: Option<usize>,
    /// The learning rate at the end [default: 0]
    #[arg(long)]
    pub(crate) min_learning_rate: Option<f64>,
    /// Rank of the adapters [default: 8]
    #[arg(long)]
    pub(crate) rank: Option<usize>,
    /// Alpha: the update is scaled by alpha / rank [default: 16]
    #[arg(long)]
    pub(crate) alpha: Option<f64>,
    /// Dropout on the adapters' input [default: 0]
    #[arg(long)]
    pub(crate) dropout: Option<f32>,
    /// Scale by alpha / √rank
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) rslora: Option<bool>,
    /// all-linear, a list (q_proj,v_proj) or regex:EXPRESSION over whole paths [default: all-linear]
    #[arg(long)]
    pub(crate) targets: Option<String>,
    /// Modules left out (a list)
    #[arg(long)]
    pub(crate) exclude: Option<String>,
    /// Other ranks, e.g. down_proj=4,q_proj=16
    #[arg(long)]
    pub(crate) rank_pattern: Option<String>,
    /// Other alphas, e.g. down_proj=8
    #[arg(long)]
    pub(crate) alpha_pattern: Option<String>,
    /// Only these layers, e.g. 0-3,10
    #[arg(long)]
    pub(crate) layers: Option<String>,
    /// Decoupled weight decay [default: 0]
    #[arg(long)]
    pub(crate) weight_decay: Option<f32>,
    /// Gradients are scaled down to this norm; 0 for no limit [default: 1]
    #[arg(long)]
    pub(crate) max_grad_norm: Option<f32>,
    /// Steps between validations; 0 for none between [default: a quarter of the steps]
    #[arg(long)]
    pub(crate) eval_every: Option<usize>,
    /// Steps between reports [default: 5]
    #[arg(long)]
    pub(crate) report_every: Option<usize>,
    /// Steps between checkpoints; 0 for only at the end [default: 50]
    #[arg(long)]
    pub(crate) save_every: Option<usize>,
    /// Checkpoints kept [default: 2]
    #[arg(long)]
    pub(crate) keep_checkpoints: Option<usize>,
    /// Validations without improvement before the run stops; 0 for never [default: 0]
    #[arg(long)]
    pub(crate) patience: Option<usize>,
    /// Decides the first adapter, the order of the data and dropout [default: 0]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// completion (the answers only) or all [default: completion]
    #[arg(long)]
    pub(crate) train_on: Option<String>,
    /// How frozen weights are stored: f32, bf16 or f16 [default: f32]
    #[arg(long)]
    pub(crate) dtype: Option<String>,
    /// auto, cpu or metal; auto takes the GPU where there is one [default: auto]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Threads of the cpu; 0 for one a core [default: 0]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Compute each layer again in the backward pass: slower, but much less memory
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) grad_checkpoint: Option<bool>,
}

impl TrainFlags {
    /// Reads a TOML file. An unknown key is an error that names it and the nearest known one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::input(format!("{shown}: cannot read: {e}"), "pass an existing TOML file to --config")
        })?;
        toml::from_str(&text).map_err(|error| {
            let message = error.message().to_owned();
            let line = error.span().map_or(String::new(), |span| {
                format!(" (line {})", text[..span.start.min(text.len())].matches('\n').count() + 1)
            });
            let unknown = message.split('`').nth(1).unwrap_or_default();
            let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
            let advice = match nearest(unknown, known.iter().copied()) {
                Some(name) if message.contains("unknown field") => format!("did you mean '{name}'?"),
                _ => "the keys are the names of the flags in `metal-candle train --help`".to_owned(),
            };
            let cause = message.split(", expected").next().unwrap_or(&message).to_owned();
            Failure::input(format!("{shown}{line}: {cause}"), advice)
        })
    }

    /// These settings, and where they say nothing those of `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        macro_rules! merged {
            ($($field:ident),* $(,)?) => {
                Self { $($field: self.$field.or(other.$field)),* }
            };
        }
        merged!(
            model,
            data,
            split,
            columns,
            out,
            adapter,
            epochs,
            steps,
            batch_size,
            accumulation,
            max_length,
            learning_rate,
            schedule,
            warmup,
            min_learning_rate,
            rank,
            alpha,
            dropout,
            rslora,
            targets,
            exclude,
            rank_pattern,
            alpha_pattern,
            layers,
            weight_decay,
            max_grad_norm,
            eval_every,
            report_every,
            save_every,
            keep_checkpoints,
            patience,
            seed,
            train_on,
            dtype,
            device,
            threads,
            grad_checkpoint,
        )
    }

    /// Fills in the settings that suit a built-in data set, unless `--data` names another one.
    pub(crate) fn with_built_in_defaults(self) -> Self {
        let name = self.data.clone().unwrap_or_else(|| crate::builtin::DEFAULT.to_owned());
        let defaults = crate::builtin::find(&name).map(crate::builtin::BuiltIn::defaults).unwrap_or_default();
        // A number of epochs replaces a number of steps.
        let steps = defaults.steps.filter(|_| self.epochs.is_none());
        self.or(Self { steps, ..defaults })
    }

    /// With every default that does not depend on the data.
    pub(crate) fn with_defaults(self) -> Self {
        self.or(Self {
            model: Some(crate::model_source::DEFAULT.to_owned()),
            data: Some(crate::builtin::DEFAULT.to_owned()),
            batch_size: Some(8),
            accumulation: Some(1),
            max_length: Some(512),
            learning_rate: Some(1e-3),
            schedule: Some("cosine".to_owned()),
            min_learning_rate: Some(0.0),
            rank: Some(8),
            alpha: Some(16.0),
            dropout: Some(0.0),
            rslora: Some(false),
            targets: Some("all-linear".to_owned()),
            weight_decay: Some(0.0),
            max_grad_norm: Some(1.0),
            report_every: Some(5),
            save_every: Some(50),
            keep_checkpoints: Some(2),
            patience: Some(0),
            seed: Some(0),
            train_on: Some("completion".to_owned()),
            dtype: Some("f32".to_owned()),
            device: Some("auto".to_owned()),
            threads: Some(0),
            grad_checkpoint: Some(false),
            ..Self::default()
        })
    }

    /// With the number of steps, and what follows from it, for `examples` examples.
    pub(crate) fn with_steps(mut self, examples: usize) -> Result<Self, Failure> {
        let per_step = self.batch_size.unwrap_or(1).max(1) * self.accumulation.unwrap_or(1).max(1);
        if self.steps.is_none() {
            let epochs = self.epochs.unwrap_or(1.0);
            if !(epochs > 0.0 && epochs.is_finite()) {
                return Err(Failure::input(
                    format!("epochs: {epochs} must be above 0"),
                    "for one pass use --epochs 1",
                ));
            }
            self.epochs = Some(epochs);
            self.steps = Some(((epochs * examples as f64 / per_step as f64).ceil() as usize).max(1));
        }
        let steps = self.steps.unwrap_or(1);
        if steps == 0 {
            return Err(Failure::input("steps: is 0", "use --steps 1 or more"));
        }
        self.warmup = Some(self.warmup.unwrap_or(steps / 20));
        self.eval_every = Some(self.eval_every.unwrap_or(steps.div_ceil(4)));
        Ok(self)
    }

    /// The adapters to be made.
    pub(crate) fn lora(&self) -> Result<LoraConfig, Failure> {
        let base = LoraConfig::default();
        let pairs = |key: &str, text: &Option<String>| -> Result<BTreeMap<String, f64>, Failure> {
            let wrong = |item: &str| {
                Failure::input(
                    format!("{key}: '{item}' is not NAME=NUMBER"),
                    format!("for example --{key} down_proj=4"),
                )
            };
            let item = |item: &str| {
                let (name, number) = item.split_once('=').ok_or_else(|| wrong(item))?;
                Ok((name.trim().to_owned(), number.trim().parse().map_err(|_| wrong(item))?))
            };
            list(text).iter().map(|text| item(text)).collect()
        };
        let ranks = pairs("rank-pattern", &self.rank_pattern)?;
        if let Some((name, rank)) = ranks.iter().find(|(_, rank)| rank.fract() != 0.0 || **rank < 1.0) {
            return Err(Failure::input(
                format!("rank-pattern: {name}={rank} is no rank"),
                "use whole numbers from 1 on",
            ));
        }
        Ok(LoraConfig {
            rank: self.rank.unwrap_or(base.rank),
            alpha: self.alpha.unwrap_or(base.alpha),
            dropout: self.dropout.unwrap_or(base.dropout),
            rslora: self.rslora.unwrap_or(false),
            targets: match self.targets.as_deref() {
                None | Some("all-linear") => Targets::AllLinear,
                Some(text) => match text.strip_prefix("regex:") {
                    Some(expression) => Targets::Regex(expression.to_owned()),
                    None => Targets::List(list(&self.targets)),
                },
            },
            exclude: list(&self.exclude),
            rank_pattern: ranks.into_iter().map(|(name, rank)| (name, rank as usize)).collect(),
            alpha_pattern: pairs("alpha-pattern", &self.alpha_pattern)?,
            layers: self.layers.as_deref().map(layers).transpose()?,
            seed: self.seed.unwrap_or(0),
        })
    }

    /// How to train; call [`TrainFlags::with_steps`] before.
    pub(crate) fn options(&self, resume: bool) -> Result<TrainOptions, Failure> {
        let steps = self.steps.unwrap_or(1);
        let schedule = Schedule {
            kind: match self.schedule.as_deref() {
                Some("constant") => ScheduleKind::Constant,
                Some("linear") => ScheduleKind::Linear,
                None | Some("cosine") => ScheduleKind::Cosine,
                Some(other) => {
                    return Err(Failure::input(
                        format!("schedule: '{other}' is unknown"),
                        "use constant, linear or cosine",
                    ));
                }
            },
            learning_rate: self.learning_rate.unwrap_or(1e-3),
            warmup: self.warmup.unwrap_or(0).min(steps),
            steps,
            minimum: self.min_learning_rate.unwrap_or(0.0),
        };
        schedule
            .validate()
            .map_err(|error| Failure::input(error.to_string(), "see `metal-candle train --help`"))?;
        let limit = self.max_grad_norm.unwrap_or(1.0);
        if limit < 0.0 || limit.is_nan() {
            return Err(Failure::input(
                format!("max-grad-norm: {limit} must be 0 or more"),
                "use 0 for no limit",
            ));
        }
        Ok(TrainOptions {
            steps,
            batch_size: self.batch_size.unwrap_or(8),
            accumulation: self.accumulation.unwrap_or(1),
            max_length: self.max_length.unwrap_or(512),
            schedule,
            optimizer: OptimizerOptions {
                weight_decay: self.weight_decay.unwrap_or(0.0),
                max_norm: if limit == 0.0 { f32::INFINITY } else { limit },
                ..OptimizerOptions::default()
            },
            eval_every: self.eval_every.unwrap_or(0),
            report_every: self.report_every.unwrap_or(5),
            save_every: self.save_every.unwrap_or(0),
            keep_checkpoints: self.keep_checkpoints.unwrap_or(2),
            patience: self.patience.unwrap_or(0),
            seed: self.seed.unwrap_or(0),
            checkpoint_layers: self.grad_checkpoint.unwrap_or(false),
            resume,
        })
    }
}

/// `completion` or `all`.
pub(crate) fn train_on(text: &str) -> Result<TrainOn, Failure> {
    match text {
        "completion" | "assistant" => Ok(TrainOn::Completion),
        "all" => Ok(TrainOn::All),
        other => Err(Failure::input(format!("train-on: '{other}' is unknown"), "use completion or all")),
    }
}

/// The device of a name: `auto` is the GPU where there is one, otherwise the cpu.
pub(crate) fn device(name: &str, threads: usize) -> anyhow::Result<Device> {
    match name {
        "cpu" => Ok(Device::cpu(threads)?),
        "metal" => metal(),
        "auto" if cfg!(target_os = "macos") => match metal() {
            Ok(device) => Ok(device),
            Err(error) => {
                tracing::warn!(%error, "the GPU cannot be used; the cpu is");
                Ok(Device::cpu(threads)?)
            }
        },
        "auto" => Ok(Device::cpu(threads)?),
        _ => {
            let advice = match nearest(name, ["auto", "cpu", "metal"]) {
                Some(known) => format!("did you mean '{known}'?"),
                None => "it is auto, cpu or metal".to_owned(),
            };
            Err(Failure::input(format!("device: there is no '{name}'"), advice).into())
        }
    }
}

/// The GPU, with what was measured of it and the kernels that were compiled for it before.
fn metal() -> anyhow::Result<Device> {
    let mut choices = Choices::from_env()?;
    if let Ok(cache) = cache::root() {
        let path = cache.join(cache::TABLE);
        if choices.table.is_none() && path.exists() {
            choices.table = Some(Table::load(&path)?);
        }
        choices.kernels.get_or_insert_with(|| cache.join("kernels"));
    }
    Ok(Device::metal_with(choices)?)
}

/// A storage for weights.
pub(crate) fn dtype(text: &str) -> Result<DType, Failure> {
    match text.parse() {
        Ok(dtype) if dtype != DType::U32 => Ok(dtype),
        _ => Err(Failure::input(format!("dtype: '{text}' is unknown"), "use f32, bf16 or f16")),
    }
}

/// The items of a comma-separated list.
fn list(text: &Option<String>) -> Vec<String> {
    let items = text.as_deref().unwrap_or_default().split(',');
    items.map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// `0-3,10` as layer numbers.
fn layers(text: &str) -> Result<Vec<usize>, Failure> {
    let wrong = |item: &str| {
        Failure::input(format!("layers: '{item}' is no layer or range"), "for example --layers 0-3,10")
    };
    let mut layers = Vec::new();
    for item in list(&Some(text.to_owned())) {
        let (from, to) = item.split_once('-').unwrap_or((&item, &item));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong(&item));
        let (from, to) = (number(from)?, number(to)?);
        if from > to || to > 100_000 {
            return Err(wrong(&item));
        }
        layers.extend(from..=to);
    }
    Ok(layers)
}

#[cfg(test)]
mod tests;
