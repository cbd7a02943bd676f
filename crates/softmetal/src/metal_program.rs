//! Kernels of Metal source, run by [`softmetal_kernels`].

use std::sync::Arc;

use softmetal_kernels::{Argument, Dispatch, Fault, Pipeline};

use crate::program::{Binding, Launch, LaunchFault, Program};

pub(crate) struct MetalProgram(Arc<Pipeline>);

impl MetalProgram {
    pub(crate) fn new(pipeline: Arc<Pipeline>) -> Self {
        Self(pipeline)
    }
}

// SAFETY: a pipeline is a loaded library and its constants; one command runs at a time on the device.
unsafe impl Send for MetalProgram {}
// SAFETY: as above.
unsafe impl Sync for MetalProgram {}

impl Program for MetalProgram {
    fn static_threadgroup_bytes(&self) -> usize {
        self.0.static_threadgroup_bytes()
    }

    fn max_threads(&self) -> Option<usize> {
        self.0.max_threads()
    }

    fn run(&self, launch: &mut Launch) -> Result<(), LaunchFault> {
        let arguments: Vec<Argument> = launch.bindings.iter().map(argument).collect();
        let size = |of: [usize; 3]| of.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let dispatch = Dispatch {
            arguments: &arguments,
            threadgroup_lengths: &launch.threadgroup_memory,
            grid: size(launch.grid),
            threadgroup: size(launch.threadgroup),
            seed: launch.seed,
            record_accesses: true,
        };
        let report = self.0.dispatch(&dispatch).map_err(fault)?;
        for access in report.accesses {
            let buffer = access.buffer as usize;
            access.reads.into_iter().for_each(|bytes| launch.note_read(buffer, bytes));
            access.writes.into_iter().for_each(|bytes| launch.note_write(buffer, bytes));
        }
        Ok(())
    }
}

fn argument(binding: &Binding) -> Argument {
    match binding {
        Binding::Unset => Argument::Unset,
        Binding::Bytes(bytes) => Argument::Bytes(bytes.clone()),
        Binding::Buffer { memory, offset } => {
            // SAFETY: the offset was checked to lie within the buffer when it was bound.
            let start = unsafe { memory.start().add(*offset) };
            Argument::Buffer { start, len: memory.len() - offset }
        }
    }
}

fn fault(fault: Fault) -> LaunchFault {
    let message = fault.to_string();
    match fault {
        Fault::Access { .. } => LaunchFault::OutOfRange(message),
        Fault::UnsetArgument { .. } => LaunchFault::Unset(message),
        Fault::Barrier { .. } => LaunchFault::Divergent(message),
        _ => LaunchFault::Failed(message),
    }
}
