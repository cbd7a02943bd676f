//! `MTLCommandBuffer`.

use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use block2::{Block, RcBlock};
use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::{MTLCommandBufferErrorOption, MTLCommandBufferStatus as Status, MTLDispatchType};

use crate::blit::SoftBlitEncoder;
use crate::check::report;
use crate::clock::seconds;
use crate::compute::SoftComputeEncoder;
use crate::counters::count;
use crate::device::{SoftDevice, model, shared};
use crate::faults;
use crate::foundation::{Underlying, error_with};
use crate::ordering::{EncoderKind, Number};
use crate::pass::{PassDescriptor, Sampling};
use crate::queue::{SoftQueue, prune_if_idle};
use crate::rules;
use crate::sync::SoftEvent;
use crate::work::{Command, EncoderWork, Entry, GpuError, Item, heard};

/// The domain of command buffers' errors.
const DOMAIN: &str = "MTLCommandBufferErrorDomain";
/// The domain of the errors that underlie them.
const KILL_DOMAIN: &str = "IOGPUCommandQueueErrorDomain";

type Handler = dyn Fn(NonNull<SoftCommandBuffer>);

struct State {
    status: Status,
    items: Vec<Item>,
    scheduled: Vec<RcBlock<Handler>>,
    completed: Vec<RcBlock<Handler>>,
    encoder_open: bool,
    error: Option<Retained<NSError>>,
    /// Start and end of the scheduling by the host, in seconds.
    scheduling: (f64, f64),
    /// Start and end on the device, in seconds.
    times: (f64, f64),
    handlers_done: bool,
    /// Broken rules that panic in the thread that waits.
    panics: Vec<String>,
    label: String,
    /// Whether the program gave the label.
    labelled: bool,
    groups: usize,
}

pub(crate) struct CommandBufferState {
    queue: Retained<SoftQueue>,
    number: Number,
    retained: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Drop for CommandBufferState {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.encoder_open {
            report(&rules::ENCODER_LEFT_OPEN, format!("{} was released with an open encoder", state.label));
        }
    }
}

