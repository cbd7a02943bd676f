//! Writing new keys or values into their cache.

use super::reference::Reference;
use super::{Operation, expect_float, expect_inputs, expect_spec};
use crate::tensor::{Layout, TensorSpec};
use crate::{Error, Result};

/// Stores token i of `new` at position pos + i of the cache, in place. Tokens beyond the capacity are dropped.
///
/// Inputs: the cache `[kv_heads, capacity, d]`, new `[tokens, kv_heads, d]`, pos u32 `[1]`. The output is the
/// cache. There is no gradient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KvWrite;

impl Operation for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("kv_write", inputs, 3)?;
        let (cache, new) = (&inputs[0], &inputs[1]);
        expect_float("kv_write", &[cache, new])?;
        let fits = cache.shape.rank() == 3
            && new.shape.rank() == 3
            && cache.shape[0] == new.shape[1]
            && cache.shape[2] == new.shape[2];
        if !fits {
            let message = "the cache must be [heads, capacity, d], new values [tokens, heads, d]";
            return Err(Error::shape("kv_write", message, &[&cache.shape, &new.shape]));
        }
        expect_spec("kv_write", "pos", &inputs[2], &TensorSpec::u32([1]))?;
        Ok(vec![cache.clone()])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (mut cache, new) = (inputs[0].clone(), &inputs[1]);
        let (heads, capacity, d) = (cache.shape[0], cache.shape[1], cache.shape[2]);
        let pos = inputs[2].data[0] as usize;
        for (token, head) in (0..new.shape[0]).flat_map(|t| (0..heads).map(move |h| (t, h))) {
            if pos + token < capacity {
                let from = &new.data[(token * heads + head) * d..][..d];
                cache.data[(head * capacity + pos + token) * d..][..d].copy_from_slice(from);
            }
        }
        vec![cache]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        if input == 1 { layout.is_row_contiguous() } else { layout.is_contiguous() }
    }

    fn updates(&self, _inputs: usize) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}
