//! Text to token ids and back, from `tokenizer.json` or from the metadata of a GGUF file.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::gguf::Gguf;
use super::gguf_tokenizer;
use super::read::{check_fetched, read_json};
use super::special_tokens::SpecialTokens;
use super::tokenizer_file;
use super::unwind::guarded;
use crate::{Error, Result};

/// Special tokens that end a turn or a text in the formats that models are trained with. A model that writes
/// one of them is done, whatever its configuration calls the end of text.
const TURN_ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
];

/// So many damaged characters at the end of a text are damage, not one character that is still incomplete:
/// that has at most 3 bytes yet.
const MAX_DAMAGED: usize = 8;

/// A tokenizer with its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// File that it was read from.
    path: PathBuf,
    bos: Option<String>,
    eos: Option<String>,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder, and the special tokens that `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json` name.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            let advice = if folder.join("tokenizer.model").is_file() || folder.join("vocab.json").is_file() {
                "; save it again with AutoTokenizer.from_pretrained(…).save_pretrained(…) to get one"
            } else {
                "; is the download complete?"
            };
            return Err(Error::file(folder, format!("has no tokenizer.json{advice}")));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        check_fetched(&path, &bytes)?;
        tokenizer_file::check(&path, &bytes)?;
        let special = SpecialTokens::read(folder)?;
        let read = || {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
                .map_err(|e| Error::file(&path, format!("is no tokenizer that can be read: {e}")))?;
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| Error::file(&path, e.to_string()))?;
            special.apply(&mut inner)?;
            Ok(inner)
        };
        let inner = guarded(read).map_err(|panic| damaged(&path, "be read", &panic))??;
        let (bos, eos) = (special.token("bos_token"), special.token("eos_token"));
        let mut tokenizer = Self { inner, path: path.clone(), bos, eos, eos_ids: Vec::new() };
        for name in ["generation_config.json", "config.json"] {
            tokenizer.add_eos_of(&folder.join(name))?;
        }
        tokenizer.add_turn_ends();
        Ok(tokenizer)
    }

    /// Adds the ids that a configuration calls the end of a text. One that is no token cannot come and is left out.
    fn add_eos_of(&mut self, path: &Path) -> Result<()> {
        let json = read_json(path)?.unwrap_or(Value::Null);
        let ids = match json.get("eos_token_id") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
        };
        for id in ids {
            match id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| self.token(*id).is_some()) {
                Some(id) => self.add_eos(id),
                None => {
                    tracing::warn!("{} (eos_token_id): {id} is not a token and is ignored", path.display())
                }
            }
        }
        Ok(())
    }

    /// Rebuilds the tokenizer that a GGUF file describes.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let built = guarded(|| gguf_tokenizer::build(gguf));
        let built = built.map_err(|panic| damaged(gguf.path(), "be built", &panic))??;
        let mut tokenizer = Self {
            bos: built.bos.and_then(|id| built.inner.id_to_token(id)),
            eos: built.eos.first().and_then(|id| built.inner.id_to_token(*id)),
            inner: built.inner,
            path: gguf.path().to_owned(),
            eos_ids: built.eos,
        };
        tokenizer.add_turn_ends();
        Ok(tokenizer)
    }

    fn add_turn_ends(&mut self) {
        if let Some(id) = self.eos.as_deref().and_then(|eos| self.id(eos)) {
            self.add_eos(id);
        }
        let special = self.inner.get_added_tokens_decoder();
        for name in TURN_ENDS {
            if let Some(id) = self.id(name).filter(|id| special.get(id).is_some_and(|token| token.special)) {
                self.add_eos(id);
            }
        }
    }

    fn add_eos(&mut self, id: u32) {
        if !self.eos_ids.contains(&id) {
            self.eos_ids.push(id);
        }
    }

    /// The ids of a text. Special tokens written out in the text, such as `<|im_start|>`, become their ids.
    /// With `special`, what the model expects around a text (often a first token) is added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.encoding(text, special)?.get_ids().to_vec())
    }

    /// The ids of a text that the model is to continue: what the model expects before a text is added, and never
    /// what ends one, after which the model would begin another text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, true)?;
        let added = encoding.get_special_tokens_mask();
        Ok(match added.iter().rposition(|added| *added == 0) {
            Some(last) => encoding.get_ids()[..=last].to_vec(),
            // Of an empty text only the added tokens are there.
            None => encoding.get_ids().iter().copied().filter(|id| !self.eos_ids.contains(id)).collect(),
        })
    }

    fn encoding(&self, text: &str, special: bool) -> Result<tokenizers::Encoding> {
        guarded(|| self.inner.encode_fast(text, special))
            .map_err(|panic| damaged(&self.path, "encode a text", &panic))?
            .map_err(|e| Error::invalid("encode", format!("the tokenizer refused the text: {e}")))
    }

    /// The tokens that decoding leaves out, with their texts.
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (u32, String)> {
        let tokens = self.inner.get_added_tokens_decoder().into_iter();
        tokens.filter(|(_, token)| token.special).map(|(id, token)| (id, token.content))
    }

    /// The tokenizer as a `tokenizer.json`.
    pub fn to_json(&self) -> Result<String> {
        guarded(|| self.inner.to_string(true))
            .map_err(|panic| damaged(&self.path, "be written", &panic))?
            .map_err(|e| Error::invalid("tokenizer", format!("cannot be written as JSON: {e}")))
    }

    /// The text of ids, without special tokens. Ids beyond the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true))
            .map_err(|panic| damaged(&self.path, "decode ids", &panic))?
            .map_err(|e| Error::invalid("decode", format!("the tokenizer refused the ids: {e}")))
    }

    /// Decodes ids as they come, one at a time.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), shown: 0 }
    }

    /// Ids after which generation ends, the model's own first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token at the beginning of a text, if the model has one.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The token at the end of a text, if the model has one.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, special ones among them.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the tokens that are never split, special ones among them, with their ids.
    pub fn added_tokens(&self) -> Vec<(String, u32)> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().map(|(id, token)| (token.content, id)).collect()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("eos_ids", &self.eos_ids)
            .finish()
    }
}

