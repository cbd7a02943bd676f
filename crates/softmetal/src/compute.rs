//! `MTLComputeCommandEncoder`: dispatches.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::NonNull;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSRange, NSString};
use objc2_metal::{MTLBarrierScope, MTLDispatchType, MTLResourceUsage, MTLSize};

use crate::buffer::{SoftBuffer, Spot};
use crate::check::{Rule, report};
use crate::command_buffer::SoftCommandBuffer;
use crate::counters::count;
use crate::device::{MAX_THREADGROUP_MEMORY, SoftDevice, shared};
use crate::encoder::Encoder;
use crate::faults::CommandBufferError;
use crate::fences::{Update, Wait};
use crate::heap::SoftHeap;
use crate::ordering::{EncoderKind, Touched};
use crate::pass::Sampling;
use crate::pipeline::{SIMD_WIDTH, SoftPipeline};
use crate::program::{ARGUMENTS, Binding, Launch, LaunchFault};
use crate::ranges::Ranges;
use crate::rules;
use crate::samples::SoftSamples;
use crate::sync::SoftFence;
use crate::system::{Oversized, mac};
use crate::work::{Accesses, Command, Entry, GpuError, random};

/// The most that setBytes takes.
const MAX_BYTES: usize = 4096;

#[derive(Clone, Default)]
enum Slot {
    #[default]
    Unset,
    Bytes(Vec<u8>),
    Buffer(Retained<SoftBuffer>, usize),
}

/// How large a dispatch is.
enum Grid {
    Threads([usize; 3]),
    /// Three numbers of threadgroups in a buffer, from a byte on.
    Indirect(Retained<SoftBuffer>, usize),
}

/// Bytes of the numbers of an indirect dispatch.
const INDIRECT: usize = 12;

pub(crate) struct Compute {
    encoder: Encoder,
    kind: EncoderKind,
    pipeline: Option<Retained<SoftPipeline>>,
    slots: Vec<Slot>,
    threadgroup_memory: Vec<usize>,
}

