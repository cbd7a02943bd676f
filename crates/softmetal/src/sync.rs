//! `MTLFence`, `MTLEvent`, `MTLSharedEvent` and its listener.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use block2::{Block, RcBlock};
use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};

use crate::check::report;
use crate::counters::count;
use crate::device::{Shared, SoftDevice, model, shared};
use crate::foundation::Label;
use crate::ordering::Number;
use crate::queue::aside;
use crate::rules;

#[derive(Default)]
pub(crate) struct FenceState {
    number: Number,
    label: Label,
}

define_class!(
    /// Orders encoders of any queues.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLFence"]
    #[ivars = FenceState]
    pub(crate) struct SoftFence;

    impl SoftFence {
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
    }
);

impl SoftFence {
    pub(crate) fn create() -> Retained<Self> {
        let this = Self::alloc().set_ivars(FenceState { number: model().object(), ..FenceState::default() });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn number(&self) -> Number {
        self.ivars().number
    }
}

#[derive(Default)]
pub(crate) struct EventState {
    number: Number,
    value: Mutex<u64>,
    changed: Condvar,
    /// Who is to be told of which value.
    notices: Mutex<Vec<(u64, RcBlock<Notice>)>>,
    label: Label,
    /// The value that the host waited for last; none is waited for at the beginning, and 0 is always reached.
    awaited: AtomicU64,
}

type Notice = dyn Fn(NonNull<SoftEvent>, u64);

define_class!(
    /// Where events tell of their values: a thread of each notice's own.
    #[unsafe(super(NSObject))]
    #[name = "MTLSharedEventListener"]
    pub(crate) struct Listener;

    impl Listener {
        #[unsafe(method_id(sharedListener))]
        fn shared() -> Retained<Self> {
            shared_listener()
        }
    }
);

/// The one listener for everybody. Made when the program starts, so that it is nobody's leak.
fn shared_listener() -> Retained<Listener> {
    static ONE: OnceLock<Shared<Listener>> = OnceLock::new();
    // SAFETY: `new` of a class without state.
    ONE.get_or_init(|| Shared(unsafe { msg_send![Listener::class(), new] })).0.clone()
}

define_class!(
    /// Orders command buffers of any queues, and the host. Serves as MTLEvent and MTLSharedEvent.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLSharedEvent"]
    #[ivars = EventState]
    pub(crate) struct SoftEvent;

    impl SoftEvent {
        #[unsafe(method(signaledValue))]
        fn signaled_value(&self) -> u64 {
            let value = *self.value();
            model().settle_event(self.number(), value);
            value
        }

        #[unsafe(method(setSignaledValue:))]
        fn set_signaled_value(&self, value: u64) {
            self.signal(value);
        }

        #[unsafe(method(notifyListener:atValue:block:))]
        fn notify(&self, _listener: &Listener, value: u64, block: &Block<Notice>) {
            self.notices().push((value, block.copy()));
            self.tell();
        }

        #[unsafe(method(waitUntilSignaledValue:timeoutMS:))]
        fn wait_until(&self, value: u64, milliseconds: u64) -> bool {
            // A wait that is taken up again after its time limit is one wait.
            if self.ivars().awaited.swap(value, Ordering::Relaxed) != value {
                count(|counters| counters.host_waits += 1);
            }
            let deadline = Instant::now().checked_add(Duration::from_millis(milliseconds));
            let reached = self.wait(value, deadline);
            if reached {
                model().settle_event(self.number(), value);
            }
            reached
        }

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
    }
);

// SAFETY: value, notices and label are behind locks; the number never changes.
unsafe impl Send for SoftEvent {}
// SAFETY: as above.
unsafe impl Sync for SoftEvent {}
// SAFETY: the number never changes; the label is behind a lock.
unsafe impl Send for SoftFence {}
// SAFETY: as above.
unsafe impl Sync for SoftFence {}

impl SoftEvent {
    pub(crate) fn create() -> Retained<Self> {
        let state = EventState { number: model().object(), ..EventState::default() };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn number(&self) -> Number {
        self.ivars().number
    }

    fn value(&self) -> MutexGuard<'_, u64> {
        self.ivars().value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the value and wakes who waits for it.
    pub(crate) fn signal(&self, value: u64) {
        let mut current = self.value();
        if value < *current {
            let message = format!("signalled with {value} after {}", *current);
            drop(current);
            report(&rules::EVENT_BACKWARDS, message);
            current = self.value();
        }
        *current = value;
        drop(current);
        self.ivars().changed.notify_all();
        self.tell();
    }

    fn notices(&self) -> MutexGuard<'_, Vec<(u64, RcBlock<Notice>)>> {
        self.ivars().notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever waits for a value that has come.
    fn tell(&self) {
        let value = *self.value();
        let due: Vec<(u64, RcBlock<Notice>)> =
            self.notices().extract_if(.., |(of, _)| *of <= value).collect();
        for (of, block) in due {
            let event = self.retain();
            aside(move || {
                // The host knows now, as if it had waited.
                model().settle_event(event.number(), of);
                block.call((NonNull::from(&*event), of));
            });
        }
    }

    /// Waits until the value is reached; `false` if the deadline came first.
    pub(crate) fn wait(&self, value: u64, deadline: Option<Instant>) -> bool {
        let mut current = self.value();
        while *current < value {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            let pause = left.unwrap_or(Duration::from_secs(60));
            let woken = self.ivars().changed.wait_timeout(current, pause);
            current = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

pub(crate) fn load() {
    let _ = (SoftFence::class(), SoftEvent::class(), shared_listener());
}
