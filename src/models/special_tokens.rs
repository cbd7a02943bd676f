//! Special tokens of a Hugging Face folder, from every file that can name them, and the post-processor that adds
//! them around a text.
//!
//! The rules are those of transformers. `tokenizer_config.json` names the tokens. Folders without its
//! `added_tokens_decoder` are older: in them `special_tokens_map.json` wins, and `added_tokens.json` lists the tokens
//! that were added to the vocabulary.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use super::read::read_json;
use crate::{Error, Result};

const SETTINGS: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// Keys under which a single special token is named.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys under which further special tokens are listed.
const FURTHER: [&str; 3] =
    ["additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"];

/// Tokenizer classes whose `add_bos_token` and `add_eos_token` replace the post-processor of `tokenizer.json`, each with
/// the value of `add_bos_token` if only the other flag is given.
const CLASSES_WITH_FLAGS: [(&str, bool); 5] = [
    ("LlamaTokenizer", true),
    ("CodeLlamaTokenizer", true),
    ("GemmaTokenizer", true),
    ("CohereTokenizer", true),
    ("GPTNeoXTokenizer", false),
];

/// The special tokens that the files beside `tokenizer.json` name.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    folder: PathBuf,
    settings: Value,
    map: Value,
    /// The contents of `added_tokens.json`.
    added: Value,
}