/// Turns ids into text one at a time; text comes out once its characters are complete.
#[derive(Debug, Clone)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the last text that came out, as context, and those that are still to be shown.
    ids: Vec<u32>,
    /// How many of `ids` are context.
    shown: usize,
}

impl DecodeStream<'_> {
    /// Adds an id; the text that is complete by it, if any.
    ///
    /// A token's text can depend on the tokens before it (a space that is dropped at the beginning of a text),
    /// so new text is what a decoding with context has more than one of the context alone.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        self.text(MAX_DAMAGED)
    }

    /// What is left, though its last character may be incomplete.
    pub fn finish(mut self) -> Result<Option<String>> {
        self.text(1)
    }

    /// The new text, unless fewer damaged characters than `damaged` at its end may still become complete.
    fn text(&mut self, damaged: usize) -> Result<Option<String>> {
        let context = self.tokenizer.decode(&self.ids[..self.shown])?;
        let whole = self.tokenizer.decode(&self.ids)?;
        let at_end = whole.chars().rev().take_while(|c| *c == '\u{fffd}').count();
        if whole.len() <= context.len() || (1..damaged).contains(&at_end) {
            return Ok(None);
        }
        // The context was complete text, hence a prefix, unless damaged bytes were shown as such.
        let new = whole.get(context.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(Some(new).filter(|text| !text.is_empty()))
    }
}

/// Error for a tokenizer that the `tokenizers` crate panics over.
fn damaged(path: &Path, action: &str, panic: &str) -> Error {
    let message = format!("the tokenizer cannot {action} ({panic}); the file is damaged: fetch it again");
    Error::file_at(path, "tokenizer", message)
}
