//! Copies between matrices: `MPSMatrixCopy` and `MPSMatrixCopyDescriptor`.

use std::ops::Range;

use crate::element::Element;
use crate::kernel::{Extent, Origin};
use crate::matrix::Matrix;
use crate::multiplication::stored;
use crate::rules::{Refusal, refuse, require};
use crate::touches::{Operand, Touches};
use crate::vector::Vector;

/// Where one copy reads and writes: `MPSMatrixCopyOffsets`, in stored rows and columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOffsets {
    /// First row of the source.
    pub source_row: u32,
    /// First column of the source.
    pub source_column: u32,
    /// First row of the destination.
    pub destination_row: u32,
    /// First column of the destination.
    pub destination_column: u32,
}

impl CopyOffsets {
    /// Refuses a vector from which `count` offsets cannot be taken.
    ///
    /// # Errors
    ///
    /// `mps-copy-offsets-type`, `-offsets-alignment`, `-offsets-length`.
    pub fn check_packed(vector: &Vector, byte_offset: usize, count: usize) -> Result<(), Refusal> {
        require(vector.element() == Element::UInt32, "mps-copy-offsets-type", || {
            format!("offsets are {:?}", vector.element())
        })?;
        require(byte_offset.is_multiple_of(16), "mps-copy-offsets-alignment", || {
            format!("byte offset {byte_offset}")
        })?;
        let needed = count.saturating_mul(4).saturating_add(byte_offset / 4);
        require(needed <= vector.descriptor().length(), "mps-copy-offsets-length", || {
            format!("{} numbers; {needed} are needed", vector.descriptor().length())
        })
    }

    /// Reads offsets that were computed on the device: packed groups of four UInt32.
    ///
    /// # Errors
    ///
    /// Those of [`check_packed`](Self::check_packed).
    ///
    /// # Safety
    ///
    /// The vector's buffer is readable over the length given to [`Vector::new`], and nothing writes it
    /// during the call.
    pub unsafe fn read_packed(
        vector: &Vector,
        byte_offset: usize,
        count: usize,
    ) -> Result<Vec<Self>, Refusal> {
        Self::check_packed(vector, byte_offset, count)?;
        // SAFETY: the caller vouches for the buffer.
        let number = |index: usize| unsafe { vector.read(0, byte_offset / 4 + index) } as u32;
        Ok((0..count)
            .map(|copy| Self {
                source_row: number(4 * copy),
                source_column: number(4 * copy + 1),
                destination_row: number(4 * copy + 2),
                destination_column: number(4 * copy + 3),
            })
            .collect())
    }

    fn source(&self) -> Origin {
        Origin::at(self.source_row as usize, self.source_column as usize)
    }

    fn destination(&self) -> Origin {
        Origin::at(self.destination_row as usize, self.destination_column as usize)
    }
}

/// The indices of permuted rows or columns: a vector of UInt32 and the element where it starts.
#[derive(Clone, Copy, Debug)]
pub struct Permutation<'a> {
    /// The indices.
    pub indices: &'a Vector,
    /// The first index used.
    pub offset: usize,
}

/// The sources, destinations and offsets of a copy; the lists are equally long.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    /// What is read.
    pub sources: &'a [Matrix],
    /// What is written.
    pub destinations: &'a [Matrix],
    /// Where, for each pair.
    pub offsets: &'a [CopyOffsets],
    /// The row of the destination is `indices[i] + destination_row` instead of `i + destination_row`.
    pub row_permutation: Option<Permutation<'a>>,
    /// The column of the destination is `indices[j] + destination_column`.
    pub column_permutation: Option<Permutation<'a>>,
}

/// Copies of `rows x columns` elements from each source to its destination.
///
/// A transposed operand is stored by columns: element `(i, j)` of the copy is at stored row `j` and column
/// `i`. Permutations apply to the stored rows and columns of the destination, after its transpose. Values
/// are converted where types differ. Only the first matrix of a batch takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Rows of each copy.
    pub rows: usize,
    /// Columns of each copy.
    pub columns: usize,
    /// The sources are stored by columns.
    pub sources_transposed: bool,
    /// The destinations are stored by columns.
    pub destinations_transposed: bool,
}

