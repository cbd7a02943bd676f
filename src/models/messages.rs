//! Messages as transformers prepares them for a template.

use serde_json::{Map, Value as Json};

/// Names under which data sets and servers keep what a model thought before its answer. The first is the one that
/// most templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message without its null fields, whose reasoning is found as `reasoning_content` and as `thinking`.
pub(super) fn prepared(message: &Json) -> Json {
    let Json::Object(fields) = message else { return message.clone() };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    let mut fields: Map<String, Json> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
        if !fields.contains_key("thinking") {
            fields.shift_insert(0, "thinking".to_owned(), reasoning.clone());
        }
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    Json::Object(fields)
}
