//! Writes new keys or values to their cache. See [`crate::ops::KvWrite`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
use crate::Result;

pub(super) const SOURCE: Source = Source::new("kv_write", include_str!("kernels/kv_write.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    heads: u32,
    d: u32,
    capacity: u32,
    token_stride: u32,
    head_stride: u32,
}

/// Adds the dispatch.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let [cache, fresh, pos] = [0, 1, 2].map(|input| cx.inputs[input].clone());
    let (dims, strides) = (fresh.layout.shape.dims(), &fresh.layout.strides);
    let count = fresh.elements();
    let sizes = Sizes {
        count: as_u32(count),
        heads: as_u32(dims[1]),
        d: as_u32(dims[2]),
        capacity: as_u32(cache.layout.shape[1]),
        token_stride: as_u32(strides[0]),
        head_stride: as_u32(strides[1]),
    };
    let launch = cx.kernel(SOURCE, &format!("kv_write_{}_{}", fresh.type_name(), cache.type_name()))?;
    cx.push_elements(launch.read(&fresh).read(&pos).write(&cache).constants(&sizes), count);
    Ok(())
}
