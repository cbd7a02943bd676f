//! Which command is sure to run after which, and which pairs touch the same bytes without that.
//!
//! A GPU may run two commands at the same time, or in either order, unless something orders them:
//!
//! - the dispatches of a serial encoder and the commands of a blit encoder run one after the other; those of a
//!   concurrent encoder do not, except across a barrier (of all buffers, or of the named ones);
//! - encoders are ordered by a fence that the first updates and the second waits for, or by an event; for tracked
//!   resources Metal itself keeps encoders of one queue in order;
//! - queues are ordered by fences and events only;
//! - a command buffer that is committed after the host has seen another one complete runs after it.
//!
//! The model is told what is encoded and, when a command has run, which bytes it read and wrote. A pair of accesses
//! to the same bytes, at least one of them a write, that nothing orders is a hazard: on a Mac it may go wrong, however
//! well it went here. Sources: Apple, "Resource synchronization", MTLFence, MTLEvent, MTLHazardTrackingMode,
//! MTLDispatchType.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use objc2_metal::MTLDispatchType;
use softmetal_objc::check::{Rule, Severity};

use crate::encoder_set::EncoderSet;
use crate::ranges::Ranges;

const SOURCE: &str =
    "Apple: Resource synchronization; MTLDispatchType; MTLFence; MTLEvent; MTLHazardTrackingMode";

macro_rules! hazard {
    ($name:ident, $id:literal, $text:literal) => {
        #[doc = $text]
        pub static $name: Rule =
            Rule { id: $id, text: $text, severity: Severity::Documented, source: SOURCE };
    };
}

hazard!(
    WITHIN_ENCODER,
    "order-within-encoder",
    "dispatches of a concurrent encoder that touch the same bytes have a barrier between them"
);
hazard!(
    BETWEEN_ENCODERS,
    "order-between-encoders",
    "encoders that touch the same bytes of an untracked resource are ordered by a fence or an event"
);
hazard!(
    BETWEEN_COMMAND_BUFFERS,
    "order-between-command-buffers",
    "command buffers that touch the same bytes of an untracked resource are ordered by a fence, an event or a wait"
);
hazard!(
    BETWEEN_QUEUES,
    "order-between-queues",
    "queues that touch the same bytes are ordered by a fence, an event or a wait of the host"
);

/// The rules of this module.
pub static RULES: [&Rule; 4] =
    [&WITHIN_ENCODER, &BETWEEN_ENCODERS, &BETWEEN_COMMAND_BUFFERS, &BETWEEN_QUEUES];

/// A number of the model.
pub type Number = u64;

/// Bytes of a buffer.
pub type Bytes = (Number, Range<usize>);

/// How the commands of an encoder are ordered among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderKind {
    /// One after the other.
    Serial,
    /// In any order between barriers.
    Concurrent,
}

impl EncoderKind {
    pub(crate) fn of(dispatch: MTLDispatchType) -> Self {
        if dispatch == MTLDispatchType::Concurrent { Self::Concurrent } else { Self::Serial }
    }
}

/// A command's place in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandPlace {
    encoder: Number,
    index: usize,
}

/// What a command did to one buffer.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Bytes that were read.
    pub reads: Ranges,
    /// Bytes that were written.
    pub writes: Ranges,
    /// Whether the resource opted out of the tracking of its heap.
    pub opted_out: bool,
}

impl Touched {
    fn without(&self, bytes: &Range<usize>) -> Self {
        Self {
            reads: self.reads.without(bytes),
            writes: self.writes.without(bytes),
            opted_out: self.opted_out,
        }
    }
}

/// Two commands that nothing orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hazard {
    /// The rule that they break.
    pub rule: &'static str,
    /// Names both commands, the buffer and the bytes.
    pub message: String,
}

impl Hazard {
    /// The rule itself.
    pub fn rule(&self) -> &'static Rule {
        RULES.into_iter().find(|rule| rule.id == self.rule).unwrap_or(&WITHIN_ENCODER)
    }
}

