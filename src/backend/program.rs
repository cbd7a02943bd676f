//! Compiled programs and the cache that keeps them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::CpuStorage;
use lru::LruCache;

use super::{Executable, Io};
use crate::graph::{Graph, LazyTensor, Plan, Source};
use crate::ops::{Op, Value};
use crate::tensor::candle::{StorageGuard, start};
use crate::tensor::{Constant, DType, HostTensor, Layout, TensorSpec};
use crate::{Error, Result};

/// Maximum number of compiled plans of a device; the least recently used is dropped first.
const MAX_PLANS: NonZeroUsize = NonZeroUsize::new(64).expect("is not zero");

/// A plan with its kernels.
pub(super) struct Compiled {
    plan: Plan,
    executable: Box<dyn Executable>,
    /// For each input of the plan: given at a run, or a constant of the recording.
    sources: Vec<InputSource>,
    /// The device's thread for awaited runs.
    #[cfg(feature = "async-exec")]
    worker: Arc<super::asynchronous::Worker>,
}

#[derive(Clone, Copy)]
enum InputSource {
    Given(usize),
    Constant(usize),
}

impl Compiled {
    pub(super) fn new(mut plan: Plan, executable: Box<dyn Executable>) -> Self {
        let (mut given, mut constants) = (0, 0);
        let mut sources = Vec::new();
        for input in &mut plan.inputs {
            // The value belongs to one recording; the plan serves all of the same structure.
            if input.constant.take().is_some() {
                sources.push(InputSource::Constant(constants));
                constants += 1;
            } else {
                sources.push(InputSource::Given(given));
                given += 1;
            }
        }
        Self {
            plan,
            executable,
            sources,
            #[cfg(feature = "async-exec")]
            worker: Arc::default(),
        }
    }

    /// With the device's thread for awaited runs.
    #[cfg(feature = "async-exec")]
    pub(super) fn on(self, worker: &Arc<super::asynchronous::Worker>) -> Self {
        Self { worker: Arc::clone(worker), ..self }
    }
}

/// A recorded step, ready to be replayed.
#[derive(Clone)]
pub struct Program {
    compiled: Arc<Compiled>,
    constants: Vec<Constant>,
}

impl Program {
    pub(super) fn new(compiled: Arc<Compiled>, constants: Vec<Constant>) -> Self {
        Self { compiled, constants }
    }

    /// The thread that awaited runs are done on.
    #[cfg(feature = "async-exec")]
    pub(super) fn worker(&self) -> &Arc<super::asynchronous::Worker> {
        &self.compiled.worker
    }

    /// What runs, and where everything lies.
    pub fn plan(&self) -> &Plan {
        &self.compiled.plan
    }

    /// How many pieces of work a run hands to the device: kernels of a CPU, dispatches of a GPU.
    pub fn launches(&self) -> usize {
        self.compiled.executable.launches()
    }

    /// Names and specs of the inputs, in the order in which `run` takes them.
    pub fn inputs(&self) -> Vec<(&str, TensorSpec)> {
        let plan = &self.compiled.plan;
        plan.inputs
            .iter()
            .zip(&self.compiled.sources)
            .filter(|(_, source)| matches!(source, InputSource::Given(_)))
            .map(|(input, _)| (input.name.as_str(), input.operand.spec()))
            .collect()
    }

    /// Runs the program and returns its outputs in new tensors.
    pub fn run(&self, inputs: &[&HostTensor]) -> Result<Vec<HostTensor>> {
        let mut outputs = self.outputs();
        self.run_into(inputs, &mut outputs)?;
        Ok(outputs)
    }

    /// Tensors that fit [`Program::run_into`].
    pub fn outputs(&self) -> Vec<HostTensor> {
        self.compiled.plan.outputs.iter().map(|operand| HostTensor::zeros(operand.spec())).collect()
    }

