//! Metal Performance Shaders: the classes around the formulas of [`softmetal_formulas`].

mod copy;
mod kernel;
mod matrix;
mod multiplication;
mod ndarray;
mod neuron;
mod softmax;
mod sum;
mod top_k;

use std::ops::Range;
use std::sync::Arc;

use objc2::rc::Retained;
use softmetal_formulas::rules::{self as formulas, Refusal};
use softmetal_formulas::touches::{Operand, Touches};

use crate::buffer::{SoftBuffer, Spot};
use crate::check::{Rule, Severity, report};
use crate::command_buffer::SoftCommandBuffer;
use crate::faults::CommandBufferError;
use crate::memory::Memory;
use crate::ranges::Ranges;
use crate::work::{Accesses, Command, GpuError, Use};

/// A rule of the formulas as one of the checker's.
pub(crate) fn rule(of: &formulas::Rule) -> Rule {
    let severity = match of.severity {
        formulas::Severity::Documented => Severity::Documented,
        formulas::Severity::Suspected => Severity::Suspected,
    };
    Rule { id: of.id, text: of.text, severity, source: of.source }
}

/// Reports what a formula refuses.
fn refused(refusal: Refusal) {
    report(&rule(refusal.rule), refusal.message);
}

/// The value, or none with a report of why.
fn accepted<T>(result: Result<T, Refusal>) -> Option<T> {
    result.map_err(refused).ok()
}

/// An operand of an encoded kernel: which one, and its buffer.
type Bound<'a> = (Operand, &'a Retained<SoftBuffer>);

/// Encodes a kernel whose operands were checked, in an encoder of its own.
fn encode(
    commands: &SoftCommandBuffer,
    name: &'static str,
    operands: &[Bound<'_>],
    suspects: Vec<Refusal>,
    touches: Touches,
    run: impl FnOnce() -> Result<(), Refusal> + 'static,
) {
    commands.encode_alone(name, command(commands, name, operands, suspects, touches, run));
}

/// The command that computes a kernel by `run`, on the memory of the operands' buffers.
fn command(
    commands: &SoftCommandBuffer,
    name: &'static str,
    operands: &[Bound<'_>],
    suspects: Vec<Refusal>,
    touches: Touches,
    run: impl FnOnce() -> Result<(), Refusal> + 'static,
) -> Command {
    command_with(commands, name, operands, suspects, move || run().map(|()| touches))
}

/// The same where only the run can tell what is touched.
fn command_with(
    commands: &SoftCommandBuffer,
    name: &'static str,
    operands: &[Bound<'_>],
    suspects: Vec<Refusal>,
    run: impl FnOnce() -> Result<Touches, Refusal> + 'static,
) -> Command {
    suspects.into_iter().for_each(refused);
    let uses = operands.iter().map(|(_, buffer)| Use::of(buffer, commands.retains())).collect();
    let memories: Vec<Arc<Memory>> = operands.iter().map(|(_, buffer)| buffer.memory().clone()).collect();
    let spots: Vec<(Operand, Spot)> = operands.iter().map(|(operand, b)| (*operand, b.spot())).collect();
    let body = Box::new(move || {
        let result = run().map_err(|refusal| GpuError {
            code: CommandBufferError::Internal,
            message: refusal.to_string(),
            rule: Some(rule(refusal.rule)),
            kill: None,
        });
        drop(memories);
        result.map(|touches| accesses(&spots, &touches))
    });
    Command { label: name.to_owned(), uses, threads: 0, body }
}

/// What is touched, by buffer.
fn accesses(operands: &[(Operand, Spot)], touches: &Touches) -> Accesses {
    let bound = |(operand, _): &(Operand, Range<usize>)| operands.iter().any(|(known, _)| known == operand);
    assert!(touches.reads.iter().chain(&touches.writes).all(bound), "every operand that is touched is bound");
    let mut spots: Vec<Spot> = operands.iter().map(|(_, spot)| *spot).collect();
    spots.sort_unstable();
    spots.dedup();
    let of_spot = |spot: &Spot, list: &[(Operand, Range<usize>)]| {
        let belongs = |operand: &Operand| operands.iter().any(|(known, of)| known == operand && of == spot);
        Ranges::new(list.iter().filter(|(o, _)| belongs(o)).map(|(_, range)| range.clone()).collect())
    };
    let touched =
        |spot: Spot| spot.touched(&of_spot(&spot, &touches.reads), &of_spot(&spot, &touches.writes));
    spots.into_iter().map(touched).collect()
}

pub(crate) fn load() {
    kernel::load();
    matrix::load();
    multiplication::load();
    ndarray::load();
    neuron::load();
    sum::load();
    copy::load();
    softmax::load();
    top_k::load();
}