#[derive(Debug)]
struct Encoder {
    command_buffer: Number,
    kind: EncoderKind,
    label: String,
    commands: usize,
    /// Encoders that are over before this one's command with the given index begins: (from index, encoders). What
    /// those came after is among them.
    after: Vec<(usize, Arc<EncoderSet>)>,
    /// Barriers: before the command with this index, for bytes of one buffer or for all.
    barriers: Vec<(usize, Option<Bytes>)>,
}

#[derive(Debug)]
struct CommandBuffer {
    queue: Number,
    label: String,
    encoders: Vec<Number>,
    /// Encoders that are over before anything that is encoded from now on begins.
    waited: Arc<EncoderSet>,
    /// What the host had seen complete when this one was committed.
    settled: Settled,
}

/// Encoders that the host has seen complete: all numbers below one, and some above.
#[derive(Debug, Clone, Default)]
struct Settled {
    below: Number,
    encoders: Arc<EncoderSet>,
}

impl Settled {
    fn contains(&self, encoder: Number) -> bool {
        encoder < self.below || self.encoders.contains(encoder)
    }
}

struct Record {
    place: CommandPlace,
    label: String,
    touched: Touched,
}

#[derive(Default)]
struct Buffer {
    tracked: bool,
    label: String,
    history: Vec<Record>,
}

/// The model of one device.
#[derive(Default)]
pub struct Model {
    next: Number,
    encoders: HashMap<Number, Encoder>,
    command_buffers: HashMap<Number, CommandBuffer>,
    buffers: HashMap<Number, Buffer>,
    /// For each fence the queue of the encoder that updated it last, that encoder, and what that one came after.
    fences: HashMap<Number, (Option<Number>, Arc<EncoderSet>)>,
    /// For each event the values signalled, with the encoders that are over then.
    events: HashMap<Number, BTreeMap<u64, Arc<EncoderSet>>>,
    /// Command buffers of each queue in the order of their commits.
    queues: HashMap<Number, Vec<Number>>,
    settled: Settled,
}

impl Model {
    fn number(&mut self) -> Number {
        self.next += 1;
        self.next
    }

    /// A new queue, fence or event.
    pub fn object(&mut self) -> Number {
        self.number()
    }

    /// A new buffer.
    pub fn buffer(&mut self, tracked: bool, label: &str) -> Number {
        let number = self.number();
        self.buffers.insert(number, Buffer { tracked, label: label.to_owned(), history: Vec::new() });
        number
    }

    /// Names a buffer in messages.
    pub fn label_buffer(&mut self, buffer: Number, label: &str) {
        if let Some(buffer) = self.buffers.get_mut(&buffer) {
            label.clone_into(&mut buffer.label);
        }
    }

    /// What was done to some bytes of a heap does not concern what is put there next.
    pub fn forget_bytes(&mut self, heap: Number, bytes: &Range<usize>) {
        if let Some(heap) = self.buffers.get_mut(&heap) {
            heap.history.iter_mut().for_each(|record| record.touched = record.touched.without(bytes));
            heap.history
                .retain(|Record { touched, .. }| !touched.reads.is_empty() || !touched.writes.is_empty());
        }
    }

    /// A buffer is gone, and what was done to it with it.
    pub fn forget_buffer(&mut self, buffer: Number) {
        self.buffers.remove(&buffer);
    }

    /// A new command buffer of a queue.
    pub fn command_buffer(&mut self, queue: Number, label: &str) -> Number {
        let number = self.number();
        let new = CommandBuffer {
            queue,
            label: label.to_owned(),
            encoders: Vec::new(),
            waited: Arc::default(),
            settled: Settled::default(),
        };
        self.command_buffers.insert(number, new);
        number
    }

    /// Names a command buffer in messages.
    pub fn label_command_buffer(&mut self, command_buffer: Number, label: &str) {
        if let Some(entry) = self.command_buffers.get_mut(&command_buffer) {
            label.clone_into(&mut entry.label);
        }
    }

    /// A new encoder of a command buffer.
    pub fn encoder(&mut self, command_buffer: Number, kind: EncoderKind, label: &str) -> Number {
        let number = self.number();
        let mut after = Vec::new();
        if let Some(buffer) = self.command_buffers.get_mut(&command_buffer) {
            buffer.encoders.push(number);
            after.push((0, buffer.waited.clone()));
        }
        let label = label.to_owned();
        let encoder = Encoder { command_buffer, kind, label, commands: 0, after, barriers: Vec::new() };
        self.encoders.insert(number, encoder);
        number
    }

