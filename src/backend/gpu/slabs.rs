//! Small buffers are cut from larger allocations, so that one dispatch reaches many of them.

use crate::Result;

/// Maximum size of a buffer that is cut from a larger allocation.
pub(in crate::backend) const MAX_CUT: usize = 4 << 20;
/// Minimum and maximum size of the larger allocations; each is twice as large as the one before.
const SIZES: (usize, usize) = (1 << 20, 16 << 20);
/// Alignment of the parts.
const ALIGNMENT: usize = 256;

/// The allocation that buffers are cut from. An older one exists as long as its parts do.
pub(in crate::backend) struct Slabs<M> {
    current: Option<Slab<M>>,
}

struct Slab<M> {
    memory: M,
    bytes: usize,
    used: usize,
}

impl<M> Default for Slabs<M> {
    fn default() -> Self {
        Self { current: None }
    }
}

impl<M: Clone> Slabs<M> {
    /// Cuts a part and returns its allocation and its offset; `allocate` makes an allocation of so many bytes.
    ///
    /// # Errors
    /// `allocate` fails.
    pub(in crate::backend) fn cut(
        &mut self,
        bytes: usize,
        allocate: impl FnOnce(usize) -> Result<M>,
    ) -> Result<(M, usize)> {
        if self.current.as_ref().is_none_or(|slab| slab.used + bytes > slab.bytes) {
            let size = self.current.as_ref().map_or(SIZES.0, |slab| (2 * slab.bytes).min(SIZES.1)).max(bytes);
            self.current = Some(Slab { memory: allocate(size)?, bytes: size, used: 0 });
        }
        let slab = self.current.as_mut().expect("made above");
        let start = slab.used;
        slab.used = (start + bytes.max(1)).next_multiple_of(ALIGNMENT);
        Ok((slab.memory.clone(), start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_allocations_grow() {
        let mut slabs = Slabs::default();
        let mut allocated = Vec::new();
        let mut cut = |bytes| {
            slabs.cut(bytes, |size| {
                allocated.push(size);
                Ok(allocated.len())
            })
        };
        assert_eq!(cut(1).unwrap(), (1, 0));
        assert_eq!(cut(0).unwrap(), (1, 256));
        assert_eq!(cut(300).unwrap(), (1, 512));
        assert_eq!(cut(1 << 20).unwrap(), (2, 0));
        assert_eq!(cut(MAX_CUT).unwrap(), (3, 0));
        assert_eq!(cut(MAX_CUT).unwrap(), (4, 0));
        assert_eq!(allocated, [1 << 20, 2 << 20, 4 << 20, 8 << 20]);
    }
}
