//! Arrays of up to 16 dimensions: `MPSNDArrayDescriptor` and `MPSNDArray`.
//!
//! Dimension 0 is the fastest. Lengths and strides are listed fastest first; only [`NdArrayDescriptor::shape`]
//! and [`NdArrayDescriptor::from_shape`] use the order of Python, slowest first.

use std::ops::Range;

use crate::element::Element;
use crate::rules::{Refusal, refuse, require};
use crate::touches::coalesce;

/// Lengths and data type of an array, with the slices and transposes of a view of it.
///
/// Slices apply first, to the dimensions as they were made; transposes and permutations apply to the slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NdArrayDescriptor {
    element: Element,
    lengths: Vec<usize>,
    slices: Vec<Range<usize>>,
    order: Vec<usize>,
    packed_rows: bool,
}

impl NdArrayDescriptor {
    /// An array of lengths listed fastest first; none for a scalar.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-rank`, `mps-ndarray-zero`, `mps-ndarray-elements`.
    pub fn new(element: Element, lengths: &[usize]) -> Result<Self, Refusal> {
        require(lengths.len() <= 16, "mps-ndarray-rank", || format!("{} dimensions", lengths.len()))?;
        require(!lengths.contains(&0), "mps-ndarray-zero", || format!("lengths {lengths:?}"))?;
        let elements = lengths.iter().fold(1usize, |product, length| product.saturating_mul(*length));
        require(elements < 1 << 31, "mps-ndarray-elements", || {
            format!("lengths {lengths:?} have {elements} elements")
        })?;
        Ok(Self {
            element,
            lengths: lengths.to_vec(),
            slices: lengths.iter().map(|length| 0..*length).collect(),
            order: (0..lengths.len()).collect(),
            packed_rows: false,
        })
    }

    /// An array of a shape listed slowest first.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn from_shape(element: Element, shape: &[usize]) -> Result<Self, Refusal> {
        let lengths: Vec<usize> = shape.iter().rev().copied().collect();
        Self::new(element, &lengths)
    }

    /// Sets `preferPackedRows`: rows of new arrays follow each other without padding. The default is a row
    /// stride rounded up to 16 bytes.
    pub fn with_packed_rows(mut self, packed: bool) -> Self {
        self.packed_rows = packed;
        self
    }

    /// Takes a part of a dimension, numbered as before any transpose.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-dimension`, `mps-ndarray-slice`.
    pub fn slice(&mut self, dimension: usize, range: Range<usize>) -> Result<(), Refusal> {
        self.check_dimension(dimension)?;
        let length = self.lengths[dimension];
        require(range.start < range.end && range.end <= length, "mps-ndarray-slice", || {
            format!("{range:?} of dimension {dimension} with length {length}")
        })?;
        self.slices[dimension] = range;
        Ok(())
    }

    /// Exchanges two dimensions.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-dimension`.
    pub fn transpose(&mut self, one: usize, other: usize) -> Result<(), Refusal> {
        self.check_dimension(one)?;
        self.check_dimension(other)?;
        self.order.swap(one, other);
        Ok(())
    }

    /// Moves dimension `i` to position `dimension_order[i]`, on top of earlier transposes.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-permutation`.
    pub fn permute(&mut self, dimension_order: &[usize]) -> Result<(), Refusal> {
        let mut sorted = dimension_order.to_vec();
        sorted.sort_unstable();
        require(sorted.into_iter().eq(0..self.rank()), "mps-ndarray-permutation", || {
            format!("{dimension_order:?} for {} dimensions", self.rank())
        })?;
        let before = self.order.clone();
        for (from, to) in dimension_order.iter().enumerate() {
            self.order[*to] = before[from];
        }
        Ok(())
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.lengths.len()
    }

    /// Length of a dimension after slices and transposes; 1 beyond the rank.
    pub fn length(&self, dimension: usize) -> usize {
        self.order.get(dimension).map_or(1, |base| self.slices[*base].len())
    }

    /// Lengths after slices and transposes, slowest first.
    pub fn shape(&self) -> Vec<usize> {
        (0..self.rank()).rev().map(|dimension| self.length(dimension)).collect()
    }

    fn check_dimension(&self, dimension: usize) -> Result<(), Refusal> {
        require(dimension < self.rank(), "mps-ndarray-dimension", || {
            format!("dimension {dimension} of {}", self.rank())
        })
    }
}

