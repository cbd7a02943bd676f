//! The safe layer over objc2-metal-performance-shaders.
//!
//! The framework checks nothing that it could return: what its methods demand is checked here, by sizes that the
//! wrappers remember, so that a caller's mistake is an error and not the end of the process. A wrapper retains its object
//! when it is made and releases it when it is dropped; a kernel also keeps its device. Encoding into a command buffer
//! wants an [`NoEncoder`]: no encoder is open. Objects stay on the thread that made them (`kernels.rs` holds them there).

use std::ptr::NonNull;

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2::{AnyThread, Message};
use objc2_foundation::NSArray;
use objc2_metal::{MTLBuffer, MTLCommandBuffer, MTLCommandEncoder, MTLDevice, MTLDispatchType};
use objc2_metal_performance_shaders::{
    MPSDataType, MPSMatrix, MPSMatrixDescriptor, MPSMatrixFindTopK, MPSMatrixLogSoftMax,
    MPSMatrixLogSoftMaxGradient, MPSMatrixMultiplication, MPSMatrixSoftMax, MPSMatrixSoftMaxGradient,
    MPSNDArray, MPSNDArrayDescriptor, MPSNDArrayMatrixMultiplication, MPSNDArrayMultiaryKernel,
};

use super::guard::{self, ProductShape};
use crate::backend::gpu::library::MatrixLayout;
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::error::failed;
use crate::error::DeviceFault;
use crate::tensor::DType;
use crate::{Error, Result};

pub(super) type Device = ProtocolObject<dyn MTLDevice>;

fn misuse(what: impl std::fmt::Display) -> Error {
    Error::invalid("Metal Performance Shaders", format!("{what}; please report this"))
}

fn missing(what: &str) -> Error {
    failed("Metal Performance Shaders", DeviceFault::Unavailable, format!("the system gives no {what}"))
}

/// The framework's name of an element type.
fn data_type(dtype: DType) -> MPSDataType {
    match dtype {
        DType::F32 => MPSDataType::Float32,
        DType::F16 => MPSDataType::Float16,
        DType::BF16 => MPSDataType::BFloat16,
        DType::U32 => MPSDataType::UInt32,
    }
}

impl MatrixLayout {
    /// Refuses a place in which it does not lie.
    fn check(&self, buffer: &ProtocolObject<dyn MTLBuffer>, offset: usize) -> Result<()> {
        let within = self.fits()
            && offset.is_multiple_of(self.dtype.size())
            && offset.checked_add(self.bytes()).is_some_and(|end| end <= buffer.length());
        if within {
            return Ok(());
        }
        Err(misuse(format_args!("{self:?} does not lie at byte {offset} of {}", buffer.length())))
    }

    /// Rows and columns of the matrix as it is used.
    fn used(&self, transposed: bool) -> (usize, usize) {
        if transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

/// `MPSMatrix`: matrices in a buffer. Cheap, and made at every encoding, as the arena may be another one by then.
pub(super) struct Matrix {
    raw: Retained<MPSMatrix>,
    layout: MatrixLayout,
}

impl Matrix {
    pub(super) fn over(
        buffer: &ProtocolObject<dyn MTLBuffer>,
        offset: usize,
        layout: MatrixLayout,
    ) -> Result<Self> {
        layout.check(buffer, offset)?;
        let size = layout.dtype.size();
        let step = if layout.batch == 1 { layout.rows * layout.row } else { layout.step };
        // SAFETY: the strides are what the descriptor demands, and all elements lie in the buffer; both were checked. The
        // matrix keeps the buffer, and the command buffer retains what is bound.
        let raw = unsafe {
            let descriptor =
                MPSMatrixDescriptor::matrixDescriptorWithRows_columns_matrices_rowBytes_matrixBytes_dataType(
                    layout.rows,
                    layout.columns,
                    layout.batch,
                    layout.row * size,
                    step * size,
                    data_type(layout.dtype),
                );
            MPSMatrix::initWithBuffer_offset_descriptor(MPSMatrix::alloc(), buffer, offset, &descriptor)
        };
        Ok(Self { raw, layout })
    }
}

/// `MPSNDArray` of two axes over a matrix without gaps between its rows, seen transposed if asked for.
pub(super) struct Array {
    raw: Retained<MPSNDArray>,
    shape: (usize, usize),
    dtype: DType,
}

impl Array {
    pub(super) fn over(
        buffer: &ProtocolObject<dyn MTLBuffer>,
        offset: usize,
        layout: MatrixLayout,
        transposed: bool,
    ) -> Result<Self> {
        layout.check(buffer, offset)?;
        if layout.row != layout.columns || layout.batch != 1 {
            return Err(misuse(format_args!("{layout:?} is no array without gaps")));
        }
        // The class counts axes from the innermost one.
        let mut sizes = [layout.columns, layout.rows];
        // SAFETY: two sizes are given, and all elements lie in the buffer, as was checked.
        let raw = unsafe {
            let descriptor = MPSNDArrayDescriptor::descriptorWithDataType_dimensionCount_dimensionSizes(
                data_type(layout.dtype),
                sizes.len(),
                NonNull::from(&mut sizes).cast(),
            );
            descriptor.setPreferPackedRows(true);
            let array = MPSNDArray::initWithBuffer_offset_descriptor(
                MPSNDArray::alloc(),
                buffer,
                offset,
                &descriptor,
            );
            if transposed {
                let view = array.descriptor();
                view.transposeDimension_withDimension(0, 1);
                array.arrayViewWithDescriptor(&view).ok_or_else(|| missing("transposed view of a matrix"))?
            } else {
                array
            }
        };
        Ok(Self { raw, shape: layout.used(transposed), dtype: layout.dtype })
    }
}

/// Everything that a product object remembers; factors by their bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ProductKey {
    transposes: (bool, bool),
    /// Rows and columns of the result, inner length.
    sizes: [usize; 3],
    factors: (u32, u32),
}

impl ProductKey {
    pub(super) fn new(transposes: (bool, bool), sizes: [usize; 3], (alpha, beta): (f32, f32)) -> Self {
        Self { transposes, sizes, factors: (alpha.to_bits(), beta.to_bits()) }
    }

