//! `MTLComputePassDescriptor`: how a compute encoder runs, and where it takes samples.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::MTLDispatchType;

use crate::ordering::EncoderKind;
use crate::samples::SoftSamples;

/// `MTLCounterDontSample`
const DONT_SAMPLE: usize = usize::MAX;

/// Where samples of an encoder go.
#[derive(Default)]
pub(crate) struct Sampling {
    start: Vec<(Retained<SoftSamples>, usize)>,
    end: Vec<(Retained<SoftSamples>, usize)>,
}

impl Sampling {
    /// The encoder begins on the device.
    pub(crate) fn begin(&self) {
        self.start.iter().for_each(|(samples, index)| samples.take(*index));
    }

    /// The encoder is over.
    pub(crate) fn end(&self) {
        self.end.iter().for_each(|(samples, index)| samples.take(*index));
    }
}

#[derive(Clone)]
pub(crate) struct AttachmentState {
    samples: Option<Retained<SoftSamples>>,
    start: usize,
    end: usize,
}

define_class!(
    /// A sample buffer of a pass.
    #[unsafe(super(NSObject))]
    #[name = "MTLComputePassSampleBufferAttachmentDescriptor"]
    #[ivars = RefCell<AttachmentState>]
    pub(crate) struct Attachment;

    impl Attachment {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let state = AttachmentState { samples: None, start: DONT_SAMPLE, end: DONT_SAMPLE };
            let this = this.set_ivars(RefCell::new(state));
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(sampleBuffer))]
        fn samples(&self) -> Option<Retained<SoftSamples>> {
            self.ivars().borrow().samples.clone()
        }

        #[unsafe(method(setSampleBuffer:))]
        fn set_samples(&self, samples: Option<&SoftSamples>) {
            self.ivars().borrow_mut().samples = samples.map(Message::retain);
        }

        #[unsafe(method(startOfEncoderSampleIndex))]
        fn start(&self) -> usize {
            self.ivars().borrow().start
        }

        #[unsafe(method(setStartOfEncoderSampleIndex:))]
        fn set_start(&self, index: usize) {
            self.ivars().borrow_mut().start = index;
        }

        #[unsafe(method(endOfEncoderSampleIndex))]
        fn end(&self) -> usize {
            self.ivars().borrow().end
        }

        #[unsafe(method(setEndOfEncoderSampleIndex:))]
        fn set_end(&self, index: usize) {
            self.ivars().borrow_mut().end = index;
        }
    }
);

impl Attachment {
    fn create() -> Retained<Self> {
        // SAFETY: `new` calls the `init` above.
        unsafe { msg_send![Self::class(), new] }
    }
}

define_class!(
    /// The sample buffers of a pass by index.
    #[unsafe(super(NSObject))]
    #[name = "MTLComputePassSampleBufferAttachmentDescriptorArray"]
    #[ivars = RefCell<BTreeMap<usize, Retained<Attachment>>>]
    pub(crate) struct Attachments;

    impl Attachments {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let this = this.set_ivars(RefCell::default());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(objectAtIndexedSubscript:))]
        fn at(&self, index: usize) -> Retained<Attachment> {
            self.ivars().borrow_mut().entry(index).or_insert_with(Attachment::create).clone()
        }

        #[unsafe(method(setObject:atIndexedSubscript:))]
        fn set(&self, attachment: Option<&Attachment>, index: usize) {
            let mut all = self.ivars().borrow_mut();
            match attachment {
                Some(attachment) => drop(all.insert(index, attachment.retain())),
                None => drop(all.remove(&index)),
            }
        }
    }
);

pub(crate) struct PassState {
    dispatch: Cell<MTLDispatchType>,
    attachments: Retained<Attachments>,
}

define_class!(
    /// How a compute encoder runs.
    #[unsafe(super(NSObject))]
    #[name = "MTLComputePassDescriptor"]
    #[ivars = PassState]
    pub(crate) struct PassDescriptor;

    impl PassDescriptor {
        #[unsafe(method_id(computePassDescriptor))]
        fn create() -> Retained<Self> {
            Self::plain(Self::alloc())
        }

        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            Self::plain(this)
        }

        #[unsafe(method(dispatchType))]
        fn dispatch(&self) -> MTLDispatchType {
            self.ivars().dispatch.get()
        }

        #[unsafe(method(setDispatchType:))]
        fn set_dispatch(&self, dispatch: MTLDispatchType) {
            self.ivars().dispatch.set(dispatch);
        }

        #[unsafe(method_id(sampleBufferAttachments))]
        fn attachments(&self) -> Retained<Attachments> {
            self.ivars().attachments.clone()
        }
    }
);

impl PassDescriptor {
    fn plain(this: Allocated<Self>) -> Retained<Self> {
        // SAFETY: `new` calls the `init` above.
        let attachments = unsafe { msg_send![Attachments::class(), new] };
        let this = this.set_ivars(PassState { dispatch: Cell::new(MTLDispatchType::Serial), attachments });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn kind(&self) -> EncoderKind {
        EncoderKind::of(self.ivars().dispatch.get())
    }

    /// Where samples go. An index that a sample buffer does not have is reported, and left out.
    pub(crate) fn sampling(&self) -> Sampling {
        let mut sampling = Sampling::default();
        for attachment in self.ivars().attachments.ivars().borrow().values() {
            let AttachmentState { samples: Some(samples), start, end } = attachment.ivars().borrow().clone()
            else {
                continue;
            };
            for (index, list) in [(start, &mut sampling.start), (end, &mut sampling.end)] {
                if index != DONT_SAMPLE && samples.has(index) {
                    list.push((samples.clone(), index));
                }
            }
        }
        sampling
    }
}

pub(crate) fn load() {
    let _ = (Attachment::class(), Attachments::class(), PassDescriptor::class());
}