    /// Runs the program and writes its outputs into tensors made by [`Program::outputs`]. Nothing is allocated.
    pub fn run_into(&self, inputs: &[&HostTensor], outputs: &mut [HostTensor]) -> Result<()> {
        self.check(inputs, outputs)?;
        let mut io = Tensors { program: self, inputs, outputs, guards: self.lock_storage() };
        self.compiled.executable.run(&mut io)
    }

    /// Runs a program without inputs and writes its only output into storage with room for it.
    pub(super) fn run_into_storage(&self, output: &mut CpuStorage) -> Result<()> {
        let expected = self.compiled.plan.inputs.len() - self.constants.len();
        if expected != 0 {
            return Err(Error::invalid("run", format!("takes {expected} inputs, 0 given")));
        }
        let mut io = InStorage { program: self, output, guards: self.lock_storage() };
        self.compiled.executable.run(&mut io)
    }

    /// The storages of candle's tensors, while nobody may change them.
    fn lock_storage(&self) -> Vec<Option<StorageGuard<'_>>> {
        if !self.constants.iter().any(|constant| matches!(constant, Constant::Candle(_))) {
            return Vec::new();
        }
        let guards = self.constants.iter().map(|constant| match constant {
            Constant::Candle(tensor) => Some(tensor.lock_storage()),
            Constant::Host(_) => None,
        });
        guards.collect()
    }

    /// The bytes of an input that the recording knew.
    fn constant<'a>(&'a self, index: usize, guards: &'a [Option<StorageGuard<'a>>]) -> &'a [u8] {
        match (&self.constants[index], guards.get(index)) {
            (Constant::Host(tensor), _) => tensor.bytes(),
            (Constant::Candle(_), Some(Some(guards))) => guards.bytes(),
            (Constant::Candle(_), _) => unreachable!("all of candle's tensors are guards for a run"),
        }
    }

    fn check(&self, inputs: &[&HostTensor], outputs: &[HostTensor]) -> Result<()> {
        let plan = &self.compiled.plan;
        let given = plan
            .inputs
            .iter()
            .zip(&self.compiled.sources)
            .filter(|(_, source)| matches!(source, InputSource::Given(_)))
            .map(|(input, _)| input);
        let expected = plan.inputs.len() - self.constants.len();
        if inputs.len() != expected {
            return Err(Error::invalid("run", format!("takes {expected} inputs, {} given", inputs.len())));
        }
        for (tensor, input) in inputs.iter().zip(given) {
            let (dtype, shape) = (input.operand.dtype, &input.operand.layout.shape);
            if tensor.dtype() != dtype || tensor.shape() != shape {
                let message = format!("must be {dtype}{shape}, is {}", tensor.spec());
                return Err(Error::invalid(format!("input '{}'", input.name), message));
            }
        }
        let fits = outputs.len() == plan.outputs.len()
            && outputs.iter().zip(&plan.outputs).all(|(tensor, operand)| {
                tensor.dtype() == operand.dtype && tensor.shape() == &operand.layout.shape
            });
        if fits {
            Ok(())
        } else {
            Err(Error::invalid("run", "the outputs were not made by Program::outputs"))
        }
    }
}

struct Tensors<'a> {
    program: &'a Program,
    inputs: &'a [&'a HostTensor],
    outputs: &'a mut [HostTensor],
    guards: Vec<Option<StorageGuard<'a>>>,
}

/// A run into candle's storage.
struct InStorage<'a> {
    program: &'a Program,
    output: &'a mut CpuStorage,
    guards: Vec<Option<StorageGuard<'a>>>,
}

impl Io for InStorage<'_> {
    fn input(&self, index: usize) -> &[u8] {
        match self.program.compiled.sources[index] {
            InputSource::Constant(constant) => self.program.constant(constant, &self.guards),
            InputSource::Given(_) => unreachable!("a program with inputs was refused"),
        }
    }

    fn output(&mut self, _index: usize, bytes: &[u8]) {
        // SAFETY: the storage has room for the program's only output, and nothing else points to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start(self.output), bytes.len()) };
    }

    fn output_memory(&mut self, _index: usize) -> *mut u8 {
        start(self.output)
    }
}

