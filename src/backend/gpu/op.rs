//! The context in which an operation is lowered to commands of a GPU, and the builder of dispatches.

use std::ops::Deref;
use std::sync::Arc;

use bytemuck::NoUninit;

use super::address::{Accesses, Address, Allocation, ByteRange};
use super::command::{Argument, Command, Dispatch};
use super::driver::Driver;
use super::kernel::{Constant, Kernel, Source};
use super::library::{LibraryCall, Matrix};
use crate::backend::lowering::{self, StepContext};
use crate::backend::reference::index_error;
use crate::backend::select::Preference;
use crate::graph::Step;
use crate::tensor::{Buffer, DType, Layout, Shape};
use crate::{Error, Result};

/// A tensor in GPU memory.
pub(in crate::backend) type Tensor = lowering::Tensor<Address>;

impl Tensor {
    /// Returns a tensor that stands for memory without a shape.
    pub(super) fn memory(address: Address, bytes: usize) -> Self {
        let layout = Layout::contiguous(&Shape::from([bytes.div_ceil(4)]));
        Self { address, dtype: DType::U32, layout }
    }

    /// Address of the first element.
    pub(in crate::backend) fn first(&self) -> Address {
        self.address.plus(self.layout.offset * self.dtype.size())
    }

    /// Bytes from the first element to the end of the last.
    pub(super) fn extent(&self) -> usize {
        if self.elements() == 0 {
            return 0;
        }
        let dims = self.layout.shape.dims();
        let last: usize = dims.iter().zip(&self.layout.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        (last + 1) * self.dtype.size()
    }

    /// The bytes from its first element to the end of its last.
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::new(self.first(), self.extent())
    }

    /// Its rows as a matrix for the vendor's library.
    pub(super) fn row_matrix(&self) -> Matrix {
        let row = if self.rows() == 1 { self.last() } else { self.row_stride() };
        Matrix::single(self.first(), self.dtype, (self.rows(), self.last()), row)
    }

    /// Name of its element type in the names of kernels.
    pub(super) fn type_name(&self) -> &'static str {
        type_name(self.dtype)
    }
}

/// Name of an element type in the names of kernels.
pub(super) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        DType::U32 => "uint",
    }
}

/// Converts a size to the type that kernels take.
pub(super) fn as_u32(size: usize) -> u32 {
    u32::try_from(size).expect("sizes that kernels take were checked when the plan was compiled")
}

/// Maximum length of a row that a threadgroup holds in registers: 1024 threads of 4 elements.
const MAX_REGISTER_ROW: usize = 4096;

/// Number of threads for a row of `n` elements, 4 per thread: whole SIMD groups, at most 1024.
fn row_threads(n: usize) -> usize {
    n.div_ceil(4).next_multiple_of(32).clamp(32, 1024)
}

/// A check that indices are below a limit. Kernels cannot report errors, so the host checks inputs before the run, and a flag
/// that a kernel has set after it.
pub(in crate::backend) struct IndexCheck {
    op: &'static str,
    what: &'static str,
    limit: usize,
    indices: Indices,
}

enum Indices {
    /// An input of the plan, by number.
    Input(usize),
    /// Indices that are computed on the device: the flag that a dispatch sets.
    Flag(Arc<dyn Buffer>),
}

impl IndexCheck {
    /// Checks the inputs of a run.
    ///
    /// # Errors
    /// An index is not below the limit.
    pub(in crate::backend) fn before(&self, io: &dyn crate::backend::Io) -> Result<()> {
        let Indices::Input(input) = self.indices else { return Ok(()) };
        let indices =
            io.input(input).chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize);
        match indices.into_iter().find(|&index| index >= self.limit) {
            Some(index) => Err(index_error(self.op, self.what, index, self.limit)),
            None => Ok(()),
        }
    }

    /// Returns the flag that a kernel sets; `None` if the host checks an input.
    #[cfg_attr(not(cuda), allow(dead_code, reason = "only CUDA copies flags to the host"))]
    pub(in crate::backend) fn flag(&self) -> Option<&dyn Buffer> {
        match &self.indices {
            Indices::Flag(flag) => Some(&**flag),
            Indices::Input(_) => None,
        }
    }

    /// Checks the flag that a run has left; `first_word` reads the first word of a buffer.
    ///
    /// # Errors
    /// An index was not below the limit.
    pub(in crate::backend) fn after(&self, first_word: impl Fn(&dyn Buffer) -> u32) -> Result<()> {
        let Indices::Flag(flag) = &self.indices else { return Ok(()) };
        match first_word(&**flag) as usize {
            0 => Ok(()),
            found => Err(index_error(self.op, self.what, found - 1, self.limit)),
        }
    }
}

pub(super) const CHECK: Source = Source::new("check_indices", include_str!("kernels/check_indices.metal"));

/// The allocations of a lowered plan, which keeps them alive.
#[derive(Default)]
pub(in crate::backend) struct Allocations {
    /// One buffer of each allocation.
    pub(in crate::backend) buffers: Vec<Arc<dyn Buffer>>,
    identities: Vec<usize>,
    /// Buffers that share an allocation with one of `buffers`.
    kept: Vec<Arc<dyn Buffer>>,
}