    /// The next command of an encoder.
    pub fn command(&mut self, encoder: Number) -> CommandPlace {
        let entry = self.encoders.get_mut(&encoder);
        let index = entry.map_or(0, |entry| {
            entry.commands += 1;
            entry.commands - 1
        });
        CommandPlace { encoder, index }
    }

    /// A barrier for all buffers, or for bytes of some.
    pub fn barrier(&mut self, encoder: Number, buffers: Option<&[Bytes]>) {
        let Some(entry) = self.encoders.get_mut(&encoder) else { return };
        let at = entry.commands;
        match buffers {
            None => entry.barriers.push((at, None)),
            Some(buffers) => entry.barriers.extend(buffers.iter().map(|buffer| (at, Some(buffer.clone())))),
        }
    }

    /// All encoders that are over before command `index` of `encoder` begins.
    fn predecessors(&self, encoder: Number, index: usize) -> EncoderSet {
        let mut found = EncoderSet::default();
        if let Some(entry) = self.encoders.get(&encoder) {
            entry.after.iter().filter(|(from, _)| *from <= index).for_each(|(_, over)| found.unite(over));
        }
        found.remove(encoder);
        found
    }

    /// The encoder updates a fence when its commands so far are over.
    pub fn update_fence(&mut self, encoder: Number, fence: Number) {
        let mut over = self.predecessors(encoder, usize::MAX);
        over.insert(encoder);
        self.fences.insert(fence, (self.queue(encoder), Arc::new(over)));
    }

    /// What the encoder encodes from now on waits for a fence. Tells whether an encoder of another queue updated it.
    pub fn wait_for_fence(&mut self, encoder: Number, fence: Number) -> bool {
        let queue = self.queue(encoder);
        let Some((updated_by, over)) = self.fences.get(&fence) else { return false };
        if let Some(entry) = self.encoders.get_mut(&encoder) {
            let at = entry.commands;
            entry.after.push((at, over.clone()));
        }
        *updated_by != queue
    }

    /// The queue of an encoder.
    fn queue(&self, encoder: Number) -> Option<Number> {
        let command_buffer = self.encoders.get(&encoder)?.command_buffer;
        self.command_buffers.get(&command_buffer).map(|buffer| buffer.queue)
    }

    /// A command buffer signals an event when everything before it in the queue is over.
    pub fn signal(&mut self, command_buffer: Number, event: Number, value: u64) {
        let Some(entry) = self.command_buffers.get(&command_buffer) else { return };
        let earlier = self.queues.get(&entry.queue).into_iter().flatten();
        let mut over = EncoderSet::clone(&entry.waited);
        let buffers = earlier.chain([&command_buffer]).filter_map(|number| self.command_buffers.get(number));
        for &encoder in buffers.flat_map(|buffer| &buffer.encoders) {
            over.unite(&self.predecessors(encoder, usize::MAX));
            over.insert(encoder);
        }
        self.events.entry(event).or_default().insert(value, Arc::new(over));
    }

    /// What a command buffer encodes from now on waits until an event has a value.
    pub fn wait_for_event(&mut self, command_buffer: Number, event: Number, value: u64) {
        let signals = self.events.get(&event);
        // Events count upwards: a higher value says that the lower ones were reached.
        let mut over = EncoderSet::default();
        signals.into_iter().flat_map(|s| s.range(..=value)).for_each(|(_, signalled)| over.unite(signalled));
        if let Some(entry) = self.command_buffers.get_mut(&command_buffer) {
            Arc::make_mut(&mut entry.waited).unite(&over);
        }
    }

    /// A command buffer is committed.
    pub fn commit(&mut self, command_buffer: Number) {
        let settled = self.settled.clone();
        if let Some(entry) = self.command_buffers.get_mut(&command_buffer) {
            entry.settled = settled;
            self.queues.entry(entry.queue).or_default().push(command_buffer);
        }
    }

