//! What concerns the process as a whole, each in a process of its own: settings by the environment, memory that ends
//! it, rules that fail it.
#![allow(missing_docs)]

mod bench;

use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::Mutex;

use bench::{Bench, Buffer, SHARED, UNTRACKED, floats};
use objc2::rc::autoreleasepool;
use objc2_foundation::NSString;
use objc2_metal::*;
use softmetal::check::take_logged;
use softmetal::native;

/// Names the part of a test that the process of its own is for.
const PART: &str = "SOFTMETAL_TEST_PART";

/// The part that this process is for; none in the test's first process.
fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Runs a test again in a process of its own, for one part of it and with these settings.
fn process(test: &str, part: &str, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    for name in ["SOFTMETAL_SEED", "SOFTMETAL_VALIDATION", "SOFTMETAL_POISON", "SOFTMETAL_BACKTRACE"] {
        command.env_remove(name);
    }
    command.args(["--exact", test, "--nocapture"]).env(PART, part).envs(settings.iter().copied());
    command.output().expect("the process starts")
}

/// The lines of a process that begin with `start`, without it.
fn lines<'a>(output: &'a [u8], start: &str) -> Vec<&'a str> {
    let text = std::str::from_utf8(output).expect("a text");
    text.lines().filter_map(|line| line.split_once(start)).map(|(_, rest)| rest).collect()
}

fn size(width: usize) -> MTLSize {
    MTLSize { width, height: 1, depth: 1 }
}

const TICKETS: &str =
    "kernel void tickets(device atomic_uint* next [[buffer(0)]], device uint* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]) { y[i] = atomic_fetch_add_explicit(next, 1, memory_order_relaxed); }";

/// The order in which a kernel's threads ran, in eight threadgroups of eight.
fn order_of_threads(bench: &Bench) -> Vec<u32> {
    let source = NSString::from_str(&format!("#include <metal_stdlib>\nusing namespace metal;\n{TICKETS}"));
    let library = bench.device.newLibraryWithSource_options_error(&source, None).expect("a library");
    let function = library.newFunctionWithName(&NSString::from_str("tickets")).expect("a kernel");
    let pipeline = bench.device.newComputePipelineStateWithFunction_error(&function).expect("a pipeline");
    let (next, y) = (bench.buffer(1, SHARED), bench.buffer(64, SHARED));
    // SAFETY: the buffer has four bytes, and the device does not use it yet.
    unsafe { next.contents().cast::<u32>().write(0) };
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    encoder.setComputePipelineState(&pipeline);
    for (index, buffer) in [&next, &y].into_iter().enumerate() {
        // SAFETY: the offset lies within the buffer.
        unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), 0, index) };
    }
    encoder.dispatchThreads_threadsPerThreadgroup(size(64), size(8));
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    floats(&y, 64).into_iter().map(f32::to_bits).collect()
}

/// The order in which eight dispatches ran that nothing orders.
fn order_of_dispatches(bench: &Bench) -> Vec<usize> {
    static ORDER: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    native::define("note", |launch| {
        ORDER.lock().expect("a list").push(launch.grid[0]);
        Ok(())
    });
    let commands = bench.commands();
    let encoder = bench.concurrent(&commands);
    encoder.setComputePipelineState(&bench.pipeline("note"));
    (1..=8).for_each(|threads| encoder.dispatchThreads_threadsPerThreadgroup(size(threads), size(8)));
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    ORDER.lock().expect("a list").clone()
}

