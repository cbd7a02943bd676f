//! Every rule of the API: the planted fault is caught with its id, the nearest legal sequence is quiet.
#![allow(missing_docs)]

mod bench;

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use bench::{Bench, SHARED, UNTRACKED, broken};
use block2::RcBlock;
use objc2::rc::Retained;
use objc2_foundation::{NSError, NSRange, NSString};
use objc2_metal::*;

type Case = (&'static str, fn(&Bench), fn(&Bench));

fn size(width: usize) -> MTLSize {
    MTLSize { width, height: 1, depth: 1 }
}

fn bytes() -> NonNull<c_void> {
    static BYTES: [u8; 8192] = [1; 8192];
    NonNull::from(&BYTES).cast()
}

/// A dispatch of `double` with a number of threads, arguments set or not.
fn double(bench: &Bench, threads: usize, set: usize) {
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    let buffer = bench.buffer(64, SHARED);
    let other = bench.buffer(64, SHARED);
    encoder.setComputePipelineState(&bench.pipeline("double"));
    for (index, buffer) in [&buffer, &other].into_iter().enumerate().take(set) {
        // SAFETY: the offset lies within the buffer.
        unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), 0, index) };
    }
    encoder.dispatchThreads_threadsPerThreadgroup(size(threads), size(32));
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

