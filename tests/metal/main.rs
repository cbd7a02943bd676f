//! The Metal backend beyond single operations, on a Mac's GPU or on the software device of `crates/softmetal`, which
//! checks ordering, lifetimes and memory while it runs. The operations themselves are in `tests/ops`.
#![cfg(metal)]

#[cfg(softmetal)]
extern crate softmetal;

use metal_candle::backend::Device;
use metal_candle::graph::Graph;
use metal_candle::tensor::HostTensor;

#[test]
fn runs_are_repeated_with_new_inputs() {
    let device = Device::metal().unwrap();
    let graph = Graph::new();
    let x = graph.input("x", metal_candle::tensor::TensorSpec::f32([2, 3]));
    let y = x.softmax(1).unwrap().softmax(0).unwrap();
    let program = device.compile(&graph, &[y], &[]).unwrap();
    for shift in [0.0_f32, 3.0] {
        let x = HostTensor::from_slice(&[shift; 6], [2, 3]).unwrap();
        let y = program.run(&[&x]).unwrap().remove(0);
        assert_eq!(y.as_slice::<f32>().unwrap(), [0.5; 6]);
    }
}
