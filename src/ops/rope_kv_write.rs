//! Rotary position embedding of queries and keys together with the write of keys and values to their caches.

use super::reference::Reference;
use super::{KvWrite, Operation, Rope, expect_inputs};
use crate::Result;
use crate::tensor::{Layout, TensorSpec};

/// [`Rope`] of q and of k, then [`KvWrite`] of the rotated k and of v. Graphs get it by
/// [fusion](crate::graph::Target::supports_rope_kv_write) for targets with such a kernel.
///
/// Inputs: q `[tokens, heads, d]`, k and v `[tokens, kv_heads, d]`, cos and sin `[positions, d/2]` in f32, position of each
/// token u32 `[tokens]`, the caches of k and v `[kv_heads, capacity, d]`, pos u32 `[1]`. Outputs: the rotated q, the rotated
/// k, and both caches, which are updated in place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RopeKvWrite;

/// Selects inputs by number.
fn pick<T: Clone>(inputs: &[T], numbers: &[usize]) -> Vec<T> {
    numbers.iter().map(|&number| inputs[number].clone()).collect()
}

impl Operation for RopeKvWrite {
    fn name(&self) -> &'static str {
        "rope_kv_write"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("rope_kv_write", inputs, 9)?;
        let rope = Rope { inverse: false };
        let mut outputs = rope.infer(&pick(inputs, &[0, 3, 4, 5]))?;
        outputs.extend(rope.infer(&pick(inputs, &[1, 3, 4, 5]))?);
        outputs.extend(KvWrite.infer(&pick(inputs, &[6, 1, 8]))?);
        outputs.extend(KvWrite.infer(&pick(inputs, &[7, 2, 8]))?);
        Ok(outputs)
    }

    fn flops(&self, _inputs: &[TensorSpec], outputs: &[TensorSpec]) -> u64 {
        3 * (outputs[0].shape.elements() + outputs[1].shape.elements()) as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let rope = Rope { inverse: false };
        let q = rope.reference(&pick(inputs, &[0, 3, 4, 5])).remove(0);
        let k = rope.reference(&pick(inputs, &[1, 3, 4, 5])).remove(0);
        let keys = KvWrite.reference(&[inputs[6].clone(), k.clone(), inputs[8].clone()]).remove(0);
        let values = KvWrite.reference(&pick(inputs, &[7, 2, 8])).remove(0);
        vec![q, k, keys, values]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        if input < 3 { layout.is_row_contiguous() } else { layout.is_contiguous() }
    }

    fn updates(&self, _inputs: usize) -> Vec<(usize, usize)> {
        vec![(6, 2), (7, 3)]
    }
}
