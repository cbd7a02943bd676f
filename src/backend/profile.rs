//! Where the time of runs goes: seconds, bytes and operations by kind of step, and spans for a trace.
//!
//! Off, a run looks at one flag and a step at none. On, the steps of a CPU are timed one by one. On a GPU
//! [`Detail::Totals`] gives every launch a command buffer of its own, whose GPU time is read, so that runs take longer
//! than they do otherwise; [`Detail::Spans`] leaves the command buffers as they are.
//!
//! ```
//! use metal_candle::backend::{Device, profile};
//! use metal_candle::graph::Graph;
//! use metal_candle::tensor::HostTensor;
//!
//! # fn main() -> metal_candle::Result<()> {
//! profile::start(profile::Detail::Totals);
//! let graph = Graph::new();
//! let x = graph.constant(HostTensor::from_slice(&[1.0_f32, 2.0], [1, 2])?);
//! x.softmax(1)?.eval(&Device::cpu(1)?)?;
//! let profile = profile::stop();
//! assert!(profile.ops().iter().any(|total| total.op == "softmax" && total.calls == 1));
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use crate::graph::Plan;
use crate::ops::Cost;

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Totals by operation.
    Totals,
    /// Totals where the device gives them without being slowed down, and every span, for a trace.
    Spans,
    /// Both: on a GPU the spans are those of single launches.
    Both,
}

/// The recording of this process: 0 none, 1 [`Detail::Totals`], 2 [`Detail::Spans`], 3 both.
static LEVEL: AtomicU8 = AtomicU8::new(0);
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);
/// A trace does not grow beyond this many spans; what comes later is counted.
const MOST_SPANS: usize = 2_000_000;

struct Recording {
    begun: Instant,
    /// The GPU's clock at `begun`, in seconds.
    #[cfg(metal)]
    clock: f64,
    spans_wanted: bool,
    totals: BTreeMap<&'static str, Total>,
    spans: Vec<Span>,
    dropped: usize,
    runs: usize,
    seconds: f64,
}

/// What all executions of one kind of step came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Total {
    /// The operation's name.
    pub op: &'static str,
    /// Executions.
    pub calls: usize,
    /// Their time.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written, each operand once.
    pub bytes: u64,
}

impl Total {
    /// The share of what the machine could do at its best: the time that arithmetic or memory alone would need, whichever
    /// is longer, divided by the time it took. More than 1 means that operands came from caches.
    pub fn roofline(&self, peak: &Peak) -> f64 {
        let least = (self.flops as f64 / peak.flops).max(self.bytes as f64 / peak.bytes);
        if self.seconds > 0.0 { least / self.seconds } else { 0.0 }
    }
}

/// Where something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Track {
    /// On a thread of the host.
    Host(usize),
    /// On the GPU.
    Gpu,
}

/// Something with a beginning and an end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// An operation, or what the caller named.
    pub name: String,
    /// Where.
    pub track: Track,
    /// Seconds after the recording began.
    pub start: f64,
    /// How long, in seconds.
    pub seconds: f64,
    /// What it moved and computed, if it was an operation.
    pub cost: Option<Cost>,
}

/// The machine at its best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    /// Multiply-adds in f32, counted as two, a second.
    pub flops: f64,
    /// Bytes a second from memory.
    pub bytes: f64,
    /// Measured, or whose figures these are.
    pub source: String,
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    totals: Vec<Total>,
    spans: Vec<Span>,
    /// Spans beyond the most that a trace holds.
    pub dropped: usize,
    /// Runs of programs.
    pub runs: usize,
    /// Seconds of those runs from the host's side.
    pub seconds: f64,
}

impl Profile {
    /// Totals by operation, the longest first.
    pub fn ops(&self) -> &[Total] {
        &self.totals
    }

