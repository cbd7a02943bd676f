//! The greatest elements of each row.

use super::reference::Reference;
use super::{Operation, expect_float, expect_inputs};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// The k greatest elements along the last axis, in descending order, and their indices (u32). Ties go to the
/// lower index; NaN counts as greater than any number. Outputs: values, indices. There is no gradient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopK {
    /// How many.
    pub k: usize,
}

/// The index (u32) of the greatest element along the last axis, which the output lacks. Ties go to the lower
/// index; NaN counts as greater than any number. There is no gradient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ArgMax;

/// Indices of a row, greatest element first.
fn descending(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| match (row[a].is_nan(), row[b].is_nan()) {
        (true, true) => a.cmp(&b),
        (true, false) => std::cmp::Ordering::Less,
        (false, true) => std::cmp::Ordering::Greater,
        (false, false) => row[b].partial_cmp(&row[a]).expect("no NaN").then(a.cmp(&b)),
    });
    order
}

impl Operation for TopK {
    fn name(&self) -> &'static str {
        "top_k"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("top_k", inputs, 1)?;
        expect_float("top_k", &[&inputs[0]])?;
        let shape = &inputs[0].shape;
        if shape.rank() == 0 || self.k == 0 || self.k > shape.last() {
            return Err(Error::shape(
                "top_k",
                format!("k = {} must be 1 to the row's length", self.k),
                &[shape],
            ));
        }
        let mut dims = shape.dims().to_vec();
        *dims.last_mut().expect("not a scalar") = self.k;
        Ok(vec![TensorSpec::new(inputs[0].dtype, dims.clone()), TensorSpec::new(DType::U32, dims)])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let mut dims = inputs[0].shape.dims().to_vec();
        *dims.last_mut().expect("not a scalar") = self.k;
        let order: Vec<Vec<usize>> = inputs[0].rows().map(|row| descending(row)[..self.k].to_vec()).collect();
        let values =
            inputs[0].rows().zip(&order).flat_map(|(row, order)| order.iter().map(|&i| row[i])).collect();
        let indices = order.iter().flatten().map(|&i| i as f64).collect();
        vec![Reference::new(dims.clone(), values), Reference::new(dims, indices)]
    }
}

impl Operation for ArgMax {
    fn name(&self) -> &'static str {
        "arg_max"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("arg_max", inputs, 1)?;
        expect_float("arg_max", &[&inputs[0]])?;
        let shape = &inputs[0].shape;
        let Some((&last, rest)) = shape.dims().split_last().filter(|&(&last, _)| last > 0) else {
            return Err(Error::shape("arg_max", "rows must not be empty", &[shape]));
        };
        debug_assert!(last > 0);
        Ok(vec![TensorSpec::new(DType::U32, rest)])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let rank = inputs[0].shape.rank();
        let indices = inputs[0].rows().map(|row| descending(row)[0] as f64).collect();
        vec![Reference::new(&inputs[0].shape.dims()[..rank - 1], indices)]
    }
}
