//! A device that runs the operations' definitions: every result in f64, then rounded to its dtype.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, Executable, Io};
use crate::graph::{Operand, Place, Plan, Step, Target};
use crate::ops::Op;
use crate::ops::reference::Reference;
use crate::tensor::{Buffer, HostTensor, Layout, Parameter, TensorSpec};
use crate::{Error, Result};

/// The reference backend.
#[derive(Debug, Default)]
pub struct ReferenceBackend(());

/// Bytes behind a lock.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer for Memory {
    fn bytes(&self) -> usize {
        self.lock().len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.lock()[offset..offset + into.len()]);
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.lock()[offset..offset + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Target for ReferenceBackend {
    fn scratch(&self, _op: &Op, _inputs: &[Operand], _outputs: &[TensorSpec]) -> usize {
        0
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(Memory(Mutex::new(vec![0; bytes]))))
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        Ok(Box::new(Interpreter { plan: plan.clone(), arena: Mutex::new(vec![0; plan.arena_bytes]) }))
    }
}

struct Interpreter {
    plan: Plan,
    arena: Mutex<Vec<u8>>,
}

/// Offsets, in elements, of a layout's elements in row-major order.
fn offsets(layout: &Layout) -> impl Iterator<Item = usize> {
    let dims = layout.shape.dims();
    (0..layout.shape.elements()).map(move |index| {
        let (mut rest, mut at) = (index, layout.offset);
        for axis in (0..dims.len()).rev() {
            at += rest % dims[axis] * layout.strides[axis];
            rest /= dims[axis];
        }
        at
    })
}

impl Interpreter {
    fn parameter(&self, index: usize) -> (&Parameter, &Arc<dyn Buffer>, usize) {
        let parameter = &self.plan.parameters[index];
        let (buffer, offset) = parameter.location();
        (parameter, buffer, offset)
    }

    fn load(&self, arena: &[u8], operand: &Operand) -> Result<Reference> {
        let size = operand.dtype.size();
        let mut tensor = HostTensor::zeros(operand.spec());
        let bytes = tensor.bytes_mut();
        let whole;
        let source: &[u8] = match operand.place {
            Place::Arena(offset) => &arena[offset..],
            Place::Parameter(index) => {
                whole = self.parameter(index).0.read()?;
                whole.bytes()
            }
            Place::Input(_) | Place::Output(_) => unreachable!("this device's plans are not direct"),
        };
        for (element, at) in bytes.chunks_mut(size).zip(offsets(&operand.layout)) {
            element.copy_from_slice(&source[at * size..][..size]);
        }
        Ok(Reference::new(operand.layout.shape.clone(), tensor.to_f64()))
    }

    fn store(&self, arena: &mut [u8], operand: &Operand, value: &Reference) -> Result<()> {
        let tensor = HostTensor::from_f64(&value.data, operand.dtype, value.shape.clone())?;
        match operand.place {
            Place::Arena(offset) => arena[offset..][..tensor.bytes().len()].copy_from_slice(tensor.bytes()),
            Place::Parameter(index) => {
                let (_, buffer, offset) = self.parameter(index);
                buffer.write(offset + operand.layout.offset * operand.dtype.size(), tensor.bytes())?;
            }
            Place::Input(_) | Place::Output(_) => unreachable!("this device's plans are not direct"),
        }
        Ok(())
    }

    fn step(&self, arena: &mut [u8], step: &Step) -> Result<()> {
        let inputs =
            step.inputs.iter().map(|operand| self.load(arena, operand)).collect::<Result<Vec<_>>>()?;
        check_indices(&step.op, &inputs)?;
        let results = step.op.contract().reference(&inputs);
        for (operand, value) in step.outputs.iter().zip(&results) {
            if let Some(operand) = operand {
                self.store(arena, operand, value)?;
            }
        }
        Ok(())
    }
}

impl Executable for Interpreter {
    fn launches(&self) -> usize {
        self.plan.steps.len()
    }

    fn run(&self, io: &mut dyn Io) -> Result<()> {
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, input) in self.plan.inputs.iter().enumerate() {
            if let Place::Arena(offset) = input.operand.place {
                let bytes = io.input(index);
                arena[offset..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        for step in &self.plan.steps {
            self.step(&mut arena, step)?;
        }
        for (index, operand) in self.plan.outputs.iter().enumerate() {
            let bytes = operand.spec().bytes();
            match operand.place {
                Place::Arena(offset) => {
                    io.output(
                        index,
                        &arena[offset + operand.layout.offset * operand.dtype.size()..][..bytes],
                    );
                }
                Place::Parameter(parameter) => {
                    let (_, buffer, offset) = self.parameter(parameter);
                    let mut copy = vec![0; bytes];
                    buffer.read(offset + operand.layout.offset * operand.dtype.size(), &mut copy)?;
                    io.output(index, &copy);
                }
                Place::Input(_) | Place::Output(_) => unreachable!("this device's plans are not direct"),
            }
        }
        Ok(())
    }
}

/// Refuses ids, positions and targets outside their tables.
fn check_indices(op: &Op, inputs: &[Reference]) -> Result<()> {
    let (what, indices, limit) = match op {
        Op::Embedding(_) => ("id", &inputs[1], inputs[0].shape[0]),
        Op::EmbeddingGrad(grad) => ("id", &inputs[1], grad.rows),
        Op::Rope(_) => ("position", &inputs[3], inputs[1].shape[0]),
        Op::CrossEntropy(op) if op.head => ("target", &inputs[2], inputs[1].shape[0]),
        Op::CrossEntropy(_) => ("target", &inputs[1], inputs[0].shape[1]),
        _ => return Ok(()),
    };
    match indices.data.iter().find(|&&index| index >= limit as f64) {
        Some(&index) => Err(index_error(op.name(), what, index as usize, limit)),
        None => Ok(()),
    }
}

/// An index outside its table, found while running.
pub(in crate::backend) fn index_error(op: &'static str, what: &str, found: usize, limit: usize) -> Error {
    Error::invalid(op, format!("{what} {found} is outside its table of {limit} rows"))
}
