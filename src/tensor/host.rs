//! Tensors in host memory: owned, or a window into a memory-mapped file.

use std::sync::Arc;

use half::{bf16, f16};

use super::{DType, Element, MappedFile, Shape, TensorSpec};
use crate::{Error, Result};

/// A contiguous row-major tensor in host memory. Cloning shares the bytes.
#[derive(Clone)]
pub struct HostTensor {
    spec: TensorSpec,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// 8-byte words, so that every element type is aligned.
    Owned(Arc<Vec<u64>>),
    Mapped {
        file: MappedFile,
        offset: usize,
    },
}

impl HostTensor {
    /// A tensor from a slice; `data` must have as many elements as the shape.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Result<Self> {
        let spec = TensorSpec::new(T::DTYPE, shape);
        if spec.shape.elements() != data.len() {
            return Err(Error::shape(
                "host tensor",
                format!("{} elements given", data.len()),
                &[&spec.shape],
            ));
        }
        let mut tensor = Self::zeros(spec);
        tensor.bytes_mut().copy_from_slice(bytemuck::cast_slice(data));
        Ok(tensor)
    }

    /// A tensor of zeros.
    pub fn zeros(spec: TensorSpec) -> Self {
        let words = spec.bytes().div_ceil(8);
        Self { spec, storage: Storage::Owned(Arc::new(vec![0; words])) }
    }

    /// A tensor of zeros, or an error that names `what` it is for if there is no memory for it.
    pub(crate) fn try_zeros(spec: TensorSpec, what: &str) -> Result<Self> {
        let words = spec.bytes().div_ceil(8);
        let mut memory = try_with_capacity(words, || what.to_owned())?;
        memory.resize(words, 0);
        Ok(Self { spec, storage: Storage::Owned(Arc::new(memory)) })
    }

    /// A scalar: shape `[1]`.
    pub fn scalar<T: Element>(value: T) -> Self {
        let mut tensor = Self::zeros(TensorSpec::new(T::DTYPE, [1]));
        tensor.bytes_mut().copy_from_slice(bytemuck::bytes_of(&value));
        tensor
    }

    /// A window into a mapped file. The bytes are used in place, so `offset` must be a multiple of the
    /// element size and the window must lie within the map.
    pub fn from_map(file: MappedFile, offset: usize, spec: TensorSpec) -> Result<Self> {
        let end = offset.checked_add(spec.bytes());
        if end.is_none_or(|end| end > file.len()) || !offset.is_multiple_of(spec.dtype.size()) {
            return Err(Error::invalid(
                "mapped tensor",
                format!(
                    "bytes {offset}+{} do not lie aligned within a file of {} bytes",
                    spec.bytes(),
                    file.len()
                ),
            ));
        }
        Ok(Self { spec, storage: Storage::Mapped { file, offset } })
    }

    /// Dtype and shape.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.spec.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype
    }

    /// The mapped file that the bytes lie in, if they do.
    pub fn mapped_file(&self) -> Option<&MappedFile> {
        match &self.storage {
            Storage::Owned(_) => None,
            Storage::Mapped { file, .. } => Some(file),
        }
    }

    /// Whether the bytes are a window into a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }

    /// Lets a mapped tensor's pages leave memory after they were copied elsewhere; they are read again when they are
    /// wanted. An owned tensor stays as it is.
    pub fn release_pages(&self) {
        if let Storage::Mapped { file, offset } = &self.storage {
            file.release(*offset..offset + self.spec.bytes());
        }
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        let len = self.spec.bytes();
        match &self.storage {
            Storage::Owned(words) => &bytemuck::cast_slice(words)[..len],
            Storage::Mapped { file, offset } => &file[*offset..offset + len],
        }
    }

    /// The raw bytes for writing. Shared or mapped bytes are copied first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.spec.bytes();
        if let Storage::Mapped { .. } = self.storage {
            let mut words = vec![0_u64; len.div_ceil(8)];
            bytemuck::cast_slice_mut(&mut words)[..len].copy_from_slice(self.bytes());
            self.storage = Storage::Owned(Arc::new(words));
        }
        match &mut self.storage {
            Storage::Owned(words) => {
                &mut bytemuck::cast_slice_mut(Arc::make_mut(words).as_mut_slice())[..len]
            }
            Storage::Mapped { .. } => unreachable!("replaced above"),
        }
    }

    /// The elements; an error if `T` is not the tensor's dtype.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        if T::DTYPE != self.spec.dtype {
            return Err(Error::dtype("host tensor", "read as another dtype", &[self.spec.dtype, T::DTYPE]));
        }
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements for writing; an error if `T` is not the tensor's dtype.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        if T::DTYPE != self.spec.dtype {
            return Err(Error::dtype(
                "host tensor",
                "written as another dtype",
                &[self.spec.dtype, T::DTYPE],
            ));
        }
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// The elements as f64, whatever the dtype.
    pub fn to_f64(&self) -> Vec<f64> {
        fn widen<T: Element>(bytes: &[u8]) -> Vec<f64> {
            bytemuck::cast_slice::<u8, T>(bytes).iter().map(|x| x.to_f64()).collect()
        }
        match self.spec.dtype {
            DType::F32 => widen::<f32>(self.bytes()),
            DType::F16 => widen::<f16>(self.bytes()),
            DType::BF16 => widen::<bf16>(self.bytes()),
            DType::U32 => widen::<u32>(self.bytes()),
        }
    }

    /// A tensor of `dtype` with these values, each rounded to nearest.
    pub fn from_f64(values: &[f64], dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        fn narrow<T: Element>(values: &[f64], shape: Shape) -> Result<HostTensor> {
            HostTensor::from_slice(&values.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>(), shape)
        }
        let shape = shape.into();
        match dtype {
            DType::F32 => narrow::<f32>(values, shape),
            DType::F16 => narrow::<f16>(values, shape),
            DType::BF16 => narrow::<bf16>(values, shape),
            DType::U32 => narrow::<u32>(values, shape),
        }
    }

    /// The same values in another dtype; shares the bytes when the dtype is the same.
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.spec.dtype {
            return self.clone();
        }
        let mut result = Self::zeros(TensorSpec::new(dtype, self.spec.shape.clone()));
        match (self.spec.dtype, dtype) {
            (DType::F32, DType::BF16) => convert(self.bytes(), result.bytes_mut(), bf16::from_f32),
            (DType::F32, DType::F16) => convert(self.bytes(), result.bytes_mut(), f16::from_f32),
            (DType::BF16, DType::F32) => convert(self.bytes(), result.bytes_mut(), bf16::to_f32),
            (DType::F16, DType::F32) => convert(self.bytes(), result.bytes_mut(), f16::to_f32),
            _ => {
                return Self::from_f64(&self.to_f64(), dtype, self.spec.shape.clone())
                    .expect("as many values as elements");
            }
        }
        result
    }

    /// The same bytes under another shape of as many elements.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.spec.shape.elements() {
            return Err(Error::shape("reshape", "numbers of elements differ", &[&self.spec.shape, &shape]));
        }
        Ok(Self { spec: TensorSpec::new(self.spec.dtype, shape), storage: self.storage.clone() })
    }
}

fn convert<A: bytemuck::Pod, B: bytemuck::Pod>(from: &[u8], to: &mut [u8], f: impl Fn(A) -> B) {
    let (from, to) = (bytemuck::cast_slice::<u8, A>(from), bytemuck::cast_slice_mut::<u8, B>(to));
    for (x, y) in from.iter().zip(to) {
        *y = f(*x);
    }
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({})", self.spec)
    }
}
/// Returns an empty vector with room for `count` elements, or an error that names `what` it is for if there is no memory.
pub(crate) fn try_with_capacity<T>(count: usize, what: impl FnOnce() -> String) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(count) {
        Ok(()) => Ok(values),
        Err(_) => Err(Error::OutOfMemory {
            device: "the host".to_owned(),
            bytes: count.saturating_mul(size_of::<T>()),
            what: what(),
        }),
    }
}
