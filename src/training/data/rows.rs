//! One row of a data set as a record, whichever of the field's forms it has.

use serde_json::{Map, Value, json};

use super::{Record, json as strict};
use crate::models::big_integer;

const EXPECTED: &str = "expected {\"messages\": […]}, {\"prompt\": …, \"completion\": …}, {\"text\": …}, ShareGPT's \
                        {\"conversations\": […]} or Alpaca's {\"instruction\": …, \"output\": …}; other columns are \
                        renamed as by --columns prompt=question,completion=answer";

type Found<T> = Result<T, String>;

/// Makes a record of a row, or says what is wrong with it. Null columns are absent columns.
pub(super) fn record(value: Value) -> Found<Record> {
    let Value::Object(mut row) = value else {
        return Err(format!("is {}; {EXPECTED}", kind(&value)));
    };
    row.retain(|_, value| !value.is_null());
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
    if has("prompt") && has("completion") {
        return completion(&row);
    }
    if let Some(key) = ["messages", "conversations", "conversation"].into_iter().find(|key| has(key)) {
        return chat(&row, key);
    }
    if has("instruction") && has("output") {
        return alpaca(&row);
    }
    if has("text") {
        return Ok(Record::Text(text(&row, "text")?));
    }
    for (one, other) in [("prompt", "completion"), ("completion", "prompt"), ("instruction", "output")] {
        if has(one) {
            return Err(format!("has '{one}', but '{other}' is missing or null"));
        }
    }
    if row.is_empty() {
        return Err(format!("has no columns with a value; {EXPECTED}"));
    }
    let keys: Vec<&str> = row.keys().map(String::as_str).collect();
    Err(format!("has the keys [{}]; {EXPECTED}", keys.join(", ")))
}

fn text(row: &Map<String, Value>, key: &str) -> Found<String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("'{key}' is {}; it must be a text", kind(other))),
        None => Err(format!("'{key}' is missing")),
    }
}

/// Prompt and completion: two texts, or two lists of messages of which the second is trained.
fn completion(row: &Map<String, Value>) -> Found<Record> {
    if row["prompt"].is_array() && row["completion"].is_array() {
        let mut prompt = messages(&row["prompt"], "prompt")?;
        for message in &mut prompt {
            message["weight"] = 0.into();
        }
        let mut all = system(row)?;
        all.extend(prompt);
        all.extend(messages(&row["completion"], "completion")?);
        return Ok(Record::Chat { messages: all, tools: tools(row)? });
    }
    let (prompt, completion) = (text(row, "prompt")?, text(row, "completion")?);
    let mut messages = system(row)?;
    if messages.is_empty() && !row.contains_key("tools") {
        return Ok(Record::Completion { prompt, completion });
    }
    messages.push(json!({"role": "user", "content": prompt}));
    messages.push(json!({"role": "assistant", "content": completion}));
    Ok(Record::Chat { messages, tools: tools(row)? })
}

/// Alpaca: an instruction, an optional input below it, the answer; earlier turns in `history`.
fn alpaca(row: &Map<String, Value>) -> Found<Record> {
    let mut messages = system(row)?;
    if let Some(history) = row.get("history") {
        let wrong = || "'history' must be a list of [question, answer]".to_owned();
        for pair in history.as_array().ok_or_else(wrong)? {
            let [Value::String(question), Value::String(answer)] =
                pair.as_array().ok_or_else(wrong)?.as_slice()
            else {
                return Err(wrong());
            };
            messages.push(json!({"role": "user", "content": question}));
            messages.push(json!({"role": "assistant", "content": answer}));
        }
    }
    let mut question = text(row, "instruction")?;
    if row.contains_key("input") {
        let input = text(row, "input")?;
        if !input.trim().is_empty() {
            question = if question.is_empty() { input } else { format!("{question}\n{input}") };
        }
    }
    messages.push(json!({"role": "user", "content": question}));
    messages.push(json!({"role": "assistant", "content": text(row, "output")?}));
    Ok(Record::Chat { messages, tools: tools(row)? })
}

