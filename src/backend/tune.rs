//! Measures a product on two devices, or on one device by two ways, for the [`select::Table`](super::select::Table).

use std::time::Instant;

use super::Device;
use super::select::Measured;
use crate::graph::Graph;
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// Products of one run, of which a run of one is subtracted: what submission and waiting cost drops out.
const MANY: usize = 9;

/// A product: `[m, k]·[k, n]`, the right matrix stored `[n, k]` as linear layers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Inner length.
    pub k: usize,
    /// Type of all three matrices.
    pub dtype: DType,
}

/// The products that choices are made between: rows of one token, of a short and of a long batch, for layers of small
/// and of large models.
pub fn products() -> Vec<Product> {
    let mut products = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for m in [1, 16, 64, 256, 1024] {
            for [n, k] in [[576, 576], [1536, 576], [576, 1536], [2048, 2048], [8192, 2048], [4096, 4096]] {
                products.push(Product { m, n, k, dtype });
            }
        }
    }
    products
}

/// Numbers in [−1, 1), the same on every device.
fn values(shape: [usize; 2], dtype: DType, salt: u64) -> HostTensor {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| next()).collect();
    HostTensor::from_slice(&values, shape).expect("as many values as elements").cast(dtype)
}

/// `count` products of one left matrix with as many right ones; the first element of each result is what is read.
fn program(device: &Device, product: Product, count: usize) -> Result<super::Program> {
    let Product { m, n, k, dtype } = product;
    let graph = Graph::new();
    let x = device.parameter("x", &values([m, k], dtype, 1), false)?;
    let x = graph.parameter(&x);
    let mut results = Vec::with_capacity(count);
    for index in 0..count {
        let w = device.parameter(format!("w{index}"), &values([n, k], dtype, 2), false)?;
        let y = x.linear(&graph.parameter(&w))?;
        results.push(y.slice(0, m - 1, 1)?.slice(1, n - 1, 1)?);
    }
    device.compile(&graph, &results, &[])
}

/// Seconds that a product takes on a device, the least of `repeats`, and an element of its result.
fn seconds(device: &Device, product: Product, repeats: usize) -> Result<(f64, f64)> {
    let (one, many) = (program(device, product, 1)?, program(device, product, MANY)?);
    let (mut first, mut all) = (one.run(&[])?, many.run(&[])?);
    let (mut least_one, mut least_many) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..repeats.max(1) {
        let begun = Instant::now();
        one.run_into(&[], &mut first)?;
        let between = Instant::now();
        many.run_into(&[], &mut all)?;
        least_one = least_one.min((between - begun).as_secs_f64());
        least_many = least_many.min(between.elapsed().as_secs_f64());
    }
    let each = (least_many - least_one) / (MANY - 1) as f64;
    // A clock too coarse for a small product must not make it free.
    Ok((each.max(1e-9), all[0].to_f64()[0]))
}

/// Measures a product on both.
///
/// # Errors
/// A device fails, or the two disagree by more than rounding: then neither time means anything.
pub fn measure(mps: &Device, metal: &Device, product: Product, repeats: usize) -> Result<Measured> {
    let (theirs, a) = seconds(mps, product, repeats)?;
    let (ours, b) = seconds(metal, product, repeats)?;
    let Product { m, n, k, dtype } = product;
    // Sums of k products of numbers below one, rounded to the storage once.
    let tolerance = (k as f64).sqrt() * if dtype == DType::F32 { 1e-5 } else { 2e-2 };
    if (a - b).abs() > tolerance {
        let message = format!(
            "[{m}, {k}]x[{k}, {n}] {dtype} gives {a} by Metal Performance Shaders and {b} by our kernels"
        );
        return Err(Error::invalid("tune", message));
    }
    Ok(Measured { dtype: dtype.to_string(), m, n, k, mps: theirs, metal: ours })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_single_products_and_results_must_agree() {
        let devices = [Device::cpu(1).unwrap(), Device::cpu(2).unwrap()];
        let small = Product { m: 4, n: 32, k: 64, dtype: DType::F32 };
        let large = Product { m: 64, n: 256, k: 256, dtype: DType::F32 };
        let [few, many] =
            [small, large].map(|product| measure(&devices[0], &devices[1], product, 5).unwrap());
        assert!(few.mps > 0.0 && few.metal > 0.0);
        // Five hundred times the work.
        assert!(many.mps > 10.0 * few.mps, "{few:?} {many:?}");
        assert_eq!((few.m, few.n, few.k, few.dtype.as_str()), (4, 32, 64, "f32"));
    }

    #[test]
    fn every_type_and_rows_from_one_on_are_measured() {
        let products = products();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            assert!(products.iter().any(|p| p.dtype == dtype && p.m == 1));
        }
        assert!(products.iter().all(|p| p.m * p.n * p.k > 0));
    }
}