    fn factors(&self) -> (f64, f64) {
        (f64::from(f32::from_bits(self.factors.0)), f64::from(f32::from_bits(self.factors.1)))
    }
}

/// `MPSMatrixMultiplication`.
pub(super) struct Multiplication {
    raw: Retained<MPSMatrixMultiplication>,
    key: ProductKey,
    _device: Retained<Device>,
}

impl Multiplication {
    pub(super) fn new(device: &Device, key: ProductKey) -> Self {
        let ([m, n, k], (alpha, beta)) = (key.sizes, key.factors());
        // SAFETY: any sizes may be given; encoding checks the matrices against them.
        let raw = unsafe {
            MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
                MPSMatrixMultiplication::alloc(),
                device,
                key.transposes.0,
                key.transposes.1,
                m,
                n,
                k,
                alpha,
                beta,
            )
        };
        Self { raw, key, _device: device.retain() }
    }

    /// `result = alpha · op(left) · op(right) + beta · result`.
    pub(super) fn encode(
        &self,
        idle: &NoEncoder<'_>,
        left: &Matrix,
        right: &Matrix,
        result: &Matrix,
    ) -> Result<()> {
        let ([m, n, k], (a, b, c)) = (self.key.sizes, (&left.layout, &right.layout, &result.layout));
        let shape = ProductShape { left: a.dtype, right: b.dtype, result: c.dtype, m, n, k, batch: c.batch };
        // What a generation of chips sums wrongly is no matter of safety: whoever chose has asked about it.
        guard::product(&shape, u32::MAX).map_err(misuse)?;
        let fit = a.used(self.key.transposes.0) == (m, k)
            && b.used(self.key.transposes.1) == (k, n)
            && (c.rows, c.columns) == (m, n)
            && a.batch == c.batch
            && b.batch == c.batch;
        if !fit {
            return Err(misuse(format_args!("{a:?} and {b:?} do not give {c:?} by {:?}", self.key)));
        }
        // SAFETY: no encoder is open, as `NoEncoder` says; shapes and types are what the object and its class take.
        unsafe {
            self.raw.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
                idle.commands(),
                &left.raw,
                &right.raw,
                &result.raw,
            );
        }
        Ok(())
    }
}

/// `MPSNDArrayMatrixMultiplication` of two arrays, and of a third that is added if its factor is not zero.
pub(super) struct ArrayMultiplication {
    raw: Retained<MPSNDArrayMatrixMultiplication>,
    key: ProductKey,
    _device: Retained<Device>,
}

impl ArrayMultiplication {
    pub(super) fn new(device: &Device, key: ProductKey) -> Self {
        let (alpha, beta) = key.factors();
        // SAFETY: two or three sources are what the class takes.
        let raw = unsafe {
            let raw = MPSNDArrayMatrixMultiplication::initWithDevice_sourceCount(
                MPSNDArrayMatrixMultiplication::alloc(),
                device,
                if beta == 0.0 { 2 } else { 3 },
            );
            raw.setAlpha(alpha);
            raw.setBeta(beta);
            raw
        };
        Self { raw, key, _device: device.retain() }
    }

