//! What a plan becomes: dispatches, counted and named on the driver without a device.

use super::recording::{device, dispatches};
use crate::graph::{Graph, LazyTensor};
use crate::ops::{Accumulate, KvWrite, Rope};
use crate::tensor::{DType, TensorSpec};

fn input(graph: &Graph, name: &str, dims: &[usize], dtype: DType) -> LazyTensor {
    graph.input(name, TensorSpec { shape: dims.to_vec().into(), dtype })
}

/// Returns the names of the kernels of a computation, and which of them wait for an earlier one.
fn kernels(record: impl FnOnce(&Graph) -> crate::Result<Vec<LazyTensor>>) -> Vec<(String, bool)> {
    let graph = Graph::new();
    let outputs = record(&graph).unwrap();
    let recorded = dispatches(&device(), &graph, &outputs, &[]).unwrap();
    recorded.into_iter().map(|dispatch| (dispatch.kernel, dispatch.barrier)).collect()
}

#[test]
fn products_of_few_rows_are_fused_with_biases_and_gates() {
    let parts = kernels(|graph| {
        let x = input(graph, "x", &[2, 32], DType::F32);
        let y = x.linear(&input(graph, "w", &[24, 32], DType::F32))?;
        let bias = input(graph, "bias", &[24], DType::F32);
        let part = |start| y.slice(1, start, 8)?.add(&bias.slice(0, start, 8)?);
        Ok(vec![part(0)?, part(8)?, part(16)?])
    });
    assert_eq!(parts, [("gemv_float_float_4".to_owned(), false)]);
    let gate = kernels(|graph| {
        let x = input(graph, "x", &[1, 32], DType::BF16);
        let y = x.linear(&input(graph, "w", &[24, 32], DType::BF16))?;
        Ok(vec![y.slice(1, 0, 12)?.silu_mul(&y.slice(1, 12, 12)?)?])
    });
    assert_eq!(gate, [("gemv_bfloat_bfloat_1".to_owned(), false)]);
}

#[test]
fn products_of_many_rows_and_other_functions_stay_separate() {
    let many = kernels(|graph| {
        let x = input(graph, "x", &[9, 32], DType::F32);
        Ok(vec![x.linear(&input(graph, "w", &[24, 32], DType::F32))?.add(&input(
            graph,
            "r",
            &[9, 24],
            DType::F32,
        ))?])
    });
    assert_eq!(many.len(), 2, "{many:?}");
    assert!(many[1].1, "the sum waits for the product");
    let product = kernels(|graph| {
        let x = input(graph, "x", &[2, 32], DType::F32);
        Ok(vec![x.linear(&input(graph, "w", &[24, 32], DType::F32))?.mul(&input(
            graph,
            "r",
            &[2, 24],
            DType::F32,
        ))?])
    });
    assert_eq!(product.len(), 2, "{product:?}");
}

/// The last of four sums is an operation of its own.
#[test]
fn at_most_three_sums_are_fused() {
    let sums = kernels(|graph| {
        let x = input(graph, "x", &[2, 32], DType::F32);
        let y = x.linear(&input(graph, "w", &[24, 32], DType::F32))?;
        (0..4).map(|i| y.add(&input(graph, &format!("r{i}"), &[2, 24], DType::F32))).collect()
    });
    assert_eq!(sums.len(), 2, "{sums:?}");
}

#[test]
fn rotations_and_writes_to_caches_are_one_dispatch() {
    let device = device();
    let graph = Graph::new();
    let cache = |name: &str| device.state(name, TensorSpec::f32([2, 16, 8])).unwrap();
    let (keys, values) = (cache("keys"), cache("values"));
    let table = |name: &str| input(&graph, name, &[16, 4], DType::F32);
    let (cos, sin) = (table("cos"), table("sin"));
    let [positions, pos] = ["positions", "pos"].map(|name| input(&graph, name, &[1], DType::U32));
    let x = input(&graph, "x", &[1, 5, 8], DType::F32);
    let [q, k, v] =
        [("q", 5), ("k", 2), ("v", 2)].map(|(name, heads)| input(&graph, name, &[1, heads, 8], DType::F32));
    let rotate = |x: &LazyTensor| {
        graph.record(Rope { inverse: false }, &[x, &cos, &sin, &positions]).unwrap().remove(0)
    };
    let (q, k) = (rotate(&q), rotate(&k));
    let write = |cache, new: &LazyTensor| {
        graph.record(KvWrite, &[&graph.parameter(cache), new, &pos]).unwrap().remove(0)
    };
    let (keys, values) = (write(&keys, &k), write(&values, &v));
    let found = dispatches(&device, &graph, &[q.add(&x).unwrap()], &[keys, values]).unwrap();
    let names: Vec<&str> = found.iter().map(|dispatch| dispatch.kernel.as_str()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("rope_cache")).count(), 1, "{names:?}");
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn gradients_of_one_allocation_are_accumulated_in_one_dispatch() {
    let device = device();
    let graph = Graph::new();
    let sum = device.state("sum", TensorSpec::f32([64])).unwrap();
    let g = input(&graph, "g", &[64], DType::F32);
    let keep = input(&graph, "keep", &[1], DType::F32);
    let updates = graph.record(Accumulate, &[&graph.parameter(&sum), &g, &keep]).unwrap();
    let found = dispatches(&device, &graph, &[], &updates).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].kernel.as_str(), found[0].groups, found[0].threads),
        ("accumulate", [1, 1, 1], [256, 1, 1])
    );
}

#[test]
fn a_recorded_program_does_not_run() {
    let graph = Graph::new();
    let x = input(&graph, "x", &[1], DType::F32);
    let program = device().compile(&graph, &[x.silu().unwrap()], &[]).unwrap();
    assert_eq!(program.launches(), 1);
    let given = crate::tensor::HostTensor::zeros(TensorSpec::f32([1]));
    let error = program.run(&[&given]).unwrap_err().to_string();
    assert!(error.contains("cannot run"), "{error}");
}
