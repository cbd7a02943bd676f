//! What a backend asks of the device, the system and small objects before it computes anything.
#![allow(missing_docs)]

mod bench;

use std::ptr::NonNull;
use std::sync::mpsc::channel;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use block2::RcBlock;
use objc2::rc::autoreleasepool;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSError, NSOperatingSystemVersion, NSProcessInfo, NSRange, NSString};
use objc2_metal::*;
use softmetal::leaks;

/// The tests of this file count objects, so they run one after the other.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn size(width: usize) -> MTLSize {
    MTLSize { width, height: 1, depth: 1 }
}

#[test]
fn the_device_tells_what_it_is() {
    let _alone = alone();
    autoreleasepool(|_| {
        let device = Bench::new().device;
        assert_eq!(device.name().to_string(), "softmetal");
        assert_eq!(device.architecture().name().to_string(), "applegpu_g13g");
        assert!(device.registryID() != 0);
        assert!(device.hasUnifiedMemory() && !device.isLowPower() && !device.isRemovable());
        assert!(!device.isHeadless() && device.location() == MTLDeviceLocation::BuiltIn);
        assert_eq!(device.argumentBuffersSupport(), MTLArgumentBuffersTier::Tier2);
        assert_eq!((device.maxBufferLength(), device.maxThreadgroupMemoryLength()), (8 << 30, 32 << 10));
        assert_eq!(device.maxThreadsPerThreadgroup().width, 1024);
        assert!(device.recommendedMaxWorkingSetSize() >= device.maxBufferLength() as u64);
        for (family, expected) in [
            (MTLGPUFamily::Apple1, true),
            (MTLGPUFamily::Apple7, true),
            (MTLGPUFamily::Apple8, false),
            (MTLGPUFamily::Metal3, true),
            (MTLGPUFamily::Mac2, true),
        ] {
            assert_eq!(device.supportsFamily(family), expected, "{family:?}");
        }
        let all = MTLCopyAllDevices();
        let ids: Vec<u64> = all.iter().map(|device| device.registryID()).collect();
        assert_eq!(ids, [device.registryID()]);
    });
}

#[test]
fn the_system_tells_its_version() {
    let _alone = alone();
    autoreleasepool(|_| {
        let process = NSProcessInfo::processInfo();
        let version = |major, minor| NSOperatingSystemVersion {
            majorVersion: major,
            minorVersion: minor,
            patchVersion: 0,
        };
        let found = process.operatingSystemVersion();
        assert_eq!((found.majorVersion, found.minorVersion, found.patchVersion), (15, 6, 0));
        assert!(process.isOperatingSystemAtLeastVersion(version(15, 6)));
        assert!(process.isOperatingSystemAtLeastVersion(version(14, 9)));
        assert!(!process.isOperatingSystemAtLeastVersion(version(15, 7)));
        assert!(process.operatingSystemVersionString().to_string().contains("15.6.0"));
        assert!(process.physicalMemory() > 1 << 20 && process.activeProcessorCount() >= 1);
    });
}

#[test]
fn labels_are_kept_and_absent_until_they_are_set() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let label = NSString::from_str("a label");
        macro_rules! kept {
            ($($object:expr),*) => {$({
                let object = &$object;
                assert!(object.label().is_none());
                object.setLabel(Some(&label));
                assert_eq!(object.label().expect("a label").to_string(), "a label");
            })*};
        }
        let commands = bench.commands();
        kept!(bench.queue, commands, bench.buffer(4, SHARED));
        kept!(bench.device.newFence().expect("a fence"), bench.device.newEvent().expect("an event"));
        kept!(bench.device.newDefaultLibrary().expect("a library"));
        let encoder = bench.serial(&commands);
        kept!(encoder);
        encoder.endEncoding();
        let encoder = commands.blitCommandEncoder().expect("an encoder");
        kept!(encoder);
        encoder.pushDebugGroup(&label);
        encoder.popDebugGroup();
        encoder.endEncoding();
        commands.pushDebugGroup(&label);
        commands.popDebugGroup();
    });
    assert_eq!(left, []);
}

#[test]
fn command_buffers_are_made_as_their_descriptor_says() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let queue = MTLCommandQueueDescriptor::new();
        assert_eq!(queue.maxCommandBufferCount(), 64);
        let queue = bench.device.newCommandQueueWithDescriptor(&queue).expect("a queue");
        let descriptor = MTLCommandBufferDescriptor::new();
        for retained in [true, false] {
            descriptor.setRetainedReferences(retained);
            let commands = queue.commandBufferWithDescriptor(&descriptor).expect("a command buffer");
            assert_eq!(commands.retainedReferences(), retained);
        }
    });
}

