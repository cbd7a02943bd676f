//! What a step costs: command buffers, dispatches, waits, memory and live objects, counted by the software device.

use metal_candle::backend::Device;
use metal_candle::inference::Generator;

use crate::model::{adapter, load, smollm2};

/// Counts of one decode step, when everything it needs was made by the step before.
fn decode(with_adapter: bool) -> Option<(softmetal::counters::Counters, usize)> {
    let files = smollm2()?;
    let device = Device::metal().unwrap();
    let model = load(&files, &device);
    let adapter = with_adapter.then(|| adapter(&model).on(&device).unwrap());
    let mut generator = Generator::new(&model, adapter.as_ref()).unwrap();
    generator.next_logits(&[1, 2, 3]).unwrap();
    generator.next_logits(&[1, 2, 3, 4]).unwrap();
    softmetal::quiesce();
    softmetal::counters::take();
    generator.next_logits(&[1, 2, 3, 4, 5]).unwrap();
    Some((softmetal::counters::take(), files.config.layers))
}

#[test]
fn a_decode_step_is_one_command_buffer_and_eight_dispatches_a_layer() {
    let _alone = crate::alone();
    for (with_adapter, most) in [(false, 8), (true, 12)] {
        let Some((counted, layers)) = decode(with_adapter) else { return };
        let dispatches: u64 = counted.commands.values().sum();
        // Beside the layers: the embedding, the last norm, the row of the last token and the head.
        let beside = 4;
        assert!(dispatches <= (most * layers + beside) as u64, "{with_adapter}: {counted:?}");
        assert_eq!((counted.command_buffers, counted.encoders), (1, 1), "{counted:?}");
        // None if the run was over while the host looked.
        assert!(counted.host_waits <= 1, "{counted:?}");
        assert_eq!((counted.bytes_allocated, counted.pipelines), (0, 0), "{counted:?}");
        println!("with an adapter {with_adapter}: {counted:?}");
    }
}

/// A step that is run again and again leaves nothing behind.
#[test]
fn a_thousand_repeats_leave_no_more_objects_than_one() {
    use metal_candle::graph::Graph;
    use metal_candle::tensor::{HostTensor, TensorSpec};

    let _alone = crate::alone();
    let device = Device::metal().unwrap();
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

#[test]
fn the_arena_is_as_large_as_the_plan_says() {
    use metal_candle::graph::Graph;
    use metal_candle::tensor::TensorSpec;

    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let graph = Graph::new();
    let x = graph.input("x", TensorSpec::f32([64, 64]));
    let y = x.silu().unwrap().matmul(&x.softmax(1).unwrap()).unwrap();
    softmetal::counters::take();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    let allocated = softmetal::counters::take().bytes_allocated;
    assert_eq!(allocated, program.plan().arena_bytes as u64);
    assert!(allocated >= 3 * 64 * 64 * 4);
}
