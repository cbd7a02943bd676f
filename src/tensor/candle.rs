//! candle's tensors at the border: what they hold as this crate's tensors, and back.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Device, Storage, StorageRef, Tensor};
use half::{bf16, f16};

use super::{DType, HostTensor, Layout, Shape, TensorSpec};
use crate::{Error, Result};

impl DType {
    /// candle's name for it.
    pub fn to_candle(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::F16 => candle_core::DType::F16,
            Self::BF16 => candle_core::DType::BF16,
            Self::U32 => candle_core::DType::U32,
        }
    }

    /// The dtype of candle's that is also one of ours; `op` is what asks.
    pub(crate) fn from_candle(op: &str, dtype: candle_core::DType) -> Result<Self> {
        match dtype {
            candle_core::DType::F32 => Ok(Self::F32),
            candle_core::DType::F16 => Ok(Self::F16),
            candle_core::DType::BF16 => Ok(Self::BF16),
            candle_core::DType::U32 => Ok(Self::U32),
            other => Err(Error::invalid(
                op,
                format!("takes f32, f16, bf16 (and u32 for indices), not {other:?}; convert with to_dtype"),
            )),
        }
    }
}

/// What a recording knows: a tensor of the host's, or one of candle's on its CPU, which is read where it lies.
#[derive(Debug, Clone)]
pub enum Constant {
    /// A tensor of ours.
    Host(HostTensor),
    /// A tensor of candle's. Its value is that at the time of a run.
    Candle(CandleTensor),
}

/// A tensor of candle's in host memory, with its strides.
#[derive(Debug, Clone)]
pub struct CandleTensor {
    tensor: Tensor,
    dtype: DType,
    layout: Layout,
}

/// The storage of a [`CandleTensor`] while nobody may change it.
pub(crate) struct StorageGuard<'a> {
    storage: StorageRef<'a>,
    start: usize,
}

impl CandleTensor {
    /// The tensor itself if it is on candle's CPU, otherwise a copy of it there.
    pub(crate) fn new(tensor: &Tensor) -> Result<Self> {
        let dtype = DType::from_candle("candle tensor", tensor.dtype())?;
        let tensor = tensor.detach().to_device(&Device::Cpu).map_err(candle_failed)?;
        let shape = Shape::from(tensor.dims().to_vec());
        let layout = Layout { shape, strides: tensor.stride().to_vec(), offset: 0 };
        let whole = Self { tensor, dtype, layout };
        if whole.lock_storage().bytes().len() < extent(dtype, whole.tensor.dims(), whole.tensor.stride()) {
            return Err(Error::invalid("candle tensor", "has less storage than its shape needs"));
        }
        Ok(whole)
    }

    /// Dtype and shape.
    pub(crate) fn spec(&self) -> TensorSpec {
        TensorSpec::new(self.dtype, self.layout.shape.clone())
    }

    /// Where its elements lie from the first one on.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its storage, for as long as a run lasts.
    pub(crate) fn lock_storage(&self) -> StorageGuard<'_> {
        let (storage, layout) = self.tensor.storage_and_layout();
        StorageGuard { storage, start: layout.start_offset() }
    }

    /// A contiguous copy.
    pub(crate) fn to_host(&self) -> Result<HostTensor> {
        let tensor = self.tensor.force_contiguous().map_err(candle_failed)?;
        let (storage, layout) = tensor.storage_and_layout();
        let mut copy = HostTensor::zeros(self.spec());
        let bytes = StorageGuard { start: layout.start_offset(), storage };
        let count = copy.bytes().len();
        copy.bytes_mut().copy_from_slice(&bytes.bytes()[..count]);
        Ok(copy)
    }
}

impl StorageGuard<'_> {
    /// The bytes from the tensor's first element to the end of its storage.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &*self.storage {
            Storage::Cpu(storage) => cpu_bytes(storage, self.start),
            _ => &[],
        }
    }
}

