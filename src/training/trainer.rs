//! The training loop: batches, accumulated gradients, updates, validation, checkpoints.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::adapter::{Adapter, AdapterModule, TENSOR_FILE};
use super::batches::{self, Batch, BatchOptions};
use super::checkpoint::{self, Settings, TrainerState};
use super::data::Example;
use super::lora::{LoraConfig, LoraModule};
use super::loss::{BatchShape, Programs, Purpose, batch_inputs, record_loss};
use super::metrics::{Metrics, Report};
use super::optimizer::{Optimizer, OptimizerOptions};
use super::pace::Pace;
use super::run_folder::RunFolder;
use super::run_settings;
use super::scheduler::Schedule;
use super::tensors::transposed;
use crate::backend::Program;
use crate::graph::Graph;
use crate::models::{AdapterParameters, Decoder};
use crate::tensor::{HostTensor, TensorSpec};
use crate::{Error, Result};

/// Name of the file of reports.
const METRICS: &str = "metrics.jsonl";

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Optimizer steps; one step is `accumulation` batches.
    pub steps: usize,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Batches whose gradients are added before an update.
    pub accumulation: usize,
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// AdamW's constants.
    pub optimizer: OptimizerOptions,
    /// Steps between validations; 0 for only before and after.
    pub eval_every: usize,
    /// Steps between reports.
    pub report_every: usize,
    /// Steps between checkpoints; 0 for only at the end and on interruption.
    pub save_every: usize,
    /// How many checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Validations without improvement after which training stops; 0 for never.
    pub patience: usize,
    /// Decides the initial adapter, the order of the data and the dropout.
    pub seed: u64,
    /// Recompute each layer in the backward pass instead of keeping its intermediates.
    pub checkpoint_layers: bool,
    /// Go on from the newest checkpoint in the output folder.
    pub resume: bool,
}

/// What happens while training, for whoever shows it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// Training begins or goes on at this step.
    Start {
        /// The step.
        step: usize,
    },
    /// A step is done.
    Step {
        /// How many steps are done.
        step: usize,
        /// Mean loss of the step's tokens.
        loss: f64,
        /// Trained tokens, padding not counted, a second.
        tokens_per_second: f64,
    },
    /// A report was written.
    Report(Report),
    /// The model was evaluated on the validation data.
    Validated {
        /// The step.
        step: usize,
        /// Mean loss of the validation data's trained tokens, in nats.
        loss: f64,
        /// Whether it is the best so far, so that the adapter was written to the output folder.
        best: bool,
    },
    /// A checkpoint was written.
    Saved(PathBuf),
    /// The output folder had been deleted and was created again.
    FolderRestored {
        /// The folder.
        path: PathBuf,
        /// The step of the best adapter, which was deleted with the folder.
        lost_best: Option<usize>,
    },
    /// Training makes the model worse, and ends. The best adapter so far is kept.
    Diverged {
        /// The step.
        step: usize,
        /// What shows it.
        what: String,
    },
    /// Validation did not improve for long enough.
    EarlyStop {
        /// The step.
        step: usize,
        /// The step of the best adapter.
        best_step: usize,
    },
}

/// How training ended.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Steps done in all.
    pub steps: usize,
    /// Validation loss of the untrained model, if it was measured in this run.
    pub first_valid_loss: Option<f64>,
    /// The best validation loss and its step.
    pub best: Option<(f64, usize)>,
    /// Mean loss of the last step.
    pub train_loss: f64,
    /// Share of computed tokens that were padding.
    pub padding: f64,
    /// Tokens (padding not counted) a second of training, validation not counted.
    pub tokens_per_second: f64,
    /// Whether the caller stopped it.
    pub interrupted: bool,
    /// What shows that training has diverged, if it has; an adapter from before is kept.
    pub diverged: Option<String>,
}

/// A LoRA training run.
pub struct Trainer<'a> {
    pub(super) model: &'a Decoder,
    config: LoraConfig,
    pub(super) modules: Vec<LoraModule>,
    base_model: Option<String>,
    pub(super) options: TrainOptions,
    pub(super) train: &'a [Example],
    pub(super) valid: &'a [Example],
    out: PathBuf,
    pub(super) optimizer: Optimizer,
    adapter: AdapterParameters,
    programs: Programs,
    state: TrainerState,
    /// What decides the result, once it is known.
    settings: OnceCell<Settings>,
    /// The output folder, if the caller holds it already.
    folder: Option<RunFolder>,
    /// The device failed, or a file of the model changed, while the adapter was updated: it may hold anything now.
    in_doubt: bool,
}

