//! Times of command buffers, and timestamps that encoders take.
#![allow(missing_docs)]

mod bench;

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use bench::{Bench, Buffer, Compute, SHARED, UNTRACKED, broken};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSError, NSRange, NSString};
use objc2_metal::*;
use softmetal::{faults, leaks};

type Samples = Retained<ProtocolObject<dyn MTLCounterSampleBuffer>>;

/// The tests of this file ask for faults and count objects, so they run one after the other.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn descriptor(bench: &Bench, count: usize) -> Retained<MTLCounterSampleBufferDescriptor> {
    let descriptor = MTLCounterSampleBufferDescriptor::new();
    let sets = bench.device.counterSets().expect("sets");
    // SAFETY: the constant is there from the start.
    let wanted = unsafe { MTLCommonCounterSetTimestamp }.to_string();
    let set = sets.iter().find(|set| set.name().to_string() == wanted).expect("timestamps");
    let names: Vec<String> = set.counters().iter().map(|counter| counter.name().to_string()).collect();
    // SAFETY: as above.
    assert_eq!(names, [unsafe { MTLCommonCounterTimestamp }.to_string()]);
    descriptor.setCounterSet(Some(&set));
    descriptor.setLabel(&NSString::from_str("times"));
    // SAFETY: the device checks the count.
    unsafe { descriptor.setSampleCount(count) };
    descriptor
}

fn made(bench: &Bench, descriptor: &MTLCounterSampleBufferDescriptor) -> Result<Samples, Retained<NSError>> {
    bench.device.newCounterSampleBufferWithDescriptor_error(descriptor)
}

fn samples(bench: &Bench, count: usize) -> Samples {
    made(bench, &descriptor(bench, count)).expect("a sample buffer")
}

/// An encoder that takes samples where it begins and where it ends.
fn sampled(commands: &bench::Commands, samples: &Samples, start: usize, end: usize) -> Compute {
    let pass = MTLComputePassDescriptor::computePassDescriptor();
    pass.setDispatchType(MTLDispatchType::Concurrent);
    // SAFETY: there are four attachments at least; the device checks the indices of samples.
    unsafe {
        let attachment = pass.sampleBufferAttachments().objectAtIndexedSubscript(0);
        attachment.setSampleBuffer(Some(samples));
        attachment.setStartOfEncoderSampleIndex(start);
        attachment.setEndOfEncoderSampleIndex(end);
    }
    let encoder = commands.computeCommandEncoderWithDescriptor(&pass).expect("an encoder");
    assert_eq!(encoder.dispatchType(), MTLDispatchType::Concurrent);
    encoder
}

fn resolved(samples: &Samples, range: NSRange) -> Option<Vec<u64>> {
    // SAFETY: the device checks the range.
    let data = unsafe { samples.resolveCounterRange(range) }?;
    let numbers = data.to_vec();
    Some(
        numbers.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect(),
    )
}

fn timestamps(bench: &Bench) -> (u64, u64) {
    let (mut host, mut device) = (0, 0);
    // SAFETY: both are places of this function.
    unsafe {
        bench.device.sampleTimestamps_gpuTimestamp(NonNull::from(&mut host), NonNull::from(&mut device))
    };
    (host, device)
}

#[test]
fn times_are_zero_before_and_real_afterwards() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let commands = bench.commands();
        let times = || {
            [
                commands.kernelStartTime(),
                commands.kernelEndTime(),
                commands.GPUStartTime(),
                commands.GPUEndTime(),
            ]
        };
        assert_eq!(times(), [0.0; 4]);
        let encoder = bench.serial(&commands);
        bench.dispatch(&encoder, "count", &[(&bench.buffer(64, SHARED), 0)], 64);
        encoder.endEncoding();
        assert_eq!(times(), [0.0; 4]);
        faults::delay_completion(Duration::from_millis(20));
        let begin = Instant::now();
        commands.commit();
        commands.waitUntilCompleted();
        faults::clear();
        let passed = begin.elapsed().as_secs_f64();
        let times = times();
        assert!(times[0] > 0.0 && times.is_sorted(), "{times:?}");
        let on_device = times[3] - times[2];
        assert!((0.02..=passed).contains(&on_device), "{on_device} s on the device of {passed} s");

        let next = bench.commands();
        next.commit();
        next.waitUntilCompleted();
        assert!(next.kernelStartTime() >= times[3], "one clock for all command buffers");
    });
}

