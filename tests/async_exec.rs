//! Runs and text that tasks await, on a runtime of one thread: whatever blocked it would stop its timers.
//!
//! A gate around the definitions' device lets runs go on one by one, so that the tests decide when something is over.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use metal_candle::backend::reference::ReferenceBackend;
use metal_candle::backend::{Backend, Device, Executable, Io};
use metal_candle::graph::{Graph, LazyTensor, Operand, Plan, Target};
use metal_candle::inference::{AsyncGenerator, Finish, GenerateOptions, Generator};
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::ops::{Accumulate, Op};
use metal_candle::tensor::{Buffer, DType, HostTensor, TensorSpec};
use metal_candle::{Error, Result};

#[cfg(softmetal)]
extern crate softmetal;

mod byte_model;

/// The GPU where this build has one, otherwise the CPU.
fn device() -> Device {
    if cfg!(metal) { Device::metal().unwrap() } else { Device::cpu(2).unwrap() }
}

#[derive(Default)]
struct Counts {
    allowed: usize,
    begun: usize,
    ended: usize,
    thread: Option<String>,
}

/// Lets runs go on.
#[derive(Default)]
struct Gate {
    counts: Mutex<Counts>,
    bell: Condvar,
}

impl Gate {
    fn allow(&self, runs: usize) {
        self.counts.lock().unwrap().allowed += runs;
        self.bell.notify_all();
    }

    fn begun(&self) -> usize {
        self.counts.lock().unwrap().begun
    }

    fn ended(&self) -> usize {
        self.counts.lock().unwrap().ended
    }
}

/// The definitions' device behind a gate. A run of a plan with an input called "panic" panics.
struct Gated(ReferenceBackend, Arc<Gate>);

struct GatedPlan {
    inner: Box<dyn Executable>,
    gate: Arc<Gate>,
    panics: bool,
}

impl Target for Gated {
    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize {
        self.0.scratch(op, inputs, outputs)
    }
}

impl Backend for Gated {
    fn name(&self) -> String {
        "gated".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        self.0.allocate(bytes)
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        let panics = plan.inputs.iter().any(|input| input.name == "panic");
        Ok(Box::new(GatedPlan { inner: self.0.compile(plan)?, gate: Arc::clone(&self.1), panics }))
    }
}

impl Executable for GatedPlan {
    fn run(&self, io: &mut dyn Io) -> Result<()> {
        let mut counts = self.gate.counts.lock().unwrap();
        counts.begun += 1;
        counts.thread = std::thread::current().name().map(str::to_owned);
        counts = self.gate.bell.wait_while(counts, |counts| counts.allowed == 0).unwrap();
        counts.allowed -= 1;
        drop(counts);
        assert!(!self.panics, "planted");
        let result = self.inner.run(io);
        self.gate.counts.lock().unwrap().ended += 1;
        result
    }

    fn launches(&self) -> usize {
        self.inner.launches()
    }
}

