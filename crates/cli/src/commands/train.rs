//! `metal-candle train`.

use std::path::{Path, PathBuf};

use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::AdapterParameters;
use metal_candle::training::batches::BatchOptions;
use metal_candle::training::data::{RowEncoder, examples};
use metal_candle::training::{
    DataSet, EndedRun, Estimate, Event, Example, LoraModule, Record, Row, RunFolder, Summary, TrainOn,
    TrainOptions, Trainer, metrics,
};
use serde_json::json;

use super::data::summary;
use super::generate::tokens;
use crate::adapter_source::{Chosen, content_of};
use crate::args::TrainArgs;
use crate::base_name;
use crate::builtin;
use crate::config_file;
use crate::data_source;
use crate::exact::ExactAnswers;
use crate::failure::{Code, Failure, of_io};
use crate::memory;
use crate::model::Loaded;
use crate::model_source::expand_home;
use crate::output::{self, Mode, quoted};
use crate::plot::{self, Curves};
use crate::profiling::Profiling;
use crate::progress::{self, size};
use crate::session::{Session, print_line};
use crate::settings::{self, TrainFlags};
use crate::template_vars;
use metal_candle::counts::{counted, thousands};

/// New tokens of the answers before and after.
const SAMPLE_TOKENS: usize = 64;
/// Number of held-out rows whose answers are compared before and after.
const EXACT_ROWS: usize = 60;

/// The data of a run before it is tokens.
#[derive(Debug)]
struct Data {
    name: String,
    set: DataSet,
    /// Held-out rows with an answer: test rows, or validation rows if there are none.
    held_out: Vec<Row>,
    /// Held-out prompts for the answers before and after.
    prompts: Vec<String>,
}

/// A run as it is asked for, checked as far as that goes without the model.
struct Request {
    flags: TrainFlags,
    /// The flags before epochs became steps, if epochs decide. Rows can become several sequences or none.
    by_epochs: Option<TrainFlags>,
    data: Data,
    /// The adapter that training starts from.
    start: Option<Chosen>,
    /// The model is the base that the adapter names.
    is_base_of_adapter: bool,
    out: PathBuf,
    mode: Mode,
}

