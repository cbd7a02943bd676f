//! `MPSKernel`, and the bases of kernels with one or two source matrices.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};

use objc2::rc::{Allocated, Retained};
use objc2::{ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};
use objc2_metal::MTLOrigin;
use softmetal_formulas::kernel::{Batch, Origin};

use crate::check::report;
use crate::device::{SoftDevice, shared};
use crate::rules;
use crate::system::mac;

#[derive(Default)]
pub(crate) struct KernelState {
    label: RefCell<String>,
    options: Cell<u64>,
    /// Whether a thread is encoding with this object.
    busy: AtomicBool,
}

define_class!(
    /// The base of all kernels.
    #[unsafe(super(NSObject))]
    #[name = "MPSKernel"]
    #[ivars = KernelState]
    pub(crate) struct SoftKernel;

    impl SoftKernel {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, _device: &SoftDevice) -> Option<Retained<Self>> {
            mac().gpu.mps.then_some(this).and_then(|this| {
                let this = this.set_ivars(KernelState::default());
                // SAFETY: NSObject's init returns the object.
                unsafe { msg_send![super(this), init] }
            })
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            Some(NSString::from_str(&self.ivars().label.borrow()))
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            *self.ivars().label.borrow_mut() = label.map(ToString::to_string).unwrap_or_default();
        }

        #[unsafe(method(options))]
        fn options(&self) -> u64 {
            self.ivars().options.get()
        }

        #[unsafe(method(setOptions:))]
        fn set_options(&self, options: u64) {
            self.ivars().options.set(options);
        }
    }
);

impl SoftKernel {
    /// Encodes with this object, which only one thread may do at a time.
    pub(crate) fn encoding(&self, what: &str, body: impl FnOnce()) {
        if self.ivars().busy.swap(true, Ordering::AcqRel) {
            return report(&rules::KERNEL_SHARED, what);
        }
        body();
        self.ivars().busy.store(false, Ordering::Release);
    }
}

/// Where a kernel reads and writes in its matrices, and which matrices of a batch it processes.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) source: Cell<Origin>,
    pub(crate) second: Cell<Origin>,
    pub(crate) result: Cell<Origin>,
    pub(crate) batch: Cell<Batch>,
}

impl Window {
    pub(crate) fn set_batch_start(&self, start: usize) {
        self.batch.set(Batch { start, ..self.batch.get() });
    }

    pub(crate) fn set_batch_size(&self, size: usize) {
        self.batch.set(Batch { size, ..self.batch.get() });
    }
}

/// An origin as the formulas take it.
pub(crate) fn origin(of: MTLOrigin) -> Origin {
    Origin { x: of.x, y: of.y, z: of.z }
}

pub(crate) fn origin_of(origin: Origin) -> MTLOrigin {
    MTLOrigin { x: origin.x, y: origin.y, z: origin.z }
}

define_class!(
    /// A kernel with one source matrix.
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSMatrixUnaryKernel"]
    #[ivars = Window]
    pub(crate) struct SoftUnaryKernel;

    impl SoftUnaryKernel {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(Window::default());
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(sourceMatrixOrigin))]
        fn source_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().source.get())
        }

        #[unsafe(method(setSourceMatrixOrigin:))]
        fn set_source_origin(&self, at: MTLOrigin) {
            self.ivars().source.set(origin(at));
        }

        #[unsafe(method(resultMatrixOrigin))]
        fn result_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().result.get())
        }

        #[unsafe(method(setResultMatrixOrigin:))]
        fn set_result_origin(&self, at: MTLOrigin) {
            self.ivars().result.set(origin(at));
        }

        #[unsafe(method(batchStart))]
        fn batch_start(&self) -> usize {
            self.ivars().batch.get().start
        }

        #[unsafe(method(setBatchStart:))]
        fn set_batch_start(&self, start: usize) {
            self.ivars().set_batch_start(start);
        }

        #[unsafe(method(batchSize))]
        fn batch_size(&self) -> usize {
            self.ivars().batch.get().size
        }

        #[unsafe(method(setBatchSize:))]
        fn set_batch_size(&self, size: usize) {
            self.ivars().set_batch_size(size);
        }
    }
);

impl SoftUnaryKernel {
    pub(crate) fn window(&self) -> &Window {
        self.ivars()
    }
}

define_class!(
    /// A kernel with two source matrices.
    #[unsafe(super(SoftKernel, NSObject))]
    #[name = "MPSMatrixBinaryKernel"]
    #[ivars = Window]
    pub(crate) struct SoftBinaryKernel;

    impl SoftBinaryKernel {
        #[unsafe(method_id(initWithDevice:))]
        fn init_with_device(this: Allocated<Self>, device: &SoftDevice) -> Option<Retained<Self>> {
            let this = this.set_ivars(Window::default());
            // SAFETY: the superclass has this initialiser.
            unsafe { msg_send![super(this), initWithDevice: device] }
        }

        #[unsafe(method(primarySourceMatrixOrigin))]
        fn primary_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().source.get())
        }

        #[unsafe(method(setPrimarySourceMatrixOrigin:))]
        fn set_primary_origin(&self, at: MTLOrigin) {
            self.ivars().source.set(origin(at));
        }

        #[unsafe(method(secondarySourceMatrixOrigin))]
        fn secondary_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().second.get())
        }

        #[unsafe(method(setSecondarySourceMatrixOrigin:))]
        fn set_secondary_origin(&self, at: MTLOrigin) {
            self.ivars().second.set(origin(at));
        }

        #[unsafe(method(resultMatrixOrigin))]
        fn result_origin(&self) -> MTLOrigin {
            origin_of(self.ivars().result.get())
        }

        #[unsafe(method(setResultMatrixOrigin:))]
        fn set_result_origin(&self, at: MTLOrigin) {
            self.ivars().result.set(origin(at));
        }

        #[unsafe(method(batchStart))]
        fn batch_start(&self) -> usize {
            self.ivars().batch.get().start
        }

        #[unsafe(method(setBatchStart:))]
        fn set_batch_start(&self, start: usize) {
            self.ivars().set_batch_start(start);
        }

        #[unsafe(method(batchSize))]
        fn batch_size(&self) -> usize {
            self.ivars().batch.get().size
        }

        #[unsafe(method(setBatchSize:))]
        fn set_batch_size(&self, size: usize) {
            self.ivars().set_batch_size(size);
        }
    }
);

impl SoftBinaryKernel {
    pub(crate) fn window(&self) -> &Window {
        self.ivars()
    }
}

pub(crate) fn load() {
    let _ = (SoftKernel::class(), SoftUnaryKernel::class(), SoftBinaryKernel::class());
}
