//! Binary archives, and pipelines made from descriptors.
#![allow(missing_docs)]

mod bench;

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use bench::{Bench, Function, Pipeline, broken};
use block2::RcBlock;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSError, NSString, NSURL};
use objc2_metal::*;
use softmetal::{counters, leaks};

type Archive = Retained<ProtocolObject<dyn MTLBinaryArchive>>;

/// The tests of this file look at counts of the whole process, so they run one after the other.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A place for a file of one test, which is removed in the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("softmetal-archive-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("kernels of this test.archive")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(path.to_str().expect("a path in UTF-8")))
}

/// `y[i] = factor * x[i]`, where the factor is part of the source and `twice` a function constant.
fn metal(bench: &Bench, factor: u32, twice: bool) -> Function {
    let source = format!(
        "#include <metal_stdlib>\nusing namespace metal;\nconstant bool twice [[function_constant(0)]];\n\
         kernel void scaled(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {{\n\
             y[i] *= twice ? 2 * {factor} : {factor};\n}}\n"
    );
    let library = bench.device.newLibraryWithSource_options_error(&NSString::from_str(&source), None);
    let library = library.unwrap_or_else(|error| panic!("{}", error.localizedDescription()));
    let values = MTLFunctionConstantValues::new();
    let value = std::ptr::NonNull::from(&twice).cast();
    // SAFETY: the value is a bool.
    unsafe { values.setConstantValue_type_atIndex(value, MTLDataType::Bool, 0) };
    let name = NSString::from_str("scaled");
    library.newFunctionWithName_constantValues_error(&name, &values).expect("the kernel")
}

fn descriptor(function: &Function, archives: &[&Archive]) -> Retained<MTLComputePipelineDescriptor> {
    let descriptor = MTLComputePipelineDescriptor::new();
    descriptor.setComputeFunction(Some(function));
    if !archives.is_empty() {
        let archives: Vec<&ProtocolObject<dyn MTLBinaryArchive>> = archives.iter().map(|a| &***a).collect();
        descriptor.setBinaryArchives(Some(&NSArray::from_slice(&archives)));
    }
    descriptor
}

fn pipeline(
    bench: &Bench,
    descriptor: &MTLComputePipelineDescriptor,
    options: MTLPipelineOption,
) -> Result<Pipeline, Retained<NSError>> {
    bench.device.newComputePipelineStateWithDescriptor_options_reflection_error(descriptor, options, None)
}

/// Whether a pipeline is found in an archive.
fn hit(bench: &Bench, function: &Function, archive: &Archive) -> bool {
    let descriptor = descriptor(function, &[archive]);
    match pipeline(bench, &descriptor, MTLPipelineOption::FailOnBinaryArchiveMiss) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.localizedDescription().to_string().contains("none of the binary archives"));
            false
        }
    }
}

fn open(bench: &Bench, path: Option<&Path>) -> Result<Archive, Retained<NSError>> {
    let descriptor = MTLBinaryArchiveDescriptor::new();
    if let Some(path) = path {
        descriptor.setUrl(Some(&url(path)));
    }
    bench.device.newBinaryArchiveWithDescriptor_error(&descriptor)
}

#[test]
fn an_archive_holds_what_was_added_and_keeps_it_in_its_file() {
    let _alone = alone();
    let place = Place::new("round");
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let archive = open(&bench, None).expect("an archive");
        let (double, count) = (bench.function("double"), bench.function("count"));
        let scaled = metal(&bench, 3, true);
        assert!(!hit(&bench, &double, &archive));
        for function in [&double, &scaled] {
            let descriptor = descriptor(function, &[]);
            archive.addComputePipelineFunctionsWithDescriptor_error(&descriptor).expect("it is added");
        }
        archive.serializeToURL_error(&url(&place.file())).expect("it is written");
        let again = open(&bench, Some(&place.file())).expect("the archive of the file");
        for archive in [&archive, &again] {
            assert!(hit(&bench, &double, archive));
            assert!(hit(&bench, &scaled, archive));
            assert!(hit(&bench, &metal(&bench, 3, true), archive), "the same source, compiled again");
            assert!(!hit(&bench, &count, archive), "another kernel");
            assert!(!hit(&bench, &metal(&bench, 3, false), archive), "another constant");
            assert!(!hit(&bench, &metal(&bench, 4, true), archive), "another source");
        }
    });
    assert_eq!(left, []);
}

#[test]
fn hits_and_misses_are_counted_and_a_miss_compiles_unless_it_is_to_fail() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let (double, count) = (bench.function("double"), bench.function("count"));
        let archive = open(&bench, None).expect("an archive");
        counters::take();
        archive.addComputePipelineFunctionsWithDescriptor_error(&descriptor(&double, &[])).expect("added");
        for (function, options, made) in [
            (&double, MTLPipelineOption::FailOnBinaryArchiveMiss, true),
            (&count, MTLPipelineOption::FailOnBinaryArchiveMiss, false),
            (&count, MTLPipelineOption::empty(), true),
        ] {
            assert_eq!(pipeline(&bench, &descriptor(function, &[&archive]), options).is_ok(), made);
        }
        let none = pipeline(&bench, &descriptor(&count, &[]), MTLPipelineOption::FailOnBinaryArchiveMiss);
        assert!(none.is_err(), "without an archive everything is missing");
        let counted = counters::take();
        assert_eq!((counted.archived, counted.archive_hits, counted.archive_misses), (1, 1, 3));
        assert_eq!(counted.pipelines, 2);
    });
}

