//! Metal Performance Shaders through the backend, preferred wherever the guard allows them, against candle on the CPU.

mod attention;
mod plan;
mod products;
mod rows;

use candle_core::{Device as CandleDevice, Tensor};
use metal_candle::backend::Device;
use metal_candle::backend::select::{Choices, Measured, Preference, Table};
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::{MatMul, Op, Softmax, TopK};
use metal_candle::tensor::{DType, HostTensor, Shape};

/// Random numbers (Knuth's linear congruential generator, upper bits).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    fn tensor(&mut self, shape: impl Into<Shape>) -> HostTensor {
        self.spread(shape, 1.0, 0.0)
    }

    /// Numbers in [centre − spread, centre + spread).
    fn spread(&mut self, shape: impl Into<Shape>, spread: f64, centre: f64) -> HostTensor {
        let shape = shape.into();
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
        };
        let values: Vec<f64> = (0..shape.elements()).map(|_| spread * next() + centre).collect();
        HostTensor::from_f64(&values, DType::F32, shape).unwrap()
    }
}

fn shaders() -> Device {
    Device::metal_with(Preference::Mps).unwrap()
}

fn candle(tensor: &HostTensor) -> Tensor {
    let values: Vec<f32> = tensor.to_f64().iter().map(|&x| x as f32).collect();
    Tensor::from_vec(values, tensor.shape().dims(), &CandleDevice::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Records an operation over constants, runs it, and tells which kernels of the framework ran.
fn run(device: &Device, op: impl Into<Op>, inputs: &[HostTensor]) -> (Vec<HostTensor>, Vec<String>) {
    let graph = Graph::new();
    let constants: Vec<LazyTensor> = inputs.iter().map(|input| graph.constant(input.clone())).collect();
    let mut outputs = graph.record(op.into(), &constants.iter().collect::<Vec<_>>()).unwrap();
    // What is read at the end is not overwritten: the framework does not promise to work in place, and the guard refuses.
    let results = outputs.len();
    outputs.extend(constants);
    #[cfg(softmetal)]
    softmetal::counters::take();
    let mut tensors = device.eval(&outputs).unwrap();
    tensors.truncate(results);
    #[cfg(softmetal)]
    let used =
        softmetal::counters::take().commands.into_keys().filter(|name| name.starts_with("MPS")).collect();
    #[cfg(not(softmetal))]
    let used = Vec::new();
    (tensors, used)
}

/// That the framework ran, where the device tells.
fn assert_used(used: &[String], class: &str) {
    if cfg!(softmetal) {
        assert!(used.iter().any(|name| name.contains(class)), "{class} did not run: {used:?}");
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1.0_f32, |a, x| a.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let same = a == b || a.is_nan() && b.is_nan();
        assert!(same || (a - b).abs() <= tolerance * scale, "element {i} is {a}, must be {b}");
    }
}

fn filled(shape: impl Into<Shape>, value: f32) -> HostTensor {
    let shape = shape.into();
    HostTensor::from_slice(&vec![value; shape.elements()], shape).unwrap()
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.to_f64().iter().map(|&x| x as f32).collect()
}

/// What was measured decides, beside the estimate: a table that praises the framework sends a product there.
#[test]
fn a_table_of_measurements_chooses() {
    let _alone = crate::alone();
    let r = &mut Random::new(27);
    let inputs = [r.tensor([32, 48]), r.tensor([48, 40])];
    let name = metal_candle::backend::metal::device_info::read().unwrap().name;
    for (mps, metal, expected) in [(1.0, 2.0, true), (2.0, 1.0, false)] {
        let products = vec![Measured { dtype: "f32".into(), m: 32, n: 40, k: 48, mps, metal }];
        let table = Table { device: name.clone(), version: "0".into(), products };
        let choices = Choices { table: Some(table), ..Choices::default() };
        let (_, used) = run(&Device::metal_with(choices).unwrap(), MatMul::new(false, false), &inputs);
        if cfg!(softmetal) {
            assert_eq!(used.iter().any(|name| name.contains("MPS")), expected, "{used:?}");
        }
    }
}

#[test]
fn what_the_guard_refuses_stays_with_kernels_of_ours() {
    let _alone = crate::alone();
    let r = &mut Random::new(11);
    let (_, used) = run(&shaders(), TopK { k: 17 }, &[r.tensor([2, 40])]);
    assert!(used.is_empty(), "17 are undefined: {used:?}");
    let (_, used) = run(&shaders(), Softmax { axis: 0 }, &[r.tensor([3, 8])]);
    assert!(used.is_empty(), "the framework knows the last axis only: {used:?}");
    let batch = [r.tensor([2, 4, 5]), r.tensor([2, 5, 3])].map(|x| x.cast(DType::BF16));
    let (found, used) = run(&shaders(), MatMul::new(false, false), &batch);
    assert!(used.is_empty(), "arrays of three axes differ from run to run on M5: {used:?}");
    let expected = candle(&batch[0]).matmul(&candle(&batch[1])).unwrap();
    close(&floats(&found[0]), &numbers(&expected), 1e-2);
}

/// The framework's kernel objects belong to the thread that encodes: two threads that run one program have their own, the
/// results are alike, and with a thread its objects go.
#[test]
fn every_thread_has_kernel_objects_of_its_own() {
    let _alone = crate::alone();
    let r = &mut Random::new(28);
    let (a, b) = (r.tensor([8, 12]), r.tensor([12, 9]));
    let graph = Graph::new();
    let [a_, b_] = [&a, &b].map(|tensor| graph.constant(tensor.clone()));
    let y = a_.matmul(&b_).unwrap().softmax(1).unwrap();
    let program = shaders().compile(&graph, &[y], &[]).unwrap();
    let here = floats(&program.run(&[]).unwrap()[0]);
    let elsewhere = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..2).map(|_| scope.spawn(|| floats(&program.run(&[]).unwrap()[0]))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    #[cfg(softmetal)]
    let found = {
        let (found, left) = softmetal::leaks(elsewhere);
        let classes: Vec<_> = left.iter().filter(|leak| leak.class.starts_with("MPS")).collect();
        assert!(classes.is_empty(), "{classes:?}");
        found
    };
    #[cfg(not(softmetal))]
    let found = elsewhere();
    assert_eq!(found, [here.clone(), here]);
}

/// A thread keeps a bounded number of kernel objects, however many shapes it meets.
#[cfg(softmetal)]
#[test]
fn kernel_objects_are_bounded() {
    let _alone = crate::alone();
    let device = shaders();
    let x = Random::new(29).tensor([300]);
    let mark = softmetal::ledger::mark();
    for k in 1..300 {
        let graph = Graph::new();
        let row = graph.constant(x.clone()).slice(0, 0, k).unwrap();
        let y = row.reshape([k, 1]).unwrap().matmul(&row.reshape([1, k]).unwrap().slice(1, 0, 1).unwrap());
        y.unwrap().eval(&device).unwrap();
    }
    let living = softmetal::ledger::living_since(mark);
    let products = living.get("MPSMatrixMultiplication").copied().unwrap_or(0);
    assert!((1..=256).contains(&products), "{products} products: {living:?}");
}

/// Two calls with a kernel of ours between and after them: encoders of three kinds in one command buffer, nothing waits.
#[test]
fn calls_and_launches_take_turns_in_one_command_buffer() {
    let _alone = crate::alone();
    let r = &mut Random::new(12);
    let (a, b) = (r.tensor([8, 8]), r.tensor([8, 8]));
    let graph = Graph::new();
    let [a_, b_] = [&a, &b].map(|tensor| graph.constant(tensor.clone()));
    let y = a_.matmul(&b_).unwrap().silu().unwrap().matmul(&b_).unwrap().affine(2.0, 1.0).unwrap();
    let device = shaders();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    program.run(&[]).unwrap();
    #[cfg(softmetal)]
    {
        softmetal::quiesce();
        softmetal::counters::take();
    }
    let begun = std::time::Instant::now();
    let found = program.run(&[]).unwrap().remove(0);
    let elapsed = begun.elapsed();
    #[cfg(softmetal)]
    {
        let counted = softmetal::counters::take();
        assert_eq!(counted.command_buffers, 1, "{counted:?}");
        crate::assert_waited_once(&counted, elapsed);
    }
    #[cfg(not(softmetal))]
    let _ = elapsed;
    let b = candle(&b);
    let product = candle(&a).matmul(&b).unwrap().silu().unwrap().matmul(&b).unwrap();
    close(&floats(&found), &numbers(&product.affine(2.0, 1.0).unwrap()), 1e-5);
}
