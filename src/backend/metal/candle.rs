//! Dispatches of our kernels on candle's buffers, encoded into candle's encoder.

use std::sync::Arc;

use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder, ComputePipeline};
use objc2::Message;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::MTLDevice;

use super::backend::Metal;
use super::buffer::of_metal;
use super::device::Gpu;
use super::encode::size;
#[cfg(mps)]
use super::memory::Raw;
use super::replay;
use crate::backend::gpu::address::Address;
use crate::backend::gpu::command::{Argument as Bound, Work};
use crate::backend::gpu::lower::{Lowered, lower};
use crate::backend::select::Choices;
use crate::backend::{Backend, Device};
use crate::graph::{Operand, Plan, Target};
use crate::ops::Op;
use crate::tensor::TensorSpec;
use crate::{Error, Result};

/// candle's GPU, with a planner for it.
pub(in crate::backend) struct CandleGpu {
    pub(in crate::backend) gpu: Arc<Gpu>,
    metal: Arc<Metal>,
    /// Plans whose inputs and outputs are candle's buffers.
    pub(in crate::backend) planner: Device,
}

/// Plans as the backend does, but with in-place inputs and outputs.
struct Planner(Arc<Metal>);

impl Target for Planner {
    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
        self.0.scratch(op, inputs, outputs)
    }

    fn in_place_io(&self) -> bool {
        true
    }

    fn supports_epilogue(&self, product: &Op, inputs: &[TensorSpec]) -> bool {
        self.0.supports_epilogue(product, inputs)
    }

    fn supports_rope_kv_write(&self) -> bool {
        self.0.supports_rope_kv_write()
    }

    fn fuses(&self) -> bool {
        self.0.fuses()
    }
}

impl Backend for Planner {
    fn name(&self) -> String {
        Backend::name(&*self.0)
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn crate::tensor::Buffer>> {
        Backend::allocate(&*self.0, bytes)
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn crate::backend::Executable>> {
        self.0.compile(plan)
    }
}

impl CandleGpu {
    /// Opens candle's device.
    pub(in crate::backend) fn new(device: &ProtocolObject<dyn MTLDevice>, choices: Choices) -> Result<Self> {
        let device: Retained<ProtocolObject<dyn MTLDevice>> = device.retain();
        let gpu = Arc::new(Gpu::on(device, choices)?);
        let metal = Arc::new(Metal::on(Arc::clone(&gpu)));
        let planner = Device::new(Box::new(Planner(Arc::clone(&metal))));
        Ok(Self { gpu, metal, planner })
    }

    /// Runs a call of Metal Performance Shaders on our own queue and waits for it. `buffers` are those of its addresses.
    #[cfg(mps)]
    pub(in crate::backend) fn run_alone(
        &self,
        op: &'static str,
        call: &dyn crate::backend::mps::MpsCall,
        buffers: &[Raw],
    ) -> Result<()> {
        replay::run_alone(&self.gpu, &self.metal.arena, op, call, buffers)
    }

    /// Returns the dispatches of a plan with in-place inputs and outputs. Indices are not checked.
    pub(in crate::backend) fn dispatches(&self, plan: &Plan) -> Result<Vec<CandleDispatch>> {
        let Lowered { commands, allocations, .. } = autoreleasepool(|_| lower(&*self.metal, plan))?;
        let mut dispatches = Vec::with_capacity(commands.len());
        for command in commands {
            let Work::Dispatch(dispatch) = command.work else {
                return Err(Error::invalid(command.op, "cannot be encoded into candle's encoder"));
            };
            let dispatch = replay::encodable(&self.gpu, dispatch, command.barrier)?;
            let bind = |argument| match argument {
                Bound::Buffer(address) => {
                    let (place, offset) = match address {
                        Address::Arena(offset) => (Place::Scratch, offset),
                        Address::External(index, offset) => (Place::Given(index), offset),
                        Address::Allocated(allocation, offset) => {
                            let raw = of_metal(&*allocations.buffers[allocation.index]).raw();
                            (Place::Own(Buffer::new(raw.clone())), offset)
                        }
                    };
                    Argument::Buffer { place, offset, written: command.accesses.writes_to(address) }
                }
                Bound::Bytes(bytes) => Argument::Bytes(bytes),
                Bound::Unbound => Argument::Nothing,
            };
            dispatches.push(CandleDispatch {
                pipeline: ComputePipeline::new(dispatch.pipeline.raw().retain()),
                arguments: dispatch.arguments.into_iter().map(bind).collect(),
                groups: dispatch.groups,
                threads: dispatch.threads,
            });
        }
        Ok(dispatches)
    }
}

/// A dispatch for candle's encoder.
pub(in crate::backend) struct CandleDispatch {
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
    /// The memory for intermediate results.
    Scratch,
    /// An input or output of the plan.
    Given(usize),
    /// A buffer that belongs to the dispatch.
    Own(Buffer),
}

// SAFETY: pipeline states and buffers may be used from any thread; their bytes are touched by the GPU only, in the order
// of candle's encoder.
unsafe impl Send for CandleDispatch {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for CandleDispatch {}

/// A dispatch for candle's encoder with all its arguments.
pub(in crate::backend) struct BoundDispatch<'a> {
    launch: &'a CandleDispatch,
    arguments: Vec<Found<'a>>,
}

enum Found<'a> {
    Input(&'a Buffer, usize),
    Output(&'a Buffer, usize),
    Bytes(&'a [u8]),
    Nothing,
}

impl CandleDispatch {
    /// Looks up the arguments. `given` are the buffers of inputs and outputs with their byte offsets.
    ///
    /// # Errors
    /// The launch has an argument that is not among them, which is a bug of this crate.
    pub(in crate::backend) fn bind<'a>(
        &'a self,
        given: &[(&'a Buffer, usize)],
        scratch: Option<&'a Buffer>,
    ) -> Result<BoundDispatch<'a>> {
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
        Ok(BoundDispatch { launch: self, arguments })
    }
}

impl BoundDispatch<'_> {
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
        encoder.dispatch_thread_groups(size(self.launch.groups), size(self.launch.threads));
    }
}
