//! Generating text: caches, sampling, the generator.

mod generator;
mod sampling;

pub use generator::{Finish, GenerateOptions, Generation, Generator};
pub use sampling::{Sampler, SamplingOptions};
