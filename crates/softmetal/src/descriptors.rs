//! `MTLCommandQueueDescriptor` and `MTLCommandBufferDescriptor`.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::MTLCommandBufferErrorOption;

define_class!(
    /// How a queue is made. How many command buffers may be under way is not limited here.
    #[unsafe(super(NSObject))]
    #[name = "MTLCommandQueueDescriptor"]
    #[ivars = Cell<usize>]
    pub(crate) struct QueueDescriptor;

    impl QueueDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            // What a Mac allows unless it is told otherwise.
            let this = this.set_ivars(Cell::new(64));
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method(maxCommandBufferCount))]
        fn count(&self) -> usize {
            self.ivars().get()
        }

        #[unsafe(method(setMaxCommandBufferCount:))]
        fn set_count(&self, count: usize) {
            self.ivars().set(count);
        }
    }
);

pub(crate) struct CommandsState {
    retained: Cell<bool>,
    errors: Cell<MTLCommandBufferErrorOption>,
}

define_class!(
    /// How a command buffer is made.
    #[unsafe(super(NSObject))]
    #[name = "MTLCommandBufferDescriptor"]
    #[ivars = CommandsState]
    pub(crate) struct CommandsDescriptor;

    impl CommandsDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let errors = Cell::new(MTLCommandBufferErrorOption::None);
            let this = this.set_ivars(CommandsState { retained: Cell::new(true), errors });
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method(retainedReferences))]
        fn retained(&self) -> bool {
            self.retains()
        }

        #[unsafe(method(setRetainedReferences:))]
        fn set_retained(&self, retained: bool) {
            self.ivars().retained.set(retained);
        }

        #[unsafe(method(errorOptions))]
        fn errors(&self) -> MTLCommandBufferErrorOption {
            self.ivars().errors.get()
        }

        #[unsafe(method(setErrorOptions:))]
        fn set_errors(&self, errors: MTLCommandBufferErrorOption) {
            self.ivars().errors.set(errors);
        }
    }
);

impl CommandsDescriptor {
    /// Whether commands hold on to what they use.
    pub(crate) fn retains(&self) -> bool {
        self.ivars().retained.get()
    }
}

pub(crate) fn load() {
    let _ = (QueueDescriptor::class(), CommandsDescriptor::class());
}