#[test]
fn a_seed_is_printed_and_repeats_a_run() {
    if part().is_some() {
        return autoreleasepool(|_| {
            let bench = Bench::new();
            println!("threads: {:?}", order_of_threads(&bench));
            println!("dispatches: {:?}", order_of_dispatches(&bench));
        });
    }
    let run = |settings: &[(&str, &str)]| {
        let output = process("a_seed_is_printed_and_repeats_a_run", "orders", settings);
        assert!(output.status.success(), "{output:?}");
        let orders = ["threads: ", "dispatches: "].map(|what| lines(&output.stdout, what).concat());
        (orders, lines(&output.stderr, "repeats this run").len(), output.stderr)
    };
    let (first, printed, said) = run(&[]);
    assert_eq!(printed, 1, "without a seed one is printed");
    let seed = lines(&said, "SOFTMETAL_SEED=")[0].split(' ').next().expect("a number").to_owned();
    let (again, printed, _) = run(&[("SOFTMETAL_SEED", &seed)]);
    assert_eq!((&again, printed), (&first, 0), "seed {seed}");
    let other: Vec<_> = ["11", "12", "13"].map(|seed| run(&[("SOFTMETAL_SEED", seed)]).0).into();
    for kind in 0..2 {
        assert!(!first[kind].is_empty());
        assert!(other.iter().any(|orders| orders[kind] != first[kind]), "all seeds give {:?}", first[kind]);
    }
    let natural: Vec<u32> = (0..64).collect();
    assert!(other.iter().any(|orders| orders[0] != format!("{natural:?}")));
}

/// A byte of the host's before, within or behind a buffer of whole pages.
fn touch(bench: &Bench, part: &str) {
    let buffer = bench.buffer(4096, SHARED);
    let start = buffer.contents().cast::<u8>();
    // SAFETY: planted, except for the first and the last byte; the pages on both sides end the process.
    unsafe {
        match part {
            "first" => start.write(1),
            "last" => start.add(16383).write(1),
            "before" => start.sub(1).write(1),
            "behind" => start.add(16384).write(1),
            // The end of a buffer is at its guard page whatever its length is, in steps of 16 bytes.
            "behind a short one" => {
                let short = bench.buffer(4, SHARED);
                short.contents().cast::<u8>().add(16).write(1);
            }
            _ => panic!("no part {part}"),
        }
    }
}

#[test]
fn the_host_cannot_leave_a_buffer() {
    if let Some(part) = part() {
        return autoreleasepool(|_| touch(&Bench::new(), &part));
    }
    let ended = |part: &str| {
        let status = process("the_host_cannot_leave_a_buffer", part, &[]).status;
        (status.success(), status.signal())
    };
    for part in ["first", "last"] {
        assert_eq!(ended(part), (true, None), "{part}");
    }
    for part in ["before", "behind", "behind a short one"] {
        assert_eq!(ended(part), (false, Some(libc::SIGSEGV)), "{part}");
    }
}

#[test]
fn new_memory_holds_nans_unless_it_is_to_be_like_a_macs() {
    if part().is_some() {
        return autoreleasepool(|_| {
            let bench = Bench::new();
            let descriptor = MTLHeapDescriptor::new();
            descriptor.setSize(1024);
            descriptor.setStorageMode(MTLStorageMode::Shared);
            let heap = bench.device.newHeapWithDescriptor(&descriptor).expect("a heap");
            let of_heap = heap.newBufferWithLength_options(256, SHARED).expect("a buffer");
            let buffers = [bench.buffer(64, SHARED), bench.buffer(64, UNTRACKED), of_heap];
            let bits = |buffer: &Buffer| floats(buffer, 64).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let all: std::collections::BTreeSet<u32> = buffers.iter().flat_map(bits).collect();
            println!("bits: {all:x?}");
        });
    }
    let test = "new_memory_holds_nans_unless_it_is_to_be_like_a_macs";
    let bits = |settings: &[(&str, &str)]| {
        let output = process(test, "bits", settings);
        assert!(output.status.success(), "{output:?}");
        lines(&output.stdout, "bits: ").concat()
    };
    assert_eq!(bits(&[]), "{ffffffff}");
    assert_eq!(bits(&[("SOFTMETAL_POISON", "0")]), "{0}");
}

