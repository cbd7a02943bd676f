//! Tensors that are views: parts, transposes and broadcasts of others.

use candle_core::{DType, Device, Result, Tensor};
use metal_candle::{AttentionMask, CustomMetalOps};

use crate::{difference, numbers, on_devices};

fn on(device: &Device, seed: u64, dims: &[usize]) -> Tensor {
    numbers(seed, dims).unwrap().to_dtype(DType::F32).unwrap().to_device(device).unwrap()
}

/// A view gives what a contiguous copy of it gives, bit for bit or within rounding of another order.
fn same(view: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    assert!(!view.is_contiguous() || view.layout().start_offset() > 0, "this is no view");
    let (found, expected) = (f(view).unwrap(), f(&view.force_contiguous().unwrap()).unwrap());
    let error = difference(&found, &expected).unwrap();
    assert!(error < 1e-6, "{error}");
}

#[test]
fn parts_transposes_and_broadcasts_are_read_where_they_lie() {
    on_devices(|device| {
        let x = on(device, 1, &[6, 10, 16]);
        let views = [
            x.narrow(0, 2, 3).unwrap(),
            x.narrow(1, 1, 7).unwrap(),
            x.narrow(2, 4, 8).unwrap(),
            x.transpose(0, 1).unwrap(),
            x.transpose(1, 2).unwrap(),
            x.narrow(0, 1, 1).unwrap().broadcast_as((5, 10, 16)).unwrap(),
        ];
        for view in &views {
            let n = *view.dims().last().unwrap();
            let w = on(device, 2, &[n]);
            let wide = on(device, 3, &[2 * n]).narrow(0, n, n).unwrap();
            for axis in 0..3 {
                same(view, |x| x.softmax_fused(axis));
            }
            same(view, |x| x.rms_norm_fused(&w, 1e-5));
            same(view, |x| x.layer_norm_fused(&wide, Some(&w), 1e-5));
            same(view, |x| x.silu_mul_fused(x));
            same(view, |x| Ok(x.top_k(3)?.0));
            let (a, b) = (on(device, 4, &[2, n]), on(device, 5, &[5, 2]));
            let frozen = on(device, 6, &[n, 5]).t().unwrap();
            same(view, |x| x.lora_forward_fused(&frozen, &a, &b, 0.5));
        }
    });
}

#[test]
fn joined_heads_need_no_copy() {
    on_devices(|device| {
        // As a model has them: one product for q, k and v, cut into parts and seen by heads.
        let joined = on(device, 7, &[2, 6, 5 * 8]);
        let heads = |first: usize, count: usize| {
            let part = joined.narrow(2, first * 8, count * 8).unwrap();
            part.reshape((2, 6, count, 8)).unwrap().transpose(1, 2).unwrap()
        };
        let (q, k, v) = (heads(0, 3), heads(3, 1), heads(4, 1));
        let whole = |x: &Tensor| x.force_contiguous().unwrap();
        let found = q.attention_fused(&k, &v, AttentionMask::Causal, 0.4).unwrap();
        let expected = whole(&q).attention_fused(&whole(&k), &whole(&v), AttentionMask::Causal, 0.4).unwrap();
        assert!(difference(&found, &expected).unwrap() < 1e-6);
        let (cos, sin) = (on(device, 8, &[6, 4]), on(device, 9, &[6, 4]));
        let found = q.rope_fused(&cos, &sin).unwrap();
        assert!(difference(&found, &whole(&q).rope_fused(&cos, &sin).unwrap()).unwrap() < 1e-6);
    });
}

#[test]
fn products_take_transposed_and_cut_sides() {
    on_devices(|device| {
        let (a, b) = (on(device, 1, &[9, 20]), on(device, 2, &[20, 12]));
        let expected = a.matmul(&b).unwrap();
        let stored = b.t().unwrap().contiguous().unwrap();
        let wide = Tensor::cat(&[&a, &a], 1).unwrap();
        for (left, right) in [
            (a.clone(), stored.t().unwrap()),
            (a.t().unwrap().contiguous().unwrap().t().unwrap(), b.clone()),
            (wide.narrow(1, 20, 20).unwrap(), stored.t().unwrap()),
        ] {
            for product in [left.matmul_fused(&right).unwrap(), left.matmul_mps(&right).unwrap()] {
                assert!(difference(&product, &expected).unwrap() < 1e-5);
            }
        }
        // A right side shared by the batch.
        let batch = on(device, 3, &[3, 4, 20]);
        let expected = batch.broadcast_matmul(&b).unwrap();
        assert!(difference(&batch.matmul_fused(&b).unwrap(), &expected).unwrap() < 1e-5);
    });
}
