//! What the classes of Metal Performance Shaders compute, and what they refuse.
//!
//! The crate knows no Objective-C and no Metal: an operand is a pointer, a length, an offset and a
//! descriptor. A test device wraps these structs in the classes that a program calls, so that a program
//! written for a Mac meets the same shapes, strides, origins and refusals on a machine that has none.
//!
//! Every operation is a struct of the values that its class fixes before encoding, with four methods:
//!
//! * `check` refuses operands that the documents, or the assertions of the runtime, refuse. On a Mac such a
//!   call aborts the process, or its result is undefined.
//! * `suspects` lists what is legal by the documents and yet known to fail on some system or chip, or is
//!   left unsaid by the documents: each entry is worth a line in a log, none is a refusal. Ask it, and
//!   `touches`, about operands that `check` accepts; others may panic.
//! * `touches` gives the bytes that the call reads and writes, counted from the start of each operand's
//!   buffer, so that a checker of orderings can find two commands that race.
//! * `run` checks, then computes. Every value is read to `f64`, the documented formula is evaluated in
//!   `f64`, and each result is rounded once to the type of the result. That is closer to the formula than
//!   any GPU is: a comparison against a GPU needs the tolerance of the GPU's own accumulation.
//!
//! Origins follow the headers' reading for matrices: `x` counts rows and `y` counts columns.
//!
//! # Example
//!
//! ```
//! use softmetal_formulas::element::Element;
//! use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
//! use softmetal_formulas::multiplication::Multiplication;
//!
//! let descriptor = MatrixDescriptor::packed(2, 2, Element::Float32).unwrap();
//! let mut left = [1f32, 2., 3., 4.];
//! let mut right = [0f32, 1., 1., 0.];
//! let mut result = [0f32; 4];
//! let matrix = |values: &mut [f32; 4]| Matrix::new(values.as_mut_ptr().cast(), 16, 0, descriptor).unwrap();
//! let operands = [matrix(&mut left), matrix(&mut right), matrix(&mut result)];
//! let product = Multiplication::new(2, 2, 2);
//! // SAFETY: the three arrays outlive the call and nothing else uses them meanwhile.
//! unsafe { product.run(&operands[0], &operands[1], &operands[2]) }.unwrap();
//! assert_eq!(result, [2., 1., 4., 3.]);
//! ```
//!
//! Sources: the header text kept in the crate `objc2-metal-performance-shaders` 0.3.2, and for what the
//! headers leave out the assertion texts and bug reports that each [`rules::Rule`] names.

pub mod copy;
pub mod element;
pub mod kernel;
pub mod matrix;
pub mod multiplication;
pub mod ndarray;
pub mod ndarray_multiplication;
pub mod neuron;
pub mod rules;
pub mod softmax;
pub mod softmax_gradient;
pub mod sum;
pub mod top_k;
pub mod touches;
pub mod vector;
pub mod vector_multiplication;
