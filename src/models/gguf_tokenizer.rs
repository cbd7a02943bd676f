//! Tokenizers rebuilt from the metadata of a GGUF file.
//!
//! `tokenizer.ggml.model` says which kind: `gpt2` is byte-level BPE with its list of merges, `llama` is
//! SentencePiece BPE, whose merges follow from the scores. How a text is split before BPE is only named there
//! (`tokenizer.ggml.pre`); the patterns are those of the models' own `tokenizer.json`.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::gguf::Gguf;
use super::special_tokens::around;
use crate::tensor::try_with_capacity;
use crate::{Error, Result};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// Kinds of tokens in `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

/// A tokenizer and its special tokens.
pub(super) struct Built {
    pub(super) inner: tokenizers::Tokenizer,
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
}

/// Builds the tokenizer.
pub(super) fn build(gguf: &Gguf) -> Result<Built> {
    let source = Source::read(gguf)?;
    let (mut inner, bos_by_default) = match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => source.byte_level()?,
        Some("llama") => (source.sentence_piece()?, true),
        Some(other) => {
            let message = format!(
                "'{other}' is not supported; supported are gpt2 and llama. Use the Hugging Face folder instead"
            );
            return Err(source.error("tokenizer.ggml.model", message));
        }
        None => return Err(source.error("tokenizer.ggml.model", "is missing; the file has no tokenizer")),
    };
    inner
        .add_tokens(source.added_tokens())
        .map_err(|e| source.error("tokenizer.ggml.tokens", format!("special tokens cannot be added: {e}")))?;

    let bos = source.first_or_last("bos_token_id", 1)?;
    let eos = source.first_or_last("eos_token_id", 2)?;
    let turn_ends = [source.id("eot_token_id")?, source.id("eom_token_id")?];
    let before = source.added("add_bos_token", bos_by_default, bos)?;
    let after = source.added("add_eos_token", false, eos)?;
    if before.is_some() || after.is_some() {
        inner.with_post_processor(Some(around(before, after)?));
    }
    let eos = eos.into_iter().chain(turn_ends.into_iter().flatten()).collect();
    Ok(Built { inner, bos, eos })
}

struct Source<'a> {
    gguf: &'a Gguf,
    tokens: Vec<&'a str>,
    /// One for each token.
    types: Vec<i64>,
}

