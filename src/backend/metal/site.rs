//! A step with its tensors, for the operation that turns it into launches.

use bytemuck::NoUninit;

use super::buffer::{Arena, MetalBuffer};
use super::device::Gpu;
use super::fault::DEVICE;
use super::launch::{Address, Binding, Launch, Span, Touches};
use super::pipeline::{Constant, Pipeline, Source};
use crate::backend::reference::index_error;
use crate::graph::Step;
use crate::tensor::{DType, Layout};
use crate::{Error, Result};

/// A tensor of a step.
#[derive(Clone)]
pub(super) struct Tensor {
    /// Where its buffer begins; the layout's offset comes on top.
    pub(super) address: Address,
    pub(super) dtype: DType,
    pub(super) layout: Layout,
}

impl Tensor {
    /// Memory without a shape of its own.
    pub(super) fn bytes(address: Address, bytes: usize) -> Self {
        let layout = Layout::contiguous(&crate::tensor::Shape::from([bytes.div_ceil(4)]));
        Self { address, dtype: DType::U32, layout }
    }

    /// Its first element.
    pub(super) fn first(&self) -> Address {
        self.address.plus(self.layout.offset * self.dtype.size())
    }

    /// Bytes from its first element to the end of its last.
    pub(super) fn extent(&self) -> usize {
        if self.elements() == 0 {
            return 0;
        }
        let dims = self.layout.shape.dims();
        let last: usize = dims.iter().zip(&self.layout.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        (last + 1) * self.dtype.size()
    }

    pub(super) fn rows(&self) -> usize {
        self.layout.shape.rows()
    }

    /// The length of the last axis.
    pub(super) fn last(&self) -> usize {
        self.layout.shape.last()
    }

    pub(super) fn elements(&self) -> usize {
        self.layout.shape.elements()
    }

    /// Its rows as a matrix of Metal Performance Shaders.
    #[cfg(mps)]
    pub(super) fn row_matrix(&self) -> crate::backend::mps::Operand {
        let row = if self.rows() == 1 { self.last() } else { self.row_stride() };
        let size = (self.rows(), self.last());
        crate::backend::mps::Operand::single(self.first(), self.dtype, size, row)
    }

    /// The step between rows of the last axis; operations that ask for it accept only such layouts.
    pub(super) fn row_stride(&self) -> usize {
        self.layout.row_stride().expect("the operation accepts row-strided layouts only")
    }

    /// The name of its element type in kernels' names.
    pub(super) fn type_name(&self) -> &'static str {
        type_name(self.dtype)
    }
}

/// The name of an element type in kernels' names.
pub(super) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        DType::U32 => "uint",
    }
}

/// A size as kernels take it.
pub(super) fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes that kernels take were checked when the plan was compiled")
}

/// The longest row that a threadgroup holds in registers: 1024 threads of 4 elements.
const IN_REGISTERS: usize = 4096;

/// Threads for a row of `n` elements, 4 each: whole SIMD groups, at most 1024.
fn row_threads(n: usize) -> usize {
    n.div_ceil(4).next_multiple_of(32).clamp(32, 1024)
}

/// A tensor of indices that must lie below a limit. Kernels cannot raise an error, so the host looks: before the run at
/// what it gives, after it at flags.
pub(super) struct IndexCheck {
    op: &'static str,
    what: &'static str,
    limit: usize,
    at: Indices,
}

enum Indices {
    /// An input of the plan.
    Input(usize),
    /// Computed on the device: a flag, set by a launch.
    Flag(MetalBuffer),
}

impl IndexCheck {
    /// Looks at the inputs of a run.
    pub(super) fn before(&self, io: &dyn crate::backend::Io) -> Result<()> {
        let Indices::Input(input) = self.at else { return Ok(()) };
        let indices =
            io.input(input).chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize);
        match indices.into_iter().find(|&index| index >= self.limit) {
            Some(index) => Err(index_error(self.op, self.what, index, self.limit)),
            None => Ok(()),
        }
    }

    /// Looks at the flag that a run has left.
    pub(super) fn after(&self) -> Result<()> {
        let Indices::Flag(flag) = &self.at else { return Ok(()) };
        match flag.first_word() as usize {
            0 => Ok(()),
            found => Err(index_error(self.op, self.what, found - 1, self.limit)),
        }
    }
}

pub(super) const CHECK: Source = Source::new("check_indices", include_str!("kernels/check_indices.metal"));

