//! `metal-candle train`.

use std::path::Path;

use metal_candle::inference::{GenerateOptions, Generator};
use metal_candle::models::AdapterParameters;
use metal_candle::training::batches::BatchOptions;
use metal_candle::training::data::examples;
use metal_candle::training::{
    Adapter, DataSet, Event, Example, Record, Row, Summary, TrainOn, TrainOptions, Trainer, metrics,
};
use serde_json::json;

use super::data::summary;
use super::generate::tokens;
use crate::args::TrainArgs;
use crate::builtin;
use crate::data_source;
use crate::exact::ExactAnswers;
use crate::failure::Failure;
use crate::model::Loaded;
use crate::plot::{self, Curves};
use crate::profiling::Profiling;
use crate::progress::{self, size};
use crate::session::{Session, print_line};
use crate::settings::{self, TrainFlags};

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

pub(crate) fn run(args: &TrainArgs, session: &Session) -> anyhow::Result<()> {
    let from_file = args.config.as_deref().map(TrainFlags::read).transpose()?.unwrap_or_default();
    let flags = args.flags.clone().or(from_file).with_built_in_defaults().with_defaults();
    // Everything that can be wrong without the model is told before it is fetched and loaded.
    let source = data_source::Options::new(flags.split.as_deref(), flags.columns.as_deref())?;
    let data = Data::open(flags.data.as_deref().unwrap_or(builtin::DEFAULT), &source, session)?;
    let lora = flags.lora()?;
    lora.validate()?;
    let dtype = settings::dtype(flags.dtype.as_deref().unwrap_or("f32"))?;
    let device = settings::device(flags.device.as_deref().unwrap_or("auto"), flags.threads.unwrap_or(0))?;
    let train_on = settings::train_on(flags.train_on.as_deref().unwrap_or("completion"))?;
    let start = flags.adapter.as_deref().map(Adapter::load).transpose()?;
    let out = flags.out.clone().unwrap_or_else(|| Path::new("adapters").join(&data.name));
    let flags = TrainFlags { out: Some(out.clone()), ..flags }.with_steps(data.set.train.len())?;
    let options = flags.options(args.resume)?;
    if !args.dry_run {
        check_output(&out, args.resume)?;
    }

    let model = flags.model.clone().unwrap_or_default();
    let loaded = Loaded::open(&model, dtype, &device, session)?;
    let length = options.max_length.min(loaded.files.config.context);
    let encode = |name: &str, rows: &[Row]| -> anyhow::Result<Vec<Example>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let made = examples(rows, &loaded.files, train_on, length)?;
        session.note(summary(name, &made, length));
        Ok(made.examples)
    };
    let train = encode("train", &data.set.train)?;
    let valid = encode("valid", &data.set.valid)?;
    match (data.set.valid.len(), data.set.split_off) {
        (0, _) => session.note("no rows for validation: the last adapter is kept, not the best one"),
        (_, 0) => {}
        (_, taken) => {
            session.note(format!("valid: {taken} rows taken from train, as the data has no valid file"))
        }
    }
    let base = loaded.files.base_model.clone().or(Some(model));
    let mut trainer = match &start {
        Some(adapter) => {
            Trainer::from_adapter(&loaded.decoder, adapter, options.clone(), &train, &valid, &out)?
        }
        None => Trainer::new(&loaded.decoder, lora, base, options.clone(), &train, &valid, &out)?,
    };
    let estimate = trainer.estimate()?;
    session.note(format!(
        "{} on {}: {} examples, {} for validation, {} steps\n{} of {} parameters are trained ({:.2} %); memory about {} \
         (weights {}, adapter and optimizer {}, activations {})",
        loaded.files.name,
        data.name,
        train.len(),
        valid.len(),
        options.steps,
        thousands(estimate.trainable),
        thousands(estimate.total),
        100.0 * estimate.trainable as f64 / estimate.total as f64,
        size(estimate.bytes() as u64),
        size(estimate.weights as u64),
        size(estimate.optimizer as u64),
        size(estimate.activations as u64),
    ));
    if args.dry_run {
        if args.json {
            let plan = json!({
                "trainable": estimate.trainable, "parameters": estimate.total, "bytes": estimate.bytes(),
                "weights": estimate.weights, "optimizer": estimate.optimizer, "activations": estimate.activations,
                "examples": train.len(), "steps": options.steps,
            });
            return print_line(&plan.to_string());
        }
        return print_line(&toml::to_string(&flags)?);
    }
    std::fs::create_dir_all(&out).map_err(|e| unwritable(&out, &e))?;
    metal_candle::atomic::write(&out.join("run.toml"), toml::to_string(&flags)?.as_bytes())?;

    let samples = !args.no_samples && !args.json && !session.progress.is_quiet();
    let prompts: &[String] = if samples { &data.prompts } else { &[] };
    let held_out = if args.no_samples { Vec::new() } else { data.held_out(&loaded, train_on, length)? };
    let exact_before = exact(&loaded, None, &held_out, &options, session)?;
    let before = answers(&loaded, None, prompts)?;
    let profiling = Profiling::begin(&args.profiling, &device);
    let summary = train_run(&mut trainer, options.steps, session)?;
    profiling.finish(session)?;
    drop(trainer);
    let reports = metrics::read(&out.join("metrics.jsonl"))?;
    plot::write(&out, &format!("{} on {}", loaded.files.name, data.name), &Curves::of(&reports))?;
    if summary.interrupted {
        let advice =
            format!("go on with: metal-candle train --config {} --resume", out.join("run.toml").display());
        let cause = format!(
            "interrupted after step {}; everything so far is saved in {}",
            summary.steps,
            out.display()
        );
        return Err(Failure::new(crate::failure::Code::Interrupted, cause, advice).into());
    }
    let trained = loaded.adapter(&out)?;
    let exact_after = exact(&loaded, Some(&trained), &held_out, &options, session)?;
    if args.json {
        let mut result = result(&summary, &out, &reports);
        if let (Some(before), Some(after)) = (exact_before, exact_after) {
            result["exact_before"] = before.exact.into();
            result["exact_after"] = after.exact.into();
            result["exact_examples"] = after.examples.into();
        }
        return print_line(&result.to_string());
    }
    let after = answers(&loaded, Some(&trained), prompts)?;
    for ((prompt, before), after) in prompts.iter().zip(&before).zip(&after) {
        print_line(&format!("\n  {prompt}\n  before: {}\n  after:  {}", indented(before), indented(after)))?;
    }
    if let (Some(before), Some(after)) = (exact_before, exact_after) {
        print_line(&format!(
            "\nexact answers on {} held-out rows: {} before, {} after ({:.0} %)",
            after.examples,
            before.exact,
            after.exact,
            after.percent()
        ))?;
    }
    print_line(&closing(&summary, &out, &reports))
}

