//! LoRA training: which modules are adapted, data and batches, the optimizer, the loop with its checkpoints.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod batches;
pub mod checkpoint;
pub mod data;
mod evaluate;
mod exact;
pub mod lora;
mod lora_layer;
mod loss;
mod merge;
pub mod metrics;
mod optimizer;
pub mod scheduler;
mod tensors;
mod trainer;

pub use adapter::{Adapter, AdapterModule};
pub use data::{Columns, DataSet, Encoder, Example, Examples, Record, Row, TrainOn};
pub use evaluate::{Evaluation, evaluate, windows, write_logits};
pub use exact::inexact_answers;
pub use lora::{LoraConfig, LoraModule, Targets};
pub use lora_layer::LoRALayer;
pub use merge::{MergeReport, merge};
pub use optimizer::OptimizerOptions;
pub use scheduler::{Schedule, ScheduleKind};
pub use trainer::{Estimate, Event, StepDone, Summary, TrainOptions, Trainer};
