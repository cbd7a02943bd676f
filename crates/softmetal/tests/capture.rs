//! Captures start only where they are allowed, one at a time, and record nothing.
#![allow(missing_docs)]

mod bench;

use bench::{Bench, SHARED};
use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2_foundation::{NSString, NSURL};
use objc2_metal::*;
use softmetal::leaks;

/// A document for a capture of the device.
fn descriptor(object: Option<&AnyObject>) -> Retained<MTLCaptureDescriptor> {
    let path = std::env::temp_dir().join(format!("softmetal-{}.gputrace", std::process::id()));
    let descriptor = MTLCaptureDescriptor::new();
    assert_eq!(descriptor.destination(), MTLCaptureDestination::DeveloperTools);
    // SAFETY: the manager checks the object.
    unsafe { descriptor.setCaptureObject(object) };
    descriptor.setDestination(MTLCaptureDestination::GPUTraceDocument);
    let path = NSString::from_str(path.to_str().expect("a path in UTF-8"));
    descriptor.setOutputURL(Some(&NSURL::fileURLWithPath(&path)));
    descriptor
}

/// One test, since the environment is the process's.
#[test]
fn captures() {
    let (_, left) = leaks(|| {
        let bench = Bench::new();
        // SAFETY: there is one manager, which lives as long as the process.
        let manager = unsafe { MTLCaptureManager::sharedCaptureManager() };
        let device: &AnyObject = bench.device.as_ref();
        let code = |descriptor: &MTLCaptureDescriptor| {
            let error = manager.startCaptureWithDescriptor_error(descriptor).err();
            error.map(|error| {
                // SAFETY: the constant is there from the start.
                assert_eq!(error.domain().to_string(), unsafe { MTLCaptureErrorDomain }.to_string());
                MTLCaptureError(error.code())
            })
        };
        let document = MTLCaptureDestination::GPUTraceDocument;

        // SAFETY: this is the only test of the process.
        unsafe { std::env::remove_var("METAL_CAPTURE_ENABLED") };
        assert!(!manager.supportsDestination(document));
        assert_eq!(code(&descriptor(Some(device))), Some(MTLCaptureError::NotSupported));
        assert!(!manager.isCapturing());

        // SAFETY: as above.
        unsafe { std::env::set_var("METAL_CAPTURE_ENABLED", "1") };
        assert!(manager.supportsDestination(document));
        assert!(!manager.supportsDestination(MTLCaptureDestination::DeveloperTools));
        let invalid = Some(MTLCaptureError::InvalidDescriptor);
        assert_eq!(code(&descriptor(None)), invalid, "nothing to capture");
        assert_eq!(
            code(&descriptor(Some(bench.buffer(4, SHARED).as_ref()))),
            invalid,
            "a buffer is not captured"
        );
        let nowhere = descriptor(Some(device));
        nowhere.setOutputURL(None);
        assert_eq!(code(&nowhere), invalid, "no document");
        let taken = descriptor(Some(device));
        let folder = NSString::from_str(std::env::temp_dir().to_str().expect("a path in UTF-8"));
        taken.setOutputURL(Some(&NSURL::fileURLWithPath(&folder)));
        assert_eq!(code(&taken), invalid, "there is a file already");

        let scope = manager.newCaptureScopeWithCommandQueue(&bench.queue);
        scope.setLabel(Some(&NSString::from_str("step")));
        assert_eq!(scope.label().expect("a label").to_string(), "step");
        for object in [device, bench.queue.as_ref(), scope.as_ref()] {
            assert_eq!(code(&descriptor(Some(object))), None);
            assert!(manager.isCapturing());
            assert_eq!(code(&descriptor(Some(object))), Some(MTLCaptureError::AlreadyCapturing));
            scope.beginScope();
            let commands = bench.commands();
            commands.commit();
            commands.waitUntilCompleted();
            scope.endScope();
            manager.stopCapture();
            assert!(!manager.isCapturing());
        }
    });
    assert_eq!(left, []);
}
