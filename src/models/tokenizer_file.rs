//! Checks of a `tokenizer.json` that the `tokenizers` crate does not make.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// Maximum factor by which normalizers, or decoders, may make a text longer.
const MAX_GROWTH: usize = 4096;
/// Largest id of a token. The `tokenizers` crate counts up to the largest one when it writes a file.
const MAX_ID: u64 = (1 << 22) - 1;

#[derive(Deserialize)]
struct File {
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

/// Refuses a file that the crate would panic over or that would fill the memory.
pub(super) fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    let file: File = serde_json::from_slice(bytes)
        .map_err(|e| Error::file_at(path, format!("line {}", e.line()), format!("is no tokenizer: {e}")))?;
    for (place, steps) in [("normalizer", &file.normalizer), ("decoder", &file.decoder)] {
        if growth(steps) > MAX_GROWTH {
            let message = format!("makes a text more than {MAX_GROWTH} times as long; the file is damaged");
            return Err(Error::file_at(path, place, message));
        }
    }
    check_ids(path, &file)?;
    check_template(path, &file.post_processor)?;
    file.model.map_or(Ok(()), |model| check_merges(path, &model))
}

/// Refuses ids that no vocabulary has.
fn check_ids(path: &Path, file: &File) -> Result<()> {
    let vocab = file.model.as_ref().and_then(|model| model.vocab.as_object()).into_iter().flatten();
    let added = file.added_tokens.as_array().into_iter().flatten();
    let added = added.map(|token| (token["content"].as_str().unwrap_or_default(), &token["id"]));
    let mut all = vocab.map(|(token, id)| (token.as_str(), id)).chain(added);
    match all.find(|(_, id)| id.as_u64().is_some_and(|id| id > MAX_ID)) {
        Some((token, id)) => {
            let message =
                format!("has the id {id}; the largest plausible id is {MAX_ID}; the file is damaged");
            Err(Error::file_at(path, format!("token '{token}'"), message))
        }
        None => Ok(()),
    }
}

/// Refuses merges whose result is not in the vocabulary: the tokenizers crate panics over long ones.
fn check_merges(path: &Path, model: &Model) -> Result<()> {
    let Model { vocab: Value::Object(vocab), merges, continuing_subword_prefix } = model else {
        return Ok(());
    };
    let prefix = continuing_subword_prefix.as_deref().unwrap_or_default();
    for (rank, merge) in merges.iter().enumerate() {
        let joined = match merge {
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
            Merge::Joined(pair) => pair.split_once(' '),
        };
        let joined = joined.and_then(|(left, right)| Some(format!("{left}{}", right.strip_prefix(prefix)?)));
        let joined = joined.unwrap_or_else(|| "?".to_owned());
        if !vocab.contains_key(&joined) {
            return Err(Error::file_at(
                path,
                format!("merge {rank}"),
                format!("'{joined}' is not in the vocabulary; the file is damaged"),
            ));
        }
    }
    Ok(())
}

/// The steps of a sequence, or the step itself.
fn steps<'v>(value: &'v Value, key: &str) -> Vec<&'v Value> {
    match value.get(key).and_then(Value::as_array) {
        Some(inner) => inner.iter().flat_map(|step| steps(step, key)).collect(),
        None => vec![value],
    }
}

/// Product of the factors by which replacements make a text longer.
fn growth(value: &Value) -> usize {
    let all = ["normalizers", "decoders"].into_iter().flat_map(|key| match value.get(key) {
        Some(_) => steps(value, key),
        None => Vec::new(),
    });
    let all: Vec<&Value> = if value.get("pattern").is_some() { vec![value] } else { all.collect() };
    let factor = |step: &Value| {
        let content = step.get("content").and_then(Value::as_str).map_or(0, str::len);
        let pattern = step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
        match pattern.map(str::len) {
            None if step.get("pattern").is_none() => 1,
            // A regular expression can match the empty text between two characters.
            None | Some(0) => content + 1,
            Some(length) => content.div_ceil(length).max(1),
        }
    };
    all.into_iter().map(factor).fold(1, usize::saturating_mul)
}

/// Refuses a post-processor that adds a token which it does not define.
fn check_template(path: &Path, processor: &Value) -> Result<()> {
    for step in steps(processor, "processors") {
        let defined = step.get("special_tokens").and_then(Value::as_object);
        let pieces = ["single", "pair"].into_iter().filter_map(|key| step.get(key)?.as_array());
        for piece in pieces.flatten() {
            let id = piece.get("SpecialToken").and_then(|token| token.get("id")).and_then(Value::as_str);
            if let Some(id) = id.filter(|id| !defined.is_some_and(|defined| defined.contains_key(*id))) {
                let message = format!(
                    "adds the token '{id}', which its special_tokens do not list; the file is damaged"
                );
                return Err(Error::file_at(path, "post_processor", message));
            }
        }
    }
    Ok(())
}
