//! Leaks are named, misuse of references is caught, and clean runs are clean; every time.
#![allow(missing_docs)]

mod bench;

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::rc::Rc;

use bench::{Bench, SHARED, broken, floats};
use block2::RcBlock;
use objc2::msg_send;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_metal::*;
use softmetal::check::capture;
use softmetal::faults::{self, CommandBufferError};
use softmetal::ledger::{self, Leak};
use softmetal::{counters, leaks};

const ROUNDS: usize = 100;

/// One dispatch with everything around it.
fn product(bench: &Bench) -> bench::Buffer {
    let (x, y) = (bench.buffer(64, SHARED), bench.buffer(64, SHARED));
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    bench.dispatch(&encoder, "count", &[(&x, 0)], 64);
    bench.dispatch(&encoder, "double", &[(&x, 0), (&y, 0)], 64);
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    assert_eq!(commands.status(), MTLCommandBufferStatus::Completed);
    assert_eq!(floats(&y, 64)[10], 20.0);
    y
}

/// The tests of this file look at counts of the whole process, so they run one after the other.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The place of a leak names where in this file its object was made.
fn assert_place(leak: &Leak, function: &str) {
    let place = leak.place.as_deref().expect("a place");
    assert!(place.contains("lifetime.rs:") && place.contains(function), "{function} is not in\n{place}");
}

#[test]
fn a_clean_run_is_clean_and_an_extra_retain_is_named_with_its_place() {
    let _alone = alone();
    ledger::record_places(true);
    for round in 0..ROUNDS {
        let (_, left) = leaks(|| drop(product(&Bench::new())));
        assert_eq!(left, [], "round {round}");
        let (_, left) = leaks(|| {
            let y = product(&Bench::new());
            std::mem::forget(y.clone());
            drop(y);
        });
        assert_eq!(left.len(), 1, "round {round}: {left:?}");
        assert_eq!((left[0].class.as_str(), left[0].retain_count), ("SoftMTLBuffer", 1));
        assert_place(&left[0], "product");
    }
    ledger::record_places(false);
}

#[test]
fn what_outlives_its_owner_breaks_a_rule_that_names_it() {
    let _alone = alone();
    ledger::record_places(true);
    let ((), broken) = capture(|| softmetal::owned(|| std::mem::forget(product(&Bench::new()))));
    ledger::record_places(false);
    assert_eq!(broken.iter().map(|violation| violation.rule).collect::<Vec<_>>(), ["objc-outlived"]);
    let message = &broken[0].message;
    assert!(message.starts_with("SoftMTLBuffer #") && message.contains("lifetime.rs:"), "{message}");
    assert_eq!(capture(|| softmetal::owned(|| drop(product(&Bench::new())))).1, []);
}

#[test]
fn a_cycle_through_a_handler_is_named_with_its_place() {
    let _alone = alone();
    ledger::record_places(true);
    for round in 0..ROUNDS {
        let (_, left) = leaks(|| {
            let bench = Bench::new();
            let commands = bench.commands();
            let held = commands.clone();
            let block = RcBlock::new(move |_: NonNull<ProtocolObject<dyn MTLCommandBuffer>>| {
                let _ = held.status();
            });
            // SAFETY: the block runs on the queue's thread, when nobody else uses what it holds.
            unsafe { commands.addCompletedHandler(RcBlock::as_ptr(&block)) };
            // Never committed: the command buffer holds the block, the block the command buffer.
        });
        let classes: Vec<&str> = left.iter().map(|leak| leak.class.as_str()).collect();
        assert!(classes.contains(&"SoftMTLCommandBuffer"), "round {round}: {classes:?}");
        assert!(classes.contains(&"block"), "round {round}: {classes:?}");
        left.iter().for_each(|leak| assert_place(leak, "a_cycle_through_a_handler"));
    }
    ledger::record_places(false);
}

#[test]
fn a_block_that_is_kept_is_named_with_its_place() {
    let _alone = alone();
    ledger::record_places(true);
    for round in 0..ROUNDS {
        let (_, left) = leaks(|| {
            let text = Rc::new(RefCell::new(String::new()));
            let block = RcBlock::new(move || text.borrow_mut().push('x'));
            std::mem::forget(block);
        });
        let classes: Vec<&str> = left.iter().map(|leak| leak.class.as_str()).collect();
        assert_eq!(classes, ["block"], "round {round}");
        assert_place(&left[0], "a_block_that_is_kept");
    }
    ledger::record_places(false);
}

/// Gives up the last reference of a block, then does something with it.
fn after_the_last_release(misuse: impl Fn(&RcBlock<dyn Fn() -> usize>)) -> Vec<&'static str> {
    broken(|_| {
        let seven = 7;
        let block = RcBlock::new(move || seven);
        let again = block.clone();
        // SAFETY: planted where a reference is given up twice; the runtime keeps the memory of the block.
        drop(unsafe { RcBlock::from_raw(RcBlock::as_ptr(&again)) });
        drop(block);
        misuse(&again);
        std::mem::forget(again);
    })
}

