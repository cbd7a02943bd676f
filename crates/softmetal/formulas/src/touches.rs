//! The bytes that an operation reads and writes.

use std::ops::Range;

use crate::rules::{Refusal, refuse};

/// The role of an operand in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The left matrix of a product.
    Left,
    /// The right matrix of a product.
    Right,
    /// The input of an operation with one input.
    Input,
    /// The input vector of a matrix-vector product.
    InputVector,
    /// The gradient with respect to an output.
    Gradient,
    /// The output of the forward operation.
    ForwardOutput,
    /// The only result.
    Result,
    /// The indices that top-k writes.
    ResultIndices,
    /// The values that top-k writes.
    ResultValues,
    /// The source at this position of a list.
    Source(usize),
    /// The destination at this position of a list.
    Destination(usize),
    /// The row permutation of a copy.
    RowPermutation,
    /// The column permutation of a copy.
    ColumnPermutation,
    /// The scale factors of a sum.
    Scales,
    /// The offsets of a sum.
    Offsets,
    /// A bias vector.
    Bias,
}

/// The bytes that one call reads and writes, counted from the start of each operand's buffer.
///
/// Ranges of one operand are in order and coalesced. Where the bytes depend on data (permuted copies, sums
/// with offsets from a vector) the ranges cover every byte that the call may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// Bytes read, by operand.
    pub reads: Vec<(Operand, Range<usize>)>,
    /// Bytes written, by operand.
    pub writes: Vec<(Operand, Range<usize>)>,
}

impl Touches {
    pub(crate) fn read(&mut self, operand: Operand, ranges: Vec<Range<usize>>) {
        self.reads.extend(ranges.into_iter().map(|range| (operand, range)));
    }

    pub(crate) fn write(&mut self, operand: Operand, ranges: Vec<Range<usize>>) {
        self.writes.extend(ranges.into_iter().map(|range| (operand, range)));
    }

    /// The first two operands that share a byte which at least one of them writes; `address` gives the
    /// address of an operand's buffer.
    pub(crate) fn overlap(&self, address: impl Fn(Operand) -> usize) -> Option<(Operand, Operand)> {
        let place = |&(operand, ref range): &(Operand, Range<usize>), written: bool| {
            let base = address(operand);
            (base + range.start, base + range.end, operand, written)
        };
        let mut spans: Vec<_> = self.reads.iter().map(|touch| place(touch, false)).collect();
        spans.extend(self.writes.iter().map(|touch| place(touch, true)));
        spans.sort_by_key(|&(start, end, ..)| (start, end));
        let mut open: Vec<(usize, usize, Operand, bool)> = Vec::new();
        for span in spans {
            open.retain(|earlier| earlier.1 > span.0);
            // An operand that is read and written in place (beta, an addend) does not overlap itself.
            if let Some(other) = open.iter().find(|other| other.2 != span.2 && (other.3 || span.3)) {
                return Some((other.2, span.2));
            }
            open.push(span);
        }
        None
    }

    pub(crate) fn alias_suspect(&self, address: impl Fn(Operand) -> usize) -> Option<Refusal> {
        let (one, other) = self.overlap(address)?;
        Some(refuse("mps-alias", format!("{one:?} and {other:?} share bytes that the call writes")))
    }
}

/// Joins ranges that touch or overlap; the input need not be in order.
pub(crate) fn coalesce(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coalesce_joins_neighbours() {
        assert_eq!(coalesce(vec![8..12, 0..4, 4..6, 20..20, 5..7]), vec![0..7, 8..12]);
    }

    #[test]
    fn overlap_ignores_an_operand_in_place() {
        let mut touches = Touches::default();
        touches.read(Operand::Result, vec![0..8, 16..24]);
        touches.write(Operand::Result, vec![0..8, 16..24]);
        touches.read(Operand::Input, vec![8..12, 12..16]);
        assert_eq!(touches.overlap(|_| 0), None);
        let shifted = touches.overlap(|operand| if operand == Operand::Input { 4 } else { 0 });
        assert!(shifted.is_some());
    }
}