fn gated() -> (Device, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    (Device::new(Box::new(Gated(ReferenceBackend::default(), Arc::clone(&gate)))), gate)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Waits by the runtime's timer until something holds. Returns how often the timer ticked.
async fn until(mut holds: impl FnMut() -> bool) -> usize {
    let mut ticks = 0;
    while !holds() {
        ticks += 1;
        assert!(ticks < 60_000, "it never came to hold");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ticks
}

fn vector(values: &[f32]) -> HostTensor {
    HostTensor::from_slice(values, [1, values.len()]).unwrap()
}

fn doubled(values: &[f32]) -> LazyTensor {
    let x = Graph::new().constant(vector(values));
    x.add(&x).unwrap()
}

#[test]
fn the_runtime_goes_on_while_a_run_lasts() {
    let (device, gate) = gated();
    block_on(async {
        let run = tokio::spawn(doubled(&[1.0, 2.0]).eval_async(&device));
        until(|| gate.begun() == 1).await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!run.is_finished() && gate.ended() == 0);
        gate.allow(1);
        assert_eq!(run.await.unwrap().unwrap().as_slice::<f32>().unwrap(), [2.0, 4.0]);
    });
    assert_eq!(gate.counts.lock().unwrap().thread.as_deref(), Some("metal-candle-async"));
}

#[test]
fn timers_tick_while_the_cpu_computes() {
    let device = Device::cpu(2).unwrap();
    let n = 256;
    let chain = |products: usize| {
        let w = Graph::new().constant(HostTensor::from_slice(&vec![1.0 / n as f32; n * n], [n, n]).unwrap());
        (0..products).fold(w.clone(), |x, _| x.matmul(&w).unwrap())
    };
    // Long enough for several ticks, however fast this machine is and however well this test was compiled.
    let timed = |product: LazyTensor| {
        product.eval(&device).unwrap();
        let begun = Instant::now();
        let wanted = product.eval(&device).unwrap();
        (begun.elapsed() > Duration::from_millis(40)).then_some((product, wanted))
    };
    let (product, wanted) = (0..).map(|doublings| chain(1 << doublings)).find_map(timed).unwrap();
    block_on(async {
        let run = tokio::spawn(product.eval_async(&device));
        let ticks = until(|| run.is_finished()).await;
        assert_eq!(run.await.unwrap().unwrap().bytes(), wanted.bytes());
        assert!(ticks >= 3, "{ticks} ticks");
    });
}

#[test]
fn awaited_results_are_those_of_blocking_calls() {
    let device = device();
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([1, 5]));
    let y = x.softmax(1).unwrap().add(&x.silu().unwrap()).unwrap();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    let inputs: Vec<HostTensor> =
        (0..8).map(|i| vector(&[0.1, i as f32, -0.7, 2.0, 0.3 * i as f32])).collect();
    let wanted: Vec<HostTensor> = inputs.iter().map(|x| program.run(&[x]).unwrap().remove(0)).collect();
    block_on(async {
        let runs: Vec<_> = inputs.iter().map(|x| tokio::spawn(program.run_async(vec![x.clone()]))).collect();
        for (run, wanted) in runs.into_iter().zip(&wanted) {
            assert_eq!(run.await.unwrap().unwrap()[0].bytes(), wanted.bytes());
        }
        let one = doubled(&[3.0, -1.0]);
        let found = one.eval_async(&device).await.unwrap();
        assert_eq!(found.bytes(), one.eval(&device).unwrap().bytes());
        let both = device.eval_async(&[one.clone(), one.silu().unwrap()]).await.unwrap();
        assert_eq!((both.len(), both[0].bytes()), (2, found.bytes()));
        assert_eq!(device.eval_async(&[]).await.unwrap().len(), 0);
    });
}

#[test]
fn what_is_dropped_before_its_turn_is_left_out() {
    let (device, gate) = gated();
    block_on(async {
        let first = tokio::spawn(doubled(&[1.0]).eval_async(&device));
        until(|| gate.begun() == 1).await;
        let second = tokio::spawn(doubled(&[2.0, 2.0]).eval_async(&device));
        let third = tokio::spawn(doubled(&[3.0, 3.0, 3.0]).eval_async(&device));
        tokio::task::yield_now().await;
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        gate.allow(5);
        assert_eq!(first.await.unwrap().unwrap().as_slice::<f32>().unwrap(), [2.0]);
        assert_eq!(third.await.unwrap().unwrap().as_slice::<f32>().unwrap(), [6.0; 3]);
        assert_eq!((gate.begun(), gate.ended()), (2, 2));
        // One that was never polled never begins.
        drop(doubled(&[4.0]).eval_async(&device));
        doubled(&[5.0]).eval_async(&device).await.unwrap();
        assert_eq!(gate.begun(), 3);
    });
}

