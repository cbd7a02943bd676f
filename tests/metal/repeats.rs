//! The same work again and again, for a leak checker: `cargo xtask mac` runs each test under Apple's `leaks`, once with few
//! repeats and once with many (METAL_CANDLE_REPEATS), and compares what is left. The software device counts live objects
//! itself (`counters.rs`).

use std::sync::atomic::AtomicBool;

use metal_candle::backend::Device;
use metal_candle::backend::select::Preference;
use metal_candle::graph::Graph;
use metal_candle::tensor::{HostTensor, TensorSpec};
use metal_candle::training::{Event, Example, LoraConfig, Trainer};

use crate::model::{load, options, small};

fn repeats() -> usize {
    let set = std::env::var("METAL_CANDLE_REPEATS").ok();
    set.map_or(3, |text| text.parse().expect("METAL_CANDLE_REPEATS is a number"))
}

/// A product and a softmax by our kernels and by Metal Performance Shaders.
#[test]
fn a_program_gives_the_same_result_every_time() {
    let _alone = crate::alone();
    for preference in [Preference::Metal, Preference::Mps] {
        let device = Device::metal_with(preference).unwrap();
        let graph = Graph::new();
        let x = graph.input("x", TensorSpec::f32([4, 8]));
        let w = device.parameter("w", &HostTensor::zeros(TensorSpec::f32([8, 8])), false).unwrap();
        let y = x.linear(&graph.parameter(&w)).unwrap().softmax(1).unwrap();
        let program = device.compile(&graph, &[y], &[]).unwrap();
        let input = HostTensor::zeros(TensorSpec::f32([4, 8]));
        let mut output = program.outputs();
        for _ in 0..repeats() {
            program.run_into(&[&input], &mut output).unwrap();
            assert_eq!(output[0].as_slice::<f32>().unwrap(), [0.125; 32]);
        }
    }
}

/// As many training steps of the small model as there are repeats.
#[test]
fn a_training_run_lowers_the_loss() {
    let _alone = crate::alone();
    let device = Device::metal().unwrap();
    let model = load(&small(), &device);
    let examples =
        [Example { tokens: vec![5, 17, 101, 42, 7], supervised: vec![false, false, true, true, true] }];
    let folder = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, seed: 5, ..LoraConfig::default() };
    let steps = repeats();
    let mut trainer =
        Trainer::new(&model, config, None, options(steps), &examples, &[], folder.path()).unwrap();
    let mut losses = Vec::new();
    let observer = &mut |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    trainer.run(&AtomicBool::new(false), observer).unwrap();
    assert_eq!(losses.len(), steps);
    assert!(steps == 1 || losses[steps - 1] < losses[0], "{losses:?}");
}

/// The control: shows that the leak checker sees one lost block per repeat.
#[test]
#[ignore = "loses memory on purpose, for cargo xtask mac"]
fn memory_is_lost_on_purpose() {
    for repeat in 0..repeats() {
        let lost = Box::leak(Box::new([repeat; 8]));
        assert_eq!(std::hint::black_box(lost)[7], repeat);
    }
}