fn copy(bench: &Bench, from: usize, to: usize, length: usize, same: bool) {
    let commands = bench.commands();
    let encoder = commands.blitCommandEncoder().expect("an encoder");
    let a = bench.buffer(16, SHARED);
    let b = if same { a.clone() } else { bench.buffer(16, SHARED) };
    // SAFETY: the device checks the ranges.
    unsafe { encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(&a, from, &b, to, length) };
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

fn in_encoder(bench: &Bench, body: impl FnOnce(&bench::Compute)) {
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    body(&encoder);
    encoder.endEncoding();
}

const CASES: &[Case] = &[
    (
        "commit-then-encode",
        |bench| {
            let commands = bench.commands();
            commands.commit();
            assert!(commands.blitCommandEncoder().is_none());
        },
        |bench| {
            let commands = bench.commands();
            commands.blitCommandEncoder().expect("an encoder").endEncoding();
            commands.commit();
        },
    ),
    (
        "commit-twice",
        |bench| {
            let commands = bench.commands();
            commands.commit();
            commands.commit();
        },
        |bench| bench.commands().commit(),
    ),
    (
        "commit-with-open-encoder",
        |bench| {
            let commands = bench.commands();
            let encoder = commands.blitCommandEncoder().expect("an encoder");
            commands.commit();
            encoder.endEncoding();
        },
        |bench| {
            let commands = bench.commands();
            commands.blitCommandEncoder().expect("an encoder").endEncoding();
            commands.commit();
        },
    ),
    (
        "second-encoder",
        |bench| {
            let commands = bench.commands();
            let first = commands.blitCommandEncoder().expect("an encoder");
            assert!(commands.computeCommandEncoder().is_none());
            first.endEncoding();
        },
        |bench| {
            let commands = bench.commands();
            commands.blitCommandEncoder().expect("an encoder").endEncoding();
            commands.computeCommandEncoder().expect("an encoder").endEncoding();
        },
    ),
    (
        "encoder-left-open",
        |bench| drop(bench.commands().blitCommandEncoder()),
        |bench| {
            let commands = bench.commands();
            commands.blitCommandEncoder().expect("an encoder").endEncoding();
        },
    ),
    (
        "encoder-ended",
        |bench| {
            let commands = bench.commands();
            let encoder = bench.serial(&commands);
            encoder.endEncoding();
            encoder.setComputePipelineState(&bench.pipeline("double"));
        },
        |bench| in_encoder(bench, |encoder| encoder.setComputePipelineState(&bench.pipeline("double"))),
    ),
    (
        "handler-after-commit",
        |bench| {
            let commands = bench.commands();
            commands.commit();
            let block = RcBlock::new(|_: NonNull<objc2::runtime::ProtocolObject<dyn MTLCommandBuffer>>| ());
            // SAFETY: the block can run on any thread.
            unsafe { commands.addCompletedHandler(RcBlock::as_ptr(&block)) };
        },
        |bench| {
            let commands = bench.commands();
            let block = RcBlock::new(|_: NonNull<objc2::runtime::ProtocolObject<dyn MTLCommandBuffer>>| ());
            // SAFETY: the block can run on any thread.
            unsafe { commands.addCompletedHandler(RcBlock::as_ptr(&block)) };
            commands.commit();
        },
    ),
    (
        "wait-before-commit",
        |bench| bench.commands().waitUntilCompleted(),
        |bench| {
            let commands = bench.commands();
            commands.commit();
            commands.waitUntilCompleted();
        },
    ),
    (
        "event-with-open-encoder",
        |bench| {
            let (commands, event) = (bench.commands(), bench.device.newEvent().expect("an event"));
            let encoder = bench.serial(&commands);
            commands.encodeSignalEvent_value(&event, 1);
            encoder.endEncoding();
        },
        |bench| {
            let (commands, event) = (bench.commands(), bench.device.newEvent().expect("an event"));
            bench.serial(&commands).endEncoding();
            commands.encodeSignalEvent_value(&event, 1);
        },
    ),
    (
        "buffer-index",
        |bench| {
            let buffer = bench.buffer(4, SHARED);
            // SAFETY: the device checks the index.
            in_encoder(bench, |encoder| unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer), 0, 31) });
        },
        |bench| {
            let buffer = bench.buffer(4, SHARED);
            // SAFETY: 30 is the last index.
            in_encoder(bench, |encoder| unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer), 0, 30) });
        },
    ),
    (
        "buffer-offset",
        |bench| {
            let buffer = bench.buffer(4, SHARED);
            // SAFETY: the device checks the offset.
            in_encoder(bench, |encoder| unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer), 16, 0) });
        },
        |bench| {
            let buffer = bench.buffer(4, SHARED);
            // SAFETY: 12 lies within.
            in_encoder(bench, |encoder| unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer), 12, 0) });
        },
    ),
    (
        "offset-without-buffer",
        // SAFETY: the device checks that a buffer is there.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setBufferOffset_atIndex(4, 0) }),
        |bench| {
            let buffer = bench.buffer(4, SHARED);
            in_encoder(bench, |encoder| {
                // SAFETY: both offsets lie within.
                unsafe {
                    encoder.setBuffer_offset_atIndex(Some(&buffer), 0, 0);
                    encoder.setBufferOffset_atIndex(4, 0);
                }
            });
        },
    ),
    (
        "bytes-length",
        // SAFETY: there are more bytes than that.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setBytes_length_atIndex(bytes(), 4097, 0) }),
        // SAFETY: as above.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setBytes_length_atIndex(bytes(), 4096, 0) }),
    ),
    (
        "bytes-empty",
        // SAFETY: no byte is read.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setBytes_length_atIndex(bytes(), 0, 0) }),
        // SAFETY: there is one byte.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setBytes_length_atIndex(bytes(), 1, 0) }),
    ),
    (
        "threadgroup-memory-unit",
        // SAFETY: the device checks the length.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setThreadgroupMemoryLength_atIndex(20, 0) }),
        // SAFETY: as above.
        |bench| in_encoder(bench, |encoder| unsafe { encoder.setThreadgroupMemoryLength_atIndex(32, 0) }),
    ),
    (
        "threadgroup-memory-limit",
        |bench| threadgroup_memory(bench, 32784),
        |bench| threadgroup_memory(bench, 32768),
    ),
    (
        "dispatch-without-pipeline",
        |bench| {
            in_encoder(bench, |encoder| encoder.dispatchThreads_threadsPerThreadgroup(size(1), size(1)));
        },
        |bench| double(bench, 64, 2),
    ),
    ("threads-per-threadgroup", |bench| threads(bench, 32, 1025), |bench| threads(bench, 32, 1024)),
    ("whole-simd-groups", |bench| whole_groups(bench, 48), |bench| whole_groups(bench, 64)),
    (
        "pipeline-without-function",
        |bench| assert!(described(bench, &MTLComputePipelineDescriptor::new()).is_err()),
        |bench| {
            let descriptor = MTLComputePipelineDescriptor::new();
            descriptor.setComputeFunction(Some(&bench.function("count")));
            assert!(described(bench, &descriptor).is_ok());
        },
    ),
    ("empty-grid", |bench| threads(bench, 0, 32), |bench| threads(bench, 1, 32)),
    ("indirect-offset", |bench| indirect(bench, 8), |bench| indirect(bench, 4)),
    ("unset-argument", |bench| double(bench, 64, 1), |bench| double(bench, 64, 2)),
    ("kernel-out-of-range", |bench| double(bench, 65, 2), |bench| double(bench, 64, 2)),
    (
        "private-contents",
        |bench| {
            bench.buffer(4, MTLResourceOptions::StorageModePrivate).contents();
        },
        |bench| {
            bench.buffer(4, SHARED).contents();
        },
    ),
    (
        "empty-buffer",
        |bench| assert!(bench.device.newBufferWithLength_options(0, SHARED).is_some()),
        |bench| assert!(bench.device.newBufferWithLength_options(1, SHARED).is_some()),
    ),
    (
        "buffer-too-long",
        |bench| assert!(bench.device.newBufferWithLength_options((8 << 30) + 1, SHARED).is_none()),
        |bench| assert_eq!(bench.device.maxBufferLength(), 8 << 30),
    ),
    ("no-copy-alignment", |bench| no_copy(bench, 16), |bench| no_copy(bench, 0)),
    ("heap-empty", |bench| heap(bench, 0, |_| ()), |bench| heap(bench, 1, |_| ())),
    (
        "heap-storage-mode",
        |bench| heap(bench, 1, |descriptor| descriptor.setStorageMode(MTLStorageMode::Managed)),
        |bench| heap(bench, 1, |descriptor| descriptor.setStorageMode(MTLStorageMode::Private)),
    ),
    ("heap-type", |bench| in_heap(bench, SHARED, 256, None), |bench| in_heap(bench, SHARED, 256, Some(0))),
    (
        "heap-buffer-options",
        |bench| in_heap(bench, MTLResourceOptions::StorageModePrivate, 256, Some(0)),
        |bench| in_heap(bench, SHARED, 256, Some(0)),
    ),
    (
        "heap-buffer-tracking",
        |bench| in_heap(bench, MTLResourceOptions::HazardTrackingModeTracked, 256, Some(0)),
        |bench| in_heap(bench, UNTRACKED, 256, Some(0)),
    ),
    (
        "heap-offset-alignment",
        |bench| in_heap(bench, SHARED, 256, Some(128)),
        |bench| in_heap(bench, SHARED, 256, Some(512)),
    ),
    (
        "heap-range",
        |bench| in_heap(bench, SHARED, 257, Some(16384 - 256)),
        |bench| in_heap(bench, SHARED, 256, Some(16384 - 256)),
    ),
    (
        "aliasable-without-heap",
        // SAFETY: the device checks that the buffer is one of a heap.
        |bench| unsafe { bench.buffer(4, SHARED).makeAliasable() },
        |bench| {
            let descriptor = MTLHeapDescriptor::new();
            descriptor.setSize(1);
            let heap = bench.device.newHeapWithDescriptor(&descriptor).expect("a heap");
            let private = MTLResourceOptions::StorageModePrivate;
            // SAFETY: nothing else lies in the heap.
            unsafe { heap.newBufferWithLength_options(4, private).expect("a buffer").makeAliasable() };
        },
    ),
    ("blit-range", |bench| copy(bench, 32, 0, 36, false), |bench| copy(bench, 32, 0, 32, false)),
    ("blit-alignment", |bench| copy(bench, 2, 0, 4, false), |bench| copy(bench, 4, 0, 4, false)),
    ("blit-overlap", |bench| copy(bench, 0, 28, 32, true), |bench| copy(bench, 0, 32, 32, true)),
    ("unretained-buffer-released", |bench| unretained(bench, true), |bench| unretained(bench, false)),
    ("residency-remove", |bench| residency(bench, false), |bench| residency(bench, true)),
    (
        "counter-boundary",
        |bench| {
            let samples = samples(bench, MTLStorageMode::Shared);
            in_encoder(bench, |encoder| {
                // SAFETY: the device checks whether it can sample here.
                unsafe { encoder.sampleCountersInBuffer_atSampleIndex_withBarrier(&samples, 0, true) };
            });
        },
        |bench| sampled(bench, 0),
    ),
    ("counter-index", |bench| sampled(bench, 2), |bench| sampled(bench, 1)),
    (
        "counter-private",
        |bench| resolve(bench, MTLStorageMode::Private),
        |bench| resolve(bench, MTLStorageMode::Shared),
    ),
    ("fence-wait-after-update", |bench| fence_used(bench, true), |bench| fence_used(bench, false)),
    (
        "event-backwards",
        |bench| {
            let event = bench.device.newSharedEvent().expect("an event");
            event.setSignaledValue(2);
            event.setSignaledValue(1);
        },
        |bench| {
            let event = bench.device.newSharedEvent().expect("an event");
            event.setSignaledValue(1);
            event.setSignaledValue(2);
        },
    ),
    (
        "debug-group",
        |bench| in_encoder(bench, |encoder| encoder.popDebugGroup()),
        |bench| {
            in_encoder(bench, |encoder| {
                encoder.pushDebugGroup(&NSString::from_str("group"));
                encoder.popDebugGroup();
            });
        },
    ),
];

