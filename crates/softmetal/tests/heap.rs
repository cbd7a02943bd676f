//! Heaps: room, and the order of commands on buffers that lie on each other.
#![allow(missing_docs)]

mod bench;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSRange, NSString};
use objc2_metal::*;
use softmetal::{faults, leaks};

type Heap = Retained<ProtocolObject<dyn MTLHeap>>;

/// Bytes of 64 floats, which is what a dispatch here reads or writes.
const BYTES: usize = 256;

/// The tests of this file look at counts of the whole process, so they run one after the other.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn heap(bench: &Bench, kind: MTLHeapType, tracking: MTLHazardTrackingMode) -> Heap {
    let descriptor = MTLHeapDescriptor::new();
    descriptor.setSize(16384);
    descriptor.setStorageMode(MTLStorageMode::Shared);
    descriptor.setHazardTrackingMode(tracking);
    descriptor.setType(kind);
    bench.device.newHeapWithDescriptor(&descriptor).expect("a heap")
}

fn automatic(bench: &Bench) -> Heap {
    heap(bench, MTLHeapType::Automatic, MTLHazardTrackingMode::Default)
}

fn placed(heap: &Heap, offset: usize, options: MTLResourceOptions) -> Buffer {
    // SAFETY: the device checks the offset.
    unsafe { heap.newBufferWithLength_options_offset(BYTES, options, offset) }.expect("a buffer")
}

#[test]
fn a_heap_gives_room_until_it_is_full_and_takes_it_back() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let before = bench.device.currentAllocatedSize();
        let heap = automatic(&bench);
        assert_eq!(bench.device.currentAllocatedSize() - before, 16384);
        assert_eq!((heap.size(), heap.usedSize(), heap.maxAvailableSizeWithAlignment(0)), (16384, 0, 16384));
        let small = heap.newBufferWithLength_options(100, SHARED).expect("a buffer");
        assert_eq!((small.length(), heap.usedSize()), (100, 256));
        assert_eq!(heap.maxAvailableSizeWithAlignment(4096), 16384 - 4096);
        let large = heap.newBufferWithLength_options(16384 - 512, SHARED).expect("a buffer");
        let last = heap.newBufferWithLength_options(256, SHARED).expect("a buffer");
        assert_eq!((heap.usedSize(), heap.maxAvailableSizeWithAlignment(1)), (16384, 0));
        assert!(heap.newBufferWithLength_options(1, SHARED).is_none(), "the heap is full");
        drop(large);
        assert_eq!(heap.usedSize(), 512);
        assert!(heap.newBufferWithLength_options(1, SHARED).is_some());
        faults::fail_allocation_after(0);
        assert!(heap.newBufferWithLength_options(1, SHARED).is_none(), "a fault that was asked for");
        faults::clear();
        assert!(small.heap().is_some_and(|of| of.size() == heap.size()));
        assert!(bench.buffer(4, SHARED).heap().is_none());
        assert_eq!(small.heapOffset() + last.heapOffset(), 0, "only the program's own offsets are told");
        assert_eq!(small.hazardTrackingMode(), MTLHazardTrackingMode::Untracked);
    });
    assert_eq!(left, []);
}

#[test]
fn a_buffer_keeps_its_heap() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        std::mem::forget(automatic(&bench).newBufferWithLength_options(4, SHARED));
    });
    let classes: Vec<&str> = left.iter().map(|leak| leak.class.as_str()).collect();
    assert_eq!(classes, ["SoftMTLHeap", "SoftMTLBuffer"]);
}