/// What the launches of a step are collected in.
pub(super) struct Site<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) arena: &'a Arena,
    pub(super) step: &'a Step,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Option<Tensor>>,
    /// Working memory, as much as `executor::scratch` said.
    pub(super) scratch: Address,
    /// The steps after this one.
    pub(super) rest: &'a [Step],
    /// How many of them this one's launches do as well.
    pub(super) done: usize,
    /// The tensor of an operand.
    pub(super) tensor: &'a dyn Fn(&crate::graph::Operand) -> Tensor,
    /// The inputs of the plan.
    pub(super) given: &'a [Tensor],
    pub(super) checks: &'a mut Vec<IndexCheck>,
    pub(super) items: &'a mut Vec<super::executor::Item>,
}

impl Site<'_> {
    /// An output, if anything reads it.
    pub(super) fn output(&self, index: usize) -> Option<Tensor> {
        self.outputs[index].clone()
    }

    /// That the operation has no kernel for a dtype.
    pub(super) fn unsupported(&self, dtype: DType, advice: &str) -> Error {
        let device = DEVICE.to_owned();
        Error::Unsupported { op: self.step.op.name(), dtype, device, advice: advice.to_owned() }
    }

    /// Refuses a tensor of another dtype than `dtype`.
    pub(super) fn expect(&self, tensor: &Tensor, dtype: DType) -> Result<()> {
        if tensor.dtype == dtype {
            return Ok(());
        }
        Err(self.unsupported(tensor.dtype, &format!("cast it to {dtype}, as the other inputs")))
    }

    /// Makes a run fail, with an error that names it, if an index is not below `limit`.
    pub(super) fn check_indices(&mut self, indices: &Tensor, limit: usize, what: &'static str) -> Result<()> {
        let op = self.step.op.name();
        let span = Span::new(&indices.first(), indices.extent());
        let same = |given: &Tensor| {
            given.dtype == DType::U32
                && given.elements() == indices.elements()
                && Span::new(&given.first(), given.extent()) == span
        };
        let fresh = !self.items.iter().any(|item| item.writes(&span));
        let at = match self.given.iter().position(same).filter(|_| fresh) {
            Some(input) => Indices::Input(input),
            None => {
                let flag = MetalBuffer::new(self.gpu, 4, "flags", self.arena)?;
                let (raw, start) = flag.location();
                let to = Tensor::bytes(Address::Fixed(raw.clone(), start), 4);
                let launch = self.kernel(CHECK, "check_indices")?.read(indices).write(&to);
                let launch = launch.constants(&[small(indices.elements()), small(limit)]);
                self.push(launch, [1, 1, 1], [32, 1, 1]);
                Indices::Flag(flag)
            }
        };
        self.checks.push(IndexCheck { op, what, limit, at });
        Ok(())
    }

    /// Begins a launch of a kernel.
    pub(super) fn kernel(&self, source: Source, function: &str) -> Result<Builder> {
        self.kernel_with(source, function, &[])
    }

    /// Begins a launch of a kernel with function constants.
    pub(super) fn kernel_with(
        &self,
        source: Source,
        function: &str,
        constants: &[Constant],
    ) -> Result<Builder> {
        let pipeline = self.gpu.pipelines.get(source, function, constants)?;
        Ok(Builder { op: self.step.op.name(), pipeline, bindings: Vec::new(), touches: Touches::default() })
    }

    /// Whether Metal Performance Shaders are to be asked first for what a kernel of ours does in one launch.
    #[cfg(mps)]
    pub(super) fn prefers_shaders(&self) -> bool {
        self.gpu.preference() == crate::backend::select::Preference::Mps
    }

    /// Adds a call of Metal Performance Shaders, if the guard has agreed to it.
    #[cfg(mps)]
    pub(super) fn take(
        &mut self,
        item: std::result::Result<super::executor::Item, crate::backend::mps::guard::Refusal>,
    ) -> bool {
        match item {
            Ok(item) => {
                self.items.push(item);
                true
            }
            Err(refusal) => {
                tracing::debug!(op = self.step.op.name(), %refusal, "stays with a kernel of ours");
                false
            }
        }
    }

    /// Adds a launch with `groups` threadgroups of `threads` threads each. One without work is left out.
    pub(super) fn push(&mut self, builder: Builder, groups: [usize; 3], threads: [usize; 3]) {
        if groups.contains(&0) {
            return;
        }
        let Builder { op, pipeline, bindings, touches } = builder;
        let launch = Launch { op, pipeline, bindings, groups, threads, barrier: false };
        self.items.push(super::executor::Item::launch(launch, touches));
    }

    /// Begins the launch of a kernel that gives a threadgroup to each row of `n` elements: the form that holds the row in
    /// registers or, for longer rows and where its pipeline allows too few threads, the form that steps through the row.
    pub(super) fn row_kernel(&self, source: Source, name: &str, types: &str, n: usize) -> Result<Builder> {
        if n <= IN_REGISTERS {
            let launch = self.kernel(source, &format!("{name}_row_{types}"))?;
            if launch.pipeline.most_threads() >= row_threads(n) {
                return Ok(launch);
            }
        }
        self.kernel(source, &format!("{name}_long_{types}"))
    }

    /// Adds a launch of a threadgroup per row, whose threads step through the row's `n` elements: as many threads as
    /// suit the row and the pipeline allows.
    pub(super) fn push_rows(&mut self, builder: Builder, rows: usize, n: usize) {
        let most = builder.pipeline.most_threads() / 32 * 32;
        self.push(builder, [rows, 1, 1], [row_threads(n).min(most.max(32)), 1, 1]);
    }

    /// Adds a launch of one thread an element.
    pub(super) fn push_elements(&mut self, builder: Builder, elements: usize) {
        self.push(builder, [elements.div_ceil(256), 1, 1], [256, 1, 1]);
    }
}

