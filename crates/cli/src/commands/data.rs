//! `metal-candle data`: rows as they are trained.

use std::io::IsTerminal;

use metal_candle::models::{ModelFiles, write_json};
use metal_candle::training::data::{EncodedRow, Example, Examples, RowEncoder, RowNotes};
use metal_candle::training::{Encoder, Record, Row, TrainOn, data};
use serde_json::{Value, json};

use crate::args::DataArgs;
use crate::data_source::{self, Options};
use crate::fetch;
use crate::session::{Session, print_line};
use crate::settings::train_on;
use crate::template_vars;
use metal_candle::counts::{counted, thousands};

/// Characters of a row that are shown without `--json`; what is between its two ends is left out.
const SHOWN: usize = 4000;

pub(crate) fn run(args: &DataArgs, session: &Session) -> anyhow::Result<()> {
    let train_on = train_on(args.train_on.as_deref().unwrap_or("completion"))?;
    let options = Options::new(args.split.as_deref(), args.columns.as_deref())?;
    let options = Options { any_split: true, ..options };
    let set = data_source::open(&args.data, &options, session)?.set;
    template_vars::check_rows(&args.template_var, [&set.train, &set.valid, &set.test].into_iter().flatten())?;
    let splits = [("train", &set.train), ("valid", &set.valid), ("test", &set.test)];
    let files = match &args.model {
        Some(model) => {
            let path = fetch::resolve(model, fetch::Options::default(), session)?.path;
            let mut files = ModelFiles::open(&path)?;
            template_vars::set(&mut files, template_vars::parse(&args.template_var)?, session)?;
            files.chat_template =
                files.chat_template.map(|template| template.with_stop(session.interrupt.flag()));
            Some(files)
        }
        None => None,
    };
    let Some(files) = files else { return without_model(args, &splits, session) };
    let length = args.max_length.unwrap_or(512).min(files.config.context);
    if args.json {
        return as_json(args, &splits, &files, train_on, length);
    }
    let style = Style::of_terminal();
    let encoder = RowEncoder::new(&files, train_on, length)?;
    for row in set.train.iter().take(args.rows) {
        print_line(&shown_row(&files, row, &encoder.encode(row)?, style)?)?;
    }
    for (name, rows) in splits.into_iter().filter(|(_, rows)| !rows.is_empty()) {
        print_line(&summary(name, &data::examples(rows, &files, train_on, length)?, length))?;
    }
    print_line(&style.legend())
}

/// One line about a split: its rows and tokens, and what became of the rest.
pub(crate) fn summary(name: &str, made: &Examples, length: usize) -> String {
    let mut text = format!(
        "{name}: {}, {}, {} trained",
        counted(made.rows, "row"),
        counted(made.tokens(), "token"),
        thousands(made.trained_tokens())
    );
    if made.truncated > 0 {
        text += &format!("; {} cut to {}", counted(made.truncated, "sequence"), counted(length, "token"));
    }
    for (reason, (count, place)) in &made.left_out {
        text += &format!("; {} left out: {reason} (first: {place})", counted(*count, "row"));
    }
    if made.split_rows > 0 {
        text += &format!(
            "; {} became several sequences, because the chat template changes earlier answers when others follow",
            counted(made.split_rows, "row")
        );
    }
    for remark in remarks(&made.notes) {
        text += "; ";
        text += &remark;
    }
    text
}

