//! How operations run: devices, compiled programs, and one folder a backend.

#[cfg(feature = "async-exec")]
pub mod asynchronous;
pub mod candle;
pub mod cpu;
pub mod cuda;
mod decompose;
pub mod gpu;
mod lowering;
pub mod metal;
pub mod mps;
pub mod profile;
mod program;
pub mod reference;
pub mod select;
pub mod tune;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(cuda)]
#[doc(hidden)]
pub use cuda::compiler::CudaCompiler;
#[cfg(metal)]
#[doc(hidden)]
pub use metal::kernel_compiler::KernelCompiler;
pub use program::Program;
use program::{Cache, Compiled, Structure};

use crate::graph::{Graph, LazyTensor, Plan, Target};
use crate::tensor::{Buffer, Constant, HostTensor, Parameter, TensorSpec};
use crate::{Error, Result};

/// What a backend must do.
pub trait Backend: Target + Send + Sync {
    /// The device's name, for messages.
    fn name(&self) -> String;

    /// Memory filled with zeros.
    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>>;

    /// A buffer with the content of a host tensor, without a copy where the device can read it in place.
    fn import(&self, tensor: &HostTensor) -> Result<Arc<dyn Buffer>> {
        let buffer = self.allocate(tensor.bytes().len())?;
        buffer.write(0, tensor.bytes())?;
        Ok(buffer)
    }

    /// What the machine does at its best, if that can be told; a probe may take some tenths of a second.
    fn peak(&self) -> Option<profile::Peak> {
        None
    }

    /// Chooses kernels for every step. An operation or dtype without a kernel is an error that names it.
    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>>;
}

/// A plan made ready for a device.
pub trait Executable: Send + Sync {
    /// Takes the inputs, runs all steps, waits for them and hands over the outputs. Nothing is allocated.
    fn run(&self, io: &mut dyn Io) -> Result<()>;

    /// How many pieces of work a run hands to the device: kernels of a CPU, dispatches of a GPU.
    fn launches(&self) -> usize;
}

/// The host's side of a run.
pub trait Io {
    /// The bytes of the plan's input `index`.
    fn input(&self, index: usize) -> &[u8];
    /// Receives the bytes of the plan's output `index`, where they were not written in place.
    fn output(&mut self, index: usize, bytes: &[u8]);
    /// Where the plan's output `index` is to be written: as many bytes as it has, valid while the run lasts.
    fn output_memory(&mut self, index: usize) -> *mut u8;
}

