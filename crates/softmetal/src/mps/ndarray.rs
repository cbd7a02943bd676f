//! `MPSNDArrayDescriptor`, `MPSNDArray` and `MPSNDArrayMatrixMultiplication`.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal_performance_shaders::{MPSDataType, MPSDimensionSlice};
use softmetal_formulas::ndarray::{NdArray, NdArrayDescriptor};
use softmetal_formulas::ndarray_multiplication::NdArrayMultiplication;
use softmetal_formulas::touches::Operand;

use super::kernel::SoftKernel;
use super::matrix::element;
use super::{Bound, accepted, command, encode};
use crate::buffer::SoftBuffer;
use crate::command_buffer::SoftCommandBuffer;
use crate::compute::SoftComputeEncoder;
use crate::device::{SoftDevice, shared};
use crate::foundation::List;
use crate::system::mac;

const PRODUCT: &str = "MPSNDArrayMatrixMultiplication";

define_class!(
    /// Lengths and dtype of an array, dimension 0 the fastest.
    #[unsafe(super(NSObject))]
    #[name = "MPSNDArrayDescriptor"]
    #[ivars = RefCell<NdArrayDescriptor>]
    pub(crate) struct SoftNdArrayDescriptor;

    impl SoftNdArrayDescriptor {
        #[unsafe(method_id(descriptorWithDataType:dimensionCount:dimensionSizes:))]
        fn with_sizes(of: MPSDataType, count: usize, sizes: NonNull<usize>) -> Option<Retained<Self>> {
            // SAFETY: the caller gives as many sizes as dimensions.
            let lengths = unsafe { std::slice::from_raw_parts(sizes.as_ptr(), count) };
            element(of).and_then(|element| accepted(NdArrayDescriptor::new(element, lengths))).map(Self::create)
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.ivars().borrow().element().number())
        }

        #[unsafe(method(numberOfDimensions))]
        fn rank(&self) -> usize {
            self.ivars().borrow().rank()
        }

        #[unsafe(method(lengthOfDimension:))]
        fn length_of(&self, dimension: usize) -> usize {
            let descriptor = self.ivars().borrow();
            if dimension < descriptor.rank() { descriptor.length(dimension) } else { 1 }
        }

        #[unsafe(method(setPreferPackedRows:))]
        fn set_packed_rows(&self, packed: bool) {
            let mut descriptor = self.ivars().borrow_mut();
            let changed = descriptor.clone().with_packed_rows(packed);
            *descriptor = changed;
        }

        #[unsafe(method(sliceDimension:withSubrange:))]
        fn slice(&self, dimension: usize, range: MPSDimensionSlice) {
            let range = range.start..range.start.saturating_add(range.length);
            accepted(self.ivars().borrow_mut().slice(dimension, range));
        }

        #[unsafe(method(transposeDimension:withDimension:))]
        fn transpose(&self, one: usize, other: usize) {
            accepted(self.ivars().borrow_mut().transpose(one, other));
        }

        #[unsafe(method(permuteWithDimensionOrder:))]
        fn permute(&self, order: NonNull<usize>) {
            let mut descriptor = self.ivars().borrow_mut();
            // SAFETY: the caller gives as many numbers as there are dimensions.
            let order = unsafe { std::slice::from_raw_parts(order.as_ptr(), descriptor.rank()) };
            accepted(descriptor.permute(order));
        }
    }
);

impl SoftNdArrayDescriptor {
    fn create(descriptor: NdArrayDescriptor) -> Retained<Self> {
        let this = Self::alloc().set_ivars(RefCell::new(descriptor));
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) struct ArrayState {
    buffer: Retained<SoftBuffer>,
    array: NdArray,
}

define_class!(
    /// An array in a buffer, or a view of one.
    #[unsafe(super(NSObject))]
    #[name = "MPSNDArray"]
    #[ivars = ArrayState]
    pub(crate) struct SoftNdArray;

    impl SoftNdArray {
        #[unsafe(method_id(initWithBuffer:offset:descriptor:))]
        fn init_at(
            this: Allocated<Self>,
            buffer: &SoftBuffer,
            offset: usize,
            descriptor: &SoftNdArrayDescriptor,
        ) -> Option<Retained<Self>> {
            let descriptor = descriptor.ivars().borrow();
            let array = NdArray::new(buffer.memory().start(), buffer.len(), offset, &descriptor);
            accepted(array).filter(|_| mac().gpu.mps).and_then(|array| {
                let this = this.set_ivars(ArrayState { buffer: buffer.retain(), array });
                // SAFETY: NSObject's init returns the object.
                unsafe { msg_send![super(this), init] }
            })
        }

        #[unsafe(method_id(arrayViewWithDescriptor:))]
        fn view(&self, descriptor: &SoftNdArrayDescriptor) -> Option<Retained<Self>> {
            accepted(self.array().view(&descriptor.ivars().borrow())).map(|array| self.viewed(array))
        }

        #[unsafe(method_id(arrayViewWithDimensionCount:dimensionSizes:strides:))]
        fn strided_view(
            &self,
            count: usize,
            sizes: NonNull<usize>,
            strides: NonNull<usize>,
        ) -> Option<Retained<Self>> {
            // SAFETY: the caller gives as many sizes and strides as dimensions.
            let (lengths, strides) = unsafe {
                let slice = |start: NonNull<usize>| std::slice::from_raw_parts(start.as_ptr(), count);
                (slice(sizes), slice(strides))
            };
            accepted(self.array().strided_view(lengths, strides)).map(|array| self.viewed(array))
        }

        #[unsafe(method_id(descriptor))]
        fn descriptor(&self) -> Retained<SoftNdArrayDescriptor> {
            SoftNdArrayDescriptor::create(self.array().descriptor())
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(userBuffer))]
        fn user_buffer(&self) -> Option<Retained<SoftBuffer>> {
            Some(self.ivars().buffer.clone())
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.array().element().number())
        }

