//! What the lowering binds, beside what the kernels take: a launch in CUDA reads as many arguments as its kernel has.

use std::collections::BTreeMap;

use metal_candle::backend::CudaCompiler;
use metal_candle::backend::gpu::recording;
use metal_candle::graph::Graph;
use metal_candle::ops::reference::Reference;
use metal_candle::tensor::{DType, HostTensor};

#[path = "../ops/cases.rs"]
mod cases;

use cases::{Case, Sizes, all};

/// The definition's results, from which some cases have inputs.
fn reference(case: &Case) -> Vec<HostTensor> {
    let specs: Vec<_> = case.inputs.iter().map(|x| x.spec().clone()).collect();
    let outputs = case.op.contract().infer(&specs).unwrap();
    let inputs: Vec<Reference> =
        case.inputs.iter().map(|x| Reference::new(x.shape().clone(), x.to_f64())).collect();
    let results = case.op.contract().reference(&inputs);
    let host = results
        .iter()
        .zip(outputs)
        .map(|(value, spec)| HostTensor::from_f64(&value.data, spec.dtype, spec.shape));
    host.collect::<Result<_, _>>().unwrap()
}

/// Returns the dispatches of a case, or `None` if the operation does not take the case's dtypes.
fn dispatches(case: &Case) -> Option<Vec<recording::RecordedDispatch>> {
    let specs: Vec<_> = case.inputs.iter().map(|x| x.spec().clone()).collect();
    case.op.contract().infer(&specs).ok()?;
    let device = recording::device();
    let graph = Graph::new();
    let updates = case.op.contract().updates(case.inputs.len());
    let mut inputs = Vec::new();
    for (index, value) in case.inputs.iter().enumerate() {
        if updates.iter().any(|&(input, _)| input == index) {
            inputs.push(graph.parameter(&device.state("state", value.spec().clone()).unwrap()));
        } else {
            inputs.push(graph.constant(value.clone()));
        }
    }
    let outputs = graph.record(case.op.clone(), &inputs.iter().collect::<Vec<_>>()).unwrap();
    let is_update = |port: usize| updates.iter().any(|&(_, output)| output == port);
    let (in_place, computed): (Vec<usize>, Vec<usize>) =
        (0..outputs.len()).partition(|&port| is_update(port));
    let select = |ports: &[usize]| ports.iter().map(|&port| outputs[port].clone()).collect::<Vec<_>>();
    recording::dispatches(&device, &graph, &select(&computed), &select(&in_place)).ok()
}

#[test]
fn every_dispatch_has_as_many_arguments_as_its_kernel_takes() {
    let mut buffers = BTreeMap::new();
    for file in CudaCompiler::files() {
        for function in CudaCompiler::functions(file).unwrap() {
            let count = CudaCompiler::buffers(file, &function).unwrap();
            buffers.insert(function, count);
        }
    }
    let (mut wrong, mut seen) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let sizes = [
        Sizes { m: 1, n: 1, k: 1, b: 1 },
        Sizes { m: 7, n: 5, k: 3, b: 2 },
        Sizes { m: 130, n: 300, k: 36, b: 1 },
    ];
    for (seed, sizes) in sizes.into_iter().enumerate() {
        for case in all(sizes, seed as u64) {
            for dtype in [DType::F32, DType::BF16] {
                let inputs = case
                    .inputs
                    .iter()
                    .map(|x| if x.dtype() == DType::F32 { x.cast(dtype) } else { x.clone() });
                let case = Case { op: case.op.clone(), inputs: inputs.collect() };
                for dispatch in dispatches(&case).into_iter().flatten() {
                    // Products of many rows are MLX's on the recording device.
                    let Some(&count) = buffers.get(&dispatch.kernel) else { continue };
                    seen.insert(dispatch.kernel.clone());
                    if dispatch.arguments != count {
                        wrong.insert(format!("{}: {} of {count}", dispatch.kernel, dispatch.arguments));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(seen.len() > 50, "{seen:?}");
}