impl<'a> Source<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf
            .texts(key)?
            .filter(|tokens| !tokens.is_empty())
            .ok_or_else(|| Error::file_at(gguf.path(), key, "is missing; the file has no tokenizer"))?;
        let key = "tokenizer.ggml.token_type";
        let types = gguf.integers(key)?.unwrap_or_else(|| vec![token_type::NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let message =
                format!("has {} entries for {} tokens; the file is damaged", types.len(), tokens.len());
            return Err(Error::file_at(gguf.path(), key, message));
        }
        Ok(Self { gguf, tokens, types })
    }

    fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::file_at(self.gguf.path(), key, message)
    }

    /// The id under a key, which must be a token's.
    fn id(&self, key: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{key}");
        match self.gguf.token_id(&key)? {
            Some(id) if id as usize >= self.tokens.len() => {
                let message =
                    format!("is {id}, but there are {} tokens; the file is damaged", self.tokens.len());
                Err(self.error(&key, message))
            }
            id => Ok(id),
        }
    }

    /// The id of a first or last token. SentencePiece files without the key have it at its usual place.
    fn first_or_last(&self, key: &str, usual: u32) -> Result<Option<u32>> {
        let is_absent = !self.gguf.has(&format!("tokenizer.ggml.{key}"));
        let is_sentence_piece = self.gguf.text("tokenizer.ggml.model")? == Some("llama");
        let is_control = self.types.get(usual as usize) == Some(&token_type::CONTROL);
        if is_absent && is_sentence_piece && is_control { Ok(Some(usual)) } else { self.id(key) }
    }

    /// The token that a flag adds to every text.
    fn added(&self, flag: &str, default: bool, id: Option<u32>) -> Result<Option<(String, u32)>> {
        let key = format!("tokenizer.ggml.{flag}");
        let asked = self.gguf.flag(&key)?;
        if asked == Some(true) && id.is_none() {
            let path = self.gguf.path().display();
            tracing::warn!("{path} ({key}): is true, but the file names no such token; nothing is added");
        }
        let id = id.filter(|_| asked.unwrap_or(default));
        Ok(id.map(|id| (self.tokens[id as usize].to_owned(), id)))
    }

    fn vocab(&self) -> Vocab {
        self.tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect()
    }

    /// Tokens that are found in a text before it is split.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let found = self.tokens.iter().zip(&self.types).filter_map(|(token, kind)| match *kind {
            token_type::UNKNOWN | token_type::CONTROL => Some((*token, true)),
            token_type::USER_DEFINED => Some((*token, false)),
            _ => None,
        });
        found.map(|(token, special)| AddedToken::from(token, special).normalized(false)).collect()
    }

    /// Byte-level BPE, and whether a text begins with the first token unless the file says otherwise.
    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        let pre = self.gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
        if pre == "default" {
            tracing::warn!(
                "{} (tokenizer.ggml.pre): does not say how the model splits a text, so it is split as by GPT-2, which \
                 may give other tokens than the model was trained with; convert the model again with a current \
                 llama.cpp, or use the Hugging Face folder",
                self.gguf.path().display()
            );
        }
        let split = |pattern: &str| -> Result<PreTokenizerWrapper> {
            let split =
                Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
                    .map_err(|e| self.error("tokenizer.ggml.pre", format!("pattern of '{pre}': {e}")))?;
            let steps = vec![split.into(), ByteLevel::new(false, true, false).into()];
            Ok(PreTokenizers::new(steps).into())
        };
        let gpt2 = ByteLevel::new(false, true, true);
        let mut normalizer = None;
        // In models with `ignore_merges` a word that is a token becomes that token, whatever the merges say.
        let (pre_tokenizer, ignore_merges, bos) = match pre {
            "gpt-2" | "gpt2" | "default" => (gpt2.into(), false, false),
            "smollm" => {
                (PreTokenizers::new(vec![Digits::new(true).into(), gpt2.into()]).into(), false, false)
            }
            "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3)?, true, true),
            "qwen2" | "deepseek-r1-qwen" => {
                normalizer = Some(NormalizerWrapper::NFC(NFC));
                (split(QWEN2)?, false, false)
            }
            "tekken" => (split(TEKKEN)?, true, true),
            other => {
                return Err(self.error(
                    "tokenizer.ggml.pre",
                    format!(
                        "'{other}' is not supported; use the Hugging Face folder, which has a tokenizer.json"
                    ),
                ));
            }
        };
        let bpe = BPE::builder()
            .vocab_and_merges(self.vocab(), self.merges()?)
            .ignore_merges(ignore_merges)
            .build()
            .map_err(|e| self.error("tokenizer.ggml.merges", e.to_string()))?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer
            .with_normalizer(normalizer)
            .map_err(|e| self.error("tokenizer.ggml.pre", e.to_string()))?
            .with_pre_tokenizer(Some(pre_tokenizer))
            .with_decoder(Some(ByteLevel::new(false, true, true)));
        Ok((tokenizer, bos))
    }

    /// The merges, all of whose parts and results are tokens.
    fn merges(&self) -> Result<Vec<(String, String)>> {
        let key = "tokenizer.ggml.merges";
        let merges = self.gguf.texts(key)?.ok_or_else(|| self.error(key, "is missing"))?;
        let known: HashMap<&str, ()> = self.tokens.iter().map(|token| (*token, ())).collect();
        let mut pairs = try_with_capacity(merges.len(), || {
            format!("{} merges of {}", merges.len(), self.gguf.path().display())
        })?;
        for (rank, merge) in merges.into_iter().enumerate() {
            let error = |message: &str| self.error(key, format!("merge {rank}, '{merge}', {message}"));
            let (left, right) = merge.split_once(' ').ok_or_else(|| error("is no pair"))?;
            let joined = format!("{left}{right}");
            if [left, right, &joined].into_iter().any(|token| !known.contains_key(token)) {
                return Err(error("is not made of tokens; the file is damaged"));
            }
            pairs.push((left.to_owned(), right.to_owned()));
        }
        Ok(pairs)
    }

    /// SentencePiece BPE.
    fn sentence_piece(&self) -> Result<tokenizers::Tokenizer> {
        let key = "tokenizer.ggml.scores";
        let scores = self.gguf.reals(key)?.ok_or_else(|| self.error(key, "is missing"))?;
        if scores.len() != self.tokens.len() {
            let message =
                format!("has {} entries for {} tokens; the file is damaged", scores.len(), self.tokens.len());
            return Err(self.error(key, message));
        }
        let mut builder = BPE::builder().vocab_and_merges(self.vocab(), self.merges_by_score(&scores));
        builder = builder.byte_fallback(true).fuse_unk(true);
        let unknown = self
            .id("unknown_token_id")?
            .or_else(|| self.types.iter().position(|kind| *kind == token_type::UNKNOWN).map(|id| id as u32));
        if let Some(unknown) = unknown {
            builder = builder.unk_token(self.tokens[unknown as usize].to_owned());
        }
        let bpe = builder.build().map_err(|e| self.error("tokenizer.ggml.tokens", e.to_string()))?;
        let replace = |from: &str, to: &str| {
            Replace::new(from, to).map_err(|e| self.error("tokenizer.ggml.model", e.to_string()))
        };
        let space_first = self.gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders = vec![
            replace(SPACE, " ")?.into(),
            tokenizers::decoders::byte_fallback::ByteFallback::new().into(),
            tokenizers::decoders::fuse::Fuse::new().into(),
        ];
        if space_first {
            normalizers.push(Prepend::new(SPACE.to_owned()).into());
            decoders.push(tokenizers::decoders::strip::Strip::new(' ', 1, 0).into());
        }
        normalizers.push(replace(" ", SPACE)?.into());
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer
            .with_normalizer(Some(Normalizers::new(normalizers)))
            .map_err(|e| self.error("tokenizer.ggml.model", e.to_string()))?
            .with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(decoders)));
        Ok(tokenizer)
    }

    /// Every way to put a token together from two others: the better-scored tokens first, and of one token
    /// the ways with the longer left part first, as transformers orders them.
    fn merges_by_score(&self, scores: &[f32]) -> Vec<(String, String)> {
        let is_normal = |id: &usize| self.types[*id] == token_type::NORMAL;
        let normal: HashMap<&str, usize> =
            (0..self.tokens.len()).filter(is_normal).map(|id| (self.tokens[id], id)).collect();
        let mut found = Vec::new();
        for id in (0..self.tokens.len()).filter(is_normal) {
            let token = self.tokens[id];
            let chars = token.chars().count();
            for (left_chars, (at, _)) in token.char_indices().enumerate().skip(1) {
                let (left, right) = token.split_at(at);
                if normal.contains_key(left) && normal.contains_key(right) {
                    found.push((scores[id], left_chars, chars - left_chars, left, right));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        found.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect()
    }
}