/// The system message of a row with such a column.
fn system(row: &Map<String, Value>) -> Found<Vec<Value>> {
    if !row.contains_key("system") {
        return Ok(Vec::new());
    }
    let system = text(row, "system")?;
    Ok(if system.is_empty() { Vec::new() } else { vec![json!({"role": "system", "content": system})] })
}

fn chat(row: &Map<String, Value>, key: &str) -> Found<Record> {
    let mut all = messages(&row[key], key)?;
    if all[0]["role"] != "system" {
        let mut first = system(row)?;
        first.append(&mut all);
        all = first;
    }
    Ok(Record::Chat { messages: all, tools: tools(row)? })
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

/// The messages of a list or of its JSON text.
fn messages(value: &Value, key: &str) -> Found<Vec<Value>> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = strict::parse(text)
                .map_err(|wrong| format!("'{key}' is a text that is not JSON: {}", wrong.cause))?;
            &parsed
        }
        other => other,
    };
    let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
        return Err(format!("'{key}' must be a list of at least one message"));
    };
    let one = |(index, message): (usize, &Value)| {
        message_of(message).map_err(|cause| format!("message {} {cause}", index + 1))
    };
    list.iter().enumerate().map(one).collect()
}

/// One message in OpenAI's form. Null keys are absent, except that a call of tools may have null content.
fn message_of(value: &Value) -> Found<Value> {
    let Some(object) = value.as_object() else { return Err(format!("is {}", kind(value))) };
    let mut message: Map<String, Value> = object.clone();
    let null_content = message.get("content").is_some_and(Value::is_null);
    message.retain(|_, value| !value.is_null());
    if !message.contains_key("role") && message.contains_key("from") {
        share_gpt(&mut message)?;
    }
    match message.get("role") {
        Some(Value::String(role)) => {
            // ShareGPT's names beside OpenAI's keys.
            let ours = match role.as_str() {
                "human" => Some("user"),
                "gpt" | "chatgpt" | "bing" | "bard" | "bot" | "model" => Some("assistant"),
                _ => None,
            };
            if let Some(ours) = ours {
                message.insert("role".into(), ours.into());
            }
        }
        Some(other) => return Err(format!("has a 'role' that is {}", kind(other))),
        None => return Err("has no 'role'".into()),
    }
    if let Some(call) = message.remove("function_call") {
        message.entry("tool_calls").or_insert_with(|| json!([{"type": "function", "function": call}]));
    }
    if message["role"] == "function" {
        message.insert("role".into(), "tool".into());
    }
    if let Some(calls) = message.remove("tool_calls") {
        let calls = tool_calls(calls)?;
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
    }
    let is_call = message.contains_key("tool_calls");
    match message.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let joined = join(parts)?;
            message.insert("content".into(), joined.into());
        }
        Some(other) => return Err(format!("has a 'content' that is {}; it must be a text", kind(other))),
        None if is_call => {
            if null_content {
                message.insert("content".into(), Value::Null);
            }
        }
        None if null_content => {
            return Err("has null as its 'content', which only a message with 'tool_calls' may have".into());
        }
        None => return Err("has no 'content'".into()),
    }
    is_trained(&message)?;
    Ok(Value::Object(message))
}

/// Keys that select trained messages: OpenAI's, axolotl's and ms-swift's.
pub(super) const WEIGHTS: [&str; 3] = ["weight", "train", "loss"];

/// Returns whether a message is trained: one of the assistant's, unless a key says otherwise.
pub(super) fn is_trained(message: &Map<String, Value>) -> Found<bool> {
    if message
        .get("train_detail")
        .is_some_and(|detail| !matches!(detail, Value::Null) && *detail != json!([]))
    {
        return Err("has 'train_detail', which trains parts of an answer and is not supported; leave the key out, or write \
                    the trained part as prompt and completion"
            .into());
    }
    let mut trained = message.get("role").is_some_and(|role| role == "assistant");
    for key in WEIGHTS {
        let chosen = match message.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(chosen)) => *chosen,
            Some(Value::Number(number)) if number.as_f64() == Some(1.0) => true,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => false,
            Some(other) => {
                return Err(format!(
                    "has '{key}': {other}; write 1 for an answer that is trained, 0 for one that is only read"
                ));
            }
        };
        if chosen && message.get("role").is_none_or(|role| role != "assistant") {
            return Err(format!(
                "has '{key}': {}, but only the assistant's messages are trained; leave the key out, or train all of the \
                 text by --train-on all",
                message[key]
            ));
        }
        trained &= chosen;
    }
    Ok(trained)
}