impl Allocations {
    /// Returns the address of a byte of a buffer, and whether kernels may write there; `None` if the buffer belongs to another
    /// device.
    pub(super) fn locate(
        &mut self,
        driver: &dyn Driver,
        buffer: &Arc<dyn Buffer>,
        offset: usize,
    ) -> Option<(Address, bool)> {
        let location = driver.location(&**buffer)?;
        let known = self.identities.iter().position(|&identity| identity == location.allocation);
        let index = match known {
            Some(index) => {
                self.kept.push(Arc::clone(buffer));
                index
            }
            None => {
                self.identities.push(location.allocation);
                self.buffers.push(Arc::clone(buffer));
                self.buffers.len() - 1
            }
        };
        let allocation = Allocation { index, bytes: location.allocation_bytes };
        Some((Address::Allocated(allocation, location.offset + offset), location.writable))
    }
}

/// What a whole plan is lowered into.
pub(super) struct Target<'a> {
    pub(super) driver: &'a dyn Driver,
    pub(super) allocations: Allocations,
    pub(super) commands: Vec<Command>,
    pub(super) checks: Vec<IndexCheck>,
    /// The inputs of the plan.
    pub(super) given: Vec<Tensor>,
}

/// The context in which an operation adds its commands.
pub(super) struct OpContext<'a, 'd> {
    pub(super) base: StepContext<'a, Address>,
    pub(super) target: &'a mut Target<'d>,
}

impl<'a> Deref for OpContext<'a, '_> {
    type Target = StepContext<'a, Address>;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}

impl OpContext<'_, '_> {
    pub(super) fn driver(&self) -> &dyn Driver {
        self.target.driver
    }

    /// Allocates memory with this content, which lives as long as the plan.
    pub(super) fn allocate(&mut self, content: &[u8], what: &'static str) -> Result<Tensor> {
        let buffer = self.target.driver.allocate(content.len(), what)?;
        buffer.write(0, content)?;
        Ok(Tensor::memory(self.locate(&buffer), content.len()))
    }

    fn locate(&mut self, buffer: &Arc<dyn Buffer>) -> Address {
        let found = self.target.allocations.locate(self.target.driver, buffer, 0);
        found.expect("a driver knows the buffers that it allocates").0
    }

    /// Makes a run fail, with an error that names the index, if an index is not below `limit`.
    pub(super) fn check_indices(&mut self, indices: &Tensor, limit: usize, what: &'static str) -> Result<()> {
        let op = self.step.op.name();
        let range = indices.range();
        let same = |given: &Tensor| {
            given.dtype == DType::U32 && given.elements() == indices.elements() && given.range() == range
        };
        let fresh = !self.target.commands.iter().any(|command| command.accesses.writes(&range));
        let at = match self.target.given.iter().position(same).filter(|_| fresh) {
            Some(input) => Indices::Input(input),
            None => {
                let flag = self.target.driver.allocate(4, "flags")?;
                let to = Tensor::memory(self.locate(&flag), 4);
                let launch = self.kernel(CHECK, "check_indices")?.read(indices).write(&to);
                let launch = launch.constants(&[as_u32(indices.elements()), as_u32(limit)]);
                self.push(launch, [1, 1, 1], [32, 1, 1]);
                Indices::Flag(flag)
            }
        };
        self.target.checks.push(IndexCheck { op, what, limit, indices: at });
        Ok(())
    }

    /// Begins a dispatch of a kernel.
    pub(super) fn kernel(&self, source: Source, function: &str) -> Result<DispatchBuilder> {
        self.kernel_with(source, function, &[])
    }

    /// Begins a dispatch of a kernel with function constants.
    pub(super) fn kernel_with(
        &self,
        source: Source,
        function: &str,
        constants: &[Constant],
    ) -> Result<DispatchBuilder> {
        let kernel = Kernel { source, function: function.to_owned(), constants: constants.to_vec() };
        let max_threads = self.driver().max_threads(&kernel)?;
        let (op, accesses) = (self.step.op.name(), Accesses::default());
        Ok(DispatchBuilder { op, kernel, max_threads, arguments: Vec::new(), accesses })
    }

    /// Returns true if the vendor's library is to compute what one of our kernels computes in one dispatch.
    pub(super) fn prefers_library(&self) -> bool {
        self.driver().choices().preference == Preference::Mps
    }

    /// Adds a call of the vendor's library, if the driver accepts it; returns true if it was added.
    pub(super) fn push_library(&mut self, call: LibraryCall) -> bool {
        let op = self.step.op.name();
        match self.driver().accepts(&call) {
            Ok(()) => {
                self.target.commands.push(Command::library(op, call));
                true
            }
            Err(reason) => {
                tracing::debug!(op, reason, "one of our kernels computes this");
                false
            }
        }
    }

