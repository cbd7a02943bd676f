//! From stored weights to elements: float types into each other, quantised blocks into floats, the rows of
//! rotated heads into the order of halves.

use std::borrow::Cow;
use std::thread::ScopedJoinHandle;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::tensor::{DType, HostTensor};

/// Elements that are converted at a time: whole blocks of every quantised type, and small enough to stay in
/// the cache.
const CHUNK: usize = 1 << 14;
/// Below this a thread costs more than it saves.
const PER_THREAD: usize = 1 << 20;

/// A value that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// NaN or infinity, at this element in the order of the file.
    NotFinite { element: usize, value: f32 },
    /// Beyond the range of the dtype asked for.
    TooLarge { element: usize, value: f32 },
    /// The block's type or size is not what it should be.
    Unreadable,
}

impl Fault {
    /// What to tell the user.
    pub(super) fn message(self, dtype: DType) -> String {
        match self {
            Self::NotFinite { element, value } => {
                let value = if value.is_nan() { "NaN" } else { "an infinity" };
                format!("holds {value} at element {element}; the file is damaged: fetch it again")
            }
            Self::TooLarge { element, value } => {
                format!("holds {value} at element {element}, which {dtype} cannot hold; use bf16 or f32")
            }
            Self::Unreadable => "its blocks cannot be read".to_owned(),
        }
    }

    fn shifted(self, by: usize) -> Self {
        match self {
            Self::NotFinite { element, value } => Self::NotFinite { element: element + by, value },
            Self::TooLarge { element, value } => Self::TooLarge { element: element + by, value },
            Self::Unreadable => Self::Unreadable,
        }
    }
}

/// Checks stored floats in place. The bytes must be aligned for the dtype.
pub(super) fn check_finite(bytes: &[u8], dtype: DType) -> Result<(), Fault> {
    let size = dtype.size();
    in_parallel(bytes.len() / size, |first, count| {
        let bytes = &bytes[first * size..(first + count) * size];
        let fault = match dtype {
            DType::F32 => first_masked::<u32>(bytes, |bits| bits & 0x7f80_0000 == 0x7f80_0000)
                .map(|(at, bits)| (at, f32::from_bits(bits))),
            DType::F16 => first_masked::<u16>(bytes, |bits| bits & 0x7c00 == 0x7c00)
                .map(|(at, bits)| (at, f16::from_bits(bits).to_f32())),
            DType::BF16 => first_masked::<u16>(bytes, |bits| bits & 0x7f80 == 0x7f80)
                .map(|(at, bits)| (at, bf16::from_bits(bits).to_f32())),
            DType::U32 => None,
        };
        match fault {
            None => Ok(()),
            Some((at, value)) => Err(Fault::NotFinite { element: first + at, value }),
        }
    })
}

