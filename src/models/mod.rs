//! Model files: configuration, weights, tokenizer, chat template.
//!
//! [`ModelFiles::open`] reads a Hugging Face folder or a GGUF file. What differs between the families of
//! models is in [`ModelConfig`].

#![forbid(unsafe_code)]

mod chat_template;
mod config;
mod convert;
mod decoder;
mod exact_json;
mod files;
mod gguf;
mod gguf_split;
mod gguf_tokenizer;
mod hf_config;
mod jinja;
mod messages;
mod read;
mod shards;
mod special_tokens;
mod tokenizer;
mod tokenizer_file;
mod unwind;
mod weights;

pub use chat_template::{ChatTemplate, Message, Rendered};
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use exact_json::{big_integer, parse_json, write_json};
pub use files::ModelFiles;
pub use gguf::Gguf;
pub(crate) use read::check_fetched;
pub use shards::files_of_model;
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::Weights;

#[cfg(test)]
mod tests;
pub use decoder::{AdapterParameters, Decoder, KvCache, LinearModule};