impl<'a> Trainer<'a> {
    /// Prepares a run that writes into the folder `out`.
    pub fn new(
        model: &'a Decoder,
        config: LoraConfig,
        base_model: Option<String>,
        options: TrainOptions,
        train: &'a [Example],
        valid: &'a [Example],
        out: &Path,
    ) -> Result<Self> {
        config.validate()?;
        let modules = config.resolve(&model.linear_modules())?;
        let initial = initial_adapter(&config, &modules)?;
        Self::with_initial(model, config, base_model, options, train, valid, out, modules, &initial)
    }

    /// Prepares a run that starts from an adapter.
    pub fn from_adapter(
        model: &'a Decoder,
        adapter: &Adapter,
        options: TrainOptions,
        train: &'a [Example],
        valid: &'a [Example],
        out: &Path,
    ) -> Result<Self> {
        adapter.check(&model.linear_modules())?;
        let modules = adapter.lora_modules();
        let tensors = tensors_of(&adapter.modules)?;
        let base = adapter.base_model.clone();
        Self::with_initial(model, adapter.config.clone(), base, options, train, valid, out, modules, &tensors)
    }

    fn with_initial(
        model: &'a Decoder,
        config: LoraConfig,
        base_model: Option<String>,
        options: TrainOptions,
        train: &'a [Example],
        valid: &'a [Example],
        out: &Path,
        modules: Vec<LoraModule>,
        initial: &[(String, HostTensor)],
    ) -> Result<Self> {
        if train.is_empty() {
            return Err(Error::invalid("training data", "is empty; give at least one example"));
        }
        let optimizer = Optimizer::new(model.device(), initial, &options.optimizer)?;
        let mut adapter = AdapterParameters::default();
        for (module, pair) in modules.iter().zip(optimizer.parameters.chunks(2)) {
            adapter.insert(module.path.clone(), pair[0].clone(), pair[1].clone(), module.scale as f32);
        }
        let state = TrainerState::new(options.seed);
        Ok(Self {
            model,
            config,
            modules,
            base_model,
            options,
            train,
            valid,
            out: out.to_owned(),
            optimizer,
            adapter,
            programs: Programs::default(),
            state,
            settings: OnceCell::new(),
            folder: None,
            in_doubt: false,
        })
    }

    /// Uses an output folder that the caller has claimed before; without it, [`Trainer::run`] claims the folder itself.
    pub fn hold(&mut self, folder: RunFolder) {
        self.folder = Some(folder);
    }

    /// Refuses a resume that cannot succeed: there is no complete checkpoint, or it was made with other settings.
    /// Nothing is written. [`Trainer::run`] checks the same.
    pub fn verify(&self) -> Result<()> {
        self.checkpoint().map(|_| ())
    }

    /// The adapter as it is on the device now.
    pub fn parameters(&self) -> &AdapterParameters {
        &self.adapter
    }

    pub(super) fn batch_options(&self) -> BatchOptions {
        BatchOptions {
            batch_size: self.options.batch_size,
            max_length: self.options.max_length,
            seed: self.options.seed,
        }
    }

    /// Trains until the last step, an early stop, or until `stop` is set; then writes the best adapter.
    pub fn run(&mut self, stop: &AtomicBool, observer: &mut dyn FnMut(&Event)) -> Result<Summary> {
        let result = self.run_in_folder(stop, observer);
        // Released however the run ended, so that another trainer of this process can resume it.
        self.folder = None;
        result
    }

