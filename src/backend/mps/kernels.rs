//! The framework's kernel objects, made once for each shape and kept.
//!
//! A product object remembers shape, transposes and factors, nothing of its matrices; a model of thirty equal layers needs
//! a handful of them. Plans hold those that they encode; the cache only bounds how many wait to be used again.

use std::sync::{Mutex, PoisonError};

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal_performance_shaders::{MPSMatrixMultiplication, MPSNDArrayMatrixMultiplication};

use crate::backend::metal::device::Gpu;
use crate::lru::Lru;

/// How many objects of a kind wait to be used again.
const KEPT: usize = 64;

/// Everything that a product object remembers; factors by their bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ProductKey {
    pub(super) transposes: (bool, bool),
    pub(super) sizes: [usize; 3],
    factors: (u32, u32),
}

impl ProductKey {
    pub(super) fn new(transposes: (bool, bool), sizes: [usize; 3], factors: (f32, f32)) -> Self {
        Self { transposes, sizes, factors: (factors.0.to_bits(), factors.1.to_bits()) }
    }

    fn factors(&self) -> (f64, f64) {
        (f64::from(f32::from_bits(self.factors.0)), f64::from(f32::from_bits(self.factors.1)))
    }
}

/// Objects of one device. They are encoded under the arena's lock, so by one thread at a time.
pub(in crate::backend) struct Kernels {
    products: Mutex<Lru<ProductKey, Retained<MPSMatrixMultiplication>>>,
    arrays: Mutex<Lru<ProductKey, Retained<MPSNDArrayMatrixMultiplication>>>,
}

impl Default for Kernels {
    fn default() -> Self {
        Self { products: Mutex::new(Lru::new(KEPT)), arrays: Mutex::new(Lru::new(KEPT)) }
    }
}

fn cached<K: Clone>(
    cache: &Mutex<Lru<ProductKey, K>>,
    key: ProductKey,
    make: impl FnOnce(&ProductKey) -> K,
) -> K {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kernel) = cache.get(&key) {
        return kernel;
    }
    let kernel = make(&key);
    cache.put(key, kernel.clone());
    kernel
}

impl Kernels {
    /// The object of a product; the guard has agreed to the sizes.
    pub(super) fn product(&self, gpu: &Gpu, key: ProductKey) -> Retained<MPSMatrixMultiplication> {
        cached(&self.products, key, |key| {
            let ([m, n, k], (alpha, beta)) = (key.sizes, key.factors());
            // SAFETY: the guard has agreed to the sizes.
            unsafe {
                MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
                    MPSMatrixMultiplication::alloc(),
                    &gpu.device,
                    key.transposes.0,
                    key.transposes.1,
                    m,
                    n,
                    k,
                    alpha,
                    beta,
                )
            }
        })
    }

    /// The object of a product of arrays: two sources, and a third that is added if its factor is not zero.
    pub(super) fn array_product(
        &self,
        gpu: &Gpu,
        key: ProductKey,
    ) -> Retained<MPSNDArrayMatrixMultiplication> {
        cached(&self.arrays, key, |key| {
            let (alpha, beta) = key.factors();
            let sources = if beta == 0.0 { 2 } else { 3 };
            // SAFETY: two or three sources are what the class takes.
            unsafe {
                let kernel = MPSNDArrayMatrixMultiplication::initWithDevice_sourceCount(
                    MPSNDArrayMatrixMultiplication::alloc(),
                    &gpu.device,
                    sources,
                );
                kernel.setAlpha(alpha);
                kernel.setBeta(beta);
                kernel
            }
        })
    }
}