#[test]
fn a_run_whose_future_is_dropped_ends_and_its_update_is_whole() {
    let (device, gate) = gated();
    let state = device.state("sum", TensorSpec::f32([1, 3])).unwrap();
    let graph = Graph::new();
    let (sum, g) = (graph.parameter(&state), graph.constant(vector(&[1.0, 2.0, 3.0])));
    let keep = graph.constant(HostTensor::scalar(1.0_f32));
    let updates = graph.record(Accumulate, &[&sum, &g, &keep]).unwrap();
    let program = device.compile(&graph, &[], &updates).unwrap();
    block_on(async {
        let run = tokio::spawn(program.run_async(Vec::new()));
        until(|| gate.begun() == 1).await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        gate.allow(2);
        until(|| gate.ended() == 1).await;
        assert_eq!(state.read().unwrap().as_slice::<f32>().unwrap(), [1.0, 2.0, 3.0]);
        program.run_async(Vec::new()).await.unwrap();
        assert_eq!(state.read().unwrap().as_slice::<f32>().unwrap(), [2.0, 4.0, 6.0]);
    });
}

/// The same on the device of this build, where nobody decides when the task is stopped.
#[test]
fn runs_after_a_dropped_one_are_right() {
    let device = device();
    let state = device.state("sum", TensorSpec::f32([1, 64])).unwrap();
    let graph = Graph::new();
    let (sum, g) = (graph.parameter(&state), graph.constant(vector(&[0.5; 64])));
    let keep = graph.constant(HostTensor::scalar(1.0_f32));
    let updates = graph.record(Accumulate, &[&sum, &g, &keep]).unwrap();
    let program = device.compile(&graph, &[], &updates).unwrap();
    block_on(async {
        for _ in 0..20 {
            let run = tokio::spawn(program.run_async(Vec::new()));
            tokio::task::yield_now().await;
            run.abort();
        }
        // Runs are in turn, so all that began are over when this one is.
        program.run_async(Vec::new()).await.unwrap();
    });
    let found = state.read().unwrap();
    let found = found.as_slice::<f32>().unwrap();
    let runs = found[0] / 0.5;
    assert!(runs.fract() == 0.0 && (1.0..=21.0).contains(&runs), "{runs} runs");
    assert!(found.iter().all(|&x| x == found[0]), "an update is half done: {found:?}");
}

#[test]
fn errors_and_panics_reach_the_task_and_the_next_run_works() {
    let (device, gate) = gated();
    gate.allow(3);
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([1, 2]));
    let program = device.compile(&graph, &[x.add(&x).unwrap()], &[]).unwrap();
    let graph = Graph::new();
    let x = graph.input("panic", TensorSpec::f32([1, 2]));
    let panicking = device.compile(&graph, &[x.add(&x).unwrap()], &[]).unwrap();
    block_on(async {
        let wrong = vector(&[1.0; 3]);
        let error = program.run_async(vec![wrong.clone()]).await.unwrap_err().to_string();
        assert_eq!(error, program.run(&[&wrong]).unwrap_err().to_string());
        assert!(error.contains("input 'x'"), "{error}");
        let right = vector(&[1.0, 2.0]);
        let panic = tokio::spawn(panicking.run_async(vec![right.clone()])).await.unwrap_err();
        assert_eq!(panic.into_panic().downcast_ref::<&str>(), Some(&"planted"));
        let found = program.run_async(vec![right]).await.unwrap();
        assert_eq!(found[0].as_slice::<f32>().unwrap(), [2.0, 4.0]);
    });
}

/// A runtime may be dropped, and a device with it, while a run lasts.
#[test]
fn a_run_outlives_the_handles_of_its_device() {
    let (device, gate) = gated();
    block_on(async {
        let run = tokio::spawn(doubled(&[1.0]).eval_async(&device));
        until(|| gate.begun() == 1).await;
        drop(device);
        run.abort();
    });
    gate.allow(1);
    block_on(until(|| gate.ended() == 1));
}

/// The tiny model, its tokenizer, and a generator on a device.
fn generator(device: &Device) -> (tempfile::TempDir, AsyncGenerator, ModelFiles, Decoder) {
    let folder = tempfile::tempdir().unwrap();
    byte_model::write(folder.path());
    let files = ModelFiles::open(folder.path()).unwrap();
    let model = Decoder::load(files.config.clone(), &files.weights, device, DType::F32, &|_| ()).unwrap();
    let generator = Generator::owned(model.clone(), None).unwrap();
    (folder, AsyncGenerator::new(generator, files.tokenizer.clone()), files, model)
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, eos: Some(Vec::new()), ..GenerateOptions::default() }
}