    fn run_in_folder(&mut self, stop: &AtomicBool, observer: &mut dyn FnMut(&Event)) -> Result<Summary> {
        let mut metrics = self.begin(observer)?;
        let mut summary = Summary {
            steps: self.state.step,
            first_valid_loss: None,
            best: self.state.best(),
            train_loss: f64::NAN,
            padding: 0.0,
            tokens_per_second: 0.0,
            interrupted: false,
            diverged: None,
        };
        if self.state.step == 0 && !self.valid.is_empty() {
            let loss = self.validate(stop, &mut metrics, observer)?;
            summary.first_valid_loss = loss;
            loss.into_iter().for_each(|loss| self.state.watch.note_untrained(loss));
        }
        let last_valid_loss = self.train_steps(stop, &mut metrics, observer, &mut summary)?;
        summary.interrupted |= self.state.validation_due;
        if summary.diverged.is_none() && !summary.interrupted {
            summary.diverged = self.diverged_at_the_end(&summary, last_valid_loss);
        }
        if summary.interrupted || summary.diverged.is_none() {
            self.save(&mut metrics, observer)?;
        }
        self.finish(&summary)?;
        summary.steps = self.state.step;
        summary.best = self.state.best();
        Ok(summary)
    }

    /// Trains until the last step, an early stop, divergence, or until `stop` is set. Returns the last validation loss.
    fn train_steps(
        &mut self,
        stop: &AtomicBool,
        metrics: &mut Metrics,
        observer: &mut dyn FnMut(&Event),
        summary: &mut Summary,
    ) -> Result<Option<f64>> {
        let mut last_valid_loss = None;
        let mut pace = Pace::default();
        let mut epoch_batches = self.epoch_batches()?;
        let mut stopped_early = self.state.has_run_out_of(self.options.patience);
        if self.state.validation_due {
            (last_valid_loss, stopped_early) = self.validate_and_judge(stop, metrics, observer)?;
        }
        while self.state.step < self.options.steps && !stopped_early {
            if stop.load(Ordering::Relaxed) {
                summary.interrupted = true;
                break;
            }
            let started = Instant::now();
            let done = match self.train_step(&mut epoch_batches) {
                Err(error @ Error::NonFinite { .. }) => {
                    self.save(metrics, observer)?;
                    return Err(error);
                }
                other => other?,
            };
            let seconds = started.elapsed().as_secs_f64();
            pace.add(&done, seconds);
            summary.train_loss = done.loss;
            self.report(&done, seconds, metrics, observer)?;
            let step = self.state.step;
            let vocab = self.model.config().vocab;
            if let Some(what) = self.state.watch.note_step(step, done.loss, done.norm, vocab) {
                observer(&Event::Diverged { step, what: what.clone() });
                summary.diverged = Some(what);
                break;
            }
            let last = step == self.options.steps;
            if !self.valid.is_empty() && (last || due(step, self.options.eval_every)) {
                (last_valid_loss, stopped_early) = self.validate_and_judge(stop, metrics, observer)?;
                if stopped_early {
                    break;
                }
            }
            // A state that diverges would take the place of the last good checkpoint.
            if due(step, self.options.save_every) && !last && self.state.watch.is_calm() {
                self.save(metrics, observer)?;
            }
        }
        (summary.padding, summary.tokens_per_second) = (pace.padding(), pace.tokens_per_second());
        Ok(last_valid_loss)
    }

    /// Reports a step that took so many seconds.
    fn report(
        &self,
        done: &StepDone,
        seconds: f64,
        metrics: &mut Metrics,
        observer: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        let step = self.state.step;
        let tokens_per_second = done.real_tokens as f64 / seconds;
        observer(&Event::Step { step, loss: done.loss, tokens_per_second });
        if !step.is_multiple_of(self.options.report_every.max(1)) && step != self.options.steps {
            return Ok(());
        }
        let report = Report {
            step,
            epoch: Some(self.state.epoch),
            train_loss: Some(done.loss),
            tokens_per_second: Some(tokens_per_second),
            learning_rate: Some(done.learning_rate),
            grad_norm: Some(done.norm),
            padding: Some(1.0 - done.real_tokens as f64 / done.computed_tokens as f64),
            ..Report::default()
        };
        metrics.write(&report)?;
        observer(&Event::Report(report));
        Ok(())
    }

    /// The checkpoint to resume from with its content, if the run is a resumed one and the checkpoint is its own.
    pub(super) fn checkpoint(&self) -> Result<Option<Restored>> {
        if !self.options.resume {
            return Ok(None);
        }
        let Some(found) = checkpoint::latest(&self.out)? else {
            let message = "contains no complete checkpoint to resume from; start the run without resuming";
            return Err(Error::file(&self.out, message));
        };
        let (adapter, tensors, state) = checkpoint::load(&found)?;
        state.check(self.settings()?, &found)?;
        adapter.check(&self.model.linear_modules())?;
        Ok(Some((adapter, tensors, state)))
    }