define_class!(
    /// Dispatches of kernels.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLComputeCommandEncoder"]
    #[ivars = RefCell<Compute>]
    pub(crate) struct SoftComputeEncoder;

    impl SoftComputeEncoder {
        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method(dispatchType))]
        fn dispatch_type(&self) -> MTLDispatchType {
            match self.ivars().borrow().kind {
                EncoderKind::Serial => MTLDispatchType::Serial,
                EncoderKind::Concurrent => MTLDispatchType::Concurrent,
            }
        }

        #[unsafe(method(setComputePipelineState:))]
        fn set_pipeline(&self, pipeline: &SoftPipeline) {
            let mut compute = self.ivars().borrow_mut();
            if compute.encoder.is_open("setComputePipelineState:") {
                compute.pipeline = Some(pipeline.retain());
            }
        }

        #[unsafe(method(setBuffer:offset:atIndex:))]
        fn set_buffer(&self, buffer: Option<&SoftBuffer>, offset: usize, index: usize) {
            self.ivars().borrow_mut().set_buffer(buffer, offset, index);
        }

        #[unsafe(method(setBuffers:offsets:withRange:))]
        fn set_buffers(&self, buffers: *const *const SoftBuffer, offsets: *const usize, range: NSRange) {
            for index in 0..range.length {
                // SAFETY: the caller gives as many buffers and offsets as the range is long.
                let (buffer, offset) = unsafe { ((*buffers.add(index)).as_ref(), *offsets.add(index)) };
                self.ivars().borrow_mut().set_buffer(buffer, offset, range.location + index);
            }
        }

        #[unsafe(method(setBufferOffset:atIndex:))]
        fn set_buffer_offset(&self, offset: usize, index: usize) {
            let mut compute = self.ivars().borrow_mut();
            if !compute.takes("setBufferOffset", index) {
                return;
            }
            match &mut compute.slots[index] {
                Slot::Buffer(buffer, _) if offset >= buffer.len() => {
                    report(&rules::BUFFER_OFFSET, format!("offset {offset} in {}", buffer.describe()));
                }
                Slot::Buffer(_, old) => *old = offset,
                _ => report(&rules::OFFSET_WITHOUT_BUFFER, format!("index {index} has no buffer")),
            }
        }

        #[unsafe(method(setBytes:length:atIndex:))]
        fn set_bytes(&self, bytes: NonNull<c_void>, length: usize, index: usize) {
            let mut compute = self.ivars().borrow_mut();
            if !compute.takes("setBytes", index) {
                return;
            }
            if length == 0 {
                report(&rules::BYTES_EMPTY, format!("index {index}"));
                compute.slots[index] = Slot::Unset;
                return;
            }
            if length > MAX_BYTES {
                report(&rules::BYTES_LENGTH, format!("{length} bytes at index {index}"));
            }
            count(|counters| counters.bytes_set += length as u64);
            // SAFETY: the caller gives `length` bytes.
            let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), length) };
            compute.slots[index] = Slot::Bytes(bytes.to_vec());
        }

        #[unsafe(method(setThreadgroupMemoryLength:atIndex:))]
        fn set_threadgroup_memory(&self, length: usize, index: usize) {
            let mut compute = self.ivars().borrow_mut();
            if !compute.takes("setThreadgroupMemoryLength", index) {
                return;
            }
            if !length.is_multiple_of(16) {
                report(&rules::THREADGROUP_MEMORY_UNIT, format!("{length} bytes at index {index}"));
            }
            compute.threadgroup_memory[index] = length;
        }

        #[unsafe(method(dispatchThreadgroups:threadsPerThreadgroup:))]
        fn dispatch_threadgroups(&self, groups: MTLSize, threads: MTLSize) {
            let [groups, threads] = [groups, threads].map(|size| [size.width, size.height, size.depth]);
            let grid = std::array::from_fn(|i| groups[i].saturating_mul(threads[i]));
            self.ivars().borrow_mut().dispatch(Grid::Threads(grid), threads);
        }

        #[unsafe(method(dispatchThreads:threadsPerThreadgroup:))]
        fn dispatch_threads(&self, grid: MTLSize, threads: MTLSize) {
            let [grid, threads] = [grid, threads].map(|size| [size.width, size.height, size.depth]);
            self.ivars().borrow_mut().dispatch(Grid::Threads(grid), threads);
        }

        #[unsafe(method(dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:))]
        fn dispatch_indirect(&self, groups: &SoftBuffer, offset: usize, threads: MTLSize) {
            let threads = [threads.width, threads.height, threads.depth];
            self.ivars().borrow_mut().dispatch(Grid::Indirect(groups.retain(), offset), threads);
        }

        #[unsafe(method(memoryBarrierWithScope:))]
        fn barrier(&self, scope: MTLBarrierScope) {
            let mut compute = self.ivars().borrow_mut();
            if compute.encoder.is_open("memoryBarrierWithScope:") && scope.0 & MTLBarrierScope::Buffers.0 != 0 {
                count(|counters| counters.barriers += 1);
                compute.encoder.push(Entry::Barrier(None));
            }
        }

        #[unsafe(method(memoryBarrierWithResources:count:))]
        fn barrier_for(&self, resources: NonNull<NonNull<SoftBuffer>>, resource_count: usize) {
            let mut compute = self.ivars().borrow_mut();
            if !compute.encoder.is_open("memoryBarrierWithResources:") {
                return;
            }
            // SAFETY: the caller gives so many buffers.
            let buffers = (0..resource_count).map(|i| unsafe { resources.add(i).read().as_ref() });
            let whole = |buffer: &SoftBuffer| (buffer.spot().number, buffer.spot().bytes(0..buffer.len()));
            let buffers = buffers.map(whole).collect();
            count(|counters| counters.barriers += 1);
            compute.encoder.push(Entry::Barrier(Some(buffers)));
        }

        #[unsafe(method(waitForFence:))]
        fn wait_for_fence(&self, fence: &SoftFence) {
            self.ivars().borrow_mut().encoder.fence(Entry::WaitForFence(Wait::new(fence.number())));
        }

        #[unsafe(method(updateFence:))]
        fn update_fence(&self, fence: &SoftFence) {
            self.ivars().borrow_mut().encoder.fence(Entry::UpdateFence(Update::new(fence.number())));
        }

        #[unsafe(method(useResource:usage:))]
        fn use_resource(&self, _resource: &AnyObject, _usage: MTLResourceUsage) {
            self.ivars().borrow().encoder.is_open("useResource:");
        }

        #[unsafe(method(useResources:count:usage:))]
        fn use_resources(&self, _resources: *const *const AnyObject, _count: usize, _usage: MTLResourceUsage) {
            self.ivars().borrow().encoder.is_open("useResources:");
        }

        #[unsafe(method(useHeap:))]
        fn use_heap(&self, _heap: &SoftHeap) {
            self.ivars().borrow().encoder.is_open("useHeap:");
        }

        #[unsafe(method(useHeaps:count:))]
        fn use_heaps(&self, _heaps: *const *const SoftHeap, _count: usize) {
            self.ivars().borrow().encoder.is_open("useHeaps:");
        }

        #[unsafe(method(sampleCountersInBuffer:atSampleIndex:withBarrier:))]
        fn sample_counters(&self, _samples: &SoftSamples, index: usize, _barrier: bool) {
            self.ivars().borrow().encoder.sample(index);
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().borrow().encoder.given_label()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().borrow_mut().encoder.set_label(label);
        }

        #[unsafe(method(pushDebugGroup:))]
        fn push_debug_group(&self, _name: &NSString) {
            self.ivars().borrow_mut().encoder.push_group();
        }

        #[unsafe(method(popDebugGroup))]
        fn pop_debug_group(&self) {
            self.ivars().borrow_mut().encoder.pop_group();
        }

        #[unsafe(method(insertDebugSignpost:))]
        fn insert_debug_signpost(&self, _name: &NSString) {}

        #[unsafe(method(endEncoding))]
        fn end_encoding(&self) {
            let mut compute = self.ivars().borrow_mut();
            compute.encoder.end();
            compute.slots.clear();
            compute.pipeline = None;
        }
    }
);