    /// The spans, in the order in which they ended.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The spans in the format of Chrome's and Perfetto's trace viewers: complete events, in microseconds.
    pub fn trace(&self) -> String {
        let number = |track: Track| match track {
            Track::Gpu => 0,
            Track::Host(thread) => thread + 1,
        };
        let mut events = Vec::with_capacity(self.spans.len() + 4);
        let tracks: BTreeMap<usize, Track> =
            self.spans.iter().map(|span| (number(span.track), span.track)).collect();
        for (id, track) in tracks {
            let name = match track {
                Track::Gpu => "GPU".to_owned(),
                Track::Host(thread) => format!("host thread {thread}"),
            };
            let args = json!({"name": name});
            events.push(json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": id, "args": args}));
        }
        for span in &self.spans {
            let mut event = json!({
                "ph": "X", "name": span.name, "pid": 1, "tid": number(span.track),
                "ts": 1e6 * span.start, "dur": 1e6 * span.seconds,
            });
            if let Some(cost) = span.cost {
                event["args"] = json!({"flops": cost.flops, "read": cost.read, "written": cost.written});
            }
            events.push(event);
        }
        json!({"displayTimeUnit": "ns", "traceEvents": events}).to_string()
    }
}

fn recording() -> MutexGuard<'static, Option<Recording>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a recording of all programs of this process; one that is under way is thrown away.
pub fn start(detail: Detail) {
    *recording() = Some(Recording {
        begun: Instant::now(),
        #[cfg(metal)]
        clock: clock(),
        spans_wanted: detail != Detail::Totals,
        totals: BTreeMap::new(),
        spans: Vec::new(),
        dropped: 0,
        runs: 0,
        seconds: 0.0,
    });
    let level = match detail {
        Detail::Totals => 1,
        Detail::Spans => 2,
        Detail::Both => 3,
    };
    LEVEL.store(level, Ordering::Relaxed);
}

/// Ends the recording. Without one the profile is empty.
pub fn stop() -> Profile {
    LEVEL.store(0, Ordering::Relaxed);
    let Some(recording) = recording().take() else { return Profile::default() };
    let mut totals: Vec<Total> = recording.totals.into_values().collect();
    totals.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Profile {
        totals,
        spans: recording.spans,
        dropped: recording.dropped,
        runs: recording.runs,
        seconds: recording.seconds,
    }
}

/// A span of the caller's own, from now until it is dropped.
#[derive(Debug)]
pub struct Section {
    name: &'static str,
    begun: Option<Instant>,
}

/// Begins a span of this name.
pub fn section(name: &'static str) -> Section {
    Section { name, begun: (LEVEL.load(Ordering::Relaxed) >= 2).then(Instant::now) }
}

impl Drop for Section {
    fn drop(&mut self) {
        let Some(begun) = self.begun else { return };
        if let Some(recording) = recording().as_mut() {
            let (track, seconds) = (Track::Host(thread()), begun.elapsed().as_secs_f64());
            recording.span(self.name, track, recording.since(begun), seconds, None);
        }
    }
}

impl Recording {
    fn since(&self, instant: Instant) -> f64 {
        instant.saturating_duration_since(self.begun).as_secs_f64()
    }

    fn span(&mut self, name: &str, track: Track, start: f64, seconds: f64, cost: Option<Cost>) {
        if !self.spans_wanted {
            return;
        }
        if self.spans.len() >= MOST_SPANS {
            self.dropped += 1;
            return;
        }
        self.spans.push(Span { name: name.to_owned(), track, start, seconds, cost });
    }

    fn add(&mut self, step: &StepCost, seconds: f64) {
        let total = Total { op: step.op, calls: 0, seconds: 0.0, flops: 0, bytes: 0 };
        let total = self.totals.entry(step.op).or_insert(total);
        total.calls += 1;
        total.seconds += seconds;
        total.flops += step.cost.flops;
        total.bytes += step.cost.read + step.cost.written;
    }
}

/// A step of a compiled plan.
#[derive(Debug, Clone)]
pub(super) struct StepCost {
    pub(super) op: &'static str,
    pub(super) cost: Cost,
}

/// The costs of a plan's steps.
pub(super) fn costs(plan: &Plan) -> Vec<StepCost> {
    plan.steps.iter().map(|step| StepCost { op: step.op.name(), cost: step.cost() }).collect()
}

/// The times of one run.
pub(super) struct Run {
    begun: Instant,
    last: Instant,
    laps: Vec<(Instant, f64)>,
}

/// A run begins. `None`, after one relaxed load, if nothing is recorded.
#[inline]
pub(super) fn run() -> Option<Run> {
    if LEVEL.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let now = Instant::now();
    Some(Run { begun: now, last: now, laps: Vec::new() })
}

impl Run {
    /// What follows is not the next step's.
    pub(super) fn mark(&mut self) {
        self.last = Instant::now();
    }

    /// The next step is over.
    pub(super) fn lap(&mut self) {
        let now = Instant::now();
        self.laps.push((self.last, (now - self.last).as_secs_f64()));
        self.last = now;
    }

    /// The run is over; its laps are these steps.
    pub(super) fn finish(self, steps: &[StepCost]) {
        let whole = self.begun.elapsed().as_secs_f64();
        let mut recording = recording();
        let Some(recording) = recording.as_mut() else { return };
        let track = Track::Host(thread());
        recording.runs += 1;
        recording.seconds += whole;
        recording.span("run", track, recording.since(self.begun), whole, None);
        for (step, (begun, seconds)) in steps.iter().zip(self.laps) {
            recording.add(step, seconds);
            recording.span(step.op, track, recording.since(begun), seconds, Some(step.cost));
        }
    }
}

#[cfg(metal)]
impl Run {
    /// Returns true if every launch is to have a command buffer of its own.
    pub(super) fn alone(&self) -> bool {
        LEVEL.load(Ordering::Relaxed) != 2
    }

