//! Chat templates: the Jinja templates that turn messages into the text a model was trained on.
//!
//! They are rendered as transformers 5 renders them in Python.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value as Json, json};

use super::gguf::Gguf;
use super::jinja::{Template, TemplateError};
use super::messages::prepared;
use super::read::read_json;
use super::special_tokens::SpecialTokens;
use crate::{Error, Result};

/// A message of a chat: an object with `role` and `content`, and whatever else the template reads.
pub type Message = Json;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    template: Arc<Template>,
    /// Template for chats with tools, if it differs.
    tool_use: Option<Arc<Template>>,
    path: PathBuf,
    source: String,
    tool_use_source: Option<String>,
    /// Texts that templates refer to, such as `bos_token`.
    tokens: Vec<(String, String)>,
    /// Default variables, which those of a call replace.
    variables: Map<String, Json>,
    /// Roles whose content the template reads only as a list of parts.
    roles_in_parts: OnceLock<Vec<&'static str>>,
    /// Flag that ends a rendering.
    stop: Option<Arc<AtomicBool>>,
}

/// The text of a chat and the parts of it that the template marks as the assistant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Text of the chat.
    pub text: String,
    /// Byte ranges of the template's `{% generation %}` blocks, in text order. Empty if it has none.
    pub generation: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the tokens at the beginning and end of a text.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        let named = |(name, token): (&str, Option<&str>)| Some((name.to_owned(), token?.to_owned()));
        let tokens = tokens.into_iter().filter_map(named).collect();
        Self::compile(Path::new("chat template"), &[(DEFAULT.to_owned(), source.to_owned())], tokens)
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`. `None` if there is none.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let settings_path = folder.join("tokenizer_config.json");
        let settings = read_json(&settings_path)?.unwrap_or(Json::Null);
        let tokens = SpecialTokens::read(folder)?.named();
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
            // Their names in the format, one of them misspelled.
            ("sep_token", "tokenizer.ggml.seperator_token_id"),
            ("sep_token", "tokenizer.ggml.separator_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
            ("cls_token", "tokenizer.ggml.cls_token_id"),
            ("mask_token", "tokenizer.ggml.mask_token_id"),
        ] {
            if let Some(text) = gguf.token_id(key)?.and_then(|id| texts.get(id as usize)) {
                tokens.push((name.to_owned(), (*text).to_owned()));
            }
        }
        Self::compile(gguf.path(), &named, tokens).map(Some)
    }

    fn compile(path: &Path, named: &[(String, String)], tokens: Vec<(String, String)>) -> Result<Self> {
        let Some((_, source)) = named.iter().find(|(name, _)| name == DEFAULT).or(named.first()) else {
            return Err(Error::file_at(
                path,
                "chat_template",
                "is neither a template nor a list of named ones",
            ));
        };
        let compile = |source: &str| {
            Template::new(source).map(Arc::new).map_err(|TemplateError { message, line }| {
                let place = format!("chat template, line {}", line.unwrap_or(1));
                Error::file_at(path, place, format!("does not compile: {message}"))
            })
        };
        let tool_use_source =
            named.iter().find(|(name, _)| name == TOOL_USE).map(|(_, source)| source.clone());
        let tool_use = tool_use_source.as_deref().map(compile).transpose()?;
        let (template, source) = (compile(source)?, source.clone());
        let (path, variables, roles_in_parts) = (path.to_owned(), Map::new(), OnceLock::new());
        Ok(Self {
            template,
            tool_use,
            path,
            source,
            tool_use_source,
            tokens,
            variables,
            stop: None,
            roles_in_parts,
        })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns `true` if the template's text contains a word, such as the name of a variable.
    pub fn mentions(&self, word: &str) -> bool {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let templates = [Some(&self.source), self.tool_use_source.as_ref()];
        templates.into_iter().flatten().any(|source| source.split(|c| !is_part(c)).any(|part| part == word))
    }

    /// Returns messages whose content has the form that the template reads.
    ///
    /// Templates of vision models, such as SmolVLM's, read content as a list of parts and drop a text. For those, a text
    /// becomes a list with one part, `{"type": "text", "text": …}`.
    pub fn readable<'m>(&self, messages: &'m [Message]) -> Cow<'m, [Message]> {
        let roles = self.roles_in_parts.get_or_init(|| self.find_roles_in_parts());
        let is_dropped = |message: &Message| {
            message["content"].is_string()
                && message["role"].as_str().is_some_and(|role| roles.contains(&role))
        };
        if !messages.iter().any(is_dropped) {
            return Cow::Borrowed(messages);
        }
        let adapted = messages
            .iter()
            .map(|message| if is_dropped(message) { in_parts(message) } else { message.clone() });
        Cow::Owned(adapted.collect())
    }

    fn find_roles_in_parts(&self) -> Vec<&'static str> {
        const TEXT: &str = "Zq7ContentSentinelQz";
        let message = |role: &str| json!({"role": role, "content": TEXT});
        let mut roles = Vec::new();
        for role in ["user", "assistant", "system", "tool"] {
            let before: &[&str] = match role {
                "assistant" => &["user"],
                "tool" => &["user", "assistant"],
                _ => &[],
            };
            let after: &[&str] = if role == "system" { &["user"] } else { &[] };
            let writes = |is_in_parts: bool| {
                let other = |other: &&str| {
                    let text = json!({"role": other, "content": "a"});
                    if roles.contains(other) { in_parts(&text) } else { text }
                };
                let own = if is_in_parts { in_parts(&message(role)) } else { message(role) };
                let chat: Vec<Json> =
                    before.iter().map(other).chain([own]).chain(after.iter().map(other)).collect();
                // Some templates print a list as Python does.
                let is_written = |text: String| text.contains(TEXT) && !text.contains("text': ");
                self.render(&chat, None, false).is_ok_and(is_written)
            };
            if !writes(false) && writes(true) {
                roles.push(role);
            }
        }
        roles
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

    /// Sets a flag that ends renderings: one that runs when the flag is set returns an error soon after.
    ///
    /// A rendering ends by itself too, after a bounded number of steps and within bounded memory; the flag lets a
    /// program obey its user at once.
    pub fn with_stop(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Returns `true` if the template marks the assistant's words by `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        let templates = [Some(&self.template), self.tool_use.as_ref()];
        templates.into_iter().flatten().any(|template| template.has_generation_blocks())
    }

    /// Returns `true` if the template that renders a chat, with tools or without, marks the assistant's words.
    pub fn marks_answers(&self, tools: bool) -> bool {
        self.tool_use.as_ref().filter(|_| tools).unwrap_or(&self.template).has_generation_blocks()
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
        let template = self.tool_use.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.template);
        if !template.has_generation_blocks() {
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
        let template = self.tool_use.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.template);
        let tokens = self.tokens.iter().map(|(name, text)| (name.as_str(), Json::from(text.as_str())));
        let further =
            self.variables.iter().chain(variables).map(|(name, value)| (name.as_str(), value.clone()));
        let fixed = [
            ("messages", messages.iter().map(prepared).collect()),
            ("tools", tools.cloned().unwrap_or(Json::Null)),
            ("add_generation_prompt", Json::Bool(add_generation_prompt)),
        ];
        let variables: Vec<(&str, Json)> =
            [("documents", Json::Null)].into_iter().chain(tokens).chain(further).chain(fixed).collect();
        template.render(&variables, marks, self.stop.clone()).map_err(|TemplateError { message, line }| {
            Error::file_at(&self.path, format!("chat template, line {}", line.unwrap_or(1)), message)
        })
    }
}

/// A message whose text is a list with one part.
fn in_parts(message: &Message) -> Message {
    let mut message = message.clone();
    message["content"] = json!([{"type": "text", "text": message["content"]}]);
    message
}

/// Two private-use characters that the text does not contain.
fn unused_marks(text: &str) -> [char; 2] {
    let marks = '\u{f0000}'..='\u{ffffd}';
    let used: HashSet<char> = text.chars().filter(|c| marks.contains(c)).collect();
    let mut unused = marks.filter(|mark| !used.contains(mark));
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

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))
}