/// Breaks a documented rule on the device, then a suspected one in the host's call.
fn break_rules(bench: &Bench, part: &str) {
    let buffer = bench.buffer(4, SHARED);
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    encoder.setComputePipelineState(&bench.pipeline("count"));
    // SAFETY: the offset lies within; eight numbers do not fit, which is planted.
    unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer), 0, 0) };
    encoder.dispatchThreads_threadsPerThreadgroup(size(8), size(8));
    encoder.endEncoding();
    commands.commit();
    if part == "nobody waits" {
        return softmetal::quiesce();
    }
    let told = catch_unwind(AssertUnwindSafe(|| commands.waitUntilCompleted()));
    let text =
        |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned().expect("a text");
    println!(
        "documented: {}",
        told.map_or_else(text, |()| "quiet".to_owned()).lines().next().expect("a line")
    );
    let told = catch_unwind(AssertUnwindSafe(|| {
        _ = bench.device.newBufferWithLength_options(0, SHARED);
    }));
    println!(
        "suspected: {}",
        told.map_or_else(text, |()| "quiet".to_owned()).lines().next().expect("a line")
    );
    let logged: Vec<&str> = take_logged().iter().map(|violation| violation.rule).collect();
    println!("logged: {logged:?}");
}

#[test]
fn a_documented_rule_panics_and_a_suspected_one_is_logged_unless_told_otherwise() {
    if let Some(part) = part() {
        return autoreleasepool(|_| break_rules(&Bench::new(), &part));
    }
    let test = "a_documented_rule_panics_and_a_suspected_one_is_logged_unless_told_otherwise";
    let both = r#"["kernel-out-of-range", "empty-buffer"]"#;
    for (mode, documented, suspected, logged) in [
        ("", true, false, both),
        ("panic", true, true, both),
        ("log", false, false, both),
        ("off", false, false, "[]"),
    ] {
        let output = process(test, "waits", &[("SOFTMETAL_VALIDATION", mode)]);
        assert!(output.status.success(), "{mode}: {output:?}");
        let [first, second, third] =
            ["documented: ", "suspected: ", "logged: "].map(|what| lines(&output.stdout, what).concat());
        let panics = |line: &str, rule: &str| line.starts_with(&format!("softmetal: {rule} "));
        assert_eq!(
            (panics(&first, "kernel-out-of-range"), first == "quiet"),
            (documented, !documented),
            "{mode}"
        );
        assert_eq!((panics(&second, "empty-buffer"), second == "quiet"), (suspected, !suspected), "{mode}");
        assert_eq!(third, logged, "{mode}");
    }
}

#[test]
fn a_rule_that_the_device_finds_broken_fails_the_process_if_nobody_waits() {
    if let Some(part) = part() {
        return autoreleasepool(|_| break_rules(&Bench::new(), &part));
    }
    let test = "a_rule_that_the_device_finds_broken_fails_the_process_if_nobody_waits";
    for (part, mode, code) in
        [("nobody waits", "", 101), ("waits", "", 0), ("nobody waits", "log", 0), ("nobody waits", "off", 0)]
    {
        let output = process(test, part, &[("SOFTMETAL_VALIDATION", mode)]);
        assert_eq!(output.status.code(), Some(code), "{part} {mode}: {output:?}");
        assert_eq!(lines(&output.stderr, "that nobody waited for").len(), usize::from(code != 0));
    }
}

#[test]
fn places_are_recorded_when_the_environment_asks_for_it() {
    if part().is_some() {
        return softmetal::owned(|| std::mem::forget(Bench::new().buffer(4, SHARED)));
    }
    let test = "places_are_recorded_when_the_environment_asks_for_it";
    for (setting, expected) in [("1", true), ("0", false)] {
        let output = process(test, "leak", &[("SOFTMETAL_BACKTRACE", setting)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("softmetal: objc-outlived "), "{said}");
        assert_eq!(said.contains("made at"), expected, "{said}");
    }
}
