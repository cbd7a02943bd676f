//! `metal-candle eval`.

use std::cell::RefCell;

use metal_candle::training::batches::BatchOptions;
use metal_candle::training::data::{Format, examples, read_text};
use metal_candle::training::{Example, evaluate, windows, write_logits};
use serde_json::json;

use crate::args::EvalArgs;
use crate::commands::data::summary;
use crate::data_source::{self, Options};
use crate::exact::ExactAnswers;
use crate::failure::Failure;
use crate::model::Loaded;
use crate::session::{Session, print_line};
use crate::settings::train_on;
use crate::template_vars;
use metal_candle::counts::counted;

pub(crate) fn run(args: &EvalArgs, session: &Session) -> anyhow::Result<()> {
    let train_on = train_on(args.train_on.as_deref().unwrap_or("completion"))?;
    // Broken data is reported before the model is fetched and loaded.
    let options = Options::new(args.split.as_deref(), args.columns.as_deref())?;
    let path = crate::model_source::expand_home(&args.data);
    let text = match path.is_file() && Format::detect(&path)?.is_none() {
        true => Some(read_text(&path)?),
        false => None,
    };
    if text.is_some() {
        let given = [
            ("--split", args.split.is_some()),
            ("--columns", args.columns.is_some()),
            ("--train-on", args.train_on.is_some()),
            ("--template-var", !args.model.template_var.is_empty()),
            ("--exact", args.exact),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            let cause = format!("{}: is a text file, and {flag} is for rows", args.data);
            return Err(Failure::usage(cause, format!("leave out {flag}, or pass a file of rows")).into());
        }
    }
    let rows = match text {
        Some(_) => Vec::new(),
        None => data_source::open_for_evaluation(&args.data, &options, session)?,
    };
    if !rows.is_empty() {
        template_vars::check_rows(&args.model.template_var, rows.iter())?;
    }
    let (loaded, adapter) = Loaded::from_args(&args.model, session)?;
    let length = args.max_length.min(loaded.files.config.context);
    let examples: Vec<Example> = match text {
        Some(text) => windows(&loaded.files.tokenizer.encode(&text, true)?, length)?,
        None => {
            let made = examples(&rows, &loaded.files, train_on, length)?;
            session.note(summary(&args.data, &made, length));
            made.examples
        }
    };
    let options = BatchOptions { batch_size: args.batch_size, max_length: length, seed: 0 };
    let meter = RefCell::new(None);
    let progress = |done: usize, all: usize| {
        let mut meter = meter.borrow_mut();
        meter.get_or_insert_with(|| session.progress.count("evaluating", all as u64)).set(done as u64);
    };
    let stop = session.interrupt.flag();
    let result = evaluate(&loaded.decoder, adapter.as_ref(), &examples, &options, &stop, &progress)?;
    drop(meter);
    if let Some(path) = &args.logits {
        write_logits(&loaded.decoder, adapter.as_ref(), &examples, &options, path)?;
        session.note(format!("logits of {}: {}", counted(result.tokens, "position"), path.display()));
    }
    let exact = args
        .exact
        .then(|| ExactAnswers::count(&loaded, adapter.as_ref(), &examples, &options, session))
        .transpose()?;
    if args.json {
        let mut result =
            json!({"loss": result.loss, "perplexity": result.perplexity(), "tokens": result.tokens});
        if let Some(exact) = exact {
            result["exact"] = exact.exact.into();
            result["examples"] = exact.examples.into();
        }
        return print_line(&result.to_string());
    }
    let exact = exact.map_or(String::new(), |exact| {
        format!("  exact answers {} of {} ({:.0} %)", exact.exact, exact.examples, exact.percent())
    });
    print_line(&format!(
        "loss {:.4}  perplexity {:.3}  tokens {}{exact}",
        result.loss,
        result.perplexity(),
        result.tokens
    ))
}
