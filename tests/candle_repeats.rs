//! A thousand repeats of every fused operation, and of a training step, give the same bits and take no more memory. In a
//! process of its own: other tests take memory as well.

#[allow(dead_code, reason = "shared with the other tests of candle's tensors")]
#[path = "candle/cases.rs"]
mod cases;

use candle_core::{DType, Device, Result, Tensor, Var};

use cases::{cases, inputs};

/// Numbers between −1 and 1, as f64 on the CPU.
fn numbers(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let count = dims.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0);
    Tensor::from_vec(values.collect::<Vec<f64>>(), dims, &Device::Cpu)
}

/// Bytes of this process in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_thousand_repeats_of_every_operation_change_nothing() {
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