/// An array, or a view of one, in a buffer. Nothing is read or written before an operation's `run`.
#[derive(Clone, Debug)]
pub struct NdArray {
    buffer: *mut u8,
    offset: usize,
    element: Element,
    lengths: Vec<usize>,
    strides: Vec<usize>,
}

// SAFETY: the pointer is used only in `unsafe` methods, whose callers vouch for the buffer on the thread of
// the call.
unsafe impl Send for NdArray {}
// SAFETY: as for `Send`; sharing gives no access that is not `unsafe`.
unsafe impl Sync for NdArray {}

impl NdArray {
    /// Places an array `offset` bytes into a buffer of `length` bytes, with the view that the descriptor
    /// asks for.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-offset-alignment`, `mps-ndarray-buffer-small`.
    pub fn new(
        buffer: *mut u8,
        length: usize,
        offset: usize,
        descriptor: &NdArrayDescriptor,
    ) -> Result<Self, Refusal> {
        let element = descriptor.element;
        let size = element.size();
        require(offset.is_multiple_of(size), "mps-ndarray-offset-alignment", || {
            format!("offset {offset} is not a multiple of the {size} bytes of {element:?}")
        })?;
        let mut strides = Vec::with_capacity(descriptor.rank());
        let mut stride = size;
        for (dimension, length) in descriptor.lengths.iter().enumerate() {
            strides.push(stride);
            stride *= length;
            if dimension == 0 && !descriptor.packed_rows {
                stride = stride.next_multiple_of(16);
            }
        }
        let whole = Self { buffer, offset, element, lengths: descriptor.lengths.clone(), strides };
        let needed = whole.span().saturating_add(offset);
        require(needed <= length, "mps-ndarray-buffer-small", || {
            format!(
                "the buffer has {length} bytes; {needed} are needed for lengths {:?}, row padding {}",
                whole.lengths, !descriptor.packed_rows
            )
        })?;
        whole.view(descriptor)
    }

    /// A view: the slices and transposes of a descriptor applied to this array. No byte moves.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-view-shape` if the descriptor's lengths or data type are not those of this array.
    pub fn view(&self, descriptor: &NdArrayDescriptor) -> Result<Self, Refusal> {
        let same = descriptor.lengths == self.lengths && descriptor.element == self.element;
        require(same, "mps-ndarray-view-shape", || {
            format!(
                "the view starts from {:?} {:?}, the array has {:?} {:?}",
                descriptor.element, descriptor.lengths, self.element, self.lengths
            )
        })?;
        let skipped: usize =
            descriptor.slices.iter().zip(&self.strides).map(|(slice, stride)| slice.start * stride).sum();
        Ok(Self {
            buffer: self.buffer,
            offset: self.offset + skipped,
            element: self.element,
            lengths: descriptor.order.iter().map(|base| descriptor.slices[*base].len()).collect(),
            strides: descriptor.order.iter().map(|base| self.strides[*base]).collect(),
        })
    }

    /// A view by lengths and strides, both fastest first, strides in elements.
    ///
    /// # Errors
    ///
    /// `mps-ndarray-view-strides`, `mps-ndarray-view-contiguous`, and those of [`NdArrayDescriptor::new`].
    pub fn strided_view(&self, lengths: &[usize], strides: &[usize]) -> Result<Self, Refusal> {
        NdArrayDescriptor::new(self.element, lengths)?;
        let valid = strides.len() == lengths.len()
            && strides.first().is_none_or(|first| *first == 1)
            && strides.is_sorted();
        require(valid, "mps-ndarray-view-strides", || format!("lengths {lengths:?}, strides {strides:?}"))?;
        let size = self.element.size();
        let view = Self {
            buffer: self.buffer,
            offset: self.offset,
            element: self.element,
            lengths: lengths.to_vec(),
            strides: strides.iter().map(|stride| stride.saturating_mul(size)).collect(),
        };
        let inside = self.is_contiguous() && view.span() <= self.span();
        require(inside, "mps-ndarray-view-contiguous", || {
            format!("{} bytes of an array of {} bytes", view.span(), self.span())
        })?;
        Ok(view)
    }