    /// Restores the newest checkpoint on a resume, claims the output folder and opens the file of reports.
    fn begin(&mut self, observer: &mut dyn FnMut(&Event)) -> Result<Metrics> {
        if self.folder.is_none() {
            self.folder = Some(RunFolder::claim(&self.out)?);
        }
        if let Some((adapter, tensors, state)) = self.checkpoint()? {
            let mut values = tensors_of(&adapter.modules)?;
            values.extend(tensors);
            self.optimizer.restore(&values)?;
            self.state = state;
            self.in_doubt = false;
        } else {
            // Checkpoints of an earlier run into this folder would be mistaken for newer ones.
            checkpoint::prune(&self.out, 0)?;
        }
        self.state.settings = self.settings()?.clone();
        if let Some(folder) = &mut self.folder {
            folder.keep();
        }
        observer(&Event::Start { step: self.state.step });
        Metrics::open(&self.out.join(METRICS), self.state.step, self.state.validation_due)
    }

    /// Everything that decides the result, computed once.
    fn settings(&self) -> Result<&Settings> {
        if let Some(settings) = self.settings.get() {
            return Ok(settings);
        }
        let data = (self.train, self.valid);
        let settings = run_settings::describe(self.model, &self.config, &self.modules, &self.options, data)?;
        Ok(self.settings.get_or_init(|| settings))
    }

    fn epoch_batches(&self) -> Result<Vec<Batch>> {
        batches::shuffled(self.train, &self.batch_options(), self.state.epoch)
    }

    fn next_batch(&mut self, epoch: &mut Vec<Batch>) -> Result<Batch> {
        if self.state.batch_index >= epoch.len() {
            self.state.epoch += 1;
            self.state.batch_index = 0;
            *epoch = self.epoch_batches()?;
        }
        self.state.batch_index += 1;
        Ok(epoch[self.state.batch_index - 1].clone())
    }

    fn train_step(&mut self, epoch: &mut Vec<Batch>) -> Result<StepDone> {
        let position = (self.state.epoch, self.state.batch_index);
        let result = self.try_step(epoch);
        if result.is_err() {
            // What is saved after a failure must point at the data of the step that failed.
            (self.state.epoch, self.state.batch_index) = position;
        }
        result
    }

    fn try_step(&mut self, epoch: &mut Vec<Batch>) -> Result<StepDone> {
        let count = self.options.accumulation.max(1);
        let batches = (0..count).map(|_| self.next_batch(epoch)).collect::<Result<Vec<_>>>()?;
        self.train_on(&batches)
    }

    /// One optimizer step on these batches, their gradients added up and divided by the number of trained tokens. For
    /// whoever wants a loop of their own; [`Trainer::run`] calls it too.
    pub fn train_on(&mut self, batches: &[Batch]) -> Result<StepDone> {
        let Some((last, others)) = batches.split_last() else {
            return Err(Error::invalid("a step", "has no batch; give at least one"));
        };
        if self.in_doubt {
            return Err(Error::invalid("training", IN_DOUBT));
        }
        let step = self.state.step;
        let supervised: usize = batches.iter().map(|batch| batch.supervised.len()).sum();
        let real_tokens = batches.iter().map(|batch| batch.real_tokens).sum();
        let computed_tokens = batches.iter().map(Batch::padded_tokens).sum();
        let factor = 1.0 / supervised.max(1) as f64;
        let learning_rate = self.options.schedule.learning_rate(step);
        let advice = "the last good state was saved; lower the learning rate, or look for broken values in the model \
                      or the data of this step";
        let finite = |loss: f64| match loss * factor {
            mean if mean.is_finite() => Ok(mean),
            mean => Err(non_finite(step + 1, "training loss", mean, advice)),
        };
        let mut loss = 0.0;
        for (micro, batch) in others.iter().enumerate() {
            loss += self.micro_step(batch, micro, None)?[0];
        }
        finite(loss)?;
        let hyper = Optimizer::hyper(learning_rate, step + 1, factor)?;
        let results = self.micro_step(last, others.len(), Some(&hyper));
        let results = results.and_then(|results| self.model.check_files().map(|()| results));
        self.in_doubt = matches!(results, Err(Error::Device { .. } | Error::Changed { .. }));
        let results = results?;
        let mean = finite(loss + results[0])?;
        let norm = results[1] * factor;
        if !norm.is_finite() {
            return Err(non_finite(step + 1, &self.broken_gradient()?, norm, advice));
        }
        self.state.step += 1;
        self.state.tokens_seen += real_tokens as u64;
        Ok(StepDone { loss: mean, norm, learning_rate, real_tokens, computed_tokens })
    }