pub(crate) fn run(args: &TrainArgs, session: &Session) -> anyhow::Result<()> {
    let mut request = Request::of(args, session)?;
    let mut options = request.flags.options(args.resume)?;
    let dtype = settings::dtype(request.flags.dtype.as_deref().unwrap_or("f32"))?;
    let threads = request.flags.threads.unwrap_or(0);
    let device = settings::device(request.flags.device.as_deref().unwrap_or("auto"), threads)?;
    let folder = if args.dry_run { None } else { Some(output::claim(&request.out, request.mode)?) };
    if request.mode == Mode::Resume {
        output::passed_over(&request.out)?.iter().for_each(|text| session.note(text));
    }

    let model = request.flags.model.clone().unwrap_or_default();
    let variables = template_vars::parse(request.flags.template_var.as_deref().unwrap_or_default())?;
    let of_adapter = request.start.as_ref().filter(|_| request.is_base_of_adapter);
    let mut loaded = Loaded::open(&model, dtype, &device, session).map_err(|error| match of_adapter {
        Some(chosen) => chosen.base_not_reached(error),
        None => error,
    })?;
    template_vars::set(&mut loaded.files, variables, session)?;
    request.flags = request.flags.with_layers(loaded.files.config.layers)?;
    let (train, valid) = request.encode(&loaded, &options, session)?;
    for text in request.flags.without_effect(!valid.is_empty()) {
        session.note(format!("note: {text}"));
    }
    if let Some(flags) = request.by_epochs.take().filter(|_| train.len() != request.data.set.train.len()) {
        request.flags = flags.with_steps(train.len())?.with_layers(loaded.files.config.layers)?;
        options = request.flags.options(args.resume)?;
    }
    let options = options;
    let Request { flags, data, start, out, .. } = &request;
    let base = base_name::stated(&model, &loaded.files);
    if start.is_none() && !args.no_memory_check {
        let modules = flags.lora()?.resolve(&loaded.decoder.linear_modules())?;
        let parameters = |m: &LoraModule| m.rank.saturating_mul(m.in_features + m.out_features);
        memory::check_adapter(modules.iter().map(parameters).fold(0, usize::saturating_add))?;
    }
    let mut trainer = match start {
        Some(chosen) => {
            chosen.announce(&model, &loaded.files, &content_of(&loaded.decoder))?;
            chosen.adapter.check_copies(&loaded.files.weights)?;
            let adapter = chosen.on_base(base, &model, &loaded.files);
            Trainer::from_adapter(&loaded.decoder, &adapter, options.clone(), &train, &valid, out)?
        }
        None => {
            let lora = flags.lora()?;
            Trainer::new(&loaded.decoder, lora, Some(base), options.clone(), &train, &valid, out)?
        }
    };
    let ended = match args.dry_run {
        true => None,
        false => trainer.ended().map_err(|error| refused_resume(error, out))?,
    };
    let held_out =
        if args.no_samples || ended.is_some() { Vec::new() } else { request.held_out(&loaded, &options)? };
    let estimate = trainer.estimate_beside(&held_out)?;
    session.note(description(&loaded, &request, &estimate, (train.len(), valid.len()), options.steps));
    let Some(folder) = folder else {
        return dry_run(args, flags, &estimate, train.len(), options.steps);
    };
    if !args.no_memory_check {
        memory::check_run(&mut trainer, &options, &estimate, &held_out)?;
    }

    let samples = ended.is_none() && !args.no_samples && !args.json && !session.progress.is_quiet();
    let prompts: &[String] = if samples { &data.prompts } else { &[] };
    let exact_before = exact(&loaded, None, &held_out, &options, session)?;
    let before = answers(&loaded, None, prompts)?;
    session.check_interrupt("preparing the run")?;
    begin(folder, &request, &mut trainer)?;
    let profiling = Profiling::begin(&args.profiling, &device);
    let summary = train_run(&mut trainer, &request, options.steps, session)
        .map_err(|error| rescued(error, &trainer, out, &rescue_places(out)))?;
    profiling.finish(session)?;
    drop(trainer);
    let reports = curve(out, &format!("{} on {}", loaded.files.name, data.name), session);
    if summary.interrupted {
        return Err(interrupted(&summary, out).into());
    }
    if let Some(ended) = ended {
        let further = further(flags, out, ended);
        return match args.json {
            true => {
                let mut result = result(&summary, out, &reports, None);
                result["ended"] = true.into();
                print_line(&result.to_string())
            }
            false => print_line(&closing_of_ended(&summary, out, ended, &further)),
        };
    }
    let trained = loaded.adapter(out)?;
    let exact_after = match exact(&loaded, Some(&trained), &held_out, &options, session) {
        // The adapter is saved; only the comparison was stopped.
        Err(_) if session.interrupt.requested() => None,
        other => other?,
    };
    let exact = exact_before.zip(exact_after);
    if args.json {
        return print_line(&result(&summary, out, &reports, exact.as_ref()).to_string());
    }
    let after = answers(&loaded, Some(&trained), prompts)?;
    for ((prompt, before), after) in prompts.iter().zip(&before).zip(&after) {
        print_line(&format!("\n  {prompt}\n  before: {}\n  after:  {}", indented(before), indented(after)))?;
    }
    if let Some(counts) = &exact {
        print_line(&exact_line(counts))?;
    }
    print_line(&closing(&summary, out, &reports))
}

/// The file of settings: the one that is named, also by the folder of a run, or that of the run to resume.
fn config_path(args: &TrainArgs) -> Option<PathBuf> {
    let settings_in = |folder: &Path| Some(folder.join("run.toml")).filter(|path| path.is_file());
    match args.config.as_deref().or(args.config_file.as_deref()) {
        Some(named) => Some(settings_in(named).unwrap_or_else(|| named.to_owned())),
        None if args.resume => settings_in(&expand_home(&args.flags.out.as_deref()?.to_string_lossy())),
        None => None,
    }
}

fn exact_line((before, after): &(ExactAnswers, ExactAnswers)) -> String {
    format!(
        "\nexact answers on {}: {} before, {} after ({:.0} %)",
        counted(after.examples, "held-out row"),
        before.exact,
        after.exact,
        after.percent()
    )
}

