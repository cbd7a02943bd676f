//! `MPSMatrixNeuron`, and the activation that other kernels end with.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal_performance_shaders::MPSCNNNeuronType;
use softmetal_formulas::kernel::Extent;
use softmetal_formulas::neuron::{Activation, Neuron};
use softmetal_formulas::touches::Operand;

use super::kernel::{SoftKernel, SoftUnaryKernel};
use super::matrix::{SoftMatrix, SoftVector};
use super::{accepted, encode};
use crate::command_buffer::SoftCommandBuffer;
use crate::data::Data;
use crate::device::SoftDevice;

const NAME: &str = "MPSMatrixNeuron";

/// An activation as it is set: a type and three numbers.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) kind: MPSCNNNeuronType,
    pub(super) a: f32,
    pub(super) b: f32,
    pub(super) c: f32,
}

impl Default for Form {
    fn default() -> Self {
        Self { kind: MPSCNNNeuronType::None, a: 0., b: 0., c: 0. }
    }
}

impl Form {
    /// The function; one that is not modelled is reported.
    pub(super) fn activation(&self) -> Option<Activation> {
        accepted(Activation::from_number(self.kind.0, self.a.into(), self.b.into(), self.c.into()))
    }
}

pub(crate) struct NeuronState {
    form: Cell<Form>,
    alpha: Cell<f64>,
    extent: Cell<Extent>,
}

impl Default for NeuronState {
    fn default() -> Self {
        Self { form: Cell::default(), alpha: Cell::new(1.), extent: Cell::default() }
    }
}

define_class!(
    /// `y = f(alpha·x + bias)` of every element.
    #[unsafe(super(SoftUnaryKernel, SoftKernel, NSObject))]
    #[name = "MPSMatrixNeuron"]
    #[ivars = NeuronState]
    pub(crate) struct SoftNeuron;

    impl SoftNeuron {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(NeuronState::default());
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(setNeuronType:parameterA:parameterB:parameterC:))]
        fn set_type(&self, kind: MPSCNNNeuronType, a: f32, b: f32, c: f32) {
            self.ivars().form.set(Form { kind, a, b, c });
        }

        #[unsafe(method(setNeuronToPReLUWithParametersA:))]
        fn set_prelu(&self, _a: &Data) {
            // Refused when it is encoded: its parameters are not modelled.
            self.ivars().form.set(Form { kind: MPSCNNNeuronType::PReLU, ..Form::default() });
        }

        #[unsafe(method(neuronType))]
        fn kind(&self) -> MPSCNNNeuronType {
            self.ivars().form.get().kind
        }

        #[unsafe(method(neuronParameterA))]
        fn parameter_a(&self) -> f32 {
            self.ivars().form.get().a
        }

        #[unsafe(method(neuronParameterB))]
        fn parameter_b(&self) -> f32 {
            self.ivars().form.get().b
        }

        #[unsafe(method(neuronParameterC))]
        fn parameter_c(&self) -> f32 {
            self.ivars().form.get().c
        }

        #[unsafe(method(alpha))]
        fn alpha(&self) -> f64 {
            self.ivars().alpha.get()
        }

        #[unsafe(method(setAlpha:))]
        fn set_alpha(&self, alpha: f64) {
            self.ivars().alpha.set(alpha);
        }

        #[unsafe(method(sourceNumberOfFeatureVectors))]
        fn rows(&self) -> usize {
            self.ivars().extent.get().rows
        }

        #[unsafe(method(setSourceNumberOfFeatureVectors:))]
        fn set_rows(&self, rows: usize) {
            let extent = &self.ivars().extent;
            extent.set(Extent { rows, ..extent.get() });
        }

        #[unsafe(method(sourceInputFeatureChannels))]
        fn columns(&self) -> usize {
            self.ivars().extent.get().columns
        }

        #[unsafe(method(setSourceInputFeatureChannels:))]
        fn set_columns(&self, columns: usize) {
            let extent = &self.ivars().extent;
            extent.set(Extent { columns, ..extent.get() });
        }

        #[unsafe(method(encodeToCommandBuffer:inputMatrix:biasVector:resultMatrix:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            input: &SoftMatrix,
            bias: Option<&SoftVector>,
            result: &SoftMatrix,
        ) {
            self.encoding(NAME, || {
                let state = self.ivars();
                let Some(activation) = state.form.get().activation() else { return };
                let neuron = Neuron {
                    activation,
                    alpha: state.alpha.get(),
                    extent: state.extent.get(),
                    source_origin: self.window().source.get(),
                    result_origin: self.window().result.get(),
                    batch: self.window().batch.get(),
                };
                let (x, b, y) = (*input.matrix(), bias.map(|bias| *bias.vector()), *result.matrix());
                if accepted(neuron.check(&x, b.as_ref(), &y)).is_none() {
                    return;
                }
                let suspects = neuron.suspects(&x, b.as_ref(), &y);
                let touches = neuron.touches(&x, b.as_ref(), &y);
                let mut operands = vec![(Operand::Input, input.buffer()), (Operand::Result, result.buffer())];
                operands.extend(bias.map(|bias| (Operand::Bias, bias.buffer())));
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                encode(commands, NAME, &operands, suspects, touches, move || unsafe {
                    neuron.run(&x, b.as_ref(), &y)
                });
            });
        }
    }
);

pub(crate) fn load() {
    let _ = SoftNeuron::class();
}
