//! Configuration files of `train`: TOML or YAML, with our keys or those of mlx-lm, axolotl, PEFT and transformers.
//!
//! Every key is used, refused by name, or reported as not used; none is dropped without a word. Keys may be written with
//! `-` or `_`.

mod axolotl;
mod keys;
mod mlx;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::aliases;
use crate::failure::{Failure, nearest};
use crate::model_source::expand_home;
use crate::settings::TrainFlags;

/// Settings of a configuration file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    pub(crate) flags: TrainFlags,
    /// Sentences about keys that have no effect here.
    pub(crate) notes: Vec<String>,
}

impl Config {
    /// Makes paths of the file mean what they meant where it was written. A relative path that does not exist as seen from
    /// the current folder is one as seen from the file's. The settings of a run write into the folder that they are in,
    /// also after it was moved or copied, if `follows` is set.
    pub(crate) fn settle_paths(&mut self, file: &Path, follows: bool) {
        let folder = file.parent().unwrap_or(Path::new(""));
        let found = |text: &str| {
            let beside = folder.join(text);
            let is_seen = Path::new(text).exists() || !beside.exists();
            if is_seen { text.to_owned() } else { beside.display().to_string() }
        };
        let flags = &mut self.flags;
        flags.model = flags.model.as_deref().map(found);
        flags.data = flags.data.as_deref().map(found);
        flags.adapter = flags.adapter.as_deref().map(|path| PathBuf::from(found(&path.to_string_lossy())));
        let is_run = file.file_name().is_some_and(|name| name == RUN_SETTINGS)
            && RUN_FILES.iter().any(|name| folder.join(name).exists());
        let Some(out) = flags.out.clone().filter(|_| follows && is_run) else { return };
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        if real(&out).is_none() || real(&out) != real(here) {
            self.notes.push(format!(
                "{}: names {} as the run's folder; the run goes on in {}, where the file is",
                file.display(),
                out.display(),
                here.display()
            ));
        }
        flags.out = Some(here.to_owned());
    }
}

/// The file of a run's settings, and what else is in the folder of a run.
const RUN_SETTINGS: &str = "run.toml";
const RUN_FILES: [&str; 3] = ["checkpoints", "adapter_config.json", "metrics.jsonl"];

/// A file whose keys are being read.
struct Reader<'a> {
    shown: String,
    text: &'a str,
    flags: TrainFlags,
    /// Key of the file that gave each setting, and its value.
    sources: BTreeMap<String, (String, Value)>,
    notes: Vec<String>,
}

/// Reason why a key cannot be used, and advice.
type Refusal = (String, String);

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config, Failure> {
    let shown = path.display().to_string();
    if path.is_dir() {
        return Err(Failure::input(
            format!("{shown}: is a folder, not a configuration file"),
            "pass a data set's folder as --data, a model's as --model",
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::input(format!("{shown}: cannot read: {e}"), "pass an existing TOML or YAML file to --config")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let ending = path.extension().map(|e| e.to_ascii_lowercase()).unwrap_or_default();
    let is_yaml = ending == "yaml" || ending == "yml" || ending == "json";
    let entries = if is_yaml { yaml(&shown, text)? } else { toml(&shown, text)? };
    let mut reader =
        Reader { shown, text, flags: TrainFlags::default(), sources: BTreeMap::new(), notes: Vec::new() };
    for (key, value) in &entries {
        reader.entry(key, value, &entries)?;
    }
    if is_yaml && mlx::is_own(&entries) {
        reader.defaults_of_mlx(&entries)?;
    }
    reader.finish()
}

fn toml(shown: &str, text: &str) -> Result<Map<String, Value>, Failure> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(String::new(), |span| {
            format!(" (line {})", text[..span.start.min(text.len())].matches('\n').count() + 1)
        });
        if error.message().starts_with("duplicate key") {
            let from = error.span().map_or(0, |span| span.start.min(text.len()));
            let key = text.get(from..).unwrap_or_default().split(['=', ']', '\n']).next().unwrap_or_default();
            return given_twice(&format!("{shown}{line}"), key.trim_matches(['[', ' ', '"', '\'']));
        }
        let advice = "write one `key = value` on each line; a YAML file must end with .yaml or .yml";
        Failure::input(format!("{shown}{line}: is not valid TOML: {}", error.message()), advice)
    })
}

