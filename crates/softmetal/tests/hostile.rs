//! Unfriendly Macs: each fault that a test can install, and its nearest harmless neighbor.
#![allow(missing_docs)]

mod bench;

use std::panic::catch_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bench::{Bench, Buffer, Commands, Pipeline, SHARED, broken, floats};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2::{AllocAnyThread, msg_send};
use objc2_foundation::{NSError, NSProcessInfo, NSString, NSUnderlyingErrorKey};
use objc2_metal::*;
use objc2_metal_performance_shaders::*;
use softmetal::check::capture;
use softmetal::faults::{Kill, Victims, kill};
use softmetal::system::{Devices, Gpu, Mac, Oversized, kernel_release};
use softmetal::{counters, leaks};

/// The Mac is the process's: tests that replace it run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(width: usize) -> MTLSize {
    MTLSize { width, height: 1, depth: 1 }
}

type Library = Retained<ProtocolObject<dyn MTLLibrary>>;

fn library(
    bench: &Bench,
    source: &str,
    version: Option<MTLLanguageVersion>,
) -> Result<Library, Retained<NSError>> {
    let options = MTLCompileOptions::new();
    if let Some(version) = version {
        options.setLanguageVersion(version);
    }
    let source = format!("#include <metal_stdlib>\nusing namespace metal;\n{source}");
    bench.device.newLibraryWithSource_options_error(&NSString::from_str(&source), Some(&options))
}

fn pipeline(bench: &Bench, library: &Library, name: &str) -> Result<Pipeline, String> {
    let function = library.newFunctionWithName(&NSString::from_str(name)).expect("a kernel");
    let made = bench.device.newComputePipelineStateWithFunction_error(&function);
    made.map_err(|error| error.localizedDescription().to_string())
}

/// A buffer of zeros.
fn zeros(bench: &Bench, count: usize) -> Buffer {
    let buffer = bench.buffer(count, SHARED);
    // SAFETY: the buffer has so many floats, and the device does not use it yet.
    (0..count).for_each(|i| unsafe { buffer.contents().cast::<f32>().add(i).write(0.0) });
    buffer
}

/// Dispatches `count` over each of these buffers, `threads` of a threadgroup at a time.
fn counts(bench: &Bench, pipeline: &Pipeline, buffers: &[Buffer], threads: usize) -> Commands {
    let commands = bench.commands();
    let encoder = bench.serial(&commands);
    encoder.setComputePipelineState(pipeline);
    for buffer in buffers {
        // SAFETY: the offset lies within the buffer.
        unsafe { encoder.setBuffer_offset_atIndex(Some(buffer), 0, 0) };
        encoder.dispatchThreads_threadsPerThreadgroup(size(buffer.length() / 4), size(threads));
    }
    encoder.endEncoding();
    commands.commit();
    commands.waitUntilCompleted();
    commands
}

#[test]
fn without_a_default_device_the_list_has_the_gpu_or_is_empty() {
    let _alone = alone();
    autoreleasepool(|_| {
        for (devices, default, listed) in
            [(Devices::Default, true, 1), (Devices::ListOnly, false, 1), (Devices::None, false, 0)]
        {
            let _mac = Mac { devices, ..Mac::default() }.install();
            assert_eq!(MTLCreateSystemDefaultDevice().is_some(), default, "{devices:?}");
            assert_eq!(MTLCopyAllDevices().len(), listed, "{devices:?}");
        }
        assert!(MTLCreateSystemDefaultDevice().is_some(), "the guard puts the friendly Mac back");
    });
}

const SUMS: &str = "kernel void total(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    float sum = simd_sum(float(i)); if (i == 0) y[0] = sum; }";
const PLAIN: &str = "// simd_sum is named in a comment only.
kernel void count(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
[[kernel, max_total_threads_per_threadgroup(1024)]] void declared(
    device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }";

#[test]
fn a_paravirtual_gpu_has_family_5_and_no_simd_reductions() {
    let _alone = alone();
    let _mac = Mac::with(Gpu::paravirtual()).install();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        assert_eq!(bench.device.name().to_string(), "Apple Paravirtual device");
        let families = [MTLGPUFamily::Apple5, MTLGPUFamily::Apple6, MTLGPUFamily::Apple7];
        assert_eq!(families.map(|family| bench.device.supportsFamily(family)), [true, false, false]);
        let refused = pipeline(&bench, &library(&bench, SUMS, None).expect("compiles"), "total");
        assert!(refused.unwrap_err().contains("no SIMD-scoped reductions"));
        pipeline(&bench, &library(&bench, PLAIN, None).expect("compiles"), "count").expect("a pipeline");
    });
    assert_eq!(left, [], "nothing is left");
    drop(_mac);
    autoreleasepool(|_| {
        let bench = Bench::new();
        assert!(bench.device.supportsFamily(MTLGPUFamily::Apple7));
        pipeline(&bench, &library(&bench, SUMS, None).expect("compiles"), "total").expect("a pipeline");
    });
}