/// A launch being put together: arguments are bound in the order of the calls.
#[derive(Clone)]
pub(super) struct Builder {
    op: &'static str,
    pipeline: Pipeline,
    bindings: Vec<Binding>,
    touches: Touches,
}

impl Builder {
    /// Binds a tensor's first element, to read.
    pub(super) fn read(mut self, tensor: &Tensor) -> Self {
        self.touches.reads.push(Span::new(&tensor.first(), tensor.extent()));
        self.bindings.push(Binding::Buffer(tensor.first()));
        self
    }

    /// Binds a tensor's first element, to write.
    pub(super) fn write(mut self, tensor: &Tensor) -> Self {
        self.touches.writes.push(Span::new(&tensor.first(), tensor.extent()));
        self.bindings.push(Binding::Buffer(tensor.first()));
        self
    }

    /// Binds a tensor to write, or, if nothing reads it, something else that the kernel leaves alone.
    pub(super) fn write_or(self, tensor: Option<&Tensor>, other: &Address) -> Self {
        match tensor {
            Some(tensor) => self.write(tensor),
            None => self.unused(other),
        }
    }

    /// Binds a tensor to read and write.
    pub(super) fn update(mut self, tensor: &Tensor) -> Self {
        self.touches.reads.push(Span::new(&tensor.first(), tensor.extent()));
        self.write(tensor)
    }

    /// Binds memory to read.
    pub(super) fn read_bytes(mut self, address: &Address, bytes: usize) -> Self {
        self.touches.reads.push(Span::new(address, bytes));
        self.bindings.push(Binding::Buffer(address.clone()));
        self
    }

    /// Binds memory to write.
    pub(super) fn write_bytes(mut self, address: &Address, bytes: usize) -> Self {
        self.touches.writes.push(Span::new(address, bytes));
        self.bindings.push(Binding::Buffer(address.clone()));
        self
    }

    /// Binds memory from its beginning, of which a part is written.
    pub(super) fn write_part(mut self, address: &Address, offset: usize, bytes: usize) -> Self {
        self.touches.writes.push(Span::new(&address.plus(offset), bytes));
        self.bindings.push(Binding::Buffer(address.clone()));
        self
    }

    /// Says that a tensor is touched, without binding it.
    pub(super) fn touches(mut self, tensor: &Tensor, write: bool) -> Self {
        let span = Span::new(&tensor.first(), tensor.extent());
        if write {
            self.touches.writes.push(span.clone());
        }
        self.touches.reads.push(span);
        self
    }

    /// Binds something again, in the place of an argument that the kernel does not use this time.
    pub(super) fn unused(mut self, address: &Address) -> Self {
        self.bindings.push(Binding::Buffer(address.clone()));
        self
    }

    /// Binds a struct of sizes and factors.
    pub(super) fn constants(mut self, constants: &impl NoUninit) -> Self {
        self.bindings.push(Binding::Bytes(bytemuck::bytes_of(constants).to_vec()));
        self
    }

    /// Leaves an argument out.
    pub(super) fn nothing(mut self) -> Self {
        self.bindings.push(Binding::Nothing);
        self
    }
}
