//! `MPSMatrixMultiplication` and `MPSMatrixVectorMultiplication`.

use std::cell::RefCell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::MTLOrigin;
use softmetal_formulas::multiplication::Multiplication;
use softmetal_formulas::touches::Operand;
use softmetal_formulas::vector_multiplication::VectorMultiplication;

use super::kernel::{SoftBinaryKernel, SoftKernel, origin, origin_of};
use super::matrix::{SoftMatrix, SoftVector};
use super::{accepted, encode};
use crate::command_buffer::SoftCommandBuffer;
use crate::device::SoftDevice;

/// The names of the classes.
const PRODUCT: &str = "MPSMatrixMultiplication";
const VECTOR_PRODUCT: &str = "MPSMatrixVectorMultiplication";

define_class!(
    /// `C = alpha·op(A)·op(B) + beta·C`
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSMatrixMultiplication"]
    #[ivars = RefCell<Multiplication>]
    pub(crate) struct SoftMultiplication;

    impl SoftMultiplication {
        #[unsafe(method_id(initWithDevice:transposeLeft:transposeRight:resultRows:resultColumns:interiorColumns:alpha:beta:))]
        fn init_full(
            this: Allocated<Self>,
            device: &SoftDevice,
            transpose_left: bool,
            transpose_right: bool,
            rows: usize,
            columns: usize,
            interior: usize,
            alpha: f64,
            beta: f64,
        ) -> Option<Retained<Self>> {
            let plain = Multiplication::new(rows, columns, interior);
            let product = Multiplication { transpose_left, transpose_right, alpha, beta, ..plain };
            let this = this.set_ivars(RefCell::new(product));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method_id(initWithDevice:resultRows:resultColumns:interiorColumns:))]
        fn init_plain(
            this: Allocated<Self>,
            device: &SoftDevice,
            rows: usize,
            columns: usize,
            interior: usize,
        ) -> Option<Retained<Self>> {
            let this = this.set_ivars(RefCell::new(Multiplication::new(rows, columns, interior)));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(leftMatrixOrigin))]
        fn left_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().borrow().left_origin)
        }

        #[unsafe(method(setLeftMatrixOrigin:))]
        fn set_left_origin(&self, at: MTLOrigin) {
            self.ivars().borrow_mut().left_origin = origin(at);
        }

        #[unsafe(method(rightMatrixOrigin))]
        fn right_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().borrow().right_origin)
        }

        #[unsafe(method(setRightMatrixOrigin:))]
        fn set_right_origin(&self, at: MTLOrigin) {
            self.ivars().borrow_mut().right_origin = origin(at);
        }

        #[unsafe(method(resultMatrixOrigin))]
        fn result_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().borrow().result_origin)
        }

        #[unsafe(method(setResultMatrixOrigin:))]
        fn set_result_origin(&self, at: MTLOrigin) {
            self.ivars().borrow_mut().result_origin = origin(at);
        }

        #[unsafe(method(batchStart))]
        fn batch_start(&self) -> usize {
            self.ivars().borrow().batch.start
        }

        #[unsafe(method(setBatchStart:))]
        fn set_batch_start(&self, start: usize) {
            self.ivars().borrow_mut().batch.start = start;
        }

        #[unsafe(method(batchSize))]
        fn batch_size(&self) -> usize {
            self.ivars().borrow().batch.size
        }

        #[unsafe(method(setBatchSize:))]
        fn set_batch_size(&self, size: usize) {
            self.ivars().borrow_mut().batch.size = size;
        }

        #[unsafe(method(encodeToCommandBuffer:leftMatrix:rightMatrix:resultMatrix:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            left: &SoftMatrix,
            right: &SoftMatrix,
            result: &SoftMatrix,
        ) {
            self.encoding(PRODUCT, || {
                let product = *self.ivars().borrow();
                let (a, b, c) = (*left.matrix(), *right.matrix(), *result.matrix());
                if accepted(product.check(&a, &b, &c)).is_none() {
                    return;
                }
                let operands = [
                    (Operand::Left, left.buffer()),
                    (Operand::Right, right.buffer()),
                    (Operand::Result, result.buffer()),
                ];
                let (suspects, touches) = (product.suspects(&a, &b, &c), product.touches(&a, &b, &c));
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, PRODUCT, &operands, suspects, touches, move || unsafe {
                    product.run(&a, &b, &c)
                });
            });
        }
    }
);

define_class!(
    /// `y = alpha·op(A)·x + beta·y`
    #[unsafe(super(SoftBinaryKernel, SoftKernel, NSObject))]
    #[name = "MPSMatrixVectorMultiplication"]
    #[ivars = VectorMultiplication]
    pub(crate) struct SoftVectorMultiplication;

    impl SoftVectorMultiplication {
        #[unsafe(method_id(initWithDevice:transpose:rows:columns:alpha:beta:))]
        fn init_full(
            this: Allocated<Self>,
            device: &SoftDevice,
            transpose: bool,
            rows: usize,
            columns: usize,
            alpha: f64,
            beta: f64,
        ) -> Option<Retained<Self>> {
            let plain = VectorMultiplication::new(rows, columns);
            let this = this.set_ivars(VectorMultiplication { transpose, alpha, beta, ..plain });
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method_id(initWithDevice:rows:columns:))]
        fn init_plain(
            this: Allocated<Self>,
            device: &SoftDevice,
            rows: usize,
            columns: usize,
        ) -> Option<Retained<Self>> {
            let this = this.set_ivars(VectorMultiplication::new(rows, columns));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(encodeToCommandBuffer:inputMatrix:inputVector:resultVector:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            matrix: &SoftMatrix,
            input: &SoftVector,
            result: &SoftVector,
        ) {
            self.encoding(VECTOR_PRODUCT, || {
                let window = self.window();
                let product = VectorMultiplication {
                    matrix_origin: window.source.get(),
                    input_origin: window.second.get(),
                    result_origin: window.result.get(),
                    batch: window.batch.get(),
                    ..*self.ivars()
                };
                let (a, x, y) = (*matrix.matrix(), *input.vector(), *result.vector());
                if accepted(product.check(&a, &x, &y)).is_none() {
                    return;
                }
                let (suspects, touches) = (product.suspects(&a, &x, &y), product.touches(&a, &x, &y));
                let operands = [
                    (Operand::Left, matrix.buffer()),
                    (Operand::InputVector, input.buffer()),
                    (Operand::Result, result.buffer()),
                ];
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, VECTOR_PRODUCT, &operands, suspects, touches, move || unsafe {
                    product.run(&a, &x, &y)
                });
            });
        }
    }
);

pub(crate) fn load() {
    let _ = (SoftMultiplication::class(), SoftVectorMultiplication::class());
}