/// Returns remarks about rows, each a sentence without its period.
fn remarks(notes: &RowNotes) -> Vec<String> {
    let RowNotes {
        ends_added,
        calls_left_out,
        reasoning_left_out,
        empty_answers,
        unanswered,
        tools_left_out,
    } = *notes;
    let verb = |count: usize, what: &str, one: &str, several: &str| {
        format!("{} {}", counted(count, what), if count == 1 { one } else { several })
    };
    let all = [
        (
            ends_added,
            format!(
                "{} ended by an added end token, because the chat template writes none there",
                counted(ends_added, "answer")
            ),
        ),
        (
            calls_left_out,
            format!(
                "tool calls of {} are not trained, because the chat template leaves them out",
                counted(calls_left_out, "answer")
            ),
        ),
        (
            reasoning_left_out,
            format!(
                "reasoning of {} is not trained, because the chat template leaves it out",
                counted(reasoning_left_out, "answer")
            ),
        ),
        (
            empty_answers,
            format!(
                "{} empty, so only the end of the turn is trained",
                verb(empty_answers, "answer", "is", "are")
            ),
        ),
        (
            unanswered,
            format!(
                "{} with a question without an answer, which is not trained",
                verb(unanswered, "chat", "ends", "end")
            ),
        ),
        (
            tools_left_out,
            format!(
                "tools of {} are not in the text, because the chat template leaves them out",
                counted(tools_left_out, "row")
            ),
        ),
    ];
    all.into_iter().filter(|(count, _)| *count > 0).map(|(_, remark)| remark).collect()
}

/// The same as JSON, with the keys of [`RowNotes`].
fn notes_json(notes: &RowNotes) -> [(&'static str, usize); 6] {
    let RowNotes {
        ends_added,
        calls_left_out,
        reasoning_left_out,
        empty_answers,
        unanswered,
        tools_left_out,
    } = *notes;
    [
        ("ends_added", ends_added),
        ("calls_left_out", calls_left_out),
        ("reasoning_left_out", reasoning_left_out),
        ("empty_answers", empty_answers),
        ("unanswered", unanswered),
        ("tools_left_out", tools_left_out),
    ]
}

fn as_json(
    args: &DataArgs,
    splits: &[(&str, &Vec<Row>)],
    files: &ModelFiles,
    train_on: TrainOn,
    length: usize,
) -> anyhow::Result<()> {
    let encoder = RowEncoder::new(files, train_on, length)?;
    let mut counts = serde_json::Map::new();
    for (name, rows) in splits.iter().filter(|(_, rows)| !rows.is_empty()) {
        counts.insert((*name).to_owned(), count_split(&encoder, rows)?);
    }
    let mut first = Vec::new();
    for row in splits[0].1.iter().take(args.rows) {
        let encoded = encoder.encode(row)?;
        let sample = |example: &Example| -> anyhow::Result<Value> {
            let parts = parts(files, example)?;
            let parts: Vec<Value> =
                parts.iter().map(|part| json!({"text": part.text, "trained": part.trained})).collect();
            Ok(json!({"tokens": example.tokens, "trained": example.supervised, "parts": parts}))
        };
        let mut shown = json!({
            "file": row.path.display().to_string(),
            "place": row.place.to_string(),
            "samples": encoded.samples.iter().map(sample).collect::<anyhow::Result<Vec<_>>>()?,
            "truncated": encoded.truncated,
            "left_out": encoded.left_out.map(|reason| reason.to_string()),
        });
        for (key, count) in notes_json(&encoded.notes) {
            shown[key] = count.into();
        }
        first.push(shown);
    }
    print_line(&json!({"splits": counts, "max_length": length, "rows": first}).to_string())
}

/// Counts of a split; one of which nothing is trained is counted, too.
fn count_split(encoder: &RowEncoder<'_>, rows: &[Row]) -> anyhow::Result<Value> {
    let mut left_out = Vec::new();
    let [mut sequences, mut tokens, mut trained, mut truncated] = [0; 4];
    let mut notes = RowNotes::default();
    for row in rows {
        let encoded = encoder.encode(row)?;
        sequences += encoded.samples.len();
        tokens += encoded.samples.iter().map(|example| example.tokens.len()).sum::<usize>();
        trained += encoded.samples.iter().map(Example::trained).sum::<usize>();
        truncated += encoded.truncated;
        notes += encoded.notes;
        if let Some(reason) = encoded.left_out {
            left_out.push(
                json!({"file": row.path.display().to_string(), "place": row.place.to_string(), "reason": reason.to_string()}),
            );
        }
    }
    let mut counts = json!({
        "rows": rows.len(), "sequences": sequences, "tokens": tokens, "trained_tokens": trained, "truncated": truncated,
        "left_out": left_out,
    });
    for (key, count) in notes_json(&notes) {
        counts[key] = count.into();
    }
    Ok(counts)
}

/// The rows as they were read, for a look at a data set before there is a model.
fn without_model(args: &DataArgs, splits: &[(&str, &Vec<Row>)], session: &Session) -> anyhow::Result<()> {
    if args.json {
        let counts: serde_json::Map<String, Value> = splits
            .iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(name, rows)| ((*name).to_owned(), json!({"rows": rows.len()})))
            .collect();
        let row = |row: &Row| {
            let mut value = of_record(&row.record);
            value["file"] = json!(row.path.display().to_string());
            value["place"] = row.place.to_string().into();
            value
        };
        let first: Vec<Value> = splits[0].1.iter().take(args.rows).map(row).collect();
        return print_line(&write_json(&json!({"splits": counts, "rows": first}), false));
    }
    for row in splits[0].1.iter().take(args.rows) {
        let text = write_json(&of_record(&row.record), true);
        print_line(&format!("{}, {}\n{}\n", row.path.display(), row.place, printable(&shortened(&text))))?;
    }
    for (name, rows) in splits.iter().filter(|(_, rows)| !rows.is_empty()) {
        print_line(&format!("{name}: {}", counted(rows.len(), "row")))?;
    }
    session.note("pass --model to see tokens and what of them is trained");
    Ok(())
}

