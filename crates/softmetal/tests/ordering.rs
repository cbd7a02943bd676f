//! Planted hazards through the API, each beside the sequence that is right.
#![allow(missing_docs)]

mod bench;

use std::ptr::NonNull;

use bench::{Bench, Buffer, SHARED, UNTRACKED, broken, floats};
use block2::RcBlock;
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSRange;
use objc2_metal::*;

/// The ways in which a writer and a reader may be put in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Nothing,
    Barrier,
    BarrierForBuffer,
    BarrierForOther,
    Fence,
    Event,
    HostWait,
    /// The second is committed after the first one's completion handler has run.
    Handler,
}

struct Pair {
    x: Buffer,
    y: Buffer,
}

fn pair(bench: &Bench, options: MTLResourceOptions) -> Pair {
    Pair { x: bench.buffer(64, options), y: bench.buffer(64, options) }
}

/// `count` into x, then `double` from x to y, in one concurrent encoder.
fn within(bench: &Bench, order: Order) {
    let Pair { x, y } = pair(bench, UNTRACKED);
    let commands = bench.commands();
    let encoder = bench.concurrent(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    match order {
        Order::Barrier => encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers),
        Order::BarrierForBuffer | Order::BarrierForOther => {
            let buffer = if order == Order::BarrierForBuffer { &x } else { &y };
            let resource: &objc2::runtime::ProtocolObject<dyn MTLResource> =
                objc2::runtime::ProtocolObject::from_ref(&**buffer);
            let mut list = [std::ptr::NonNull::from(resource)];
            let start = std::ptr::NonNull::from(&mut list).cast();
            // SAFETY: the list has one buffer.
            unsafe { encoder.memoryBarrierWithResources_count(start, 1) };
        }
        _ => {}
    }
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    if order == Order::Barrier {
        assert_eq!(floats(&y, 64)[63], 126.0);
    }
}

#[test]
fn dispatches_of_a_concurrent_encoder() {
    assert_eq!(broken(|bench| within(bench, Order::Nothing)), ["order-within-encoder"]);
    assert_eq!(broken(|bench| within(bench, Order::BarrierForOther)), ["order-within-encoder"]);
    assert!(broken(|bench| within(bench, Order::Barrier)).is_empty());
    assert!(broken(|bench| within(bench, Order::BarrierForBuffer)).is_empty());
}

/// As above in two encoders of one command buffer.
fn encoders(bench: &Bench, options: MTLResourceOptions, order: Order) {
    let Pair { x, y } = pair(bench, options);
    let fence = bench.device.newFence().expect("a fence");
    let event = bench.device.newEvent().expect("an event");
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    if order == Order::Fence {
        encoder.updateFence(&fence);
    }
    encoder.endEncoding();
    if order == Order::Event {
        commands.encodeSignalEvent_value(&event, 1);
        commands.encodeWaitForEvent_value(&event, 1);
    }
    let encoder = bench.serial(&commands);
    if order == Order::Fence {
        encoder.waitForFence(&fence);
    }
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn encoders_of_a_command_buffer() {
    assert_eq!(broken(|bench| encoders(bench, UNTRACKED, Order::Nothing)), ["order-between-encoders"]);
    for order in [Order::Fence, Order::Event] {
        assert!(broken(|bench| encoders(bench, UNTRACKED, order)).is_empty(), "{order:?}");
    }
    assert!(broken(|bench| encoders(bench, SHARED, Order::Nothing)).is_empty(), "tracked");
}

/// The same in two command buffers of one queue, or of two.
fn command_buffers(bench: &Bench, options: MTLResourceOptions, order: Order, two_queues: bool) {
    let Pair { x, y } = pair(bench, options);
    let event = bench.device.newSharedEvent().expect("an event");
    let fence = bench.device.newFence().expect("a fence");
    let first = bench.commands();
    let encoder = bench.serial(&first);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    if order == Order::Fence {
        encoder.updateFence(&fence);
    }
    encoder.endEncoding();
    let as_event: &objc2::runtime::ProtocolObject<dyn MTLEvent> =
        objc2::runtime::ProtocolObject::from_ref(&*event);
    if order == Order::Event {
        first.encodeSignalEvent_value(as_event, 7);
    }
    let (told, heard) = std::sync::mpsc::channel();
    if order == Order::Handler {
        let handler = RcBlock::new(move |_: NonNull<ProtocolObject<dyn MTLCommandBuffer>>| {
            told.send(()).expect("the test listens");
        });
        // SAFETY: the block is valid, and the command buffer copies it.
        unsafe { first.addCompletedHandler(RcBlock::as_ptr(&handler)) };
    }
    first.commit();
    match order {
        Order::HostWait => first.waitUntilCompleted(),
        Order::Handler => heard.recv().expect("the handler runs"),
        _ => {}
    }
    let other = bench.device.newCommandQueue().expect("a queue");
    let queue = if two_queues { &other } else { &bench.queue };
    let second = queue.commandBuffer().expect("a command buffer");
    if order == Order::Event {
        second.encodeWaitForEvent_value(as_event, 7);
    }
    let encoder = bench.serial(&second);
    if order == Order::Fence {
        encoder.waitForFence(&fence);
    }
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], 64);
    encoder.endEncoding();
    second.commit();
    second.waitUntilCompleted();
    first.waitUntilCompleted();
}