    /// The host has seen that a command buffer is complete: it waited, read the status, or its handler ran.
    pub fn settle(&mut self, command_buffer: Number) {
        let mut over = EncoderSet::default();
        let encoders = self.command_buffers.get(&command_buffer).map(|buffer| &buffer.encoders);
        encoders.into_iter().flatten().for_each(|&encoder| over.insert(encoder));
        self.settle_encoders(&over);
    }

    /// The host has seen that an event has a value.
    pub fn settle_event(&mut self, event: Number, value: u64) {
        let signals = self.events.get(&event).into_iter().flat_map(|signals| signals.range(..=value));
        let mut over = EncoderSet::default();
        signals.for_each(|(_, signalled)| over.unite(signalled));
        self.settle_encoders(&over);
    }

    fn settle_encoders(&mut self, encoders: &EncoderSet) {
        if !self.settled.encoders.contains_all(encoders) {
            Arc::make_mut(&mut self.settled.encoders).unite(encoders);
        }
    }

    /// Whether `a` is over before `b` begins. `over` are the encoders that are over
    /// before `b`.
    fn ordered(&self, a: CommandPlace, b: CommandPlace, over: &EncoderSet) -> bool {
        let (Some(first), Some(second)) = (self.encoders.get(&a.encoder), self.encoders.get(&b.encoder))
        else {
            return true;
        };
        if a.encoder == b.encoder {
            let barrier =
                |(at, which): &(usize, Option<Bytes>)| a.index < *at && *at <= b.index && which.is_none();
            return first.kind == EncoderKind::Serial || first.barriers.iter().any(barrier);
        }
        let (x, y) = (first.command_buffer, second.command_buffer);
        let settled = x != y && self.command_buffers.get(&y).is_some_and(|y| y.settled.contains(a.encoder));
        settled || over.contains(a.encoder)
    }

    /// What a command touched of a buffer without the bytes that barriers between it and an earlier one are for.
    fn exposed(&self, a: CommandPlace, b: CommandPlace, buffer: Number, touched: &Touched) -> Touched {
        let encoder = self.encoders.get(&a.encoder).filter(|_| a.encoder == b.encoder);
        let barriers = encoder.into_iter().flat_map(|encoder| &encoder.barriers);
        let between = barriers.filter(|(at, _)| a.index < *at && *at <= b.index);
        let mine = between.filter_map(|(_, which)| which.as_ref()).filter(|(number, _)| *number == buffer);
        mine.fold(touched.clone(), |left, (_, bytes)| left.without(bytes))
    }

    /// A command has run. Every access of an earlier command to the same bytes must be ordered with it.
    pub fn touched(
        &mut self,
        place: CommandPlace,
        label: &str,
        buffers: &[(Number, Touched)],
    ) -> Vec<Hazard> {
        let mut hazards = Vec::new();
        let over = self.predecessors(place.encoder, place.index);
        for (number, touched) in buffers {
            let Some(buffer) = self.buffers.get(number) else { continue };
            for earlier in buffer.history.iter().filter(|earlier| earlier.place != place) {
                let common = conflict(&earlier.touched, touched);
                if common.is_none() || self.ordered(earlier.place, place, &over) {
                    continue;
                }
                let exposed = self.exposed(earlier.place, place, *number, touched);
                let Some((kind, bytes)) = conflict(&earlier.touched, &exposed) else { continue };
                let tracked = buffer.tracked && !touched.opted_out && !earlier.touched.opted_out;
                if let Some(rule) = self.rule(earlier.place, place, tracked) {
                    let message = format!(
                        "{} {kind} {} of {}: bytes {}..{}, and nothing orders them",
                        self.describe(place, label),
                        self.describe(earlier.place, &earlier.label),
                        if buffer.label.is_empty() {
                            format!("buffer {number}")
                        } else {
                            buffer.label.clone()
                        },
                        bytes.start,
                        bytes.end,
                    );
                    hazards.push(Hazard { rule: rule.id, message });
                }
            }
            let record = Record { place, label: label.to_owned(), touched: touched.clone() };
            if let Some(buffer) = self.buffers.get_mut(number) {
                buffer.history.push(record);
            }
        }
        hazards
    }

