//! Where tensors are in GPU memory, and which bytes a command reads and writes.

use std::ops::Range;

/// An allocation of the driver that holds parameters, tables or flags, by its number in the table of a lowered plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) struct Allocation {
    /// Position in the table of allocations.
    pub(in crate::backend) index: usize,
    /// Size in bytes.
    pub(in crate::backend) bytes: usize,
}

/// Address of a tensor's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Address {
    /// Byte offset in the arena, which holds intermediate results.
    Arena(usize),
    /// Byte offset in an allocation.
    Allocated(Allocation, usize),
    /// Byte offset in memory that the caller provides: the number of an input of the plan or, counted on after the inputs, of
    /// an output. Only plans with in-place inputs and outputs have such addresses.
    External(usize, usize),
}

impl Address {
    /// Returns the address this many bytes further on.
    pub(in crate::backend) fn plus(self, bytes: usize) -> Self {
        self.at(self.offset() + bytes)
    }

    /// Returns the address of the first byte of the same buffer.
    pub(super) fn start(self) -> Self {
        self.at(0)
    }

    fn at(self, offset: usize) -> Self {
        match self {
            Self::Arena(_) => Self::Arena(offset),
            Self::Allocated(allocation, _) => Self::Allocated(allocation, offset),
            Self::External(index, _) => Self::External(index, offset),
        }
    }

    /// Byte offset in the buffer.
    pub(in crate::backend) fn offset(self) -> usize {
        match self {
            Self::Arena(offset) | Self::Allocated(_, offset) | Self::External(_, offset) => offset,
        }
    }
}

/// A range of bytes in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backend) struct ByteRange {
    buffer: Address,
    bytes: Range<usize>,
}

impl ByteRange {
    pub(in crate::backend) fn new(address: Address, bytes: usize) -> Self {
        let start = address.offset();
        Self { buffer: address.start(), bytes: start..start + bytes }
    }

    pub(in crate::backend) fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

/// The bytes that a command reads and writes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::backend) struct Accesses {
    pub(in crate::backend) reads: Vec<ByteRange>,
    pub(in crate::backend) writes: Vec<ByteRange>,
}

impl Accesses {
    /// Returns true if the command writes to the buffer of this address.
    pub(in crate::backend) fn writes_to(&self, address: Address) -> bool {
        self.writes.iter().any(|range| range.buffer == address.start())
    }

    /// Returns true if the command writes any byte of a range.
    pub(super) fn writes(&self, range: &ByteRange) -> bool {
        self.writes.iter().any(|other| other.overlaps(range))
    }

    /// Returns true if the two commands must not run at the same time.
    pub(in crate::backend) fn conflicts(&self, other: &Self) -> bool {
        let overlap = |a: &[ByteRange], b: &[ByteRange]| a.iter().any(|x| b.iter().any(|y| x.overlaps(y)));
        overlap(&self.writes, &other.writes)
            || overlap(&self.writes, &other.reads)
            || overlap(&self.reads, &other.writes)
    }

    pub(in crate::backend) fn extend(&mut self, other: &Self) {
        self.reads.extend_from_slice(&other.reads);
        self.writes.extend_from_slice(&other.writes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_conflict_where_one_writes_bytes_of_the_other() {
        let allocation = |index| Allocation { index, bytes: 64 };
        let read = |address, bytes| Accesses { reads: vec![ByteRange::new(address, bytes)], writes: vec![] };
        let write = |address, bytes| Accesses { reads: vec![], writes: vec![ByteRange::new(address, bytes)] };
        let (a, b) = (Address::Allocated(allocation(0), 16), Address::Allocated(allocation(1), 16));
        assert!(write(a, 16).conflicts(&read(a.plus(15), 1)));
        assert!(read(a, 16).conflicts(&write(a, 1)));
        assert!(write(a, 16).conflicts(&write(a, 1)));
        assert!(!write(a, 16).conflicts(&read(a.plus(16), 16)));
        assert!(!read(a, 16).conflicts(&read(a, 16)));
        assert!(!write(a, 16).conflicts(&write(b, 16)));
        assert!(!write(Address::Arena(16), 16).conflicts(&write(Address::External(0, 16), 16)));
        assert!(write(a, 16).writes_to(a.start()) && !write(a, 16).writes_to(b));
    }
}
