//! A dispatch as it is encoded at every run: pipeline, bindings, sizes and grid, all fixed when a plan is compiled.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;

use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLBarrierScope, MTLBuffer, MTLComputeCommandEncoder, MTLSize};

use super::buffer::Raw;
use super::pipeline::Pipeline;

/// Where a tensor begins.
#[derive(Clone)]
pub(in crate::backend) enum Address {
    /// At a byte of the arena.
    Arena(usize),
    /// At a byte of a parameter's buffer.
    Fixed(Raw, usize),
    /// At a byte of what the caller gives: the number of an input, or behind them of an output. Only launches for another's
    /// encoder have such places.
    Given(usize, usize),
}

// SAFETY: a buffer may be used from any thread; its bytes are touched under the arena's lock only.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// So many bytes on.
    pub(in crate::backend) fn plus(&self, bytes: usize) -> Self {
        match self {
            Self::Arena(offset) => Self::Arena(offset + bytes),
            Self::Fixed(raw, offset) => Self::Fixed(raw.clone(), offset + bytes),
            Self::Given(index, offset) => Self::Given(*index, offset + bytes),
        }
    }

    /// The buffer and the byte in it.
    pub(in crate::backend) fn resolve<'a>(
        &'a self,
        arena: &'a Raw,
    ) -> (&'a ProtocolObject<dyn MTLBuffer>, usize) {
        match self {
            Self::Arena(offset) => (arena, *offset),
            Self::Fixed(raw, offset) => (raw, *offset),
            Self::Given(..) => unreachable!("plans of this backend have no direct inputs and outputs"),
        }
    }

    /// The first byte of the whole buffer.
    pub(super) fn start(&self) -> Self {
        match self {
            Self::Arena(_) => Self::Arena(0),
            Self::Fixed(raw, _) => Self::Fixed(raw.clone(), 0),
            Self::Given(index, _) => Self::Given(*index, 0),
        }
    }

    /// What identifies the buffer: 0 is the arena.
    pub(super) fn identity(&self) -> usize {
        match self {
            Self::Arena(_) => 0,
            Self::Fixed(raw, _) => {
                std::ptr::from_ref::<ProtocolObject<dyn MTLBuffer>>(raw).cast::<()>() as usize
            }
            // No object lies there.
            Self::Given(index, _) => usize::MAX - index,
        }
    }

    /// The byte in the buffer.
    pub(super) fn byte(&self) -> usize {
        match self {
            Self::Arena(offset) | Self::Fixed(_, offset) | Self::Given(_, offset) => *offset,
        }
    }
}

/// Bytes that a launch touches.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::backend) struct Span {
    buffer: usize,
    bytes: Range<usize>,
}

impl Span {
    pub(in crate::backend) fn new(address: &Address, bytes: usize) -> Self {
        let start = address.byte();
        Self { buffer: address.identity(), bytes: start..start + bytes }
    }

    pub(in crate::backend) fn meets(&self, other: &Self) -> bool {
        self.buffer == other.buffer
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

/// What a launch, or a call of Metal Performance Shaders, reads and writes.
#[derive(Default, Clone)]
pub(in crate::backend) struct Touches {
    pub(in crate::backend) reads: Vec<Span>,
    pub(in crate::backend) writes: Vec<Span>,
}

impl Touches {
    /// Whether anything is written to the buffer of an address.
    pub(super) fn writes_to(&self, address: &Address) -> bool {
        self.writes.iter().any(|span| span.buffer == address.identity())
    }

    /// Whether the two must not run at the same time.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let meet = |a: &[Span], b: &[Span]| a.iter().any(|x| b.iter().any(|y| x.meets(y)));
        meet(&self.writes, &other.writes)
            || meet(&self.writes, &other.reads)
            || meet(&self.reads, &other.writes)
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.reads.extend_from_slice(&other.reads);
        self.writes.extend_from_slice(&other.writes);
    }
}

/// What an argument of a kernel is bound to.
#[derive(Clone)]
pub(super) enum Binding {
    /// A buffer, from a byte on.
    Buffer(Address),
    /// Sizes and factors.
    Bytes(Vec<u8>),
    /// Nothing: the kernel's function constants leave it out.
    Nothing,
}

/// A dispatch.
pub(super) struct Launch {
    /// The operation that it is for.
    pub(super) op: &'static str,
    pub(super) pipeline: Pipeline,
    pub(super) bindings: Vec<Binding>,
    pub(super) groups: [usize; 3],
    pub(super) threads: [usize; 3],
    /// An earlier dispatch must be over before.
    pub(super) barrier: bool,
}

impl Launch {
    /// Encodes it. `previous` is the pipeline that is set already.
    pub(super) fn encode(
        &self,
        encoder: &ProtocolObject<dyn MTLComputeCommandEncoder>,
        arena: &Raw,
        previous: Option<&Pipeline>,
    ) {
        if self.barrier {
            encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
        if !previous.is_some_and(|previous| previous.same(&self.pipeline)) {
            encoder.setComputePipelineState(self.pipeline.raw());
        }
        for (index, binding) in self.bindings.iter().enumerate() {
            match binding {
                Binding::Buffer(address) => {
                    let (buffer, offset) = address.resolve(arena);
                    // SAFETY: the plan's places lie within their buffers, and the argument is of the tensor's type.
                    unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), offset, index) };
                }
                Binding::Bytes(bytes) => {
                    let start = NonNull::from(&bytes[..]).cast::<c_void>();
                    // SAFETY: the pointer is valid for the length; the bytes are copied.
                    unsafe { encoder.setBytes_length_atIndex(start, bytes.len(), index) };
                }
                Binding::Nothing => {}
            }
        }
        let size = |[width, height, depth]: [usize; 3]| MTLSize { width, height, depth };
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(self.groups), size(self.threads));
    }
}
