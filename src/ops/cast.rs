//! Conversion between dtypes.

use super::reference::Reference;
use super::{Backward, Operation, Recorder, Value, expect_inputs};
use crate::Result;
use crate::tensor::{DType, TensorSpec};

/// The same numbers in another dtype, rounded to nearest even.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cast {
    /// The dtype asked for.
    pub dtype: DType,
}

/// Casts `value` to the dtype of `like` if it has another one.
pub(crate) fn to_dtype_of(recorder: &mut dyn Recorder, value: Value, like: Value) -> Result<Value> {
    let dtype = recorder.spec(like).dtype;
    if recorder.spec(value).dtype == dtype { Ok(value) } else { recorder.one(Cast { dtype }, &[value]) }
}

impl Operation for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        expect_inputs("cast", inputs, 1)?;
        Ok(vec![TensorSpec::new(self.dtype, inputs[0].shape.clone())])
    }

    fn differentiable(&self, _input: usize) -> bool {
        self.dtype.is_float()
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None]) };
        Ok(vec![Some(to_dtype_of(cx.recorder, dy, cx.inputs[0])?)])
    }

    fn flops(&self, _inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        0
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        vec![if self.dtype.is_float() { inputs[0].clone() } else { inputs[0].map(f64::trunc) }]
    }
}