    /// A descriptor of this array's lengths, without pending slices or transposes.
    pub fn descriptor(&self) -> NdArrayDescriptor {
        NdArrayDescriptor {
            element: self.element,
            lengths: self.lengths.clone(),
            slices: self.lengths.iter().map(|length| 0..*length).collect(),
            order: (0..self.lengths.len()).collect(),
            packed_rows: false,
        }
    }

    /// Lists what is legal but known to fail somewhere: `mps-ndarray-bytes`.
    pub fn suspects(&self) -> Vec<Refusal> {
        let bytes = self.span();
        let large = (bytes > 1 << 32).then(|| refuse("mps-ndarray-bytes", format!("{bytes} bytes")));
        large.into_iter().collect()
    }

    /// The start of the buffer.
    pub fn buffer(&self) -> *mut u8 {
        self.buffer
    }

    /// Bytes from the start of the buffer to the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.lengths.len()
    }

    /// Length of a dimension; 1 beyond the rank.
    pub fn length(&self, dimension: usize) -> usize {
        self.lengths.get(dimension).copied().unwrap_or(1)
    }

    /// Bytes from an element to the next along a dimension; 0 beyond the rank.
    pub fn stride(&self, dimension: usize) -> usize {
        self.strides.get(dimension).copied().unwrap_or(0)
    }

    /// True if the elements follow each other in order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = self.element.size();
        self.lengths.iter().zip(&self.strides).all(|(length, stride)| {
            let holds = *length == 1 || *stride == expected;
            expected *= length;
            holds
        })
    }

    /// All bytes of elements, counted from the start of the buffer, in order and coalesced.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut dimensions: Vec<(usize, usize)> =
            self.strides.iter().copied().zip(self.lengths.iter().copied()).collect();
        dimensions.sort_unstable();
        let mut run = self.element.size();
        let mut starts = vec![self.offset];
        for (stride, length) in dimensions {
            if stride == run && starts.len() == 1 {
                run *= length;
            } else {
                let steps = |start: usize| (0..length).map(move |index| start + index * stride);
                starts = starts.into_iter().flat_map(steps).collect();
            }
        }
        coalesce(starts.into_iter().map(|start| start..start + run).collect())
    }

    /// Reads an element; the index is listed fastest first, and what lies beyond it is 0.
    ///
    /// # Safety
    ///
    /// The buffer is readable over the length given to [`new`](Self::new), and nothing writes it meanwhile.
    ///
    /// # Panics
    ///
    /// For an index outside the array.
    pub unsafe fn read(&self, index: &[usize]) -> f64 {
        // SAFETY: `position` is inside the array, which `new` found inside the buffer, and the caller
        // vouches for the buffer.
        unsafe { self.element.read(self.buffer.add(self.position(index))) }
    }

    /// Writes an element, rounded to the data type.
    ///
    /// # Safety
    ///
    /// The buffer is writable over the length given to [`new`](Self::new), and nothing else uses it
    /// meanwhile.
    ///
    /// # Panics
    ///
    /// For an index outside the array.
    pub unsafe fn write(&self, index: &[usize], value: f64) {
        // SAFETY: as for `read`.
        unsafe { self.element.write(self.buffer.add(self.position(index)), value) }
    }

    fn position(&self, index: &[usize]) -> usize {
        let mut position = self.offset;
        for (dimension, at) in index.iter().enumerate() {
            assert!(*at < self.length(dimension), "index {index:?} is outside lengths {:?}", self.lengths);
            position += at * self.stride(dimension);
        }
        position
    }

    /// Bytes from the first element to the end of the last.
    fn span(&self) -> usize {
        let steps = self.lengths.iter().zip(&self.strides);
        steps.fold(self.element.size(), |end, (length, stride)| {
            end.saturating_add((length - 1).saturating_mul(*stride))
        })
    }
}