    /// Names the first tensor whose gradient is not finite.
    fn broken_gradient(&self) -> Result<String> {
        for (index, parameter) in self.optimizer.parameters.iter().enumerate() {
            let gradient = self.optimizer.gradient(index)?;
            if gradient.as_slice::<f32>()?.iter().any(|g| !g.is_finite()) {
                return Ok(format!("gradient of {}", parameter.name()));
            }
        }
        Ok("global gradient norm".to_owned())
    }

    /// Adds up the gradients of a batch, and with `hyper` updates the adapter by them: one program, waited for once.
    /// Returns the summed loss, and after an update the gradients' norm without the factor.
    fn micro_step(&mut self, batch: &Batch, micro: usize, hyper: Option<&HostTensor>) -> Result<Vec<f64>> {
        let seed = self.options.seed ^ (self.state.step as u64) << 20 ^ micro as u64;
        let keep = if micro == 0 { 0.0_f32 } else { 1.0 };
        let seed = HostTensor::from_slice(&[seed as u32, (seed >> 32) as u32], [2])?;
        let keep = HostTensor::scalar(keep);
        let inputs = batch_inputs(batch)?;
        let program =
            self.program(batch, if hyper.is_some() { Purpose::Update } else { Purpose::Accumulate })?;
        let all: Vec<&HostTensor> = inputs.iter().chain([&seed, &keep]).chain(hyper).collect();
        let outputs = program.run(&all)?;
        outputs.iter().map(|output| Ok(f64::from(output.as_slice::<f32>()?[0]))).collect()
    }

    fn program(&mut self, batch: &Batch, purpose: Purpose) -> Result<Program> {
        let shape = BatchShape::of(batch);
        let mut programs = std::mem::take(&mut self.programs);
        let program = programs.get(shape, purpose, || {
            let (graph, outputs, updates) = self.record(shape, purpose)?;
            self.model.device().compile(&graph, &outputs, &updates)
        });
        self.programs = programs;
        program
    }

    pub(super) fn record(&self, shape: BatchShape, purpose: Purpose) -> Result<Recorded> {
        let train = purpose != Purpose::Evaluate;
        let dropout = if train { self.config.dropout } else { 0.0 };
        let checkpoint = train && self.options.checkpoint_layers;
        let (graph, loss) = record_loss(self.model, &self.adapter, shape, train, dropout, checkpoint)?;
        if !train {
            return Ok((graph, vec![loss], Vec::new()));
        }
        let keep = graph.input("keep", TensorSpec::f32([1]));
        let gradients = self.optimizer.record_gradients(&graph, &loss, &keep)?;
        if purpose == Purpose::Accumulate {
            return Ok((graph, vec![loss], gradients));
        }
        let (norm, updates) = self.optimizer.record_update(&graph, &gradients, &loss)?;
        Ok((graph, vec![loss, norm], updates))
    }

    /// Validates, and returns the loss, and whether training is to stop since no validation was better for long enough.
    fn validate_and_judge(
        &mut self,
        stop: &AtomicBool,
        metrics: &mut Metrics,
        observer: &mut dyn FnMut(&Event),
    ) -> Result<(Option<f64>, bool)> {
        let loss = self.validate(stop, metrics, observer)?;
        // An interrupted validation is saved as due, so that the resumed run is the one that nothing disturbed.
        self.state.validation_due = loss.is_none();
        let (step, patience) = (self.state.step, self.options.patience);
        let stops = loss.is_some() && self.state.has_run_out_of(patience);
        if stops {
            observer(&Event::EarlyStop { step, best_step: self.state.best_step });
        }
        Ok((loss, stops))
    }

