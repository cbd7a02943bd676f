//! Training data: JSON lines in mlx-lm's three formats, and the tokens and trained positions made of them.
//!
//! A line is `{"messages": [{"role", "content"}, …], "tools"?}`, `{"prompt", "completion"}` or `{"text"}`; other keys
//! are ignored. Prompt and completion become a chat of two messages where the model has a chat template.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::models::ModelFiles;
use crate::{Error, Result};

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Text as it is.
    Text(String),
    /// A question and its answer.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// A conversation.
    Chat {
        /// Objects with `role` and `content`.
        messages: Vec<Value>,
        /// Descriptions of functions that may be called.
        tools: Option<Value>,
    },
}

/// Which tokens are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainOn {
    /// Completions and the assistant's turns, with the token that ends them; of plain text everything.
    Completion,
    /// Every token but the first.
    All,
}

/// A sequence of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether the token at a position is to be predicted from those before it.
    pub supervised: Vec<bool>,
}

/// Examples, and what became of the rest.
#[derive(Debug, Clone)]
pub struct Examples {
    /// The sequences.
    pub examples: Vec<Example>,
    /// How many were cut to the greatest length.
    pub truncated: usize,
    /// How many were left out, because nothing to train is left of them.
    pub dropped: usize,
}

/// What turns text into tokens: a model's tokenizer and chat template.
pub trait Encoder {
    /// The tokens of a text; `special` adds those that begin and end a sequence.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>>;
    /// The text of a conversation; `None` if the model has no chat template.
    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>>;
    /// The token that ends a text.
    fn eos(&self) -> Option<u32>;
}

impl Encoder for ModelFiles {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, special)
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Option<String>> {
        self.chat_template
            .as_ref()
            .map(|template| template.render(messages, tools, generation_prompt))
            .transpose()
    }

    fn eos(&self) -> Option<u32> {
        self.tokenizer.eos_ids().first().copied()
    }
}

/// The files of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSet {
    /// What is trained on.
    pub train: PathBuf,
    /// What is validated on, if there is such a file.
    pub valid: Option<PathBuf>,
    /// What is held out, if there is such a file.
    pub test: Option<PathBuf>,
}

impl DataSet {
    /// Finds `train.jsonl`, `valid.jsonl` and `test.jsonl` in a folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
        let Some(train) = file("train.jsonl") else {
            return Err(Error::file(
                folder,
                "holds no train.jsonl; a data set is a folder with train.jsonl, valid.jsonl and test.jsonl",
            ));
        };
        Ok(Self { train, valid: file("valid.jsonl"), test: file("test.jsonl") })
    }
}

/// Reads a file of JSON lines. Empty lines are passed over; a broken line and a file without any are errors.
pub fn read_jsonl(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, "read", source))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut records = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let wrong = |message: String| Error::file_at(path, format!("line {}", index + 1), message);
        let line = std::str::from_utf8(line)
            .map_err(|_| wrong("is not UTF-8 text; save the file as UTF-8".into()))?;
        if !line.trim().is_empty() {
            records.push(record(line).map_err(wrong)?);
        }
    }
    if records.is_empty() {
        return Err(Error::file(path, "holds no examples; write one JSON object a line"));
    }
    Ok(records)
}

/// Reads a text file as one record.
pub fn read_text(path: &Path) -> Result<Record> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, "read", source))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::file_at(path, format!("byte {}", error.utf8_error().valid_up_to()), "is not UTF-8 text")
    })?;
    if text.trim().is_empty() {
        return Err(Error::file(path, "holds no text"));
    }
    Ok(Record::Text(text))
}

/// One line, or what is wrong with it.
fn record(line: &str) -> std::result::Result<Record, String> {
    const EXPECTED: &str =
        "expected {\"messages\": […]}, {\"prompt\": …, \"completion\": …} or {\"text\": …}";
    let value: Value = serde_json::from_str(line).map_err(|error| {
        format!("is no JSON object: {} at column {}; {EXPECTED}", cause(&error), error.column())
    })?;
    let text = |key: &str| match &value[key] {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("'{key}' is {}, must be a text", kind(other))),
    };
    if !value.is_object() {
        return Err(format!("is {}; {EXPECTED}", kind(&value)));
    }
    if value.get("prompt").is_some() && value.get("completion").is_some() {
        return Ok(Record::Completion { prompt: text("prompt")?, completion: text("completion")? });
    }
    if let Some(messages) = value.get("messages") {
        let Some(messages) = messages.as_array().filter(|messages| !messages.is_empty()) else {
            return Err("'messages' must be a list of at least one message".into());
        };
        for (index, message) in messages.iter().enumerate() {
            if !message["role"].is_string() {
                return Err(format!("message {} has no 'role'", index + 1));
            }
            if message.get("content").is_none() && message.get("tool_calls").is_none() {
                return Err(format!("message {} has no 'content'", index + 1));
            }
        }
        let tools = value.get("tools").filter(|tools| !tools.is_null()).cloned();
        return Ok(Record::Chat { messages: messages.clone(), tools });
    }
    if value.get("text").is_some() {
        return Ok(Record::Text(text("text")?));
    }
    let keys: Vec<&str> =
        value.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
    Err(format!("has the keys [{}]; {EXPECTED}", keys.join(", ")))
}

