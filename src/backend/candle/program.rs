//! Fused operations compiled for the layouts that candle's tensors have, and their execution on candle's memory.
//!
//! A program is found again by a key of operation, dtypes, shapes and strides. On the CPU it reads candle's storage and
//! writes new storage directly; on Metal its launches go into candle's own encoder.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, MetalStorage, Storage};
use lru::LruCache;

use super::fused::Fused;
use crate::backend::{Device, Executable, Io};
use crate::graph::{Graph, LazyTensor, Plan};
use crate::tensor::candle::{cpu_bytes, extent, filled, room, start};
use crate::tensor::{Constant, DType, HostTensor, Layout, Shape, TensorSpec};
use crate::{Error, Result};

/// Maximum number of compiled programs that are kept.
const MAX_PROGRAMS: NonZeroUsize = NonZeroUsize::new(1024).expect("is not zero");

/// What is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pass {
    /// The outputs that a caller sees, and if `hidden` those for the backward pass.
    Forward { hidden: bool },
    /// The gradients of those of `inputs` inputs whose bit is set. After the inputs come the forward's outputs, then the
    /// gradient that arrives at the first.
    Backward { inputs: usize, needed: u32 },
}

/// What a tensor's memory looks like.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) dtype: DType,
    pub(super) dims: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Spec {
    /// Bytes from its first element to the end of its last.
    pub(super) fn extent(&self) -> usize {
        extent(self.dtype, &self.dims, &self.strides)
    }
}

/// A plan with what it takes and gives.
pub(super) struct Program {
    pub(super) plan: Plan,
    pub(super) sources: Vec<Source>,
    pub(super) outputs: Vec<TensorSpec>,
}

/// Where an input of a plan comes from.
pub(super) enum Source {
    /// The tensor of this number.
    Given(usize),
    /// Known when it was recorded.
    Constant(HostTensor),
}

/// Records and plans a pass.
pub(super) fn plan(device: &Device, fused: Fused, pass: Pass, specs: &[Spec]) -> Result<Program> {
    let graph = Graph::new();
    let view = |(index, spec): (usize, &Spec)| {
        let shape = Shape::from(spec.dims.clone());
        let layout = Layout { shape, strides: spec.strides.clone(), offset: 0 };
        graph.view(format!("input {index}"), spec.dtype, layout)
    };
    let views: Vec<LazyTensor> = specs.iter().enumerate().map(view).collect();
    let outputs = match pass {
        Pass::Forward { hidden } => {
            let mut outputs = fused.record(&graph, &views)?;
            if !hidden {
                outputs.truncate(fused.visible());
            }
            outputs
        }
        Pass::Backward { inputs, needed } => {
            let outputs = fused.record(&graph, &views[..inputs])?;
            let (upstream, known) = views[inputs..].split_last().expect("an upstream gradient");
            let mut saved = Vec::new();
            for (output, known) in outputs.iter().zip(known) {
                saved.push((output.clone(), known.reshape(output.shape())?));
            }
            let wanted: Vec<LazyTensor> = (0..inputs)
                .filter(|index| needed >> index & 1 == 1)
                .map(|index| views[index].clone())
                .collect();
            let upstream = upstream.reshape(outputs[0].shape())?;
            graph.vjp(&outputs[0], &upstream, &wanted, &saved)?
        }
    };
    let mut plan = device.plan(&graph, &outputs, &[])?;
    let mut given = 0..;
    let sources = plan.inputs.iter_mut().map(|input| match input.constant.take() {
        Some(Constant::Host(value)) => Source::Constant(value),
        Some(Constant::Candle(_)) => unreachable!("fused operations record no tensors of candle's"),
        None => Source::Given(given.next().expect("as many as there are")),
    });
    let sources = sources.collect();
    let outputs = plan.outputs.iter().map(crate::graph::Operand::spec).collect();
    Ok(Program { plan, sources, outputs })
}

/// A program for the CPU.
pub(super) struct Compiled {
    program: Program,
    executable: Box<dyn Executable>,
    /// Bytes that each tensor must have.
    extents: Vec<usize>,
}

/// The CPU as candle uses it: as many threads as its own operations take.
fn cpu() -> Result<&'static Device> {
    static CPU: OnceLock<Device> = OnceLock::new();
    if let Some(device) = CPU.get() {
        return Ok(device);
    }
    let device = Device::cpu(candle_core::utils::get_num_threads())?;
    Ok(CPU.get_or_init(|| device))
}

/// Identifies the program of a pass over tensors with these dtypes, shapes and strides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    fused: Fused,
    pass: Pass,
    /// Dtype, rank, and each axis with its stride, of one tensor after the other.
    tensors: Vec<usize>,
}

impl Key {
    pub(super) fn new<'a>(
        fused: Fused,
        pass: Pass,
        each: impl Iterator<Item = (DType, &'a [usize], &'a [usize])>,
    ) -> Self {
        let mut tensors = Vec::with_capacity(48);
        for (dtype, dims, strides) in each {
            tensors.extend([dtype as usize, dims.len()]);
            tensors.extend(dims.iter().zip(strides).flat_map(|(&dim, &stride)| [dim, stride]));
        }
        Self { fused, pass, tensors }
    }
}

/// Compiled programs, of which the least recently used are dropped.
pub(super) struct Programs<T>(Mutex<LruCache<Key, Arc<T>>>);