    /// The run is over; each part, the launches of a command buffer with its GPU times, is one of `steps`, or several.
    pub(super) fn finish_gpu(self, steps: &[StepCost], parts: &[(std::ops::Range<usize>, f64, f64)]) {
        let whole = self.begun.elapsed().as_secs_f64();
        let mut recording = recording();
        let Some(recording) = recording.as_mut() else { return };
        recording.runs += 1;
        recording.seconds += whole;
        let track = Track::Host(thread());
        recording.span("run", track, recording.since(self.begun), whole, None);
        for (launches, start, end) in parts {
            let (start, seconds) = (start - recording.clock, end - start);
            match &steps[launches.clone()] {
                [] => recording.span("nothing", Track::Gpu, start, seconds, None),
                [step] => {
                    recording.add(step, seconds);
                    recording.span(step.op, Track::Gpu, start, seconds, Some(step.cost));
                }
                [first, .., last] => {
                    let name = format!("{} … {} ({} launches)", first.op, last.op, launches.len());
                    recording.span(&name, Track::Gpu, start, seconds, None);
                }
            }
        }
    }
}

#[cfg(cuda)]
impl Run {
    /// Seconds since the run began.
    pub(super) fn elapsed(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Finishes a run whose steps are launches; `times` contains each one's start and end on the GPU in seconds since the run
    /// began.
    pub(super) fn finish_launches(self, steps: &[StepCost], times: &[(f64, f64)]) {
        let whole = self.elapsed();
        let mut recording = recording();
        let Some(recording) = recording.as_mut() else { return };
        recording.runs += 1;
        recording.seconds += whole;
        let begun = recording.since(self.begun);
        recording.span("run", Track::Host(thread()), begun, whole, None);
        for (step, (start, end)) in steps.iter().zip(times) {
            recording.add(step, end - start);
            recording.span(step.op, Track::Gpu, begun + start, end - start, Some(step.cost));
        }
    }
}

/// A small number of the calling thread.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

/// The clock of a command buffer's GPU times, in seconds: on a Mac, and on the software device of the tests.
#[cfg(metal)]
fn clock() -> f64 {
    #[cfg(target_vendor = "apple")]
    const CLOCK: libc::clockid_t = libc::CLOCK_UPTIME_RAW;
    #[cfg(not(target_vendor = "apple"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is valid for a write.
    unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::graph::Graph;
    use crate::tensor::{HostTensor, TensorSpec};

    /// One test, since there is one recording in a process.
    #[test]
    fn off_a_run_looks_at_one_flag_and_on_every_step_is_told() {
        assert!(run().is_none());
        let begun = Instant::now();
        for _ in 0..1_000_000 {
            assert!(std::hint::black_box(run()).is_none());
        }
        // A load of a flag takes about a nanosecond, without optimisation some tens; a look at the clock or a lock that is
        // contended would take more than this.
        let each = begun.elapsed().as_secs_f64() / 1e6;
        assert!(each < 200e-9, "{each} s");
        assert_eq!(stop().runs, 0, "there is nothing to stop");

        let device = Device::cpu(1).unwrap();
        let graph = Graph::new();
        let x = graph.input("x", TensorSpec::f32([4, 32]));
        let y = x.softmax(1).unwrap().log_softmax(1).unwrap();
        let program = device.compile(&graph, &[y], &[]).unwrap();
        let value = HostTensor::zeros(TensorSpec::f32([4, 32]));
        start(Detail::Both);
        {
            let _section = section("both runs");
            program.run(&[&value]).unwrap();
            program.run(&[&value]).unwrap();
        }
        let profile = stop();
        program.run(&[&value]).unwrap();
        // Tests beside this one run programs too, so that there may be more.
        let total = |op: &str| *profile.ops().iter().find(|total| total.op == op).unwrap();
        assert!(profile.runs >= 2 && total("softmax").calls >= 2 && total("log_softmax").calls >= 2);
        assert!(total("softmax").bytes >= 2 * 2 * 4 * 4 * 32 && total("softmax").flops > 0);
        let all: f64 = profile.ops().iter().map(|total| total.seconds).sum();
        assert!(all > 0.0 && all <= profile.seconds, "{all} of {}", profile.seconds);
        let section = profile.spans().iter().find(|span| span.name == "both runs").unwrap();
        let inside = |span: &&Span| {
            span.track == section.track
                && span.start >= section.start
                && span.start + span.seconds <= section.start + section.seconds
        };
        let steps = profile.spans().iter().filter(inside).filter(|span| span.cost.is_some());
        assert_eq!(
            steps.map(|span| span.name.as_str()).collect::<Vec<_>>(),
            ["softmax", "log_softmax", "softmax", "log_softmax"]
        );
        assert!(super::stop().spans().is_empty());
    }

    #[test]
    fn the_roofline_is_the_slower_of_arithmetic_and_memory() {
        let peak = Peak { flops: 100.0, bytes: 10.0, source: String::new() };
        let total = |flops, bytes| Total { op: "x", calls: 1, seconds: 4.0, flops, bytes };
        assert_eq!(total(200, 10).roofline(&peak), 0.5);
        assert_eq!(total(100, 20).roofline(&peak), 0.5);
        assert_eq!(Total { seconds: 0.0, ..total(1, 1) }.roofline(&peak), 0.0);
    }
}
