//! Products of few rows with a weight stored in blocks of ggml. No operation of the graph has such a weight yet, so
//! only tests compile this.

use bytemuck::NoUninit;
use candle_core::quantized::GgmlDType;

use super::device::Gpu;
use super::launch::{Address, Binding, Launch};
use super::pipeline::Source;
use super::site::{Tensor, small};
use crate::Result;

const SOURCE: Source = Source::new("gemv_quantized", include_str!("kernels/gemv_quantized.metal"));

/// Columns of a threadgroup: 4 SIMD groups of 4.
const COLUMNS: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Sizes {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    y_stride: u32,
    w_stride: u32,
}

/// The name of a kind of block in kernels' names, if there is a kernel for it.
fn name(blocks: GgmlDType) -> Option<&'static str> {
    match blocks {
        GgmlDType::Q4_0 => Some("Q4_0"),
        GgmlDType::Q4_1 => Some("Q4_1"),
        GgmlDType::Q8_0 => Some("Q8_0"),
        GgmlDType::Q4K => Some("Q4_K"),
        GgmlDType::Q6K => Some("Q6_K"),
        _ => None,
    }
}

/// The launch of y = x·Wᵀ for x `[m, k]`, y `[m, n]` of x's dtype, and W's `n` rows of k elements in blocks one after
/// the other. `None` if there is no kernel for these blocks, k is not whole blocks, or nothing is to be computed.
fn launch(gpu: &Gpu, x: &Tensor, w: &Address, blocks: GgmlDType, y: &Tensor) -> Result<Option<Launch>> {
    let (m, n, k) = (x.rows(), y.last(), x.last());
    let Some(name) = name(blocks).filter(|_| k.is_multiple_of(blocks.block_size()) && m * n > 0) else {
        return Ok(None);
    };
    let rows = if m == 1 { 1 } else { 4 };
    let sizes = Sizes {
        m: small(m),
        n: small(n),
        k: small(k),
        x_stride: small(x.row_stride()),
        y_stride: small(y.row_stride()),
        w_stride: small(k / blocks.block_size() * blocks.type_size()),
    };
    Ok(Some(Launch {
        op: "quant_matmul",
        pipeline: gpu.pipelines.get(SOURCE, &format!("gemv_{name}_{}_{rows}", x.type_name()), &[])?,
        bindings: vec![
            Binding::Buffer(x.first()),
            Binding::Buffer(w.clone()),
            Binding::Buffer(y.first()),
            Binding::Bytes(bytemuck::bytes_of(&sizes).to_vec()),
        ],
        groups: [n.div_ceil(COLUMNS), m.div_ceil(rows), 1],
        threads: [128, 1, 1],
        barrier: false,
    }))
}

mod tests {
    use std::ffi::c_void;
    use std::ptr::NonNull;

    use candle_core::quantized::{QStorage, QTensor};
    use objc2::rc::autoreleasepool;
    use objc2_metal::{MTLBuffer, MTLDevice, MTLResourceOptions};
    #[cfg(softmetal)]
    use softmetal as _;

    use super::super::buffer::Raw;
    use super::super::commands::{Bound, Commands, Committed, Load};
    use super::*;
    use crate::backend::select::Preference;
    use crate::tensor::{DType, HostTensor, Layout, Shape};

    const KINDS: [GgmlDType; 5] =
        [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K];

    /// A buffer of just these bytes: an access beyond them is found.
    fn buffer(gpu: &Gpu, bytes: &[u8]) -> Raw {
        let start = NonNull::from(bytes).cast::<c_void>();
        // SAFETY: the bytes are valid for their length, and copied.
        unsafe {
            gpu.device.newBufferWithBytes_length_options(
                start,
                bytes.len(),
                MTLResourceOptions::StorageModeShared,
            )
        }
        .unwrap()
    }

