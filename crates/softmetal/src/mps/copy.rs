//! `MPSMatrixCopy` and `MPSMatrixCopyDescriptor`.

use std::cell::RefCell;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal_performance_shaders::MPSMatrixCopyOffsets;
use softmetal_formulas::copy::{Copies, Copy, CopyOffsets, Permutation};
use softmetal_formulas::matrix::Matrix;
use softmetal_formulas::rules::{Refusal, refuse};
use softmetal_formulas::touches::{Operand, Touches};
use softmetal_formulas::vector::Vector;

use super::kernel::SoftKernel;
use super::matrix::{SoftMatrix, SoftVector};
use super::{Bound, accepted, command_with, refused};
use crate::command_buffer::SoftCommandBuffer;
use crate::device::SoftDevice;
use crate::foundation::List;

const NAME: &str = "MPSMatrixCopy";

/// One copy: from, to, and where in both.
type Operation = (Retained<SoftMatrix>, Retained<SoftMatrix>, CopyOffsets);

pub(crate) enum Operations {
    /// Each is set by the host, or not yet.
    Host(RefCell<Vec<Option<Operation>>>),
    /// Sources and destinations, with offsets that a command computes.
    Device { from: Retained<List>, to: Retained<List>, offsets: Option<(Retained<SoftVector>, usize)> },
}

define_class!(
    /// The copies that one kernel does.
    #[unsafe(super(NSObject))]
    #[name = "MPSMatrixCopyDescriptor"]
    #[ivars = Operations]
    pub(crate) struct SoftCopyDescriptor;

    impl SoftCopyDescriptor {
        #[unsafe(method_id(descriptorWithSourceMatrix:destinationMatrix:offsets:))]
        fn one(from: &SoftMatrix, to: &SoftMatrix, offsets: MPSMatrixCopyOffsets) -> Retained<Self> {
            let operation = Some((from.retain(), to.retain(), of(offsets)));
            Self::with(Self::alloc(), Operations::Host(RefCell::new(vec![operation])))
        }

        #[unsafe(method_id(initWithDevice:count:))]
        fn init_with_count(this: Allocated<Self>, _device: &SoftDevice, count: usize) -> Retained<Self> {
            Self::with(this, Operations::Host(RefCell::new(vec![None; count])))
        }

        #[unsafe(method_id(initWithSourceMatrices:destinationMatrices:offsetVector:offset:))]
        fn init_with_vector(
            this: Allocated<Self>,
            from: &List,
            to: &List,
            offsets: Option<&SoftVector>,
            offset: usize,
        ) -> Retained<Self> {
            let offsets = offsets.map(|vector| (vector.retain(), offset));
            Self::with(this, Operations::Device { from: from.retain(), to: to.retain(), offsets })
        }

        #[unsafe(method(setCopyOperationAtIndex:sourceMatrix:destinationMatrix:offsets:))]
        fn set(&self, index: usize, from: &SoftMatrix, to: &SoftMatrix, offsets: MPSMatrixCopyOffsets) {
            let Operations::Host(operations) = self.ivars() else {
                return refused(refuse("mps-copy-count", "the offsets of this descriptor are in a vector".into()));
            };
            match operations.borrow_mut().get_mut(index) {
                Some(place) => *place = Some((from.retain(), to.retain(), of(offsets))),
                None => refused(refuse("mps-copy-count", format!("there is no copy with index {index}"))),
            }
        }
    }
);

/// Offsets as the formula takes them.
fn of(offsets: MPSMatrixCopyOffsets) -> CopyOffsets {
    CopyOffsets {
        source_row: offsets.sourceRowOffset,
        source_column: offsets.sourceColumnOffset,
        destination_row: offsets.destinationRowOffset,
        destination_column: offsets.destinationColumnOffset,
    }
}

/// Where the offsets of copies are.
enum Offsets {
    Known(Vec<CopyOffsets>),
    /// In a vector, from a byte on.
    Vector(Retained<SoftVector>, usize),
}