    /// `result = alpha · left · right + beta · result`, in a serial encoder of our own.
    pub(super) fn encode(
        &self,
        idle: &NoEncoder<'_>,
        left: &Array,
        right: &Array,
        result: &Array,
    ) -> Result<()> {
        let [m, n, k] = self.key.sizes;
        let fit = (left.shape, right.shape, result.shape) == ((m, k), (k, n), (m, n))
            && left.dtype == result.dtype
            && right.dtype == result.dtype;
        if !fit {
            let shapes = [left, right, result].map(|array| (array.dtype, array.shape));
            return Err(misuse(format_args!("arrays {shapes:?} are not those of {:?}", self.key)));
        }
        let mut sources = vec![left.raw.clone(), right.raw.clone()];
        if self.key.factors().1 != 0.0 {
            sources.push(result.raw.clone());
        }
        let sources = NSArray::from_retained_slice(&sources);
        let encoder = idle
            .commands()
            .computeCommandEncoderWithDispatchType(MTLDispatchType::Serial)
            .ok_or_else(|| missing("encoder"))?;
        let kernel: &MPSNDArrayMultiaryKernel = &self.raw;
        // SAFETY: the encoder is open and serial, on this command buffer; shapes and types are what the class takes.
        unsafe {
            kernel.encodeToCommandEncoder_commandBuffer_sourceArrays_destinationArray(
                Some(&encoder),
                idle.commands(),
                &sources,
                &result.raw,
            );
        }
        encoder.endEncoding();
        Ok(())
    }
}

/// Which function of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RowsKey {
    pub(super) logarithm: bool,
    pub(super) gradient: bool,
}

enum RowsKernel {
    Softmax(Retained<MPSMatrixSoftMax>),
    LogSoftmax(Retained<MPSMatrixLogSoftMax>),
    SoftmaxGradient(Retained<MPSMatrixSoftMaxGradient>),
    LogSoftmaxGradient(Retained<MPSMatrixLogSoftMaxGradient>),
}

/// `MPSMatrixSoftMax`, `MPSMatrixLogSoftMax` and their gradients.
pub(super) struct Rows {
    raw: RowsKernel,
    _device: Retained<Device>,
}

impl Rows {
    pub(super) fn new(device: &Device, key: RowsKey) -> Self {
        // SAFETY: the initialisers have no demands but a device that the framework supports.
        let raw = unsafe {
            match (key.gradient, key.logarithm) {
                (false, false) => {
                    RowsKernel::Softmax(MPSMatrixSoftMax::initWithDevice(MPSMatrixSoftMax::alloc(), device))
                }
                (false, true) => {
                    let raw = MPSMatrixLogSoftMax::initWithDevice(MPSMatrixLogSoftMax::alloc(), device);
                    RowsKernel::LogSoftmax(raw)
                }
                (true, false) => {
                    let place = MPSMatrixSoftMaxGradient::alloc();
                    RowsKernel::SoftmaxGradient(MPSMatrixSoftMaxGradient::initWithDevice(place, device))
                }
                (true, true) => {
                    let place = MPSMatrixLogSoftMaxGradient::alloc();
                    RowsKernel::LogSoftmaxGradient(MPSMatrixLogSoftMaxGradient::initWithDevice(place, device))
                }
            }
        };
        Self { raw, _device: device.retain() }
    }

    /// Rows to rows: x to y, or for a gradient dy and y to dx. In place is not promised by the framework: the result must
    /// lie elsewhere.
    pub(super) fn encode(&self, idle: &NoEncoder<'_>, inputs: &[Matrix], result: &Matrix) -> Result<()> {
        let (to, expected) = (&result.layout, if self.gradient() { 2 } else { 1 });
        guard::softmax(to.dtype, to.rows, to.columns).map_err(misuse)?;
        let alike = |from: &MatrixLayout| {
            (from.dtype, from.rows, from.columns, from.batch) == (to.dtype, to.rows, to.columns, to.batch)
        };
        if inputs.len() != expected || to.batch != 1 || !inputs.iter().all(|input| alike(&input.layout)) {
            return Err(misuse(format_args!("{} inputs do not give {to:?}", inputs.len())));
        }
        let commands = idle.commands();
        // SAFETY: no encoder is open, as `NoEncoder` says; all matrices have one shape and type, which the class takes.
        unsafe {
            match &self.raw {
                RowsKernel::Softmax(raw) => {
                    raw.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &inputs[0].raw, &result.raw);
                }
                RowsKernel::LogSoftmax(raw) => {
                    raw.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &inputs[0].raw, &result.raw);
                }
                RowsKernel::SoftmaxGradient(raw) => raw
                    .encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                        commands,
                        &inputs[0].raw,
                        &inputs[1].raw,
                        &result.raw,
                    ),
                RowsKernel::LogSoftmaxGradient(raw) => raw
                    .encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                        commands,
                        &inputs[0].raw,
                        &inputs[1].raw,
                        &result.raw,
                    ),
            }
        }
        Ok(())
    }

    fn gradient(&self) -> bool {
        matches!(self.raw, RowsKernel::SoftmaxGradient(_) | RowsKernel::LogSoftmaxGradient(_))
    }
}

