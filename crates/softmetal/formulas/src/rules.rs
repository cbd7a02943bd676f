//! The rules: what is refused or suspected, by id, each with its source.

use std::fmt;

/// How sure a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// A contract: by the header or the assertions of the runtime a call that breaks it aborts or is
    /// undefined. `check` and `run` refuse it.
    Documented,
    /// Legal by the documents, but it fails on some system or chip, or the documents leave it unsaid.
    /// `suspects` lists it.
    Suspected,
}

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable name, `mps-...`.
    pub id: &'static str,
    /// What holds for a call that keeps the rule.
    pub text: &'static str,
    /// How sure the rule is.
    pub severity: Severity,
    /// The document, assertion or report that says so.
    pub source: &'static str,
}

/// A call that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub rule: &'static Rule,
    /// What the call had instead, with its numbers.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({} Source: {})", self.rule.id, self.message, self.rule.text, self.rule.source)
    }
}

impl std::error::Error for Refusal {}

/// The rule of an id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.id == id)
}

/// A refusal by the rule of an id.
///
/// # Panics
///
/// For an id that is not in the table; a test reads the sources and finds such an id.
pub fn refuse(id: &str, message: String) -> Refusal {
    let rule = rule(id).unwrap_or_else(|| panic!("no rule has the id {id}"));
    Refusal { rule, message }
}

pub(crate) fn require(holds: bool, id: &str, message: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refuse(id, message())) }
}

const fn documented(id: &'static str, text: &'static str, source: &'static str) -> Rule {
    Rule { id, text, severity: Severity::Documented, source }
}

const fn suspected(id: &'static str, text: &'static str, source: &'static str) -> Rule {
    Rule { id, text, severity: Severity::Suspected, source }
}