#[test]
fn descriptors_begin_with_the_documented_values() {
    let _alone = alone();
    let descriptor = MTLHeapDescriptor::new();
    assert_eq!((descriptor.size(), descriptor.r#type()), (0, MTLHeapType::Automatic));
    assert_eq!(descriptor.storageMode(), MTLStorageMode::Private);
    assert_eq!(descriptor.hazardTrackingMode(), MTLHazardTrackingMode::Default);
    descriptor.setResourceOptions(
        MTLResourceOptions::StorageModeShared
            | MTLResourceOptions::CPUCacheModeWriteCombined
            | MTLResourceOptions::HazardTrackingModeTracked,
    );
    assert_eq!(descriptor.storageMode(), MTLStorageMode::Shared);
    assert_eq!(descriptor.cpuCacheMode(), MTLCPUCacheMode::WriteCombined);
    assert_eq!(descriptor.hazardTrackingMode(), MTLHazardTrackingMode::Tracked);
}

/// `count` into one buffer of a heap, `double` from it to another; the neighbour's bytes stay as they are.
fn run(bench: &Bench, threads: usize) {
    let heap = heap(bench, MTLHeapType::Placement, MTLHazardTrackingMode::Default);
    let [x, y, next] = [0, BYTES, 2 * BYTES].map(|offset| placed(&heap, offset, SHARED));
    let label = NSString::from_str("pool");
    heap.setLabel(Some(&label));
    assert_eq!((y.heapOffset(), next.heapOffset()), (BYTES, 2 * BYTES));
    let commands = bench.commands();
    let blit = commands.blitCommandEncoder().expect("an encoder");
    blit.fillBuffer_range_value(&next, NSRange::new(0, BYTES), 0);
    blit.endEncoding();
    let encoder = bench.serial(&commands);
    encoder.useHeap(&heap);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], threads);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    if threads == 64 {
        assert_eq!((floats(&y, 64)[63], floats(&next, 64)), (126.0, vec![0.0; 64]));
    }
}

#[test]
fn kernels_stay_within_their_buffer_of_a_heap() {
    let _alone = alone();
    assert_eq!(broken(|bench| run(bench, 64)), Vec::<&str>::new());
    assert_eq!(broken(|bench| run(bench, 65)), ["kernel-out-of-range"]);
}

/// The same with a kernel of Metal source, whose every access is looked at.
fn run_metal(bench: &Bench, shift: usize) {
    let source = format!(
        "kernel void shifted(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],\n\
         uint i [[thread_position_in_grid]]) {{ y[i] = x[i + {shift}]; }}"
    );
    let library = bench.device.newLibraryWithSource_options_error(&NSString::from_str(&source), None);
    let function = library.expect("a library").newFunctionWithName(&NSString::from_str("shifted"));
    let pipeline = bench.device.newComputePipelineStateWithFunction_error(&function.expect("the kernel"));
    let heap = heap(bench, MTLHeapType::Placement, MTLHazardTrackingMode::Default);
    let [x, y] = [0, 4 * BYTES].map(|offset| placed(&heap, offset, SHARED));
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    encoder.setComputePipelineState(&pipeline.expect("a pipeline"));
    for (index, buffer) in [&x, &y].into_iter().enumerate() {
        // SAFETY: the offset lies within the buffer.
        unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), 0, index) };
    }
    let size = |width| MTLSize { width, height: 1, depth: 1 };
    encoder.dispatchThreads_threadsPerThreadgroup(size(64), size(32));
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn compiled_kernels_stay_within_their_buffer_of_a_heap() {
    let _alone = alone();
    assert_eq!(broken(|bench| run_metal(bench, 0)), Vec::<&str>::new());
    assert_eq!(broken(|bench| run_metal(bench, 64)), ["kernel-out-of-range"]);
}

/// A dispatch writes x, another writes y; both lie in a placement heap.
fn aliased(
    bench: &Bench,
    y_at: usize,
    tracking: MTLHazardTrackingMode,
    y_options: MTLResourceOptions,
    fence: bool,
) {
    let heap = heap(bench, MTLHeapType::Placement, tracking);
    let (x, y) = (placed(&heap, 0, SHARED), placed(&heap, y_at, y_options));
    two_writers(bench, &x, &y, fence);
}