    /// The rule that two unordered commands break; `None` if Metal's tracking orders them.
    fn rule(&self, a: CommandPlace, b: CommandPlace, tracked: bool) -> Option<&'static Rule> {
        let (first, second) = (self.encoders.get(&a.encoder)?, self.encoders.get(&b.encoder)?);
        if a.encoder == b.encoder {
            return Some(&WITHIN_ENCODER);
        }
        if self.queue(a.encoder) != self.queue(b.encoder) {
            return Some(&BETWEEN_QUEUES);
        }
        if tracked {
            return None;
        }
        let same = first.command_buffer == second.command_buffer;
        Some(if same { &BETWEEN_ENCODERS } else { &BETWEEN_COMMAND_BUFFERS })
    }

    fn describe(&self, place: CommandPlace, label: &str) -> String {
        let Some(encoder) = self.encoders.get(&place.encoder) else { return label.to_owned() };
        let buffer = self.command_buffers.get(&encoder.command_buffer).map_or("", |b| b.label.as_str());
        format!("{label} (command {} of {} in {buffer})", place.index, encoder.label)
    }

    /// Forgets what everything still to come is ordered after. To be called when nothing is under way; where the host
    /// has not seen that, everything is kept.
    pub fn prune(&mut self) {
        if self.encoders.keys().any(|&encoder| !self.settled.contains(encoder)) {
            return;
        }
        self.next += 1;
        self.settled = Settled { below: self.next, encoders: Arc::default() };
        self.encoders.clear();
        self.queues.clear();
        self.buffers.values_mut().for_each(|buffer| buffer.history.clear());
        // Fences and events order only what comes after encoders that are gone now.
        self.fences.clear();
        self.events.clear();
    }
}