/// A device with its compiled plans. Cloning gives another handle of the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    backend: Box<dyn Backend>,
    cache: Cache,
    compilations: AtomicUsize,
    #[cfg(feature = "async-exec")]
    worker: Arc<asynchronous::Worker>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl Device {
    /// The CPU with this many threads; 0 means as many as there are cores.
    pub fn cpu(threads: usize) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads if threads > 1024 => {
                return Err(Error::invalid("threads", format!("{threads} is more than 1024")));
            }
            threads => threads,
        };
        Ok(Self::new(Box::new(cpu::Cpu::new(threads))))
    }

    /// The system's GPU through Metal. An error where there is none, or where this build does not contain the backend.
    pub fn metal() -> Result<Self> {
        Self::metal_with(select::Choices::from_env()?)
    }

    /// [`Device::metal`] with a choice among its implementations, whatever the environment says.
    pub fn metal_with(choices: impl Into<select::Choices>) -> Result<Self> {
        let choices = choices.into();
        #[cfg(metal)]
        return Ok(Self::new(Box::new(metal::backend::Metal::new(choices)?)));
        #[cfg(not(metal))]
        {
            let _ = choices;
            let message = "this build has no Metal backend; on a Mac, build with the feature custom-metal";
            Err(Error::invalid("metal", message))
        }
    }

    /// An NVIDIA GPU by its number, counted from 0, through CUDA.
    ///
    /// # Errors
    /// There is no driver, no such GPU, or no kernel compiler (NVRTC), or this build does not contain the backend.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Self::cuda_with(ordinal, select::Choices::from_env()?)
    }

    /// [`Device::cuda`] with a choice among its implementations, whatever the environment contains.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    pub fn cuda_with(ordinal: usize, choices: impl Into<select::Choices>) -> Result<Self> {
        let choices = choices.into();
        #[cfg(cuda)]
        return Ok(Self::new(Box::new(cuda::Cuda::new(ordinal, choices)?)));
        #[cfg(not(cuda))]
        {
            let _ = (ordinal, choices);
            let message = "this build has no CUDA backend; on Linux or Windows, build with the feature cuda";
            Err(Error::invalid("cuda", message))
        }
    }

    /// Returns the fastest device of this machine: the GPU through Metal or CUDA where this build and the system have one, else
    /// the CPU with one thread per core. A GPU that cannot be used is reported as a warning; a machine without one is not.
    ///
    /// # Errors
    /// METAL_CANDLE_BACKEND or METAL_CANDLE_TABLE has an invalid value.
    pub fn best() -> Result<Self> {
        Self::best_with(select::Choices::from_env()?, 0)
    }

    /// [`Device::best`] with a choice among a GPU's implementations, and the number of threads of a CPU (0: one per core).
    ///
    /// # Errors
    /// The number of threads is invalid.
    pub fn best_with(choices: impl Into<select::Choices>, threads: usize) -> Result<Self> {
        let choices = choices.into();
        let opened = if cfg!(metal) { Self::metal_with(choices) } else { Self::cuda_with(0, choices) };
        match opened {
            Ok(device) => Ok(device),
            Err(error) => {
                if cfg!(metal) || Self::has_cuda_driver() {
                    tracing::warn!(%error, "the GPU cannot be used; using the CPU");
                }
                Self::cpu(threads)
            }
        }
    }

    /// Returns true if this build can use CUDA and the system has NVIDIA's driver with a GPU.
    fn has_cuda_driver() -> bool {
        #[cfg(cuda)]
        return cuda::has_gpu();
        #[cfg(not(cuda))]
        false
    }

    /// The operations' scalar definitions in f64: slow, and the measure of every other device.
    pub fn reference() -> Self {
        Self::new(Box::new(reference::ReferenceBackend::default()))
    }

    /// A device from its backend.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Self(Arc::new(Inner {
            backend,
            cache: Cache::default(),
            compilations: AtomicUsize::new(0),
            #[cfg(feature = "async-exec")]
            worker: Arc::default(),
        }))
    }

    /// The thread that awaited runs are done on.
    #[cfg(feature = "async-exec")]
    fn worker(&self) -> &Arc<asynchronous::Worker> {
        &self.0.worker
    }

    /// The device's name.
    pub fn name(&self) -> String {
        self.0.backend.name()
    }

    /// What the machine does at its best: a processor is probed, of a Mac's GPU others' figures are given; `None` where
    /// neither is known.
    pub fn peak(&self) -> Option<profile::Peak> {
        self.0.backend.peak()
    }

    /// Memory filled with zeros.
    pub fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        self.0.backend.allocate(bytes)
    }

    /// A tensor on the device with this value. A frozen one may use the host's memory in place.
    pub fn parameter(
        &self,
        name: impl Into<String>,
        value: &HostTensor,
        trainable: bool,
    ) -> Result<Parameter> {
        let buffer = if trainable {
            let buffer = self.0.backend.allocate(value.bytes().len())?;
            buffer.write(0, value.bytes())?;
            buffer
        } else {
            self.0.backend.import(value)?
        };
        Parameter::new(name, value.spec().clone(), trainable, buffer, 0)
    }

    /// A frozen tensor of zeros that programs may update: a cache, an optimizer's state.
    pub fn state(&self, name: impl Into<String>, spec: TensorSpec) -> Result<Parameter> {
        let buffer = self.0.backend.allocate(spec.bytes())?;
        Parameter::new(name, spec, false, buffer, 0)
    }

    /// The plan of a computation on this device, without compiling it.
    pub fn plan(&self, graph: &Graph, outputs: &[LazyTensor], updates: &[LazyTensor]) -> Result<Plan> {
        Plan::new(graph, outputs, updates, &*self.0.backend)
    }

    /// Compiles the computation of `outputs`, and of `updates`, which are computed for their effect on
    /// parameters. A recording of the same structure on the same parameters is compiled once.
    pub fn compile(&self, graph: &Graph, outputs: &[LazyTensor], updates: &[LazyTensor]) -> Result<Program> {
        let (structure, constants) = Structure::of(graph, outputs, updates)?;
        let compiled = match self.0.cache.get(&structure) {
            Some(compiled) => compiled,
            None => {
                let plan = self.plan(graph, outputs, updates)?;
                let executable = self.0.backend.compile(&plan)?;
                self.0.compilations.fetch_add(1, Ordering::Relaxed);
                let compiled = Compiled::new(plan, executable);
                #[cfg(feature = "async-exec")]
                let compiled = compiled.on(self.worker());
                let compiled = Arc::new(compiled);
                self.0.cache.put(structure, Arc::clone(&compiled));
                compiled
            }
        };
        // A device that does not read its inputs in place is given copies of candle's tensors.
        let copied = |constant| match constant {
            Constant::Candle(tensor) if !self.0.backend.in_place_io() => {
                Ok(Constant::Host(tensor.to_host()?))
            }
            constant => Ok(constant),
        };
        let constants = constants.into_iter().map(copied).collect::<Result<_>>()?;
        Ok(Program::new(compiled, constants))
    }

    /// Computes tensors of one graph that has no inputs.
    pub fn eval(&self, tensors: &[LazyTensor]) -> Result<Vec<HostTensor>> {
        let Some(first) = tensors.first() else { return Ok(Vec::new()) };
        self.compile(first.graph(), tensors, &[])?.run(&[])
    }

    /// How many plans were compiled so far; those found in the cache do not count.
    pub fn compilations(&self) -> usize {
        self.0.compilations.load(Ordering::Relaxed)
    }
}

impl LazyTensor {
    /// Computes this tensor; its graph must have no inputs.
    pub fn eval(&self, device: &Device) -> Result<HostTensor> {
        Ok(device.eval(std::slice::from_ref(self))?.remove(0))
    }
}
