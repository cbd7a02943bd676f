//! Fused operations compiled for the layouts that candle's tensors have, and their execution on candle's memory.
//!
//! A program is found again by a key of operation, dtypes, shapes and strides. On the CPU it reads candle's storage and
//! writes new storage directly; on Metal its launches go into candle's own encoder.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, MetalStorage, Storage};

use super::fused::Fused;
use crate::backend::{Device, Executable, Io};
use crate::graph::{Graph, LazyTensor, Plan};
use crate::tensor::candle::{cpu_bytes, extent, filled, room, start};
use crate::tensor::{Constant, DType, HostTensor, Layout, Shape, TensorSpec};
use crate::{Error, Result};

/// Compiled programs that are kept; when there are more, all are forgotten and compiled again as they are wanted.
const KEPT: usize = 1024;

/// What is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Hashes a key word by word: keys are short and come from shapes, so nobody gains by making them collide.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// Programs by key.
pub(super) struct Programs<T>(Mutex<HashMap<Vec<u64>, Arc<T>, BuildHasherDefault<Mix>>>);

impl<T> Programs<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::default()))
    }

    /// The program of a key, made if it is not there.
    pub(super) fn get(&self, key: Vec<u64>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(make()?);
        let mut programs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if programs.len() >= KEPT {
            programs.clear();
        }
        programs.insert(key, Arc::clone(&made));
        Ok(made)
    }
}

/// The key of a pass over tensors with these layouts.
pub(super) fn key<'a>(
    fused: Fused,
    pass: Pass,
    tensors: impl Iterator<Item = (DType, &'a [usize], &'a [usize])>,
) -> Vec<u64> {
    let mut key = Vec::with_capacity(48);
    fused.encode(&mut key);
    key.push(match pass {
        Pass::Forward { hidden } => u64::from(hidden),
        Pass::Backward { inputs, needed } => 2 + ((inputs as u64) << 8 | u64::from(needed) << 16),
    });
    for (dtype, dims, strides) in tensors {
        key.push(dtype as u64 | (dims.len() as u64) << 8);
        key.extend(dims.iter().zip(strides).flat_map(|(&dim, &stride)| [dim as u64, stride as u64]));
    }
    key
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
    let key = key(fused, pass, each.clone().map(|(v, dtype)| (dtype, v.layout.dims(), v.layout.stride())));
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
