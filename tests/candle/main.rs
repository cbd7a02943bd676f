//! The fused operations on candle's tensors: forward and backward against candle's own unfused operations and against
//! finite differences, on every device of the build, through views and within chains of candle's own operations.

#[cfg(softmetal)]
extern crate softmetal;

mod cases;
mod chains;
mod lazy;
mod levels;
#[cfg(softmetal)]
mod metal;
mod ops;
mod views;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

/// Tests take turns: what the software device counts is the process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls a check with each of candle's devices that this build runs on. candle has no autorelease pools of its own (its
/// issue 2271), so one stands around it.
fn on_devices(check: impl Fn(&Device)) {
    let _alone = alone();
    check(&Device::Cpu);
    #[cfg(any(softmetal, all(target_vendor = "apple", feature = "custom-metal")))]
    objc2::rc::autoreleasepool(|_| check(&Device::new_metal(0).expect("candle finds the system's GPU")));
}

/// The greatest difference of two tensors, in f64.
fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let [a, b] =
        [a, b].map(|x| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>());
    let each =
        a?.into_iter().zip(b?).map(|(a, b)| if a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() });
    Ok(each.fold(0.0, |greatest, d| if d.is_nan() { f64::INFINITY } else { greatest.max(d) }))
}

/// The greatest magnitude.
fn greatest(a: &Tensor) -> Result<f64> {
    let values = a.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.into_iter().fold(0.0, |greatest, x| x.abs().max(greatest)))
}

/// Numbers between −1 and 1 that a seed decides, as f64 on the CPU.
fn numbers(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f64> = (0..dims.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu)
}