        #[unsafe(method(dataTypeSize))]
        fn data_type_size(&self) -> usize {
            self.array().element().size()
        }

        #[unsafe(method(numberOfDimensions))]
        fn rank(&self) -> usize {
            self.array().rank()
        }

        #[unsafe(method(lengthOfDimension:))]
        fn length_of(&self, dimension: usize) -> usize {
            if dimension < self.array().rank() { self.array().length(dimension) } else { 1 }
        }
    }
);

impl SoftNdArray {
    fn array(&self) -> &NdArray {
        &self.ivars().array
    }

    fn viewed(&self, array: NdArray) -> Retained<Self> {
        let this = Self::alloc().set_ivars(ArrayState { buffer: self.ivars().buffer.clone(), array });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

define_class!(
    /// The base of kernels with several source arrays.
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSNDArrayMultiaryBase"]
    pub(crate) struct SoftMultiaryBase;

    impl SoftMultiaryBase {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(());
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }
    }
);

define_class!(
    /// As above.
    #[unsafe(super(SoftMultiaryBase, SoftKernel, NSObject))]
    #[name = "MPSNDArrayMultiaryKernel"]
    pub(crate) struct SoftMultiaryKernel;

    impl SoftMultiaryKernel {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(());
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }
    }
);

pub(crate) struct ProductState {
    sources: usize,
    alpha: Cell<f64>,
    beta: Cell<f64>,
}

define_class!(
    /// `D = alpha·A·B + beta·C` over the two fastest dimensions, the others a batch.
    #[unsafe(super(SoftMultiaryKernel, SoftMultiaryBase, SoftKernel, NSObject))]
    #[name = "MPSNDArrayMatrixMultiplication"]
    #[ivars = ProductState]
    pub(crate) struct SoftNdArrayMultiplication;

    impl SoftNdArrayMultiplication {
        #[unsafe(method_id(initWithDevice:sourceCount:))]
        fn init_with_count(
            this: Allocated<Self>,
            device: &SoftDevice,
            sources: usize,
        ) -> Option<Retained<Self>> {
            let plain = NdArrayMultiplication::new(sources);
            let state = ProductState { sources, alpha: plain.alpha.into(), beta: plain.beta.into() };
            let this = this.set_ivars(state);
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(alpha))]
        fn alpha(&self) -> f64 {
            self.ivars().alpha.get()
        }

        #[unsafe(method(setAlpha:))]
        fn set_alpha(&self, alpha: f64) {
            self.ivars().alpha.set(alpha);
        }

        #[unsafe(method(beta))]
        fn beta(&self) -> f64 {
            self.ivars().beta.get()
        }

        #[unsafe(method(setBeta:))]
        fn set_beta(&self, beta: f64) {
            self.ivars().beta.set(beta);
        }

        #[unsafe(method(encodeToCommandBuffer:sourceArrays:destinationArray:))]
        fn encode(&self, commands: &SoftCommandBuffer, sources: &List, result: &SoftNdArray) {
            self.encode_into(commands, None, sources, result);
        }

        #[unsafe(method(encodeToCommandEncoder:commandBuffer:sourceArrays:destinationArray:))]
        fn encode_in_encoder(
            &self,
            encoder: Option<&SoftComputeEncoder>,
            commands: &SoftCommandBuffer,
            sources: &List,
            result: &SoftNdArray,
        ) {
            self.encode_into(commands, encoder, sources, result);
        }
    }
);

impl SoftNdArrayMultiplication {
    fn encode_into(
        &self,
        commands: &SoftCommandBuffer,
        encoder: Option<&SoftComputeEncoder>,
        sources: &List,
        result: &SoftNdArray,
    ) {
        self.encoding(PRODUCT, || {
            let state = self.ivars();
            let product = NdArrayMultiplication {
                alpha: state.alpha.get(),
                beta: state.beta.get(),
                ..NdArrayMultiplication::new(state.sources)
            };
            let arrays: Vec<&SoftNdArray> =
                sources.objects().iter().filter_map(|o| o.downcast_ref()).collect();
            let operands: Vec<NdArray> = arrays.iter().map(|array| array.array().clone()).collect();
            let target = result.array().clone();
            if accepted(product.check(&operands, &target)).is_none() {
                return;
            }
            let mut bound: Vec<Bound<'_>> = Vec::new();
            for (index, array) in arrays.iter().enumerate() {
                bound.push((Operand::Source(index), &array.ivars().buffer));
            }
            bound.push((Operand::Result, &result.ivars().buffer));
            let (suspects, touches) =
                (product.suspects(&operands, &target), product.touches(&operands, &target));
            // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
            let run = move || unsafe { product.run(&operands, &target) };
            match encoder {
                None => encode(commands, PRODUCT, &bound, suspects, touches, run),
                Some(encoder) => {
                    let command = command(commands, PRODUCT, &bound, suspects, touches, run);
                    encoder.encode_kernel(PRODUCT, command);
                }
            }
        });
    }
}

pub(crate) fn load() {
    let _ = (SoftNdArrayDescriptor::class(), SoftNdArray::class());
    let _ = (SoftMultiaryBase::class(), SoftMultiaryKernel::class(), SoftNdArrayMultiplication::class());
}