/// The error without its place, which is given as that of the file.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Turns records into sequences of at most `max_length` tokens. `path` is named in errors.
pub fn examples(
    records: &[Record],
    encoder: &dyn Encoder,
    train_on: TrainOn,
    max_length: usize,
    path: &Path,
) -> Result<Examples> {
    if max_length < 2 {
        return Err(Error::invalid("sequence length", format!("is {max_length}, must be 2 or more")));
    }
    let mut result = Examples { examples: Vec::new(), truncated: 0, dropped: 0 };
    for (index, record) in records.iter().enumerate() {
        let mut example = example(record, encoder, train_on).map_err(|error| match error {
            Error::File { .. } | Error::Io { .. } => error,
            other => Error::file_at(path, format!("example {}", index + 1), other.to_string()),
        })?;
        if example.tokens.len() > max_length {
            example.tokens.truncate(max_length);
            example.supervised.truncate(max_length);
            result.truncated += 1;
        }
        if example.supervised.iter().skip(1).any(|&supervised| supervised) {
            result.examples.push(example);
        } else {
            result.dropped += 1;
        }
    }
    if result.examples.is_empty() {
        let message = format!(
            "none of {} examples has a token to train within {max_length}; raise the length",
            records.len()
        );
        return Err(Error::file(path, message));
    }
    Ok(result)
}

fn example(record: &Record, encoder: &dyn Encoder, train_on: TrainOn) -> Result<Example> {
    let mut example = match record {
        Record::Text(text) => {
            let whole = 0..text.len();
            let mut example = marked(text, &[whole], true, encoder)?;
            end_with_eos(&mut example, encoder);
            example
        }
        Record::Completion { prompt, completion } => {
            let messages = [
                json!({"role": "user", "content": prompt}),
                json!({"role": "assistant", "content": completion}),
            ];
            match chat(&messages, None, encoder, train_on)? {
                Some(example) => example,
                None => {
                    let text = format!("{prompt}{completion}");
                    let completion = prompt.len()..text.len();
                    let mut example = marked(&text, std::slice::from_ref(&completion), true, encoder)?;
                    end_with_eos(&mut example, encoder);
                    example
                }
            }
        }
        Record::Chat { messages, tools } => {
            chat(messages, tools.as_ref(), encoder, train_on)?.ok_or_else(|| {
                Error::invalid("chat", "the model has no chat template; use prompt and completion, or text")
            })?
        }
    };
    if train_on == TrainOn::All {
        example.supervised.fill(true);
    }
    if let Some(first) = example.supervised.first_mut() {
        *first = false;
    }
    Ok(example)
}

/// Adds the token that ends a text, to be trained, unless the tokenizer did.
fn end_with_eos(example: &mut Example, encoder: &dyn Encoder) {
    let Some(eos) = encoder.eos() else { return };
    if example.tokens.last() != Some(&eos) {
        example.tokens.push(eos);
        example.supervised.push(true);
    }
}

/// A conversation: the assistant's turns are trained, each from the end of its generation prompt on.
fn chat(
    messages: &[Value],
    tools: Option<&Value>,
    encoder: &dyn Encoder,
    train_on: TrainOn,
) -> Result<Option<Example>> {
    let Some(whole) = encoder.render(messages, tools, false)? else { return Ok(None) };
    let turns = match train_on {
        TrainOn::All => Vec::new(),
        TrainOn::Completion => turns(&whole, messages, tools, encoder)?,
    };
    marked(&whole, &turns, false, encoder).map(Some)
}

/// The tokens of a text, those of the given ranges of bytes trained.
///
/// The text is encoded as a whole, as it is when a model reads it. Encoding its parts would give other tokens where
/// they meet: tokenizers join line breaks, and SentencePiece begins every text with a space.
fn marked(text: &str, ranges: &[Range<usize>], special: bool, encoder: &dyn Encoder) -> Result<Example> {
    let tokens = encoder.encode(text, special)?;
    let mut supervised = vec![false; tokens.len()];
    for range in ranges {
        let from = first_token_from(&tokens, text, range.start, special, encoder)?;
        let to = if range.end == text.len() {
            tokens.len()
        } else {
            first_token_from(&tokens, text, range.end, special, encoder)?
        };
        supervised[from..to.max(from)].fill(true);
    }
    Ok(Example { tokens, supervised })
}

