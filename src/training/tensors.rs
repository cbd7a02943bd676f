//! Named tensors in a safetensors file.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::atomic;
use crate::models::check_fetched;
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// Replaces a file by one with these tensors.
pub(crate) fn write_tensors(path: &Path, tensors: &[(String, HostTensor)]) -> Result<()> {
    let failed =
        |error: safetensors::SafeTensorError| Error::file(path, format!("cannot be written: {error}"));
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::U32 => Dtype::U32,
        };
        let view = TensorView::new(dtype, tensor.shape().dims().to_vec(), tensor.bytes()).map_err(failed)?;
        views.push((name.as_str(), view));
    }
    // The one entry that PEFT writes.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    atomic::write(path, &safetensors::serialize(views, Some(metadata)).map_err(failed)?)
}

/// Reads all tensors of a file, in the order of their names.
pub(crate) fn read_tensors(path: &Path) -> Result<Vec<(String, HostTensor)>> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, "read", source))?;
    check_fetched(path, &bytes)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::file(
            path,
            format!("is no complete safetensors file ({error}); copy it again from where it came"),
        )
    })?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::U32 => DType::U32,
            other => {
                return Err(Error::file_at(
                    path,
                    name,
                    format!("has dtype {other:?}; f32, f16 and bf16 can be read"),
                ));
            }
        };
        let mut tensor = HostTensor::zeros(crate::tensor::TensorSpec::new(dtype, view.shape()));
        tensor.bytes_mut().copy_from_slice(view.data());
        tensors.push((name, tensor));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

/// Returns the transpose of an f32 matrix.
pub(crate) fn transposed(matrix: &HostTensor) -> Result<HostTensor> {
    let (rows, columns) = (matrix.shape()[0], matrix.shape()[1]);
    let values = matrix.as_slice::<f32>()?;
    let mut turned = vec![0.0_f32; values.len()];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            turned[column * rows + row] = *value;
        }
    }
    HostTensor::from_slice(&turned, [columns, rows])
}
