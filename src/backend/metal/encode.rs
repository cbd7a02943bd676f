//! Encodes dispatches into Metal's compute encoders.

use std::ffi::c_void;
use std::ptr::NonNull;

use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLBarrierScope, MTLComputeCommandEncoder, MTLSize};

use super::memory::Memory;
use super::pipeline::Pipeline;
use crate::backend::gpu::command::Argument;

/// A dispatch with its pipeline, all fixed when a plan is compiled.
pub(super) struct EncodedDispatch {
    /// Name of the operation that it computes.
    pub(super) op: &'static str,
    pub(super) pipeline: Pipeline,
    pub(super) arguments: Vec<Argument>,
    pub(super) groups: [usize; 3],
    pub(super) threads: [usize; 3],
    /// True if an earlier dispatch must finish first.
    pub(super) barrier: bool,
}

/// Converts a size to Metal's.
pub(super) fn size([width, height, depth]: [usize; 3]) -> MTLSize {
    MTLSize { width, height, depth }
}

impl EncodedDispatch {
    /// Encodes the dispatch. `previous` is the pipeline that the encoder has.
    pub(super) fn encode(
        &self,
        encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>,
        memory: Memory<'_>,
        previous: Option<&Pipeline>,
    ) {
        if self.barrier {
            encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
        if !previous.is_some_and(|previous| previous.same(&self.pipeline)) {
            encoder.setComputePipelineState(self.pipeline.raw());
        }
        for (index, argument) in self.arguments.iter().enumerate() {
            match argument {
                Argument::Buffer(address) => {
                    let (buffer, offset) = memory.resolve(*address);
                    // SAFETY: the plan's addresses are within their buffers, and the argument has the tensor's type.
                    unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), offset, index) };
                }
                Argument::Bytes(bytes) => {
                    let start = NonNull::from(&bytes[..]).cast::<c_void>();
                    // SAFETY: the pointer is valid for the length; the bytes are copied.
                    unsafe { encoder.setBytes_length_atIndex(start, bytes.len(), index) };
                }
                Argument::Unbound => {}
            }
        }
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(self.groups), size(self.threads));
    }
}