#[test]
fn a_file_that_is_no_archive_is_an_error() {
    let _alone = alone();
    autoreleasepool(|_| {
        let place = Place::new("bad");
        let bench = Bench::new();
        let code = |path: &Path| match open(&bench, Some(path)) {
            Ok(_) => None,
            Err(error) => {
                assert_eq!(error.domain().to_string(), "MTLBinaryArchiveDomain");
                let text = error.localizedDescription().to_string();
                assert!(text.contains("this test.archive"), "the error names the file: {text}");
                Some(error.code())
            }
        };
        let invalid = Some(MTLBinaryArchiveError::InvalidFile.0 as isize);
        assert_eq!(code(&place.file()), invalid, "no such file");

        let archive = open(&bench, None).expect("an archive");
        let double = descriptor(&bench.function("double"), &[]);
        archive.addComputePipelineFunctionsWithDescriptor_error(&double).expect("added");
        archive.serializeToURL_error(&url(&place.file())).expect("written");
        let whole = std::fs::read(place.file()).expect("the file");
        for length in 0..whole.len() {
            std::fs::write(place.file(), &whole[..length]).expect("written");
            assert_eq!(code(&place.file()), invalid, "cut to {length} bytes of {}", whole.len());
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x11;
            std::fs::write(place.file(), &changed).expect("written");
            assert_eq!(code(&place.file()), invalid, "byte {at} changed");
        }
        for foreign in [&b"MTLB\x01\x80\x02\xff"[..], b"softmetal binary archive 2\nend 0\n"] {
            std::fs::write(place.file(), foreign).expect("written");
            assert_eq!(code(&place.file()), invalid);
        }
        std::fs::write(place.file(), &whole).expect("written");
        assert_eq!(code(&place.file()), None, "the whole file again");

        let nowhere = place.0.join("no folder").join("x");
        let error = archive.serializeToURL_error(&url(&nowhere)).expect_err("there is no such folder");
        assert_eq!(error.code(), MTLBinaryArchiveError::InternalError.0 as isize);
        let web = NSURL::URLWithString(&NSString::from_str("https://example.org/a%20b")).expect("a URL");
        assert!(!web.isFileURL());
        assert!(archive.serializeToURL_error(&web).is_err(), "not a file's URL");
    });
}

#[test]
fn a_file_url_tells_its_path() {
    let _alone = alone();
    let url = url(Path::new("/tmp/a b"));
    assert!(url.isFileURL());
    assert_eq!(url.path().expect("a path").to_string(), "/tmp/a b");
    assert_eq!(url.absoluteString().expect("a text").to_string(), "file:///tmp/a%20b");
    assert_eq!(url.lastPathComponent().expect("a name").to_string(), "a b");
}

#[test]
fn a_descriptor_decides_label_and_limits() {
    let _alone = alone();
    autoreleasepool(|_| {
        let bench = Bench::new();
        let descriptor = descriptor(&bench.function("double"), &[]);
        descriptor.setLabel(Some(&NSString::from_str("twice")));
        descriptor.setMaxTotalThreadsPerThreadgroup(64);
        descriptor.setSupportIndirectCommandBuffers(true);
        let made = pipeline(&bench, &descriptor, MTLPipelineOption::empty()).expect("a pipeline");
        assert_eq!(made.label().expect("a label").to_string(), "twice");
        assert_eq!((made.maxTotalThreadsPerThreadgroup(), made.threadExecutionWidth()), (64, 32));
        assert!(made.supportIndirectCommandBuffers());
        assert_eq!(bench.pipeline("double").maxTotalThreadsPerThreadgroup(), 1024);
        descriptor.setMaxTotalThreadsPerThreadgroup(1025);
        assert!(pipeline(&bench, &descriptor, MTLPipelineOption::empty()).is_err());
        descriptor.reset();
        assert!(descriptor.computeFunction().is_none() && descriptor.label().is_none());
        // SAFETY: no reflection is asked for.
        let plain = unsafe {
            bench.device.newComputePipelineStateWithFunction_options_reflection_error(
                &bench.function("count"),
                MTLPipelineOption::empty(),
                None,
            )
        };
        assert_eq!(plain.expect("a pipeline").label().expect("a label").to_string(), "count");
    });
}

#[test]
fn a_pipeline_can_come_later() {
    let _alone = alone();
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        let (sender, receiver) = channel();
        let handler = RcBlock::new(
            move |made: *mut ProtocolObject<dyn MTLComputePipelineState>, error: *mut NSError| {
                // SAFETY: the pipeline lives for the call.
                let width = unsafe { made.as_ref() }.map(|made| made.threadExecutionWidth());
                sender.send((width, error.is_null())).expect("the test waits");
            },
        );
        let function = bench.function("double");
        // SAFETY: what the handler captures is fit for another thread.
        unsafe {
            let handler = RcBlock::as_ptr(&handler);
            bench.device.newComputePipelineStateWithFunction_completionHandler(&function, handler);
        }
        assert_eq!(receiver.recv().expect("the handler ran"), (Some(32), true));
    });
    assert_eq!(left, []);
}

#[test]
fn a_descriptor_without_a_function_is_no_archive_entry() {
    let _alone = alone();
    let found = broken(|bench| {
        let archive = open(bench, None).expect("an archive");
        let empty = MTLComputePipelineDescriptor::new();
        let error = archive.addComputePipelineFunctionsWithDescriptor_error(&empty).expect_err("no function");
        assert_eq!(error.code(), MTLBinaryArchiveError::CompilationFailure.0 as isize);
    });
    assert_eq!(found, ["pipeline-without-function"]);
}