#[test]
fn handlers_run_in_order_and_a_command_buffer_tells_its_state() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let commands = bench.commands();
        let (sender, receiver) = channel();
        for name in ["scheduled", "completed"] {
            let sender = sender.clone();
            let handler = RcBlock::new(move |_: NonNull<ProtocolObject<dyn MTLCommandBuffer>>| {
                sender.send(name).expect("the test waits");
            });
            // SAFETY: the handlers capture what any thread may use.
            unsafe {
                match name {
                    "scheduled" => commands.addScheduledHandler(RcBlock::as_ptr(&handler)),
                    _ => commands.addCompletedHandler(RcBlock::as_ptr(&handler)),
                }
            }
        }
        assert_eq!(commands.status(), MTLCommandBufferStatus::NotEnqueued);
        commands.enqueue();
        assert_eq!(commands.status(), MTLCommandBufferStatus::Enqueued);
        commands.commit();
        commands.waitUntilScheduled();
        commands.waitUntilCompleted();
        assert_eq!(commands.status(), MTLCommandBufferStatus::Completed);
        assert!(commands.error().is_none());
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["scheduled", "completed"]);
    });
    assert_eq!(left, []);
}

#[test]
fn several_buffers_are_set_at_once() {
    let _alone = alone();
    let quiet = broken(|bench| {
        let (x, y) = (bench.buffer(64, SHARED), bench.buffer(66, SHARED));
        let commands = bench.commands();
        let encoder = bench.serial(&commands);
        bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
        encoder.setComputePipelineState(&bench.pipeline("double"));
        let mut buffers = [std::ptr::from_ref(&*x), std::ptr::from_ref(&*y)];
        let mut offsets = [0, 8];
        // SAFETY: there are as many buffers and offsets as the range is long.
        unsafe {
            encoder.setBuffers_offsets_withRange(
                NonNull::from(&mut buffers[0]),
                NonNull::from(&mut offsets[0]),
                NSRange::new(0, 2),
            );
        }
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(2), size(32));
        encoder.endEncoding();
        commands.commit();
        commands.waitUntilCompleted();
        assert_eq!(floats(&y, 66)[65], 126.0);
    });
    assert!(quiet.is_empty(), "{quiet:?}");
}

/// Three numbers of threadgroups from the second number of a buffer on; a dispatch may write them first.
fn indirect(bench: &Bench, groups: [u32; 3], written: bool, ordered: bool) -> Buffer {
    let (numbers, y) = (bench.buffer(4, UNTRACKED), bench.buffer(64, SHARED));
    let start = numbers.contents().cast::<u32>();
    // SAFETY: both buffers are long enough, and the device does not use them yet.
    unsafe {
        groups.iter().enumerate().for_each(|(i, &group)| start.add(1 + i).write(group));
        y.contents().cast::<u8>().write_bytes(0, 256);
    }
    let fence = bench.device.newFence().expect("a fence");
    let commands = bench.commands();
    if written {
        let blit = commands.blitCommandEncoder().expect("an encoder");
        blit.fillBuffer_range_value(&numbers, NSRange::new(4, 12), 0);
        if ordered {
            blit.updateFence(&fence);
        }
        blit.endEncoding();
    }
    let encoder = bench.serial(&commands);
    if ordered {
        encoder.waitForFence(&fence);
    }
    encoder.setComputePipelineState(&bench.pipeline("count"));
    // SAFETY: the numbers lie within their buffer.
    unsafe {
        encoder.setBuffer_offset_atIndex(Some(&y), 0, 0);
        encoder.dispatchThreadgroupsWithIndirectBuffer_indirectBufferOffset_threadsPerThreadgroup(
            &numbers,
            4,
            size(16),
        );
    }
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    y
}

#[test]
fn the_device_reads_how_large_a_dispatch_is() {
    let _alone = alone();
    for (groups, last) in [([3, 1, 1], 47), ([1, 1, 1], 15), ([0, 1, 1], 0)] {
        let quiet = broken(|bench| {
            let found = floats(&indirect(bench, groups, false, false), 64);
            let expected: Vec<f32> = (0..64).map(|i| if i <= last { i as f32 } else { 0.0 }).collect();
            assert_eq!(found, expected, "{groups:?}");
        });
        assert!(quiet.is_empty(), "{groups:?}: {quiet:?}");
    }
    let hazard = broken(|bench| drop(indirect(bench, [1, 1, 1], true, false)));
    assert_eq!(hazard, ["order-between-encoders"]);
    assert!(broken(|bench| drop(indirect(bench, [1, 1, 1], true, true))).is_empty());
}