impl Io for Tensors<'_> {
    fn input(&self, index: usize) -> &[u8] {
        match self.program.compiled.sources[index] {
            InputSource::Given(given) => self.inputs[given].bytes(),
            InputSource::Constant(constant) => self.program.constant(constant, &self.guards),
        }
    }

    fn output(&mut self, index: usize, bytes: &[u8]) {
        self.outputs[index].bytes_mut().copy_from_slice(bytes);
    }

    fn output_memory(&mut self, index: usize) -> *mut u8 {
        self.outputs[index].bytes_mut().as_mut_ptr()
    }
}

/// What decides whether two recordings run the same plan: their reachable nodes with constants and inputs
/// reduced to specs.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Structure {
    nodes: Vec<(Leaf, Vec<Value>)>,
    outputs: Vec<Value>,
    updates: Vec<Value>,
}

#[derive(PartialEq, Eq, Hash)]
enum Leaf {
    Input(String, TensorSpec),
    View(String, DType, Layout),
    Constant(TensorSpec),
    Parameter(usize),
    Operation(Op),
}

impl Structure {
    /// The structure, and the constants in the order of the plan's inputs.
    pub(super) fn of(
        graph: &Graph,
        outputs: &[LazyTensor],
        updates: &[LazyTensor],
    ) -> Result<(Self, Vec<Constant>)> {
        if outputs.iter().chain(updates).any(|tensor| !tensor.graph().is(graph)) {
            return Err(Error::invalid("compile", "an output belongs to another graph"));
        }
        let nodes = graph.nodes();
        let mut live = vec![false; nodes.list.len()];
        for tensor in outputs.iter().chain(updates) {
            live[tensor.value().node] = true;
        }
        for index in (0..nodes.list.len()).rev() {
            live[index] |= matches!(nodes.list[index].source, Source::Input(_) | Source::View(..));
            if live[index] {
                nodes.list[index].inputs.iter().for_each(|input| live[input.node] = true);
            }
        }
        let mut number = vec![0; nodes.list.len()];
        let mut entries = Vec::new();
        let mut constants = Vec::new();
        for (index, node) in nodes.list.iter().enumerate().filter(|&(index, _)| live[index]) {
            number[index] = entries.len();
            let inputs =
                node.inputs.iter().map(|value| Value { node: number[value.node], ..*value }).collect();
            let leaf = match &node.source {
                Source::Input(name) => Leaf::Input(name.clone(), node.outputs[0].clone()),
                Source::View(name, layout) => Leaf::View(name.clone(), node.outputs[0].dtype, layout.clone()),
                Source::Constant(tensor) => {
                    constants.push(Constant::Host(tensor.clone()));
                    Leaf::Constant(tensor.spec().clone())
                }
                Source::Candle(tensor) => {
                    let leaf = Leaf::View(String::new(), tensor.spec().dtype, tensor.layout().clone());
                    constants.push(Constant::Candle(tensor.clone()));
                    leaf
                }
                Source::Parameter(parameter) => Leaf::Parameter(parameter.identity()),
                Source::Operation(op) => Leaf::Operation(op.clone()),
            };
            entries.push((leaf, inputs));
        }
        let renumbered = |tensors: &[LazyTensor]| {
            tensors.iter().map(|t| Value { node: number[t.value().node], port: t.value().port }).collect()
        };
        let structure = Self { nodes: entries, outputs: renumbered(outputs), updates: renumbered(updates) };
        Ok((structure, constants))
    }
}

/// Compiled plans by structure.
pub(super) struct Cache(Mutex<LruCache<Structure, Arc<Compiled>>>);

impl Default for Cache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_PLANS)))
    }
}

impl Cache {
    pub(super) fn get(&self, structure: &Structure) -> Option<Arc<Compiled>> {
        self.plans().get(structure).cloned()
    }

    pub(super) fn put(&self, structure: Structure, compiled: Arc<Compiled>) {
        self.plans().put(structure, compiled);
    }

    fn plans(&self) -> MutexGuard<'_, LruCache<Structure, Arc<Compiled>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