fn of_record(record: &Record) -> Value {
    match record {
        Record::Text(text) => json!({"text": text}),
        Record::Completion { prompt, completion } => json!({"prompt": prompt, "completion": completion}),
        Record::Chat { messages, tools: None } => json!({"messages": messages}),
        Record::Chat { messages, tools: Some(tools) } => json!({"messages": messages, "tools": tools}),
    }
}

/// Marks around trained text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Color,
    Brackets,
}

impl Style {
    /// Colors on a terminal, unless `NO_COLOR` is set.
    fn of_terminal() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !plain { Self::Color } else { Self::Brackets }
    }

    fn mark(self, text: &str) -> String {
        match self {
            Self::Color => format!("\x1b[1;32m{}\x1b[0m", text.replace('\n', "⏎\n")),
            Self::Brackets => format!("⟦{text}⟧"),
        }
    }

    fn legend(self) -> String {
        match self {
            Self::Color => format!("{} is trained, the rest is only read", self.mark("green")),
            Self::Brackets => "text in ⟦…⟧ is trained, the rest is only read".to_owned(),
        }
    }
}

fn shown_row(files: &ModelFiles, row: &Row, encoded: &EncodedRow, style: Style) -> anyhow::Result<String> {
    let place = format!("{}, {}", row.path.display(), row.place);
    if let Some(reason) = encoded.left_out {
        return Ok(format!("{place}: left out: {reason}\n"));
    }
    let mut text = String::new();
    for (index, example) in encoded.samples.iter().enumerate() {
        let of_several = match encoded.samples.len() {
            1 => String::new(),
            count => format!(" (sequence {} of {count})", index + 1),
        };
        text += &format!(
            "{place}{of_several}: {}, {} trained\n",
            counted(example.tokens.len(), "token"),
            thousands(example.trained())
        );
        for part in parts(files, example)? {
            let shown = printable(&shortened(&part.text));
            text += &if part.trained { style.mark(&shown) } else { shown };
        }
        text.push('\n');
    }
    if encoded.truncated > 0 {
        text += "(cut to the maximum length)\n";
    }
    for remark in remarks(&encoded.notes) {
        text += &format!("({remark})\n");
    }
    Ok(text)
}