impl Copy {
    /// Refuses operands that the header refuses.
    ///
    /// # Errors
    ///
    /// `mps-copy-count`, `-source-shape`, `-destination-shape`, `-permutation-type`, `-permutation-length`,
    /// `-alias`.
    pub fn check(&self, copies: &Copies<'_>) -> Result<(), Refusal> {
        let counts = [copies.sources.len(), copies.destinations.len(), copies.offsets.len()];
        require(counts[0] > 0 && counts.iter().all(|count| *count == counts[0]), "mps-copy-count", || {
            format!("{} sources, {} destinations, {} offsets", counts[0], counts[1], counts[2])
        })?;
        let (source, destination) = (self.stored_source(), self.stored_destination());
        for (index, offsets) in copies.offsets.iter().enumerate() {
            require(source.fits(&copies.sources[index], offsets.source()), "mps-copy-source-shape", || {
                format!("source {index} does not hold {source:?} from {:?} on", offsets.source())
            })?;
            // A permuted row or column goes where its index says: that is checked when the index is read.
            let bounded = Extent {
                rows: if copies.row_permutation.is_some() { 0 } else { destination.rows },
                columns: if copies.column_permutation.is_some() { 0 } else { destination.columns },
            };
            let fits = bounded.fits(&copies.destinations[index], offsets.destination());
            require(fits, "mps-copy-destination-shape", || {
                format!(
                    "destination {index} does not hold {destination:?} from {:?} on",
                    offsets.destination()
                )
            })?;
        }
        let permutations =
            [(copies.row_permutation, destination.rows), (copies.column_permutation, destination.columns)];
        for (permutation, count) in permutations {
            let Some(Permutation { indices, offset }) = permutation else { continue };
            require(indices.element() == Element::UInt32, "mps-copy-permutation-type", || {
                format!("indices are {:?}", indices.element())
            })?;
            let length = indices.descriptor().length();
            let held = offset.checked_add(count).is_some_and(|end| end <= length);
            require(held, "mps-copy-permutation-length", || {
                format!("{length} indices; {count} are needed from {offset} on")
            })?;
        }
        // Under a permutation the bytes written are not known yet: nothing can be said of aliases.
        if copies.row_permutation.is_none() && copies.column_permutation.is_none() {
            let overlap = self.touches(copies).overlap(|operand| address(copies, operand));
            require(overlap.is_none(), "mps-copy-alias", || format!("{overlap:?} share bytes"))?;
        }
        Ok(())
    }

    /// Lists what is legal but unsaid by the header.
    pub fn suspects(&self, copies: &Copies<'_>) -> Vec<Refusal> {
        let mut found = Vec::new();
        for (index, (source, destination)) in copies.sources.iter().zip(copies.destinations).enumerate() {
            let types = (source.element(), destination.element());
            if types.0 != types.1 {
                found.push(refuse("mps-copy-types", format!("copy {index} has {types:?}")));
            }
            let counts = (source.descriptor().matrices(), destination.descriptor().matrices());
            if counts != (1, 1) {
                found.push(refuse("mps-copy-batch", format!("copy {index} has {counts:?} matrices")));
            }
        }
        let unequal = |transposed: bool, row: u32, column: u32| transposed && row != column;
        for (index, offsets) in copies.offsets.iter().enumerate() {
            if unequal(self.sources_transposed, offsets.source_row, offsets.source_column)
                || unequal(self.destinations_transposed, offsets.destination_row, offsets.destination_column)
            {
                found.push(refuse("mps-copy-transposed-offsets", format!("copy {index} has {offsets:?}")));
            }
        }
        found
    }

