//! One row of a data set as a record, whichever of the field's forms it has.

use serde_json::{Map, Value, json};

use super::messages::{kind, messages, object_text};
use super::{Record, json as strict};

const EXPECTED: &str = "expected {\"messages\": […]}, {\"prompt\": …, \"completion\": …}, {\"text\": …}, ShareGPT's \
                        {\"conversations\": […]} or Alpaca's {\"instruction\": …, \"output\": …}; other columns are \
                        renamed as by --columns prompt=question,completion=answer";

pub(super) type Found<T> = Result<T, String>;

/// A record, and the columns of its row that are not used though they have a value.
pub(super) type Used = (Record, Vec<String>);

/// Columns with the system message, the field's word first.
const SYSTEM: [&str; 2] = ["system", "system_prompt"];
/// Columns of what is not text.
const MEDIA: [&str; 6] = ["images", "image", "videos", "video", "audios", "audio"];

/// Makes a record of a row, or says what is wrong with it. Null columns are absent columns.
pub(super) fn record(value: Value) -> Found<Used> {
    let Value::Object(mut row) = value else {
        return Err(format!("is {}; {EXPECTED}", kind(&value)));
    };
    row.retain(|_, value| !value.is_null());
    let has = |key: &str| row.contains_key(key);
    not_trainable(&row)?;
    if has("prompt") && has("completion") {
        return completion(&row);
    }
    if let Some(key) = ["messages", "conversations", "conversation"].into_iter().find(|key| has(key)) {
        return chat(&row, key);
    }
    if let Some(answer) = ["output", "response"].into_iter().find(|key| has("instruction") && has(key)) {
        return alpaca(&row, answer);
    }
    if has("text") {
        return Ok((Record::Text(text(&row, "text")?), unused(&row, &["text"])));
    }
    for (one, other) in [("prompt", "completion"), ("completion", "prompt"), ("instruction", "output")] {
        if has(one) {
            let keys: Vec<&str> = row.keys().map(String::as_str).filter(|key| *key != one).collect();
            let advice = match keys.as_slice() {
                [] => String::new(),
                [first, ..] => format!(
                    "; it also has [{}], which --columns {one}={one},{other}={first} would use",
                    keys.join(", ")
                ),
            };
            return Err(format!("has '{one}', but '{other}' is missing or null{advice}"));
        }
    }
    if row.is_empty() {
        return Err(format!("has no columns with a value; {EXPECTED}"));
    }
    if (has("role") && has("content")) || (has("from") && has("value")) {
        return Err("is a message of a chat, not a row; a row has the messages of one chat: {\"messages\": [{\"role\": \"user\", \
                    \"content\": …}, …]}"
            .into());
    }
    let keys: Vec<&str> = row.keys().map(String::as_str).collect();
    Err(format!("has the keys [{}]; {EXPECTED}", keys.join(", ")))
}

/// Refuses rows for another kind of training.
fn not_trainable(row: &Map<String, Value>) -> Found<()> {
    let has = |key: &str| row.contains_key(key);
    if has("chosen") && has("rejected") {
        return Err("is a pair of preferred and rejected answers, which trains by DPO and is not supported; keep the \
                    preferred answer as prompt and completion, or as messages"
            .into());
    }
    if has("completion") && row.get("label").is_some_and(Value::is_boolean) {
        return Err("is a rated answer ('label'), which trains by KTO and is not supported; keep the good answers, without \
                    'label'"
            .into());
    }
    if row.get("chat_template_kwargs").is_some_and(|variables| *variables != json!({})) {
        return Err("has 'chat_template_kwargs', and variables of the chat template cannot differ between rows; set them for \
                    all by --template-var, and leave the column out"
            .into());
    }
    match MEDIA.into_iter().find(|key| row.get(*key).is_some_and(|value| !is_empty(value))) {
        Some(key) => Err(format!(
            "has '{key}', and only text can be trained; leave the row out, or the column if the text is complete without it"
        )),
        None => Ok(()),
    }
}

/// The columns with a value that are not among the used ones.
fn unused(row: &Map<String, Value>, used: &[&str]) -> Vec<String> {
    let left = row.iter().filter(|(key, value)| !used.contains(&key.as_str()) && !is_empty(value));
    left.map(|(key, _)| key.clone()).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn text(row: &Map<String, Value>, key: &str) -> Found<String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("'{key}' is {}; it must be a text", kind(other))),
        None => Err(format!("'{key}' is missing")),
    }
}

