//! `MTLCommandQueue`: a thread that runs command buffers in the order of their commits.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use objc2::rc::{Retained, autoreleasepool};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};

use crate::command_buffer::SoftCommandBuffer;
use crate::descriptors::CommandsDescriptor;
use crate::device::{SoftDevice, model, shared};
use crate::foundation::Label;
use crate::ordering::Number;

/// How many committed command buffers a worker still holds.
static UNDER_WAY: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Waits until no worker holds a command buffer. `waitUntilCompleted` returns a moment earlier, while the worker still
/// owns a reference; counts of live objects are exact only after this.
pub fn quiesce() {
    let mut count = UNDER_WAY.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *count > 0 {
        count = UNDER_WAY.1.wait(count).unwrap_or_else(PoisonError::into_inner);
    }
    model().prune();
}

fn under_way(change: isize) {
    let mut count = UNDER_WAY.0.lock().unwrap_or_else(PoisonError::into_inner);
    *count = count.saturating_add_signed(change);
    UNDER_WAY.1.notify_all();
}

/// Lets the ordering model forget what is over, if nothing is under way. A program that never waits keeps everything.
pub(crate) fn prune_if_idle() {
    let count = UNDER_WAY.0.lock().unwrap_or_else(PoisonError::into_inner);
    if *count == 0 {
        model().prune();
    }
}

/// Runs `body` on a thread of its own, as Metal does with what it is asked to do later; [`quiesce`] waits for it.
pub(crate) fn aside(body: impl FnOnce() + 'static) {
    struct Later<F>(F);
    // SAFETY: what a handler captures is fit for any thread: Metal asks that of whoever gives it one.
    unsafe impl<F> Send for Later<F> {}
    impl<F: FnOnce()> Later<F> {
        fn run(self) {
            (self.0)();
        }
    }
    /// Counts down also where a handler panics: else whoever waits for it waits for ever.
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            under_way(-1);
        }
    }
    let later = Later(body);
    under_way(1);
    std::thread::spawn(move || {
        let _over = Over;
        autoreleasepool(|_| later.run());
    });
}

struct Job(Retained<SoftCommandBuffer>);

// SAFETY: after its commit a command buffer is used by the worker; what the host may still ask (status, error, waits)
// is behind a lock.
unsafe impl Send for Job {}

pub(crate) struct QueueState {
    number: Number,
    jobs: Mutex<Option<Sender<Job>>>,
    worker: Option<JoinHandle<()>>,
    residency_sets: Mutex<Vec<Retained<NSObject>>>,
    label: Label,
}

impl Drop for QueueState {
    fn drop(&mut self) {
        *self.jobs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // The last reference may be dropped by the worker itself, which then ends by itself.
        if let Some(worker) = self.worker.take().filter(|w| w.thread().id() != std::thread::current().id()) {
            let _ = worker.join();
        }
    }
}

define_class!(
    /// A queue of command buffers.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCommandQueue"]
    #[ivars = QueueState]
    pub(crate) struct SoftQueue;

    impl SoftQueue {
        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(commandBuffer))]
        fn command_buffer(&self) -> Option<Retained<SoftCommandBuffer>> {
            Some(SoftCommandBuffer::create(self.retain(), true))
        }

        #[unsafe(method_id(commandBufferWithUnretainedReferences))]
        fn command_buffer_unretained(&self) -> Option<Retained<SoftCommandBuffer>> {
            Some(SoftCommandBuffer::create(self.retain(), false))
        }

        #[unsafe(method_id(commandBufferWithDescriptor:))]
        fn command_buffer_of(&self, descriptor: &CommandsDescriptor) -> Option<Retained<SoftCommandBuffer>> {
            Some(SoftCommandBuffer::create(self.retain(), descriptor.retains()))
        }

        #[unsafe(method(addResidencySet:))]
        fn add_residency_set(&self, set: &NSObject) {
            self.ivars().residency_sets.lock().unwrap_or_else(PoisonError::into_inner).push(set.retain());
        }

        #[unsafe(method(removeResidencySet:))]
        fn remove_residency_set(&self, set: &NSObject) {
            let mut sets = self.ivars().residency_sets.lock().unwrap_or_else(PoisonError::into_inner);
            sets.retain(|known| !std::ptr::eq(&**known, set));
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().label.get()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().label.set(label);
        }
    }
);

// SAFETY: queues are thread-safe: what changes is behind locks.
unsafe impl Send for SoftQueue {}
// SAFETY: as above.
unsafe impl Sync for SoftQueue {}

impl SoftQueue {
    pub(crate) fn create() -> Option<Retained<Self>> {
        let (sender, jobs) = channel::<Job>();
        let work = move || {
            for Job(commands) in jobs {
                autoreleasepool(|_| {
                    commands.run();
                    drop(commands);
                });
                under_way(-1);
                prune_if_idle();
            }
        };
        let worker = std::thread::Builder::new().name("softmetal queue".to_owned()).spawn(work).ok()?;
        let state = QueueState {
            number: model().object(),
            jobs: Mutex::new(Some(sender)),
            worker: Some(worker),
            residency_sets: Mutex::default(),
            label: Label::default(),
        };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn number(&self) -> Number {
        self.ivars().number
    }

    /// Hands a command buffer to the worker.
    pub(crate) fn submit(&self, commands: Retained<SoftCommandBuffer>) {
        under_way(1);
        let jobs = self.ivars().jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().is_some_and(|jobs| jobs.send(Job(commands)).is_ok());
        if !sent {
            under_way(-1);
        }
    }
}

pub(crate) fn load() {
    let _ = SoftQueue::class();
}