fn given_twice(place: &str, key: &str) -> Failure {
    Failure::input(format!("{place}: '{key}' is given twice"), "keep one of them")
}

fn yaml(shown: &str, text: &str) -> Result<Map<String, Value>, Failure> {
    let options = serde_saphyr::options! { with_snippet: false };
    let value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(String::new(), |place| format!(" (line {})", place.line()));
        let reason = error.to_string();
        if let Some((_, rest)) = reason.split_once("duplicate mapping key: ") {
            return given_twice(&format!("{shown}{line}"), rest.split(',').next().unwrap_or(rest));
        }
        Failure::input(
            format!("{shown}{line}: is not valid YAML: {error}"),
            "write one `key: value` on each line",
        )
    })?;
    match value {
        Value::Object(entries) => Ok(entries),
        Value::Null => Ok(Map::new()),
        _ => Err(Failure::input(
            format!("{shown}: has no keys at its top level"),
            "write one `key: value` on each line, for example `rank: 16`",
        )),
    }
}

impl Reader<'_> {
    /// Reads one key. A key without a value says nothing.
    fn entry(&mut self, key: &str, value: &Value, all: &Map<String, Value>) -> Result<(), Failure> {
        if value.is_null() {
            return self.check_finite(key);
        }
        let refused =
            |(cause, advice): Refusal| Failure::input(format!("{}: {cause}", self.place(key)), advice);
        let name = key.replace('_', "-");
        // The epochs decide, as without the key.
        if name == "max-steps" && value.as_f64().is_some_and(|steps| steps <= 0.0) {
            return Ok(());
        }
        if let Some(entries) = value.as_object().filter(|entries| is_section(&name, value, entries, all)) {
            return entries.iter().try_for_each(|(key, value)| self.entry(key, value, entries));
        }
        if mlx::applies(&name) {
            let found = mlx::read(&name, value, all).map_err(refused)?;
            return self.take(key, found);
        }
        if axolotl::applies(&name, value, all) {
            let found = axolotl::read(&name, value).map_err(refused)?;
            return self.take(key, found);
        }
        if let Some(known) = keys::find(&name) {
            let found = known.read(&name, value).map_err(refused)?;
            return self.take(key, found);
        }
        let setting = match aliases::flag_of(&name, "train") {
            Some(alias) if !is_setting(&name) => alias.flag.to_owned(),
            _ => name,
        };
        self.set(key, &setting, value.clone())
    }

    /// Refuses nan and infinity, which TOML and YAML have and JSON has not: they arrive as no value at all.
    fn check_finite(&self, key: &str) -> Result<(), Failure> {
        let line = self.line_of(key).map(|(_, line)| line).unwrap_or_default();
        let value = line.split_once([':', '=']).map_or("", |(_, value)| value).trim().to_ascii_lowercase();
        let plain = value.trim_start_matches(['+', '-', '.', '"', '\'']);
        if plain.starts_with("nan") || plain.starts_with("inf") {
            let cause = format!("{}: is not a finite number", self.place(key));
            return Err(Failure::input(
                cause,
                "write a number in digits, or leave the key out for its default",
            ));
        }
        Ok(())
    }

    /// Sets what a file of mlx-lm leaves out as mlx-lm does, and says so.
    fn defaults_of_mlx(&mut self, all: &Map<String, Value>) -> Result<(), Failure> {
        const SAME: [&[&str]; 3] =
            [&["steps", "iters", "epochs"], &["layers", "num-layers"], &["warmup", "warmup-ratio"]];
        let mut used = Vec::new();
        for (words, setting, value) in mlx::defaults(all, self.flags.rank) {
            let same = SAME.into_iter().find(|same| same.contains(&setting)).unwrap_or(&[]);
            if self.sources.contains_key(setting) || same.iter().any(|name| self.sources.contains_key(*name))
            {
                continue;
            }
            self.set(words, setting, value)?;
            used.push(words);
        }
        if !used.is_empty() {
            self.notes.push(format!(
                "{}: is a file of mlx-lm, so what it leaves out has mlx-lm's default values: {}",
                self.shown,
                used.join(", ")
            ));
        }
        if used.contains(&"mask_prompt: false") {
            self.notes.push(format!(
                "{}: prompts are trained, too, as mlx-lm does; set mask_prompt to true to train the answers only",
                self.shown
            ));
        }
        Ok(())
    }

    fn take(&mut self, key: &str, found: Found) -> Result<(), Failure> {
        self.notes.extend(found.note.map(|note| format!("{}: {note}", self.place(key))));
        for (setting, value) in found.settings {
            self.set(key, setting, value)?;
        }
        Ok(())
    }

    /// Takes a value for one of our settings.
    fn set(&mut self, key: &str, setting: &str, value: Value) -> Result<(), Failure> {
        // A shell would have expanded it on a command line.
        let value = match value.as_str().filter(|_| PATHS.contains(&setting)) {
            Some(path) => expand_home(path).display().to_string().into(),
            None => value,
        };
        if let Some((other, earlier)) = self.sources.get(setting) {
            if *earlier == value {
                return Ok(());
            }
            return Err(Failure::input(
                format!("{}: says {value} about {setting}, but '{other}' says {earlier}", self.place(key)),
                "keep one of them",
            ));
        }
        let parsed = parsed(setting, &value).map_err(|message| self.refuse(key, &message, &value))?;
        if let Some(number) = given_number(&value) {
            crate::settings::ranges::check(setting, number)
                .map_err(|(cause, advice)| Failure::input(format!("{}: {cause}", self.place(key)), advice))?;
        }
        let parsed = parsed.in_our_words().map_err(|(_, message)| {
            let (cause, advice) = message.split_once("; ").unwrap_or((&message, "correct that value"));
            Failure::input(format!("{}: {cause}", self.place(key)), advice)
        })?;
        self.flags = std::mem::take(&mut self.flags).or(parsed);
        self.sources.insert(setting.to_owned(), (key.to_owned(), value));
        Ok(())
    }

    fn refuse(&self, key: &str, message: &str, value: &Value) -> Failure {
        let place = self.place(key);
        if !message.starts_with("unknown field") {
            let range = if value.as_f64().is_some_and(|number| number < 0.0) {
                "use a number from 0 on"
            } else {
                "see `metal-candle train --help` for what the flag of this name takes"
            };
            return Failure::input(format!("{place}: {message}"), range);
        }
        let cause = format!("{place}: is not a setting");
        let name = key.replace('_', "-");
        if let Some((tool, advice)) = aliases::foreign_flag(&name) {
            return Failure::input(format!("{cause} here, though {tool} has it"), advice);
        }
        let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        let advice = match nearest(&name, known.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => "the keys are the names of the flags in `metal-candle train --help`".to_owned(),
        };
        Failure::input(cause, advice)
    }

    /// `file (line 3): 'key'`.
    fn place(&self, key: &str) -> String {
        match self.line_of(key) {
            Some((index, _)) => format!("{} (line {}): '{key}'", self.shown, index + 1),
            None => format!("{}: '{key}'", self.shown),
        }
    }

    /// The line that defines a key, with its index.
    fn line_of(&self, key: &str) -> Option<(usize, &str)> {
        let defines = |line: &str| {
            let line = line.trim_start().trim_start_matches(['"', '\'', '{', '[']).trim_start_matches('"');
            let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'']).trim_start());
            rest.is_some_and(|rest| rest.starts_with([':', '=', '.', ']']))
        };
        self.text.lines().enumerate().find(|(_, line)| defines(line))
    }

    fn finish(mut self) -> Result<Config, Failure> {
        let given = |name: &str| self.sources.get(name).map(|(key, _)| key.clone());
        for (one, other) in [("steps", "epochs"), ("iters", "epochs"), ("warmup", "warmup-ratio")] {
            if let (Some(one), Some(other)) = (given(one), given(other)) {
                self.notes
                    .push(format!("{}: '{other}' is not used, because '{one}' is given too", self.shown));
            }
        }
        for (one, other) in [("steps", "iters"), ("layers", "num-layers")] {
            if let (Some(one), Some(other)) = (given(one), given(other)) {
                return Err(Failure::input(
                    format!("{}: '{one}' and '{other}' contradict each other", self.shown),
                    "keep one of them",
                ));
            }
        }
        if self.flags.warmup.is_some() {
            self.flags.warmup_ratio = None;
        }
        Ok(Config { flags: self.flags, notes: self.notes })
    }
}

