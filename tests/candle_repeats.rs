//! A thousand repeats of every fused operation, and of a training step, give the same bits and take no more memory. In a
//! process of its own: other tests take memory as well. On Linux, which tells a process's memory in a file.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "shared with the other tests of candle's tensors")]
#[path = "candle/cases.rs"]
mod cases;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var};
use metal_candle::graph::Graph;
use metal_candle::ops::{AdamW, GlobalNorm, Real};
use metal_candle::tensor::HostTensor;

use cases::{cases, inputs};

/// Numbers between −1 and 1, as f64 on the CPU.
fn numbers(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let count = dims.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0);
    Tensor::from_vec(values.collect::<Vec<f64>>(), dims, &Device::Cpu)
}

/// Forward, backward and AdamW of a layer with an adapter, from one state each time.
#[test]
fn a_thousand_repeats_of_a_training_step_change_nothing() {
    let _alone = alone();
    let device = metal_candle::backend::Device::cpu(2).unwrap();
    let host = |seed: u64, dims: &[usize]| {
        HostTensor::from_candle(&numbers(seed, dims).unwrap().to_dtype(DType::F32).unwrap()).unwrap()
    };
    let (x, w) = (host(1, &[64, 96]), device.parameter("w", &host(2, &[80, 96]), false).unwrap());
    let begin = [host(3, &[4, 96]), host(4, &[80, 4])];
    let adapter = [0, 1].map(|i| device.parameter(format!("p{i}"), &begin[i], true).unwrap());
    let state = |i: usize| {
        let spec = begin[i].spec().clone();
        [device.state("m", spec.clone()).unwrap(), device.state("v", spec).unwrap()]
    };
    let states = [state(0), state(1)];
    let graph = Graph::new();
    let input = graph.input("x", x.spec().clone());
    let [a, b] = [0, 1].map(|i| graph.parameter(&adapter[i]));
    let y = input.lora(&graph.parameter(&w), None, &a, &b, 2.0).unwrap().softmax(1).unwrap();
    let loss = y.mul(&y).unwrap().sum_all().unwrap();
    let gradients = graph.gradients(&loss, &[a.clone(), b.clone()]).unwrap();
    let norm = graph.record(GlobalNorm, &[&gradients[0], &gradients[1]]).unwrap().remove(0);
    let hyper = graph.constant(HostTensor::from_slice(&[0.01_f32, 1.0, 1.0], [3]).unwrap());
    let [one, two] = [0, 1].map(|i| [0, 1].map(|j| graph.parameter(&states[i][j])));
    let update = AdamW {
        beta1: Real(0.9),
        beta2: Real(0.999),
        eps: Real(1e-8),
        weight_decay: Real(0.01),
        max_norm: Real(1.0),
    };
    let inputs = [&a, &gradients[0], &one[0], &one[1], &b, &gradients[1], &two[0], &two[1], &hyper, &norm];
    let updates = graph.record(update, &inputs).unwrap();
    let program =
        device.compile(&graph, &[loss, gradients[0].clone(), gradients[1].clone()], &updates).unwrap();
    let mut outputs = program.outputs();
    let mut run = || {
        for i in 0..2 {
            adapter[i].write(&begin[i]).unwrap();
            states[i].iter().for_each(|s| s.write(&HostTensor::zeros(s.spec().clone())).unwrap());
        }
        program.run_into(&[&x], &mut outputs).unwrap();
        let after = adapter.iter().map(|p| p.read().unwrap());
        outputs.iter().cloned().chain(after).map(|t| t.bytes().to_vec()).collect::<Vec<_>>()
    };
    let first = run();
    assert_ne!(first[3], begin[0].bytes(), "the step changes the adapter");
    (0..50).for_each(|_| assert_eq!(run(), first));
    let before = resident();
    (0..949).for_each(|_| assert_eq!(run(), first));
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more after 949 repeats");
}

/// Memory is the process's, so the tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_thousand_repeats_of_every_operation_change_nothing() {
    let _alone = alone();
    for case in cases(true) {
        let (_, here) = inputs(&case, DType::F32, &Device::Cpu).unwrap();
        let vars: Vec<Var> = here.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let run = || {
            let y = (case.fused)(&tensors).unwrap();
            let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = bits(&y);
            vars.iter().for_each(|var| all.extend(bits(store.get(var).unwrap())));
            all
        };
        let first = run();
        (0..50).for_each(|_| assert_eq!(run(), first, "{}", case.name));
        let before = resident();
        (0..950).for_each(|_| assert_eq!(run(), first, "{}", case.name));
        let grown = resident().saturating_sub(before);
        // Less than a kilobyte a repeat of what the allocator keeps; a leaked tensor would show at once.
        assert!(grown < 1 << 20, "{}: {grown} bytes more after 950 repeats", case.name);
    }
}
