//! Chat templates: the Jinja templates that turn messages into the text a model was trained on.
//!
//! Templates are written for the Jinja2 of Python as transformers sets it up: blocks take their line's space
//! with them, Python's methods work on text, lists and objects, and `tojson`, `raise_exception` and
//! `strftime_now` are there.

use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, State, escape_formatter};
use serde_json::{Map, Value as Json};

use super::gguf::Gguf;
use super::python;
use super::tokenizer::read_json;
use crate::{Error, Result};

/// A message of a chat: an object with `role` and `content`, and whatever else the template reads.
pub type Message = Json;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    source: String,
    /// Texts that templates refer to, such as `bos_token`.
    tokens: Vec<(&'static str, String)>,
    /// Default variables, which those of a call replace.
    variables: Map<String, Json>,
}

/// The text of a chat and the parts of it that the template marks as the assistant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Text of the chat.
    pub text: String,
    /// Byte ranges of the template's `{% generation %}` blocks, in text order. Empty if it has none.
    pub generation: Vec<Range<usize>>,
}

/// Name of the function that marks a `{% generation %}` block, and of the variable with the marks.
const GENERATION: &str = "__generation";

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the tokens at the beginning and end of a text.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token?.to_owned()))).collect();
        Self::compile(Path::new("chat template"), &[(DEFAULT.to_owned(), source.to_owned())], tokens)
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`. `None` if there is none.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let settings_path = folder.join("tokenizer_config.json");
        let settings = read_json(&settings_path)?.unwrap_or(Json::Null);
        let mut tokens = Vec::new();
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            let token = &settings[name];
            if let Some(text) = token.as_str().or_else(|| token["content"].as_str()) {
                tokens.push((name, text.to_owned()));
            }
        }
        let own_file = folder.join("chat_template.jinja");
        if own_file.is_file() {
            let mut named = vec![(DEFAULT.to_owned(), read_text(&own_file)?)];
            let tool_use = folder.join("additional_chat_templates").join("tool_use.jinja");
            if tool_use.is_file() {
                named.push((TOOL_USE.to_owned(), read_text(&tool_use)?));
            }
            return Self::compile(&own_file, &named, tokens).map(Some);
        }
        let named = match &settings["chat_template"] {
            Json::Null => return Ok(None),
            Json::String(source) => vec![(DEFAULT.to_owned(), source.clone())],
            Json::Array(list) => {
                let pair = |item: &Json| {
                    Some((item["name"].as_str()?.to_owned(), item["template"].as_str()?.to_owned()))
                };
                list.iter().filter_map(pair).collect()
            }
            _ => Vec::new(),
        };
        Self::compile(&settings_path, &named, tokens).map(Some)
    }

    /// The template of a GGUF file. `None` if there is none.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>> {
        let Some(source) = gguf.text("tokenizer.chat_template")? else { return Ok(None) };
        let mut named = vec![(DEFAULT.to_owned(), source.to_owned())];
        if let Some(source) = gguf.text("tokenizer.chat_template.tool_use")? {
            named.push((TOOL_USE.to_owned(), source.to_owned()));
        }
        let texts = gguf.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut tokens = Vec::new();
        for (name, key) in [
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
        ] {
            if let Some(text) = gguf.integer(key)?.and_then(|id| texts.get(id)) {
                tokens.push((name, (*text).to_owned()));
            }
        }
        Self::compile(gguf.path(), &named, tokens).map(Some)
    }

    fn compile(path: &Path, named: &[(String, String)], tokens: Vec<(&'static str, String)>) -> Result<Self> {
        let Some((_, source)) = named.iter().find(|(name, _)| name == DEFAULT).or(named.first()) else {
            return Err(Error::file_at(
                path,
                "chat_template",
                "is neither a template nor a list of named ones",
            ));
        };
        let mut environment = environment();
        let mut add = |name: &'static str, source: &str| {
            environment.add_template_owned(name, with_generation_calls(source)).map_err(|e| {
                let place = format!("chat template, line {}", e.line().unwrap_or(1));
                Error::file_at(path, place, format!("does not compile: {}", describe(&e)))
            })
        };
        add(DEFAULT, source)?;
        if let Some((_, source)) = named.iter().find(|(name, _)| name == TOOL_USE) {
            add(TOOL_USE, source)?;
        }
        Ok(Self { source: source.clone(), environment, path: path.to_owned(), tokens, variables: Map::new() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a chat. With `add_generation_prompt` it ends where the assistant's turn begins.
    ///
    /// `tools` is the list of tools as the template expects it, for most models JSON schemas of functions.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_with(messages, tools, add_generation_prompt, &Map::new())
    }

    /// Sets default variables for every rendering, such as `enable_thinking` of Qwen3.
    pub fn with_variables(mut self, variables: Map<String, Json>) -> Self {
        self.variables = variables;
        self
    }

    /// Returns `true` if the template marks the assistant's words by `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        with_generation_calls(&self.source) != self.source
    }

    /// [`ChatTemplate::render`] with further variables, which replace the defaults of the same name.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String> {
        self.render_text(messages, tools, add_generation_prompt, variables, None)
    }

    /// [`ChatTemplate::render_with`], with the byte ranges of the template's `{% generation %}` blocks.
    ///
    /// The call fails if the template changes the text of such a block after the block, by a filter say, in a
    /// way that depends on the marks around it.
    pub fn render_marked(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<Rendered> {
        let text = self.render_text(messages, tools, add_generation_prompt, variables, None)?;
        if !self.has_generation_blocks() {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        let marks = unused_marks(&text);
        let marked = self.render_text(messages, tools, add_generation_prompt, variables, Some(marks))?;
        match split_marks(&marked, marks) {
            Some(rendered) if rendered.text == text => Ok(rendered),
            _ => Err(Error::file_at(
                &self.path,
                "chat template",
                "changes the text of a {% generation %} block after the block, so the block's place is unknown",
            )),
        }
    }

    fn render_text(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
        marks: Option<[char; 2]>,
    ) -> Result<String> {
        let name = if tools.is_some() && self.environment.get_template(TOOL_USE).is_ok() {
            TOOL_USE
        } else {
            DEFAULT
        };
        let failed = |e: minijinja::Error| {
            let place = format!("chat template, line {}", e.line().unwrap_or(1));
            Error::file_at(&self.path, place, describe(&e))
        };
        let fixed = [
            ("messages", messages.iter().map(python::from_json).collect::<Value>()),
            ("tools", tools.map_or(Value::from(()), python::from_json)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
        let tokens = self.tokens.iter().map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str())));
        let further = self.variables.iter().chain(variables);
        let further = further.map(|(name, value)| (name.clone(), python::from_json(value)));
        let marks = marks.map(|marks| (format!("{GENERATION}_marks"), marks.into_iter().collect::<Value>()));
        let context = Value::from_pairs(fixed.chain(tokens).chain(further).chain(marks));
        self.environment.get_template(name).and_then(|template| template.render(context)).map_err(failed)
    }
}

