//! `MPSMatrixSoftMax`, `MPSMatrixLogSoftMax` and their gradients.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use softmetal_formulas::kernel::Extent;
use softmetal_formulas::softmax::Softmax;
use softmetal_formulas::softmax_gradient::SoftmaxGradient;
use softmetal_formulas::touches::Operand;

use super::kernel::{SoftBinaryKernel, SoftKernel, SoftUnaryKernel};
use super::matrix::SoftMatrix;
use super::{accepted, encode};
use crate::command_buffer::SoftCommandBuffer;
use crate::device::SoftDevice;

/// What the classes keep beside their base's window.
#[derive(Default)]
pub(crate) struct Form {
    logarithm: Cell<bool>,
    extent: Cell<Extent>,
}

impl Form {
    fn new(logarithm: bool) -> Self {
        Self { logarithm: Cell::new(logarithm), ..Self::default() }
    }

    fn set_rows(&self, rows: usize) {
        self.extent.set(Extent { rows, ..self.extent.get() });
    }

    fn set_columns(&self, columns: usize) {
        self.extent.set(Extent { columns, ..self.extent.get() });
    }
}

/// A softmax and its logarithm differ by a flag that the initialiser sets.
macro_rules! subclass {
    ($type:ident, $name:literal, $base:ident, $($rest:ident),+) => {
        define_class!(
            #[doc = concat!("`", $name, "`: the logarithm of what its base computes.")]
            #[unsafe(super($base, $($rest),+))]
            #[name = $name]
            pub(crate) struct $type;

            impl $type {
                #[unsafe(method_id(initWithDevice:))]
                fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
                    let this = this.set_ivars(());
                    // SAFETY: the superclass has this initialiser.
                    let this: Option<Retained<Self>> = unsafe { msg_send![super(this), initWithDevice: device] };
                    this.inspect(|this| this.form().logarithm.set(true))
                }
            }
        );
    };
}

define_class!(
    /// `y = softmax(x)` of every row.
    #[unsafe(super(SoftUnaryKernel, SoftKernel, NSObject))]
    #[name = "MPSMatrixSoftMax"]
    #[ivars = Form]
    pub(crate) struct SoftSoftmax;

    impl SoftSoftmax {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(Form::new(false));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(sourceRows))]
        fn source_rows(&self) -> usize {
            self.form().extent.get().rows
        }

        #[unsafe(method(setSourceRows:))]
        fn set_source_rows(&self, rows: usize) {
            self.form().set_rows(rows);
        }

        #[unsafe(method(sourceColumns))]
        fn source_columns(&self) -> usize {
            self.form().extent.get().columns
        }

        #[unsafe(method(setSourceColumns:))]
        fn set_source_columns(&self, columns: usize) {
            self.form().set_columns(columns);
        }

        #[unsafe(method(encodeToCommandBuffer:inputMatrix:resultMatrix:))]
        fn encode(&self, commands: &SoftCommandBuffer, input: &SoftMatrix, result: &SoftMatrix) {
            let form = self.form();
            let name = if form.logarithm.get() { "MPSMatrixLogSoftMax" } else { "MPSMatrixSoftMax" };
            self.encoding(name, || {
                let softmax = Softmax {
                    logarithm: form.logarithm.get(),
                    extent: form.extent.get(),
                    source_origin: self.window().source.get(),
                    result_origin: self.window().result.get(),
                    batch: self.window().batch.get(),
                };
                let (x, y) = (*input.matrix(), *result.matrix());
                if accepted(softmax.check(&x, &y)).is_none() {
                    return;
                }
                let (suspects, touches) = (softmax.suspects(&x, &y), softmax.touches(&x, &y));
                let operands = [(Operand::Input, input.buffer()), (Operand::Result, result.buffer())];
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, name, &operands, suspects, touches, move || unsafe { softmax.run(&x, &y) });
            });
        }
    }
);

impl SoftSoftmax {
    fn form(&self) -> &Form {
        self.ivars()
    }
}

subclass!(SoftLogSoftmax, "MPSMatrixLogSoftMax", SoftSoftmax, SoftUnaryKernel, SoftKernel, NSObject);

define_class!(
    /// The gradient of a softmax from that of its output.
    #[unsafe(super(SoftBinaryKernel, SoftKernel, NSObject))]
    #[name = "MPSMatrixSoftMaxGradient"]
    #[ivars = Form]
    pub(crate) struct SoftSoftmaxGradient;

    impl SoftSoftmaxGradient {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(Form::new(false));
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(sourceRows))]
        fn source_rows(&self) -> usize {
            self.form().extent.get().rows
        }

        #[unsafe(method(setSourceRows:))]
        fn set_source_rows(&self, rows: usize) {
            self.form().set_rows(rows);
        }

        #[unsafe(method(sourceColumns))]
        fn source_columns(&self) -> usize {
            self.form().extent.get().columns
        }

        #[unsafe(method(setSourceColumns:))]
        fn set_source_columns(&self, columns: usize) {
            self.form().set_columns(columns);
        }

        #[unsafe(method(encodeToCommandBuffer:gradientMatrix:forwardOutputMatrix:resultMatrix:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            gradient: &SoftMatrix,
            forward: &SoftMatrix,
            result: &SoftMatrix,
        ) {
            let form = self.form();
            let logarithm = form.logarithm.get();
            let name = if logarithm { "MPSMatrixLogSoftMaxGradient" } else { "MPSMatrixSoftMaxGradient" };
            self.encoding(name, || {
                let kernel = SoftmaxGradient {
                    logarithm,
                    extent: form.extent.get(),
                    gradient_origin: self.window().source.get(),
                    forward_origin: self.window().second.get(),
                    result_origin: self.window().result.get(),
                    batch: self.window().batch.get(),
                };
                let (dy, y, dx) = (*gradient.matrix(), *forward.matrix(), *result.matrix());
                if accepted(kernel.check(&dy, &y, &dx)).is_none() {
                    return;
                }
                let (suspects, touches) = (kernel.suspects(&dy, &y, &dx), kernel.touches(&dy, &y, &dx));
                let operands = [
                    (Operand::Gradient, gradient.buffer()),
                    (Operand::ForwardOutput, forward.buffer()),
                    (Operand::Result, result.buffer()),
                ];
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, name, &operands, suspects, touches, move || unsafe {
                    kernel.run(&dy, &y, &dx)
                });
            });
        }
    }
);

impl SoftSoftmaxGradient {
    fn form(&self) -> &Form {
        self.ivars()
    }
}

subclass!(
    SoftLogSoftmaxGradient,
    "MPSMatrixLogSoftMaxGradient",
    SoftSoftmaxGradient,
    SoftBinaryKernel,
    SoftKernel,
    NSObject
);

pub(crate) fn load() {
    let _ = (SoftSoftmax::class(), SoftLogSoftmax::class());
    let _ = (SoftSoftmaxGradient::class(), SoftLogSoftmaxGradient::class());
}
