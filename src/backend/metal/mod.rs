//! The driver for Apple's GPUs: device, buffers, pipelines and command buffers of Metal.
//!
//! The commands of a lowered plan ([`super::gpu`]) are encoded anew at every run into as few command buffers as their bound
//! allows, and waited for once. One arena of shared storage holds all intermediate results. Buffers are hazard-tracked, so
//! Metal orders encoders of the queue (Metal Performance Shaders open encoders of their own); within an encoder, which is
//! concurrent, the lowering has placed barriers.
//!
//! Sources: Apple, "Resource synchronization", MTLCommandBuffer, MTLComputeCommandEncoder, MTLSharedEvent.

pub mod device_info;

#[cfg(metal)]
mod archive;
#[cfg(metal)]
pub(super) mod backend;
#[cfg(metal)]
pub(super) mod buffer;
#[cfg(metal)]
pub(super) mod candle;
#[cfg(metal)]
pub(super) mod commands;
#[cfg(metal)]
pub(super) mod device;
#[cfg(metal)]
mod encode;
#[cfg(metal)]
pub(super) mod error;
#[cfg(metal)]
pub(super) mod kernel_compiler;
#[cfg(metal)]
pub(super) mod memory;
#[cfg(metal)]
mod pipeline;
#[cfg(metal)]
pub(super) mod replay;
#[cfg(metal)]
pub(super) mod system;
