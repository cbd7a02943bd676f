//! `metal-candle eval`.

use std::cell::RefCell;
use std::path::Path;

use metal_candle::training::batches::BatchOptions;
use metal_candle::training::data::{examples, read_jsonl, read_text};
use metal_candle::training::{Example, Record, evaluate, windows, write_logits};
use serde_json::json;

use crate::args::EvalArgs;
use crate::exact::ExactAnswers;
use crate::model::Loaded;
use crate::session::{Session, print_line};
use crate::settings::train_on;

pub(crate) fn run(args: &EvalArgs, session: &Session) -> anyhow::Result<()> {
    let train_on = train_on(&args.train_on)?;
    // Broken data is told before the model is fetched and loaded.
    let is_jsonl = args.data.extension().is_some_and(|e| e == "jsonl" || e == "json");
    let records = if is_jsonl { read_jsonl(&args.data)? } else { vec![read_text(&args.data)?] };
    let (loaded, adapter) = Loaded::from_args(&args.model, session)?;
    let length = args.max_length.min(loaded.files.config.context);
    let examples = match records.as_slice() {
        [Record::Text(text)] if !is_jsonl => text_examples(&loaded, text, length)?,
        records => data_examples(&loaded, records, train_on, length, &args.data, session)?,
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
        session.note(format!("logits of {} positions: {}", result.tokens, path.display()));
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

fn text_examples(loaded: &Loaded, text: &str, length: usize) -> anyhow::Result<Vec<Example>> {
    Ok(windows(&loaded.files.tokenizer.encode(text, true)?, length)?)
}

fn data_examples(
    loaded: &Loaded,
    records: &[Record],
    train_on: metal_candle::training::TrainOn,
    length: usize,
    path: &Path,
    session: &Session,
) -> anyhow::Result<Vec<Example>> {
    let made = examples(records, &loaded.files, train_on, length, path)?;
    if made.truncated + made.dropped > 0 {
        session.note(format!(
            "{}: {} examples cut to {length} tokens, {} left out because nothing to evaluate is left of them",
            path.display(),
            made.truncated,
            made.dropped
        ));
    }
    Ok(made.examples)
}
