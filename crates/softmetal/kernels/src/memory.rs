//! What a dispatch may touch, and what it touched.

use std::ops::Range;

/// Bytes that one argument's accesses covered, relative to where it is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Position of the argument in the kernel's list, as in [`msl::Kernel::arguments`].
    pub argument: u32,
    /// Index of its buffer.
    pub buffer: u32,
    /// What was read: sorted, adjacent ranges joined.
    pub reads: Vec<Range<usize>>,
    /// What was written: likewise.
    pub writes: Vec<Range<usize>>,
}

const PAGE: usize = 4096;

/// One bit per byte, with storage for those pages only that are touched.
#[derive(Default)]
struct Shadow {
    pages: Vec<Option<Box<[u64; PAGE / 64]>>>,
}

impl Shadow {
    fn mark(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            let page = at / PAGE;
            if self.pages.len() <= page {
                self.pages.resize_with(page + 1, || None);
            }
            let bits = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE / 64]));
            let (word, bit) = (at % PAGE / 64, at % 64);
            let count = (range.end - at).min(64 - bit);
            bits[word] |= (u64::MAX >> (64 - count)) << bit;
            at += count;
        }
    }

    fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let pages = self.pages.iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?)));
        for (start, word) in
            pages.flat_map(|(i, p)| p.iter().enumerate().map(move |(j, w)| (i * PAGE + j * 64, *w)))
        {
            let mut rest = word;
            let mut at = start;
            while rest != 0 {
                let skip = rest.trailing_zeros() as usize;
                rest >>= skip;
                at += skip;
                let run = rest.trailing_ones() as usize;
                rest = if run == 64 { 0 } else { rest >> run };
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end += run,
                    _ => ranges.push(at..at + run),
                }
                at += run;
            }
        }
        ranges
    }
}

/// Why a region is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Memory of an argument.
    Argument,
    /// Where an argument points that the host did not bind.
    Unset,
    /// Zeros, for arguments that their function constant turns off.
    Disabled,
    /// Threadgroup memory, the object's own data, tables of the engine.
    Own,
}

/// A range of addresses.
pub(crate) struct Region {
    pub(crate) span: Range<usize>,
    pub(crate) kind: Kind,
    /// Position of the argument; 0 for what is the engine's own.
    pub(crate) argument: u32,
    pub(crate) writable: bool,
    reads: Shadow,
    writes: Shadow,
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Unset { argument: u32 },
    Outside { nearest: Option<(u32, isize)> },
}

/// All regions of a dispatch.
#[derive(Default)]
pub(crate) struct Memory {
    regions: Vec<Region>,
    last: usize,
    /// Whether arguments share memory: then which of them is meant depends on the access.
    overlap: bool,
    record: bool,
}

impl Memory {
    pub(crate) fn new(record: bool) -> Self {
        Memory { record, ..Memory::default() }
    }

    pub(crate) fn add(&mut self, span: Range<usize>, kind: Kind, argument: u32, writable: bool) {
        if span.is_empty() && kind != Kind::Argument {
            return;
        }
        let shares = |r: &Region| r.span.start < span.end && span.start < r.span.end;
        // Arguments that are off share their zeros; which of them is read does not matter.
        self.overlap |= self.regions.iter().any(|r| shares(r) && r.kind != Kind::Disabled);
        let (reads, writes) = Default::default();
        self.regions.push(Region { span, kind, argument, writable, reads, writes });
    }

    /// Checks an access and notes it.
    #[inline]
    pub(crate) fn access(&mut self, address: usize, size: usize, write: bool) -> Result<(), Wrong> {
        let holds = |r: &Region| address >= r.span.start && address.saturating_add(size) <= r.span.end;
        let found = match self.regions.get(self.last) {
            Some(region) if !self.overlap && holds(region) => self.last,
            _ => {
                let mut candidates = (0..self.regions.len()).filter(|i| holds(&self.regions[*i]));
                let first = candidates.next();
                let first_writable = first.filter(|i| !write || self.regions[*i].writable);
                let other = || candidates.find(|i| self.regions[*i].writable);
                first_writable.or_else(other).or(first).ok_or_else(|| self.outside(address, size))?
            }
        };
        self.last = found;
        let region = &mut self.regions[found];
        match region.kind {
            Kind::Own if write && !region.writable => return Err(self.outside(address, size)),
            Kind::Own => return Ok(()),
            Kind::Disabled if !write => return Ok(()),
            Kind::Unset | Kind::Disabled => return Err(Wrong::Unset { argument: region.argument }),
            Kind::Argument => {}
        }
        if write && !region.writable {
            return Err(Wrong::Outside { nearest: Some((region.argument, 0)) });
        }
        if self.record {
            let start = address - region.span.start;
            let shadow = if write { &mut region.writes } else { &mut region.reads };
            shadow.mark(start..start + size);
        }
        Ok(())
    }

    #[cold]
    fn outside(&self, address: usize, size: usize) -> Wrong {
        let arguments = self.regions.iter().filter(|r| r.kind == Kind::Argument);
        let distances = arguments.map(|r| {
            let end = address.saturating_add(size);
            let past = end.saturating_sub(r.span.end) as isize;
            let before = r.span.start.saturating_sub(address) as isize;
            (r.argument, if past > 0 { past } else { -before })
        });
        // Further away, the address says nothing about what was meant.
        const FAR: usize = 1 << 32;
        Wrong::Outside {
            nearest: distances.min_by_key(|(_, d)| d.unsigned_abs()).filter(|(_, d)| d.unsigned_abs() < FAR),
        }
    }

    /// What was touched, by argument.
    pub(crate) fn accesses(&self, buffer: impl Fn(u32) -> u32) -> Vec<Access> {
        let arguments = self.regions.iter().filter(|r| r.kind == Kind::Argument);
        let accesses = arguments.map(|r| Access {
            argument: r.argument,
            buffer: buffer(r.argument),
            reads: r.reads.ranges(),
            writes: r.writes.ranges(),
        });
        accesses.filter(|a| !a.reads.is_empty() || !a.writes.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_across_words_and_pages() {
        let mut shadow = Shadow::default();
        for start in (4000..4200).step_by(4) {
            shadow.mark(start..start + 4);
        }
        shadow.mark(0..1);
        shadow.mark(9000..9001);
        assert_eq!(shadow.ranges(), [0..1, 4000..4200, 9000..9001]);
    }

    #[test]
    fn accesses_outside_name_the_nearest_argument() {
        let mut memory = Memory::new(true);
        memory.add(1000..1016, Kind::Argument, 0, false);
        memory.add(2000..2016, Kind::Argument, 3, true);
        assert_eq!(memory.access(1000, 4, false), Ok(()));
        assert_eq!(memory.access(2012, 4, true), Ok(()));
        assert_eq!(memory.access(1014, 4, false), Err(Wrong::Outside { nearest: Some((0, 2)) }));
        assert_eq!(memory.access(1996, 4, true), Err(Wrong::Outside { nearest: Some((3, -4)) }));
        assert_eq!(memory.access(1000, 4, true), Err(Wrong::Outside { nearest: Some((0, 0)) }));
        let accesses = memory.accesses(|a| a + 10);
        assert_eq!((accesses[1].argument, accesses[1].buffer), (3, 13));
        assert_eq!((&accesses[1].reads[..], &accesses[1].writes[..]), (&[][..], &[12..16][..]));
    }
}