/// The objects that Metal Performance Shaders return for a GPU: a product, and a matrix.
fn shaders(bench: &Bench) -> (Option<Retained<MPSMatrixMultiplication>>, Option<Retained<MPSMatrix>>) {
    let buffer = bench.buffer(16, SHARED);
    // SAFETY: the arguments are those of the initializers, which may return nil.
    unsafe {
        let product = MPSMatrixMultiplication::alloc();
        let product = msg_send![product, initWithDevice: &*bench.device, resultRows: 4_usize, resultColumns: 4_usize, interiorColumns: 4_usize];
        let float = MPSDataType::Float32;
        let descriptor =
            MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(4, 4, 16, float);
        let matrix = msg_send![MPSMatrix::alloc(), initWithBuffer: &*buffer, descriptor: &*descriptor];
        (product, matrix)
    }
}

#[test]
fn a_gpu_without_mps_gives_nil_and_the_question_is_counted() {
    let _alone = alone();
    for (gpu, supported) in [(Gpu::paravirtual(), false), (Gpu::default(), true)] {
        let _mac = Mac::with(gpu).install();
        let (_, left) = leaks(|| {
            let bench = Bench::new();
            counters::take();
            // SAFETY: the device is one.
            assert_eq!(unsafe { MPSSupportsMTLDevice(Some(&bench.device)) }, supported);
            assert_eq!(counters::take().mps_support_queries, 1);
            let (product, matrix) = shaders(&bench);
            assert_eq!((product.is_some(), matrix.is_some()), (supported, supported));
        });
        assert_eq!(left, [], "nothing is left");
    }
    assert_eq!(counters::take().mps_support_queries, 0, "nobody else asks");
}

#[test]
fn a_matrix_of_columns_at_the_end_of_a_buffer_may_not_fit() {
    let _alone = alone();
    // 3 rows of 4 columns of 6: the last element ends at byte 64, the last row at 72.
    let made = |bytes: usize, offset: usize| {
        let (found, broken) = capture(|| {
            autoreleasepool(|_| {
                let bench = Bench::new();
                let buffer = bench.buffer(bytes / 4, SHARED);
                // SAFETY: the arguments are those of the initializer, which may return nil.
                unsafe {
                    let float = MPSDataType::Float32;
                    let descriptor = MPSMatrixDescriptor::matrixDescriptorWithRows_columns_rowBytes_dataType(
                        3, 4, 24, float,
                    );
                    let matrix: Option<Retained<MPSMatrix>> = msg_send![MPSMatrix::alloc(), initWithBuffer: &*buffer, offset: offset, descriptor: &*descriptor];
                    matrix.is_some()
                }
            })
        });
        (found, broken.iter().map(|violation| violation.rule).collect::<Vec<_>>())
    };
    let small = "mps-matrix-buffer-small";
    assert_eq!([made(64, 0), made(72, 8)], [(true, vec![]), (true, vec![])]);
    let _mac = Mac { whole_rows: true, ..Mac::default() }.install();
    assert_eq!([made(64, 0), made(72, 8)], [(false, vec![small]), (false, vec![small])]);
    assert_eq!([made(72, 0), made(80, 8)], [(true, vec![]), (true, vec![])]);
}

#[test]
fn an_amd_gpu_has_simd_groups_of_64_and_no_apple_family() {
    let _alone = alone();
    let run = || {
        autoreleasepool(|_| {
            let bench = Bench::new();
            let pipeline = bench.pipeline("count");
            let commands = counts(&bench, &pipeline, &[zeros(&bench, 64)], 64);
            let device = &bench.device;
            let facts = (device.hasUnifiedMemory(), device.supportsFamily(MTLGPUFamily::Apple1));
            assert!(device.supportsFamily(MTLGPUFamily::Mac2));
            let error = commands.error().map(|error| error.localizedDescription().to_string());
            (pipeline.threadExecutionWidth(), facts, error)
        })
    };
    let mac = Mac::with(Gpu::amd()).install();
    let (width, facts, error) = run();
    assert_eq!((width, facts), (64, (false, false)));
    assert!(error.expect("it does not run").contains("SIMD groups of 64"));
    drop(mac);
    assert_eq!(run(), (32, (true, true), None));
}

