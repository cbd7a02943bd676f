//! The settings of a training run: flags over a configuration file over defaults.

use std::path::PathBuf;

use clap::Args;
use metal_candle::backend::Device;
use metal_candle::backend::select::{Choices, Table};
use metal_candle::tensor::DType;
use metal_candle::training::data::ValidationSize;
use metal_candle::training::{
    LoraConfig, OptimizerOptions, Schedule, ScheduleKind, Targets, TrainOn, TrainOptions,
};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::failure::Failure;
use crate::model_source::absolute;
use metal_candle::counts::counted;

/// Most positions of a batch: kernels count them in 32 bits with a sign.
const MAX_BATCH_TOKENS: usize = i32::MAX as usize;

/// Every setting, as a flag and as a key of the configuration file.
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
    #[arg(long, value_parser = words::split)]
    pub(crate) split: Option<String>,
    /// Names that the data has for our columns, e.g. prompt=question,completion=answer
    #[arg(long)]
    pub(crate) columns: Option<String>,
    /// Rows taken from the training rows for validation: a share (0.05) or a number (200); 0 for none [default: a twentieth of
    /// one file, at most 100; none of a folder]
    #[arg(long)]
    pub(crate) valid_size: Option<f64>,
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
    #[arg(long, conflicts_with = "epochs")]
    pub(crate) steps: Option<usize>,
    /// Batches, as mlx-lm counts: a step is made of `accumulation` of them
    #[arg(long, hide = true, conflicts_with_all = ["steps", "epochs"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) iters: Option<usize>,
    /// Sequences in a batch [default: 8]
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Batches added up before an update [default: 1]
    #[arg(long)]
    pub(crate) accumulation: Option<usize>,
    /// Maximum length of a sequence, in tokens [default: 512]
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// Peak learning rate [default: 1e-3]
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// constant, linear or cosine [default: cosine]
    #[arg(long, value_parser = words::schedule)]
    pub(crate) schedule: Option<String>,
    /// Steps until the peak rate is reached [default: a twentieth of the steps]
    #[arg(long)]
    pub(crate) warmup: Option<usize>,
    /// The same as a share of the steps
    #[arg(long, conflicts_with = "warmup")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warmup_ratio: Option<f64>,
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
    /// Only the last so many layers; -1 for all
    #[arg(long, conflicts_with = "layers")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_layers: Option<i64>,
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
    #[arg(long, value_parser = words::train_on)]
    pub(crate) train_on: Option<String>,
    /// A variable of the chat template, e.g. enable_thinking=false; the value is JSON or a word. Repeatable
    #[arg(long = "template-var", value_name = "NAME=VALUE")]
    pub(crate) template_var: Option<Vec<String>>,
    /// Type of the frozen weights: f32, bf16 or f16 [default: f32]
    #[arg(long, value_parser = words::dtype)]
    pub(crate) dtype: Option<String>,
    /// auto, cpu, metal or cuda (cuda:1 for the second GPU); auto takes the GPU where there is one [default: auto]
    #[arg(long, value_parser = words::device)]
    pub(crate) device: Option<String>,
    /// Threads of the cpu; 0 for one a core [default: 0]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Compute each layer again in the backward pass: slower, but much less memory
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) grad_checkpoint: Option<bool>,
}

