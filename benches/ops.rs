//! Operations on the CPU at the sizes of SmolLM2-135M, dense products beside the `gemm` crate.
//!
//! `cargo bench --bench ops`; two threads, f32.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metal_candle::Result;
use metal_candle::backend::Device;
use metal_candle::graph::{Graph, LazyTensor};
use metal_candle::ops::{Attention, Real};
use metal_candle::tensor::HostTensor;

const THREADS: usize = 2;

fn values(shape: &[usize]) -> HostTensor {
    let data: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
    HostTensor::from_slice(&data, shape).expect("as many values as elements")
}

/// Times one program; `bytes` or `flops` give the throughput.
fn bench(
    c: &mut Criterion,
    name: &str,
    throughput: Throughput,
    inputs: &[HostTensor],
    record: impl Fn(&[LazyTensor]) -> Result<LazyTensor>,
) {
    let device = Device::cpu(THREADS).expect("a device");
    let graph = Graph::new();
    // Parameters stay where they are; inputs would be copied in at every run.
    let tensors: Vec<LazyTensor> = inputs
        .iter()
        .map(|value| graph.parameter(&device.parameter("x", value, false).expect("a parameter")))
        .collect();
    let output = record(&tensors).expect("a recording");
    let program = device.compile(&graph, &[output], &[]).expect("a program");
    let mut results = program.outputs();
    let mut group = c.benchmark_group("ops");
    group.throughput(throughput).sample_size(20).measurement_time(std::time::Duration::from_secs(1));
    group.warm_up_time(std::time::Duration::from_millis(200));
    group.bench_function(name, |b| b.iter(|| program.run_into(&[], &mut results).expect("a run")));
    group.finish();
}

fn products(c: &mut Criterion) {
    for (m, n, k) in [
        (1, 1536, 576),
        (32, 1536, 576),
        (512, 960, 576),
        (512, 3072, 576),
        (512, 576, 1536),
        (64, 49152, 576),
    ] {
        let flops = Throughput::Elements((2 * m * n * k) as u64);
        let inputs = [values(&[m, k]), values(&[n, k])];
        bench(c, &format!("linear/{m}x{n}x{k}"), flops, &inputs, |t| t[0].linear(&t[1]));
        let mut group = c.benchmark_group("ops");
        group.throughput(Throughput::Elements((2 * m * n * k) as u64)).sample_size(20);
        group
            .measurement_time(std::time::Duration::from_secs(1))
            .warm_up_time(std::time::Duration::from_millis(200));
        let (a, b) = (inputs[0].as_slice::<f32>().expect("f32"), inputs[1].as_slice::<f32>().expect("f32"));
        let mut out = vec![0.0_f32; m * n];
        group.bench_function(format!("gemm crate/{m}x{n}x{k}"), |bench| {
            bench.iter(|| {
                let (k_step, one) = (k as isize, 1);
                // SAFETY: the slices have the sizes and steps that are given.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        out.as_mut_ptr(),
                        one,
                        n as isize,
                        false,
                        a.as_ptr(),
                        one,
                        k_step,
                        b.as_ptr(),
                        k_step,
                        one,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::Rayon(THREADS),
                    );
                }
            });
        });
        group.finish();
    }
    let (m, n, k) = (128, 576, 49152);
    let inputs = [values(&[m, k]), values(&[k, n])];
    bench(c, "head gradient/128x576x49152", Throughput::Elements((2 * m * n * k) as u64), &inputs, |t| {
        t[0].matmul(&t[1])
    });
}

fn rows(c: &mut Criterion) {
    let (m, n) = (512, 576);
    let bytes = |tensors: usize| Throughput::Bytes((4 * tensors * m * n) as u64);
    let x = || values(&[m, n]);
    bench(c, "softmax/512x576", bytes(2), &[x()], |t| t[0].softmax(1));
    bench(c, "rms_norm/512x576", bytes(2), &[x(), values(&[n])], |t| t[0].rms_norm(&t[1], 1e-5));
    bench(c, "silu_mul/512x576", bytes(3), &[x(), x()], |t| t[0].silu_mul(&t[1]));
    bench(c, "add/512x576", bytes(3), &[x(), x()], |t| t[0].add(&t[1]));
}

fn attention(c: &mut Criterion) {
    for t in [128, 1024] {
        let d = 64;
        let op = Attention {
            scale: Real(1.0 / (d as f32).sqrt()),
            causal: true,
            window: None,
            cached: false,
            segmented: false,
        };
        let inputs = [values(&[1, t, 9, d]), values(&[1, t, 3, d]), values(&[1, t, 3, d])];
        let flops = Throughput::Elements((2 * 9 * d * t * t) as u64);
        bench(c, &format!("attention/{t}"), flops, &inputs, |x| {
            x[0].attention(&x[1], &x[2], op.clone(), &[])
        });
    }
}

criterion_group!(benches, products, rows, attention);
criterion_main!(benches);