define_class!(
    /// A list of encoders, run as a whole.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCommandBuffer"]
    #[ivars = CommandBufferState]
    pub(crate) struct SoftCommandBuffer;

    impl SoftCommandBuffer {
        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(commandQueue))]
        fn command_queue(&self) -> Retained<SoftQueue> {
            self.ivars().queue.clone()
        }

        #[unsafe(method(retainedReferences))]
        fn retained_references(&self) -> bool {
            self.ivars().retained
        }

        #[unsafe(method_id(computeCommandEncoder))]
        fn compute_encoder(&self) -> Option<Retained<SoftComputeEncoder>> {
            self.open("computeCommandEncoder").then(|| {
                SoftComputeEncoder::create(self.retain(), EncoderKind::Serial, Sampling::default())
            })
        }

        #[unsafe(method_id(computeCommandEncoderWithDispatchType:))]
        fn compute_encoder_with(&self, dispatch: MTLDispatchType) -> Option<Retained<SoftComputeEncoder>> {
            self.open("computeCommandEncoderWithDispatchType:").then(|| {
                SoftComputeEncoder::create(self.retain(), EncoderKind::of(dispatch), Sampling::default())
            })
        }

        #[unsafe(method_id(computeCommandEncoderWithDescriptor:))]
        fn compute_encoder_of(&self, pass: &PassDescriptor) -> Option<Retained<SoftComputeEncoder>> {
            self.open("computeCommandEncoderWithDescriptor:")
                .then(|| SoftComputeEncoder::create(self.retain(), pass.kind(), pass.sampling()))
        }

        #[unsafe(method_id(blitCommandEncoder))]
        fn blit_encoder(&self) -> Option<Retained<SoftBlitEncoder>> {
            self.open("blitCommandEncoder").then(|| SoftBlitEncoder::create(self.retain()))
        }

        #[unsafe(method(encodeSignalEvent:value:))]
        fn encode_signal(&self, event: &SoftEvent, value: u64) {
            if self.event_allowed("encodeSignalEvent") {
                self.state().items.push(Item::Signal(event.retain(), value));
            }
        }

        #[unsafe(method(encodeWaitForEvent:value:))]
        fn encode_wait(&self, event: &SoftEvent, value: u64) {
            if self.event_allowed("encodeWaitForEvent") {
                self.state().items.push(Item::Wait(event.retain(), value));
            }
        }

        #[unsafe(method(enqueue))]
        fn enqueue(&self) {
            let mut state = self.state();
            if state.status == Status::NotEnqueued {
                state.status = Status::Enqueued;
            }
        }

        #[unsafe(method(commit))]
        fn commit(&self) {
            let (status, open) = {
                let state = self.state();
                (state.status, state.encoder_open)
            };
            if is_committed(status) {
                return report(&rules::COMMIT_TWICE, self.name());
            }
            if open {
                return report(&rules::COMMIT_OPEN, self.name());
            }
            {
                let mut state = self.state();
                state.status = Status::Committed;
                state.items.iter_mut().for_each(Item::commit);
            }
            count(|counters| counters.command_buffers += 1);
            model().commit(self.ivars().number);
            self.ivars().queue.submit(self.retain());
        }

        #[unsafe(method(waitUntilScheduled))]
        fn wait_until_scheduled(&self) {
            self.wait(|state| state.status.0 >= Status::Scheduled.0);
        }

        #[unsafe(method(waitUntilCompleted))]
        fn wait_until_completed(&self) {
            count(|counters| counters.host_waits += 1);
            self.wait(|state| state.handlers_done);
            self.raise();
        }

        #[unsafe(method(status))]
        fn status(&self) -> Status {
            let status = self.state().status;
            if status.0 >= Status::Completed.0 {
                model().settle(self.ivars().number);
            }
            status
        }

        #[unsafe(method_id(error))]
        fn error(&self) -> Option<Retained<NSError>> {
            self.state().error.clone()
        }

        #[unsafe(method(addScheduledHandler:))]
        fn add_scheduled_handler(&self, block: &Block<Handler>) {
            if self.handler_allowed("addScheduledHandler:") {
                self.state().scheduled.push(block.copy());
            }
        }

        #[unsafe(method(addCompletedHandler:))]
        fn add_completed_handler(&self, block: &Block<Handler>) {
            if self.handler_allowed("addCompletedHandler:") {
                self.state().completed.push(block.copy());
            }
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            if let Some(label) = label.map(ToString::to_string) {
                model().label_command_buffer(self.ivars().number, &label);
                let mut state = self.state();
                (state.label, state.labelled) = (label, true);
            }
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            let state = self.state();
            state.labelled.then(|| NSString::from_str(&state.label))
        }

        #[unsafe(method(errorOptions))]
        fn error_options(&self) -> MTLCommandBufferErrorOption {
            MTLCommandBufferErrorOption::None
        }

        #[unsafe(method(pushDebugGroup:))]
        fn push_debug_group(&self, _name: &NSString) {
            self.state().groups += 1;
        }

        #[unsafe(method(popDebugGroup))]
        fn pop_debug_group(&self) {
            let groups = self.state().groups;
            if groups == 0 {
                return report(&rules::DEBUG_GROUP, format!("popDebugGroup on {} without a push", self.name()));
            }
            self.state().groups = groups - 1;
        }

        #[unsafe(method(useResidencySets:count:))]
        fn use_residency_sets(&self, _sets: *const *const NSObject, _count: usize) {}

        #[unsafe(method(useResidencySet:))]
        fn use_residency_set(&self, _set: &NSObject) {}

        #[unsafe(method(GPUStartTime))]
        fn gpu_start_time(&self) -> f64 {
            self.time(|state| state.times.0)
        }

        #[unsafe(method(GPUEndTime))]
        fn gpu_end_time(&self) -> f64 {
            self.time(|state| state.times.1)
        }

        #[unsafe(method(kernelStartTime))]
        fn kernel_start_time(&self) -> f64 {
            self.time(|state| state.scheduling.0)
        }

        #[unsafe(method(kernelEndTime))]
        fn kernel_end_time(&self) -> f64 {
            self.time(|state| state.scheduling.1)
        }
    }
);

fn is_committed(status: Status) -> bool {
    status.0 >= Status::Committed.0
}

impl GpuError {
    /// The error as a command buffer reports it.
    fn error(&self) -> Retained<NSError> {
        let underlying = self.kill.map(|kill| Underlying { domain: KILL_DOMAIN, code: kill as isize });
        error_with(DOMAIN, self.code as isize, &self.message, underlying)
    }
}

impl SoftCommandBuffer {
    pub(crate) fn create(queue: Retained<SoftQueue>, retained: bool) -> Retained<Self> {
        let number = model().command_buffer(queue.number(), "");
        let label = format!("command buffer {number}");
        model().label_command_buffer(number, &label);
        let state = State {
            status: Status::NotEnqueued,
            items: Vec::new(),
            scheduled: Vec::new(),
            completed: Vec::new(),
            encoder_open: false,
            error: None,
            scheduling: (0.0, 0.0),
            times: (0.0, 0.0),
            handlers_done: false,
            panics: Vec::new(),
            label,
            labelled: false,
            groups: 0,
        };
        let state =
            CommandBufferState { queue, number, retained, state: Mutex::new(state), changed: Condvar::new() };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.ivars().state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        self.state().label.clone()
    }

    /// Whether commands hold on to the buffers that they use.
    pub(crate) fn retains(&self) -> bool {
        self.ivars().retained
    }

    /// Opens an encoder if that is allowed.
    fn open(&self, what: &str) -> bool {
        let (committed, open) = {
            let state = self.state();
            (is_committed(state.status), state.encoder_open)
        };
        if committed {
            report(&rules::ENCODE_AFTER_COMMIT, format!("{what} of {}", self.name()));
            return false;
        }
        if open {
            report(&rules::SECOND_ENCODER, format!("{what} of {}", self.name()));
            return false;
        }
        count(|counters| counters.encoders += 1);
        self.state().encoder_open = true;
        true
    }

