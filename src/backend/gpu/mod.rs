//! What all GPU backends share: the kernels, and the lowering of a plan to dispatches with arguments, grids and barriers.
//!
//! Nothing here depends on the system. `lower::lower` turns a plan into commands, which are plain data; a
//! `driver::Driver` compiles kernels, allocates memory, and runs the commands. `backend/metal/` contains the driver for
//! Apple's GPUs, and [`recording`] one without a device, for tests of what is launched.

#![cfg_attr(
    not(metal),
    allow(dead_code, reason = "a driver that runs commands reads what this build only records")
)]

pub mod chip;
pub mod recording;

pub(super) mod address;
pub(super) mod command;
pub(super) mod cost;
pub(super) mod driver;
pub(super) mod kernel;
pub(super) mod kernel_files;
pub(super) mod library;
pub(super) mod lower;
pub(super) mod op;
pub(super) mod slabs;

#[cfg(test)]
mod tests;

mod lora_slots;
mod multi_tensor;
mod strided;

mod accumulate;
mod adamw;
mod attention;
mod attention_grad;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod epilogue;
mod gemv;
mod global_norm;
mod kv_write;
mod layer_norm;
mod layout;
mod lora;
mod matmul;
mod quant_matmul;
mod reduce;
mod rms_norm;
mod rope;
mod sample;
mod silu_mul;
mod softmax;
mod top_k;