/// One encoder waits for a fence and updates it, in this order or the other.
fn fence_used(bench: &Bench, update_first: bool) {
    let fence = bench.device.newFence().expect("a fence");
    in_encoder(bench, |encoder| {
        if update_first {
            encoder.updateFence(&fence);
        }
        encoder.waitForFence(&fence);
        encoder.updateFence(&fence);
    });
}

fn threads(bench: &Bench, grid: usize, threadgroup: usize) {
    in_encoder(bench, |encoder| {
        encoder.setComputePipelineState(&bench.pipeline("count"));
        encoder.dispatchThreads_threadsPerThreadgroup(size(grid), size(threadgroup));
    });
}

type Described = Result<bench::Pipeline, Retained<NSError>>;

fn described(bench: &Bench, descriptor: &MTLComputePipelineDescriptor) -> Described {
    let options = MTLPipelineOption::empty();
    bench.device.newComputePipelineStateWithDescriptor_options_reflection_error(descriptor, options, None)
}

/// A dispatch of a pipeline that promises whole SIMD groups.
fn whole_groups(bench: &Bench, threadgroup: usize) {
    let descriptor = MTLComputePipelineDescriptor::new();
    descriptor.setComputeFunction(Some(&bench.function("count")));
    // SAFETY: the device checks the promise.
    unsafe { descriptor.setThreadGroupSizeIsMultipleOfThreadExecutionWidth(true) };
    let pipeline = described(bench, &descriptor).expect("a pipeline");
    in_encoder(bench, |encoder| {
        encoder.setComputePipelineState(&pipeline);
        encoder.dispatchThreads_threadsPerThreadgroup(size(1), size(threadgroup));
    });
}

