//! What every matrix kernel shares: origins, batches, and rows and columns that are clipped when encoded.

use std::ops::Range;

use crate::element::Element;
use crate::matrix::{Matrix, Region};
use crate::rules::{Refusal, refuse, require};

/// The start of an operation inside a matrix: `MTLOrigin` as the matrix kernels read it.
///
/// The headers of softmax and top-k clip rows from `x` and columns from `y`; so `x` is a row, `y` a column.
/// In a vector `x` is an element and `y` must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// First row, or first element of a vector.
    pub x: usize,
    /// First column.
    pub y: usize,
    /// Must be 0.
    pub z: usize,
}

impl Origin {
    /// The origin at a row and a column.
    pub const fn at(row: usize, column: usize) -> Self {
        Self { x: row, y: column, z: 0 }
    }

    pub(crate) fn check(&self, name: &str) -> Result<(), Refusal> {
        require(self.z == 0, "mps-origin-z", || format!("{name} origin has z = {}; set it to 0", self.z))
    }
}

/// The matrices of a batch that a kernel processes: `batchStart` and `batchSize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Index of the first matrix.
    pub start: usize,
    /// How many matrices at most; `usize::MAX`, the default, takes all there are.
    pub size: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { start: 0, size: usize::MAX }
    }
}

impl Batch {
    /// The matrices processed: those of the range that every operand has, by the headers' words. A single
    /// matrix is not repeated over a batch: no header says so.
    pub fn matrices(&self, counts: &[usize]) -> Range<usize> {
        let available = counts.iter().copied().min().unwrap_or(0);
        let end = self.start.saturating_add(self.size).min(available);
        self.start.min(end)..end
    }

    pub(crate) fn check(&self, counts: &[usize]) -> Result<(), Refusal> {
        require(!self.matrices(counts).is_empty(), "mps-batch-start", || {
            format!(
                "batch of {} from {} holds no matrix that all operands have ({counts:?} matrices)",
                self.size, self.start
            )
        })
    }

    pub(crate) fn suspect(&self, counts: &[usize]) -> Option<Refusal> {
        let most = counts.iter().copied().max().unwrap_or(0);
        let wanted = if self.size == usize::MAX { most.saturating_sub(self.start) } else { self.size };
        let processed = self.matrices(counts).len();
        (processed < wanted).then(|| {
            let text = format!("{processed} of {wanted} matrices are processed: operands have {counts:?}");
            refuse("mps-batch-clipped", text)
        })
    }
}

/// Rows and columns that a kernel takes from its source: `sourceRows` and `sourceColumns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Rows at most; `usize::MAX`, the default, takes all from the origin on.
    pub rows: usize,
    /// Columns at most; `usize::MAX`, the default, takes all from the origin on.
    pub columns: usize,
}

impl Default for Extent {
    fn default() -> Self {
        Self { rows: usize::MAX, columns: usize::MAX }
    }
}

impl Extent {
    /// Rows and columns left of this extent in a matrix from an origin on.
    pub fn clip(&self, matrix: &Matrix, origin: Origin) -> Extent {
        let descriptor = matrix.descriptor();
        Extent {
            rows: self.rows.min(descriptor.rows().saturating_sub(origin.x)),
            columns: self.columns.min(descriptor.columns().saturating_sub(origin.y)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0 || self.columns == 0
    }

    pub(crate) fn fits(&self, matrix: &Matrix, origin: Origin) -> bool {
        let inside = |start: usize, count: usize, limit: usize| {
            start.checked_add(count).is_some_and(|end| end <= limit)
        };
        let descriptor = matrix.descriptor();
        inside(origin.x, self.rows, descriptor.rows()) && inside(origin.y, self.columns, descriptor.columns())
    }

    pub(crate) fn region(&self, origin: Origin, matrices: Range<usize>) -> Region {
        Region { matrices, rows: origin.x..origin.x + self.rows, columns: origin.y..origin.y + self.columns }
    }
}

/// The factor as a kernel uses it: rounded to the type of the result, and clamped to its largest value, as
/// the headers of the products say of alpha and beta.
pub fn scale(value: f64, element: Element) -> f64 {
    let rounded = element.round(value);
    if rounded.is_infinite() && value.is_finite() { element.largest().copysign(value) } else { rounded }
}

pub(crate) fn scale_suspect(name: &str, value: f64, element: Element) -> Option<Refusal> {
    let used = scale(value, element);
    let kept = value == 0. || !value.is_finite() || ((used - value) / value).abs() < 1. / 64.;
    (!kept).then(|| refuse("mps-scale-range", format!("{name} = {value} becomes {used} in {element:?}")))
}