#[test]
fn limits_of_threads_are_lower_for_all_for_undeclared_or_by_name() {
    let _alone = alone();
    let limits = |change: fn(&mut Mac)| {
        let mut mac = Mac::default();
        change(&mut mac);
        let _mac = mac.install();
        autoreleasepool(|_| {
            let bench = Bench::new();
            let library = library(&bench, PLAIN, None).expect("compiles");
            ["count", "declared"].map(|name| {
                pipeline(&bench, &library, name).expect("a pipeline").maxTotalThreadsPerThreadgroup()
            })
        })
    };
    assert_eq!(limits(|_| ()), [1024, 1024]);
    assert_eq!(limits(|mac| mac.threads.undeclared = Some(768)), [768, 1024]);
    assert_eq!(limits(|mac| mac.threads.every = Some(896)), [896, 896]);
    assert_eq!(limits(|mac| mac.threads.kernels = vec![("declared".to_owned(), 512)]), [1024, 512]);
}

#[test]
fn an_oversized_dispatch_is_reported_or_does_nothing() {
    let _alone = alone();
    let run = |threads: usize| {
        let bench = Bench::new();
        let buffer = zeros(&bench, 1024);
        let commands = counts(&bench, &bench.pipeline("count"), std::slice::from_ref(&buffer), threads);
        assert_eq!(commands.status(), MTLCommandBufferStatus::Completed);
        floats(&buffer, 1024)[1023]
    };
    let mut mac = Mac::default();
    mac.threads.every = Some(512);
    let reported = mac.clone().install();
    assert_eq!(broken(|_| assert_eq!(run(1024), 0.0)), ["threads-per-threadgroup"]);
    drop(reported);
    let _mac = Mac { oversized: Oversized::Dropped, ..mac }.install();
    counters::take();
    assert_eq!(broken(|_| assert_eq!(run(1024), 0.0, "nothing was written")), [""; 0]);
    assert_eq!(counters::take().dropped.get("count"), Some(&1));
    assert_eq!(broken(|_| assert_eq!(run(512), 1023.0)), [""; 0], "at the limit it runs");
    assert!(counters::take().dropped.is_empty());
}

/// The code of a command buffer's error, its text, and domain and code of the one that underlies it.
fn ending(commands: &Commands) -> Option<(isize, String, String, isize)> {
    let error = commands.error()?;
    assert_eq!(error.domain().to_string(), "MTLCommandBufferErrorDomain");
    // SAFETY: the string is a constant.
    let object = error.userInfo().objectForKey(unsafe { NSUnderlyingErrorKey })?;
    let under = object.downcast::<NSError>().expect("an error");
    Some((error.code(), error.localizedDescription().to_string(), under.domain().to_string(), under.code()))
}

#[test]
fn a_killed_command_buffer_has_the_underlying_code_and_ran_in_part() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let pipeline = bench.pipeline("count");
        let run = || {
            let buffers = [(); 4].map(|()| zeros(&bench, 64));
            let commands = counts(&bench, &pipeline, &buffers, 32);
            (ending(&commands), buffers.map(|buffer| floats(&buffer, 64)[63]))
        };
        let done = 63.0;
        for (how, code, text) in [
            (Kill::Hang, 3, "Caused GPU Hang Error (00000003:"),
            (Kill::InnocentVictim, 5, "Discarded (victim of GPU error/recovery) (00000005:"),
            (Kill::ImpactingInteractivity, 14, "Impacting Interactivity (0000000e:"),
        ] {
            counters::take();
            let killing = kill(how, Victims::Next { skipped: 1, commands: 2 });
            assert_eq!(run(), (None, [done; 4]), "the first is skipped");
            let (ending, values) = run();
            let (outer, said, domain, under) = ending.expect("it is killed");
            assert_eq!((outer, domain.as_str(), under), (1, "IOGPUCommandQueueErrorDomain", code));
            assert!(said.starts_with(text), "{said}");
            assert_eq!(values, [done, done, 0.0, 0.0], "two commands ran");
            assert_eq!(run(), (None, [done; 4]), "one is killed");
            drop(killing);
            assert_eq!(counters::take().killed, 1);
        }
    });
    assert_eq!(left, [], "nothing is left");
}

#[test]
fn command_buffers_above_a_size_are_killed_and_halves_are_not() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let pipeline = bench.pipeline("count");
        let code = |buffers: usize| {
            let buffers: Vec<Buffer> = (0..buffers).map(|_| zeros(&bench, 64)).collect();
            ending(&counts(&bench, &pipeline, &buffers, 32)).map(|(.., code)| code)
        };
        for victims in [Victims::Longer(2), Victims::Larger(2 * 64)] {
            let killing = kill(Kill::ImpactingInteractivity, victims);
            assert_eq!([4, 3, 2, 4].map(code), [Some(14), Some(14), None, Some(14)], "{victims:?}");
            drop(killing);
            assert_eq!(code(4), None);
        }
        // One that comes to its end is killed all the same.
        let _killing = kill(Kill::InnocentVictim, Victims::Next { skipped: 0, commands: 9 });
        assert_eq!([1, 1].map(code), [Some(5), None]);
    });
}

