//! `MTLBlitCommandEncoder`: copies and fills.

use std::cell::RefCell;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSRange, NSString};

use crate::buffer::SoftBuffer;
use crate::check::report;
use crate::command_buffer::SoftCommandBuffer;
use crate::device::{SoftDevice, shared};
use crate::encoder::Encoder;
use crate::fences::{Update, Wait};
use crate::ordering::EncoderKind;
use crate::ranges::Ranges;
use crate::rules;
use crate::samples::{SAMPLE, SoftSamples};
use crate::sync::SoftFence;
use crate::work::{Command, Entry, Use};

define_class!(
    /// Copies and fills.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLBlitCommandEncoder"]
    #[ivars = RefCell<Encoder>]
    pub(crate) struct SoftBlitEncoder;

    impl SoftBlitEncoder {
        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method(copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:))]
        fn copy(&self, from: &SoftBuffer, start: usize, to: &SoftBuffer, at: usize, size: usize) {
            let mut encoder = self.ivars().borrow_mut();
            if !encoder.is_open("copyFromBuffer:") {
                return;
            }
            let within = |offset: usize, buffer: &SoftBuffer| {
                offset.checked_add(size).is_some_and(|end| end <= buffer.len())
            };
            let what = format!("{size} bytes from {start} of {} to {at} of {}", from.describe(), to.describe());
            if !within(start, from) || !within(at, to) {
                return report(&rules::BLIT_RANGE, what);
            }
            if [start, at, size].iter().any(|number| !number.is_multiple_of(4)) {
                report(&rules::BLIT_ALIGNMENT, what.clone());
            }
            let (source_spot, target_spot) = (from.spot(), to.spot());
            let (read, written) = (source_spot.bytes(start..start + size), target_spot.bytes(at..at + size));
            let apart = read.end <= written.start || written.end <= read.start || size == 0;
            if source_spot.number == target_spot.number && !apart {
                report(&rules::BLIT_OVERLAP, what);
            }
            let (from, to) = (from.retain(), to.retain());
            let uses = vec![encoder.uses(&from), encoder.uses(&to)];
            let (source, target) = (from.memory().clone(), to.memory().clone());
            let body = Box::new(move || {
                // SAFETY: both ranges were checked; the memory is held.
                unsafe { std::ptr::copy(source.start().add(start), target.start().add(at), size) };
                let (none, read) = (Ranges::default(), Ranges::new(vec![start..start + size]));
                let written = Ranges::new(vec![at..at + size]);
                Ok(vec![source_spot.touched(&read, &none), target_spot.touched(&none, &written)])
            });
            encoder.push(Entry::Command(Command { label: "copy".to_owned(), uses, threads: 0, body }));
        }

        #[unsafe(method(fillBuffer:range:value:))]
        fn fill(&self, buffer: &SoftBuffer, range: NSRange, value: u8) {
            let mut encoder = self.ivars().borrow_mut();
            if !encoder.is_open("fillBuffer:") {
                return;
            }
            let (start, size) = (range.location, range.length);
            if start.checked_add(size).is_none_or(|end| end > buffer.len()) {
                return report(&rules::BLIT_RANGE, format!("fill of {range:?} of {}", buffer.describe()));
            }
            let buffer = buffer.retain();
            let uses: Vec<Use> = vec![encoder.uses(&buffer)];
            let (memory, spot) = (buffer.memory().clone(), buffer.spot());
            let body = Box::new(move || {
                // SAFETY: the range was checked; the memory is held.
                unsafe { memory.start().add(start).write_bytes(value, size) };
                Ok(vec![spot.touched(&Ranges::default(), &Ranges::new(vec![start..start + size]))])
            });
            encoder.push(Entry::Command(Command { label: "fill".to_owned(), uses, threads: 0, body }));
        }

        #[unsafe(method(sampleCountersInBuffer:atSampleIndex:withBarrier:))]
        fn sample_counters(&self, _samples: &SoftSamples, index: usize, _barrier: bool) {
            self.ivars().borrow().sample(index);
        }

        #[unsafe(method(resolveCounters:inRange:destinationBuffer:destinationOffset:))]
        fn resolve(&self, samples: &SoftSamples, range: NSRange, to: &SoftBuffer, at: usize) {
            let mut encoder = self.ivars().borrow_mut();
            if !encoder.is_open("resolveCounters:") || !samples.has_all(range) {
                return;
            }
            let size = range.length * SAMPLE;
            if at.checked_add(size).is_none_or(|end| end > to.len()) {
                return report(&rules::BLIT_RANGE, format!("{size} bytes of samples to {at} of {}", to.describe()));
            }
            let (samples, to) = (samples.retain(), to.retain());
            let uses = vec![encoder.uses(&to)];
            let (memory, spot) = (to.memory().clone(), to.spot());
            let body = Box::new(move || {
                let bytes = samples.bytes(range);
                // SAFETY: the range was checked; the memory is held.
                unsafe { memory.start().add(at).copy_from_nonoverlapping(bytes.as_ptr(), size) };
                Ok(vec![spot.touched(&Ranges::default(), &Ranges::new(vec![at..at + size]))])
            });
            encoder.push(Entry::Command(Command { label: "resolve".to_owned(), uses, threads: 0, body }));
        }

        #[unsafe(method(waitForFence:))]
        fn wait_for_fence(&self, fence: &SoftFence) {
            self.ivars().borrow_mut().fence(Entry::WaitForFence(Wait::new(fence.number())));
        }

        #[unsafe(method(updateFence:))]
        fn update_fence(&self, fence: &SoftFence) {
            self.ivars().borrow_mut().fence(Entry::UpdateFence(Update::new(fence.number())));
        }

        #[unsafe(method(synchronizeResource:))]
        fn synchronize(&self, _resource: &AnyObject) {
            // For managed storage, which no Apple GPU has.
            self.ivars().borrow().is_open("synchronizeResource:");
        }

        #[unsafe(method(pushDebugGroup:))]
        fn push_debug_group(&self, _name: &NSString) {
            self.ivars().borrow_mut().push_group();
        }

        #[unsafe(method(popDebugGroup))]
        fn pop_debug_group(&self) {
            self.ivars().borrow_mut().pop_group();
        }

        #[unsafe(method(insertDebugSignpost:))]
        fn insert_debug_signpost(&self, _name: &NSString) {}

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().borrow().given_label()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().borrow_mut().set_label(label);
        }

        #[unsafe(method(endEncoding))]
        fn end_encoding(&self) {
            self.ivars().borrow_mut().end();
        }
    }
);

impl SoftBlitEncoder {
    pub(crate) fn create(commands: Retained<SoftCommandBuffer>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(RefCell::new(Encoder::new(
            commands,
            EncoderKind::Serial,
            "blit encoder",
        )));
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) fn load() {
    let _ = SoftBlitEncoder::class();
}
