//! The strides of several tensors of one shape, as kernels read them.

use bytemuck::NoUninit;

use super::op::as_u32;
use crate::tensor::Layout;

/// Maximum number of axes.
const AXES: usize = 6;

/// The struct of the same name in `common.metal`.
#[repr(C)]
#[derive(Debug, Clone, Copy, NoUninit)]
pub(super) struct Walk {
    axes: u32,
    dims: [u32; AXES],
    strides: [u32; AXES],
}

impl Walk {
    /// Returns true if element i is at offset i.
    pub(super) fn is_contiguous(&self) -> bool {
        let axes = self.axes as usize;
        let mut expected = 1;
        self.dims[..axes].iter().zip(&self.strides[..axes]).all(|(&dim, &stride)| {
            let fits = stride == expected;
            expected *= dim;
            fits
        })
    }
}

/// Returns the strides of tensors of one shape over the same axes. Axes of length 1 are left out, and adjacent axes are joined
/// where all tensors allow it. Returns `None` if too many axes remain.
pub(super) fn walks<const N: usize>(layouts: [&Layout; N]) -> Option<[Walk; N]> {
    let dims = layouts[0].shape.dims();
    // From the innermost axis outward: (length, strides).
    let mut axes: Vec<(usize, [usize; N])> = Vec::new();
    for axis in (0..dims.len()).rev().filter(|&axis| dims[axis] != 1) {
        let strides = layouts.map(|layout| layout.strides[axis]);
        match axes.last_mut() {
            Some((len, inner)) if (0..N).all(|i| strides[i] == inner[i] * *len) => *len *= dims[axis],
            _ => axes.push((dims[axis], strides)),
        }
    }
    if axes.is_empty() {
        axes.push((1, [1; N]));
    }
    if axes.len() > AXES {
        return None;
    }
    let mut walks = [Walk { axes: as_u32(axes.len()), dims: [1; AXES], strides: [0; AXES] }; N];
    for (axis, (len, strides)) in axes.iter().enumerate() {
        for (walk, stride) in walks.iter_mut().zip(strides) {
            walk.dims[axis] = as_u32(*len);
            walk.strides[axis] = as_u32(*stride);
        }
    }
    Some(walks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn axes_are_joined_where_all_tensors_allow_it() {
        let shape = Shape::from([2, 3, 4]);
        let plain = Layout::contiguous(&shape);
        let [walk] = walks([&plain]).unwrap();
        assert_eq!((walk.axes, walk.dims[0], walk.strides[0]), (1, 24, 1));
        let swapped = Layout::contiguous(&Shape::from([3, 2, 4])).permuted(&[1, 0, 2]);
        let [a, b] = walks([&plain, &swapped]).unwrap();
        assert_eq!((a.axes, &a.dims[..3], &a.strides[..3]), (3, &[4, 3, 2][..], &[1, 4, 12][..]));
        assert_eq!(&b.strides[..3], [1, 8, 4]);
        let one = Layout::contiguous(&Shape::from([1, 1]));
        assert_eq!(walks([&one]).unwrap()[0].axes, 1);
    }

    #[test]
    fn more_axes_than_a_walk_has_are_refused() {
        let shape = Shape::from([2; 14]);
        let every_other = (0..14).filter(|axis| axis % 2 == 0).chain((0..14).filter(|axis| axis % 2 == 1));
        let layout = Layout::contiguous(&shape).permuted(&every_other.collect::<Vec<_>>());
        assert!(walks([&layout]).is_none());
    }
}
