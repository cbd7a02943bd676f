//! Generating text: caches, sampling, the generator.

#![forbid(unsafe_code)]

#[cfg(feature = "async-exec")]
mod asynchronous;
mod generator;
mod sampling;

#[cfg(feature = "async-exec")]
pub use asynchronous::{AsyncGenerator, TextStream};
pub use generator::{Finish, GenerateOptions, Generation, Generator};
pub use sampling::{Sampler, SamplingOptions};
