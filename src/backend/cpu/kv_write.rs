//! Writing keys or values into their cache. See [`crate::ops::KvWrite`].

use super::element::SimdElement;
use super::op::{Call, OpContext, real};
use crate::Result;

pub(super) fn compile(context: &OpContext<'_>) -> Result<Call> {
    let [cache, new, pos] = [0, 1, 2].map(|i| context.inputs[i].clone());
    let shape = &cache.layout.shape;
    let (heads, capacity, d) = (shape[0], shape[1], shape[2]);
    let tokens = new.layout.shape[0];
    let steps = [new.layout.strides[0], new.layout.strides[1]];
    Ok(Box::new(move |cx| {
        // SAFETY: the planner gave the tensors their places; positions beyond the capacity are left out.
        unsafe {
            let pos = pos.at::<u32>(cx).read() as usize;
            let count = tokens.min(capacity.saturating_sub(pos));
            real!(cache.dtype, |T| real!(new.dtype, |U| {
                for (token, head) in (0..count).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                    let from = new.at::<U>(cx).add(token * steps[0] + head * steps[1]);
                    let to = cache.at::<T>(cx).add((head * capacity + pos + token) * d);
                    for i in 0..d {
                        to.add(i).write(T::of(from.add(i).read().get()));
                    }
                }
            }));
        }
        Ok(())
    }))
}