impl Data {
    /// Returns the held-out rows as tokens; rows that are cut are left out, since their answers are incomplete.
    fn held_out(&self, loaded: &Loaded, train_on: TrainOn, length: usize) -> anyhow::Result<Vec<Example>> {
        if self.held_out.is_empty() || train_on != TrainOn::Completion {
            return Ok(Vec::new());
        }
        let mut made = examples(&self.held_out, &loaded.files, train_on, length + 1)?.examples;
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

/// What a person asks in a record, if that is one text.
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

/// Refuses an output folder that cannot be written to, before anything long is begun.
fn check_output(out: &Path, resume: bool) -> Result<(), Failure> {
    if resume {
        return Ok(());
    }
    std::fs::create_dir_all(out).map_err(|e| unwritable(out, &e))?;
    tempfile::Builder::new().prefix(".writing-").tempfile_in(out).map_err(|e| unwritable(out, &e))?;
    Ok(())
}

fn unwritable(out: &Path, error: &std::io::Error) -> Failure {
    Failure::input(format!("{}: cannot write: {error}", out.display()), "choose another folder with --out")
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

fn train_run(trainer: &mut Trainer<'_>, steps: usize, session: &Session) -> anyhow::Result<Summary> {
    let mut bar: Option<progress::Training> = None;
    let mut best: Option<f64> = None;
    let stop = session.interrupt.flag();
    let summary = trainer.run(&stop, &mut |event| {
        if let Event::Start { step } = event {
            bar = Some(session.progress.training(steps, *step));
        }
        let Some(bar) = &bar else { return };
        match event {
            Event::Step { step, .. } => bar.step(*step),
            Event::Report(report) => {
                if let Some(loss) = report.valid_loss {
                    let improved = best.is_some_and(|best| loss < best);
                    best = Some(best.map_or(loss, |best| best.min(loss)));
                    bar.validation(report.step, loss, improved);
                }
                if let (Some(train_loss), Some(tokens_per_second), Some(learning_rate)) =
                    (report.train_loss, report.tokens_per_second, report.learning_rate)
                {
                    bar.report(&progress::Report {
                        step: report.step,
                        train_loss,
                        tokens_per_second,
                        learning_rate,
                    });
                }
            }
            Event::EarlyStop { step, best_step } => {
                session.note(format!(
                    "stopped at step {step}: no validation was better than that of step {best_step}"
                ));
            }
            _ => {}
        }
    })?;
    Ok(summary)
}

fn first_valid(reports: &[metrics::Report]) -> Option<f64> {
    reports.iter().find_map(|report| report.valid_loss)
}

fn result(summary: &Summary, out: &Path, reports: &[metrics::Report]) -> serde_json::Value {
    json!({
        "out": out,
        "steps": summary.steps,
        "train_loss": summary.train_loss,
        "first_valid_loss": first_valid(reports),
        "best_valid_loss": summary.best.map(|(loss, _)| loss),
        "best_step": summary.best.map(|(_, step)| step),
        "tokens_per_second": summary.tokens_per_second,
        "padding": summary.padding,
    })
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
        out.display()
    );
    text
}

fn indented(text: &str) -> String {
    text.trim().replace('\n', "\n          ")
}

/// Formats a number with a space between groups of three digits.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            ["7", "1234", "134515008"].map(|n| thousands(n.parse().unwrap())),
            ["7", "1 234", "134 515 008"]
        );
    }

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
