//! The CUDA backend: its kernels through the translator and NVRTC, which need no GPU, and models on a GPU beside the CPU.
//!
//! Tests of the GPU run where METAL_CANDLE_TEST_DEVICE is `cuda`, and those of SmolLM2 where METAL_CANDLE_MODEL names it; the
//! others are counted as skipped.
#![cfg(cuda)]

mod arguments;
mod kernels;
mod memory;
mod model;
#[path = "../test_device/mod.rs"]
mod test_device;
