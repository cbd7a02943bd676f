//! Products of candle's Metal tensors by Metal Performance Shaders, on a queue of our own.
//!
//! candle gives no command buffer to encode into, so the order is: wait for what candle has encoded, encode and commit
//! the product, wait for it, and only then hand the result to candle. The result's buffer is not from candle's pool, whose
//! free buffers may still be in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, MetalDevice, MetalStorage, Result, Shape, Tensor};
use candle_metal_kernels::metal::Buffer;
use objc2::Message;
use objc2::rc::autoreleasepool;

use super::metal::state;
use super::op::wrap;
use super::{CustomMetalOps, shape};
use crate::Error;
use crate::backend::gpu::address::{Address, Allocation};
use crate::backend::gpu::library::{LibraryCall, Matrix, MatrixLayout};
use crate::backend::metal::buffer::new_buffer;
use crate::backend::metal::memory::Raw;
use crate::backend::mps::guard::Refusal;
use crate::backend::select::{Choices, Implementation, Preference};
use crate::tensor::DType;

const NAME: &str = "matmul_mps";
/// Seconds that the two waits of a product take, by the middle of what others measured on Macs.
const WAITS: f64 = 0.45e-3;

/// Sizes of a product: batch, m, n, k.
fn sizes(a: &Tensor, b: &Tensor) -> Result<[usize; 4]> {
    let (ra, rb) = (a.rank(), b.rank());
    let wrong = |message: &str| Err(wrap(Error::shape(NAME, message, &[&shape(a), &shape(b)])));
    if ra < 2 || rb < 2 {
        return wrong("both sides need two axes or more");
    }
    let (leading, last) = a.dims().split_at(ra - 2);
    let (leading_b, last_b) = b.dims().split_at(rb - 2);
    if last[1] != last_b[0] {
        return wrong("the inner lengths differ");
    }
    if !leading_b.is_empty() && leading != leading_b {
        return wrong("the leading axes differ");
    }
    Ok([leading.iter().product(), last[0], last_b[1], last[1]])
}

/// Returns true if the level expects Metal Performance Shaders to be faster, both waits counted.
pub(super) fn prefers_mps(a: &Tensor, b: &Tensor, preference: Preference) -> Result<bool> {
    let candle_core::Device::Metal(device) = a.device() else { return Ok(false) };
    let [batch, m, n, k] = sizes(a, b)?;
    let dtype = DType::from_candle(NAME, a.dtype()).map_err(wrap)?;
    let state = state(device)?;
    let (chip, supported) = (state.gpu.gpu.chip, state.gpu.gpu.mps);
    let choices = Choices::from(preference);
    if !supported || choices.product([m, n, k], batch, dtype, chip) == Implementation::Metal {
        return Ok(false);
    }
    Ok(preference == Preference::Mps || choices.product_seconds_gained([m, n, k], batch, dtype, chip) > WAITS)
}

/// `a · b`, with gradients by the same way.
pub(super) fn matmul_mps(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [batch, m, n, _] = sizes(a, b)?;
    if batch * m * n == 0 {
        return a.matmul_fused(b);
    }
    // A right side shared by the batch takes the batch as more rows.
    if b.rank() == 2 && a.rank() > 2 {
        let mut dims = a.dims().to_vec();
        let k = dims.pop().unwrap_or(0);
        dims.push(n);
        return matmul_mps(&a.reshape((batch * m, k))?, b)?.reshape(dims);
    }
    // Of bf16 a transposed view is said to end the process on macOS 27 (pytorch 197796), so it is copied.
    let readable = |x: &Tensor| match side(x.layout()) {
        Some((_, _, transposed)) if !transposed || x.dtype() != candle_core::DType::BF16 => Ok(x.clone()),
        _ => x.force_contiguous(),
    };
    let (a, b) = (readable(a)?, readable(b)?);
    let refused = Arc::new(AtomicBool::new(false));
    match a.apply_op2(&b, Product { refused: Arc::clone(&refused) }) {
        Err(_) if refused.load(Ordering::Relaxed) => a.matmul_fused(&b),
        result => result,
    }
}

/// A side as the framework reads it: elements from row to row, from matrix to matrix, and whether it is transposed.
fn side(layout: &Layout) -> Option<(usize, usize, bool)> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let rank = dims.len();
    let (rows, columns) = (dims[rank - 2], dims[rank - 1]);
    let (row, transposed) = if strides[rank - 1] == 1 && strides[rank - 2] >= columns {
        (strides[rank - 2], false)
    } else if strides[rank - 2] == 1 && strides[rank - 1] >= rows {
        (strides[rank - 1], true)
    } else {
        return None;
    };
    let step = crate::tensor::layout::collapse(&dims[..rank - 2], &strides[..rank - 2])?;
    Some((row, step, transposed))
}

