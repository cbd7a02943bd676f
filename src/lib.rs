//! LoRA fine-tuning and inference of transformer models: a graph engine with its own gradients.
//!
//! A step of a model, be it one token's decoding or forward, backward and update, is **recorded once and replayed**.
//! Recording ([`graph`]) makes a graph of operations ([`ops`]) with static shapes. The graph is differentiated,
//! rewritten into fewer and larger operations, and given a memory plan; a device ([`backend`]) compiles the plan, and
//! the compiled [`backend::Program`] is run again and again without allocating anything.
//!
//! ```
//! use metal_candle::backend::Device;
//! use metal_candle::graph::Graph;
//! use metal_candle::ops::UnaryFn;
//! use metal_candle::tensor::HostTensor;
//!
//! # fn main() -> metal_candle::Result<()> {
//! let device = Device::cpu(0)?;
//! let w = device.parameter("w", &HostTensor::from_slice(&[0.5_f32, -0.5], [1, 2])?, true)?;
//! let graph = Graph::new();
//! let x = graph.constant(HostTensor::from_slice(&[1.0_f32, 2.0], [1, 2])?);
//! let loss = x.linear(&graph.parameter(&w))?.unary(UnaryFn::Square)?.sum_all()?;
//! let gradient = graph.gradients(&loss, &[graph.parameter(&w)])?;
//! assert_eq!(device.eval(&gradient)?[0].as_slice::<f32>()?, [-1.0, -2.0]);
//! # Ok(())
//! # }
//! ```
//!
//! On top of it stand model files and the decoder ([`models`]), LoRA training in PEFT's formats ([`training`]) and
//! text generation ([`inference`]). An operation without a gradient between a trainable parameter and the loss is an
//! error that names it: no gradient vanishes in silence.
//!
//! # Where to begin
//!
//! - **You use candle.** [`CustomMetalOps`] gives its tensors fused softmax, norms, rotary embedding, attention, adapters and
//!   cross-entropy, on the CPU and on Metal, each with the backward that candle's own fused operations lack; a
//!   [`training::LoRALayer`] adapts a layer of your model. [`graph::Graph::candle`] and [`graph::LazyTensor::to_candle`]
//!   take tensors into a recording and out of it.
//! - **You fine-tune.** Open a model ([`models::ModelFiles`]), load it onto a device ([`models::Decoder`]) and hand it to a
//!   [`training::Trainer`]. The tool `metal-candle` does the same from a command line.
//! - **You generate text.** [`inference::Generator`] keeps a cache and streams; adapters are exchanged without loading the
//!   model again.
//! - **You want the engine.** Record with [`graph::Graph`], take gradients, compile with [`backend::Device`], replay.
//!
//! # Devices
//!
//! [`backend::Device::cpu`] runs anywhere. [`backend::Device::metal`] exists on Apple's systems with the feature
//! `custom-metal`, and uses Metal Performance Shaders where they are faster with the feature `mps`; both are default
//! features, and add nothing elsewhere. [`backend::Device::cuda`] runs the same kernels on NVIDIA's GPUs with the feature
//! `cuda`, also a default feature: the driver and the compiler NVRTC are loaded at run time, and a machine without them gets
//! an error that names what to install. [`backend::Device::reference`] runs the operations' definitions in f64 and is what
//! all others are measured by. The feature `async-exec` adds runs that a task awaits.
//!
//! # Memory
//!
//! Weights are in memory once: mapped files are used in place where dtype and device allow. All programs of a device share
//! one arena for what lives within a run; on the CPU inputs are read and outputs are written where the caller has them.

// The library never prints: whoever calls it decides what a person reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod atomic;
pub mod backend;
pub mod bench;
mod content_hash;
pub mod counts;
pub mod durable;
pub mod error;
pub mod graph;
pub mod inference;
pub mod models;
pub mod ops;
pub mod tensor;
pub mod training;

pub use backend::candle::{AttentionMask, CustomMetalOps};
pub use error::{Error, Result};

/// The examples of the README, which are tested as those of the documentation are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
