//! Picking rows of a table. See [`crate::ops::Embedding`].

use bytemuck::NoUninit;

use super::pipeline::Source;
use super::site::{Site, small};
use crate::Result;

pub(super) const SOURCE: Source = Source::new("embedding", include_str!("kernels/embedding.metal"));

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    count: u32,
    n: u32,
    rows: u32,
}

/// Adds the launch.
pub(super) fn compile(site: &mut Site<'_>) -> Result<()> {
    let Some(y) = site.output(0) else { return Ok(()) };
    let (table, ids) = (site.inputs[0].clone(), site.inputs[1].clone());
    let rows = table.layout.shape[0];
    site.check_indices(&ids, rows, "id")?;
    let launch = site.kernel(SOURCE, &format!("embedding_{}_{}", table.type_name(), y.type_name()))?;
    let sizes = Sizes { count: small(ids.elements()), n: small(table.last()), rows: small(rows) };
    site.push_elements(launch.read(&table).read(&ids).write(&y).constants(&sizes), y.elements());
    Ok(())
}

/// Adds the launch of the gradient.
pub(super) fn compile_grad(site: &mut Site<'_>) -> Result<()> {
    let Some(table) = site.output(0) else { return Ok(()) };
    let (dy, ids) = (site.inputs[0].clone(), site.inputs[1].clone());
    let rows = table.layout.shape[0];
    site.check_indices(&ids, rows, "id")?;
    let launch = site.kernel(SOURCE, &format!("embedding_grad_{}", dy.type_name()))?;
    let sizes = Sizes { count: small(ids.elements()), n: small(table.last()), rows: small(rows) };
    site.push_elements(launch.read(&dy).read(&ids).write(&table).constants(&sizes), table.last());
    Ok(())
}
