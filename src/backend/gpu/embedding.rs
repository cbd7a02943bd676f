//! Selection of rows of a table. See [`crate::ops::Embedding`].

use bytemuck::NoUninit;

use super::kernel::Source;
use super::op::{OpContext, as_u32};
use crate::Result;

pub(super) const SOURCE: Source = Source::new("embedding", include_str!("kernels/embedding.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    n: u32,
    rows: u32,
}

/// Adds the dispatch.
pub(super) fn lower(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(y) = cx.output(0) else { return Ok(()) };
    let (table, ids) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let rows = table.layout.shape[0];
    cx.check_indices(&ids, rows, "id")?;
    let launch = cx.kernel(SOURCE, &format!("embedding_{}_{}", table.type_name(), y.type_name()))?;
    let sizes = Sizes { count: as_u32(ids.elements()), n: as_u32(table.last()), rows: as_u32(rows) };
    cx.push_elements(launch.read(&table).read(&ids).write(&y).constants(&sizes), y.elements());
    Ok(())
}

/// Adds the dispatch of the gradient.
pub(super) fn lower_grad(cx: &mut OpContext<'_, '_>) -> Result<()> {
    let Some(table) = cx.output(0) else { return Ok(()) };
    let (dy, ids) = (cx.inputs[0].clone(), cx.inputs[1].clone());
    let rows = table.layout.shape[0];
    cx.check_indices(&ids, rows, "id")?;
    let launch = cx.kernel(SOURCE, &format!("embedding_grad_{}", dy.type_name()))?;
    let sizes = Sizes { count: as_u32(ids.elements()), n: as_u32(table.last()), rows: as_u32(rows) };
    cx.push_elements(launch.read(&dy).read(&ids).write(&table).constants(&sizes), table.last());
    Ok(())
}
