//! `MTLFence`, `MTLEvent` and `MTLSharedEvent`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};

use crate::check::report;
use crate::counters::count;
use crate::device::{SoftDevice, model, shared};
use crate::ordering::Number;
use crate::rules;

define_class!(
    /// Orders encoders of one queue.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLFence"]
    #[ivars = Number]
    pub(crate) struct SoftFence;

    impl SoftFence {
        #[unsafe(method(setLabel:))]
        fn set_label(&self, _label: Option<&NSString>) {}

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

impl SoftFence {
    pub(crate) fn create() -> Retained<Self> {
        let number = model().object();
        let this = Self::alloc().set_ivars(number);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn number(&self) -> Number {
        *self.ivars()
    }
}

#[derive(Default)]
pub(crate) struct EventState {
    number: Number,
    value: Mutex<u64>,
    changed: Condvar,
    /// The value that the host waited for last; none is waited for at the beginning, and 0 is always reached.
    awaited: AtomicU64,
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

        #[unsafe(method(setLabel:))]
        fn set_label(&self, _label: Option<&NSString>) {}

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: the value is behind a lock; the number never changes.
unsafe impl Send for SoftEvent {}
// SAFETY: as above.
unsafe impl Sync for SoftEvent {}
// SAFETY: the number never changes.
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
    let _ = (SoftFence::class(), SoftEvent::class());
}
