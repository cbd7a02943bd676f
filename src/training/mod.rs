//! LoRA training: which modules are adapted, data and batches, the optimizer, the loop with its checkpoints.

#![forbid(unsafe_code)]

pub mod adapter;
mod adapter_tensors;
mod base_name;
pub mod batches;
pub mod checkpoint;
pub mod data;
mod divergence;
mod ended;
mod estimate;
mod evaluate;
mod exact;
pub mod lora;
mod lora_layer;
mod loss;
mod merge;
mod merge_companions;
mod merge_folder;
pub mod metrics;
mod mlx_adapter;
mod optimizer;
mod pace;
mod peft_config;
mod run_folder;
mod run_settings;
pub mod scheduler;
mod tensors;
mod trainer;

pub use adapter::{Adapter, AdapterModule, BaseCopy};
pub use data::{Columns, DataSet, Encoder, Example, Examples, Record, Row, TrainOn};
pub use divergence::LossWatch;
pub use ended::EndedRun;
pub use estimate::Estimate;
pub use evaluate::{Evaluation, evaluate, windows, write_logits};
pub use exact::{Miss, inexact_answers};
pub use lora::{LoraConfig, LoraModule, Targets};
pub use lora_layer::LoRALayer;
pub use merge::{MergeReport, merge, merge_until};
pub use optimizer::OptimizerOptions;
pub use run_folder::RunFolder;
pub use scheduler::{Schedule, ScheduleKind};
pub use trainer::{Event, StepDone, Summary, TrainOptions, Trainer};