impl<T> Programs<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MAX_PROGRAMS)))
    }

    /// Returns the program of a key, made if there is none.
    pub(super) fn get(&self, key: Key, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(make()?);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(key, Arc::clone(&made));
        Ok(made)
    }
}

/// Where candle has a tensor.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// In the host's memory.
    Cpu(&'a CpuStorage),
    /// On a GPU of Apple's.
    Metal(&'a MetalStorage),
    /// On another device.
    Elsewhere,
}

/// A tensor in candle's memory.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) stored: Stored<'a>,
    pub(super) layout: &'a candle_core::Layout,
}

impl<'a> View<'a> {
    pub(super) fn of(storage: &'a Storage, layout: &'a candle_core::Layout) -> Self {
        let stored = match storage {
            Storage::Cpu(storage) => Stored::Cpu(storage),
            Storage::Metal(storage) => Stored::Metal(storage),
            Storage::Cuda(_) => Stored::Elsewhere,
        };
        Self { stored, layout }
    }

    pub(super) fn dtype(self, op: &'static str) -> Result<DType> {
        let dtype = match self.stored {
            Stored::Cpu(storage) => storage.dtype(),
            Stored::Metal(storage) => storage.dtype(),
            Stored::Elsewhere => {
                return Err(Error::invalid(op, "runs on candle's CPU and Metal devices only"));
            }
        };
        DType::from_candle(op, dtype)
    }

    /// The bytes from the first element on, in the host's memory.
    fn bytes(self) -> &'a [u8] {
        match self.stored {
            Stored::Cpu(storage) => cpu_bytes(storage, self.layout.start_offset()),
            _ => &[],
        }
    }

    pub(super) fn spec(self, dtype: DType) -> Spec {
        Spec { dtype, dims: self.layout.dims().to_vec(), strides: self.layout.stride().to_vec() }
    }
}

/// The dtypes of tensors, which are no more than [`MOST`].
pub(super) fn dtypes(fused: Fused, views: &[View<'_>]) -> Result<[DType; MOST]> {
    let mut dtypes = [DType::F32; MOST];
    for (dtype, view) in dtypes.iter_mut().zip(views) {
        *dtype = view.dtype(fused.name())?;
    }
    Ok(dtypes)
}

/// Runs a pass on the CPU and returns its outputs with their shapes.
pub(super) fn run_cpu(fused: Fused, pass: Pass, views: &[View<'_>]) -> Result<Vec<(Storage, Vec<usize>)>> {
    static PROGRAMS: OnceLock<Programs<Compiled>> = OnceLock::new();
    let each = views.iter().zip(dtypes(fused, views)?);
    let key =
        Key::new(fused, pass, each.clone().map(|(v, dtype)| (dtype, v.layout.dims(), v.layout.stride())));
    let compiled = PROGRAMS.get_or_init(Programs::new).get(key, || {
        let specs: Vec<Spec> = each.map(|(view, dtype)| view.spec(dtype)).collect();
        let device = cpu()?;
        let program = plan(device, fused, pass, &specs)?;
        let executable = device.0.backend.compile(&program.plan)?;
        Ok(Compiled { program, executable, extents: specs.iter().map(Spec::extent).collect() })
    })?;
    check_extents(fused, &compiled.extents, views.iter().map(|view| view.bytes().len()))?;
    let mut outputs: Vec<CpuStorage> = compiled.program.outputs.iter().map(room).collect();
    compiled.executable.run(&mut Memory { views, compiled: &compiled.program, outputs: &mut outputs })?;
    let whole = |(storage, spec): (CpuStorage, &TensorSpec)| {
        // SAFETY: the run that has ended without an error wrote all elements of its outputs.
        (Storage::Cpu(unsafe { filled(storage, spec.shape.elements()) }), spec.shape.dims().to_vec())
    };
    Ok(outputs.into_iter().zip(&compiled.program.outputs).map(whole).collect())
}

/// Refuses tensors whose storage is shorter than their layout says, as `Tensor::from_storage` can make them.
pub(super) fn check_extents(
    fused: Fused,
    extents: &[usize],
    bytes: impl Iterator<Item = usize>,
) -> Result<()> {
    match extents.iter().zip(bytes).position(|(&extent, bytes)| extent > bytes) {
        Some(index) => {
            Err(Error::invalid(fused.name(), format!("input {index} has less storage than its shape needs")))
        }
        None => Ok(()),
    }
}

/// The most tensors that a pass takes: four inputs, three outputs and a gradient.
pub(super) const MOST: usize = 8;

struct Memory<'a> {
    views: &'a [View<'a>],
    compiled: &'a Program,
    outputs: &'a mut [CpuStorage],
}

impl Io for Memory<'_> {
    fn input(&self, index: usize) -> &[u8] {
        match &self.compiled.sources[index] {
            Source::Given(given) => self.views[*given].bytes(),
            Source::Constant(value) => value.bytes(),
        }
    }

    fn output(&mut self, index: usize, bytes: &[u8]) {
        let room = self.compiled.outputs[index].bytes();
        assert_eq!(bytes.len(), room, "an output has its own size");
        // SAFETY: room was made for the whole output, and nothing else points to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start(&mut self.outputs[index]), room) };
    }

    fn output_memory(&mut self, index: usize) -> *mut u8 {
        start(&mut self.outputs[index])
    }
}
