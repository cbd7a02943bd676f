//! Fused operations on candle's Metal device: launches into candle's own encoder, and products by Metal Performance
//! Shaders on a queue of our own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{MetalDevice, MetalStorage, Result, Storage};
use candle_metal_kernels::metal::Buffer;
use objc2::rc::autoreleasepool;

use super::fused::Fused;
use super::op::{elsewhere, wrap};
use super::program::{Key, Pass, Program, Programs, Source, Spec, Stored, View, check_extents, dtypes, plan};
use crate::backend::metal::candle::{CandleDispatch, CandleGpu};
use crate::backend::metal::system;
use crate::backend::select::{Choices, Preference};

/// A tensor's storage on a GPU; all of a pass are there.
fn on_gpu<'a>(fused: Fused, view: &View<'a>) -> Result<&'a MetalStorage> {
    if let Stored::Metal(storage) = view.stored { Ok(storage) } else { Err(elsewhere(fused)) }
}

/// What belongs to one of candle's devices, and stays as long as the process.
pub(super) struct DeviceState {
    pub(super) gpu: CandleGpu,
    programs: Programs<Encoded>,
}

struct Encoded {
    program: Program,
    launches: Vec<CandleDispatch>,
    /// Values that were known when the plan was made, by the number of the plan's input.
    constants: HashMap<usize, Arc<Buffer>>,
    extents: Vec<usize>,
}

// SAFETY: buffers may be used from any thread; these are written once, before anything reads them.
unsafe impl Send for Encoded {}
// SAFETY: as above.
unsafe impl Sync for Encoded {}

/// Returns the state of a device, or refuses the device; see [`system::check`].
///
/// The key is the GPU and not candle's device, of which a program may make any number, since an state is never dropped. Two
/// of candle's devices on one GPU have a queue each and share what an state contains: pipelines and constants, which
/// nothing writes after they are made, and the flags of `check_indices`, which nothing reads at this border.
pub(super) fn state(device: &MetalDevice) -> Result<Arc<DeviceState>> {
    system::check(device.metal_device().as_ref()).map_err(wrap)?;
    static STATES: OnceLock<Mutex<HashMap<u64, Arc<DeviceState>>>> = OnceLock::new();
    let id = device.metal_device().registry_id();
    let mut states = STATES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(state) = states.get(&id) {
        return Ok(Arc::clone(state));
    }
    // Kernels for candle's encoder are ours whatever is preferred; kernels of earlier runs are taken where they are kept.
    let kept = Choices::from_env().map_err(wrap)?.kernels;
    let choices = Choices { kernels: kept, ..Choices::from(Preference::Metal) };
    let gpu = CandleGpu::new(device.metal_device().as_ref(), choices).map_err(wrap)?;
    let state = Arc::new(DeviceState { gpu, programs: Programs::new() });
    states.insert(id, Arc::clone(&state));
    Ok(state)
}

/// Encodes a pass into candle's encoder and returns its outputs with their shapes. Nothing waits.
pub(super) fn run_metal(fused: Fused, pass: Pass, views: &[View<'_>]) -> Result<Vec<(Storage, Vec<usize>)>> {
    let storages = views.iter().map(|view| on_gpu(fused, view)).collect::<Result<Vec<_>>>()?;
    let device = storages[0].device();
    let each = views.iter().zip(dtypes(fused, views).map_err(wrap)?);
    let key =
        Key::new(fused, pass, each.clone().map(|(v, dtype)| (dtype, v.layout.dims(), v.layout.stride())));
    let state = state(device)?;
    let encoded = state.programs.get(key, || {
        let specs: Vec<Spec> = each.clone().map(|(view, dtype)| view.spec(dtype)).collect();
        let program = plan(&state.gpu.planner, fused, pass, &specs)?;
        let launches = state.gpu.dispatches(&program.plan)?;
        let mut constants = HashMap::new();
        for (index, source) in program.sources.iter().enumerate() {
            if let Source::Constant(value) = source {
                let buffer = device.new_buffer_with_data(value.bytes()).map_err(|error| {
                    crate::Error::invalid(fused.name(), format!("no memory for a constant: {error}"))
                })?;
                constants.insert(index, buffer);
            }
        }
        Ok(Encoded { program, launches, constants, extents: specs.iter().map(Spec::extent).collect() })
    });
    let encoded = encoded.map_err(wrap)?;
    let given: Vec<(&Buffer, usize)> = storages
        .iter()
        .zip(views)
        .map(|(storage, view)| {
            (storage.buffer(), view.layout.start_offset() * storage.dtype().size_in_bytes())
        })
        .collect();
    let bytes = given.iter().map(|(buffer, start)| buffer.length().saturating_sub(*start));
    check_extents(fused, &encoded.extents, bytes).map_err(wrap)?;
    autoreleasepool(|_| encode(fused, device, &encoded, &given))
}

fn encode(
    fused: Fused,
    device: &MetalDevice,
    encoded: &Encoded,
    views: &[(&Buffer, usize)],
) -> Result<Vec<(Storage, Vec<usize>)>> {
    let program = &encoded.program;
    let room = |elements: usize, dtype| device.new_buffer(elements.max(1), dtype, fused.name());
    let outputs: Vec<Arc<Buffer>> = program
        .outputs
        .iter()
        .map(|spec| room(spec.shape.elements(), spec.dtype.to_candle()))
        .collect::<Result<_>>()?;
    let scratch = match program.plan.arena_bytes {
        0 => None,
        bytes => Some(room(bytes, candle_core::DType::U8)?),
    };
    let inputs = program.sources.iter().enumerate().map(|(index, source)| match source {
        Source::Given(given) => views[*given],
        Source::Constant(_) => (&*encoded.constants[&index], 0),
    });
    let given: Vec<(&Buffer, usize)> = inputs.chain(outputs.iter().map(|buffer| (&**buffer, 0))).collect();
    // Everything is found before candle's lock is taken: a panic under it would poison candle's mutex for good.
    let bound = encoded.launches.iter().map(|launch| launch.bind(&given, scratch.as_deref()));
    let bound = bound.collect::<crate::Result<Vec<_>>>().map_err(wrap)?;
    {
        let guard = device.command_encoder()?;
        for launch in &bound {
            launch.encode(guard.as_ref());
        }
    }
    let storage = |(buffer, spec): (Arc<Buffer>, &crate::tensor::TensorSpec)| {
        let elements = spec.shape.elements();
        let storage = MetalStorage::new(buffer, device.clone(), elements, spec.dtype.to_candle());
        (Storage::Metal(storage), spec.shape.dims().to_vec())
    };
    Ok(outputs.into_iter().zip(&program.outputs).map(storage).collect())
}