impl HostTensor {
    /// A copy of a tensor of candle's, contiguous whatever its strides.
    pub fn from_candle(tensor: &Tensor) -> Result<Self> {
        CandleTensor::new(tensor)?.to_host()
    }

    /// A copy as a tensor of candle's on its CPU.
    pub fn to_candle(&self) -> Result<Tensor> {
        let mut storage = room(self.spec());
        // SAFETY: there is room for as many bytes, and the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(self.bytes().as_ptr(), start(&mut storage), self.bytes().len());
            Ok(tensor(filled(storage, self.shape().elements()), self.shape().dims()))
        }
    }
}

/// A tensor of candle's over storage, without a history.
pub(crate) fn tensor(storage: CpuStorage, dims: &[usize]) -> Tensor {
    Tensor::from_storage(Storage::Cpu(storage), dims, BackpropOp::none(), false)
}

fn candle_failed(error: candle_core::Error) -> Error {
    Error::invalid("candle tensor", error.to_string())
}

/// Bytes from the first element of a tensor to the end of its last.
pub(crate) fn extent(dtype: DType, dims: &[usize], strides: &[usize]) -> usize {
    if dims.contains(&0) {
        return 0;
    }
    let last: usize = dims.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum();
    (last + 1) * dtype.size()
}

/// The bytes of a storage from an element on; none of a dtype that is not ours.
pub(crate) fn cpu_bytes(storage: &CpuStorage, from: usize) -> &[u8] {
    fn tail<T: bytemuck::Pod>(elements: &[T], from: usize) -> &[u8] {
        bytemuck::cast_slice(elements.get(from..).unwrap_or_default())
    }
    match storage {
        CpuStorage::F32(elements) => tail(elements, from),
        CpuStorage::F16(elements) => tail(elements, from),
        CpuStorage::BF16(elements) => tail(elements, from),
        CpuStorage::U32(elements) => tail(elements, from),
        _ => &[],
    }
}

/// Room for a tensor, without values.
pub(crate) fn room(spec: &TensorSpec) -> CpuStorage {
    let elements = spec.shape.elements();
    match spec.dtype {
        DType::F32 => CpuStorage::F32(Vec::with_capacity(elements)),
        DType::F16 => CpuStorage::F16(Vec::with_capacity(elements)),
        DType::BF16 => CpuStorage::BF16(Vec::with_capacity(elements)),
        DType::U32 => CpuStorage::U32(Vec::with_capacity(elements)),
    }
}

/// Where the room begins.
pub(crate) fn start(storage: &mut CpuStorage) -> *mut u8 {
    match storage {
        CpuStorage::F32(v) => v.as_mut_ptr().cast(),
        CpuStorage::F16(v) => v.as_mut_ptr().cast(),
        CpuStorage::BF16(v) => v.as_mut_ptr().cast(),
        CpuStorage::U32(v) => v.as_mut_ptr().cast(),
        _ => std::ptr::NonNull::<u64>::dangling().as_ptr().cast(),
    }
}

/// The storage with its values.
///
/// # Safety
/// All `elements` of it were written.
pub(crate) unsafe fn filled(storage: CpuStorage, elements: usize) -> CpuStorage {
    unsafe fn set<T: bytemuck::Pod>(mut vector: Vec<T>, elements: usize) -> Vec<T> {
        assert!(vector.capacity() >= elements, "room was made for all elements");
        // SAFETY: as the caller promises.
        unsafe { vector.set_len(elements) };
        vector
    }
    // SAFETY: as the caller promises.
    unsafe {
        match storage {
            CpuStorage::F32(v) => CpuStorage::F32(set::<f32>(v, elements)),
            CpuStorage::F16(v) => CpuStorage::F16(set::<f16>(v, elements)),
            CpuStorage::BF16(v) => CpuStorage::BF16(set::<bf16>(v, elements)),
            CpuStorage::U32(v) => CpuStorage::U32(set::<u32>(v, elements)),
            other => other,
        }
    }
}