    /// The bytes read and written; under a permutation every row, or column, of a destination counts.
    pub fn touches(&self, copies: &Copies<'_>) -> Touches {
        let mut touches = Touches::default();
        for (index, offsets) in copies.offsets.iter().enumerate() {
            let (source, destination) = (&copies.sources[index], &copies.destinations[index]);
            let read = self.stored_source().region(offsets.source(), 0..1);
            touches.read(Operand::Source(index), source.region_ranges(&read));
            let mut written = self.stored_destination().region(offsets.destination(), 0..1);
            if copies.row_permutation.is_some() {
                written.rows = 0..destination.descriptor().rows();
            }
            if copies.column_permutation.is_some() {
                written.columns = 0..destination.descriptor().columns();
            }
            touches.write(Operand::Destination(index), destination.region_ranges(&written));
        }
        let extent = self.stored_destination();
        if let Some(Permutation { indices, offset }) = copies.row_permutation {
            let used = offset..offset + extent.rows;
            touches.read(Operand::RowPermutation, indices.region_ranges(0..1, used));
        }
        if let Some(Permutation { indices, offset }) = copies.column_permutation {
            let used = offset..offset + extent.columns;
            touches.read(Operand::ColumnPermutation, indices.region_ranges(0..1, used));
        }
        touches
    }

    /// Checks and copies.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), and `mps-copy-permutation-index` for an index outside a destination;
    /// nothing is written then.
    ///
    /// # Safety
    ///
    /// The buffers are readable, and the destinations' writable, over the lengths given to their
    /// constructors, and nothing else uses them during the call.
    pub unsafe fn run(&self, copies: &Copies<'_>) -> Result<(), Refusal> {
        self.check(copies)?;
        let stored = self.stored_destination();
        // SAFETY: the caller vouches for the buffers.
        let rows = unsafe { places(copies.row_permutation, stored.rows) };
        // SAFETY: as above.
        let columns = unsafe { places(copies.column_permutation, stored.columns) };
        for (destination, offsets) in copies.destinations.iter().zip(copies.offsets) {
            let origin = offsets.destination();
            let (height, width) = (destination.descriptor().rows(), destination.descriptor().columns());
            let inside = rows.iter().all(|row| row.saturating_add(origin.x) < height)
                && columns.iter().all(|column| column.saturating_add(origin.y) < width);
            require(inside, "mps-copy-permutation-index", || {
                format!("an index leaves the destination of {height} x {width}")
            })?;
        }
        for (index, offsets) in copies.offsets.iter().enumerate() {
            let (from, to) = (offsets.source(), offsets.destination());
            for i in 0..self.rows {
                for j in 0..self.columns {
                    let (a, b) = if self.sources_transposed { (j, i) } else { (i, j) };
                    let (c, d) = if self.destinations_transposed { (j, i) } else { (i, j) };
                    // SAFETY: as above.
                    unsafe {
                        let value = copies.sources[index].read(0, from.x + a, from.y + b);
                        copies.destinations[index].write(0, to.x + rows[c], to.y + columns[d], value);
                    }
                }
            }
        }
        Ok(())
    }

    fn stored_source(&self) -> Extent {
        stored(self.sources_transposed, self.rows, self.columns)
    }

    fn stored_destination(&self) -> Extent {
        stored(self.destinations_transposed, self.rows, self.columns)
    }
}

/// # Safety
///
/// The buffer of the indices is readable and nothing writes it.
unsafe fn places(permutation: Option<Permutation<'_>>, count: usize) -> Vec<usize> {
    let range: Range<usize> = 0..count;
    match permutation {
        // SAFETY: passed on to the caller.
        Some(order) => range.map(|i| unsafe { order.indices.read(0, order.offset + i) } as usize).collect(),
        None => range.collect(),
    }
}

fn address(copies: &Copies<'_>, operand: Operand) -> usize {
    match operand {
        Operand::Source(index) => copies.sources[index].buffer().addr(),
        Operand::Destination(index) => copies.destinations[index].buffer().addr(),
        Operand::RowPermutation => copies.row_permutation.map_or(0, |order| order.indices.buffer().addr()),
        _ => copies.column_permutation.map_or(0, |order| order.indices.buffer().addr()),
    }
}
