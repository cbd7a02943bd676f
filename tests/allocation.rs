//! A replay allocates nothing: proved by an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::models::{Decoder, ModelFiles};
use metal_candle::tensor::{DType, HostTensor, TensorSpec};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A whole training graph (forward and backward of a model) and its loss, replayed.
#[test]
fn a_replay_allocates_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let (config, weights) = ModelFiles::open_weights(folder).unwrap();
    let device = Device::cpu(2).unwrap();
    let model = Decoder::load(config, &weights, &device, DType::F32, &|_| ()).unwrap();
    let graph = Graph::new();
    let spec = TensorSpec::u32([32]);
    let (ids, positions) = (graph.input("ids", spec.clone()), graph.input("positions", spec.clone()));
    let (targets, weights) = (graph.input("targets", spec), graph.input("weights", TensorSpec::f32([32])));
    let a = device.parameter("a", &HostTensor::zeros(TensorSpec::f32([4, 64])), true).unwrap();
    let b = device.parameter("b", &HostTensor::zeros(TensorSpec::f32([64, 4])), true).unwrap();
    let mut adapter = metal_candle::models::AdapterParameters::default();
    adapter.insert("model.layers.0.self_attn.q_proj", a.clone(), b.clone(), 2.0);
    let hidden = model.record_sequences(&graph, &ids, &positions, 2, Some(&adapter), None, false).unwrap();
    let loss = model.record_loss(&graph, &hidden, &targets, &weights, None, None).unwrap();
    let (graph, fused) = graph.fused(&[loss]).unwrap();
    let gradients = graph.gradients(&fused[0], &[graph.parameter(&a), graph.parameter(&b)]).unwrap();
    let mut wanted = fused.clone();
    wanted.extend(gradients);
    let program = device.compile(&graph, &wanted, &[]).unwrap();
    let tokens = HostTensor::from_slice(&(0..32).collect::<Vec<u32>>(), [32]).unwrap();
    let ones = HostTensor::from_slice(&[1.0_f32; 32], [32]).unwrap();
    let mut outputs = program.outputs();
    let inputs = [&tokens, &tokens, &tokens, &ones];
    // The first runs may set up what the threads need (their own stacks, the lock's waiting list).
    for _ in 0..3 {
        program.run_into(&inputs, &mut outputs).unwrap();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..20 {
        program.run_into(&inputs, &mut outputs).unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    assert!(outputs[0].as_slice::<f32>().unwrap()[0] > 0.0);
}