/// A dispatch whose size lies in a buffer of four numbers.
fn indirect(bench: &Bench, offset: usize) {
    let numbers = bench.buffer(4, SHARED);
    // SAFETY: the buffer has so many bytes, and the device does not use it yet.
    unsafe { numbers.contents().cast::<u8>().write_bytes(0, 16) };
    in_encoder(bench, |encoder| {
        encoder.setComputePipelineState(&bench.pipeline("count"));
        // SAFETY: the device checks the offset.
        unsafe {
            encoder.dispatchThreadgroupsWithIndirectBuffer_indirectBufferOffset_threadsPerThreadgroup(
                &numbers,
                offset,
                size(1),
            );
        }
    });
}

fn threadgroup_memory(bench: &Bench, length: usize) {
    in_encoder(bench, |encoder| {
        encoder.setComputePipelineState(&bench.pipeline("count"));
        // SAFETY: the device checks the length.
        unsafe { encoder.setThreadgroupMemoryLength_atIndex(length, 0) };
        encoder.dispatchThreads_threadsPerThreadgroup(size(1), size(1));
    });
}

fn heap(bench: &Bench, size: usize, set: impl FnOnce(&MTLHeapDescriptor)) {
    let descriptor = MTLHeapDescriptor::new();
    descriptor.setSize(size);
    set(&descriptor);
    let legal = size > 0 && descriptor.storageMode() == MTLStorageMode::Private;
    assert_eq!(bench.device.newHeapWithDescriptor(&descriptor).is_some(), legal);
}