impl Request {
    fn of(args: &TrainArgs, session: &Session) -> anyhow::Result<Self> {
        let path = config_path(args);
        let mut config = path.as_deref().map(config_file::read).transpose()?.unwrap_or_default();
        if let Some(path) = &path {
            config.settle_paths(path, args.flags.out.is_none());
        }
        for note in &config.notes {
            session.note(format!("note: {note}"));
        }
        let given = args.flags.clone().over(config.flags);
        let start = given.adapter.as_deref().map(|given| Chosen::open(given, session)).transpose()?;
        let is_base_of_adapter = given.model.is_none();
        let flags = match &start {
            Some(chosen) => chosen.settle(given, session)?,
            None => given,
        };
        let flags = flags.with_built_in_defaults().with_defaults();
        // Everything that can be wrong without the model is reported before it is fetched and loaded.
        let source = data_source::Options::new(flags.split.as_deref(), flags.columns.as_deref())?;
        let source = data_source::Options { valid: flags.validation()?, ..source };
        let data = Data::open(flags.data.as_deref().unwrap_or(builtin::DEFAULT), &source, session)?;
        let rows = data.set.train.iter().chain(&data.set.valid);
        template_vars::check_rows(flags.template_var.as_deref().unwrap_or_default(), rows)?;
        flags.lora()?.validate()?;
        settings::train_on(flags.train_on.as_deref().unwrap_or("completion"))?;
        let out = flags.out.as_deref().map(|out| expand_home(&out.to_string_lossy()));
        let out = out.unwrap_or_else(|| Path::new("adapters").join(&data.name));
        if flags.iters.is_some() && flags.accumulation.is_some_and(|count| count > 1) {
            session.note("note: iters counts batches; a step is made of 'accumulation' of them");
        }
        let flags = TrainFlags { out: Some(out.clone()), ..flags };
        let by_epochs = (flags.steps.is_none() && flags.iters.is_none()).then(|| flags.clone());
        let flags = flags.with_steps(data.set.train.len())?;
        let mode = match (args.resume, args.overwrite) {
            (true, _) => Mode::Resume,
            (false, true) => Mode::Overwrite,
            (false, false) => Mode::New,
        };
        if mode != Mode::Resume && start.as_ref().is_some_and(|chosen| chosen.is_in(&out)) {
            return Err(Failure::input(
                format!("{}: contains the adapter that training starts from", out.display()),
                "choose another folder with --out",
            )
            .into());
        }
        Ok(Self { flags, by_epochs, data, start, is_base_of_adapter, out, mode })
    }

    /// The examples for training and validation.
    fn encode(
        &self,
        loaded: &Loaded,
        options: &TrainOptions,
        session: &Session,
    ) -> anyhow::Result<(Vec<Example>, Vec<Example>)> {
        let train_on = settings::train_on(self.flags.train_on.as_deref().unwrap_or("completion"))?;
        let length = options.max_length.min(loaded.files.config.context);
        let encode = |name: &str, rows: &[Row]| -> anyhow::Result<Vec<Example>> {
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let made = examples(rows, &loaded.files, train_on, length)?;
            session.note(summary(name, &made, length));
            Ok(made.examples)
        };
        let set = &self.data.set;
        let (train, valid) = (encode("train", &set.train)?, encode("valid", &set.valid)?);
        match (set.valid.len(), set.split_off) {
            (0, _) => session.note("no rows for validation: the last adapter is kept, not the best one"),
            (_, 0) => {}
            (_, taken) => session
                .note(format!("valid: {} taken from train, as the data has none", counted(taken, "row"))),
        }
        Ok((train, valid))
    }

    /// The held-out examples whose answers are compared before and after.
    fn held_out(&self, loaded: &Loaded, options: &TrainOptions) -> anyhow::Result<Vec<Example>> {
        let train_on = settings::train_on(self.flags.train_on.as_deref().unwrap_or("completion"))?;
        let length = options.max_length.min(loaded.files.config.context);
        self.data.held_out(loaded, train_on, length)
    }
}

/// Writes the settings into the output folder, from which a run can be resumed from now on.
fn begin(mut folder: RunFolder, request: &Request, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
    if request.mode == Mode::Overwrite {
        output::clear(&request.out)?;
    }
    write_settings(request)?;
    folder.keep();
    trainer.hold(folder);
    Ok(())
}

/// Writes `run.toml`, with absolute paths, so that it means the same from every folder.
fn write_settings(request: &Request) -> anyhow::Result<()> {
    let text = toml::to_string(&request.flags.clone().with_absolute_paths())?;
    Ok(metal_candle::atomic::write(&request.out.join("run.toml"), text.as_bytes())?)
}

/// Plots the losses and returns the reports. The adapter is saved by now: a curve that cannot be written is a note.
fn curve(out: &Path, title: &str, session: &Session) -> Vec<metrics::Report> {
    let reports = metrics::read(&out.join("metrics.jsonl"));
    let plotted = reports.map_err(anyhow::Error::from).and_then(|reports| {
        plot::write(out, title, &Curves::of(&reports))?;
        Ok(reports)
    });
    plotted.unwrap_or_else(|error| {
        session.note(format!("note: the curve is missing: {error}; the adapter is in {}", out.display()));
        Vec::new()
    })
}

