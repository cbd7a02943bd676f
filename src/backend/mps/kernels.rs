//! The framework's kernel objects, made once for each shape and kept by the thread that encodes them.
//!
//! A product object remembers shape, transposes and factors, nothing of its matrices; a model of thirty equal layers needs
//! a handful of them. Objects of the framework are not safe to share between threads, so each thread has its own, found by
//! the full key at every encoding: a look-up is a hundredth of what a call costs the host. The cache is bounded: lengths of
//! prompts vary.

use std::cell::RefCell;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;

use super::ffi::{ArrayMultiplication, Device, Multiplication, ProductKey, Rows, RowsKey, TopK};

/// Maximum number of objects of a kind that a thread keeps.
const MAX_KERNELS: NonZeroUsize = NonZeroUsize::new(256).expect("is not zero");

/// Objects by device and key. An object keeps its device, so that no other can be at its address.
type Cache<K, V> = LruCache<(usize, K), Rc<V>>;

struct Kernels {
    products: Cache<ProductKey, Multiplication>,
    arrays: Cache<ProductKey, ArrayMultiplication>,
    rows: Cache<RowsKey, Rows>,
    top_k: Cache<usize, TopK>,
}

thread_local! {
    static KERNELS: RefCell<Kernels> = RefCell::new(Kernels {
        products: LruCache::new(MAX_KERNELS),
        arrays: LruCache::new(MAX_KERNELS),
        rows: LruCache::new(MAX_KERNELS),
        top_k: LruCache::new(MAX_KERNELS),
    });
}

fn cached<K: Hash + Eq + Copy, V>(
    cache: impl FnOnce(&mut Kernels) -> &mut Cache<K, V>,
    device: &Device,
    key: K,
    make: impl FnOnce(&Device, K) -> V,
) -> Rc<V> {
    KERNELS.with_borrow_mut(|kernels| {
        let cache = cache(kernels);
        let full = (std::ptr::from_ref(device).cast::<()>() as usize, key);
        if let Some(kernel) = cache.get(&full) {
            return Rc::clone(kernel);
        }
        let kernel = Rc::new(make(device, key));
        cache.put(full, Rc::clone(&kernel));
        kernel
    })
}

/// The object of a product of matrices.
pub(super) fn product(device: &Device, key: ProductKey) -> Rc<Multiplication> {
    cached(|kernels| &mut kernels.products, device, key, Multiplication::new)
}

/// The object of a product of arrays.
pub(super) fn array_product(device: &Device, key: ProductKey) -> Rc<ArrayMultiplication> {
    cached(|kernels| &mut kernels.arrays, device, key, ArrayMultiplication::new)
}

/// The object of a function of rows.
pub(super) fn rows(device: &Device, key: RowsKey) -> Rc<Rows> {
    cached(|kernels| &mut kernels.rows, device, key, Rows::new)
}

/// The object that finds the k greatest elements.
pub(super) fn top_k(device: &Device, k: usize) -> Rc<TopK> {
    cached(|kernels| &mut kernels.top_k, device, k, TopK::new)
}
