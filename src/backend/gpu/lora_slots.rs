//! The low-rank branches of a LoRA layer as kernels take them.

use bytemuck::NoUninit;

use super::op::{DispatchBuilder, Tensor, as_u32};
use crate::ops::LoraSlot;

/// Maximum number of slots that one dispatch handles.
pub(super) const SLOTS: usize = 4;

/// Number of ranks of a tile, and of rows that a threadgroup or a thread handles at a time.
pub(super) const TILE: usize = 4;

/// The struct of the same name in `lora.metal`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub(super) struct Slots {
    pub(super) count: u32,
    pub(super) total: u32,
    pub(super) start: [u32; SLOTS],
    pub(super) len: [u32; SLOTS],
    pub(super) rank: [u32; SLOTS],
    pub(super) first: [u32; SLOTS],
    pub(super) scale: [f32; SLOTS],
}

/// Slots that one dispatch handles.
pub(super) struct SlotGroup<'a> {
    pub(super) slots: &'a [LoraSlot],
    /// Position of each slot's first rank among all ranks of the layer.
    pub(super) first: Vec<usize>,
    /// Position of the first slot among all slots of the layer.
    pub(super) index: usize,
}

/// Splits the slots of a layer into groups that one dispatch handles.
pub(super) fn groups(slots: &[LoraSlot]) -> Vec<SlotGroup<'_>> {
    let mut before = 0;
    let mut groups = Vec::new();
    for (number, slots) in slots.chunks(SLOTS).enumerate() {
        let first = slots
            .iter()
            .map(|slot| {
                before += slot.rank;
                before - slot.rank
            })
            .collect();
        groups.push(SlotGroup { slots, first, index: number * SLOTS });
    }
    groups
}

impl SlotGroup<'_> {
    /// Number of tiles of ranks; no tile has ranks of two slots.
    pub(super) fn tiles(&self) -> usize {
        self.slots.iter().map(|slot| slot.rank.div_ceil(TILE)).sum()
    }

    /// Returns the kernels' description of the slots; `total` is the sum of all ranks of the layer.
    pub(super) fn header(&self, total: usize) -> Slots {
        let mut header = Slots {
            count: as_u32(self.slots.len()),
            total: as_u32(total),
            start: [0; SLOTS],
            len: [0; SLOTS],
            rank: [0; SLOTS],
            first: [0; SLOTS],
            scale: [0.0; SLOTS],
        };
        for (i, slot) in self.slots.iter().enumerate() {
            header.start[i] = as_u32(slot.start);
            header.len[i] = as_u32(slot.len);
            header.rank[i] = as_u32(slot.rank);
            header.first[i] = as_u32(self.first[i]);
            header.scale[i] = slot.scale.0;
        }
        header
    }

    /// Binds one tensor per slot for reading; unused arguments are bound to the first one.
    pub(super) fn bind<'t>(
        &self,
        launch: DispatchBuilder,
        tensor: impl Fn(usize) -> &'t Tensor,
    ) -> DispatchBuilder {
        (0..SLOTS).fold(launch, |launch, slot| {
            if slot < self.slots.len() {
                launch.read(tensor(self.index + slot))
            } else {
                launch.unused(tensor(self.index).first())
            }
        })
    }

    /// Binds one output per slot for writing; unused arguments are bound to the first one.
    pub(super) fn bind_outputs(&self, launch: DispatchBuilder, outputs: &[Tensor]) -> DispatchBuilder {
        (0..SLOTS).fold(launch, |launch, slot| {
            if slot < self.slots.len() {
                launch.write(&outputs[self.index + slot])
            } else {
                launch.unused(outputs[self.index].first())
            }
        })
    }
}
