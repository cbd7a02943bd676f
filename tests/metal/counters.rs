//! What a step costs: command buffers, dispatches, waits, memory and live objects, counted by the software device.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::bench::{Case, Form, Kind, cases};
use metal_candle::graph::Graph;
use metal_candle::inference::Generator;
use metal_candle::models::Decoder;
use metal_candle::tensor::{DType, HostTensor, TensorSpec};
use metal_candle::training::{Event, Example, LoraConfig, Trainer};

use crate::model::{Subject, adapter, load_as, options, small};

/// Counts of one decode step, when everything it needs was made by the step before.
fn decode(subject: &Subject, dtype: DType, with_adapter: bool) -> (softmetal::counters::Counters, Duration) {
    let device = Device::metal().unwrap();
    let model: Decoder = load_as(subject, &device, dtype);
    let adapter = with_adapter.then(|| adapter(&model).on(&device).unwrap());
    let mut generator = Generator::new(&model, adapter.as_ref()).unwrap();
    generator.next_logits(&[1, 2, 3]).unwrap();
    generator.next_logits(&[1, 2, 3, 4]).unwrap();
    softmetal::quiesce();
    softmetal::counters::take();
    let begun = Instant::now();
    generator.next_logits(&[1, 2, 3, 4, 5]).unwrap();
    (softmetal::counters::take(), begun.elapsed())
}

/// Counts are exact, so that a change that adds work fails here, and one that saves work lowers them here.
#[test]
fn a_decode_step_is_one_command_buffer_and_eight_dispatches_per_layer() {
    let _alone = crate::alone();
    let subject = small();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (with_adapter, per_layer) in [(false, 8), (true, 12)] {
            let ((counted, elapsed), layers) = (decode(&subject, dtype, with_adapter), subject.config.layers);
            let dispatches: u64 = counted.commands.values().sum();
            // Beside the layers: the embedding, the last norm, the row of the last token and the head.
            let beside = 4;
            let expected = (per_layer * layers + beside) as u64;
            assert_eq!(dispatches, expected, "{dtype}, adapter {with_adapter}: {counted:?}");
            // Every dispatch of a decode step needs the result of the one before.
            assert_eq!(counted.barriers, expected - 1, "{dtype}, adapter {with_adapter}: {counted:?}");
            assert_eq!((counted.command_buffers, counted.encoders), (1, 1), "{counted:?}");
            crate::assert_waited_once(&counted, elapsed);
            assert_eq!((counted.bytes_allocated, counted.pipelines), (0, 0), "{counted:?}");
            println!("{dtype}, with an adapter {with_adapter}: {counted:?}");
        }
    }
}

/// Forward, backward and update: submitted in one go, waited for once, in memory that the first step has made.
#[test]
fn a_training_step_waits_once_and_allocates_nothing() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let model = load_as(&small(), &device, DType::F32);
    let examples =
        [Example { tokens: vec![5, 17, 101, 42, 7], supervised: vec![false, false, true, true, true] }];
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let mut trainer = Trainer::new(&model, config, None, options(4), &examples, &[], folder.path()).unwrap();
    let (mut steps, mut begun) = (Vec::new(), Instant::now());
    let observer = &mut |event: &Event| {
        if matches!(event, Event::Step { .. }) {
            softmetal::quiesce();
            steps.push((softmetal::counters::take(), begun.elapsed()));
            begun = Instant::now();
        }
    };
    trainer.run(&AtomicBool::new(false), observer).unwrap();
    assert_eq!(steps.len(), 4);
    for (counted, elapsed) in &steps[1..] {
        crate::assert_waited_once(counted, *elapsed);
        assert_eq!((counted.bytes_allocated, counted.pipelines), (0, 0), "{counted:?}");
        println!("a training step: {counted:?}");
        // Two layers with adapters on all eight products, forward, backward and AdamW. The command buffers follow from their
        // bound on an M1: 32 dispatches in the first, so that the GPU starts early, and 64 in each of the others.
        let dispatches: u64 = counted.commands.values().sum();
        assert_eq!((dispatches, counted.barriers, counted.command_buffers), (104, 74, 3), "{counted:?}");
    }
}