impl SoftCopyDescriptor {
    fn with(this: Allocated<Self>, operations: Operations) -> Retained<Self> {
        let this = this.set_ivars(operations);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// What is copied, or why not.
    fn operations(&self) -> Result<(Vec<Retained<SoftMatrix>>, Vec<Retained<SoftMatrix>>, Offsets), Refusal> {
        match self.ivars() {
            Operations::Host(operations) => {
                let operations = operations.borrow();
                let (mut from, mut to, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
                for (index, operation) in operations.iter().enumerate() {
                    let unset = || refuse("mps-copy-count", format!("copy {index} was not set"));
                    let (source, destination, offset) = operation.clone().ok_or_else(unset)?;
                    from.push(source);
                    to.push(destination);
                    offsets.push(offset);
                }
                Ok((from, to, Offsets::Known(offsets)))
            }
            Operations::Device { from, to, offsets } => {
                let matrices = |list: &List| -> Vec<Retained<SoftMatrix>> {
                    list.objects()
                        .iter()
                        .filter_map(|o| o.downcast_ref::<SoftMatrix>())
                        .map(Message::retain)
                        .collect()
                };
                let absent = || refuse("mps-copy-offsets-type", "there is no offsetVector".to_owned());
                let (vector, at) = offsets.clone().ok_or_else(absent)?;
                CopyOffsets::check_packed(vector.vector(), at, from.objects().len())?;
                Ok((matrices(from), matrices(to), Offsets::Vector(vector, at)))
            }
        }
    }
}

define_class!(
    /// Copies between matrices.
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSMatrixCopy"]
    #[ivars = Copy]
    pub(crate) struct SoftCopy;

    impl SoftCopy {
        #[unsafe(method_id(initWithDevice:copyRows:copyColumns:sourcesAreTransposed:destinationsAreTransposed:))]
        fn init_full(
            this: Allocated<Self>,
            device: &SoftDevice,
            rows: usize,
            columns: usize,
            sources_transposed: bool,
            destinations_transposed: bool,
        ) -> Option<Retained<Self>> {
            let this = this.set_ivars(Copy { rows, columns, sources_transposed, destinations_transposed });
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(copyRows))]
        fn rows(&self) -> usize {
            self.ivars().rows
        }

        #[unsafe(method(copyColumns))]
        fn columns(&self) -> usize {
            self.ivars().columns
        }

        #[unsafe(method(sourcesAreTransposed))]
        fn sources_transposed(&self) -> bool {
            self.ivars().sources_transposed
        }

        #[unsafe(method(destinationsAreTransposed))]
        fn destinations_transposed(&self) -> bool {
            self.ivars().destinations_transposed
        }

        #[unsafe(method(encodeToCommandBuffer:copyDescriptor:))]
        fn encode(&self, commands: &SoftCommandBuffer, descriptor: &SoftCopyDescriptor) {
            self.copy(commands, descriptor, None, None);
        }

        #[unsafe(method(encodeToCommandBuffer:copyDescriptor:rowPermuteIndices:rowPermuteOffset:columnPermuteIndices:columnPermuteOffset:))]
        fn encode_permuted(
            &self,
            commands: &SoftCommandBuffer,
            descriptor: &SoftCopyDescriptor,
            rows: Option<&SoftVector>,
            row_offset: usize,
            columns: Option<&SoftVector>,
            column_offset: usize,
        ) {
            let rows = rows.map(|rows| (rows, row_offset));
            self.copy(commands, descriptor, rows, columns.map(|columns| (columns, column_offset)));
        }
    }
);

/// All that a command needs of a permutation.
type Order = Option<(Vector, usize)>;

fn permutation(order: &Order) -> Option<Permutation<'_>> {
    order.as_ref().map(|(indices, offset)| Permutation { indices, offset: *offset })
}

impl SoftCopy {
    fn copy(
        &self,
        commands: &SoftCommandBuffer,
        descriptor: &SoftCopyDescriptor,
        rows: Option<(&SoftVector, usize)>,
        columns: Option<(&SoftVector, usize)>,
    ) {
        self.encoding(NAME, || {
            let Some((from, to, offsets)) = accepted(descriptor.operations()) else { return };
            let copy = *self.ivars();
            let sources: Vec<Matrix> = from.iter().map(|matrix| *matrix.matrix()).collect();
            let destinations: Vec<Matrix> = to.iter().map(|matrix| *matrix.matrix()).collect();
            let order =
                |of: Option<(&SoftVector, usize)>| of.map(|(vector, offset)| (*vector.vector(), offset));
            let (row_order, column_order) = (order(rows), order(columns));
            let mut suspects = Vec::new();
            let mut operands: Vec<Bound<'_>> = Vec::new();
            let vector = match &offsets {
                Offsets::Known(offsets) => {
                    let copies = Copies {
                        sources: &sources,
                        destinations: &destinations,
                        offsets,
                        row_permutation: permutation(&row_order),
                        column_permutation: permutation(&column_order),
                    };
                    if accepted(copy.check(&copies)).is_none() {
                        return;
                    }
                    suspects = copy.suspects(&copies);
                    Err(offsets.clone())
                }
                Offsets::Vector(vector, at) => {
                    operands.push((Operand::Offsets, vector.buffer()));
                    Ok((*vector.vector(), *at))
                }
            };
            operands.extend(from.iter().enumerate().map(|(i, matrix)| (Operand::Source(i), matrix.buffer())));
            operands
                .extend(to.iter().enumerate().map(|(i, matrix)| (Operand::Destination(i), matrix.buffer())));
            operands.extend(rows.map(|(vector, _)| (Operand::RowPermutation, vector.buffer())));
            operands.extend(columns.map(|(vector, _)| (Operand::ColumnPermutation, vector.buffer())));
            let run = move || {
                // SAFETY: the buffers' memory is held until the command has run, and one command runs at a time.
                let (offsets, read) = unsafe { known(vector, sources.len()) }?;
                let copies = Copies {
                    sources: &sources,
                    destinations: &destinations,
                    offsets: &offsets,
                    row_permutation: permutation(&row_order),
                    column_permutation: permutation(&column_order),
                };
                // Checked before it is asked what is touched, since other operands may be such as cannot be told.
                copy.check(&copies)?;
                let mut touches = copy.touches(&copies);
                touches.reads.extend(read.reads);
                // SAFETY: as above.
                unsafe { copy.run(&copies) }.map(|()| touches)
            };
            commands.encode_alone(NAME, command_with(commands, NAME, &operands, suspects, run));
        });
    }
}

/// The offsets of copies, and what was read to know them.
///
/// # Safety
/// The vector's buffer is readable and nothing writes it meanwhile.
unsafe fn known(
    offsets: Result<(Vector, usize), Vec<CopyOffsets>>,
    count: usize,
) -> Result<(Vec<CopyOffsets>, Touches), Refusal> {
    let mut touches = Touches::default();
    let (vector, at) = match offsets {
        Err(known) => return Ok((known, touches)),
        Ok(vector) => vector,
    };
    // SAFETY: as the caller promises.
    let offsets = unsafe { CopyOffsets::read_packed(&vector, at, count) }?;
    let bytes = vector.region_ranges(0..1, at / 4..at / 4 + 4 * count);
    touches.reads.extend(bytes.into_iter().map(|bytes| (Operand::Offsets, bytes)));
    Ok((offsets, touches))
}

pub(crate) fn load() {
    let _ = (SoftCopyDescriptor::class(), SoftCopy::class());
}