impl SoftComputeEncoder {
    pub(crate) fn create(
        commands: Retained<SoftCommandBuffer>,
        kind: EncoderKind,
        sampling: Sampling,
    ) -> Retained<Self> {
        let compute = Compute {
            encoder: Encoder::new(commands, kind, "compute encoder").sampled(sampling),
            kind,
            pipeline: None,
            slots: vec![Slot::Unset; ARGUMENTS],
            threadgroup_memory: vec![0; ARGUMENTS],
        };
        let this = Self::alloc().set_ivars(RefCell::new(compute));
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

impl SoftComputeEncoder {
    /// Takes over a command of an MPS kernel that is encoded into this encoder.
    pub(crate) fn encode_kernel(&self, what: &str, command: Command) {
        let mut compute = self.ivars().borrow_mut();
        if compute.encoder.is_open(what) {
            compute.encoder.push(Entry::Command(command));
        }
    }
}

impl Compute {
    /// Whether an argument can be set now.
    fn takes(&self, what: &str, index: usize) -> bool {
        if !self.encoder.is_open(what) {
            return false;
        }
        if index >= ARGUMENTS {
            report(&rules::BUFFER_INDEX, format!("{what} at index {index}"));
        }
        index < ARGUMENTS
    }

    fn set_buffer(&mut self, buffer: Option<&SoftBuffer>, offset: usize, index: usize) {
        if !self.takes("setBuffer", index) {
            return;
        }
        if let Some(buffer) = buffer.filter(|buffer| offset >= buffer.len().max(1)) {
            return report(&rules::BUFFER_OFFSET, format!("offset {offset} in {}", buffer.describe()));
        }
        if let Some(buffer) = buffer {
            count(|counters| counters.bytes_bound += (buffer.len() - offset) as u64);
        }
        self.slots[index] = buffer.map_or(Slot::Unset, |buffer| Slot::Buffer(buffer.retain(), offset));
    }

    fn dispatch(&mut self, grid: Grid, threadgroup: [usize; 3]) {
        if !self.encoder.is_open("dispatch") {
            return;
        }
        let Some(pipeline) = self.pipeline.clone() else {
            return report(&rules::NO_PIPELINE, self.encoder.label().to_owned());
        };
        let size: usize = threadgroup.iter().product();
        if size > pipeline.max_threads() && mac().oversized == Oversized::Dropped {
            return count(|counters| *counters.dropped.entry(pipeline.name().to_owned()).or_default() += 1);
        }
        if let Err((rule, message)) = self.check(&pipeline, &grid, threadgroup) {
            return report(rule, format!("{}: {message}", pipeline.name()));
        }
        let mut uses = Vec::new();
        let mut bindings = Vec::new();
        let mut spots = Vec::new();
        for slot in &self.slots {
            let (binding, spot) = match slot {
                Slot::Unset => (Binding::Unset, None),
                Slot::Bytes(bytes) => (Binding::Bytes(bytes.clone()), None),
                Slot::Buffer(buffer, offset) => {
                    uses.push(self.encoder.uses(buffer));
                    let binding = Binding::Buffer { memory: buffer.memory().clone(), offset: *offset };
                    (binding, Some((buffer.spot(), *offset)))
                }
            };
            bindings.push(binding);
            spots.push(spot);
        }
        let groups = match &grid {
            Grid::Threads(_) => None,
            Grid::Indirect(groups, offset) => {
                uses.push(self.encoder.uses(groups));
                Some((groups.memory().clone(), groups.spot(), *offset))
            }
        };
        let mut launch = Launch {
            name: pipeline.name().to_owned(),
            bindings,
            touched: vec![Default::default(); ARGUMENTS],
            grid: if let Grid::Threads(grid) = grid { grid } else { [0; 3] },
            threadgroup,
            threadgroup_memory: self.threadgroup_memory.clone(),
            seed: random(),
        };
        let program = pipeline.program().clone();
        let threads = launch.grid.iter().fold(1, |all, &side| side as u64 * all);
        let simd_width = mac().gpu.simd_width;
        let body = Box::new(move || {
            if simd_width != SIMD_WIDTH {
                let message =
                    format!("SIMD groups of {simd_width} threads cannot run here, only of {SIMD_WIDTH}");
                return Err(GpuError::internal(message));
            }
            let mut read = None;
            if let Some((memory, spot, offset)) = groups {
                // SAFETY: the numbers lie within the buffer, as was checked.
                let of =
                    |i| unsafe { memory.start().add(offset).cast::<u32>().add(i).read_unaligned() } as usize;
                launch.grid = std::array::from_fn(|i| of(i).saturating_mul(threadgroup[i]));
                let numbers = Ranges::new(vec![offset..offset + INDIRECT]);
                read = Some(spot.touched(&numbers, &Ranges::default()));
            }
            // The device may well find that there is nothing to do.
            if !launch.grid.contains(&0) {
                program.run(&mut launch).map_err(error_of)?;
            }
            let mut found = accesses(&launch, &spots);
            found.extend(read);
            Ok(found)
        });
        self.encoder.push(Entry::Command(Command { label: pipeline.name().to_owned(), uses, threads, body }));
    }

    fn check(
        &self,
        pipeline: &SoftPipeline,
        grid: &Grid,
        threadgroup: [usize; 3],
    ) -> Result<(), (&'static Rule, String)> {
        let threads: usize = threadgroup.iter().product();
        if threads == 0 || threads > pipeline.max_threads() {
            let message = format!("{threadgroup:?} threads, at most {}", pipeline.max_threads());
            return Err((&rules::THREADS_PER_THREADGROUP, message));
        }
        if !pipeline.takes_width(threads) {
            return Err((&rules::WHOLE_SIMD_GROUPS, format!("{threadgroup:?} threads")));
        }
        match grid {
            Grid::Threads(grid) if grid.contains(&0) => {
                return Err((&rules::EMPTY_GRID, format!("a grid of {grid:?}")));
            }
            Grid::Indirect(groups, offset) => {
                let within = offset.checked_add(INDIRECT).is_some_and(|end| end <= groups.len());
                if !within || !offset.is_multiple_of(4) {
                    return Err((
                        &rules::INDIRECT_OFFSET,
                        format!("offset {offset} in {}", groups.describe()),
                    ));
                }
            }
            Grid::Threads(_) => {}
        }
        let memory =
            pipeline.program().static_threadgroup_bytes() + self.threadgroup_memory.iter().sum::<usize>();
        if memory > MAX_THREADGROUP_MEMORY {
            return Err((&rules::THREADGROUP_MEMORY_LIMIT, format!("{memory} bytes")));
        }
        Ok(())
    }
}

/// What the dispatch touched, in bytes of whole buffers.
fn accesses(launch: &Launch, spots: &[Option<(Spot, usize)>]) -> Accesses {
    let mut found: Accesses = Vec::new();
    for (argument, spot) in spots.iter().enumerate() {
        let Some((spot, offset)) = *spot else { continue };
        let (reads, writes) = launch.accesses(argument);
        if reads.is_empty() && writes.is_empty() {
            continue;
        }
        let (number, touched) = spot.touched(&reads.shifted(offset), &writes.shifted(offset));
        // One buffer may be bound to several arguments.
        let same =
            |(known, other): &&mut (u64, Touched)| *known == number && other.opted_out == touched.opted_out;
        match found.iter_mut().find(same) {
            Some((_, known)) => {
                known.reads.extend(&touched.reads);
                known.writes.extend(&touched.writes);
            }
            None => found.push((number, touched)),
        }
    }
    found
}

fn error_of(fault: LaunchFault) -> GpuError {
    let (code, rule, message) = match fault {
        LaunchFault::OutOfRange(message) => {
            (CommandBufferError::PageFault, Some(rules::OUT_OF_RANGE), message)
        }
        LaunchFault::Unset(message) => {
            (CommandBufferError::InvalidResource, Some(rules::UNSET_ARGUMENT), message)
        }
        LaunchFault::Divergent(message) => {
            (CommandBufferError::Timeout, Some(rules::DIVERGENT_BARRIER), message)
        }
        LaunchFault::Failed(message) => (CommandBufferError::Internal, None, message),
    };
    GpuError { code, message, rule, kill: None }
}

pub(crate) fn load() {
    let _ = SoftComputeEncoder::class();
}