const PROMPT: [u32; 4] = [72, 101, 108, 111];

#[test]
fn streamed_text_is_that_of_the_blocking_generator() {
    let (_folder, generator, files, model) = generator(&device());
    let mut blocking = Generator::new(&model, None).unwrap();
    let mut told = Vec::new();
    let mut on_text = |piece: &str| {
        told.push(piece.to_owned());
        true
    };
    let wanted = blocking.generate(&files.tokenizer, &PROMPT, &options(40), &mut on_text).unwrap();
    block_on(async {
        let mut stream = generator.generate(PROMPT.to_vec(), options(40)).unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = stream.next().await {
            pieces.push(piece.unwrap());
        }
        assert_eq!(pieces, told);
        let found = stream.generation().unwrap();
        assert_eq!((&found.tokens, &found.text), (&wanted.tokens, &wanted.text));
        assert_eq!((found.tokens.len(), found.finish), (40, Finish::Length));
        assert!(stream.next().await.is_none());
        // What the cache holds is not computed again; two conversations at once are had in turn.
        let again = generator.generate(PROMPT.to_vec(), options(40)).unwrap();
        let other = generator.generate(vec![7, 8, 9], options(5)).unwrap();
        assert_eq!(other.finish().await.unwrap().tokens.len(), 5);
        let again = again.finish().await.unwrap();
        assert_eq!((again.prompt_tokens, again.tokens), (1, wanted.tokens.clone()));
    });
}

#[test]
fn dropping_the_stream_ends_the_generation() {
    let (device, gate) = gated();
    let (_folder, generator, files, model) = generator(&device);
    block_on(async {
        let stream = generator.generate(PROMPT.to_vec(), options(100)).unwrap();
        // The prompt and two tokens; the third step is held at the gate.
        gate.allow(3);
        until(|| gate.begun() == 4).await;
        drop(stream);
        gate.allow(1000);
        generator.with(|_| Ok(())).await.unwrap();
        assert_eq!((gate.begun(), gate.ended()), (4, 4), "it went on after the step that was running");
        // The next one goes on from what the cache holds, and is right.
        let next = generator.generate(PROMPT.to_vec(), options(6)).unwrap().finish().await.unwrap();
        assert_eq!(next.prompt_tokens, 1);
        let mut blocking = Generator::new(&model, None).unwrap();
        let wanted = blocking.generate(&files.tokenizer, &PROMPT, &options(6), &mut |_| true).unwrap();
        assert_eq!(next.tokens, wanted.tokens);
        // One that is dropped before its turn reads no prompt.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let generator = Arc::new(generator);
        let first = Arc::clone(&generator);
        let first = tokio::spawn(async move { first.with(move |_| Ok(wait.recv().is_ok())).await });
        tokio::task::yield_now().await;
        let begun = gate.begun();
        drop(generator.generate(vec![9, 8, 7], options(6)).unwrap());
        go.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        generator.with(|_| Ok(())).await.unwrap();
        assert_eq!(gate.begun(), begun);
    });
}

#[test]
fn errors_of_a_generation_are_the_last_item() {
    let (_folder, generator, ..) = generator(&device());
    block_on(async {
        let mut stream = generator.generate(vec![999], options(5)).unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::Invalid { what, .. } if what == "prompt"), "{error}");
        assert!(stream.next().await.is_none() && stream.generation().is_none());
        assert!(stream.finish().await.is_err());
        let right = generator.generate(PROMPT.to_vec(), options(5)).unwrap().finish().await.unwrap();
        assert_eq!(right.tokens.len(), 5);
        let generator = Arc::new(generator);
        let broken = Arc::clone(&generator);
        let panic = tokio::spawn(async move { broken.with(|_| -> Result<()> { panic!("planted") }).await });
        assert_eq!(panic.await.unwrap_err().into_panic().downcast_ref::<&str>(), Some(&"planted"));
        let again = generator.generate(PROMPT.to_vec(), options(5)).unwrap().finish().await.unwrap();
        assert_eq!(again.tokens, right.tokens);
    });
}
