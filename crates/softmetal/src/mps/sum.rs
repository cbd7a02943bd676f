//! `MPSMatrixSum`.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::MTLOrigin;
use objc2_metal_performance_shaders::MPSCNNNeuronType;
use softmetal_formulas::kernel::Origin;
use softmetal_formulas::matrix::Matrix;
use softmetal_formulas::neuron::Activation;
use softmetal_formulas::rules::refuse;
use softmetal_formulas::sum::{Sum, Summands};
use softmetal_formulas::touches::Operand;

use super::kernel::{SoftKernel, origin, origin_of};
use super::matrix::{SoftMatrix, SoftVector};
use super::neuron::Form;
use super::{Bound, accepted, encode};
use crate::command_buffer::SoftCommandBuffer;
use crate::device::SoftDevice;
use crate::foundation::List;

const NAME: &str = "MPSMatrixSum";

pub(crate) struct SumState {
    count: usize,
    rows: usize,
    columns: usize,
    transpose: bool,
    form: Cell<Form>,
    origin: Cell<Origin>,
}

define_class!(
    /// `y = f(op(sum of scale·x) + bias)` of matrices of one shape.
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSMatrixSum"]
    #[ivars = SumState]
    pub(crate) struct SoftSum;

    impl SoftSum {
        #[unsafe(method_id(initWithDevice:count:rows:columns:transpose:))]
        fn init_full(
            this: Allocated<Self>,
            device: &SoftDevice,
            count: usize,
            rows: usize,
            columns: usize,
            transpose: bool,
        ) -> Option<Retained<Self>> {
            let (form, origin) = (Cell::default(), Cell::default());
            let this = this.set_ivars(SumState { count, rows, columns, transpose, form, origin });
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(count))]
        fn count(&self) -> usize {
            self.ivars().count
        }

        #[unsafe(method(rows))]
        fn rows(&self) -> usize {
            self.ivars().rows
        }

        #[unsafe(method(columns))]
        fn columns(&self) -> usize {
            self.ivars().columns
        }

        #[unsafe(method(transpose))]
        fn transpose(&self) -> bool {
            self.ivars().transpose
        }

        #[unsafe(method(resultMatrixOrigin))]
        fn result_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().origin.get())
        }

        #[unsafe(method(setResultMatrixOrigin:))]
        fn set_result_origin(&self, at: MTLOrigin) {
            self.ivars().origin.set(origin(at));
        }

        #[unsafe(method(setNeuronType:parameterA:parameterB:parameterC:))]
        fn set_type(&self, kind: MPSCNNNeuronType, a: f32, b: f32, c: f32) {
            self.ivars().form.set(Form { kind, a, b, c });
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

        #[unsafe(method(encodeToCommandBuffer:sourceMatrices:resultMatrix:scaleVector:offsetVector:biasVector:startIndex:))]
        fn encode(
            &self,
            commands: &SoftCommandBuffer,
            sources: &List,
            result: &SoftMatrix,
            scales: Option<&SoftVector>,
            offsets: Option<&SoftVector>,
            bias: Option<&SoftVector>,
            start: usize,
        ) {
            self.encoding(NAME, || {
                let absent = |id: &str, what: &str| refuse(id, format!("there is no {what}"));
                let scales = scales.ok_or_else(|| absent("mps-sum-scale-type", "scaleVector"));
                let offsets = offsets.ok_or_else(|| absent("mps-sum-offset-type", "offsetVector"));
                let Some(activation) = self.ivars().form.get().activation() else { return };
                if let (Some(scales), Some(offsets)) = (accepted(scales), accepted(offsets)) {
                    self.add(commands, activation, sources, result, [scales, offsets], bias, start);
                }
            });
        }
    }
);

impl SoftSum {
    fn add(
        &self,
        commands: &SoftCommandBuffer,
        activation: Activation,
        sources: &List,
        result: &SoftMatrix,
        [scales, offsets]: [&SoftVector; 2],
        bias: Option<&SoftVector>,
        start: usize,
    ) {
        let SumState { count, rows, columns, transpose, ref origin, .. } = *self.ivars();
        let sum = Sum { count, rows, columns, transpose, activation, result_origin: origin.get() };
        let sources: Vec<&SoftMatrix> = sources.objects().iter().filter_map(|o| o.downcast_ref()).collect();
        let matrices: Vec<Matrix> = sources.iter().map(|source| *source.matrix()).collect();
        let (s, o, b, y) =
            (*scales.vector(), *offsets.vector(), bias.map(|bias| *bias.vector()), *result.matrix());
        let summands = Summands { sources: &matrices, scales: &s, offsets: &o, bias: b.as_ref(), start };
        if accepted(sum.check(&summands, &y)).is_none() {
            return;
        }
        let (suspects, touches) = (sum.suspects(&summands, &y), sum.touches(&summands, &y));
        let mut operands: Vec<Bound<'_>> = vec![
            (Operand::Scales, scales.buffer()),
            (Operand::Offsets, offsets.buffer()),
            (Operand::Result, result.buffer()),
        ];
        operands.extend(bias.map(|bias| (Operand::Bias, bias.buffer())));
        operands.extend(sources.iter().enumerate().map(|(i, source)| (Operand::Source(i), source.buffer())));
        encode(commands, NAME, &operands, suspects, touches, move || {
            let summands = Summands { sources: &matrices, scales: &s, offsets: &o, bias: b.as_ref(), start };
            // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
            unsafe { sum.run(&summands, &y) }
        });
    }
}

pub(crate) fn load() {
    let _ = SoftSum::class();
}