#[test]
fn encoders_take_timestamps_where_they_begin_and_end() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let samples = samples(&bench, 5);
        assert_eq!((samples.sampleCount(), samples.label().to_string()), (5, "times".to_owned()));
        let x = bench.buffer(64, SHARED);
        let (before, _) = timestamps(&bench);
        let commands = bench.commands();
        for turn in 0..2 {
            let encoder = sampled(&commands, &samples, 2 * turn, 2 * turn + 1);
            bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
            encoder.endEncoding();
        }
        assert_eq!(resolved(&samples, NSRange::new(0, 5)), Some(vec![0; 5]), "nothing has run");
        commands.commit();
        commands.waitUntilCompleted();
        let found = resolved(&samples, NSRange::new(0, 5)).expect("the samples");
        assert!(found[0] >= before && found[..4].is_sorted(), "{before} {found:?}");
        assert!(found[3] <= timestamps(&bench).1);
        let seconds = |sample: u64| sample as f64 * 1e-9;
        assert!(seconds(found[0]) >= commands.GPUStartTime() && seconds(found[3]) <= commands.GPUEndTime());
        assert_eq!(found[4], 0, "nobody took this one");
        assert_eq!(resolved(&samples, NSRange::new(1, 2)), Some(found[1..3].to_vec()));
    });
    assert_eq!(left, []);
}

#[test]
fn samples_can_be_left_out() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let samples = samples(&bench, 2);
        let commands = bench.commands();
        // MTLCounterDontSample
        sampled(&commands, &samples, usize::MAX, 1).endEncoding();
        commands.commit();
        commands.waitUntilCompleted();
        let found = resolved(&samples, NSRange::new(0, 2)).expect("the samples");
        assert!(found[0] == 0 && found[1] > 0, "{found:?}");
    });
}

#[test]
fn an_apple_gpu_samples_at_stage_boundaries_only() {
    let _alone = alone();
    let bench = Bench::new();
    for (point, expected) in [
        (MTLCounterSamplingPoint::AtStageBoundary, true),
        (MTLCounterSamplingPoint::AtDrawBoundary, false),
        (MTLCounterSamplingPoint::AtDispatchBoundary, false),
        (MTLCounterSamplingPoint::AtTileDispatchBoundary, false),
        (MTLCounterSamplingPoint::AtBlitBoundary, false),
    ] {
        assert_eq!(bench.device.supportsCounterSampling(point), expected, "{point:?}");
    }
}

#[test]
fn sample_buffers_that_cannot_be_are_errors() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let code = |descriptor: &MTLCounterSampleBufferDescriptor| {
            made(&bench, descriptor).err().map(|error| {
                // SAFETY: the constant is there from the start.
                assert_eq!(error.domain().to_string(), unsafe { MTLCounterErrorDomain }.to_string());
                MTLCounterSampleBufferError(error.code())
            })
        };
        assert_eq!(code(&descriptor(&bench, 4096)), None);
        let invalid = Some(MTLCounterSampleBufferError::Invalid);
        assert_eq!(code(&descriptor(&bench, 4097)), invalid, "more than 32 KiB");
        assert_eq!(code(&descriptor(&bench, 0)), invalid);
        assert_eq!(code(&MTLCounterSampleBufferDescriptor::new()), invalid, "no counter set");
        let managed = descriptor(&bench, 1);
        managed.setStorageMode(MTLStorageMode::Managed);
        assert_eq!(code(&managed), invalid);
        faults::fail_allocation_after(0);
        assert_eq!(code(&descriptor(&bench, 1)), Some(MTLCounterSampleBufferError::OutOfMemory));
        faults::clear();
    });
}

/// Samples of an encoder are resolved into a buffer, which a dispatch then reads.
fn resolve_on_device(bench: &Bench, options: MTLResourceOptions, fence: bool) -> (Vec<u64>, Vec<u64>) {
    let samples = samples(bench, 2);
    let order = bench.device.newFence().expect("a fence");
    let (raw, copy): (Buffer, Buffer) = (bench.buffer(8, options), bench.buffer(8, options));
    let commands = bench.commands();
    sampled(&commands, &samples, 0, 1).endEncoding();
    let blit = commands.blitCommandEncoder().expect("an encoder");
    // SAFETY: the device checks the ranges.
    unsafe {
        blit.resolveCounters_inRange_destinationBuffer_destinationOffset(
            &samples,
            NSRange::new(0, 2),
            &raw,
            8,
        );
    }
    if fence {
        blit.updateFence(&order);
    }
    blit.endEncoding();
    let encoder = bench.serial(&commands);
    if fence {
        encoder.waitForFence(&order);
    }
    bench.dispatch(&encoder, "double", &[(&raw, 0), (&copy, 0)], 8);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    let found = raw.contents().cast::<u64>();
    // SAFETY: the buffer has four numbers, and the test has waited for the device.
    let found = [1, 2].map(|at| unsafe { found.add(at).read() }).to_vec();
    (found, resolved(&samples, NSRange::new(0, 2)).expect("the samples"))
}

#[test]
fn samples_resolved_on_the_device() {
    let _alone = alone();
    let rule = ["order-between-encoders"];
    assert_eq!(broken(|bench| drop(resolve_on_device(bench, UNTRACKED, false))), rule);
    assert!(broken(|bench| drop(resolve_on_device(bench, UNTRACKED, true))).is_empty());
    let quiet = broken(|bench| {
        let (on_device, by_host) = resolve_on_device(bench, SHARED, false);
        assert!(on_device == by_host && by_host[0] > 0, "{on_device:?} {by_host:?}");
    });
    assert!(quiet.is_empty(), "{quiet:?}");
}
