//! LoRA fine-tuning and inference of transformer models.

pub mod backend;
pub mod error;
pub mod graph;
pub mod inference;
pub mod models;
pub mod ops;
pub mod tensor;
pub mod training;

pub use error::{Error, Result};