/// Prompt and completion: two texts, or two lists of messages of which the second is trained.
fn completion(row: &Map<String, Value>) -> Found<Used> {
    let unused = unused(row, &[&["prompt", "completion", tools_key(row)], &SYSTEM[..]].concat());
    let mut all = system(row)?;
    if row["prompt"].is_array() && row["completion"].is_array() {
        let mut prompt = messages(&row["prompt"], "prompt")?;
        for message in &mut prompt {
            message["weight"] = 0.into();
        }
        all.extend(prompt);
        all.extend(messages(&row["completion"], "completion")?);
        return Ok((Record::Chat { messages: all, tools: tools(row)? }, unused));
    }
    let (prompt, completion) = (text(row, "prompt")?, text(row, "completion")?);
    let tools = tools(row)?;
    if all.is_empty() && tools.is_none() {
        return Ok((Record::Completion { prompt, completion }, unused));
    }
    all.push(json!({"role": "user", "content": prompt}));
    all.push(json!({"role": "assistant", "content": completion}));
    Ok((Record::Chat { messages: all, tools }, unused))
}

/// Alpaca and Dolly: an instruction, an optional input or context below it, the answer; earlier turns in `history`.
fn alpaca(row: &Map<String, Value>, answer: &str) -> Found<Used> {
    let mut all = system(row)?;
    if let Some(history) = row.get("history") {
        let wrong = || "'history' must be a list of [question, answer]".to_owned();
        for pair in history.as_array().ok_or_else(wrong)? {
            let [Value::String(question), Value::String(answer)] =
                pair.as_array().ok_or_else(wrong)?.as_slice()
            else {
                return Err(wrong());
            };
            all.push(json!({"role": "user", "content": question}));
            all.push(json!({"role": "assistant", "content": answer}));
        }
    }
    let mut question = text(row, "instruction")?;
    let input =
        ["input", "context"].into_iter().find(|key| row.get(*key).is_some_and(|value| !is_empty(value)));
    if let Some(input) = input {
        let input = text(row, input)?;
        question = if question.is_empty() { input } else { format!("{question}\n{input}") };
    }
    all.push(json!({"role": "user", "content": question}));
    all.push(json!({"role": "assistant", "content": text(row, answer)?}));
    let used = ["instruction", answer, input.unwrap_or("input"), "history", tools_key(row)];
    Ok((Record::Chat { messages: all, tools: tools(row)? }, unused(row, &[&used, &SYSTEM[..]].concat())))
}

/// The system message of a row with such a column.
fn system(row: &Map<String, Value>) -> Found<Vec<Value>> {
    let given = |key: &&str| row.get(*key).is_some_and(|value| !is_empty(value));
    let mut keys = SYSTEM.into_iter().filter(given);
    let Some(key) = keys.next() else { return Ok(Vec::new()) };
    if let Some(other) = keys.find(|other| row[*other] != row[key]) {
        return Err(format!("has different texts in '{key}' and '{other}'; keep one of the columns"));
    }
    Ok(vec![json!({"role": "system", "content": text(row, key)?})])
}

fn chat(row: &Map<String, Value>, key: &str) -> Found<Used> {
    let mut all = messages(&row[key], key)?;
    let mut used = vec![key, tools_key(row)];
    let mut first = system(row)?;
    if all[0]["role"] != "system" || first.first() == all.first() {
        used.extend(SYSTEM);
    }
    if all[0]["role"] != "system" {
        first.append(&mut all);
        all = first;
    }
    Ok((Record::Chat { messages: all, tools: tools(row)? }, unused(row, &used)))
}

/// The column with the descriptions of tools.
fn tools_key(row: &Map<String, Value>) -> &'static str {
    if row.contains_key("tools") { "tools" } else { "functions" }
}

/// The descriptions of tools: a list, its JSON text, or OpenAI's older `functions`. An empty list is none.
fn tools(row: &Map<String, Value>) -> Found<Option<Value>> {
    let wrap = |function: &Value| json!({"type": "function", "function": function});
    let (key, value) = match (row.get("tools"), row.get("functions")) {
        (Some(tools), _) => ("tools", tools),
        (None, Some(functions)) => ("functions", functions),
        (None, None) => return Ok(None),
    };
    let value = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => strict::parse(text)
            .map_err(|wrong| format!("'{key}' is a text that is not JSON: {}", wrong.cause))?,
        other => other.clone(),
    };
    match value {
        Value::Null => Ok(None),
        Value::Array(list) if list.is_empty() => Ok(None),
        Value::Array(list) if key == "functions" => Ok(Some(list.iter().map(wrap).collect())),
        Value::Array(list) => list
            .into_iter()
            .enumerate()
            .map(|(index, tool)| match tool {
                Value::String(text) => object_text(&text)
                    .map_err(|cause| format!("tool {} is a text that is not JSON: {cause}", index + 1))?
                    .ok_or_else(|| format!("tool {} is a text; it must be a JSON object", index + 1)),
                other => Ok(other),
            })
            .collect::<Found<Vec<_>>>()
            .map(|list| Some(list.into())),
        Value::Object(tool) => Ok(Some(json!([tool]))),
        other => Err(format!("'{key}' is {}; it must be a list", kind(&other))),
    }
}
