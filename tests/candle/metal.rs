//! What fused operations cost on candle's Metal device, counted by the software device: dispatches, waits, objects.

use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::{AttentionMask, CustomMetalOps};
use softmetal::counters;
use softmetal::ledger::Leak;

use crate::cases::{cases, inputs};
use crate::numbers;

/// One test at a time: counters and objects are the process's.
fn on_metal(test: impl FnOnce(&Device)) {
    let _alone = crate::alone();
    objc2::rc::autoreleasepool(|_| test(&Device::new_metal(0).unwrap()));
}

fn on(device: &Device, seed: u64, dims: &[usize]) -> Tensor {
    numbers(seed, dims).unwrap().to_dtype(DType::F32).unwrap().to_device(device).unwrap()
}

/// How often the host has waited for the device since the last call.
fn waits() -> u64 {
    counters::take().host_waits
}

/// How often the host waits while it does this, with command buffers so late that no wait is over before it begins, nor
/// while the host looks for its end (a tenth of a second).
fn waits_of(work: impl FnOnce()) -> u64 {
    softmetal::faults::delay_completion(Duration::from_millis(150));
    counters::take();
    work();
    let counted = waits();
    softmetal::faults::clear();
    counted
}

#[test]
fn forward_and_backward_of_every_operation_wait_for_nothing() {
    on_metal(|device| {
        for case in cases(true).iter().filter(|case| case.name != "matmul_mps") {
            let (_, here) = inputs(case, DType::F32, device).unwrap();
            let vars: Vec<Var> = here.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
            let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let run = || {
                let y = (case.fused)(&tensors).unwrap();
                y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            };
            // The first run compiles kernels and moves constants of the case to the device.
            run();
            // Some cases bring fixed operands with them, whose way to the device candle waits for.
            let fixed = {
                counters::take();
                (case.unfused)(&tensors).unwrap();
                waits()
            };
            counters::take();
            run();
            assert!(waits() <= fixed, "{}: waits beyond candle's own {fixed}", case.name);
            device.synchronize().unwrap();
        }
    });
}

#[test]
fn a_chain_of_candles_and_our_operations_waits_once_for_the_result() {
    on_metal(|device| {
        let (x, w) = (on(device, 1, &[6, 32]), on(device, 2, &[32]));
        let chain = || {
            let y = (x.rms_norm_fused(&w, 1e-5).unwrap() * 2.0).unwrap();
            let y = y.softmax_fused(1).unwrap().exp().unwrap();
            (y.silu_mul_fused(&x).unwrap() + &x).unwrap()
        };
        let expected = chain().to_vec2::<f32>().unwrap();
        let mut y = None;
        assert_eq!(waits_of(|| y = Some(chain())), 0);
        let y = y.unwrap();
        assert_eq!(waits_of(|| assert_eq!(y.to_vec2::<f32>().unwrap(), expected)), 1);
    });
}

#[test]
fn a_product_by_metal_performance_shaders_waits_twice() {
    on_metal(|device| {
        let (a, b) = (on(device, 1, &[16, 24]), on(device, 2, &[24, 8]));
        let expected = a.matmul(&b).unwrap().to_vec2::<f32>().unwrap();
        a.matmul_mps(&b).unwrap();
        // candle has something to do when the product is asked for.
        let a = (&a * 1.0).unwrap();
        let mut y = None;
        // For candle's command buffer and for ours; the latter is looked for by its event and by itself, which is one wait
        // of the host in one call or in two.
        let counted = waits_of(|| y = Some(a.matmul_mps(&b).unwrap()));
        assert!((2..=3).contains(&counted), "{counted} waits");
        let y = y.unwrap();
        for (y, expected) in y.to_vec2::<f32>().unwrap().iter().flatten().zip(expected.iter().flatten()) {
            assert!((y - expected).abs() < 1e-5, "{y} and {expected}");
        }
    });
}

/// As a product: once for candle's command buffer, once for ours, which is looked for by its event and by itself.
#[test]
fn a_softmax_by_metal_performance_shaders_waits_twice() {
    const CHILD: &str = "METAL_CANDLE_TEST_WAITS";
    if std::env::var_os(CHILD).is_none() {
        // The level is read once per process.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "metal::a_softmax_by_metal_performance_shaders_waits_twice", "--nocapture"])
            .env("METAL_CANDLE_BACKEND", "mps")
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    on_metal(|device| {
        let x = on(device, 1, &[16, 24]);
        x.fast_softmax(1).unwrap();
        // candle has something to do when the softmax is asked for.
        let x = (&x * 1.0).unwrap();
        let counted = waits_of(|| drop(x.fast_softmax(1).unwrap()));
        assert!((2..=3).contains(&counted), "{counted} waits");
    });
}

/// Each operation's dispatches, as the table of docs/MPS_BENCHMARKS.md counts them for the engine.
#[test]
fn an_operation_is_one_dispatch_where_its_kernel_is_one() {
    on_metal(|device| {
        let (x, w) = (on(device, 1, &[8, 64]), on(device, 2, &[64]));
        let q = on(device, 3, &[1, 2, 8, 32]);
        let counted = |f: &dyn Fn()| {
            f();
            device.synchronize().unwrap();
            counters::take();
            f();
            device.synchronize().unwrap();
            counters::take().commands.values().sum::<u64>()
        };
        assert_eq!(counted(&|| drop(x.softmax_fused(1).unwrap())), 1);
        assert_eq!(counted(&|| drop(x.rms_norm_fused(&w, 1e-5).unwrap())), 1);
        assert_eq!(counted(&|| drop(x.add_rms_norm_fused(&x, &w, 1e-5).unwrap())), 1);
        assert_eq!(counted(&|| drop(x.layer_norm_fused(&w, None, 1e-5).unwrap())), 1);
        assert_eq!(counted(&|| drop(x.silu_mul_fused(&x).unwrap())), 1);
        let attention = || drop(q.attention_fused(&q, &q, AttentionMask::Causal, 0.2).unwrap());
        assert_eq!(counted(&attention), 1);
    });
}

#[test]
fn repeats_leave_no_objects() {
    on_metal(|device| {
        let (x, w) = (on(device, 1, &[8, 64]), on(device, 2, &[64]));
        let run = |times: usize| {
            for _ in 0..times {
                objc2::rc::autoreleasepool(|_| {
                    let y = x.rms_norm_fused(&w, 1e-5).unwrap().softmax_fused(1).unwrap();
                    y.matmul_mps(&y.t().unwrap()).unwrap();
                    device.synchronize().unwrap();
                });
            }
        };
        run(3);
        let (_, leaked) = softmetal::leaks(|| run(1));
        let (_, more) = softmetal::leaks(|| run(100));
        let classes = |leaks: &[Leak]| leaks.iter().map(|leak| leak.class.clone()).collect::<Vec<_>>();
        assert_eq!(classes(&leaked), classes(&more), "objects stay with every repeat");
    });
}