#[test]
fn an_error_without_another_below_it_has_no_underlying_error() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        softmetal::faults::fail_command_buffer_after(0, softmetal::faults::CommandBufferError::Internal);
        let commands = counts(&bench, &bench.pipeline("count"), &[zeros(&bench, 64)], 32);
        softmetal::faults::clear();
        assert_eq!(commands.error().expect("an error").code(), 1);
        assert_eq!(ending(&commands), None);
        assert_eq!(commands.error().expect("an error").underlyingErrors().len(), 0);
    });
}

#[test]
fn the_kernel_and_the_compatibility_version_differ() {
    let _alone = alone();
    autoreleasepool(|_| {
        let versions = || {
            let version = NSProcessInfo::processInfo().operatingSystemVersion();
            (version.majorVersion, kernel_release())
        };
        assert_eq!(versions(), (15, "24.6.0".to_owned()));
        let mac = Mac::compatibility_version().install();
        assert_eq!(versions(), (16, "26.0.0".to_owned()));
        let inner = Mac { kernel_release: "25.1.0".to_owned(), ..Mac::default() }.install();
        assert_eq!(versions(), (15, "25.1.0".to_owned()));
        drop(inner);
        assert_eq!(versions(), (16, "26.0.0".to_owned()), "guards nest");
        drop(mac);
        assert_eq!(versions(), (15, "24.6.0".to_owned()));
    });
}

#[test]
fn macos_14_has_no_residency_sets() {
    let _alone = alone();
    let mac = Mac::sonoma().install();
    let missing = catch_unwind(|| {
        autoreleasepool(|_| MTLResidencySetDescriptor::new());
    });
    let text = missing.expect_err("the class is not there");
    let text = text.downcast_ref::<String>().expect("a text");
    assert!(text.contains("class MTLResidencySetDescriptor could not be found"), "{text}");
    autoreleasepool(|_| assert!(MTLCreateSystemDefaultDevice().is_some(), "the GPU is there"));
    drop(mac);
    autoreleasepool(|_| {
        let descriptor = MTLResidencySetDescriptor::new();
        Bench::new().device.newResidencySetWithDescriptor_error(&descriptor).expect("a set");
    });
}

#[test]
fn the_architecture_is_that_of_the_installed_gpu() {
    let _alone = alone();
    autoreleasepool(|_| {
        let name = || Bench::new().device.architecture().name().to_string();
        let mac = Mac::with(Gpu { architecture: "applegpu_g17s".to_owned(), ..Gpu::default() }).install();
        assert_eq!(name(), "applegpu_g17s");
        drop(mac);
        assert_eq!(name(), "applegpu_g13g");
    });
}

const BRAIN: &str = "kernel void brain(device bfloat* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = bfloat(i); }";
/// As candle's kernels are written.
const GUARDED: &str =
    "kernel void count(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
#if defined(__HAVE_BFLOAT__)
kernel void brain(device bfloat* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = bfloat(i); }
#endif";

#[test]
fn an_old_sdk_has_no_bfloat_unless_the_version_is_named() {
    let _alone = alone();
    let old = Mac { old_sdk: true, ..Mac::default() }.install();
    autoreleasepool(|_| {
        let bench = Bench::new();
        counters::take();
        let error = library(&bench, BRAIN, None).expect_err("there is no bfloat");
        assert_eq!((error.domain().to_string().as_str(), error.code()), ("MTLLibraryErrorDomain", 3));
        let said = error.localizedDescription().to_string();
        assert_eq!(said, "program_source:3:1: error: unknown type name 'bfloat'");
        assert_eq!(MTLCompileOptions::new().languageVersion(), MTLLanguageVersion::Version3_0);
        let names = |library: Library| library.functionNames().iter().map(|name| name.to_string()).collect();
        let guarded: Vec<String> = names(library(&bench, GUARDED, None).expect("compiles"));
        assert_eq!(guarded, ["count"], "what the macro guards is left out");
        let named = Some(MTLLanguageVersion::Version3_1);
        assert_eq!(names(library(&bench, BRAIN, named).expect("compiles")), ["brain"] as [&str; 1]);
        let counted: Vec<_> = counters::take().languages.into_iter().collect();
        assert_eq!(counted, [("3.1".to_owned(), 1), ("default".to_owned(), 2)]);
    });
    drop(old);
    autoreleasepool(|_| library(&Bench::new(), BRAIN, None).expect("a new SDK's default knows bfloat"));
}

#[test]
fn a_language_newer_than_the_system_is_refused() {
    let _alone = alone();
    let _mac = Mac::sonoma().install();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let newer =
            library(&bench, PLAIN, Some(MTLLanguageVersion::Version3_2)).expect_err("not on macOS 14");
        assert!(newer.localizedDescription().to_string().contains("3.2 is not supported on this OS"));
        library(&bench, PLAIN, Some(MTLLanguageVersion::Version3_1)).expect("compiles");
    });
}