fn two_writers(bench: &Bench, x: &Buffer, y: &Buffer, fence: bool) {
    let order = bench.device.newFence().expect("a fence");
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(x, 0)], 64);
    if fence {
        encoder.updateFence(&order);
    }
    encoder.endEncoding();
    let encoder = bench.serial(&commands);
    if fence {
        encoder.waitForFence(&order);
    }
    bench.dispatch(&encoder, "count", &[(y, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn buffers_that_lie_on_each_other_need_a_fence() {
    let _alone = alone();
    let (plain, tracked) = (MTLHazardTrackingMode::Default, MTLHazardTrackingMode::Tracked);
    let rule = ["order-between-encoders"];
    let quiet: [&str; 0] = [];
    assert_eq!(broken(|bench| aliased(bench, 0, plain, SHARED, false)), rule);
    assert_eq!(broken(|bench| aliased(bench, 0, plain, SHARED, true)), quiet);
    assert_eq!(broken(|bench| aliased(bench, BYTES, plain, SHARED, false)), quiet, "apart");
    assert_eq!(broken(|bench| aliased(bench, 0, tracked, SHARED, false)), quiet, "the heap is tracked");
    assert_eq!(broken(|bench| aliased(bench, 0, tracked, UNTRACKED, false)), rule, "one opted out");
    assert_eq!(broken(|bench| aliased(bench, 0, tracked, UNTRACKED, true)), quiet);
}

/// A buffer that lets another be put on its bytes while it may still be in use, or is dropped first.
fn reused(bench: &Bench, aliasable: bool, fence: bool) {
    let heap = automatic(bench);
    let x = heap.newBufferWithLength_options(BYTES, SHARED).expect("a buffer");
    if aliasable {
        // SAFETY: what this allows is what the test is about.
        unsafe { x.makeAliasable() };
        assert!(x.isAliasable());
    }
    let y = heap.newBufferWithLength_options(BYTES, SHARED).expect("a buffer");
    assert_eq!(x.contents() == y.contents(), aliasable);
    two_writers(bench, &x, &y, fence);
}

#[test]
fn a_buffer_made_aliasable_shares_its_bytes() {
    let _alone = alone();
    assert_eq!(broken(|bench| reused(bench, true, false)), ["order-between-encoders"]);
    assert!(broken(|bench| reused(bench, true, true)).is_empty());
    assert!(broken(|bench| reused(bench, false, false)).is_empty());
}

/// Bytes that come back to the heap are given out again only when the device is done with them.
fn dropped(bench: &Bench, placement: bool) {
    let kind = if placement { MTLHeapType::Placement } else { MTLHeapType::Automatic };
    let heap = heap(bench, kind, MTLHazardTrackingMode::Default);
    let mut start = None;
    for _ in 0..2 {
        let x = if placement {
            placed(&heap, 0, SHARED)
        } else {
            heap.newBufferWithLength_options(BYTES, SHARED).expect("a buffer")
        };
        assert_eq!(*start.get_or_insert(x.contents()), x.contents(), "the same bytes again");
        let commands = bench.commands();
        let encoder = bench.serial(&commands);
        bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
        encoder.endEncoding();
        commands.commit();
        drop((x, encoder, commands));
        // The device lets go of the buffer when the command has run; nothing of this is a wait that orders.
        while heap.usedSize() > 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn bytes_that_came_back_to_a_heap() {
    let _alone = alone();
    assert!(broken(|bench| dropped(bench, false)).is_empty(), "the heap waits for the device");
    let found = broken(|bench| dropped(bench, true));
    assert_eq!(found, ["order-between-command-buffers"], "a placement heap leaves that to the program");
}

/// Two dispatches of a concurrent encoder on one buffer, with a barrier for a buffer of the same heap.
fn barrier(bench: &Bench, right: bool) {
    let heap = automatic(bench);
    let [x, y] = std::array::from_fn(|_| heap.newBufferWithLength_options(BYTES, SHARED).expect("a buffer"));
    let commands = bench.commands();
    let encoder = bench.concurrent(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    let resource: &ProtocolObject<dyn MTLResource> = ProtocolObject::from_ref(if right { &*x } else { &*y });
    let mut list = [std::ptr::NonNull::from(resource)];
    // SAFETY: the list has one buffer.
    unsafe { encoder.memoryBarrierWithResources_count(std::ptr::NonNull::from(&mut list).cast(), 1) };
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn a_barrier_for_a_buffer_is_not_for_its_neighbour() {
    let _alone = alone();
    assert_eq!(broken(|bench| barrier(bench, false)), ["order-within-encoder"]);
    assert!(broken(|bench| barrier(bench, true)).is_empty());
}

/// A copy between two buffers of a heap.
fn copy(bench: &Bench, to: usize) {
    let heap = heap(bench, MTLHeapType::Placement, MTLHazardTrackingMode::Default);
    let (x, y) = (placed(&heap, 0, SHARED), placed(&heap, to, SHARED));
    let commands = bench.commands();
    let encoder = commands.blitCommandEncoder().expect("an encoder");
    // SAFETY: both ranges lie within their buffers.
    unsafe { encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(&x, 0, &y, 0, BYTES) };
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn a_copy_between_buffers_on_the_same_bytes() {
    let _alone = alone();
    assert_eq!(broken(|bench| copy(bench, 0)), ["blit-overlap"]);
    assert!(broken(|bench| copy(bench, BYTES)).is_empty());
}

/// An MPS product into y, after a dispatch that writes what lies there.
fn product(bench: &Bench, tracking: MTLHazardTrackingMode, y_at: usize) {
    use objc2::AnyThread;
    use objc2_metal_performance_shaders::*;
    let heap = heap(bench, MTLHeapType::Placement, tracking);
    let (x, y) = (placed(&heap, 0, SHARED), placed(&heap, y_at, SHARED));
    let ones = bench.buffer(64, SHARED);
    // SAFETY: the buffer has so many floats, and the device does not use it yet.
    (0..64).for_each(|i| unsafe { ones.contents().cast::<f32>().add(i).write(1.0) });
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    encoder.endEncoding();
    // SAFETY: the classes check what they are given.
    unsafe {
        let of = |buffer: &Buffer| {
            let kind = MPSDataType::Float32;
            let descriptor =
                MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(8, 8, 32, kind);
            MPSMatrix::initWithBuffer_descriptor(MPSMatrix::alloc(), buffer, &descriptor)
        };
        let product = MPSMatrixMultiplication::initWithDevice_resultRows_resultColumns_interiorColumns(
            MPSMatrixMultiplication::alloc(),
            &bench.device,
            8,
            8,
            8,
        );
        product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
            &commands,
            &of(&ones),
            &of(&ones),
            &of(&y),
        );
    }
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(floats(&y, 64), [8.0; 64]);
}

#[test]
fn products_on_buffers_of_a_heap() {
    let _alone = alone();
    let (plain, tracked) = (MTLHazardTrackingMode::Default, MTLHazardTrackingMode::Tracked);
    assert_eq!(broken(|bench| product(bench, plain, 0)), ["order-between-encoders"]);
    assert!(broken(|bench| product(bench, tracked, 0)).is_empty());
    assert!(broken(|bench| product(bench, plain, BYTES)).is_empty());
}

#[test]
fn a_heap_can_be_resident() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let set = bench.device.newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new());
        let (set, heap) = (set.expect("a set"), automatic(&bench));
        let allocation: &ProtocolObject<dyn MTLAllocation> = ProtocolObject::from_ref(&*heap);
        set.addAllocation(allocation);
        assert!(set.containsAllocation(allocation));
        assert_eq!((set.allocationCount(), set.allocatedSize()), (1, 16384));
        set.removeAllocation(allocation);
        assert_eq!(set.allocationCount(), 0);
    });
}