/// Turns `from` and `value` into `role` and `content`.
fn share_gpt(message: &mut Map<String, Value>) -> Found<()> {
    let from = match message.remove("from") {
        Some(Value::String(from)) => from,
        _ => return Err("has a 'from' that is not a text".into()),
    };
    let Some(value) = message.remove("value") else { return Err("has no 'value', or null".into()) };
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "assistant" | "model" | "bot" => "assistant",
        "system" => "system",
        "observation" | "tool" | "function_response" | "tool_response" => "tool",
        "function_call" | "tool_call" => {
            let calls = match &value {
                Value::String(text) => strict::parse(text)
                    .map_err(|wrong| format!("is a function call that is not JSON: {}", wrong.cause))?,
                other => other.clone(),
            };
            let calls = if calls.is_array() { calls } else { json!([calls]) };
            message.insert("role".into(), "assistant".into());
            message.insert("tool_calls".into(), calls);
            return Ok(());
        }
        other => {
            return Err(format!(
                "is from '{other}'; it must be system, human, gpt, function_call or observation"
            ));
        }
    };
    message.insert("role".into(), role.into());
    message.insert("content".into(), value);
    Ok(())
}

/// The text of content in parts.
fn join(parts: &[Value]) -> Found<String> {
    let mut joined = String::new();
    for part in parts {
        let type_of = part["type"].as_str().unwrap_or("text");
        match (part, &part["text"]) {
            (Value::String(text), _) => joined.push_str(text),
            (_, Value::String(text)) if matches!(type_of, "text" | "input_text" | "output_text") => {
                joined.push_str(text);
            }
            _ => return Err(format!("has a content part of type '{type_of}'; only text can be trained")),
        }
    }
    Ok(joined)
}

/// Calls of tools in OpenAI's form, their arguments as objects.
fn tool_calls(calls: Value) -> Found<Vec<Value>> {
    let calls = match calls {
        Value::String(text) => strict::parse(&text)
            .map_err(|wrong| format!("has 'tool_calls' as a text that is not JSON: {}", wrong.cause))?,
        other => other,
    };
    let Value::Array(calls) = calls else {
        return Err(format!("has 'tool_calls' that are {}; they must be a list", kind(&calls)));
    };
    calls.into_iter().map(tool_call).collect()
}

fn tool_call(call: Value) -> Found<Value> {
    let Value::Object(mut call) = call else {
        return Err(format!("has a tool call that is {}; it must be an object", kind(&call)));
    };
    call.retain(|_, value| !value.is_null());
    // ShareGPT and some tools leave out the outer object.
    if !call.contains_key("function") {
        let function: Map<String, Value> = ["name", "arguments", "parameters"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), call.remove(key)?)))
            .collect();
        call.entry("type").or_insert_with(|| "function".into());
        call.insert("function".into(), function.into());
    }
    let Some(function) = call["function"].as_object_mut() else {
        return Err("has a tool call whose 'function' is not an object".into());
    };
    function.retain(|_, value| !value.is_null());
    if !function.get("name").is_some_and(Value::is_string) {
        return Err("has a tool call without the function's name".into());
    }
    if let Some(Value::String(text)) = function.get("arguments") {
        let decoded = object_text(text)
            .map_err(|cause| format!("has tool-call arguments that look like JSON but are not: {cause}"))?;
        if let Some(arguments) = decoded {
            function.insert("arguments".into(), arguments);
        }
    }
    Ok(Value::Object(call))
}

/// The object or list in a JSON text; `None` for a text that does not look like one.
fn object_text(text: &str) -> Found<Option<Value>> {
    match text.trim_start().starts_with(['{', '[']) {
        true => strict::parse(text).map(Some).map_err(|wrong| wrong.cause),
        false => Ok(None),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) if big_integer(value).is_some() => "a number",
        Value::Object(_) => "an object",
    }
}