#[test]
fn misuse_of_a_block_that_is_gone_is_caught() {
    let _alone = alone();
    let call = after_the_last_release(|block| {
        block.call(());
    });
    assert_eq!(call, ["objc-use-after-free"]);
    assert_eq!(after_the_last_release(|block| std::mem::forget(block.clone())), ["objc-use-after-free"]);
    // SAFETY: planted, as above.
    let release = after_the_last_release(|block| drop(unsafe { RcBlock::from_raw(RcBlock::as_ptr(block)) }));
    assert_eq!(release, ["objc-over-release"]);
    let legal = broken(|_| {
        let seven = 7;
        let block = RcBlock::new(move || seven);
        let again = block.clone();
        drop(block);
        assert_eq!(again.call(()), 7);
    });
    assert_eq!(legal, Vec::<&str>::new());
}

#[test]
fn misuse_of_references_is_caught() {
    let _alone = alone();
    let over_release = broken(|bench| {
        let fence = bench.device.newFence().expect("a fence");
        let pointer = Retained::as_ptr(&fence).cast_mut();
        drop(fence);
        // SAFETY: planted; the runtime keeps the object as a zombie.
        drop(unsafe { Retained::from_raw(pointer) });
    });
    assert_eq!(over_release, ["objc-over-release"]);
    let use_after_free = broken(|bench| {
        let fence = bench.device.newFence().expect("a fence");
        let pointer = Retained::as_ptr(&fence);
        drop(fence);
        // SAFETY: planted, as above.
        let _: *mut objc2::runtime::AnyObject = unsafe { msg_send![&*pointer, device] };
    });
    assert_eq!(use_after_free, ["objc-use-after-free"]);
    let unknown = broken(|bench| {
        let fence = bench.device.newFence().expect("a fence");
        let object: &objc2::runtime::AnyObject = fence.as_ref();
        // objc2 would refuse the message itself in a debug build, so the runtime is asked directly.
        unsafe extern "C-unwind" {
            fn objc_msg_lookup(receiver: *const c_void, selector: *const c_char) -> *const c_void;
            fn sel_registerName(name: *const c_char) -> *const c_char;
        }
        // SAFETY: planted; the runtime answers with a method that does nothing.
        let found = unsafe {
            objc_msg_lookup(std::ptr::from_ref(object).cast(), sel_registerName(c"plantedSelector".as_ptr()))
        };
        assert!(!found.is_null());
    });
    assert_eq!(unknown, ["objc-unknown-selector"]);
    let legal = broken(|bench| {
        let fence = bench.device.newFence().expect("a fence");
        let again = fence.clone();
        drop(fence);
        drop(again);
    });
    assert_eq!(legal, Vec::<&str>::new());
}

#[test]
fn autorelease_without_a_pool_is_caught() {
    let _alone = alone();
    let plant = |pool: bool| {
        let thread = move || {
            let body = || {
                let device = MTLCreateSystemDefaultDevice().expect("a device");
                let fence = device.newFence().expect("a fence");
                let _ = Retained::autorelease_ptr(fence);
            };
            if pool { objc2::rc::autoreleasepool(|_| body()) } else { body() }
        };
        broken(|_| std::thread::spawn(thread).join().expect("the thread ends"))
    };
    assert_eq!(plant(false), ["objc-no-pool"]);
    assert!(plant(true).is_empty());
}

#[test]
fn pools_are_popped_where_they_were_pushed() {
    let _alone = alone();
    unsafe extern "C-unwind" {
        fn objc_autoreleasePoolPush() -> *mut std::ffi::c_void;
        fn objc_autoreleasePoolPop(pool: *mut std::ffi::c_void);
    }
    let plant = |twice: bool| {
        broken(|_| {
            // SAFETY: the second pop is planted; the runtime refuses it.
            unsafe {
                let pool = objc_autoreleasePoolPush();
                objc_autoreleasePoolPop(pool);
                if twice {
                    objc_autoreleasePoolPop(pool);
                }
            }
        })
    };
    assert_eq!(plant(true), ["objc-wrong-pool"]);
    assert!(plant(false).is_empty());
}

#[test]
fn faults_on_demand_come_as_asked_and_only_then() {
    let _alone = alone();
    objc2::rc::autoreleasepool(|_| faults_on_demand());
}