/// Folders in which an adapter is put whose own folder cannot be written to.
fn rescue_places(out: &Path) -> Vec<PathBuf> {
    let beside = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    vec![beside.to_owned(), PathBuf::from("."), std::env::temp_dir()]
}

/// Saves the adapter of a run that ended because its folder cannot be written to, at the first place that takes it, and
/// adds to the error where it is.
fn rescued(error: anyhow::Error, trainer: &Trainer<'_>, out: &Path, places: &[PathBuf]) -> anyhow::Error {
    let go_on = format!("metal-candle train --config {} --resume", quoted(&out.join("run.toml")));
    let (code, advice) = match error.downcast_ref::<metal_candle::Error>() {
        Some(metal_candle::Error::Io { source, .. }) => of_io(source.kind()),
        // Another run took the folder after it had been deleted.
        Some(metal_candle::Error::File { .. }) => (Code::Input, "wait until the other run ends"),
        Some(metal_candle::Error::Changed { .. }) => {
            let advice = format!("put the file back as it was; {go_on} continues from the last checkpoint");
            return Failure::new(Code::Run, error.to_string(), advice).into();
        }
        _ => return error,
    };
    let step = trainer.step();
    if step == 0 {
        return error;
    }
    let saved = trainer.adapter_now().ok().and_then(|adapter| {
        places.iter().find_map(|place| {
            let folder = tempfile::Builder::new().prefix(&format!("adapter-step-{step}-")).tempdir_in(place);
            let folder = folder.ok()?;
            adapter.save(folder.path()).ok()?;
            Some(folder.keep())
        })
    });
    let saved = match saved {
        Some(folder) => format!("the adapter of step {step} is saved in {}", folder.display()),
        None => format!("the adapter of step {step} could be saved nowhere else either"),
    };
    let advice = format!("{advice}; {go_on} continues from the last checkpoint");
    Failure::new(code, format!("{error}; {saved}"), advice).into()
}

fn refused_resume(error: metal_candle::Error, out: &Path) -> anyhow::Error {
    match error {
        metal_candle::Error::OtherRun { .. } => Failure::input(
            error.to_string(),
            format!(
                "metal-candle train --config {} --resume goes on with the settings of that run; with others, its adapter is \
                 trained further by: metal-candle train --config {} --adapter {} --out NEW; --overwrite replaces the run",
                quoted(&out.join("run.toml")),
                quoted(&out.join("run.toml")),
                quoted(out)
            ),
        )
        .into(),
        other => other.into(),
    }
}

fn interrupted(summary: &Summary, out: &Path) -> Failure {
    let advice =
        format!("go on with: metal-candle train --config {} --resume", quoted(&out.join("run.toml")));
    let cause =
        format!("interrupted after step {}; everything so far is saved in {}", summary.steps, out.display());
    Failure::new(crate::failure::Code::Interrupted, cause, advice)
}

fn description(
    loaded: &Loaded,
    request: &Request,
    estimate: &Estimate,
    (train, valid): (usize, usize),
    steps: usize,
) -> String {
    format!(
        "{} on {}: {}, {valid} for validation, {}\n{} of {} parameters are trained ({:.2} %); \
         memory about {} (weights {}, adapter and optimizer {}, activations {}, program and copies {})",
        loaded.files.name,
        request.data.name,
        counted(train, "example"),
        counted(steps, "step"),
        thousands(estimate.trainable),
        thousands(estimate.total),
        100.0 * estimate.trainable as f64 / estimate.total as f64,
        size(estimate.bytes() as u64),
        size(estimate.weights as u64),
        size(estimate.optimizer as u64),
        size(estimate.activations as u64),
        size(estimate.host as u64),
    )
}

fn dry_run(
    args: &TrainArgs,
    flags: &TrainFlags,
    estimate: &Estimate,
    examples: usize,
    steps: usize,
) -> anyhow::Result<()> {
    if !args.json {
        return print_line(&toml::to_string(flags)?);
    }
    let plan = json!({
        "trainable": estimate.trainable, "parameters": estimate.total, "bytes": estimate.bytes(),
        "weights": estimate.weights, "optimizer": estimate.optimizer, "activations": estimate.activations,
        "host": estimate.host,
        "examples": examples, "steps": steps,
    });
    print_line(&plan.to_string())
}

