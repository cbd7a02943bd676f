//! `template`: renders chat templates for comparisons with other implementations.

use std::io::{BufRead, Write};

use anyhow::Context;
use metal_candle::models::{ChatTemplate, parse_json};
use serde_json::{Value, json};

/// Answers the requests of the standard input: `template`, `bos`, `eos`, `messages`, `tools`,
/// `add_generation_prompt` and `variables`. An answer has `text` and `generation`, or `error`.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request = parse_json(&line?).context("template: a request is not JSON")?;
        let answer = answer(&request).unwrap_or_else(|error| json!({"error": error.to_string()}));
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn answer(request: &Value) -> metal_candle::Result<Value> {
    let template = request["template"].as_str().unwrap_or_default();
    let template = ChatTemplate::new(template, request["bos"].as_str(), request["eos"].as_str())?;
    let rendered = template.render_marked(
        request["messages"].as_array().map_or(&[], Vec::as_slice),
        Some(&request["tools"]).filter(|tools| !tools.is_null()),
        request["add_generation_prompt"] == true,
        &request["variables"].as_object().cloned().unwrap_or_default(),
    )?;
    let generation: Vec<_> = rendered.generation.iter().map(|range| [range.start, range.end]).collect();
    Ok(json!({"text": rendered.text, "generation": generation}))
}