/// Meaning of another tool's key.
#[derive(Debug, Default)]
struct Found {
    settings: Vec<(&'static str, Value)>,
    note: Option<String>,
}

impl Found {
    /// It says what happens anyway.
    fn nothing() -> Self {
        Self::default()
    }

    fn setting(name: &'static str, value: impl Into<Value>) -> Self {
        Self { settings: vec![(name, value.into())], note: None }
    }

    fn note(text: impl Into<String>) -> Self {
        Self { settings: Vec::new(), note: Some(text.into()) }
    }
}

/// Settings that are paths.
const PATHS: [&str; 4] = ["model", "data", "out", "adapter"];

/// Returns true for a named group of settings, such as `[lora]` with `rank = 8` below it.
fn is_section(name: &str, value: &Value, entries: &Map<String, Value>, all: &Map<String, Value>) -> bool {
    let has_reader = mlx::applies(name) && !matches!(name, "optimizer" | "optim")
        || axolotl::applies(name, value, all)
        || keys::find(name).is_some()
        || matches!(name, "rank-pattern" | "alpha-pattern");
    let is_known = |key: &String| {
        let key = key.replace('_', "-");
        is_setting(&key) || keys::find(&key).is_some() || aliases::flag_of(&key, "train").is_some()
    };
    !has_reader && entries.keys().any(is_known)
}

fn is_setting(name: &str) -> bool {
    !parsed(name, &Value::Null).is_err_and(|message| message.starts_with("unknown field"))
}

/// One setting, from a value as the file's format has it: numbers may be written as text, lists as lists.
fn parsed(setting: &str, value: &Value) -> Result<TrainFlags, String> {
    let attempt = |value: Value| {
        let entries = Map::from_iter([(setting.to_owned(), value)]);
        serde_json::from_value::<TrainFlags>(Value::Object(entries)).map_err(|error| error.to_string())
    };
    let first = match attempt(value.clone()) {
        Ok(flags) => return Ok(flags),
        Err(message) if message.starts_with("unknown field") => return Err(message),
        Err(message) => message,
    };
    let other = match value {
        Value::String(text) => text.trim().parse::<f64>().ok().and_then(number),
        Value::Number(found) => {
            let whole = found.as_f64().filter(|f| f.fract() == 0.0 && found.is_f64()).and_then(number);
            whole.or_else(|| Some(Value::String(found.to_string())))
        }
        Value::Array(items) => list(items),
        Value::Object(entries) => pairs(entries),
        _ => None,
    };
    match other.map(attempt) {
        Some(Ok(flags)) => Ok(flags),
        _ => Err(first),
    }
}

/// The number that a value is, also one in text.
fn given_number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A number as JSON has it, whole if it is.
fn number(value: f64) -> Option<Value> {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Some(Value::from(value as i64));
    }
    serde_json::Number::from_f64(value).map(Value::Number)
}

/// `["q_proj", "v_proj"]` as `q_proj,v_proj`.
fn list(items: &[Value]) -> Option<Value> {
    let texts = items.iter().map(|item| match item {
        Value::String(text) if !text.contains(',') => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    Some(Value::String(texts.collect::<Option<Vec<_>>>()?.join(",")))
}

/// `{"down_proj": 4}` as `down_proj=4`.
fn pairs(entries: &Map<String, Value>) -> Option<Value> {
    let texts = entries.iter().map(|(name, value)| Some(format!("{name}={}", value.as_f64()?)));
    Some(Value::String(texts.collect::<Option<Vec<_>>>()?.join(",")))
}

#[cfg(test)]
mod tests;