/// Leaves out the middle of a long text.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= SHOWN {
        return text.to_owned();
    }
    let front: String = text.chars().take(SHOWN / 2).collect();
    let back: String = text.chars().skip(count - SHOWN / 2).collect();
    format!("{front} … {} characters … {back}", thousands(count - SHOWN))
}

/// Escapes what would steer a terminal.
fn printable(text: &str) -> String {
    let one = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(one).collect()
}

/// Consecutive tokens that are all trained, or all not.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    text: String,
    trained: bool,
}

/// The text of a sequence in parts, its special tokens written out.
fn parts(files: &ModelFiles, example: &Example) -> anyhow::Result<Vec<Part>> {
    let special: std::collections::HashMap<u32, String> =
        files.special_tokens().into_iter().map(|(text, id)| (id, text)).collect();
    let mut parts: Vec<Part> = Vec::new();
    let mut push = |text: &str, trained: bool| match parts.last_mut() {
        Some(last) if last.trained == trained => last.text.push_str(text),
        _ => parts.push(Part { text: text.to_owned(), trained }),
    };
    let masked: Vec<(u32, bool)> =
        example.tokens.iter().copied().zip(example.supervised.iter().copied()).collect();
    for run in masked.chunk_by(|a, b| special.contains_key(&a.0) == special.contains_key(&b.0)) {
        if special.contains_key(&run[0].0) {
            run.iter().for_each(|(id, trained)| push(&special[id], *trained));
            continue;
        }
        // A token's text can depend on those before it, so each part is what it adds to the decoded text.
        let ids: Vec<u32> = run.iter().map(|(id, _)| *id).collect();
        let (mut done, mut shown) = (0, String::new());
        for part in run.chunk_by(|a, b| a.1 == b.1) {
            done += part.len();
            let text = files.tokenizer.decode(&ids[..done])?;
            push(text.strip_prefix(shown.as_str()).unwrap_or(&text), part[0].1);
            shown = text;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_everything_that_happened_to_rows() {
        let example =
            |trained: bool| Example { tokens: vec![1, 2, 3], supervised: vec![false, trained, true] };
        let mut made =
            Examples { examples: vec![example(true), example(false)], rows: 2, ..Examples::default() };
        assert_eq!(summary("train", &made, 512), "train: 2 rows, 6 tokens, 3 trained");
        made.rows = 1234;
        made.truncated = 1;
        made.left_out.insert(data::LeftOut::NoAnswer, (2, "line 7".to_owned()));
        made.split_rows = 3;
        made.notes = RowNotes {
            ends_added: 1,
            calls_left_out: 2,
            reasoning_left_out: 1,
            empty_answers: 2,
            unanswered: 1,
            tools_left_out: 3,
        };
        assert_eq!(
            summary("a.jsonl", &made, 512),
            "a.jsonl: 1 234 rows, 6 tokens, 3 trained; 1 sequence cut to 512 tokens; 2 rows left out: no assistant answer to \
             train (first: line 7); 3 rows became several sequences, because the chat template changes earlier answers when \
             others follow; 1 answer ended by an added end token, because the chat template writes none there; tool calls of 2 \
             answers are not trained, because the chat template leaves them out; reasoning of 1 answer is not trained, because \
             the chat template leaves it out; 2 answers are empty, so only the end of the turn is trained; 1 chat ends with a \
             question without an answer, which is not trained; tools of 3 rows are not in the text, because the chat template \
             leaves them out"
        );
    }

    #[test]
    fn marks_are_colors_or_brackets_and_text_cannot_steer_a_terminal() {
        assert_eq!(Style::Color.mark("a\nb"), "\x1b[1;32ma⏎\nb\x1b[0m");
        assert_eq!(Style::Brackets.mark("a"), "⟦a⟧");
        assert_eq!(printable("a\x1b[2J\tb\n"), "a\\u{1b}[2J\tb\n");
        let long = "x".repeat(SHOWN + 7);
        assert!(shortened(&long).contains(" … 7 characters … "));
        assert_eq!(shortened("short"), "short");
    }
}
