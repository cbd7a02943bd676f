//! What is encoded, and how a queue's worker runs it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use objc2::rc::Retained;

use crate::buffer::SoftBuffer;
use crate::check::{Rule, report};
use crate::counters::count;
use crate::device::model;
use crate::faults::{CommandBufferError, Kill, Sentence};
use crate::fences::{Update, Wait};
use crate::memory::Memory;
use crate::ordering::{Bytes, CommandPlace, EncoderKind, Number, Touched};
use crate::pass::Sampling;
use crate::rules;
use crate::sync::SoftEvent;

/// Why a command failed on the device.
#[derive(Debug)]
pub(crate) struct GpuError {
    pub(crate) code: CommandBufferError,
    pub(crate) message: String,
    /// The rule that was broken, if it was one.
    pub(crate) rule: Option<Rule>,
    /// How the GPU ended the command buffer, if a test asked for that.
    pub(crate) kill: Option<Kill>,
}

impl GpuError {
    /// A failure in the device itself.
    pub(crate) fn internal(message: String) -> Self {
        Self { code: CommandBufferError::Internal, message, rule: None, kill: None }
    }

    /// The end of a command buffer that the GPU killed.
    pub(crate) fn killed(kill: Kill) -> Self {
        Self { kill: Some(kill), ..Self::internal(kill.text().to_owned()) }
    }
}

/// What a command touched, by buffer.
pub(crate) type Accesses = Vec<(Number, Touched)>;

/// The code of a command.
pub(crate) type Body = Box<dyn FnOnce() -> Result<Accesses, GpuError>>;

/// A buffer that a command uses: its memory always, the object if the command buffer retains references.
pub(crate) struct Use {
    memory: Arc<Memory>,
    description: String,
    _object: Option<Retained<SoftBuffer>>,
}

impl Use {
    pub(crate) fn of(buffer: &Retained<SoftBuffer>, retained: bool) -> Self {
        Self {
            memory: Arc::clone(buffer.memory()),
            description: buffer.describe(),
            _object: retained.then(|| buffer.clone()),
        }
    }
}

/// One dispatch, copy, fill or MPS kernel.
pub(crate) struct Command {
    pub(crate) label: String,
    pub(crate) uses: Vec<Use>,
    /// Threads of its grid; 0 for blits, MPS kernels and indirect dispatches.
    pub(crate) threads: u64,
    pub(crate) body: Body,
}

/// What an encoder holds, in the order of encoding.
pub(crate) enum Entry {
    Command(Command),
    /// For all buffers, or for bytes of some.
    Barrier(Option<Vec<Bytes>>),
    WaitForFence(Wait),
    UpdateFence(Update),
}

/// An ended encoder.
pub(crate) struct EncoderWork {
    pub(crate) kind: EncoderKind,
    pub(crate) label: String,
    pub(crate) entries: Vec<Entry>,
    pub(crate) sampling: Sampling,
}

/// What a command buffer holds.
pub(crate) enum Item {
    Encoder(EncoderWork),
    Signal(Retained<SoftEvent>, u64),
    Wait(Retained<SoftEvent>, u64),
}

/// Only one command runs at a time, so that hazards are reported and never become races of this process.
static DEVICE: Mutex<()> = Mutex::new(());
static SHUFFLES: AtomicU64 = AtomicU64::new(0);

/// The seed of all random orders: `SOFTMETAL_SEED`, or one of the clock's, which is printed.
pub fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let given = std::env::var("SOFTMETAL_SEED").ok().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let seed = u64::from(now.subsec_nanos()) | 1;
            eprintln!("softmetal: seed {seed}; SOFTMETAL_SEED={seed} repeats this run");
            seed
        })
    });
    *SEED
}

/// The next number of a sequence that the seed decides (SplitMix64, Steele et al. 2014).
pub(crate) fn random() -> u64 {
    let turn = SHUFFLES.fetch_add(1, Ordering::Relaxed);
    let mut z = seed().wrapping_add(turn.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Reports a broken rule from the worker. A panic that it asks for is kept for whoever waits, since it would end the
/// queue here.
pub(crate) fn report_for_waiter(rule: &Rule, message: String, panics: &mut Vec<String>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| report(rule, message))) {
        let text = panic.downcast_ref::<String>().cloned();
        panics.push(text.unwrap_or_else(|| "a rule was broken".to_owned()));
        UNHEARD.fetch_add(1, Ordering::Relaxed);
    }
}

/// Broken rules that are to panic in a thread that waits, and have not yet.
static UNHEARD: AtomicUsize = AtomicUsize::new(0);