#[test]
fn command_buffers_of_a_queue() {
    let rule = ["order-between-command-buffers"];
    assert_eq!(broken(|bench| command_buffers(bench, UNTRACKED, Order::Nothing, false)), rule);
    for order in [Order::Event, Order::Fence, Order::HostWait, Order::Handler] {
        assert!(broken(|bench| command_buffers(bench, UNTRACKED, order, false)).is_empty(), "{order:?}");
    }
    assert!(broken(|bench| command_buffers(bench, SHARED, Order::Nothing, false)).is_empty(), "tracked");
}

#[test]
fn queues() {
    for options in [UNTRACKED, SHARED] {
        let found = broken(|bench| command_buffers(bench, options, Order::Nothing, true));
        assert_eq!(found, ["order-between-queues"]);
        for order in [Order::Event, Order::HostWait, Order::Handler] {
            assert!(broken(|bench| command_buffers(bench, options, order, true)).is_empty(), "{order:?}");
        }
        // It orders them, by what Apple says last; the suspicion is a rule of its own.
        let found = broken(|bench| command_buffers(bench, options, Order::Fence, true));
        assert_eq!(found, ["fence-between-queues"]);
    }
}

/// A dispatch writes what a copy reads, or the other way round.
fn blit_against_compute(bench: &Bench, copy_first: bool, fence: bool) {
    let Pair { x, y } = pair(bench, UNTRACKED);
    let barrier = bench.device.newFence().expect("a fence");
    let commands = bench.commands();
    for turn in 0..2 {
        if (turn == 0) == copy_first {
            let encoder = commands.blitCommandEncoder().expect("an encoder");
            if fence && turn == 1 {
                encoder.waitForFence(&barrier);
            }
            // SAFETY: both ranges lie within the buffers.
            unsafe {
                encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(&x, 0, &y, 0, 256);
            }
            if fence && turn == 0 {
                encoder.updateFence(&barrier);
            }
            encoder.endEncoding();
        } else {
            let encoder = bench.serial(&commands);
            if fence && turn == 1 {
                encoder.waitForFence(&barrier);
            }
            bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
            if fence && turn == 0 {
                encoder.updateFence(&barrier);
            }
            encoder.endEncoding();
        }
    }
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn copies_against_dispatches() {
    for copy_first in [true, false] {
        let found = broken(|bench| blit_against_compute(bench, copy_first, false));
        assert_eq!(found, ["order-between-encoders"], "copy first: {copy_first}");
        assert!(broken(|bench| blit_against_compute(bench, copy_first, true)).is_empty());
    }
}

/// A pool that hands out a buffer again while the first user is under way.
fn reuse(bench: &Bench, wait: bool) {
    let x = bench.buffer(64, UNTRACKED);
    let mut all = Vec::new();
    for _ in 0..2 {
        let commands = bench.commands();
        let encoder = bench.serial(&commands);
        bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
        encoder.endEncoding();
        commands.commit();
        if wait {
            commands.waitUntilCompleted();
        }
        all.push(commands);
    }
    all.iter().for_each(|commands| commands.waitUntilCompleted());
}

#[test]
fn a_buffer_that_is_used_again_too_early() {
    assert_eq!(broken(|bench| reuse(bench, false)), ["order-between-command-buffers"]);
    assert!(broken(|bench| reuse(bench, true)).is_empty());
}

/// Two dispatches on windows of one buffer.
fn windows(bench: &Bench, offset: usize) {
    let x = bench.buffer(64, UNTRACKED);
    let commands = bench.commands();
    let encoder = bench.concurrent(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 32);
    bench.dispatch(&encoder, "count", &[(&x, offset)], 32);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn windows_of_one_buffer_conflict_only_where_they_overlap() {
    assert!(broken(|bench| windows(bench, 128)).is_empty());
    assert_eq!(broken(|bench| windows(bench, 124)), ["order-within-encoder"]);
}

/// A fill after a dispatch, ordered by a fence that was never updated.
fn stale_fence(bench: &Bench, update: bool) {
    let x = bench.buffer(64, UNTRACKED);
    let fence = bench.device.newFence().expect("a fence");
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    if update {
        encoder.updateFence(&fence);
    }
    encoder.endEncoding();
    let encoder = commands.blitCommandEncoder().expect("an encoder");
    encoder.waitForFence(&fence);
    encoder.fillBuffer_range_value(&x, NSRange::new(0, 16), 0);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn a_wait_for_a_fence_that_nobody_updated() {
    assert_eq!(broken(|bench| stale_fence(bench, false)), ["order-between-encoders"]);
    assert!(broken(|bench| stale_fence(bench, true)).is_empty());
}

/// An event whose value comes too early to cover the writer.
fn early_signal(bench: &Bench, early: bool) {
    let x = bench.buffer(64, UNTRACKED);
    let event = bench.device.newEvent().expect("an event");
    let commands = bench.commands();
    if early {
        commands.encodeSignalEvent_value(&event, 1);
    }
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    encoder.endEncoding();
    if !early {
        commands.encodeSignalEvent_value(&event, 1);
    }
    commands.encodeWaitForEvent_value(&event, 1);
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
}

#[test]
fn a_signal_before_the_writer() {
    assert_eq!(broken(|bench| early_signal(bench, true)), ["order-between-encoders"]);
    assert!(broken(|bench| early_signal(bench, false)).is_empty());
}