/// Every rule.
pub static RULES: &[Rule] = &[
    documented(
        "mps-element-modelled",
        "A data type is a number of MPSDataType of whole bytes: float, bfloat, integer or Bool.",
        "header MPSCoreTypes.h; complex, normalised and sub-byte types are left out of this model",
    ),
    documented(
        "mps-matrix-zero",
        "Rows, columns and matrices of a matrix descriptor are at least 1.",
        "header MPSMatrix.h, descriptor; zero sizes abort (pytorch #143859)",
    ),
    documented(
        "mps-row-bytes-multiple",
        "rowBytes is a multiple of the element size.",
        "header MPSMatrix.h, rowBytes",
    ),
    documented(
        "mps-row-bytes-small",
        "rowBytes holds a full row: columns times the element size.",
        "header MPSMatrix.h, rowBytesForColumns",
    ),
    documented(
        "mps-matrix-bytes-multiple",
        "matrixBytes is a multiple of rowBytes.",
        "header MPSMatrix.h, matrixBytes",
    ),
    documented(
        "mps-matrix-bytes-small",
        "matrixBytes is at least rows times rowBytes.",
        "header MPSMatrix.h, class description of MPSMatrix",
    ),
    documented(
        "mps-matrix-offset-alignment",
        "The offset of a matrix is a multiple of the element size.",
        "Metal Shading Language: device pointers are aligned to their type; the header of MPSMatrix is silent",
    ),
    documented(
        "mps-matrix-buffer-small",
        "From the offset on the buffer holds (matrices-1) matrixBytes + (rows-1) rowBytes + columns elements.",
        "header MPSMatrix.h, initWithBuffer:descriptor:",
    ),
    documented(
        "mps-vector-zero",
        "Length and vectors of a vector descriptor are at least 1.",
        "header MPSMatrix.h, vector descriptor; zero sizes abort (pytorch #143859)",
    ),
    documented(
        "mps-vector-bytes-multiple",
        "vectorBytes is a multiple of the element size.",
        "header MPSMatrix.h, vectorBytes",
    ),
    documented(
        "mps-vector-bytes-small",
        "vectorBytes holds a full vector: length times the element size.",
        "header MPSMatrix.h, vectorBytesForLength",
    ),
    documented(
        "mps-vector-offset-alignment",
        "The offset of a vector is a multiple of the element size.",
        "Metal Shading Language: device pointers are aligned to their type; the header of MPSVector is silent",
    ),
    documented(
        "mps-vector-buffer-small",
        "From the offset on the buffer holds (vectors-1) vectorBytes + length elements.",
        "header MPSMatrix.h, initWithBuffer:descriptor: of MPSVector",
    ),
    documented(
        "mps-origin-z",
        "The z of an origin is 0.",
        "headers MPSMatrixTypes.h and MPSMatrixMultiplication.h, origins",
    ),
    documented(
        "mps-batch-start",
        "The range of a batch holds a matrix that every operand has.",
        "headers MPSMatrixTypes.h and MPSMatrixMultiplication.h, batchStart and encode",
    ),
    suspected(
        "mps-batch-clipped",
        "Every operand has all matrices of the batch; the ones that some operand lacks are skipped without a word.",
        "headers: matrices valid in all operands are processed; no broadcast is promised",
    ),
    suspected(
        "mps-alias",
        "A result shares no byte with another operand.",
        "headers promise nothing about operation in place",
    ),
    suspected(
        "mps-scale-range",
        "alpha and beta survive rounding to the type of the result; outside its range they are clamped or lost.",
        "header MPSMatrixMultiplication.h, alpha and beta",
    ),
    documented(
        "mps-product-left-shape",
        "The left matrix holds resultRows x interiorColumns, or its transpose, from its origin on.",
        "header MPSMatrixMultiplication.h, encode",
    ),
    documented(
        "mps-product-right-shape",
        "The right matrix holds interiorColumns x resultColumns, or its transpose, from its origin on.",
        "header MPSMatrixMultiplication.h, encode",
    ),
    documented(
        "mps-product-result-shape",
        "The result matrix holds resultRows x resultColumns from its origin on.",
        "header MPSMatrixMultiplication.h, encode; assertion 'Number of requested rows' (MPSMatrixMultiplication.mm:3240)",
    ),
    documented(
        "mps-product-input-types",
        "Inputs of a product are Float32, Float16, Int8 or Int16; BFloat16 aborts.",
        "assertion of MPSMatrixMultiplication.mm:3260, seen on M2 and M4",
    ),
    documented(
        "mps-product-mixed-types",
        "Inputs of a product have one type, or are Float32 and Float16 with a Float32 result.",
        "assertion of MPSMatrixMultiplication.mm:3250",
    ),
    documented(
        "mps-product-result-type",
        "Input and result types are one of Int8-Float16, Int8-Float32, Int16-Float32, Float16-Float16, Float16-Float32, Float32-Float32.",
        "table of valid combinations in Metal.jl, lib/mps/matrix.jl",
    ),
    suspected(
        "mps-product-zero",
        "Rows, columns and interior columns of a product are at least 1.",
        "guard table: zero sizes abort elsewhere in MPS (pytorch #143859)",
    ),
    suspected(
        "mps-product-overflow",
        "(M + 2K) N elements stay below 2^31 bytes; on M1 and M2 a band of rows is NaN.",
        "Metal.jl #381",
    ),
    suspected(
        "mps-product-interior",
        "K is at most 32000; past 32767 M1 and M2 read beyond K when M and N are at least 16.",
        "pytorch #183535, #177116, #195163, #193487",
    ),
    suspected(
        "mps-product-strided",
        "No dimension passes 2^15 where rows are padded; before macOS 14.4 such products are wrong.",
        "pytorch #116769",
    ),
    suspected(
        "mps-product-operand-bytes",
        "Each operand of a product stays below 2^31 bytes.",
        "guard table, a conservative bound from Metal.jl #381",
    ),
    suspected(
        "mps-product-batch",
        "A batch has at most 65535 matrices.",
        "pytorch #189495, seen on MPSNDArray",
    ),
    documented(
        "mps-vector-product-matrix-shape",
        "The matrix holds rows x columns of op(A) from its origin on.",
        "header MPSMatrixMultiplication.h, MPSMatrixVectorMultiplication encode",
    ),
    documented(
        "mps-vector-product-input-length",
        "The input vector holds as many elements as op(A) has columns, from origin x on.",
        "header MPSMatrixMultiplication.h, MPSMatrixVectorMultiplication encode",
    ),
    documented(
        "mps-vector-product-result-length",
        "The result vector holds as many elements as op(A) has rows, from origin x on.",
        "header MPSMatrixMultiplication.h, MPSMatrixVectorMultiplication encode",
    ),
    documented(
        "mps-vector-product-origin",
        "The y and z of the origins of vectors are 0.",
        "header MPSMatrixMultiplication.h, MPSMatrixVectorMultiplication encode",
    ),
    documented(
        "mps-vector-product-types",
        "Matrix and input have one type, and (input, result) is Float32-Float32, Float16-Float16 or Float16-Float32.",
        "Metal.jl, lib/mps/matrix.jl",
    ),
    documented(
        "mps-softmax-source-origin",
        "The source origin lies in the source, and sourceRows and sourceColumns are at least 1.",
        "header MPSMatrixSoftMax.h, sourceRows and sourceColumns",
    ),
    documented(
        "mps-softmax-result-shape",
        "The result holds the rows and columns taken from the source, from its origin on.",
        "header MPSMatrixSoftMax.h, encode",
    ),
    documented(
        "mps-softmax-types",
        "Source and result of softmax have one type, Float32 or Float16.",
        "header MPSMatrixSoftMax.h, encode",
    ),
    documented(
        "mps-softmax-gradient-source-origin",
        "Each source origin lies in its source, and sourceRows and sourceColumns are at least 1.",
        "header MPSMatrixSoftMax.h, MPSMatrixSoftMaxGradient",
    ),
    documented(
        "mps-softmax-gradient-result-shape",
        "The result holds the rows and columns taken from the sources, from its origin on.",
        "header MPSMatrixSoftMax.h, MPSMatrixSoftMaxGradient",
    ),
    documented(
        "mps-softmax-gradient-types",
        "Gradient, forward output and result have one type, Float32 or Float16.",
        "header MPSMatrixSoftMax.h, by the rule of the forward kernel",
    ),
    suspected(
        "mps-softmax-gradient-sizes",
        "Gradient and forward output offer the same rows and columns; the larger one is clipped without a word.",
        "header MPSMatrixSoftMax.h, sourceRows: adjusted to fit the sources",
    ),
    documented(
        "mps-top-k-count",
        "numberOfTopKValues is 1 to 16; more is undefined behaviour.",
        "header MPSMatrixFindTopK.h, numberOfTopKValues",
    ),
    documented(
        "mps-top-k-source-origin",
        "The source origin lies in the source, and sourceRows is at least 1.",
        "header MPSMatrixFindTopK.h, sourceRows and sourceColumns",
    ),
    documented(
        "mps-top-k-columns",
        "The source has at least numberOfTopKValues columns from its origin on.",
        "header MPSMatrixFindTopK.h, encode",
    ),
    documented(
        "mps-top-k-index-type",
        "The matrix of indices is UInt32.",
        "header MPSMatrixFindTopK.h, resultIndexMatrix",
    ),
    documented(
        "mps-top-k-value-types",
        "Source and values have one type, Float32 or Float16.",
        "header MPSMatrixFindTopK.h, encode",
    ),
    documented(
        "mps-top-k-index-shape",
        "The matrix of indices holds the rows taken and numberOfTopKValues columns from the result origin on.",
        "header MPSMatrixFindTopK.h, encode",
    ),
    documented(
        "mps-top-k-value-shape",
        "The matrix of values holds the rows taken and numberOfTopKValues columns from the result origin on.",
        "header MPSMatrixFindTopK.h, encode",
    ),
    documented(
        "mps-copy-count",
        "A copy descriptor has as many destinations as sources and offsets, and at least one.",
        "header MPSMatrixCombination.h, initWithSourceMatrices",
    ),
    documented(
        "mps-copy-source-shape",
        "Each source holds copyRows x copyColumns, or its transpose, from its offsets on.",
        "header MPSMatrixCombination.h, copyRows and copyColumns",
    ),
    documented(
        "mps-copy-destination-shape",
        "Each destination holds copyRows x copyColumns, or its transpose, from its offsets on.",
        "header MPSMatrixCombination.h, copyRows and copyColumns",
    ),
    documented(
        "mps-copy-alias",
        "The copies of a descriptor run in any order and share no byte that one of them writes.",
        "header MPSMatrixCombination.h, MPSMatrixCopyDescriptor",
    ),
    documented(
        "mps-copy-offsets-type",
        "A vector of offsets is UInt32.",
        "header MPSMatrixCombination.h, initWithSourceMatrices",
    ),
    documented(
        "mps-copy-offsets-alignment",
        "The byte offset into a vector of offsets is a multiple of 16.",
        "header MPSMatrixCombination.h, initWithSourceMatrices",
    ),
    documented(
        "mps-copy-offsets-length",
        "A vector of offsets holds four numbers for each copy from its byte offset on.",
        "header MPSMatrixCombination.h, MPSMatrixCopyOffsets",
    ),
    documented(
        "mps-copy-permutation-type",
        "A permutation of rows or columns is a vector of UInt32.",
        "header MPSMatrixCombination.h, rowPermuteIndices; the type is that of the offsets",
    ),
    documented(
        "mps-copy-permutation-length",
        "A permutation holds an index for each row or column copied, from its offset on.",
        "header MPSMatrixCombination.h, rowPermuteIndices",
    ),
    documented(
        "mps-copy-permutation-index",
        "A permuted row or column lies in the destination; known only when the copy runs.",
        "header MPSMatrixCombination.h, rowPermuteIndices",
    ),
    suspected(
        "mps-copy-types",
        "Source and destination of a copy have one type.",
        "the header does not say whether a copy converts",
    ),
    suspected(
        "mps-copy-batch",
        "Source and destination of a copy are single matrices.",
        "MPSMatrixCopy has no batch; the model copies the first matrix",
    ),
    suspected(
        "mps-copy-transposed-offsets",
        "Row and column offsets of a transposed operand are equal.",
        "the header does not say whether they count before or after the transpose; the model counts stored rows and columns",
    ),
    documented(
        "mps-sum-count",
        "As many matrices are summed as the kernel was made for, and at least one.",
        "header MPSMatrixSum.h, count",
    ),
    documented(
        "mps-sum-source-shape",
        "Each source holds rows x columns from its offset on.",
        "header MPSMatrixSum.h, rows and columns",
    ),
    documented(
        "mps-sum-result-shape",
        "The result holds rows x columns, or their transpose, from its origin on.",
        "header MPSMatrixSum.h, transpose and resultMatrixOrigin",
    ),
    documented(
        "mps-sum-types",
        "Sources, result and bias have one type, Float32 or Float16.",
        "guard table for matrix kernels; the header names no type",
    ),
    documented(
        "mps-sum-scale-type",
        "The vector of scale factors is Float32.",
        "header MPSMatrixSum.h, scaleVector",
    ),
    documented(
        "mps-sum-offset-type",
        "The vector of offsets is UInt32.",
        "header MPSMatrixSum.h, offsetVector",
    ),
    documented(
        "mps-sum-vector-length",
        "From startIndex on the vectors hold a factor, and a pair of offsets, for each matrix.",
        "header MPSMatrixSum.h, startIndex",
    ),
    documented(
        "mps-sum-bias-length",
        "The bias holds an element for each column of the result.",
        "header MPSMatrixSum.h, class description",
    ),
    documented(
        "mps-neuron-type",
        "The activation takes at most three parameters shared by all values: not PReLU.",
        "header MPSMatrixSum.h, setNeuronType; an error by its words",
    ),
    documented(
        "mps-neuron-source-origin",
        "The source origin lies in the source, and the rows and columns taken are at least 1.",
        "header MPSMatrixNeuron.h, sourceNumberOfFeatureVectors",
    ),
    documented(
        "mps-neuron-result-shape",
        "The result holds the rows and columns taken from the source, from its origin on.",
        "header MPSMatrixNeuron.h, encode",
    ),
    documented(
        "mps-neuron-bias-length",
        "The bias holds an element for each column taken.",
        "header MPSMatrixNeuron.h, biasVector",
    ),
    documented(
        "mps-neuron-types",
        "Source, bias and result have one type, Float32 or Float16.",
        "guard table for matrix kernels",
    ),
    documented(
        "mps-ndarray-rank",
        "An array has at most 16 dimensions.",
        "header MPSNDArray.h, numberOfDimensions",
    ),
    documented("mps-ndarray-zero", "No dimension of an array has length 0.", "abort, pytorch #143859"),
    documented(
        "mps-ndarray-elements",
        "The product of the lengths of an array is less than 2^31.",
        "header MPSNDArray.h, descriptorWithDataType",
    ),
    suspected("mps-ndarray-bytes", "An array stays within 4 GiB.", "abort, pytorch #143859"),
    documented(
        "mps-ndarray-offset-alignment",
        "The offset of an array is a multiple of the element size.",
        "Metal Shading Language: device pointers are aligned to their type; the header is silent",
    ),
    documented(
        "mps-ndarray-buffer-small",
        "The buffer holds the array from its offset on; rows are padded to 16 bytes unless preferPackedRows is set.",
        "header MPSNDArray.h, initWithBuffer:offset:descriptor: and rowBytes",
    ),
    documented(
        "mps-ndarray-dimension",
        "An index of a dimension is less than the number of dimensions.",
        "header MPSNDArray.h, transposeDimension and sliceDimension",
    ),
    documented(
        "mps-ndarray-slice",
        "A slice is not empty and lies in its dimension.",
        "header MPSNDArray.h, sliceDimension",
    ),
    documented(
        "mps-ndarray-permutation",
        "A dimension order names every dimension once.",
        "header MPSNDArray.h, permuteWithDimensionOrder",
    ),
    documented(
        "mps-ndarray-view-shape",
        "A view slices and transposes the lengths that its array has.",
        "header MPSNDArray.h, arrayViewWithDescriptor: nil if impossible",
    ),
    documented(
        "mps-ndarray-view-strides",
        "The strides of a view are as many as its lengths, start with 1 and do not decrease, fastest dimension first.",
        "header MPSNDArray.h, arrayViewWithDimensionCount",
    ),
    documented(
        "mps-ndarray-view-contiguous",
        "A view by strides is made of a contiguous array and stays inside it.",
        "header MPSNDArray.h, arrayViewWithShape",
    ),
    documented(
        "mps-ndarray-product-sources",
        "A product of arrays has two sources, or three with an addend.",
        "header MPSNDArrayMatrixMultiplication.h",
    ),
    documented(
        "mps-ndarray-product-rank",
        "Arrays of a product have at most 4 dimensions longer than 1, all among the first four.",
        "header MPSNDArrayMatrixMultiplication.h: a 4-D array",
    ),
    documented(
        "mps-ndarray-product-types",
        "Arrays of a product are Float32, Float16 or BFloat16.",
        "types that pytorch passes (Linear.mm); integers need the quantized class",
    ),
    suspected(
        "mps-ndarray-product-mixed-types",
        "Arrays of a product have one type.",
        "the header does not say which mixtures are valid",
    ),
    documented(
        "mps-ndarray-product-interior",
        "The left array has as many columns as the right one has rows.",
        "header MPSNDArrayMatrixMultiplication.h, D = alpha A B + beta C",
    ),
    documented(
        "mps-ndarray-product-batch-shape",
        "Dimensions 2 and 3 of a source are 1 or those of the result.",
        "header MPSNDArrayMatrixMultiplication.h, broadcast",
    ),
    documented(
        "mps-ndarray-product-result-shape",
        "The result has the rows of the left, the columns of the right and the broadcast batch.",
        "header MPSNDArrayMatrixMultiplication.h",
    ),
    documented(
        "mps-ndarray-product-addend-shape",
        "Rows and columns of the addend are those of the result, or 1.",
        "header MPSNDArrayMatrixMultiplication.h; a bias row is what pytorch passes (Linear.mm)",
    ),
    suspected(
        "mps-ndarray-product-batch",
        "A product of arrays has at most 65535 matrices; past 2^16 the index wraps.",
        "pytorch #189495",
    ),
    suspected(
        "mps-ndarray-product-half-batch",
        "Float16 and BFloat16 products have one matrix; with more dimensions M5 gives results that vary.",
        "pytorch #180776, #181466, #181504",
    ),
    suspected(
        "mps-ndarray-product-addend-row",
        "A product with an addend has more than one row; with one, M1 on macOS 26 drops the addend.",
        "guard table, fixed in macOS 27",
    ),
    suspected(
        "mps-ndarray-product-transposed-bfloat16",
        "A BFloat16 source is not a transposed view; macOS 27 aborts.",
        "pytorch #197796",
    ),
];