/// The first token that begins at or after a place in the text. Where a token lies across it, that is the next one:
/// a model that was given the text up to there does not produce the token.
fn first_token_from(
    tokens: &[u32],
    text: &str,
    place: usize,
    special: bool,
    encoder: &dyn Encoder,
) -> Result<usize> {
    let mut front = encoder.encode(&text[..place], special)?;
    if special && encoder.eos().is_some() && front.last() == encoder.eos().as_ref() {
        front.pop();
    }
    let common = tokens.iter().zip(&front).take_while(|(a, b)| a == b).count();
    Ok(if common == front.len() { common } else { (common + 1).min(tokens.len()) })
}

/// Where the assistant's turns lie in the text of a conversation.
///
/// A turn begins where the messages before it end, rendered with a generation prompt, and ends where they end
/// rendered with it. Some templates (Qwen3's, which takes the thoughts out of earlier turns) render a turn otherwise
/// when others follow; there the place of its content decides, and the text that follows it when it is the last.
fn turns(
    whole: &str,
    messages: &[Value],
    tools: Option<&Value>,
    encoder: &dyn Encoder,
) -> Result<Vec<Range<usize>>> {
    let mut turns: Vec<Range<usize>> = Vec::new();
    for index in (0..messages.len()).filter(|&index| messages[index]["role"] == "assistant") {
        // Templates may refuse a beginning of a conversation that they accept as a whole.
        let rendered = |count: usize, prompt: bool| {
            encoder
                .render(&messages[..count], tools, prompt)
                .ok()
                .flatten()
                .filter(|text| whole.starts_with(text))
        };
        let start = rendered(index, true).map(|text| text.len());
        // What a template writes after the token that ends the turn (a line break) is not the assistant's.
        let end = rendered(index + 1, false).map(|text| text.trim_end().len());
        let turn = match (start, end) {
            (Some(start), Some(end)) => Some(start..end.max(start)),
            _ => by_content(whole, messages, index, tools, encoder)
                .map(|found| start.filter(|&start| start <= found.start).unwrap_or(found.start)..found.end),
        };
        let free_from = turns.last().map_or(0, |turn| turn.end);
        let Some(turn) = turn.filter(|turn| free_from <= turn.start && turn.start <= turn.end) else {
            let message = "the model's chat template changes earlier turns when later ones follow, so the assistant's turns \
                           cannot be told apart; train with --train-on all or with one turn an example";
            return Err(Error::invalid("chat", message));
        };
        turns.push(turn);
    }
    Ok(turns)
}