impl Data {
    /// Returns the held-out rows as tokens; rows that are cut are left out, since their answers are incomplete.
    fn held_out(&self, loaded: &Loaded, train_on: TrainOn, length: usize) -> anyhow::Result<Vec<Example>> {
        if self.held_out.is_empty() || train_on != TrainOn::Completion {
            return Ok(Vec::new());
        }
        // Rows without an answer are no reason to refuse a run.
        let encoder = RowEncoder::new(&loaded.files, train_on, length + 1)?;
        let mut made = Vec::new();
        for row in &self.held_out {
            made.extend(encoder.encode(row)?.samples);
        }
        made.retain(|example| example.tokens.len() <= length);
        Ok(made)
    }

    fn open(name: &str, options: &data_source::Options, session: &Session) -> anyhow::Result<Self> {
        let data_source::Named { name, set } = data_source::open(name, options, session)?;
        let mut held_out = if set.test.is_empty() { set.valid.clone() } else { set.test.clone() };
        let prompts = held_out.iter().filter_map(|row| prompt_of(&row.record)).take(2).collect();
        held_out.retain(|row| !matches!(row.record, Record::Text(_)));
        held_out.truncate(EXACT_ROWS);
        Ok(Self { name, set, held_out, prompts })
    }
}

/// The question of a record, if it is one text.
fn prompt_of(record: &Record) -> Option<String> {
    match record {
        Record::Completion { prompt, .. } => Some(prompt.clone()),
        Record::Chat { messages, tools: None } => match messages.as_slice() {
            [user, _] if user["role"] == "user" => user["content"].as_str().map(str::to_owned),
            _ => None,
        },
        _ => None,
    }
}

fn answers(
    loaded: &Loaded,
    adapter: Option<&AdapterParameters>,
    prompts: &[String],
) -> anyhow::Result<Vec<String>> {
    let options = GenerateOptions { max_tokens: SAMPLE_TOKENS, ..GenerateOptions::default() };
    let mut generator = Generator::new(&loaded.decoder, adapter)?;
    let mut answers = Vec::new();
    for prompt in prompts {
        let tokens = tokens(loaded, prompt, None, false)?;
        answers.push(generator.generate(&loaded.files.tokenizer, &tokens, &options, &mut |_| true)?.text);
    }
    Ok(answers)
}

/// Counts the held-out answers that the model gives token for token; `None` without held-out rows.
fn exact(
    loaded: &Loaded,
    adapter: Option<&AdapterParameters>,
    held_out: &[Example],
    options: &TrainOptions,
    session: &Session,
) -> anyhow::Result<Option<ExactAnswers>> {
    if held_out.is_empty() {
        return Ok(None);
    }
    let batches = BatchOptions { batch_size: options.batch_size, max_length: options.max_length, seed: 0 };
    ExactAnswers::count(loaded, adapter, held_out, &batches, session).map(Some)
}

fn train_run(
    trainer: &mut Trainer<'_>,
    request: &Request,
    steps: usize,
    session: &Session,
) -> anyhow::Result<Summary> {
    let mut bar: Option<progress::Training> = None;
    let mut lost_settings = None;
    let stop = session.interrupt.flag();
    let summary = trainer.run(&stop, &mut |event| {
        if let Event::Start { step } = event {
            bar = Some(session.progress.training(steps, *step));
        }
        let Some(bar) = &bar else { return };
        match event {
            Event::Step { step, .. } => bar.step(*step),
            Event::Report(report) => report_line(bar, report),
            Event::Validated { step, loss, best } => bar.validation(*step, *loss, *best && *step > 0),
            Event::EarlyStop { step, best_step } => {
                session.note(format!(
                    "stopped at step {step}: no validation was better than that of step {best_step}"
                ));
            }
            Event::FolderRestored { path, lost_best } => {
                session.note(restored(path, *lost_best));
                lost_settings = write_settings(request).err();
            }
            Event::Diverged { step, what } => {
                session.note(format!("stopped at step {step}: training has diverged: {what}"));
            }
            _ => {}
        }
    })?;
    if let Some(error) = lost_settings {
        session.note(format!("note: {error}; the run can be resumed only with its flags"));
    }
    if let (Some(what), Some((_, step))) = (&summary.diverged, summary.best) {
        session.note(format!(
            "warning: training has diverged: {what}; the adapter of step {step} is kept. Use a lower --learning-rate"
        ));
    }
    Ok(summary)
}