/// What a handler of an event is given.
type Told = Box<dyn Fn(u64)>;

/// Calls `told` on another thread when the event has a value.
fn tell(event: &ProtocolObject<dyn MTLSharedEvent>, value: u64, told: Told) {
    let block = RcBlock::new(move |event: NonNull<ProtocolObject<dyn MTLSharedEvent>>, value: u64| {
        // SAFETY: the event lives for the call.
        assert!(unsafe { event.as_ref() }.signaledValue() >= value);
        told(value);
    });
    let listener = MTLSharedEventListener::new();
    // SAFETY: the block captures what any thread may use.
    unsafe { event.notifyListener_atValue_block(&listener, value, RcBlock::as_ptr(&block)) };
}

#[test]
fn an_event_tells_of_its_values() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let event = bench.device.newSharedEvent().expect("an event");
        let (sender, receiver) = channel();
        let told = || -> Told {
            let sender = sender.clone();
            Box::new(move |value| sender.send(value).expect("the test waits"))
        };
        tell(&event, 2, told());
        tell(&event, 9, told());
        event.setSignaledValue(1);
        softmetal::quiesce();
        assert!(receiver.try_recv().is_err(), "neither value has come");
        let commands = bench.commands();
        commands.encodeSignalEvent_value(ProtocolObject::from_ref(&*event), 3);
        commands.commit();
        assert_eq!(receiver.recv().expect("a value"), 2);
        tell(&event, 3, told());
        assert_eq!(receiver.recv().expect("a value"), 3, "it has come already");
        assert!(event.waitUntilSignaledValue_timeoutMS(3, 1000));
        assert!(!event.waitUntilSignaledValue_timeoutMS(4, 1), "the time is over");
        commands.waitUntilCompleted();
        softmetal::quiesce();
        assert!(receiver.try_recv().is_err(), "nobody signalled 9");
    });
    assert_eq!(left, []);
}

#[test]
fn a_notice_that_panics_leaves_the_device_usable() {
    let _alone = alone();
    autoreleasepool(|_| {
        let event = Bench::new().device.newSharedEvent().expect("an event");
        tell(&event, 1, Box::new(|_| panic!("planted")));
        event.setSignaledValue(1);
        // Returns, although the handler never did.
        softmetal::quiesce();
        assert_eq!(event.signaledValue(), 1);
    });
}

/// A second command buffer reads what a first one writes, after the host was told of an event, or at once.
fn after_notice(bench: &Bench, wait: bool) {
    let (x, y) = (bench.buffer(64, UNTRACKED), bench.buffer(64, UNTRACKED));
    let event = bench.device.newSharedEvent().expect("an event");
    let (sender, receiver) = channel();
    if wait {
        tell(&event, 1, Box::new(move |value| sender.send(value).expect("the test waits")));
    }
    let first = bench.commands();
    let encoder = bench.serial(&first);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    encoder.endEncoding();
    first.encodeSignalEvent_value(ProtocolObject::from_ref(&*event), 1);
    first.commit();
    if wait {
        receiver.recv().expect("a notice");
    }
    let second = bench.commands();
    let encoder = bench.serial(&second);
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], 64);
    encoder.endEncoding();
    second.commit();
    second.waitUntilCompleted();
}

#[test]
fn a_notice_is_a_wait_of_the_host() {
    let _alone = alone();
    assert_eq!(broken(|bench| after_notice(bench, false)), ["order-between-command-buffers"]);
    assert!(broken(|bench| after_notice(bench, true)).is_empty());
}

#[test]
fn a_library_can_come_later() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let (sender, receiver) = channel();
        let handler =
            RcBlock::new(move |library: *mut ProtocolObject<dyn MTLLibrary>, error: *mut NSError| {
                // SAFETY: both live for the call.
                let (library, error) = unsafe { (library.as_ref(), error.as_ref()) };
                let names = library.map(|library| library.functionNames().len());
                sender.send((names, error.is_some())).expect("the test waits");
            });
        for (source, expected) in [
            ("kernel void one(device float* y [[buffer(0)]]) { y[0] = 1; }", (Some(1), false)),
            ("kernel void one(", (None, true)),
        ] {
            // SAFETY: what the handler captures is fit for another thread.
            unsafe {
                bench.device.newLibraryWithSource_options_completionHandler(
                    &NSString::from_str(source),
                    None,
                    RcBlock::as_ptr(&handler),
                );
            }
            assert_eq!(receiver.recv().expect("the handler ran"), expected, "{source}");
        }
    });
    assert_eq!(left, []);
}
