//! Vectors: `MPSVectorDescriptor` and `MPSVector`.

use std::ops::Range;

use crate::element::Element;
use crate::rules::{Refusal, require};
use crate::touches::coalesce;

/// The bytes between vectors that give the best speed: packed, rounded up to 16 bytes (this model's figure;
/// the header recommends, and requires only that a vector fits).
pub fn recommended_vector_bytes(length: usize, element: Element) -> usize {
    crate::matrix::recommended_row_bytes(length, element)
}

/// Length, count, stride and data type of a batch of vectors.
///
/// Element `i` of vector `k` is at byte `k * vector_bytes + i * element size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorDescriptor {
    length: usize,
    vectors: usize,
    vector_bytes: usize,
    element: Element,
}

impl VectorDescriptor {
    /// One vector.
    ///
    /// # Errors
    ///
    /// `mps-vector-zero`.
    pub fn new(length: usize, element: Element) -> Result<Self, Refusal> {
        Self::batch(length, 1, length.saturating_mul(element.size()), element)
    }

    /// Vectors that lie `vector_bytes` apart.
    ///
    /// # Errors
    ///
    /// `mps-vector-zero`, `mps-vector-bytes-multiple`, `mps-vector-bytes-small`.
    pub fn batch(
        length: usize,
        vectors: usize,
        vector_bytes: usize,
        element: Element,
    ) -> Result<Self, Refusal> {
        let size = element.size();
        require(length > 0 && vectors > 0, "mps-vector-zero", || {
            format!("{vectors} vectors of {length} elements")
        })?;
        require(vector_bytes.is_multiple_of(size), "mps-vector-bytes-multiple", || {
            format!("vectorBytes {vector_bytes} is not a multiple of the {size} bytes of {element:?}")
        })?;
        require(vector_bytes >= length.saturating_mul(size), "mps-vector-bytes-small", || {
            format!("vectorBytes {vector_bytes} is less than {length} elements of {size} bytes")
        })?;
        Ok(Self { length, vectors, vector_bytes, element })
    }

    /// Elements of a vector.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Vectors in the batch.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Bytes from a vector to the next.
    pub fn vector_bytes(&self) -> usize {
        self.vector_bytes
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Bytes from the first element to the end of the last one; `usize::MAX` where that overflows.
    pub fn bytes(&self) -> usize {
        let vectors = (self.vectors - 1).saturating_mul(self.vector_bytes);
        vectors.saturating_add(self.length * self.element.size())
    }
}

/// A batch of vectors in a buffer. Nothing is read or written before an operation's `run`.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    buffer: *mut u8,
    offset: usize,
    descriptor: VectorDescriptor,
}

// SAFETY: the pointer is used only in `unsafe` methods, whose callers vouch for the buffer on the thread of
// the call.
unsafe impl Send for Vector {}
// SAFETY: as for `Send`; sharing gives no access that is not `unsafe`.
unsafe impl Sync for Vector {}

impl Vector {
    /// Places vectors `offset` bytes into a buffer of `length` bytes.
    ///
    /// # Errors
    ///
    /// `mps-vector-offset-alignment`, `mps-vector-buffer-small`.
    pub fn new(
        buffer: *mut u8,
        length: usize,
        offset: usize,
        descriptor: VectorDescriptor,
    ) -> Result<Self, Refusal> {
        let size = descriptor.element.size();
        require(offset.is_multiple_of(size), "mps-vector-offset-alignment", || {
            format!("offset {offset} is not a multiple of the {size} bytes of {:?}", descriptor.element)
        })?;
        let needed = descriptor.bytes().saturating_add(offset);
        require(needed <= length, "mps-vector-buffer-small", || {
            format!(
                "the buffer has {length} bytes; {needed} are needed for {} vectors of {} at offset {offset}",
                descriptor.vectors, descriptor.length
            )
        })?;
        Ok(Self { buffer, offset, descriptor })
    }

    /// The start of the buffer.
    pub fn buffer(&self) -> *mut u8 {
        self.buffer
    }

    /// Bytes from the start of the buffer to the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length, count, stride and data type.
    pub fn descriptor(&self) -> &VectorDescriptor {
        &self.descriptor
    }

    /// The data type.
    pub fn element(&self) -> Element {
        self.descriptor.element
    }

    /// All bytes of elements, counted from the start of the buffer, in order and coalesced.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        self.region_ranges(0..self.descriptor.vectors, 0..self.descriptor.length)
    }

    /// The bytes of some elements of some vectors, counted from the start of the buffer.
    pub fn region_ranges(&self, vectors: Range<usize>, elements: Range<usize>) -> Vec<Range<usize>> {
        let size = self.element().size();
        let ranges = vectors.map(|vector| {
            let start = self.position(vector, elements.start);
            start..start + elements.len() * size
        });
        coalesce(ranges.collect())
    }

    fn position(&self, vector: usize, index: usize) -> usize {
        self.offset + vector * self.descriptor.vector_bytes + index * self.element().size()
    }

    /// Reads an element.
    ///
    /// # Safety
    ///
    /// The buffer is readable over the length given to [`new`](Self::new), and nothing writes it meanwhile.
    ///
    /// # Panics
    ///
    /// For an index outside the vectors.
    pub unsafe fn read(&self, vector: usize, index: usize) -> f64 {
        assert!(vector < self.descriptor.vectors && index < self.descriptor.length, "outside the vectors");
        // SAFETY: the index is inside, `new` checked that all elements are in the buffer, and the caller
        // vouches for the buffer.
        unsafe { self.element().read(self.buffer.add(self.position(vector, index))) }
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
    /// For an index outside the vectors.
    pub unsafe fn write(&self, vector: usize, index: usize, value: f64) {
        assert!(vector < self.descriptor.vectors && index < self.descriptor.length, "outside the vectors");
        // SAFETY: as for `read`.
        unsafe { self.element().write(self.buffer.add(self.position(vector, index)), value) }
    }
}