impl TrainFlags {
    /// These flags over the settings of a file. A flag replaces what the file says in other words about the same.
    pub(crate) fn over(self, mut file: Self) -> Self {
        if self.epochs.is_some() || self.steps.is_some() || self.iters.is_some() {
            (file.epochs, file.steps, file.iters) = (None, None, None);
        }
        if self.warmup.is_some() || self.warmup_ratio.is_some() {
            (file.warmup, file.warmup_ratio) = (None, None);
        }
        if self.layers.is_some() || self.num_layers.is_some() {
            (file.layers, file.num_layers) = (None, None);
        }
        self.or(file)
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
            valid_size,
            out,
            adapter,
            epochs,
            steps,
            iters,
            batch_size,
            accumulation,
            max_length,
            learning_rate,
            schedule,
            warmup,
            warmup_ratio,
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
            num_layers,
            weight_decay,
            max_grad_norm,
            eval_every,
            report_every,
            save_every,
            keep_checkpoints,
            patience,
            seed,
            train_on,
            template_var,
            dtype,
            device,
            threads,
            grad_checkpoint,
        )
    }

    /// With absolute paths of what is on this machine. Names of the hub and of built-in data sets stay.
    pub(crate) fn with_absolute_paths(self) -> Self {
        let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            model: self.model.as_deref().map(absolute),
            data: self.data.as_deref().map(absolute),
            adapter: self.adapter.map(|path| PathBuf::from(absolute(&path.to_string_lossy()))),
            out: self.out.map(whole),
            ..self
        }
    }

    /// Sentences about settings that were chosen and change nothing, for a run with or without validation.
    pub(crate) fn without_effect(&self, validated: bool) -> Vec<String> {
        let constant = self.schedule.as_deref() == Some("constant");
        let mut found = Vec::new();
        if constant && self.min_learning_rate.is_some_and(|rate| rate > 0.0) {
            found.push(
                "min-learning-rate has no effect with the schedule constant, whose rate does not fall"
                    .to_owned(),
            );
        }
        let (warmup, steps) = (self.warmup.unwrap_or(0), self.steps.unwrap_or(usize::MAX));
        if warmup > steps {
            found.push(format!(
                "the warm-up of {} is longer than the run of {} and is cut to it, so that the learning rate rises until the \
                 end; use a smaller --warmup",
                counted(warmup, "step"),
                counted(steps, "step")
            ));
        }
        if !validated && self.patience.is_some_and(|patience| patience > 0) {
            found.push(
                "patience has no effect without rows for validation; --valid-size takes some".to_owned(),
            );
        }
        found
    }

    /// The number of rows that are taken for validation, if that was chosen.
    pub(crate) fn validation(&self) -> Result<Option<ValidationSize>, Failure> {
        match self.valid_size {
            None => Ok(None),
            Some(share) if (0.0..1.0).contains(&share) => Ok(Some(ValidationSize::Share(share))),
            Some(rows) if rows >= 1.0 && rows.fract() == 0.0 => Ok(Some(ValidationSize::Rows(rows as usize))),
            Some(other) => Err(Failure::input(
                format!("valid-size: {other} is neither a share nor a number of rows"),
                "use a share from 0 to below 1, as in --valid-size 0.05, or a whole number of rows",
            )),
        }
    }

    /// Fills in the settings that suit a built-in data set, unless `--data` names another one.
    pub(crate) fn with_built_in_defaults(self) -> Self {
        let name = self.data.clone().unwrap_or_else(|| crate::builtin::DEFAULT.to_owned());
        let defaults = crate::builtin::find(&name).map(crate::builtin::BuiltIn::defaults).unwrap_or_default();
        // A number of epochs replaces a number of steps.
        let steps = defaults.steps.filter(|_| self.epochs.is_none() && self.iters.is_none());
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
        let accumulation = self.accumulation.unwrap_or(1).max(1);
        if let Some(batches) = self.iters.take() {
            self.steps = Some(batches.div_ceil(accumulation));
        }
        if self.steps.is_none() {
            let epochs = in_range("epochs", self.epochs.unwrap_or(1.0))?;
            let per_step = self.batch_size.unwrap_or(1).max(1) as f64 * accumulation as f64;
            self.steps = Some(((epochs * examples as f64 / per_step).ceil() as usize).max(1));
        }
        // The number of steps says all: a file with both would contradict itself after a change of one.
        self.epochs = None;
        let steps = self.steps.unwrap_or(1);
        in_range("steps", steps as f64)?;
        if let Some(ratio) = self.warmup_ratio.take() {
            self.warmup = Some((in_range("warmup-ratio", ratio)? * steps as f64).ceil() as usize);
        }
        self.warmup = Some(self.warmup.unwrap_or(steps / 20));
        self.eval_every = Some(self.eval_every.unwrap_or(steps.div_ceil(4)));
        Ok(self)
    }

    /// With the layers that `num-layers` means in a model of `count` layers.
    pub(crate) fn with_layers(mut self, count: usize) -> Result<Self, Failure> {
        match self.num_layers.take() {
            None | Some(-1) => {}
            Some(last) if last >= 1 && last as u64 <= count as u64 => {
                self.layers = Some(format!("{}-{}", count - last as usize, count - 1));
            }
            Some(last) => {
                let cause = format!("num-layers: is {last}, but the model has {}", counted(count, "layer"));
                return Err(Failure::input(cause, format!("use 1 to {count}, or -1 for all")));
            }
        }
        Ok(self)
    }

    /// Replaces words of other tools by ours. The error names the setting.
    pub(crate) fn in_our_words(mut self) -> Result<Self, (&'static str, String)> {
        let choices = [
            ("split", &mut self.split, words::split as fn(&str) -> Result<String, String>),
            ("schedule", &mut self.schedule, words::schedule),
            ("train-on", &mut self.train_on, words::train_on),
            ("dtype", &mut self.dtype, words::dtype),
            ("device", &mut self.device, words::device),
        ];
        for (name, value, word) in choices {
            if let Some(text) = value {
                *text = word(text).map_err(|message| (name, message))?;
            }
        }
        Ok(self)
    }

    /// The adapters to be made.
    pub(crate) fn lora(&self) -> Result<LoraConfig, Failure> {
        let base = LoraConfig::default();
        let pairs = |key: &str, text: &Option<String>| -> Result<Vec<(String, f64)>, Failure> {
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
        let pattern = |key: &str, of: &str, text: &Option<String>| {
            let pairs = pairs(key, text)?;
            for (name, number) in &pairs {
                ranges::check(of, *number)
                    .map_err(|(cause, advice)| Failure::input(format!("{key}: {name}: {cause}"), advice))?;
            }
            Ok::<_, Failure>(pairs)
        };
        let ranks = pattern("rank-pattern", "rank", &self.rank_pattern)?;
        Ok(LoraConfig {
            rank: self.rank.unwrap_or(base.rank),
            alpha: self.alpha.unwrap_or(base.alpha),
            dropout: self.dropout.unwrap_or(base.dropout),
            rslora: self.rslora.unwrap_or(false),
            targets: match self.targets.as_deref() {
                None | Some("all-linear" | "all") => Targets::AllLinear,
                Some(text) => match text.strip_prefix("regex:") {
                    Some(expression) => Targets::Regex(expression.to_owned()),
                    None => Targets::List(list(&self.targets)),
                },
            },
            exclude: list(&self.exclude),
            rank_pattern: ranks.into_iter().map(|(name, rank)| (name, rank as usize)).collect(),
            alpha_pattern: pattern("alpha-pattern", "alpha", &self.alpha_pattern)?,
            layers: self.layers.as_deref().map(layers).transpose()?,
            seed: self.seed.unwrap_or(0),
        })
    }

    /// Checks numbers whose product has a limit of its own.
    fn check_products(&self) -> Result<(), Failure> {
        let (batch, length) = (self.batch_size.unwrap_or(8), self.max_length.unwrap_or(512));
        if batch.checked_mul(length).is_none_or(|tokens| tokens > MAX_BATCH_TOKENS) {
            let cause =
                format!("batch-size × max-length: {batch} × {length} tokens are too many for a batch");
            let advice =
                format!("use at most {MAX_BATCH_TOKENS} in all: a smaller --batch-size or --max-length");
            return Err(Failure::input(cause, advice));
        }
        // AdamW multiplies a weight by 1 − rate·decay: beyond 1 it changes its sign at every step.
        let (rate, decay) = (self.learning_rate.unwrap_or(1e-3), f64::from(self.weight_decay.unwrap_or(0.0)));
        if rate * decay > 1.0 {
            let cause = format!("learning-rate × weight-decay: {rate} × {decay} is above 1");
            return Err(Failure::input(cause, "use a smaller --weight-decay, usually 0 to 0.1"));
        }
        Ok(())
    }

    /// Options of the trainer; call [`TrainFlags::with_steps`] before.
    pub(crate) fn options(&self, resume: bool) -> Result<TrainOptions, Failure> {
        let steps = self.steps.unwrap_or(1);
        let schedule = Schedule {
            kind: match chosen("schedule", self.schedule.as_deref().unwrap_or("cosine"), words::schedule)?
                .as_str()
            {
                "constant" => ScheduleKind::Constant,
                "linear" => ScheduleKind::Linear,
                _ => ScheduleKind::Cosine,
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
        let decay = self.weight_decay.unwrap_or(0.0);
        self.check_products()?;
        Ok(TrainOptions {
            steps,
            batch_size: self.batch_size.unwrap_or(8),
            accumulation: self.accumulation.unwrap_or(1),
            max_length: self.max_length.unwrap_or(512),
            schedule,
            optimizer: OptimizerOptions {
                weight_decay: decay,
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

/// A setting's number, or a failure that names its range.
fn in_range(name: &str, number: f64) -> Result<f64, Failure> {
    match ranges::check(name, number) {
        Ok(()) => Ok(number),
        Err((cause, advice)) => Err(Failure::input(format!("{name}: {cause}"), advice)),
    }
}

/// Our word for a choice, or a failure that names the setting.
fn chosen(name: &str, text: &str, word: fn(&str) -> Result<String, String>) -> Result<String, Failure> {
    word(text).map_err(|message| {
        let (cause, advice) = message.split_once("; ").unwrap_or((&message, "correct that value"));
        Failure::input(format!("{name}: {cause}"), advice)
    })
}

/// `completion` or `all`.
pub(crate) fn train_on(text: &str) -> Result<TrainOn, Failure> {
    Ok(match chosen("train-on", text, words::train_on)?.as_str() {
        "all" => TrainOn::All,
        _ => TrainOn::Completion,
    })
}

/// The device of a name: `auto` is the GPU where there is one, otherwise the cpu.
pub(crate) fn device(name: &str, threads: usize) -> anyhow::Result<Device> {
    match chosen("device", name, words::device)?.as_str() {
        "cpu" => Ok(Device::cpu(threads)?),
        "auto" => Ok(Device::best_with(gpu_choices()?, threads)?),
        gpu => {
            if threads > 0 {
                tracing::warn!("--threads has no effect on the GPU: it is the number of the cpu's threads");
            }
            if gpu == "metal" {
                return Ok(Device::metal_with(gpu_choices()?)?);
            }
            let ordinal = gpu.split_once(':').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
            Ok(Device::cuda_with(ordinal, gpu_choices()?)?)
        }
    }
}

/// Returns the measurements of the GPU, and the folder of its compiled kernels.
fn gpu_choices() -> anyhow::Result<Choices> {
    let mut choices = Choices::from_env()?;
    if let Ok(cache) = cache::root() {
        let path = cache.join(cache::TABLE);
        if choices.table.is_none() && path.exists() {
            choices.table = Some(Table::load(&path)?);
        }
        choices.kernels.get_or_insert_with(|| cache.join("kernels"));
    }
    Ok(choices)
}

/// A storage for weights.
pub(crate) fn dtype(text: &str) -> Result<DType, Failure> {
    Ok(match chosen("dtype", text, words::dtype)?.as_str() {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => DType::F32,
    })
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

pub(crate) mod ranges;
pub(crate) mod words;

#[cfg(test)]
mod tests;
