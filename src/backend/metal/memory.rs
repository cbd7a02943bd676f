//! Metal buffers by the addresses of a lowered plan.

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_metal::MTLBuffer;

use crate::backend::gpu::address::Address;

/// A Metal buffer.
pub(in crate::backend) type Raw = Retained<ProtocolObject<dyn MTLBuffer>>;

/// The Metal buffer of each allocation of a plan.
pub(super) struct Buffers(Vec<Raw>);

// SAFETY: a buffer may be used from any thread; its bytes are accessed under the arena's lock only.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

impl Buffers {
    pub(super) fn new(raw: Vec<Raw>) -> Self {
        Self(raw)
    }

    pub(super) fn raw(&self) -> &[Raw] {
        &self.0
    }
}

/// The buffers that the addresses of a plan refer to.
#[derive(Clone, Copy)]
pub(in crate::backend) struct Memory<'a> {
    pub(in crate::backend) arena: &'a Raw,
    /// The buffer of each allocation.
    pub(in crate::backend) allocations: &'a [Raw],
}

impl<'a> Memory<'a> {
    /// Returns the buffer of an address and the byte offset in it.
    pub(in crate::backend) fn resolve(&self, address: Address) -> (&'a ProtocolObject<dyn MTLBuffer>, usize) {
        match address {
            Address::Arena(offset) => (self.arena, offset),
            Address::Allocated(allocation, offset) => (&self.allocations[allocation.index], offset),
            Address::External(..) => {
                unreachable!("plans of this backend have no in-place inputs and outputs")
            }
        }
    }
}
