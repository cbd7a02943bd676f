//! Products with a weight that stays in ggml's blocks.

use half::f16;

use super::reference::Reference;
use super::{Backward, Operation, Value, expect_float, expect_inputs, expect_spec};
use crate::tensor::{HostTensor, Layout, TensorSpec};
use crate::{Error, Result};

/// A kind of ggml's blocks.
///
/// Source: `ggml-common.h` and `ggml-quants.c` of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "ggml's own names")]
pub enum Blocks {
    /// 32 elements `d·(q − 8)` of 4 bits.
    Q4_0,
    /// 32 elements `d·q + m` of 4 bits.
    Q4_1,
    /// 32 elements `d·q` of 8 bits.
    Q8_0,
    /// 256 elements of 4 bits in 8 parts, each with its own 6-bit scale and offset.
    Q4_K,
    /// 256 elements of 6 bits in 16 parts, each with its own 8-bit scale.
    Q6_K,
}

/// The most elements of a block.
pub(crate) const MOST_ELEMENTS: usize = 256;

impl Blocks {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4_K, Self::Q6_K];

    /// Elements of a block.
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q6_K => MOST_ELEMENTS,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    /// The name in ggml.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// The elements of one block.
    pub(crate) fn decode(self, block: &[u8], out: &mut [f32]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let d = half(if self == Self::Q6_K { 208 } else { 0 });
        match self {
            Self::Q4_0 => {
                for (i, &byte) in block[2..18].iter().enumerate() {
                    out[i] = d * f32::from(i16::from(byte & 15) - 8);
                    out[i + 16] = d * f32::from(i16::from(byte >> 4) - 8);
                }
            }
            Self::Q4_1 => {
                let m = half(2);
                for (i, &byte) in block[4..20].iter().enumerate() {
                    out[i] = d * f32::from(byte & 15) + m;
                    out[i + 16] = d * f32::from(byte >> 4) + m;
                }
            }
            Self::Q8_0 => {
                for (value, &byte) in out.iter_mut().zip(&block[2..34]) {
                    *value = d * f32::from(byte.cast_signed());
                }
            }
            Self::Q4_K => {
                let (least, scales) = (half(2), &block[4..16]);
                for part in 0..8 {
                    let (s, m) = match part {
                        0..4 => (scales[part] & 63, scales[part + 4] & 63),
                        _ => (
                            scales[part + 4] & 15 | scales[part - 4] >> 6 << 4,
                            scales[part + 4] >> 4 | scales[part] >> 6 << 4,
                        ),
                    };
                    let (scale, offset) = (d * f32::from(s), least * f32::from(m));
                    // Two parts share 32 bytes, the first of them in the lower halves.
                    let bytes = &block[16 + 32 * (part / 2)..][..32];
                    for (value, &byte) in out[32 * part..][..32].iter_mut().zip(bytes) {
                        *value = scale * f32::from(byte >> (4 * (part % 2)) & 15) - offset;
                    }
                }
            }
            Self::Q6_K => {
                let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
                for (i, value) in out[..MOST_ELEMENTS].iter_mut().enumerate() {
                    // Half of the block, strip of 32 in it, and place in the strip.
                    let (side, strip, at) = (i / 128, i / 32 % 4, i % 32);
                    let lower = low[64 * side + 32 * (strip % 2) + at] >> (4 * (strip / 2)) & 15;
                    let upper = high[32 * side + at] >> (2 * strip) & 3;
                    let scale = d * f32::from(scales[i / 16].cast_signed());
                    *value = scale * f32::from(i16::from(lower | upper << 4) - 32);
                }
            }
        }
    }
}

impl std::fmt::Display for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `y = x·Wᵀ` with W `[n, k]` in blocks, which are decoded on the way. Sums in f32.
///
/// Inputs: x `[…, k]`, and W as u32 words ([`QuantMatMul::weight_spec`]): its rows one after the other, each of k/block
/// blocks as GGUF stores them. Output `[…, n]` in x's dtype. The gradient goes to x only: W is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QuantMatMul {
    /// The kind of W's blocks.
    pub blocks: Blocks,
    /// Rows of W.
    pub n: usize,
    /// Elements of a row of W: whole blocks.
    pub k: usize,
}

/// The gradient of [`QuantMatMul`]: `dx = dy·W`. Inputs: dy `[…, n]`, and W as there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QuantMatMulGrad {
    /// The product.
    pub of: QuantMatMul,
}