/// Converts little-endian floats, wherever they lie.
pub(super) fn from_floats(bytes: &[u8], from: DType, out: &mut [u8], to: DType) -> Result<(), Fault> {
    convert(out, to, |first, values| {
        let bytes = &bytes[first * from.size()..][..values.len() * from.size()];
        match from {
            DType::F32 | DType::U32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                Ok(halves) => halves.convert_to_f32_slice(values),
                Err(_) => widen(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            },
            DType::BF16 => widen(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
        Ok(())
    })
}

/// Dequantises blocks. The bytes must be aligned to 2, as the offsets of a checked GGUF header are.
pub(super) fn from_blocks(bytes: &[u8], kind: GgmlDType, out: &mut [u8], to: DType) -> Result<(), Fault> {
    let (block, size) = (kind.block_size(), kind.type_size());
    convert(out, to, |first, values| {
        let bytes = &bytes[first / block * size..][..values.len() / block * size];
        match kind.from_data(Cow::Borrowed(bytes)).dequantize(values.len()) {
            Ok(CpuStorage::F32(floats)) => values.copy_from_slice(&floats),
            _ => return Err(Fault::Unreadable),
        }
        Ok(())
    })
}

/// Reorders the rows of every head from rotation pairs (0, 1), (2, 3), … to halves: all first members, then
/// all second ones. A head must have an even number of rows.
pub(super) fn halves_from_pairs(tensor: &mut HostTensor, heads: usize) {
    let rows = tensor.shape()[0];
    let source = tensor.bytes().to_vec();
    let (row_bytes, per_head) = (source.len() / rows, rows / heads);
    for (row, target) in tensor.bytes_mut().chunks_exact_mut(row_bytes).enumerate() {
        let (head, within) = (row / per_head, row % per_head);
        let (member, pair) = (within / (per_head / 2), within % (per_head / 2));
        let from = head * per_head + 2 * pair + member;
        target.copy_from_slice(&source[from * row_bytes..][..row_bytes]);
    }
}

/// Fills `out` chunk by chunk: `read(first, values)` gives the elements from `first` on as f32.
fn convert(
    out: &mut [u8],
    to: DType,
    read: impl Fn(usize, &mut [f32]) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    let size = to.size();
    let limit = match to {
        DType::F16 => 65520.0,
        DType::BF16 => 3.396e38,
        DType::F32 | DType::U32 => f32::INFINITY,
    };
    let span = |first: usize, out: &mut [u8]| -> Result<(), Fault> {
        let mut buffer = vec![0_f32; CHUNK];
        for (index, out) in out.chunks_mut(CHUNK * size).enumerate() {
            let first = first + index * CHUNK;
            let values = &mut buffer[..out.len() / size];
            read(first, values)?;
            // A fold without branches, so that the sound case is one pass of vector instructions.
            if values.iter().fold(false, |bad, x| bad | (x.abs() >= limit) | x.is_nan()) {
                return Err(first_fault(values, limit).shifted(first));
            }
            narrow(values, out, to);
        }
        Ok(())
    };
    let elements = out.len() / size;
    let per_thread = elements.div_ceil(threads(elements)).next_multiple_of(CHUNK);
    if per_thread >= elements {
        return span(0, out);
    }
    std::thread::scope(|scope| {
        let span = &span;
        let parts = out.chunks_mut(per_thread * size).enumerate();
        let handles: Vec<_> =
            parts.map(|(index, out)| scope.spawn(move || span(index * per_thread, out))).collect();
        first_of(handles)
    })
}

/// Waits for all threads; the fault of the first that has one.
fn first_of(handles: Vec<ScopedJoinHandle<'_, Result<(), Fault>>>) -> Result<(), Fault> {
    let results: Vec<_> =
        handles.into_iter().map(|handle| handle.join().unwrap_or(Err(Fault::Unreadable))).collect();
    results.into_iter().collect()
}

fn first_fault(values: &[f32], limit: f32) -> Fault {
    for (element, &value) in values.iter().enumerate() {
        if !value.is_finite() {
            return Fault::NotFinite { element, value };
        }
        if value.abs() >= limit {
            return Fault::TooLarge { element, value };
        }
    }
    Fault::Unreadable
}

fn widen(bytes: &[u8], values: &mut [f32], f: impl Fn([u8; 2]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f(*bytes);
    }
}

/// `out` is the start of a tensor or a whole number of chunks from it, hence aligned.
fn narrow(values: &[f32], out: &mut [u8], to: DType) {
    match to {
        DType::F32 | DType::U32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(values),
        DType::BF16 => bytemuck::cast_slice_mut::<u8, bf16>(out).convert_from_f32_slice(values),
    }
}

fn first_masked<T: bytemuck::Pod>(bytes: &[u8], bad: impl Fn(T) -> bool) -> Option<(usize, T)> {
    let values: &[T] = bytemuck::cast_slice(bytes);
    if !values.iter().fold(false, |any, &bits| any | bad(bits)) {
        return None;
    }
    values.iter().copied().enumerate().find(|(_, bits)| bad(*bits))
}

fn threads(elements: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (elements / PER_THREAD).clamp(1, cores.min(16))
}

/// Runs `part(first, count)` over all elements; the fault that lies first is reported.
fn in_parallel(
    elements: usize,
    part: impl Fn(usize, usize) -> Result<(), Fault> + Sync,
) -> Result<(), Fault> {
    let per_thread = elements.div_ceil(threads(elements));
    if per_thread >= elements {
        return part(0, elements);
    }
    std::thread::scope(|scope| {
        let part = &part;
        let starts = (0..elements).step_by(per_thread);
        let handles: Vec<_> =
            starts.map(|first| scope.spawn(move || part(first, per_thread.min(elements - first)))).collect();
        first_of(handles)
    })
}
