//! The driver for NVIDIA's GPUs: device, memory, kernels and graphs of CUDA.
//!
//! The kernels are those of [`super::gpu`]: their Metal source is translated to CUDA C++ and compiled at run time for the
//! device's architecture. The launches of a lowered plan are recorded once into a CUDA graph, and each run copies the inputs,
//! replays that graph and copies the outputs. Nothing of CUDA is needed to build; a machine without a driver or without
//! the compiler gets an error that says what is missing.
//!
//! Sources: NVIDIA, "CUDA Driver API", "NVRTC", "CUDA C++ Programming Guide".

pub mod device_info;

#[cfg(cuda)]
mod backend;
#[cfg(cuda)]
pub(super) mod compiler;
#[cfg(cuda)]
mod device;
#[cfg(cuda)]
mod error;
#[cfg(cuda)]
mod graph;
#[cfg(cuda)]
mod memory;
#[cfg(cuda)]
mod module;
#[cfg(cuda)]
mod nvrtc;
#[cfg(cuda)]
mod preprocess;
#[cfg(cuda)]
mod replay;
#[cfg(all(test, cuda))]
mod tests;
#[cfg(cuda)]
mod translate;

#[cfg(cuda)]
pub(super) use backend::Cuda;
#[cfg(cuda)]
pub(super) use device::has_gpu;
