//! Kernel calls.
use std::sync::Arc;

use super::memory::Arena;
use super::pool::Pool;
use crate::Result;
use crate::backend::Executable;
use crate::graph::{Operand, Plan};
use crate::ops::Op;
use crate::tensor::TensorSpec;

pub(super) fn scratch(_pool: &Pool, _op: &Op, _inputs: &[Operand], _outputs: &[TensorSpec]) -> usize {
    0
}

pub(super) fn compile(_pool: &Arc<Pool>, _arena: &Arena, _plan: &Plan) -> Result<Box<dyn Executable>> {
    Err(crate::Error::invalid("cpu", "in the making"))
}