/// `MPSMatrixFindTopK`.
pub(super) struct TopK {
    raw: Retained<MPSMatrixFindTopK>,
    k: usize,
    _device: Retained<Device>,
}

impl TopK {
    /// For k up to 16; encoding refuses more.
    pub(super) fn new(device: &Device, k: usize) -> Self {
        // SAFETY: the class keeps the number; encoding refuses those that it does not define.
        let raw = unsafe {
            MPSMatrixFindTopK::initWithDevice_numberOfTopKValues(MPSMatrixFindTopK::alloc(), device, k)
        };
        Self { raw, k, _device: device.retain() }
    }

    pub(super) fn encode(
        &self,
        idle: &NoEncoder<'_>,
        x: &Matrix,
        indices: &Matrix,
        values: &Matrix,
    ) -> Result<()> {
        let (from, i, v) = (&x.layout, &indices.layout, &values.layout);
        guard::top_k(from.dtype, from.rows, from.columns, self.k).map_err(misuse)?;
        let shape = (from.rows, self.k, 1);
        let fit = from.batch == 1
            && (i.rows, i.columns, i.batch) == shape
            && (v.rows, v.columns, v.batch) == shape
            && i.dtype == DType::U32
            && v.dtype == from.dtype;
        if !fit {
            return Err(misuse(format_args!(
                "{i:?} and {v:?} do not hold the {} greatest of {from:?}",
                self.k
            )));
        }
        // SAFETY: no encoder is open, as `NoEncoder` says; k, shapes and types are what the class takes.
        unsafe {
            self.raw.encodeToCommandBuffer_inputMatrix_resultIndexMatrix_resultValueMatrix(
                idle.commands(),
                &x.raw,
                &indices.raw,
                &values.raw,
            );
        }
        Ok(())
    }
}

#[cfg(all(test, softmetal))]
mod tests {
    use objc2_metal::MTLResourceOptions;
    use softmetal as _;

    use super::*;
    use crate::backend::metal::device::Gpu;
    use crate::backend::metal::memory::Raw;
    use crate::backend::select::Preference;

    fn buffer(bytes: usize) -> Raw {
        let gpu = Gpu::new(Preference::Mps).unwrap();
        gpu.device.newBufferWithLength_options(bytes, MTLResourceOptions::StorageModeShared).unwrap()
    }

    const LAYOUT: MatrixLayout =
        MatrixLayout { dtype: DType::F32, rows: 3, columns: 4, row: 6, batch: 2, step: 24 };

    #[test]
    fn matrices_that_do_not_lie_in_their_buffer_are_refused() {
        // The last element ends at (24 + 2·6 + 4)·4.
        assert_eq!(LAYOUT.bytes(), 160);
        let exact = buffer(160);
        assert!(Matrix::over(&exact, 0, LAYOUT).is_ok());
        let error = Matrix::over(&exact, 4, LAYOUT).err().unwrap().to_string();
        assert!(error.contains("does not lie at byte 4 of 160") && error.contains("report"), "{error}");
        assert!(Matrix::over(&exact, 2, MatrixLayout { batch: 1, ..LAYOUT }).is_err(), "half an element");
        for wrong in [
            MatrixLayout { row: 3, ..LAYOUT },
            MatrixLayout { rows: 0, ..LAYOUT },
            MatrixLayout { step: 20, ..LAYOUT },
            MatrixLayout { step: 12, ..LAYOUT },
        ] {
            assert!(Matrix::over(&exact, 0, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn arrays_have_no_gaps() {
        let place = buffer(160);
        let packed = MatrixLayout { row: 4, batch: 1, ..LAYOUT };
        assert_eq!(Array::over(&place, 0, packed, true).unwrap().shape, (4, 3));
        let error =
            Array::over(&place, 0, MatrixLayout { row: 6, ..packed }, false).err().unwrap().to_string();
        assert!(error.contains("no array without gaps"), "{error}");
    }
}