    /// Numbers between 0 and 2³² that look random.
    fn random(seed: u64) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        }
    }

    /// Where the f16 factors of a block are.
    fn factors(blocks: GgmlDType) -> &'static [usize] {
        match blocks {
            GgmlDType::Q4_1 | GgmlDType::Q4K => &[0, 2],
            GgmlDType::Q6K => &[208],
            _ => &[0],
        }
    }

    /// Blocks with every pattern of bits in all but their factors, which are between -0.02 and 0.02.
    fn weights(blocks: GgmlDType, elements: usize, next: &mut impl FnMut() -> u32) -> Vec<u8> {
        let size = blocks.type_size();
        let mut bytes: Vec<u8> =
            (0..elements / blocks.block_size() * size).map(|_| (next() >> 24) as u8).collect();
        for block in bytes.chunks_mut(size) {
            for &at in factors(blocks) {
                let factor = half::f16::from_f32((next() as f32 / u32::MAX as f32 - 0.5) * 0.04);
                block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
            }
        }
        bytes
    }

    /// x `[m, stride]` of which the first k columns count, times blocks, on the GPU. What lies between the rows of the
    /// result must stay.
    fn product(gpu: &Gpu, x: &HostTensor, k: usize, w: &[u8], blocks: GgmlDType, n: usize) -> Vec<f64> {
        let (m, stride, dtype) = (x.shape()[0], x.shape()[1], x.dtype());
        let y_stride = n + 3;
        let untouched = HostTensor::from_f64(&vec![-7.0; m * y_stride], dtype, [m, y_stride]).unwrap();
        autoreleasepool(|_| {
            let [from, weights, to] = [x.bytes(), w, untouched.bytes()].map(|bytes| buffer(gpu, bytes));
            let view = |raw: &Raw, columns: usize, step: usize| Tensor {
                address: Address::Fixed(raw.clone(), 0),
                dtype,
                layout: Layout { shape: Shape::from([m, columns]), strides: vec![step, 1], offset: 0 },
            };
            let (x, y) = (view(&from, k, stride), view(&to, n, y_stride));
            let launch = launch(gpu, &x, &Address::Fixed(weights, 0), blocks, &y).unwrap().unwrap();
            let mut committed = Committed::default();
            let bound = Bound { dispatches: 64, milliseconds: 50.0, bytes: 64 << 20 };
            let mut commands = Commands::new(gpu, &to, bound, &mut committed);
            commands.launch(&launch, Load::default()).unwrap();
            let run = objc2_metal::MTLSharedEvent::signaledValue(&*gpu.event) + 1;
            if let Err(failed) = commands.finish(run, "quantised product").unwrap() {
                panic!("{}", failed.into_error("quantised product".to_owned()));
            }
            let mut result = HostTensor::zeros(untouched.spec().clone());
            let bytes = result.bytes_mut();
            // SAFETY: the buffer has as many bytes, and the run is over.
            unsafe {
                std::ptr::copy_nonoverlapping(to.contents().as_ptr().cast(), bytes.as_mut_ptr(), bytes.len());
            }
            let rows = result.to_f64();
            let (rows, between): (Vec<_>, Vec<_>) = rows.chunks(y_stride).map(|row| row.split_at(n)).unzip();
            assert_eq!(between.concat(), vec![-7.0; 3 * m]);
            rows.concat()
        })
    }

    /// The elements of blocks, by candle.
    fn elements(w: &[u8], blocks: GgmlDType, n: usize, k: usize) -> Vec<f64> {
        let cpu = candle_core::Device::Cpu;
        let storage = QStorage::from_data(w.into(), &cpu, blocks).unwrap();
        let tensor = QTensor::new(storage, (n, k)).unwrap().dequantize(&cpu).unwrap();
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f64::from).collect()
    }

    fn check(gpu: &Gpu, blocks: GgmlDType, dtype: DType, (m, n, k): (usize, usize, usize), seed: u64) {
        let mut next = random(seed);
        let stride = k + 5;
        let values: Vec<f64> =
            (0..m * stride).map(|_| f64::from(next()) / f64::from(u32::MAX) - 0.5).collect();
        let x = HostTensor::from_f64(&values, dtype, [m, stride]).unwrap();
        let w = weights(blocks, n * k, &mut next);
        let found = product(gpu, &x, k, &w, blocks, n);
        let (x, elements) = (x.to_f64(), elements(&w, blocks, n, k));
        // Sums of k products in f32, then one rounding to the result's type.
        let tolerance = 1e-6
            + match dtype {
                DType::F16 => 5e-4,
                DType::BF16 => 4e-3,
                _ => 0.0,
            };
        for row in 0..m {
            for column in 0..n {
                let terms = (0..k).map(|i| x[row * stride + i] * elements[column * k + i]);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let found = found[row * n + column];
                assert!(
                    (found - sum).abs() <= tolerance * f64::max(size, 1e-3),
                    "{blocks:?} with x in {dtype}, {m}x{n}x{k}: ({row}, {column}) is {found}, must be {sum}"
                );
            }
        }
    }

    #[test]
    fn products_with_blocks_are_those_with_their_elements() {
        let gpu = Gpu::new(Preference::Metal).unwrap();
        for (seed, blocks) in KINDS.into_iter().enumerate() {
            let block = blocks.block_size();
            // One block, fewer runs than lanes, and more of both than a whole number of turns.
            for k in [block, 3 * block, 1024 + 5 * block] {
                for (m, n) in [(1, 37), (3, 16), (6, 5)] {
                    check(&gpu, blocks, DType::F32, (m, n, k), seed as u64);
                }
            }
        }
    }

    #[test]
    fn sixteen_bit_inputs_give_sixteen_bit_results() {
        let gpu = Gpu::new(Preference::Metal).unwrap();
        check(&gpu, GgmlDType::Q8_0, DType::F16, (1, 9, 320), 1);
        check(&gpu, GgmlDType::Q6K, DType::BF16, (5, 9, 512), 2);
    }

    /// A NaN in a row of x is in the whole row of y and in no other.
    #[test]
    fn nan_goes_through_its_row() {
        let gpu = Gpu::new(Preference::Metal).unwrap();
        for blocks in KINDS {
            let k = 2 * blocks.block_size();
            let mut values = vec![0.5_f32; 2 * k];
            values[k + k / 2 + 1] = f32::NAN;
            let x = HostTensor::from_slice(&values, [2, k]).unwrap();
            let w = weights(blocks, 6 * k, &mut random(3));
            let y = product(&gpu, &x, k, &w, blocks, 6);
            let nan: Vec<bool> = y.iter().map(|y| y.is_nan()).collect();
            assert_eq!(nan, [[false; 6], [true; 6]].concat(), "{blocks:?}");
        }
    }

    #[test]
    fn other_blocks_and_parts_of_blocks_are_left_to_others() {
        let gpu = Gpu::new(Preference::Metal).unwrap();
        let place = buffer(&gpu, &[0; 16]);
        let tensor = |m: usize, columns: usize| Tensor {
            address: Address::Fixed(place.clone(), 0),
            dtype: DType::F32,
            layout: Layout::contiguous(&Shape::from([m, columns])),
        };
        let w = Address::Fixed(place.clone(), 0);
        for (blocks, m, k) in [(GgmlDType::Q5_0, 1, 256), (GgmlDType::Q4K, 1, 128), (GgmlDType::Q4_0, 0, 32)]
        {
            assert!(launch(&gpu, &tensor(m, k), &w, blocks, &tensor(m, 4)).unwrap().is_none());
        }
    }
}
