//! Where the elements of a tensor lie: offset and strides over a buffer.

use super::Shape;

/// A view of a buffer: element `(i, j, …)` is at `offset + i·strides[0] + j·strides[1] + …`, in elements.
/// A stride of 0 repeats (broadcasts) an axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The lengths of the axes.
    pub shape: Shape,
    /// The distance between neighbours along each axis.
    pub strides: Vec<usize>,
    /// Where the first element is.
    pub offset: usize,
}

impl Layout {
    /// The contiguous row-major layout at offset 0.
    pub fn contiguous(shape: &Shape) -> Self {
        Self { shape: shape.clone(), strides: shape.strides(), offset: 0 }
    }

    /// Returns true if the elements lie row-major without gaps (axes of length 1 may have any stride).
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&dim, &stride) in self.shape.dims().iter().zip(&self.strides).rev() {
            if dim == 0 {
                return true;
            }
            if dim != 1 && stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }

    /// Returns true if neighbours on the last axis are adjacent.
    pub fn is_row_contiguous(&self) -> bool {
        self.shape.last() <= 1 || self.strides.last() == Some(&1)
    }

    /// The stride between rows of the last axis, if one stride describes all of them.
    pub fn row_stride(&self) -> Option<usize> {
        if !self.is_row_contiguous() {
            return None;
        }
        let rank = self.shape.rank();
        if rank < 2 || self.shape.rows() <= 1 {
            return Some(self.shape.last());
        }
        let (dims, strides) = (&self.shape.dims()[..rank - 1], &self.strides[..rank - 1]);
        collapse(dims, strides)
    }

    /// The same elements with the axes in another order: axis `i` of the result is axis `axes[i]` of `self`.
    pub fn permuted(&self, axes: &[usize]) -> Self {
        let dims: Vec<usize> = axes.iter().map(|&axis| self.shape[axis]).collect();
        let strides = axes.iter().map(|&axis| self.strides[axis]).collect();
        Self { shape: dims.into(), strides, offset: self.offset }
    }

    /// A part of one axis.
    pub fn sliced(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut dims = self.shape.dims().to_vec();
        dims[axis] = len;
        Self {
            shape: dims.into(),
            strides: self.strides.clone(),
            offset: self.offset + start * self.strides[axis],
        }
    }

    /// Numpy's broadcast to a shape of the same or higher rank.
    pub fn broadcast(&self, shape: &Shape) -> Self {
        let new_axes = shape.rank() - self.shape.rank();
        let mut strides = vec![0; new_axes];
        for (axis, &stride) in self.strides.iter().enumerate() {
            strides.push(if self.shape[axis] == 1 && shape[new_axes + axis] != 1 { 0 } else { stride });
        }
        Self { shape: shape.clone(), strides, offset: self.offset }
    }

    /// The same elements in the same order under another shape, if that needs no copy.
    pub fn reshaped(&self, shape: &Shape) -> Option<Self> {
        if self.is_contiguous() {
            return Some(Self { shape: shape.clone(), strides: shape.strides(), offset: self.offset });
        }
        // Axes of the old shape are taken in groups, each of which must be one run of equal steps, and split again.
        let old: Vec<(usize, usize)> = self
            .shape
            .dims()
            .iter()
            .copied()
            .zip(self.strides.iter().copied())
            .filter(|&(dim, _)| dim != 1)
            .collect();
        let mut strides = vec![0; shape.rank()];
        let (mut used, mut axis) = (0, 0);
        while axis < shape.rank() {
            if shape[axis] == 1 {
                axis += 1;
                continue;
            }
            let (first_old, first_new) = (used, axis);
            let (mut old_len, mut new_len) = (old.get(used)?.0, shape[axis]);
            used += 1;
            axis += 1;
            while old_len != new_len {
                if old_len < new_len {
                    old_len *= old.get(used)?.0;
                    used += 1;
                } else {
                    new_len *= if axis < shape.rank() { shape[axis] } else { return None };
                    axis += 1;
                }
            }
            let (dims, steps): (Vec<usize>, Vec<usize>) = old[first_old..used].iter().copied().unzip();
            let mut step = collapse(&dims, &steps)?;
            for new_axis in (first_new..axis).rev() {
                strides[new_axis] = step;
                step *= shape[new_axis];
            }
        }
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }
}

/// The single stride with which several axes can be walked as one, if there is one.
pub(crate) fn collapse(dims: &[usize], strides: &[usize]) -> Option<usize> {
    let mut result: Option<(usize, usize)> = None; // (stride of the innermost, extent so far)
    for (&dim, &stride) in dims.iter().zip(strides).rev() {
        if dim == 1 {
            continue;
        }
        match &mut result {
            None => result = Some((stride, stride * dim)),
            Some((_, extent)) if stride == *extent => *extent = stride * dim,
            Some(_) => return None,
        }
    }
    Some(result.map_or(0, |(stride, _)| stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_a_joined_matrix_reshape_into_heads() {
        let joined = Layout::contiguous(&Shape::from([7, 96]));
        let heads = joined.sliced(1, 32, 48).reshaped(&Shape::from([7, 3, 16])).unwrap();
        assert_eq!((heads.offset, heads.strides.as_slice()), (32, &[96, 16, 1][..]));
        assert_eq!(heads.row_stride(), None);
        assert_eq!(joined.sliced(1, 32, 48).row_stride(), Some(96));
        let batched = heads.reshaped(&Shape::from([1, 7, 3, 16])).unwrap();
        assert_eq!(&batched.strides[1..], &[96, 16, 1]);
        assert!(joined.sliced(1, 0, 48).reshaped(&Shape::from([7 * 48])).is_none());
    }

    #[test]
    fn transposes_and_broadcasts_are_not_contiguous() {
        let matrix = Layout::contiguous(&Shape::from([3, 4]));
        assert!(!matrix.permuted(&[1, 0]).is_contiguous());
        assert!(matrix.permuted(&[1, 0]).permuted(&[1, 0]).is_contiguous());
        let row = Layout::contiguous(&Shape::from([4])).broadcast(&Shape::from([3, 4]));
        assert_eq!(row.strides, [0, 1]);
        assert_eq!(row.row_stride(), Some(0));
    }
}