impl QuantMatMul {
    /// Bytes of a row of W.
    pub fn row_bytes(&self) -> usize {
        self.k / self.blocks.elements() * self.blocks.bytes()
    }

    /// The spec of W: its bytes, filled up to whole words.
    pub fn weight_spec(&self) -> TensorSpec {
        TensorSpec::u32([(self.n * self.row_bytes()).div_ceil(4)])
    }

    /// W as a tensor, from the bytes of its blocks.
    ///
    /// # Errors
    /// k is not whole blocks, or the bytes are not those of n rows.
    pub fn weight(&self, bytes: &[u8]) -> Result<HostTensor> {
        self.check("quant_matmul")?;
        let expected = self.n * self.row_bytes();
        if bytes.len() != expected {
            let message = format!(
                "{} rows of {} elements in {} are {expected} bytes, {} given",
                self.n,
                self.k,
                self.blocks,
                bytes.len()
            );
            return Err(Error::invalid("quant_matmul", message));
        }
        let mut weight = HostTensor::zeros(self.weight_spec());
        weight.bytes_mut()[..expected].copy_from_slice(bytes);
        Ok(weight)
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let block = self.blocks.elements();
        if self.k > 0 && self.k.is_multiple_of(block) {
            return Ok(());
        }
        let message = format!("the inner length {} is not whole blocks of {block} ({})", self.k, self.blocks);
        Err(Error::invalid(op, message))
    }

    /// The output for an input whose last axis has `from` elements, with `to` in their place.
    fn output(
        &self,
        op: &'static str,
        inputs: &[TensorSpec],
        (from, to): (usize, usize),
    ) -> Result<TensorSpec> {
        expect_inputs(op, inputs, 2)?;
        expect_float(op, &[&inputs[0]])?;
        self.check(op)?;
        let shape = &inputs[0].shape;
        if shape.rank() == 0 || shape.last() != from {
            return Err(Error::shape(op, format!("the rows must have {from} elements"), &[shape]));
        }
        expect_spec(op, "the weight", &inputs[1], &self.weight_spec())?;
        let mut dims = shape.dims().to_vec();
        *dims.last_mut().expect("not a scalar") = to;
        Ok(TensorSpec::new(inputs[0].dtype, dims))
    }

    /// W, `[n, k]`.
    fn elements(&self, words: &Reference) -> Vec<f64> {
        let bytes: Vec<u8> = words.data.iter().flat_map(|&word| (word as u32).to_le_bytes()).collect();
        let mut values = [0.0; MOST_ELEMENTS];
        let blocks = bytes.chunks_exact(self.blocks.bytes()).take(self.n * self.k / self.blocks.elements());
        let decoded = blocks.flat_map(|block| {
            self.blocks.decode(block, &mut values);
            values.map(f64::from).into_iter().take(self.blocks.elements())
        });
        decoded.collect()
    }

    fn flops(&self, inputs: &[TensorSpec]) -> u64 {
        2 * (inputs[0].shape.rows() * self.n * self.k) as u64
    }
}

impl Operation for QuantMatMul {
    fn name(&self) -> &'static str {
        "quant_matmul"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        Ok(vec![self.output("quant_matmul", inputs, (self.k, self.n))?])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn gradient(&self, cx: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let Some(dy) = cx.upstream[0] else { return Ok(vec![None; 2]) };
        Ok(vec![Some(cx.one(QuantMatMulGrad { of: self.clone() }, &[dy, cx.inputs[1]])?), None])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        self.flops(inputs)
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let w = self.elements(&inputs[1]);
        let mut dims = inputs[0].shape.dims().to_vec();
        *dims.last_mut().expect("not a scalar") = self.n;
        let dot = |x: &[f64], w: &[f64]| -> f64 { x.iter().zip(w).map(|(x, w)| x * w).sum() };
        let data = inputs[0].rows().flat_map(|x| w.chunks(self.k).map(move |w| dot(x, w))).collect();
        vec![Reference::new(dims, data)]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input == 0 && layout.row_stride().is_some() || layout.is_contiguous()
    }
}