fn restored(path: &Path, lost_best: Option<usize>) -> String {
    let shown = path.display();
    let best = lost_best.map_or_else(String::new, |step| {
        format!("; the best adapter so far, of step {step}, was deleted with it, and the next one is saved instead")
    });
    format!("warning: {shown} was deleted while the run was writing into it; it is made again{best}")
}

/// Shows the report of a training step.
fn report_line(bar: &progress::Training, report: &metrics::Report) {
    if let (Some(train_loss), Some(tokens_per_second), Some(learning_rate)) =
        (report.train_loss, report.tokens_per_second, report.learning_rate)
    {
        bar.report(&progress::Report { step: report.step, train_loss, tokens_per_second, learning_rate });
    }
}

fn first_valid(reports: &[metrics::Report]) -> Option<f64> {
    reports.iter().find_map(|report| report.valid_loss)
}

fn result(
    summary: &Summary,
    out: &Path,
    reports: &[metrics::Report],
    exact: Option<&(ExactAnswers, ExactAnswers)>,
) -> serde_json::Value {
    let mut result = json!({
        "out": out,
        "steps": summary.steps,
        "train_loss": summary.train_loss,
        "first_valid_loss": first_valid(reports),
        "best_valid_loss": summary.best.map(|(loss, _)| loss),
        "best_step": summary.best.map(|(_, step)| step),
        "tokens_per_second": summary.tokens_per_second,
        "padding": summary.padding,
    });
    if let Some((before, after)) = exact {
        result["exact_before"] = before.exact.into();
        result["exact_after"] = after.exact.into();
        result["exact_examples"] = after.examples.into();
    }
    result
}

fn closing(summary: &Summary, out: &Path, reports: &[metrics::Report]) -> String {
    let mut text = String::new();
    if let (Some(first), Some((best, step))) = (first_valid(reports), summary.best) {
        text += &format!(
            "\nvalidation loss {first:.3} -> {best:.3} ({:+.0} %) at step {step}, ",
            100.0 * (best / first - 1.0)
        );
    } else {
        text += &format!("\ntraining loss {:.3}, ", summary.train_loss);
    }
    text += &format!(
        "{:.0} tokens/s, {:.0} % padding\nadapter, curve (loss.png) and settings: {}\ntry it: metal-candle generate \
         --adapter {} --prompt \"…\"",
        summary.tokens_per_second,
        100.0 * summary.padding,
        out.display(),
        quoted(out)
    );
    text
}

/// The command that trains the adapter of a run that has ended further.
fn further(flags: &TrainFlags, out: &Path, ended: EndedRun) -> String {
    let config = quoted(&out.join("run.toml"));
    // Only a constant rate does not depend on the number of steps.
    if flags.schedule.as_deref() == Some("constant") && !ended.stopped_early {
        return format!("metal-candle train --config {config} --steps {} --resume", 2 * ended.step);
    }
    let mut next = out.as_os_str().to_owned();
    next.push("-2");
    let (adapter, next) = (quoted(out), quoted(Path::new(&next)));
    format!("metal-candle train --config {config} --adapter {adapter} --out {next}")
}

fn closing_of_ended(summary: &Summary, out: &Path, ended: EndedRun, further: &str) -> String {
    let steps = counted(ended.step, "step");
    let what = match ended.stopped_early {
        true => format!("it stopped early after {steps}"),
        false if ended.step == 1 => "its one step is done".to_owned(),
        false => format!("all of its {steps} are done"),
    };
    let best = summary.best.map(|(loss, step)| format!("; best validation loss {loss:.3} at step {step}"));
    format!(
        "\nthe run in {} has ended: {what}{}\ntry it: metal-candle generate --adapter {} --prompt \"…\"\nto train \
         further: {further}",
        out.display(),
        best.unwrap_or_default(),
        quoted(out)
    )
}

fn indented(text: &str) -> String {
    text.trim().replace('\n', "\n          ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_from_pairs_and_two_turn_chats() {
        let pair = Record::Completion { prompt: "a".into(), completion: "b".into() };
        assert_eq!(prompt_of(&pair).as_deref(), Some("a"));
        let turn = |role: &str| json!({"role": role, "content": role});
        let chat = |messages| Record::Chat { messages, tools: None };
        assert_eq!(prompt_of(&chat(vec![turn("user"), turn("assistant")])).as_deref(), Some("user"));
        assert_eq!(prompt_of(&chat(vec![turn("system"), turn("user"), turn("assistant")])), None);
        assert_eq!(prompt_of(&Record::Text("x".into())), None);
    }
}
