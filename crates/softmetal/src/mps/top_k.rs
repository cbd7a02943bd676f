//! `MPSMatrixFindTopK`.

use std::cell::RefCell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use softmetal_formulas::top_k::TopK;
use softmetal_formulas::touches::Operand;

use super::kernel::{SoftKernel, SoftUnaryKernel};
use super::matrix::SoftMatrix;
use super::{accepted, encode};
use crate::command_buffer::SoftCommandBuffer;
use crate::device::SoftDevice;

const NAME: &str = "MPSMatrixFindTopK";

define_class!(
    /// The greatest values of every row, and where they are.
    #[unsafe(super(SoftUnaryKernel, SoftKernel, NSObject))]
    #[name = "MPSMatrixFindTopK"]
    #[ivars = RefCell<TopK>]
    pub(crate) struct SoftTopK;

    impl SoftTopK {
        #[unsafe(method_id(initWithDevice:numberOfTopKValues:))]
        fn init_with_count(
            this: Allocated<Self>,
            device: &SoftDevice,
            count: usize,
        ) -> Option<Retained<Self>> {
            let this = this.set_ivars(RefCell::new(TopK::new(count)));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(numberOfTopKValues))]
        fn count(&self) -> usize {
            self.ivars().borrow().count
        }

        #[unsafe(method(setNumberOfTopKValues:))]
        fn set_count(&self, count: usize) {
            self.ivars().borrow_mut().count = count;
        }

        #[unsafe(method(indexOffset))]
        fn index_offset(&self) -> usize {
            self.ivars().borrow().index_offset
        }

        #[unsafe(method(setIndexOffset:))]
        fn set_index_offset(&self, offset: usize) {
            self.ivars().borrow_mut().index_offset = offset;
        }

        #[unsafe(method(sourceRows))]
        fn source_rows(&self) -> usize {
            self.ivars().borrow().extent.rows
        }

        #[unsafe(method(setSourceRows:))]
        fn set_source_rows(&self, rows: usize) {
            self.ivars().borrow_mut().extent.rows = rows;
        }

        #[unsafe(method(sourceColumns))]
        fn source_columns(&self) -> usize {
            self.ivars().borrow().extent.columns
        }

        #[unsafe(method(setSourceColumns:))]
        fn set_source_columns(&self, columns: usize) {
            self.ivars().borrow_mut().extent.columns = columns;
        }

        #[unsafe(method(encodeToCommandBuffer:inputMatrix:resultIndexMatrix:resultValueMatrix:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            input: &SoftMatrix,
            indices: &SoftMatrix,
            values: &SoftMatrix,
        ) {
            self.encoding(NAME, || {
                let top_k = TopK {
                    source_origin: self.window().source.get(),
                    result_origin: self.window().result.get(),
                    batch: self.window().batch.get(),
                    ..*self.ivars().borrow()
                };
                let (x, i, y) = (*input.matrix(), *indices.matrix(), *values.matrix());
                if accepted(top_k.check(&x, &i, &y)).is_none() {
                    return;
                }
                let (suspects, touches) = (top_k.suspects(&x, &i, &y), top_k.touches(&x, &i, &y));
                let operands = [
                    (Operand::Input, input.buffer()),
                    (Operand::ResultIndices, indices.buffer()),
                    (Operand::ResultValues, values.buffer()),
                ];
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, NAME, &operands, suspects, touches, move || unsafe { top_k.run(&x, &i, &y) });
            });
        }
    }
);

pub(crate) fn load() {
    let _ = SoftTopK::class();
}