#[test]
fn an_adapter_adds_two_dispatches_to_a_product() {
    let _alone = crate::alone();
    let device = Device::metal_with(Preference::Metal).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for rows in [1, 5, 128] {
            let launches = |kind| {
                let case = Case { kind, dtype, backward: false };
                case.program(&device, Form::One).unwrap().launches()
            };
            let base = launches(Kind::MatMul { m: rows, n: 512, k: 512 });
            let with = launches(Kind::Lora { rows, d: 512 });
            assert_eq!(base, 1);
            assert!((2..=3).contains(&with), "{dtype}, {rows} rows: {with}");
        }
    }
}

/// A step that is run again and again leaves nothing behind.
#[test]
fn a_thousand_repeats_leave_no_more_objects_than_one() {
    let _alone = crate::alone();
    for preference in [Preference::Metal, Preference::Mps] {
        repeats(&Device::metal_with(preference).unwrap());
    }
}

fn repeats(device: &Device) {
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([4, 8]));
    let w = device.parameter("w", &HostTensor::zeros(TensorSpec::f32([8, 8])), false).unwrap();
    let y = x.linear(&graph.parameter(&w)).unwrap().softmax(1).unwrap();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    let input = HostTensor::zeros(TensorSpec::f32([4, 8]));
    let mut output = program.outputs();
    let mut repeat = |times: usize| {
        let ((), left) = softmetal::leaks(|| {
            for _ in 0..times {
                program.run_into(&[&input], &mut output).unwrap();
            }
        });
        left.len()
    };
    repeat(1);
    // The device keeps the command buffers of the last run until the next one.
    let one = repeat(1);
    assert!(repeat(1000) <= one, "more than the {one} objects of one run");
    assert_eq!(output[0].as_slice::<f32>().unwrap(), [0.125; 32]);
}

/// Bytes behind the arena's last tensor, which Metal Performance Shaders may count as its last row's gap.
const ROW_GAP: u64 = 256 << 10;

#[test]
fn the_arena_is_as_large_as_the_plan_says() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([64, 64]));
    let y = x.silu().unwrap().matmul(&x.softmax(1).unwrap()).unwrap();
    softmetal::counters::take();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    let allocated = softmetal::counters::take().bytes_allocated;
    // Behind the last tensor there is room for the gap of a matrix's last row.
    assert_eq!(allocated, program.plan().arena_bytes as u64 + ROW_GAP);
    assert!(allocated >= 3 * 64 * 64 * 4);
}

/// All operations with their gradients: what is allocated when one is compiled are its parameters and the plan's arena;
/// what is allocated when it runs is nothing.
#[test]
fn no_operation_allocates_more_than_its_plan_says() {
    let _alone = crate::alone();
    for case in cases(DType::F32).into_iter().filter(|case| case.backward && large(case) < 1 << 18) {
        let device = Device::metal_with(Preference::Metal).unwrap();
        softmetal::counters::take();
        let program = case.program(&device, Form::One).unwrap();
        let compiled = softmetal::counters::take().bytes_allocated;
        // Parameters up to 4 MiB are parts of buffers of 1, 2, 4, … MiB; all larger ones are left out here.
        let parameters = program.plan().parameters.len() as u64 + 1;
        let slabs = (1..=parameters).map(|n| 1_u64 << 20 << (n - 1).min(4)).sum::<u64>();
        let arena = program.plan().arena_bytes as u64;
        let arena = arena + if arena > 0 { ROW_GAP } else { 0 };
        assert!((arena..=arena + slabs).contains(&compiled), "{}: {compiled} for {arena}", case.op());
        program.run(&[]).unwrap();
        assert_eq!(softmetal::counters::take().bytes_allocated, 0, "{} {}", case.op(), case.shape());
    }
}

/// Elements of the largest input.
fn large(case: &Case) -> usize {
    case.inputs().iter().map(|shape| shape.iter().product()).max().unwrap_or(0)
}