impl Operation for QuantMatMulGrad {
    fn name(&self) -> &'static str {
        "quant_matmul_grad"
    }

    fn infer(&self, inputs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        Ok(vec![self.of.output("quant_matmul_grad", inputs, (self.of.n, self.of.k))?])
    }

    fn flops(&self, inputs: &[TensorSpec], _outputs: &[TensorSpec]) -> u64 {
        self.of.flops(inputs)
    }

    fn reference(&self, inputs: &[Reference]) -> Vec<Reference> {
        let (n, k) = (self.of.n, self.of.k);
        let w = self.of.elements(&inputs[1]);
        let mut dims = inputs[0].shape.dims().to_vec();
        *dims.last_mut().expect("not a scalar") = k;
        let column = |dy: &[f64], i: usize| -> f64 { (0..n).map(|row| dy[row] * w[row * k + i]).sum() };
        let rows = inputs[0].shape.rows();
        let data = (0..rows * k).map(|at| column(&inputs[0].data[at / k * n..][..n], at % k)).collect();
        vec![Reference::new(dims, data)]
    }

    fn accepts(&self, input: usize, layout: &Layout) -> bool {
        input == 0 && layout.row_stride().is_some() || layout.is_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};

    use super::*;

    fn ggml(blocks: Blocks) -> GgmlDType {
        match blocks {
            Blocks::Q4_0 => GgmlDType::Q4_0,
            Blocks::Q4_1 => GgmlDType::Q4_1,
            Blocks::Q8_0 => GgmlDType::Q8_0,
            Blocks::Q4_K => GgmlDType::Q4K,
            Blocks::Q6_K => GgmlDType::Q6K,
        }
    }

    /// Every pattern of bits in all but the factors, decoded as candle decodes them.
    #[test]
    fn blocks_are_decoded_as_by_candle() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for blocks in Blocks::ALL {
            let kind = ggml(blocks);
            assert_eq!(
                (blocks.elements(), blocks.bytes()),
                (kind.block_size(), kind.type_size()),
                "{blocks}"
            );
            let (rows, size) = (16, blocks.bytes());
            let mut bytes: Vec<u8> = (0..rows * size).map(|_| next()).collect();
            for (row, block) in bytes.chunks_mut(size).enumerate() {
                let factors: &[usize] = match blocks {
                    Blocks::Q4_1 | Blocks::Q4_K => &[0, 2],
                    Blocks::Q6_K => &[208],
                    _ => &[0],
                };
                for &at in factors {
                    let factor = f16::from_f32(0.01 * (row as f32 - 7.5));
                    block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
                }
            }
            let cpu = candle_core::Device::Cpu;
            let storage = QStorage::from_data(bytes.as_slice().into(), &cpu, kind).unwrap();
            let tensor = QTensor::new(storage, (rows, kind.block_size())).unwrap().dequantize(&cpu).unwrap();
            let expected: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let mut found = vec![0.0; blocks.elements()];
            for (row, block) in bytes.chunks(size).enumerate() {
                blocks.decode(block, &mut found);
                for (i, (a, b)) in found.iter().zip(&expected[row * blocks.elements()..]).enumerate() {
                    // Products of three factors, in whatever order.
                    assert!((a - b).abs() <= 1e-6 * b.abs().max(0.1), "{blocks}: {row}, {i} is {a}, not {b}");
                }
            }
        }
    }

    #[test]
    fn bytes_and_lengths_that_do_not_fit_are_refused() {
        let op = QuantMatMul { blocks: Blocks::Q4_K, n: 3, k: 512 };
        assert_eq!(op.weight(&[0; 3 * 288]).unwrap().spec(), &op.weight_spec());
        let error = op.weight(&[0; 100]).unwrap_err().to_string();
        assert_eq!(error, "quant_matmul: 3 rows of 512 elements in Q4_K are 864 bytes, 100 given");
        let odd = QuantMatMul { k: 100, ..op.clone() };
        let inputs = [TensorSpec::f32([2, 100]), odd.weight_spec()];
        let error = odd.infer(&inputs).unwrap_err().to_string();
        assert!(error.contains("100 is not whole blocks of 256 (Q4_K)"), "{error}");
        let error = op.infer(&[TensorSpec::f32([2, 511]), op.weight_spec()]).unwrap_err().to_string();
        assert!(error.contains("the rows must have 512 elements"), "{error}");
        let error = op.infer(&[TensorSpec::f32([2, 512]), TensorSpec::u32([7])]).unwrap_err().to_string();
        assert!(error.contains("the weight must be"), "{error}");
    }
}