/// A buffer in a placement heap of 16384 bytes, with an offset or without.
fn in_heap(bench: &Bench, options: MTLResourceOptions, length: usize, offset: Option<usize>) {
    let descriptor = MTLHeapDescriptor::new();
    descriptor.setSize(16384);
    descriptor.setStorageMode(MTLStorageMode::Shared);
    descriptor.setType(MTLHeapType::Placement);
    let heap = bench.device.newHeapWithDescriptor(&descriptor).expect("a heap");
    let needed = bench.device.heapBufferSizeAndAlignWithLength_options(length, options);
    assert_eq!((needed.size, needed.align), (length.next_multiple_of(256), 256));
    match offset {
        // SAFETY: the device checks the offset.
        Some(offset) => drop(unsafe { heap.newBufferWithLength_options_offset(length, options, offset) }),
        None => drop(heap.newBufferWithLength_options(length, options)),
    }
}

type Samples = Retained<objc2::runtime::ProtocolObject<dyn MTLCounterSampleBuffer>>;

/// Room for two timestamps.
fn samples(bench: &Bench, storage: MTLStorageMode) -> Samples {
    let descriptor = MTLCounterSampleBufferDescriptor::new();
    descriptor.setCounterSet(bench.device.counterSets().and_then(|sets| sets.firstObject()).as_deref());
    descriptor.setStorageMode(storage);
    // SAFETY: two are possible.
    unsafe { descriptor.setSampleCount(2) };
    bench.device.newCounterSampleBufferWithDescriptor_error(&descriptor).expect("a sample buffer")
}

/// An encoder that takes a sample where it begins.
fn sampled(bench: &Bench, index: usize) {
    let pass = MTLComputePassDescriptor::computePassDescriptor();
    // SAFETY: the device checks the index of the sample.
    unsafe {
        let attachment = pass.sampleBufferAttachments().objectAtIndexedSubscript(0);
        attachment.setSampleBuffer(Some(&samples(bench, MTLStorageMode::Shared)));
        attachment.setStartOfEncoderSampleIndex(index);
    }
    bench.commands().computeCommandEncoderWithDescriptor(&pass).expect("an encoder").endEncoding();
}

fn resolve(bench: &Bench, storage: MTLStorageMode) {
    // SAFETY: both samples are there.
    let data = unsafe { samples(bench, storage).resolveCounterRange(NSRange::new(0, 2)) };
    assert_eq!(data.map(|data| data.len()), (storage == MTLStorageMode::Shared).then_some(16));
}

fn no_copy(bench: &Bench, shift: usize) {
    #[repr(align(16384))]
    struct Pages([u8; 32768]);
    let mut pages = Box::new(Pages([0; 32768]));
    let start = NonNull::from(&mut pages.0).cast::<c_void>();
    // SAFETY: the memory outlives the buffer, which is dropped here.
    let buffer = unsafe {
        let start = start.byte_add(shift);
        bench.device.newBufferWithBytesNoCopy_length_options_deallocator(start, 16384, SHARED, None)
    };
    assert_eq!(buffer.is_some(), shift == 0);
}

fn unretained(bench: &Bench, early: bool) {
    let commands = bench.queue.commandBufferWithUnretainedReferences().expect("a command buffer");
    let encoder = commands.blitCommandEncoder().expect("an encoder");
    let mut buffer = ManuallyDrop::new(bench.buffer(16, SHARED));
    encoder.fillBuffer_range_value(&buffer, NSRange::new(0, 64), 1);
    encoder.endEncoding();
    if early {
        // SAFETY: dropped once here, and not below.
        unsafe { ManuallyDrop::drop(&mut buffer) };
    }
    commands.commit();
    commands.waitUntilCompleted();
    if !early {
        // SAFETY: dropped once here, and not above.
        unsafe { ManuallyDrop::drop(&mut buffer) };
    }
}

