//! Messages of a chat in OpenAI's form, whichever of the field's forms they come in.

use serde_json::{Map, Value, json};

use super::json as strict;
use super::rows::Found;
use crate::models::big_integer;

/// The messages of a list or of its JSON text.
pub(super) fn messages(value: &Value, key: &str) -> Found<Vec<Value>> {
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
        Some(Value::String(role)) => match role_of(role) {
            Some(Role::Call) => call_in_content(&mut message)?,
            Some(Role::Named(role)) => drop(message.insert("role".into(), role.into())),
            None => return Err(format!("has the role '{role}'; {ROLES}")),
        },
        Some(other) => return Err(format!("has a 'role' that is {}", kind(other))),
        None => return Err("has no 'role'".into()),
    }
    if let Some(call) = message.remove("function_call") {
        message.entry("tool_calls").or_insert_with(|| json!([{"type": "function", "function": call}]));
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
            return Err("has null as its 'content', which only a message with 'tool_calls' may have; write its text, or \"\" \
                        for none"
                .into());
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
    if role_of(&from).is_none() {
        return Err(format!("is from '{from}'; it must be system, human, gpt, function_call or observation"));
    }
    let Some(value) = message.remove("value") else { return Err("has no 'value', or null".into()) };
    message.insert("role".into(), from.into());
    message.insert("content".into(), value);
    Ok(())
}

const ROLES: &str = "it must be system, user, assistant or tool";

/// Meaning of a role's name.
enum Role {
    /// A role by the name that chat templates read.
    Named(&'static str),
    /// The assistant's, with a call of a tool as JSON in its content.
    Call,
}

/// The role of a name in any letter case, among them the names that ShareGPT's and other data sets have.
fn role_of(name: &str) -> Option<Role> {
    /// Roles that some chat templates read beside the usual ones: Llama's, OLMo's, Granite's and gpt-oss's.
    const OF_TEMPLATES: [&str; 7] =
        ["developer", "ipython", "environment", "document", "documents", "context", "control"];
    let name = name.trim().to_lowercase();
    Some(Role::Named(match name.as_str() {
        "system" => "system",
        "user" | "human" | "prompter" => "user",
        "assistant" | "gpt" | "chatgpt" | "gpt4" | "gpt-4" | "bing" | "bard" | "bot" | "chatbot" | "ai"
        | "model" => "assistant",
        "tool" | "function" | "observation" | "function_response" | "tool_response" | "tool_result" => "tool",
        "function_call" | "tool_call" => return Some(Role::Call),
        other => OF_TEMPLATES.into_iter().find(|role| *role == other)?,
    }))
}

/// Turns a message whose content is a call of a tool, or several, into the assistant's.
fn call_in_content(message: &mut Map<String, Value>) -> Found<()> {
    let calls = match message.remove("content") {
        Some(Value::String(text)) => strict::parse(&text)
            .map_err(|wrong| format!("is a function call that is not JSON: {}", wrong.cause))?,
        Some(other) => other,
        None if message.contains_key("tool_calls") => {
            message.insert("role".into(), "assistant".into());
            return Ok(());
        }
        None => return Err("is a function call without a 'content'".into()),
    };
    let calls = if calls.is_array() { calls } else { json!([calls]) };
    message.insert("role".into(), "assistant".into());
    message.insert("tool_calls".into(), calls);
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
pub(super) fn object_text(text: &str) -> Found<Option<Value>> {
    match text.trim_start().starts_with(['{', '[']) {
        true => strict::parse(text).map(Some).map_err(|wrong| wrong.cause),
        false => Ok(None),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
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