/// The content of a message with what ends it, found by rendering other content in its place.
fn by_content(
    whole: &str,
    messages: &[Value],
    index: usize,
    tools: Option<&Value>,
    encoder: &dyn Encoder,
) -> Option<Range<usize>> {
    // From a range of Unicode that is assigned to nothing.
    const MARK: &str = "\u{f0a1a}\u{f0a1b}";
    let mut changed = messages.to_vec();
    changed[index].as_object_mut()?.get_mut("content").filter(|content| content.is_string())?;
    changed[index]["content"] = MARK.into();
    let other = encoder.render(&changed, tools, false).ok()??;
    let (before, after) = other.split_once(MARK)?;
    let end = whole.len().checked_sub(after.len()).filter(|&end| before.len() <= end)?;
    if !whole.starts_with(before) || !whole.ends_with(after) {
        return None;
    }
    let last = encoder.render(&changed[..=index], tools, false).ok()??;
    let ending = last.split_once(MARK)?.1.trim_end();
    whole[end..].starts_with(ending).then(|| before.len()..end + ending.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as tokens, `<` … `>` one special token, the sum of its bytes; 1 begins a text and 2 ends it.
    struct Bytes {
        template: bool,
    }

    impl Encoder for Bytes {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            let mut tokens: Vec<u32> = if special { vec![1] } else { Vec::new() };
            let mut rest = text;
            while let Some(first) = rest.chars().next() {
                let len = if first == '<' { rest.find('>').unwrap() + 1 } else { first.len_utf8() };
                tokens.push(if len > 1 { 1000 + len as u32 } else { u32::from(first) });
                rest = &rest[len..];
            }
            Ok(tokens)
        }

        fn render(&self, messages: &[Value], _tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
            let turn = |m: &Value| {
                format!("<{}>{}<end>\n", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())
            };
            let mut text: String = messages.iter().map(turn).collect();
            if prompt {
                text.push_str("<assistant>");
            }
            Ok(self.template.then_some(text))
        }

        fn eos(&self) -> Option<u32> {
            Some(2)
        }
    }

    fn read(text: &str) -> Result<Vec<Record>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_jsonl(file.path())
    }

    fn trained(example: &Example) -> String {
        let chosen = example.tokens.iter().zip(&example.supervised).filter(|(_, s)| **s);
        chosen.map(|(&t, _)| if t < 256 { char::from_u32(t).unwrap() } else { '#' }).collect()
    }

    fn one(record: Record, template: bool, train_on: TrainOn) -> Example {
        let result = examples(&[record], &Bytes { template }, train_on, 1000, Path::new("x")).unwrap();
        result.examples[0].clone()
    }

    #[test]
    fn all_three_formats_are_read() {
        let text = "\u{feff}{\"text\": \"a\"}\n\n{\"prompt\":\"p\",\"completion\":\"c\",\"id\":3}\r\n\
                    {\"messages\":[{\"role\":\"user\",\"content\":\"u\"}],\"tools\":[]}";
        let records = read(text).unwrap();
        assert_eq!(records[0], Record::Text("a".into()));
        assert_eq!(records[1], Record::Completion { prompt: "p".into(), completion: "c".into() });
        assert!(matches!(&records[2], Record::Chat { messages, tools: Some(_) } if messages.len() == 1));
    }

    #[test]
    fn a_bad_line_is_named_with_its_number() {
        let good = "{\"text\": \"a\"}\n".repeat(16);
        let error = |line: &str| {
            let error = read(&format!("{good}{line}\n{good}")).unwrap_err().to_string();
            assert!(error.contains("(line 17)"), "{error}");
            error
        };
        assert!(
            error("{\"text\": \"a\"").contains("is no JSON object: EOF while parsing an object at column 12")
        );
        assert!(error("[1]").contains("is a list"));
        assert!(error("{\"text\": 5}").contains("'text' is a number, must be a text"));
        assert!(
            error("{\"instruction\": \"x\", \"output\": \"y\"}")
                .contains("has the keys [instruction, output]")
        );
        assert!(error("{\"messages\": []}").contains("at least one message"));
        assert!(error("{\"messages\": [{\"content\": \"x\"}]}").contains("message 1 has no 'role'"));
        assert!(read("\n\n").unwrap_err().to_string().contains("holds no examples"));
    }

    #[test]
    fn only_answers_are_trained_with_the_token_that_ends_them() {
        let pair = || Record::Completion { prompt: "hi".into(), completion: "yo".into() };
        assert_eq!(trained(&one(pair(), true, TrainOn::Completion)), "yo#");
        assert_eq!(trained(&one(pair(), false, TrainOn::Completion)), "yo\u{2}");
        assert_eq!(one(pair(), false, TrainOn::Completion).tokens[0], 1);
        assert_eq!(trained(&one(pair(), true, TrainOn::All)), "hi#\n#yo#\n");
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages =
            vec![turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")];
        let chat = || Record::Chat { messages: messages.clone(), tools: None };
        assert_eq!(trained(&one(chat(), true, TrainOn::Completion)), "b#d#");
        assert_eq!(trained(&one(Record::Text("abc".into()), true, TrainOn::Completion)), "abc\u{2}");
        let error =
            examples(&[chat()], &Bytes { template: false }, TrainOn::All, 99, Path::new("x")).unwrap_err();
        assert!(error.to_string().contains("(example 1): chat: the model has no chat template"));
    }

    /// Like SentencePiece: a mark before every text, words keep the space before them, line breaks go together.
    struct Pieces;

    impl Encoder for Pieces {
        fn encode(&self, text: &str, _special: bool) -> Result<Vec<u32>> {
            let text = if text.is_empty() { String::new() } else { format!(" {text}") };
            let mut pieces: Vec<String> = Vec::new();
            for c in text.chars() {
                let joins = |last: &String| match c {
                    ' ' | '[' => false,
                    '\n' => last.ends_with('\n'),
                    _ => !last.ends_with('\n') && !last.ends_with(']'),
                };
                match pieces.last_mut().filter(|last| joins(last)) {
                    Some(last) => last.push(c),
                    None => pieces.push(c.into()),
                }
            }
            Ok(pieces.iter().map(|piece| fnv(piece)).collect())
        }

        fn render(&self, messages: &[Value], _tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
            let turn = |m: &Value| {
                let content = m["content"].as_str().unwrap();
                if m["role"] == "user" { format!("[U] {content}\n") } else { format!("[A]{content}[E]") }
            };
            let text: String = messages.iter().map(turn).collect();
            Ok(Some(if prompt { text + "[A]" } else { text }))
        }

        fn eos(&self) -> Option<u32> {
            None
        }
    }

    fn fnv(text: &str) -> u32 {
        text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    #[test]
    fn the_tokens_are_those_of_the_whole_text() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages =
            vec![turn("user", "a b"), turn("assistant", " c d"), turn("user", "\ne"), turn("assistant", "f")];
        let whole = Pieces.render(&messages, None, false).unwrap().unwrap();
        let chat = Record::Chat { messages, tools: None };
        let made = examples(&[chat], &Pieces, TrainOn::Completion, 99, Path::new("x")).unwrap();
        let example = &made.examples[0];
        assert_eq!(example.tokens, Pieces.encode(&whole, false).unwrap());
        let trained: Vec<u32> =
            example.tokens.iter().zip(&example.supervised).filter(|(_, s)| **s).map(|(t, _)| *t).collect();
        assert_eq!(trained, [" c", " d", "[E]", "f", "[E]"].map(fnv));
    }

    #[test]
    fn a_token_across_the_border_belongs_to_the_prompt() {
        struct Plain;
        impl Encoder for Plain {
            fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
                Pieces.encode(text, special)
            }
            fn render(&self, _: &[Value], _: Option<&Value>, _: bool) -> Result<Option<String>> {
                Ok(None)
            }
            fn eos(&self) -> Option<u32> {
                Some(7)
            }
        }
        let pair = Record::Completion { prompt: "a\n".into(), completion: "\nb c".into() };
        let made = examples(&[pair], &Plain, TrainOn::Completion, 99, Path::new("x")).unwrap();
        let example = &made.examples[0];
        assert_eq!(example.tokens, [fnv(" a"), fnv("\n\n"), fnv("b"), fnv(" c"), 7]);
        assert_eq!(example.supervised, [false, false, true, true, true]);
    }

    /// Like Qwen3: the last answer gets an empty thought, which is gone when another turn follows.
    struct Thoughts {
        hides: bool,
    }

    impl Encoder for Thoughts {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            Ok(Bytes { template: true }.encode(text, special)?.split_off(usize::from(special)))
        }

        fn render(&self, messages: &[Value], _tools: Option<&Value>, prompt: bool) -> Result<Option<String>> {
            let mut text = String::new();
            for (index, message) in messages.iter().enumerate() {
                let last = index + 1 == messages.len();
                let content = message["content"].as_str().unwrap();
                text += &match message["role"].as_str().unwrap() {
                    "assistant" if last => format!("<a>.{content}<end>\n"),
                    "assistant" if self.hides => "<a>?<end>\n".to_owned(),
                    "assistant" => format!("<a>{content}<end>\n"),
                    _ => format!("<u>{content}<end>\n"),
                };
            }
            Ok(Some(if prompt { text + "<a>" } else { text }))
        }

        fn eos(&self) -> Option<u32> {
            None
        }
    }

    #[test]
    fn earlier_turns_are_found_where_the_template_rewrites_them() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages =
            vec![turn("user", "b"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")];
        let made = |hides: bool, train_on: TrainOn| {
            let chat = Record::Chat { messages: messages.clone(), tools: None };
            examples(&[chat], &Thoughts { hides }, train_on, 99, Path::new("x"))
        };
        assert_eq!(trained(&made(false, TrainOn::Completion).unwrap().examples[0]), "b#.d#");
        let error = made(true, TrainOn::Completion).unwrap_err().to_string();
        assert!(error.contains("(example 1)") && error.contains("--train-on all"), "{error}");
        // The advice holds.
        assert_eq!(trained(&made(true, TrainOn::All).unwrap().examples[0]), "b#\n#?#\n#c#\n#.d#\n");
    }

    #[test]
    fn long_examples_are_cut_and_those_without_a_trained_token_are_left_out() {
        let pair = |prompt: &str, completion: &str| Record::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        let records = [pair("a", "bcdef"), pair("abcdefgh", "x"), pair("a", "b")];
        let encoder = Bytes { template: false };
        let result = examples(&records, &encoder, TrainOn::Completion, 5, Path::new("x")).unwrap();
        assert_eq!((result.examples.len(), result.truncated, result.dropped), (2, 2, 1));
        assert_eq!(trained(&result.examples[0]), "bcd");
        let error = examples(&records[1..2], &encoder, TrainOn::Completion, 5, Path::new("x")).unwrap_err();
        assert!(error.to_string().contains("none of 1 examples"));
    }
}