/// The Metal buffers of a call's operands and result.
#[derive(Default)]
pub(super) struct Buffers(Vec<Raw>);

impl Buffers {
    /// Adds a buffer and returns the address of a byte of it.
    fn add(&mut self, raw: Raw, offset: usize) -> Address {
        let bytes = objc2_metal::MTLBuffer::length(&*raw);
        self.0.push(raw);
        Address::Allocated(Allocation { index: self.0.len() - 1, bytes }, offset)
    }

    /// Adds candle's buffer of a tensor and returns the address of the tensor's first element.
    pub(super) fn add_tensor(&mut self, storage: &MetalStorage, layout: &Layout) -> Address {
        let raw =
            AsRef::<objc2::runtime::ProtocolObject<dyn objc2_metal::MTLBuffer>>::as_ref(storage.buffer());
        self.add(raw.retain(), layout.start_offset() * storage.dtype().size_in_bytes())
    }
}

/// Runs one call of the framework on our own queue and returns the storage that it writes: waits for what candle has
/// encoded so far, then for the call. `call` makes the call from the address of its result; a refusal goes to `refused`.
pub(super) fn run_call(
    device: &MetalDevice,
    (name, what): (&'static str, &'static str),
    (elements, dtype): (usize, candle_core::DType),
    mut buffers: Buffers,
    call: impl FnOnce(Address) -> LibraryCall,
    refused: impl FnOnce(Refusal) -> candle_core::Error,
) -> Result<MetalStorage> {
    let state = state(device)?;
    let gpu = &state.gpu.gpu;
    autoreleasepool(|_| {
        let raw = new_buffer(gpu, elements * dtype.size_in_bytes(), what).map_err(wrap)?;
        let call = call(buffers.add(raw.clone(), 0));
        let call = crate::backend::mps::prepare(gpu, &call).map_err(refused)?;
        device.flush_and_wait_current()?;
        state.gpu.run_alone(name, &*call, &buffers.0).map_err(wrap)?;
        Ok(MetalStorage::new(Arc::new(Buffer::new(raw)), device.clone(), elements, dtype))
    })
}

struct Product {
    /// Set when the guard says no: then a kernel of ours takes the product.
    refused: Arc<AtomicBool>,
}

impl Product {
    fn refuse(&self, why: &dyn std::fmt::Display) -> candle_core::Error {
        self.refused.store(true, Ordering::Relaxed);
        tracing::debug!(%why, "matmul_mps goes to a kernel of ours");
        wrap(Error::invalid(NAME, why.to_string()))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(wrap(Error::invalid(NAME, "this product is for Metal tensors; on the CPU use matmul_fused")))
    }

    fn metal_fwd(
        &self,
        a: &MetalStorage,
        a_layout: &Layout,
        b: &MetalStorage,
        b_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let device = a.device();
        let dtype = DType::from_candle(NAME, a.dtype()).map_err(wrap)?;
        let rank = a_layout.dims().len();
        let leading = &a_layout.dims()[..rank - 2];
        let (m, k, n) = (a_layout.dims()[rank - 2], a_layout.dims()[rank - 1], b_layout.dims()[rank - 1]);
        let batch: usize = leading.iter().product();
        let mut buffers = Buffers::default();
        let mut operand = |storage: &MetalStorage, layout: &Layout, rows: usize, columns: usize| {
            let (row, step, transposed) = side(layout).ok_or_else(|| self.refuse(&"the layout"))?;
            let address = buffers.add_tensor(storage, layout);
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            let layout = MatrixLayout { dtype, rows, columns, row, batch, step };
            Ok::<_, candle_core::Error>((Matrix { address, layout }, transposed))
        };
        let left = operand(a, a_layout, m, k)?;
        let right = operand(b, b_layout, k, n)?;
        let layout = MatrixLayout { dtype, rows: m, columns: n, row: n, batch, step: m * n };
        let call = |address| {
            let result = Matrix { address, layout };
            LibraryCall::MatMul { left, right, result, alpha: 1.0, beta: 0.0 }
        };
        let size = (batch * m * n, a.dtype());
        let storage =
            run_call(device, (NAME, "a product"), size, buffers, call, |refusal| self.refuse(&refusal))?;
        Ok((storage, Shape::from([leading, &[m, n]].concat())))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let transposed = |x: &Tensor| x.transpose(x.rank() - 2, x.rank() - 1);
        let da = a.track_op().then(|| matmul_mps(dy, &transposed(b)?)).transpose()?;
        let db = b.track_op().then(|| matmul_mps(&transposed(a)?, dy)).transpose()?;
        Ok((da, db))
    }
}
