//! Writing new keys or values into their cache. See [`crate::ops::KvWrite`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
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

/// Adds the launch.
pub(super) fn compile(site: &mut Site<'_>) -> Result<()> {
    let [cache, fresh, pos] = [0, 1, 2].map(|input| site.inputs[input].clone());
    let (dims, strides) = (fresh.layout.shape.dims(), &fresh.layout.strides);
    let count = fresh.elements();
    let sizes = Sizes {
        count: small(count),
        heads: small(dims[1]),
        d: small(dims[2]),
        capacity: small(cache.layout.shape[1]),
        token_stride: small(strides[0]),
        head_stride: small(strides[1]),
    };
    let launch = site.kernel(SOURCE, &format!("kv_write_{}_{}", fresh.type_name(), cache.type_name()))?;
    site.push_elements(launch.read(&fresh).read(&pos).write(&cache).constants(&sizes), count);
    Ok(())
}
