//! `MTLCaptureManager`: captures start and stop as they do on a Mac, and record nothing.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use objc2::rc::{Allocated, Retained};
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::{MTLCaptureDestination as Destination, MTLCaptureError as Code};

use crate::device::{Shared, SoftDevice, shared};
use crate::foundation::{Label, set_error};
use crate::queue::SoftQueue;
use crate::url::Url;

const DOMAIN: &str = "MTLCaptureErrorDomain";

/// Whether a capture is under way.
static CAPTURING: Mutex<bool> = Mutex::new(false);

fn capturing() -> MutexGuard<'static, bool> {
    CAPTURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a descriptor asks for.
pub(crate) struct Settings {
    object: Option<Retained<AnyObject>>,
    destination: Destination,
    url: Option<Retained<Url>>,
}

define_class!(
    /// What a capture records, and where to.
    #[unsafe(super(NSObject))]
    #[name = "MTLCaptureDescriptor"]
    #[ivars = RefCell<Settings>]
    pub(crate) struct CaptureDescriptor;

    impl CaptureDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let settings = Settings { object: None, destination: Destination::DeveloperTools, url: None };
            let this = this.set_ivars(RefCell::new(settings));
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(captureObject))]
        fn object(&self) -> Option<Retained<AnyObject>> {
            self.ivars().borrow().object.clone()
        }

        #[unsafe(method(setCaptureObject:))]
        fn set_object(&self, object: Option<&AnyObject>) {
            self.ivars().borrow_mut().object = object.map(Message::retain);
        }

        #[unsafe(method(destination))]
        fn destination(&self) -> Destination {
            self.ivars().borrow().destination
        }

        #[unsafe(method(setDestination:))]
        fn set_destination(&self, destination: Destination) {
            self.ivars().borrow_mut().destination = destination;
        }

        #[unsafe(method_id(outputURL))]
        fn url(&self) -> Option<Retained<Url>> {
            self.ivars().borrow().url.clone()
        }

        #[unsafe(method(setOutputURL:))]
        fn set_url(&self, url: Option<&Url>) {
            self.ivars().borrow_mut().url = url.map(Message::retain);
        }
    }
);

impl CaptureDescriptor {
    /// Whether a capture can start so.
    fn check(&self) -> Result<(), (Code, &'static str)> {
        let Settings { object, destination, url } = &*self.ivars().borrow();
        if !supported(*destination) {
            let why = "captures go to a document, and only with METAL_CAPTURE_ENABLED=1 in the environment";
            return Err((Code::NotSupported, why));
        }
        let object = object.as_deref().ok_or((Code::InvalidDescriptor, "set captureObject"))?;
        let fit = object.downcast_ref::<SoftDevice>().is_some()
            || object.downcast_ref::<SoftQueue>().is_some()
            || object.downcast_ref::<SoftScope>().is_some();
        if !fit {
            return Err((Code::InvalidDescriptor, "a device, a queue or a scope is captured"));
        }
        let path = url.as_ref().and_then(|url| url.file_path());
        let path = path.ok_or((Code::InvalidDescriptor, "a document needs outputURL, a file's URL"))?;
        if path.exists() {
            return Err((Code::InvalidDescriptor, "there is a file at outputURL; remove it"));
        }
        Ok(())
    }
}

/// Xcode is not here; documents are to be allowed by the environment, as for a program without an Info.plist.
fn supported(destination: Destination) -> bool {
    destination == Destination::GPUTraceDocument
        && std::env::var("METAL_CAPTURE_ENABLED").as_deref() == Ok("1")
}

#[derive(Default)]
pub(crate) struct ScopeState {
    queue: Option<Retained<SoftQueue>>,
    label: Label,
}

define_class!(
    /// Commands between two points of a program.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCaptureScope"]
    #[ivars = ScopeState]
    pub(crate) struct SoftScope;

    impl SoftScope {
        #[unsafe(method(beginScope))]
        fn begin(&self) {}

        #[unsafe(method(endScope))]
        fn end(&self) {}

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().label.get()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().label.set(label);
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(commandQueue))]
        fn queue(&self) -> Option<Retained<SoftQueue>> {
            self.ivars().queue.clone()
        }
    }
);

impl SoftScope {
    fn create(queue: Option<&SoftQueue>) -> Retained<Self> {
        let state = ScopeState { queue: queue.map(Message::retain), ..ScopeState::default() };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

define_class!(
    /// Starts and stops captures.
    #[unsafe(super(NSObject))]
    #[name = "MTLCaptureManager"]
    pub(crate) struct CaptureManager;

    impl CaptureManager {
        #[unsafe(method_id(sharedCaptureManager))]
        fn one() -> Retained<Self> {
            static ONE: OnceLock<Shared<CaptureManager>> = OnceLock::new();
            // SAFETY: `new` of a class without state.
            ONE.get_or_init(|| Shared(unsafe { msg_send![Self::class(), new] })).0.clone()
        }

        #[unsafe(method(supportsDestination:))]
        fn supports(&self, destination: Destination) -> bool {
            supported(destination)
        }

        #[unsafe(method(startCaptureWithDescriptor:error:))]
        fn start(&self, descriptor: &CaptureDescriptor, error: *mut *mut NSError) -> bool {
            start(descriptor)
                // SAFETY: the pointer is the caller's place for an error.
                .map_err(|(code, message)| unsafe { set_error(error, DOMAIN, code.0, message) })
                .is_ok()
        }

        #[unsafe(method(stopCapture))]
        fn stop(&self) {
            *capturing() = false;
        }

        #[unsafe(method(isCapturing))]
        fn is_capturing(&self) -> bool {
            *capturing()
        }

        #[unsafe(method_id(newCaptureScopeWithDevice:))]
        fn scope_of_device(&self, _device: &SoftDevice) -> Retained<SoftScope> {
            SoftScope::create(None)
        }

        #[unsafe(method_id(newCaptureScopeWithCommandQueue:))]
        fn scope_of_queue(&self, queue: &SoftQueue) -> Retained<SoftScope> {
            SoftScope::create(Some(queue))
        }
    }
);

fn start(descriptor: &CaptureDescriptor) -> Result<(), (Code, &'static str)> {
    let mut capturing = capturing();
    if *capturing {
        return Err((Code::AlreadyCapturing, "a capture is under way; stop it"));
    }
    descriptor.check()?;
    *capturing = true;
    Ok(())
}

pub(crate) fn load() {
    let _ = (CaptureDescriptor::class(), SoftScope::class(), CaptureManager::class());
}