impl SpecialTokens {
    /// Reads the files of a folder. Each of them may be absent.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let json = |name: &str| -> Result<Value> {
            let path = folder.join(name);
            match read_json(&path)? {
                None => Ok(Value::Null),
                Some(value) if value.is_object() => Ok(value),
                Some(_) => Err(Error::file(path, "must be a JSON object")),
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            settings: json(SETTINGS)?,
            map: json(MAP)?,
            added: json(ADDED)?,
        })
    }

    /// The token of a role, such as `bos_token`.
    pub(super) fn token(&self, role: &str) -> Option<String> {
        self.value(role).and_then(content).map(str::to_owned)
    }

    /// The tokens that have a role, and those to which a model gives a name of its own, such as `image_token`.
    pub(super) fn named(&self) -> Vec<(String, String)> {
        let mut named: Vec<(String, String)> =
            ROLES.iter().filter_map(|role| Some(((*role).to_owned(), self.token(role)?))).collect();
        for key in ["extra_special_tokens", "model_specific_special_tokens"] {
            let own = self.value(key).and_then(Value::as_object).into_iter().flatten();
            named.extend(own.filter_map(|(name, token)| Some((name.clone(), content(token)?.to_owned()))));
        }
        named
    }

    fn value(&self, key: &str) -> Option<&Value> {
        let (first, second) =
            if self.is_older() { (&self.map, &self.settings) } else { (&self.settings, &self.map) };
        // A key that is null says that there is no such token.
        first.get(key).or_else(|| second.get(key)).filter(|value| !value.is_null())
    }

    fn is_older(&self) -> bool {
        self.settings.get("added_tokens_decoder").is_none()
    }

    /// Adds the tokens of these files to a tokenizer: special ones are found whole in a text and left out when ids are
    /// decoded. Replaces the post-processor where the flags of `tokenizer_config.json` ask for it.
    pub(super) fn apply(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let special = self.special();
        let existing = tokenizer.get_added_tokens_decoder();
        let is_special = |id: u32| existing.get(&id).is_some_and(|token| token.special);
        // The id that the tokenizer gives to the next token that is not in its vocabulary.
        let after_added = existing.keys().max().map_or(0, |last| last.saturating_add(1));
        let mut next = after_added.max(tokenizer.get_vocab_size(false) as u32);
        let mut new = Vec::new();
        for (id, token) in self.added_tokens(&special)? {
            let known = tokenizer.token_to_id(&token.content);
            let actual = known.unwrap_or(next);
            if actual != id {
                let found = match known {
                    Some(_) => format!("is {actual} in tokenizer.json, which is used"),
                    None => format!("becomes {actual}, the next free id, as in transformers"),
                };
                let file = self.folder.join(if self.is_older() { ADDED } else { SETTINGS });
                tracing::warn!("{}: token '{}' has id {id} here, but {found}", file.display(), token.content);
            }
            next = next.saturating_add(u32::from(known.is_none()));
            if !existing.contains_key(&actual) || token.special && !is_special(actual) {
                new.push(token);
            }
        }
        let mut unknown = Vec::new();
        for content in special {
            if new.iter().any(|token| token.content == content) {
                continue;
            }
            match tokenizer.token_to_id(&content) {
                Some(id) if is_special(id) => continue,
                Some(_) => {}
                None => {
                    tracing::warn!(
                        "{}: special token '{content}' is not in tokenizer.json; it becomes {next}, as in transformers, \
                         and is useless unless the model was trained with it",
                        self.folder.display()
                    );
                    next += 1;
                    unknown.push(content.clone());
                }
            }
            new.push(AddedToken::from(content, true).normalized(false));
        }
        let failed = |e| Error::file(&self.folder, format!("special tokens cannot be added: {e}"));
        tokenizer.add_tokens(new).map_err(failed)?;
        self.apply_flags(tokenizer, &unknown)
    }

    /// The texts of all tokens that have a role or are listed as special, in the order in which transformers adds them.
    fn special(&self) -> Vec<String> {
        let mut found: Vec<String> = ROLES.iter().filter_map(|role| self.token(role)).collect();
        for key in FURTHER {
            match self.value(key) {
                Some(Value::Array(list)) => found.extend(list.iter().filter_map(content).map(str::to_owned)),
                Some(Value::Object(map)) => found.extend(map.values().filter_map(content).map(str::to_owned)),
                _ => {}
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|token| !token.is_empty() && seen.insert(token.clone()));
        found
    }

    /// The tokens that were added to the vocabulary, by id.
    fn added_tokens(&self, special: &[String]) -> Result<BTreeMap<u32, AddedToken>> {
        let mut tokens = BTreeMap::new();
        if let Some(decoder) = self.settings.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                let (Ok(id), Some(content)) = (id.parse(), content(token)) else {
                    let place = format!("added_tokens_decoder, '{id}'");
                    let message = "must be the id of a token with its content";
                    return Err(Error::file_at(self.folder.join(SETTINGS), place, message));
                };
                let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
                let is_special = flag("special") || special.iter().any(|token| token == content);
                let added = AddedToken::from(content, is_special)
                    .lstrip(flag("lstrip"))
                    .rstrip(flag("rstrip"))
                    .single_word(flag("single_word"))
                    .normalized(flag("normalized"));
                tokens.insert(id, added);
            }
            return Ok(tokens);
        }
        for (content, id) in self.added.as_object().into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                let message = format!("has id {id}, which must be a whole number from 0 on");
                return Err(Error::file_at(self.folder.join(ADDED), format!("token '{content}'"), message));
            };
            let is_special = special.iter().any(|token| token == content);
            tokens.insert(id, AddedToken::from(content.clone(), is_special).normalized(!is_special));
        }
        Ok(tokens)
    }

    /// Replaces the post-processor if the tokenizer's class obeys `add_bos_token` and `add_eos_token`. Tokens that no
    /// other file knows are not added to every text.
    fn apply_flags(&self, tokenizer: &mut Tokenizer, unknown: &[String]) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        let flag = |key: &str| match self.settings.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(Error::file_at(&path, key, format!("is {other}, must be true or false"))),
        };
        let class = self.settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let class = class.strip_suffix("Fast").unwrap_or(class);
        let (bos, eos) = (flag("add_bos_token")?, flag("add_eos_token")?);
        let default = CLASSES_WITH_FLAGS.iter().find(|(name, _)| *name == class);
        let Some((_, default)) = default.filter(|_| bos.is_some() || eos.is_some()) else { return Ok(()) };
        let wanted = |role: &str, add: bool| -> Result<Option<(String, u32)>> {
            if !add {
                return Ok(None);
            }
            let Some(token) = self.token(role) else {
                tracing::warn!(
                    "{} (add_{role}): is true, but there is no {role}; nothing is added",
                    path.display()
                );
                return Ok(None);
            };
            match tokenizer.token_to_id(&token).filter(|_| !unknown.contains(&token)) {
                Some(id) => Ok(Some((token, id))),
                None => {
                    let message = format!("is '{token}', which is not in the vocabulary; correct it");
                    Err(Error::file_at(&path, role, message))
                }
            }
        };
        let before = wanted("bos_token", bos.unwrap_or(*default))?;
        let after = wanted("eos_token", eos.unwrap_or(false))?;
        tokenizer.with_post_processor(Some(around(before, after)?));
        Ok(())
    }
}

/// A post-processor that puts these tokens before and after a text.
pub(super) fn around(
    before: Option<(String, u32)>,
    after: Option<(String, u32)>,
) -> Result<PostProcessorWrapper> {
    let item = |kind: &str, id: &str, type_id: u32| json!({kind: {"id": id, "type_id": type_id}});
    let piece = |sequence: &str, type_id: u32| {
        let special = |token: &Option<(String, u32)>| {
            token
                .as_ref()
                .map(|(name, _)| item("SpecialToken", name, type_id))
                .into_iter()
                .collect::<Vec<_>>()
        };
        [special(&before), vec![item("Sequence", sequence, type_id)], special(&after)].concat()
    };
    let (single, second) = (piece("A", 0), piece("B", 1));
    let tokens: serde_json::Map<String, Value> = [&before, &after]
        .into_iter()
        .flatten()
        .map(|(name, id)| (name.clone(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    let pair = [single.clone(), second].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": tokens,
    });
    serde_json::from_value(template)
        .map_err(|e| Error::invalid("tokenizer", format!("its first and last tokens cannot be added: {e}")))
}

/// The text of a token that is given as text or as an object with its `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