fn faults_on_demand() {
    let bench = Bench::new();
    faults::fail_allocation_after(1);
    assert!(bench.device.newBufferWithLength_options(16, SHARED).is_some());
    assert!(bench.device.newBufferWithLength_options(16, SHARED).is_none());
    assert!(bench.device.newBufferWithLength_options(16, SHARED).is_some());
    faults::fail_pipeline_after(0);
    let function = bench.device.newDefaultLibrary().expect("a library");
    let function =
        function.newFunctionWithName(&objc2_foundation::NSString::from_str("double")).expect("a kernel");
    assert!(bench.device.newComputePipelineStateWithFunction_error(&function).is_err());
    assert!(bench.device.newComputePipelineStateWithFunction_error(&function).is_ok());
    for error in CommandBufferError::ALL {
        faults::fail_command_buffer_after(1, error);
        for turn in 0..3 {
            let commands = bench.commands();
            commands.commit();
            commands.waitUntilCompleted();
            let code = commands.error().map(|error| error.code());
            assert_eq!(code, (turn == 1).then_some(error as isize), "{error:?} {turn}");
        }
    }
    let codes: Vec<isize> = CommandBufferError::ALL.iter().map(|error| *error as isize).collect();
    assert_eq!(codes, [1, 2, 3, 4, 7, 8, 9, 10, 11, 12], "MTLCommandBufferError, None and aliases left out");
    faults::lose_device();
    for _ in 0..2 {
        let x = bench.buffer(4, SHARED);
        let commands = bench.commands();
        let encoder = bench.serial(&commands);
        bench.dispatch(&encoder, "count", &[(&x, 0)], 4);
        encoder.endEncoding();
        commands.commit();
        commands.waitUntilCompleted();
        let code = commands.error().map(|error| error.code());
        assert_eq!(code, Some(CommandBufferError::DeviceRemoved as isize));
        assert_eq!(commands.status(), MTLCommandBufferStatus::Error);
        assert!(floats(&x, 4).iter().all(|x| x.is_nan()), "nothing ran");
    }
    faults::clear();
    faults::delay_completion(std::time::Duration::from_millis(50));
    let start = std::time::Instant::now();
    let commands = bench.commands();
    commands.commit();
    assert_ne!(commands.status(), MTLCommandBufferStatus::Completed);
    commands.waitUntilCompleted();
    assert!(start.elapsed().as_millis() >= 50);
    assert_eq!(commands.status(), MTLCommandBufferStatus::Completed);
    faults::clear();
}

#[test]
fn counters_tell_what_was_encoded() {
    let _alone = alone();
    softmetal::quiesce();
    counters::take();
    drop(product(&Bench::new()));
    let commands = |of: &[(&str, u64)]| of.iter().map(|(name, n)| (name.to_string(), *n)).collect();
    let one = counters::Counters {
        command_buffers: 1,
        encoders: 1,
        commands: commands(&[("count", 1), ("double", 1)]),
        host_waits: 1,
        pipelines: 2,
        bytes_bound: 3 * 256,
        bytes_allocated: 512,
        ..counters::Counters::default()
    };
    assert_eq!(counters::take(), one);
    objc2::rc::autoreleasepool(|_| {
        let bench = Bench::new();
        let (x, event) = (bench.buffer(64, SHARED), bench.device.newSharedEvent().expect("an event"));
        let commands = bench.commands();
        let encoder = bench.concurrent(&commands);
        bench.dispatch(&encoder, "count", &[(&x, 192)], 16);
        encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        // SAFETY: four bytes are given.
        unsafe { encoder.setBytes_length_atIndex(NonNull::from(&7u32).cast(), 4, 1) };
        encoder.endEncoding();
        commands.encodeSignalEvent_value(ProtocolObject::from_ref(&*event), 1);
        commands.commit();
        assert!(event.waitUntilSignaledValue_timeoutMS(1, 10_000));
    });
    softmetal::quiesce();
    let two = counters::Counters {
        command_buffers: 1,
        encoders: 1,
        commands: commands(&[("count", 1)]),
        barriers: 1,
        host_waits: 1,
        pipelines: 1,
        bytes_set: 4,
        bytes_bound: 64,
        bytes_allocated: 256,
        ..counters::Counters::default()
    };
    assert_eq!(counters::take(), two);
    assert_eq!(counters::take(), counters::Counters::default());
}

#[test]
fn live_objects_are_counted_by_class() {
    let _alone = alone();
    objc2::rc::autoreleasepool(|_| {
        let bench = Bench::new();
        let mark = ledger::mark();
        let living = || {
            let of = ledger::living_since(mark);
            of.into_iter()
                .filter(|(class, _)| !softmetal::IMMORTAL.contains(&class.as_str()))
                .collect::<Vec<_>>()
        };
        let buffers = [bench.buffer(4, SHARED), bench.buffer(4, SHARED)];
        let fence = bench.device.newFence().expect("a fence");
        assert_eq!(living(), [("SoftMTLBuffer".to_owned(), 2), ("SoftMTLFence".to_owned(), 1)]);
        drop((buffers, fence));
        assert_eq!(living(), []);
    });
}