fn residency(bench: &Bench, added: bool) {
    let descriptor = MTLResidencySetDescriptor::new();
    let set = bench.device.newResidencySetWithDescriptor_error(&descriptor).expect("a set");
    let buffer = bench.buffer(4, UNTRACKED);
    let allocation: &objc2::runtime::ProtocolObject<dyn MTLAllocation> =
        objc2::runtime::ProtocolObject::from_ref(&*buffer);
    if added {
        set.addAllocation(allocation);
        assert_eq!(set.allocationCount(), 1);
    }
    set.removeAllocation(allocation);
    assert_eq!(set.allocationCount(), 0);
}

#[test]
fn planted_faults_are_caught_and_the_nearest_legal_sequences_are_quiet() {
    for (rule, fault, legal) in CASES {
        assert!(broken(fault).contains(rule), "{rule}: found {:?}", broken(fault));
        assert_eq!(broken(legal), Vec::<&str>::new(), "{rule}: the legal sequence");
    }
}

/// candle binds the axes of tensors without any; its kernels do not read them.
#[test]
fn an_argument_of_no_bytes_is_not_set() {
    let run = |bench: &Bench, kernel: &str, length: usize| {
        let commands = bench.commands();
        let encoder = bench.serial(&commands);
        let buffer = bench.buffer(64, SHARED);
        encoder.setComputePipelineState(&bench.pipeline(kernel));
        // SAFETY: the offset lies within the buffer, and there are so many bytes.
        unsafe {
            encoder.setBuffer_offset_atIndex(Some(&buffer), 0, usize::from(kernel == "double"));
            encoder.setBytes_length_atIndex(bytes(), length, usize::from(kernel != "double"));
        }
        encoder.dispatchThreads_threadsPerThreadgroup(size(32), size(32));
        encoder.endEncoding();
        commands.commit();
        commands.waitUntilCompleted();
    };
    assert_eq!(broken(|bench| run(bench, "double", 128)), [""; 0]);
    assert_eq!(broken(|bench| run(bench, "double", 0)), ["bytes-empty", "unset-argument"]);
    // `count` has no second argument.
    assert_eq!(broken(|bench| run(bench, "count", 0)), ["bytes-empty"]);
}

const LIFETIME: &str = include_str!("lifetime.rs");
const ORDERING: &str = include_str!("ordering.rs");
const MPS: &str = include_str!("mps.rs");

/// Rules whose pair stands in another file. Those of the MPS formulas have theirs in `formulas/tests/rules`, where a
/// test goes through the whole table.
const ELSEWHERE: &[(&str, &str)] = &[
    ("objc-over-release", LIFETIME),
    ("objc-use-after-free", LIFETIME),
    ("objc-no-pool", LIFETIME),
    ("objc-wrong-pool", LIFETIME),
    ("objc-unknown-selector", LIFETIME),
    ("objc-outlived", LIFETIME),
    ("fence-between-queues", ORDERING),
    ("order-within-encoder", ORDERING),
    ("order-between-encoders", ORDERING),
    ("order-between-command-buffers", ORDERING),
    ("order-between-queues", ORDERING),
    ("mps-with-open-encoder", MPS),
    ("mps-kernel-shared", MPS),
    ("divergent-barrier", include_str!("metal_source.rs")),
];

#[test]
fn every_rule_has_its_pair_of_tests() {
    let rules = softmetal::rules::own();
    for rule in &rules {
        let here = CASES.iter().filter(|(id, _, _)| *id == rule.id).count();
        let elsewhere = ELSEWHERE.iter().filter(|(id, text)| {
            // What a fault gives is compared with the rule's id, what the legal sequence gives with nothing.
            let quiet = text.contains(".is_empty()") || text.contains("Vec::<&str>::new()");
            *id == rule.id && text.contains(&format!("\"{id}\"")) && quiet
        });
        assert_eq!(here + elsewhere.count(), 1, "{}", rule.id);
    }
    assert_eq!(CASES.len() + ELSEWHERE.len(), rules.len(), "a pair is for a rule");
}
