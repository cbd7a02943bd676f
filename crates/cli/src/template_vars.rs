//! `--template-var NAME=VALUE`: variables of the chat template.

use metal_candle::models::{ModelFiles, parse_json};
use metal_candle::training::{Record, Row};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::session::Session;

/// Gives a model's chat template default variables. What would have no effect is refused or reported.
pub(crate) fn set(
    files: &mut ModelFiles,
    variables: Map<String, Value>,
    session: &Session,
) -> Result<(), Failure> {
    if variables.is_empty() {
        return Ok(());
    }
    let Some(template) = files.chat_template.take() else {
        let cause = format!("--template-var has no effect here: {} has no chat template", files.name);
        return Err(Failure::input(cause, "leave it out, or use a model tuned for chat"));
    };
    for name in variables.keys().filter(|name| !template.mentions(name)) {
        session.note(format!("note: the chat template of {} does not mention '{name}'", files.name));
    }
    files.chat_template = Some(template.with_variables(variables));
    Ok(())
}

/// Refuses variables for rows of plain text, which no template renders.
pub(crate) fn check_rows<'a>(
    variables: &[String],
    mut rows: impl Iterator<Item = &'a Row>,
) -> Result<(), Failure> {
    if variables.is_empty() || rows.any(|row| !matches!(row.record, Record::Text(_))) {
        return Ok(());
    }
    let cause = "--template-var has no effect here: all rows are plain text, which is trained without the chat template";
    Err(Failure::input(cause, "leave it out, or write rows with messages or with prompt and completion"))
}

/// Parses variables. A value that is not JSON is a text.
pub(crate) fn parse(texts: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut variables = Map::new();
    for text in texts {
        let pair = text.split_once('=').map(|(name, value)| (name.trim(), value));
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c == '_' || c.is_alphanumeric());
        let Some((name, value)) = pair.filter(|(name, _)| is_name(name)) else {
            let cause = format!("template-var: '{text}' is not NAME=VALUE");
            return Err(Failure::input(cause, "write it as in --template-var enable_thinking=false"));
        };
        if matches!(name, "messages" | "tools" | "add_generation_prompt") {
            let cause = format!("template-var: {name} comes from the chat and cannot be set");
            return Err(Failure::input(cause, "set a variable that only the template reads"));
        }
        let value = match value {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            value => parse_json(value).unwrap_or_else(|_| value.into()),
        };
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(texts: &[&str]) -> Result<Value, Failure> {
        parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).map(Value::Object)
    }

    #[test]
    fn values_are_json_or_words() {
        let texts = [
            "enable_thinking=false",
            "effort=high",
            "n=3",
            "list=[1, \"a\"]",
            "off=False",
            "empty=",
            "a=b=c",
        ];
        let wanted = json!({
            "enable_thinking": false, "effort": "high", "n": 3, "list": [1, "a"], "off": false, "empty": "", "a": "b=c"
        });
        assert_eq!(parsed(&texts), Ok(wanted));
    }

    #[test]
    fn names_are_checked() {
        for text in ["enable_thinking", "=1", "a b=1", "messages=[]"] {
            assert!(parsed(&[text]).unwrap_err().cause.contains("template-var"), "{text}");
        }
    }
}
