//! Launches that candle encodes: of our kernels, on candle's buffers, into its own encoder.

use std::sync::Arc;

use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder, ComputePipeline};
use objc2::Message;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLDevice, MTLSize};

use super::buffer::Arena;
use super::device::Gpu;
use super::executor::{self, Item};
use super::launch::{Address, Binding};
use crate::Result;
use crate::backend::select::Choices;
use crate::backend::{Backend, Device};
use crate::graph::Plan;

/// A GPU that belongs to candle, and what plans for it.
pub(in crate::backend) struct Foreign {
    pub(in crate::backend) gpu: Arc<Gpu>,
    arena: Arena,
    /// Plans with inputs and outputs where candle has them.
    pub(in crate::backend) planner: Device,
}

/// Asks for the same scratch as the backend itself, but plans with direct inputs and outputs.
struct Planner(super::Metal);

impl Backend for Planner {
    fn name(&self) -> String {
        self.0.name()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn crate::tensor::Buffer>> {
        self.0.allocate(bytes)
    }

    fn scratch(
        &self,
        op: &crate::ops::Op,
        inputs: &[crate::graph::Operand],
        outputs: &[crate::tensor::TensorSpec],
    ) -> usize {
        self.0.scratch(op, inputs, outputs)
    }

    fn together(&self, first: &crate::ops::Op, second: &crate::ops::Op) -> bool {
        self.0.together(first, second)
    }

    fn direct(&self) -> bool {
        true
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn crate::backend::Executable>> {
        self.0.compile(plan)
    }
}

impl Foreign {
    /// On candle's device.
    pub(in crate::backend) fn new(device: &ProtocolObject<dyn MTLDevice>, choices: Choices) -> Result<Self> {
        let device: Retained<ProtocolObject<dyn MTLDevice>> = device.retain();
        let gpu = Arc::new(Gpu::on(device, choices)?);
        let arena = Arena::new(&gpu);
        let metal = super::Metal { gpu: Arc::clone(&gpu), arena: arena.clone() };
        Ok(Self { gpu, arena, planner: Device::new(Box::new(Planner(metal))) })
    }

    /// Runs one call on a queue of our own and waits for it.
    pub(in crate::backend) fn run_alone(&self, item: &Item) -> Result<()> {
        executor::run_alone(&self.gpu, &self.arena, item)
    }

    /// The launches of a plan.
    pub(in crate::backend) fn launches(&self, plan: &Plan) -> Result<Vec<ForeignLaunch>> {
        let launches = autoreleasepool(|_| executor::launches(&self.gpu, &self.arena, plan));
        let foreign = |(launch, touches): (super::launch::Launch, super::launch::Touches)| {
            let bind = |binding| match binding {
                Binding::Buffer(address) => {
                    let written = touches.writes_to(&address);
                    let (place, offset) = match address {
                        Address::Arena(offset) => (Place::Scratch, offset),
                        Address::Given(index, offset) => (Place::Given(index), offset),
                        Address::Fixed(raw, offset) => (Place::Own(Buffer::new(raw)), offset),
                    };
                    Argument::Buffer { place, offset, written }
                }
                Binding::Bytes(bytes) => Argument::Bytes(bytes),
                Binding::Nothing => Argument::Nothing,
            };
            ForeignLaunch {
                pipeline: ComputePipeline::new(launch.pipeline.raw().retain()),
                arguments: launch.bindings.into_iter().map(bind).collect(),
                groups: launch.groups,
                threads: launch.threads,
            }
        };
        Ok(launches?.into_iter().map(foreign).collect())
    }
}

/// A dispatch for candle's encoder.
pub(in crate::backend) struct ForeignLaunch {
    pipeline: ComputePipeline,
    arguments: Vec<Argument>,
    groups: [usize; 3],
    threads: [usize; 3],
}

enum Argument {
    Buffer { place: Place, offset: usize, written: bool },
    Bytes(Vec<u8>),
    Nothing,
}

enum Place {
    /// Memory for intermediate results.
    Scratch,
    /// An input or output of the plan.
    Given(usize),
    /// A buffer of the kernel's own.
    Own(Buffer),
}

// SAFETY: pipeline states and buffers may be used from any thread; their bytes are touched by the GPU only, in the order
// of candle's encoder.
unsafe impl Send for ForeignLaunch {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for ForeignLaunch {}

/// A dispatch whose arguments are found, for candle's encoder.
pub(in crate::backend) struct BoundLaunch<'a> {
    launch: &'a ForeignLaunch,
    arguments: Vec<Found<'a>>,
}

enum Found<'a> {
    Input(&'a Buffer, usize),
    Output(&'a Buffer, usize),
    Bytes(&'a [u8]),
    Nothing,
}

impl ForeignLaunch {
    /// Finds its arguments. `given` are buffers of inputs and outputs with the byte at which each begins.
    ///
    /// # Errors
    /// The launch has an argument that is not among them, which is a bug of this crate.
    pub(in crate::backend) fn bind<'a>(
        &'a self,
        given: &[(&'a Buffer, usize)],
        scratch: Option<&'a Buffer>,
    ) -> Result<BoundLaunch<'a>> {
        let find = |argument: &'a Argument| {
            Some(match argument {
                Argument::Buffer { place, offset, written } => {
                    let (buffer, start) = match place {
                        Place::Scratch => (scratch?, 0),
                        Place::Given(index) => *given.get(*index)?,
                        Place::Own(buffer) => (buffer, 0),
                    };
                    let at = start + offset;
                    if *written { Found::Output(buffer, at) } else { Found::Input(buffer, at) }
                }
                Argument::Bytes(bytes) => Found::Bytes(bytes),
                Argument::Nothing => Found::Nothing,
            })
        };
        let arguments = self.arguments.iter().map(find).collect::<Option<_>>();
        let arguments = arguments.ok_or_else(|| {
            let message = "an argument of a kernel is not among the tensors; please report this";
            crate::Error::invalid("candle's encoder", message)
        })?;
        Ok(BoundLaunch { launch: self, arguments })
    }
}

impl BoundLaunch<'_> {
    /// Encodes it, without a panic. candle's encoder places barriers by what is bound as input and as output.
    pub(in crate::backend) fn encode(&self, encoder: &ComputeCommandEncoder) {
        encoder.set_compute_pipeline_state(&self.launch.pipeline);
        for (index, argument) in self.arguments.iter().enumerate() {
            match *argument {
                Found::Input(buffer, at) => encoder.set_input_buffer(index, Some(buffer), at),
                Found::Output(buffer, at) => encoder.set_output_buffer(index, Some(buffer), at),
                Found::Bytes(bytes) => encoder.set_bytes_directly(index, bytes.len(), bytes.as_ptr().cast()),
                Found::Nothing => {}
            }
        }
        let size = |[width, height, depth]: [usize; 3]| MTLSize { width, height, depth };
        encoder.dispatch_thread_groups(size(self.launch.groups), size(self.launch.threads));
    }
}