/// The words for what two accesses do to each other, and the first bytes of it.
fn conflict(earlier: &Touched, later: &Touched) -> Option<(&'static str, Range<usize>)> {
    if let Some(bytes) = earlier.writes.overlap(&later.reads) {
        return Some(("reads what is written by", bytes));
    }
    if let Some(bytes) = earlier.writes.overlap(&later.writes) {
        return Some(("writes what is written by", bytes));
    }
    earlier.reads.overlap(&later.writes).map(|bytes| ("writes what is read by", bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model with two queues and one buffer.
    struct Bench {
        model: Model,
        queues: [Number; 2],
        buffer: Number,
    }

    impl Bench {
        fn new(tracked: bool) -> Self {
            let mut model = Model::default();
            let queues = [model.object(), model.object()];
            let buffer = model.buffer(tracked, "x");
            Self { model, queues, buffer }
        }

        fn commands(&mut self, queue: usize) -> Number {
            let buffer = self.model.command_buffer(self.queues[queue], "commands");
            self.model.commit(buffer);
            buffer
        }

        /// Runs a command that writes, or reads, a range of the buffer; tells the rules that it breaks.
        fn run(&mut self, encoder: Number, write: bool, range: Range<usize>) -> Vec<&'static str> {
            let place = self.model.command(encoder);
            self.run_at(place, write, range)
        }

        fn run_at(&mut self, place: CommandPlace, write: bool, range: Range<usize>) -> Vec<&'static str> {
            let ranges = Ranges::new(vec![range]);
            let touched = if write {
                Touched { writes: ranges, ..Touched::default() }
            } else {
                Touched { reads: ranges, ..Touched::default() }
            };
            let hazards = self.model.touched(place, "kernel", &[(self.buffer, touched)]);
            hazards.iter().map(|hazard| hazard.rule).collect()
        }
    }

    use EncoderKind::{Concurrent, Serial};

    #[test]
    fn barriers_order_a_concurrent_encoder_and_nothing_else_does() {
        for (kind, barrier, expected) in [
            (Serial, false, vec![]),
            (Concurrent, false, vec!["order-within-encoder"]),
            (Concurrent, true, vec![]),
        ] {
            let mut bench = Bench::new(true);
            let commands = bench.commands(0);
            let encoder = bench.model.encoder(commands, kind, "encoder");
            assert!(bench.run(encoder, true, 0..64).is_empty());
            if barrier {
                bench.model.barrier(encoder, None);
            }
            assert_eq!(bench.run(encoder, false, 32..96), expected, "{kind:?} {barrier}");
        }
    }

    #[test]
    fn bytes_apart_and_two_reads_are_no_hazard() {
        let mut bench = Bench::new(false);
        let commands = bench.commands(0);
        let encoder = bench.model.encoder(commands, Concurrent, "encoder");
        assert!(bench.run(encoder, true, 0..64).is_empty());
        assert!(bench.run(encoder, true, 64..128).is_empty());
        assert!(bench.run(encoder, false, 128..256).is_empty());
        assert!(bench.run(encoder, false, 128..256).is_empty());
        assert_eq!(bench.run(encoder, true, 200..201), ["order-within-encoder"; 2]);
    }

    #[test]
    fn a_barrier_for_another_buffer_does_not_order_this_one() {
        let mut bench = Bench::new(false);
        let other = bench.model.buffer(false, "y");
        let commands = bench.commands(0);
        let encoder = bench.model.encoder(commands, Concurrent, "encoder");
        assert!(bench.run(encoder, true, 0..4).is_empty());
        bench.model.barrier(encoder, Some(&[(other, 0..4)]));
        assert_eq!(bench.run(encoder, false, 0..4), ["order-within-encoder"]);
        bench.model.barrier(encoder, Some(&[(bench.buffer, 0..4)]));
        assert!(bench.run(encoder, true, 0..4).is_empty());
        bench.model.barrier(encoder, Some(&[(bench.buffer, 0..3)]));
        assert_eq!(bench.run(encoder, false, 0..4), ["order-within-encoder"], "one byte is left out");
    }

    #[test]
    fn untracked_buffers_need_a_fence_between_encoders_and_tracked_ones_do_not() {
        for (tracked, fence, expected) in
            [(false, false, vec!["order-between-encoders"]), (false, true, vec![]), (true, false, vec![])]
        {
            let mut bench = Bench::new(tracked);
            let commands = bench.commands(0);
            let number = bench.model.object();
            let first = bench.model.encoder(commands, Serial, "first");
            assert!(bench.run(first, true, 0..4).is_empty());
            if fence {
                bench.model.update_fence(first, number);
            }
            let second = bench.model.encoder(commands, Serial, "second");
            assert!(!bench.model.wait_for_fence(second, number), "one queue");
            assert_eq!(bench.run(second, false, 0..4), expected, "{tracked} {fence}");
        }
    }

    #[test]
    fn fences_order_through_encoders_in_between() {
        let mut bench = Bench::new(false);
        let commands = bench.commands(0);
        let (a, b) = (bench.model.object(), bench.model.object());
        let first = bench.model.encoder(commands, Serial, "first");
        assert!(bench.run(first, true, 0..4).is_empty());
        bench.model.update_fence(first, a);
        let second = bench.model.encoder(commands, Serial, "second");
        bench.model.wait_for_fence(second, a);
        bench.model.update_fence(second, b);
        let third = bench.model.encoder(commands, Serial, "third");
        bench.model.wait_for_fence(third, b);
        assert!(bench.run(third, true, 0..4).is_empty());
    }

    #[test]
    fn a_fence_orders_only_what_comes_after_the_wait() {
        let mut bench = Bench::new(false);
        let commands = bench.commands(0);
        let fence = bench.model.object();
        let first = bench.model.encoder(commands, Serial, "first");
        assert!(bench.run(first, true, 0..4).is_empty());
        bench.model.update_fence(first, fence);
        let second = bench.model.encoder(commands, Concurrent, "second");
        let early = bench.model.command(second);
        bench.model.wait_for_fence(second, fence);
        assert_eq!(bench.run_at(early, false, 0..4), ["order-between-encoders"]);
        assert!(bench.run(second, false, 0..4).is_empty());
    }

    #[test]
    fn command_buffers_of_a_queue_need_a_wait_of_the_host_a_fence_or_an_event() {
        for how in ["nothing", "wait", "event", "tracked"] {
            let mut bench = Bench::new(how == "tracked");
            let event = bench.model.object();
            let first = bench.commands(0);
            let encoder = bench.model.encoder(first, Serial, "first");
            assert!(bench.run(encoder, true, 0..4).is_empty());
            match how {
                "wait" => bench.model.settle(first),
                "event" => bench.model.signal(first, event, 1),
                _ => {}
            }
            let second = bench.commands(0);
            if how == "event" {
                bench.model.wait_for_event(second, event, 1);
            }
            let encoder = bench.model.encoder(second, Serial, "second");
            let found = bench.run(encoder, true, 0..4);
            let expected: &[&str] = if how == "nothing" { &["order-between-command-buffers"] } else { &[] };
            assert_eq!(found, expected, "{how}");
        }
    }

    #[test]
    fn queues_need_a_fence_or_an_event_even_for_tracked_buffers() {
        for (value, expected) in
            [(None, vec!["order-between-queues"]), (Some(5), vec![]), (Some(4), vec!["order-between-queues"])]
        {
            let mut bench = Bench::new(true);
            let event = bench.model.object();
            let first = bench.commands(0);
            let encoder = bench.model.encoder(first, Serial, "first");
            assert!(bench.run(encoder, true, 0..4).is_empty());
            bench.model.signal(first, event, 5);
            let second = bench.commands(1);
            if let Some(value) = value {
                bench.model.wait_for_event(second, event, value);
            }
            let encoder = bench.model.encoder(second, Serial, "second");
            assert_eq!(bench.run(encoder, false, 0..4), expected, "{value:?}");
        }
        for (updated, expected) in [(true, vec![]), (false, vec!["order-between-queues"])] {
            let mut bench = Bench::new(true);
            let fence = bench.model.object();
            let (first, second) = (bench.commands(0), bench.commands(1));
            let encoder = bench.model.encoder(first, Serial, "first");
            assert!(bench.run(encoder, true, 0..4).is_empty());
            if updated {
                bench.model.update_fence(encoder, fence);
            }
            let encoder = bench.model.encoder(second, Serial, "second");
            assert_eq!(
                bench.model.wait_for_fence(encoder, fence),
                updated,
                "another queue updated it, or nobody"
            );
            assert_eq!(bench.run(encoder, false, 0..4), expected, "{updated}");
        }
    }

    #[test]
    fn a_wait_after_the_commit_comes_too_late() {
        let mut bench = Bench::new(false);
        let (first, second) = (bench.commands(0), bench.commands(1));
        let encoder = bench.model.encoder(first, Serial, "first");
        assert!(bench.run(encoder, true, 0..4).is_empty());
        bench.model.settle(first);
        let encoder = bench.model.encoder(second, Serial, "second");
        assert_eq!(bench.run(encoder, false, 0..4), ["order-between-queues"]);
    }

    #[test]
    fn pruning_forgets_only_what_the_host_has_seen() {
        let mut bench = Bench::new(false);
        let first = bench.commands(0);
        let encoder = bench.model.encoder(first, Serial, "first");
        assert!(bench.run(encoder, true, 0..4).is_empty());
        bench.model.prune();
        let second = bench.commands(0);
        let encoder = bench.model.encoder(second, Serial, "second");
        assert_eq!(bench.run(encoder, true, 0..4), ["order-between-command-buffers"]);
        bench.model.settle(first);
        bench.model.settle(second);
        bench.model.prune();
        assert!(bench.model.buffers[&bench.buffer].history.is_empty());
        let third = bench.commands(0);
        let encoder = bench.model.encoder(third, Serial, "third");
        assert!(bench.run(encoder, true, 0..4).is_empty());
    }

    #[test]
    fn a_hazard_names_both_commands_and_the_bytes() {
        let mut bench = Bench::new(false);
        let commands = bench.commands(0);
        let encoder = bench.model.encoder(commands, Concurrent, "encoder 3");
        let (a, b) = (bench.model.command(encoder), bench.model.command(encoder));
        let write = Touched { writes: Ranges::new(vec![16..48]), ..Touched::default() };
        let read = Touched { reads: Ranges::new(vec![40..64]), ..Touched::default() };
        bench.model.touched(a, "softmax", &[(bench.buffer, write)]);
        let hazards = bench.model.touched(b, "matmul", &[(bench.buffer, read)]);
        assert_eq!(
            hazards[0].message,
            "matmul (command 1 of encoder 3 in commands) reads what is written by softmax (command 0 of encoder 3 in \
             commands) of x: bytes 40..48, and nothing orders them"
        );
    }
}