    /// Adds a dispatch of `groups` threadgroups of `threads` threads each. One without work is left out.
    pub(super) fn push(&mut self, builder: DispatchBuilder, groups: [usize; 3], threads: [usize; 3]) {
        if groups.contains(&0) {
            return;
        }
        let DispatchBuilder { op, kernel, arguments, accesses, .. } = builder;
        let dispatch = Dispatch { op, kernel, arguments, groups, threads };
        self.target.commands.push(Command::dispatch(dispatch, accesses));
    }

    /// Begins the dispatch of a kernel that gives a threadgroup to each row of `n` elements: the form that holds the row in
    /// registers or, for longer rows and where the kernel allows too few threads, the form that steps through the row.
    pub(super) fn row_kernel(
        &self,
        source: Source,
        name: &str,
        types: &str,
        n: usize,
    ) -> Result<DispatchBuilder> {
        if n <= MAX_REGISTER_ROW {
            let launch = self.kernel(source, &format!("{name}_row_{types}"))?;
            if launch.max_threads >= row_threads(n) {
                return Ok(launch);
            }
        }
        self.kernel(source, &format!("{name}_long_{types}"))
    }

    /// Adds a dispatch of one threadgroup per row, whose threads step through the row's `n` elements: as many threads as
    /// suit the row and the kernel allows.
    pub(super) fn push_rows(&mut self, builder: DispatchBuilder, rows: usize, n: usize) {
        let most = builder.max_threads / 32 * 32;
        self.push(builder, [rows, 1, 1], [row_threads(n).min(most.max(32)), 1, 1]);
    }

    /// Adds a dispatch of one thread per element.
    pub(super) fn push_elements(&mut self, builder: DispatchBuilder, elements: usize) {
        self.push(builder, [elements.div_ceil(256), 1, 1], [256, 1, 1]);
    }
}

/// A dispatch under construction: arguments are bound in the order of the calls.
#[derive(Clone)]
pub(super) struct DispatchBuilder {
    op: &'static str,
    kernel: Kernel,
    max_threads: usize,
    arguments: Vec<Argument>,
    accesses: Accesses,
}

impl DispatchBuilder {
    /// Binds a tensor's first element for reading.
    pub(super) fn read(mut self, tensor: &Tensor) -> Self {
        self.accesses.reads.push(tensor.range());
        self.unused(tensor.first())
    }

    /// Binds a tensor's first element for writing.
    pub(super) fn write(mut self, tensor: &Tensor) -> Self {
        self.accesses.writes.push(tensor.range());
        self.unused(tensor.first())
    }

    /// Binds a tensor for writing or, if nothing reads the tensor, another address that the kernel does not access.
    pub(super) fn write_or(self, tensor: Option<&Tensor>, other: Address) -> Self {
        match tensor {
            Some(tensor) => self.write(tensor),
            None => self.unused(other),
        }
    }

    /// Binds a tensor for reading and writing.
    pub(super) fn update(mut self, tensor: &Tensor) -> Self {
        self.accesses.reads.push(tensor.range());
        self.write(tensor)
    }

    /// Binds memory for reading.
    pub(super) fn read_bytes(mut self, address: Address, bytes: usize) -> Self {
        self.accesses.reads.push(ByteRange::new(address, bytes));
        self.unused(address)
    }

    /// Binds memory for writing.
    pub(super) fn write_bytes(mut self, address: Address, bytes: usize) -> Self {
        self.accesses.writes.push(ByteRange::new(address, bytes));
        self.unused(address)
    }

    /// Binds memory from its first byte on, of which a part is written.
    pub(super) fn write_part(mut self, address: Address, offset: usize, bytes: usize) -> Self {
        self.accesses.writes.push(ByteRange::new(address.plus(offset), bytes));
        self.unused(address)
    }

    /// Declares an access to a tensor without binding it.
    pub(super) fn accesses(mut self, tensor: &Tensor, write: bool) -> Self {
        if write {
            self.accesses.writes.push(tensor.range());
        }
        self.accesses.reads.push(tensor.range());
        self
    }

    /// Binds an address as an argument that the kernel does not access this time.
    pub(super) fn unused(mut self, address: Address) -> Self {
        self.arguments.push(Argument::Buffer(address));
        self
    }

    /// Binds a struct of sizes and factors.
    pub(super) fn constants(mut self, constants: &impl NoUninit) -> Self {
        self.arguments.push(Argument::Bytes(bytemuck::bytes_of(constants).to_vec()));
        self
    }

    /// Leaves an argument unbound.
    pub(super) fn unbound(mut self) -> Self {
        self.arguments.push(Argument::Unbound);
        self
    }
}

/// Returns an error if a step has a tensor with more elements than kernels count, which is 32 bits.
pub(super) fn check_sizes(step: &Step) -> Result<()> {
    for operand in step.inputs.iter().chain(step.outputs.iter().flatten()) {
        let dims = operand.layout.shape.dims();
        let last: usize = dims.iter().zip(&operand.layout.strides).map(|(dim, stride)| dim * stride).sum();
        if u32::try_from(last.max(operand.layout.shape.elements())).is_err() {
            let message = "has 2^32 elements or more, which GPU kernels do not count; use smaller batches";
            return Err(Error::shape(step.op.name(), message, &[&operand.layout.shape]));
        }
    }
    Ok(())
}
