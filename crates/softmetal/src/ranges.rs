//! Sets of byte ranges.

use std::ops::Range;

/// Byte ranges in order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<usize>>);

impl Ranges {
    /// From ranges in any order, which may overlap.
    pub fn new(mut ranges: Vec<Range<usize>>) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same ranges so many bytes later.
    pub fn shifted(&self, by: usize) -> Self {
        Self(self.0.iter().map(|range| range.start + by..range.end + by).collect())
    }

    /// Adds the ranges of another set.
    pub fn extend(&mut self, other: &Self) {
        let all = std::mem::take(&mut self.0).into_iter().chain(other.0.iter().cloned()).collect();
        *self = Self::new(all);
    }

    /// What is left without some bytes.
    pub fn without(&self, bytes: &Range<usize>) -> Self {
        let parts = |range: &Range<usize>| {
            [range.start..range.end.min(bytes.start), range.start.max(bytes.end)..range.end]
        };
        Self::new(self.0.iter().flat_map(parts).collect())
    }

    /// The first bytes that both sets hold.
    pub fn overlap(&self, other: &Self) -> Option<Range<usize>> {
        let (mut a, mut b) = (0, 0);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            let both = x.start.max(y.start)..x.end.min(y.end);
            if !both.is_empty() {
                return Some(both);
            }
            if x.end <= y.end { a += 1 } else { b += 1 }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_overlaps_found() {
        let a = Ranges::new(vec![8..12, 0..4, 3..6, 20..20]);
        assert_eq!(a.as_slice(), [0..6, 8..12]);
        let b = Ranges::new(vec![6..8, 12..16]);
        assert_eq!(a.overlap(&b), None);
        assert_eq!(a.overlap(&Ranges::new(vec![6..9])), Some(8..9));
        let mut both = a.clone();
        both.extend(&b);
        assert_eq!(both.as_slice(), [0..16]);
        assert_eq!(a.without(&(2..9)).as_slice(), [0..2, 9..12]);
        assert_eq!(a.without(&(6..8)).as_slice(), a.as_slice());
        assert!(a.without(&(0..12)).is_empty());
    }
}