    /// Mean loss of the validation set; `None` if it was interrupted.
    fn validate(
        &mut self,
        stop: &AtomicBool,
        metrics: &mut Metrics,
        observer: &mut dyn FnMut(&Event),
    ) -> Result<Option<f64>> {
        let (mut loss, mut tokens) = (0.0, 0);
        for batch in batches::in_order(self.valid, &self.batch_options())? {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let program = self.program(&batch, Purpose::Evaluate)?;
            let inputs = batch_inputs(&batch)?;
            let outputs = program.run(&inputs.iter().collect::<Vec<_>>())?;
            loss += f64::from(outputs[0].as_slice::<f32>()?[0]);
            tokens += batch.supervised.len();
        }
        self.model.check_files()?;
        let loss = loss / tokens.max(1) as f64;
        let step = self.state.step;
        if !loss.is_finite() {
            let advice = "check the model's weights and the validation data, or lower the learning rate";
            return Err(non_finite(step, "validation loss", loss, advice));
        }
        let report =
            Report { step, epoch: Some(self.state.epoch), valid_loss: Some(loss), ..Report::default() };
        self.restore_folder(metrics, observer)?;
        metrics.write(&report)?;
        observer(&Event::Report(report));
        // Equal probabilities for all tokens are no success, even if the untrained model was worse.
        let collapsed = step > 0 && self.state.watch.is_collapsed(loss, self.model.config().vocab);
        self.state.bad_evals += usize::from(collapsed);
        let best = !collapsed && self.state.note_validation(loss);
        if best {
            self.adapter_now()?.save(&self.out)?;
        }
        observer(&Event::Validated { step, loss, best });
        Ok(Some(loss))
    }

    /// What shows that a run which came to its end has diverged: its last losses, or a validation loss that rose by more
    /// than noise while none was better than the untrained model's.
    fn diverged_at_the_end(&self, summary: &Summary, last_valid_loss: Option<f64>) -> Option<String> {
        let rose = |last: f64, first: f64| last > 1.01 * first;
        match (last_valid_loss, self.state.best()) {
            (Some(last), Some((first, 0))) if rose(last, first) => Some(format!(
                "the validation loss rose from {first:.3} to {last:.3}, and none was better than before training"
            )),
            _ => self.state.watch.at_the_end(self.state.step, summary.train_loss),
        }
    }

    /// Creates the output folder again if somebody deleted it during the run, and reports it.
    fn restore_folder(&mut self, metrics: &mut Metrics, observer: &mut dyn FnMut(&Event)) -> Result<()> {
        if self.folder.as_ref().is_some_and(RunFolder::is_held) {
            return Ok(());
        }
        self.folder = None;
        let mut folder = RunFolder::claim(&self.out)?;
        folder.keep();
        self.folder = Some(folder);
        let best = self.state.best().map(|(_, step)| step);
        let lost_best = best.filter(|_| !self.out.join(TENSOR_FILE).exists());
        if lost_best.is_some() {
            // The next validation, or the end, writes an adapter again.
            (self.state.best_loss, self.state.best_step) = (None, 0);
        }
        *metrics = Metrics::open(&self.out.join(METRICS), self.state.step, self.state.validation_due)?;
        observer(&Event::FolderRestored { path: self.out.clone(), lost_best });
        Ok(())
    }

    /// Number of optimizer steps done.
    pub fn step(&self) -> usize {
        self.state.step
    }