/// Somebody who waited was told of so many broken rules.
pub(crate) fn heard(count: usize) {
    UNHEARD.fetch_sub(count, Ordering::Relaxed);
}

/// Fails the process at its end if a rule was broken on the device and nobody waited for that command buffer.
pub(crate) extern "C" fn fail_if_unheard() {
    let count = UNHEARD.load(Ordering::Relaxed);
    if count > 0 {
        eprintln!("softmetal: {count} broken rules, see above, in command buffers that nobody waited for");
        // SAFETY: ends the process at once; it is ending already.
        unsafe { libc::_exit(101) };
    }
}

impl Item {
    /// Its command buffer is committed: fences are to know what comes before what.
    pub(crate) fn commit(&mut self) {
        let Self::Encoder(work) = self else { return };
        // The waits first: no encoder waits for an update of its own.
        for entry in &mut work.entries {
            if let Entry::WaitForFence(wait) = entry {
                wait.commit();
            }
        }
        for entry in &mut work.entries {
            if let Entry::UpdateFence(update) = entry {
                update.commit();
            }
        }
    }

    /// Runs the item for a command buffer. Rules that it breaks go to `panics` if they are to panic; `sentence` decides
    /// whether the command buffer is killed.
    pub(crate) fn run(
        self,
        command_buffer: Number,
        panics: &mut Vec<String>,
        sentence: &mut Sentence,
    ) -> Result<(), GpuError> {
        match self {
            Self::Encoder(work) => work.run(command_buffer, panics, sentence),
            Self::Signal(event, value) => {
                model().signal(command_buffer, event.number(), value);
                event.signal(value);
                Ok(())
            }
            Self::Wait(event, value) => {
                event.wait(value, None);
                model().wait_for_event(command_buffer, event.number(), value);
                Ok(())
            }
        }
    }
}

impl EncoderWork {
    fn run(
        self,
        command_buffer: Number,
        panics: &mut Vec<String>,
        sentence: &mut Sentence,
    ) -> Result<(), GpuError> {
        let encoder = model().encoder(command_buffer, self.kind, &self.label);
        // Commands get their places in the order of encoding; those between two barriers then run in any order.
        let mut segments: Vec<Vec<(CommandPlace, Command)>> = vec![Vec::new()];
        let mut updates = Vec::new();
        for entry in self.entries {
            match entry {
                Entry::Command(command) => {
                    let place = model().command(encoder);
                    segments.last_mut().expect("one at least").push((place, command));
                }
                Entry::Barrier(buffers) => {
                    model().barrier(encoder, buffers.as_deref());
                    segments.push(Vec::new());
                }
                Entry::WaitForFence(wait) => {
                    wait.wait();
                    if model().wait_for_fence(encoder, wait.fence()) {
                        let what = format!("{} waits for a fence that another queue updates", self.label);
                        report_for_waiter(&rules::FENCE_BETWEEN_QUEUES, what, panics);
                    }
                    segments.push(Vec::new());
                }
                Entry::UpdateFence(update) => {
                    model().update_fence(encoder, update.fence());
                    updates.push(update);
                }
            }
        }
        self.sampling.begin();
        for mut segment in segments {
            if self.kind == EncoderKind::Concurrent {
                shuffle(&mut segment);
            }
            for (place, command) in segment {
                sentence.before(command.threads).map_err(GpuError::killed)?;
                command.run(place, panics)?;
            }
        }
        self.sampling.end();
        drop(updates);
        Ok(())
    }
}

fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, (random() % (last as u64 + 1)) as usize);
    }
}

impl Command {
    fn run(self, place: CommandPlace, panics: &mut Vec<String>) -> Result<(), GpuError> {
        let Self { label, uses, body, .. } = self;
        for used in uses.iter().filter(|used| used.memory.released.load(Ordering::Acquire)) {
            let message = format!("{label} uses {}", used.description);
            report_for_waiter(&rules::RELEASED_UNRETAINED, message, panics);
        }
        count(|counters| *counters.commands.entry(label.clone()).or_default() += 1);
        let device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
        let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
            Err(GpuError::internal(text))
        });
        drop(device);
        let accesses = match result {
            Ok(accesses) => accesses,
            Err(error) => {
                if let Some(rule) = &error.rule {
                    report_for_waiter(rule, error.message.clone(), panics);
                }
                return Err(error);
            }
        };
        for hazard in model().touched(place, &label, &accesses) {
            report_for_waiter(hazard.rule(), hazard.message.clone(), panics);
        }
        Ok(())
    }
}