    /// Takes over what an encoder holds.
    pub(crate) fn close(&self, work: EncoderWork) {
        let mut state = self.state();
        state.encoder_open = false;
        state.items.push(Item::Encoder(work));
    }

    /// Takes over a command that opens and closes an encoder of its own, as MPS kernels do.
    pub(crate) fn encode_alone(&self, what: &str, command: Command) {
        let (committed, open) = {
            let state = self.state();
            (is_committed(state.status), state.encoder_open)
        };
        if committed {
            return report(&rules::ENCODE_AFTER_COMMIT, format!("{what} into {}", self.name()));
        }
        if open {
            return report(&rules::MPS_WITH_OPEN_ENCODER, format!("{what} into {}", self.name()));
        }
        count(|counters| counters.encoders += 1);
        let entries = vec![Entry::Command(command)];
        let work = EncoderWork {
            kind: EncoderKind::Serial,
            label: what.to_owned(),
            entries,
            sampling: Sampling::default(),
        };
        self.state().items.push(Item::Encoder(work));
    }

    fn event_allowed(&self, what: &str) -> bool {
        let (committed, open) = {
            let state = self.state();
            (is_committed(state.status), state.encoder_open)
        };
        if committed {
            report(&rules::ENCODE_AFTER_COMMIT, format!("{what} into {}", self.name()));
        } else if open {
            report(&rules::EVENT_WITH_OPEN_ENCODER, format!("{what} into {}", self.name()));
        }
        !committed && !open
    }

    fn handler_allowed(&self, what: &str) -> bool {
        let committed = is_committed(self.state().status);
        if committed {
            report(&rules::HANDLER_AFTER_COMMIT, format!("{what} of {}", self.name()));
        }
        !committed
    }

    fn wait(&self, reached: impl Fn(&State) -> bool) {
        if !is_committed(self.state().status) {
            return report(&rules::WAIT_BEFORE_COMMIT, self.name());
        }
        let mut state = self.state();
        while !reached(&state) {
            state = self.ivars().changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let complete = state.handlers_done;
        drop(state);
        if complete {
            model().settle(self.ivars().number);
            prune_if_idle();
        }
    }

    /// A time of a command buffer that is over; 0 before.
    fn time(&self, of: impl Fn(&State) -> f64) -> f64 {
        let state = self.state();
        if state.status.0 >= Status::Completed.0 { of(&state) } else { 0.0 }
    }

    /// Panics in the waiting thread with what the worker found.
    fn raise(&self) {
        let panics = std::mem::take(&mut self.state().panics);
        heard(panics.len());
        if !panics.is_empty() && !std::thread::panicking() {
            panic!("{}", panics.join("\n"));
        }
    }

    /// Runs everything, on the queue's worker.
    pub(crate) fn run(&self) {
        let this = NonNull::from(self);
        let (items, scheduled) = {
            let mut state = self.state();
            state.status = Status::Scheduled;
            state.scheduling.0 = seconds();
            (std::mem::take(&mut state.items), std::mem::take(&mut state.scheduled))
        };
        self.ivars().changed.notify_all();
        scheduled.iter().for_each(|handler| handler.call((this,)));
        {
            let mut state = self.state();
            state.scheduling.1 = seconds();
            state.times.0 = seconds();
        }
        let mut panics = Vec::new();
        let failure = match faults::command_buffer_error() {
            Some(code) => {
                let message = "a fault that was asked for".to_owned();
                Some(GpuError { code, message, rule: None, kill: None })
            }
            None => self.run_items(items, &mut panics).err(),
        };
        if failure.as_ref().is_some_and(|failure| failure.kill.is_some()) {
            count(|counters| counters.killed += 1);
        }
        std::thread::sleep(faults::delay());
        let completed = {
            let mut state = self.state();
            state.times.1 = seconds();
            state.panics = panics;
            state.status = if failure.is_some() { Status::Error } else { Status::Completed };
            state.error = failure.map(|failure| failure.error());
            std::mem::take(&mut state.completed)
        };
        if !completed.is_empty() {
            // Through a handler the host sees that this one is over: what it commits from then on comes after.
            model().settle(self.ivars().number);
        }
        completed.iter().for_each(|handler| handler.call((this,)));
        // The handlers' captures end before the waiter goes on.
        drop(completed);
        self.state().handlers_done = true;
        self.ivars().changed.notify_all();
    }

    fn run_items(&self, items: Vec<Item>, panics: &mut Vec<String>) -> Result<(), GpuError> {
        let mut sentence = faults::sentence();
        items.into_iter().try_for_each(|item| item.run(self.ivars().number, panics, &mut sentence))?;
        sentence.after_all().map_err(GpuError::killed)
    }
}

pub(crate) fn load() {
    let _ = SoftCommandBuffer::class();
}
