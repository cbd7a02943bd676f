//! Picking rows of a table: token embeddings, and the supervised positions of a batch.

use super::reference::Reference;
use super::{Backward, Operation, Value, expect_float, expect_inputs};
use crate::tensor::{DType, TensorSpec};
use crate::{Error, Result};

/// `y[i, :] = table[ids[i], :]`. Inputs: table `[rows, n]`, ids u32 `[count]`. Output `[count, n]` in `dtype`.
/// An id that is not a row is an error when the plan runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Embedding {
    /// The output's dtype.
    pub dtype: DType,
}

/// The gradient of [`Embedding`]: `dtable[ids[i], :] += dy[i, :]`, f32 `[rows, n]`. Inputs: dy, ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EmbeddingGrad {
    /// Rows of the table.
    pub rows: usize,
}

fn check_ids(op: &'static str, ids: &TensorSpec) -> Result<()> {
    if ids.dtype != DType::U32 || ids.shape.rank() != 1 {
        return Err(Error::dtype(op, format!("ids must be u32 [count], are {ids}"), &[ids.dtype]));
    }
    Ok(())
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("embedding", inputs, 2)?;
        expect_float("embedding", &[&inputs[0]])?;
        check_ids("embedding", &inputs[1])?;
        if inputs[0].shape.rank() != 2 || !self.dtype.is_float() {
            return Err(Error::shape("embedding", "the table must be [rows, n]", &[&inputs[0].shape]));
        }
        Ok(vec![TensorSpec::new(self.dtype, [inputs[1].shape[0], inputs[0].shape[1]])])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        let rows = cx.input_spec(0).shape[0];
        let gradient = cx.one(EmbeddingGrad { rows }, &[dy, cx.inputs[1]])?;
        Ok(vec![Some(super::cast::to_dtype_of(cx.recorder, gradient, cx.inputs[0])?), None])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let n = inputs[0].shape[1];
        let data =
            inputs[1].data.iter().flat_map(|&id| inputs[0].data[id as usize * n..][..n].to_vec()).collect();
        vec![Reference::new([inputs[1].shape[0], n], data)]
    }
}

impl Operation for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("embedding_grad", inputs, 2)?;
        check_ids("embedding_grad", &inputs[1])?;
        if inputs[0].shape.rank() != 2 || inputs[0].shape[0] != inputs[1].shape[0] {
            let shapes = [&inputs[0].shape, &inputs[1].shape];
            return Err(Error::shape("embedding_grad", "dy must be [count, n]", &shapes));
        }
        Ok(vec![TensorSpec::f32([self.rows, inputs[0].shape[1]])])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        inputs[0].shape.elements() as u64
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let n = inputs[0].shape[1];
        let mut table = Reference::zeros([self.rows, n]);
        for (row, &id) in inputs[0].rows().zip(&inputs[1].data) {
            table.data[id as usize * n..][..n].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        vec![table]
    }
}
