//! Scalar f64 tensors: the definitions against which every kernel is tested.

use crate::tensor::Shape;

/// A contiguous f64 tensor. Integers are held as f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// The lengths of the axes.
    pub shape: Shape,
    /// The elements, row-major.
    pub data: Vec<f64>,
}

impl Reference {
    /// A tensor from its elements.
    pub fn new(shape: impl Into<Shape>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.elements(), data.len(), "as many elements as the shape says");
        Self { shape, data }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.elements()];
        Self { shape, data }
    }

    /// Element `(i, j)` of a matrix whose last axis has length `shape.last()`.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row * self.shape.last() + column]
    }

    /// The rows of the last axis.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks(self.shape.last().max(1))
    }

    /// A tensor of the same shape, element by element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// A tensor of the same shape, row by row of the last axis.
    pub fn map_rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self { shape: self.shape.clone(), data: self.rows().flat_map(f).collect() }
    }
}
