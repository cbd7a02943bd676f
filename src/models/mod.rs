//! Model files: configuration, weights, tokenizer, chat template.
//!
//! [`ModelFiles::open`] reads a Hugging Face folder or a GGUF file. What differs between the families of
//! models is in [`ModelConfig`].

mod config;
mod convert;
mod gguf;
mod gguf_tokenizer;
mod hf_config;
mod tokenizer;
mod weights;

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use gguf::Gguf;
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::Weights;
