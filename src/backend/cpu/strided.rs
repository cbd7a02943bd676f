//! Walking several strided tensors of one shape together, in runs along the last axis that can be had.

use crate::tensor::Layout;

/// Runs are split into pieces of this many elements, so that one long run can be shared by threads.
const PIECE: usize = 4096;

/// How to walk N tensors of one shape.
#[derive(Debug, Clone)]
pub(super) struct StridedIter<const N: usize> {
    /// Lengths and steps of the outer axes, the outermost first.
    outer: Vec<(usize, [usize; N])>,
    inner: usize,
    /// Steps within a run.
    pub(super) steps: [usize; N],
    pieces: usize,
}

/// A part of a run: where it begins in each tensor (in elements from the tensor's first), and how long it is.
pub(super) struct Run<const N: usize> {
    pub(super) starts: [usize; N],
    pub(super) len: usize,
}

impl<const N: usize> StridedIter<N> {
    /// The layouts have one shape. Neighbouring axes that all tensors walk evenly are joined.
    pub(super) fn new(layouts: [&Layout; N]) -> Self {
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for (axis, &dim) in layouts[0].shape.dims().iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let steps = layouts.map(|layout| layout.strides[axis]);
            match axes.last_mut() {
                Some((outer, outer_steps)) if (0..N).all(|i| outer_steps[i] == steps[i] * dim) => {
                    *outer *= dim;
                    *outer_steps = steps;
                }
                _ => axes.push((dim, steps)),
            }
        }
        let (inner, steps) = axes.pop().unwrap_or((1, [1; N]));
        Self { outer: axes, inner, steps, pieces: inner.div_ceil(PIECE) }
    }

    /// How many pieces there are.
    pub(super) fn items(&self) -> usize {
        self.outer.iter().map(|&(dim, _)| dim).product::<usize>() * self.pieces
    }

    /// A piece.
    #[inline(always)]
    pub(super) fn piece(&self, item: usize) -> Run<N> {
        let (mut row, first) = (item / self.pieces, item % self.pieces * PIECE);
        let mut starts = [0; N];
        for i in 0..N {
            starts[i] = first * self.steps[i];
        }
        for (dim, steps) in self.outer.iter().rev() {
            let position = row % dim;
            row /= dim;
            for i in 0..N {
                starts[i] += position * steps[i];
            }
        }
        Run { starts, len: PIECE.min(self.inner - first) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn pieces_cover_every_element_once() {
        let shape = Shape::from([3, 2, 5000]);
        let contiguous = Layout::contiguous(&shape);
        let permuted = Layout::contiguous(&Shape::from([2, 3, 5000])).permuted(&[1, 0, 2]);
        let walk = StridedIter::new([&contiguous, &permuted]);
        let mut seen = vec![false; shape.elements()];
        for item in 0..walk.items() {
            let piece = walk.piece(item);
            for i in 0..piece.len {
                let [to, from] = [0, 1].map(|t| piece.starts[t] + i * walk.steps[t]);
                let (row, column) = (to / 5000, to % 5000);
                assert_eq!(from, (row % 2 * 3 + row / 2) * 5000 + column);
                assert!(!std::mem::replace(&mut seen[to], true));
            }
        }
        assert!(seen.into_iter().all(|s| s));
        let flat = StridedIter::new([&contiguous]);
        assert_eq!((flat.inner, flat.outer.len()), (30_000, 0));
        let empty = Layout::contiguous(&Shape::from([4, 0]));
        assert_eq!(StridedIter::new([&empty]).items(), 0);
    }
}