    /// A copy of the adapter as it is now. An error if an update failed, after which it may be broken.
    pub fn adapter_now(&self) -> Result<Adapter> {
        if self.in_doubt {
            return Err(Error::invalid("adapter", IN_DOUBT));
        }
        let modules = self
            .modules
            .iter()
            .zip(self.optimizer.parameters.chunks(2))
            .map(|(module, pair)| {
                let a = pair[0].read()?;
                Ok(AdapterModule {
                    path: module.path.clone(),
                    a: if module.is_embedding { transposed(&a)? } else { a },
                    b: pair[1].read()?,
                    scale: module.scale,
                    is_embedding: module.is_embedding,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Adapter {
            config: self.config.clone(),
            base_model: self.base_model.clone(),
            modules,
            copies: Vec::new(),
        })
    }

    fn save(&mut self, metrics: &mut Metrics, observer: &mut dyn FnMut(&Event)) -> Result<()> {
        self.model.check_files()?;
        self.restore_folder(metrics, observer)?;
        metrics.sync()?;
        let adapter = self.adapter_now()?;
        let path = checkpoint::save(&self.out, &adapter, &self.optimizer.state()?, &self.state)?;
        checkpoint::prune(&self.out, self.options.keep_checkpoints.max(1))?;
        observer(&Event::Saved(path));
        Ok(())
    }

    /// Without validation the last adapter is the one to keep, or after divergence that of the newest checkpoint, which
    /// is older. An error if training diverged and no adapter is better than before.
    fn finish(&self, summary: &Summary) -> Result<()> {
        let kept = match (&summary.diverged, self.state.best()) {
            (None, Some(_)) => return Ok(()),
            (None, None) => return self.adapter_now()?.save(&self.out),
            (Some(_), Some((_, step))) if step > 0 => return Ok(()),
            (Some(_), Some(_)) => None,
            (Some(_), None) => checkpoint::latest(&self.out)?,
        };
        let what = summary.diverged.clone().unwrap_or_default();
        let kept = match kept {
            Some(checkpoint) => {
                Adapter::load(&checkpoint)?.save(&self.out)?;
                format!("the adapter of {} was kept", checkpoint.display())
            }
            None => "no adapter was better than before training".to_owned(),
        };
        let rate = self.options.schedule.learning_rate;
        let advice = format!(
            "{kept}; use a lower learning rate (it was {rate:e}; for LoRA usually 1e-5 to 1e-3) or a longer warm-up, and \
             look at the data"
        );
        Err(Error::Diverged { step: self.state.step, what, advice })
    }
}

pub(super) type Restored = (Adapter, Vec<(String, HostTensor)>, TrainerState);
pub(super) type Recorded = (Graph, Vec<crate::graph::LazyTensor>, Vec<crate::graph::LazyTensor>);

/// What an optimizer step did.
#[derive(Debug, Clone, Copy)]
pub struct StepDone {
    /// Mean loss of the trained tokens, in nats, before the update.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that are not padding.
    pub real_tokens: usize,
    /// Tokens with padding.
    pub computed_tokens: usize,
}

const IN_DOUBT: &str = "an update failed, and the adapter in memory may be broken; start again from the newest checkpoint (--resume)";

fn due(step: usize, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn non_finite(step: usize, what: &str, value: f64, advice: &str) -> Error {
    Error::NonFinite { step, what: what.to_owned(), value, advice: advice.to_owned() }
}

/// B is zero; of the embedding A is zero and B normal, as in PEFT.
fn initial_adapter(config: &LoraConfig, modules: &[LoraModule]) -> Result<Vec<(String, HostTensor)>> {
    let mut tensors = Vec::new();
    for module in modules {
        let (rank, path) = (module.rank, &module.path);
        let (a, b) = if module.is_embedding {
            let b = super::lora::init_embedding_b(module.out_features, rank, config.seed, path);
            let a = HostTensor::zeros(TensorSpec::f32([module.in_features, rank]));
            (a, HostTensor::from_slice(&b, [module.out_features, rank])?)
        } else {
            let a = super::lora::init_a(rank, module.in_features, config.seed, path);
            let b = HostTensor::zeros(TensorSpec::f32([module.out_features, rank]));
            (HostTensor::from_slice(&a, [rank, module.in_features])?, b)
        };
        tensors.extend([(format!("{path}.lora_A"), a), (format!("{path}.lora_B"), b)]);
    }
    Ok(tensors)
}

/// The tensors of an adapter under the names that the optimizer gives them, in the order of the device.
fn tensors_of(modules: &[AdapterModule]) -> Result<Vec<(String, HostTensor)>> {
    let mut tensors = Vec::new();
    for module in modules {
        let a = if module.is_embedding { transposed(&module.a)? } else { module.a.clone() };
        tensors.extend([
            (format!("{}.lora_A", module.path), a),
            (format!("{}.lora_B", module.path), module.b.clone()),
        ]);
    }
    Ok(tensors)
}
