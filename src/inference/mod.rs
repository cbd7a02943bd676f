//! Generating text: caches, sampling, the generator.

#![forbid(unsafe_code)]

mod generator;
mod sampling;

pub use generator::{Finish, GenerateOptions, Generation, Generator};
pub use sampling::{Sampler, SamplingOptions};