/// Two private-use characters that the text does not contain.
fn unused_marks(text: &str) -> [char; 2] {
    let mut unused = ('\u{f0000}'..='\u{ffffd}').filter(|mark| !text.contains(*mark));
    let mut next = || unused.next().unwrap_or('\u{f0000}');
    [next(), next()]
}

/// Removes the marks from a text. Returns `None` if they do not come in pairs.
fn split_marks(marked: &str, [open, close]: [char; 2]) -> Option<Rendered> {
    let mut rendered = Rendered { text: String::with_capacity(marked.len()), generation: Vec::new() };
    let mut start = None;
    for c in marked.chars() {
        if c == open {
            if start.replace(rendered.text.len()).is_some() {
                return None;
            }
        } else if c == close {
            rendered.generation.push(start.take()?..rendered.text.len());
        } else {
            rendered.text.push(c);
        }
    }
    start.is_none().then_some(rendered)
}

/// The environment that transformers gives to templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match python::constant(value) {
        Some(text) => {
            out.write_str(text).map_err(|_| minijinja::Error::new(ErrorKind::WriteFailure, "output"))
        }
        None => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", |value: &Value, options: Kwargs| python::to_json(value, &options));
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: String| {
        python::strftime(&format, std::time::SystemTime::now())
    });
    environment.add_function(
        GENERATION,
        |state: &mut State<'_, '_>, options: Kwargs| -> std::result::Result<Value, minijinja::Error> {
            let body = options.get::<Value>("caller")?.call(state, &[])?;
            let Some(marks) = state.lookup(&format!("{GENERATION}_marks")) else { return Ok(body) };
            let [open, close] = [marks.get_item_by_index(0)?, marks.get_item_by_index(1)?];
            Ok(Value::from_safe_string(format!("{open}{body}{close}")))
        },
    );
    environment
}

/// Writes each `{% generation %}` block as a call of the function that marks it.
fn with_generation_calls(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((start, end)) =
        rest.find("{%").and_then(|start| Some((start, start + rest[start..].find("%}")?)))
    {
        let tag = &rest[start + 2..end];
        let replacement = match tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            "generation" => Some(tag.replace("generation", "call __generation()")),
            "endgeneration" => Some(tag.replace("endgeneration", "endcall")),
            _ => None,
        };
        result.push_str(&rest[..start + 2]);
        result.push_str(replacement.as_deref().unwrap_or(tag));
        rest = &rest[end..];
    }
    result.push_str(rest);
    result
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}
