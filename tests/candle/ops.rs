//! Every case: result, gradients, finite differences, 16-bit storage, and what is refused.

use candle_core::{DType, Device, Result, Tensor, Var};
use metal_candle::{AttentionMask, CustomMetalOps};

use crate::cases::{Case, cases, fixed, inputs};
use crate::{difference, greatest, on_devices};

/// A weighted sum of an output, so that every element has a gradient of its own.
fn loss(y: &Tensor) -> Result<Tensor> {
    (y * fixed(11, y.dims(), y)?)?.sum_all()
}

/// The gradients of a case's loss by one of its two forms.
fn gradients(f: fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let store = loss(&y)?.backward()?;
    let of = |var: &Var| store.get(var).cloned().expect("every input has a gradient");
    Ok((y, vars.iter().map(of).collect()))
}

fn on_every_device(check: impl Fn(&Case, &Device) -> Result<()>) {
    on_devices(|device| {
        for case in cases(!device.is_cpu()) {
            if let Err(error) = check(&case, device) {
                panic!("{} on {device:?}: {error}", case.name);
            }
        }
    });
}

#[test]
fn results_and_gradients_are_those_of_unfused_operations() {
    on_every_device(|case, device| {
        let (exact, here) = inputs(case, DType::F32, device)?;
        let (expected, expected_gradients) = gradients(case.unfused, &exact)?;
        let (found, found_gradients) = gradients(case.fused, &here)?;
        // 1e-5, as the plan asks, of the greatest element where that is above 1.
        let tolerance = |x: &Tensor| Ok::<f64, candle_core::Error>(1e-5 * greatest(x)?.max(1.0));
        let error = difference(&expected, &found)?;
        assert!(error < tolerance(&expected)?, "{} on {device:?}: {error}", case.name);
        for (index, (expected, found)) in expected_gradients.iter().zip(&found_gradients).enumerate() {
            let error = difference(expected, found)?;
            assert!(error < tolerance(expected)?, "{} on {device:?}: gradient {index}: {error}", case.name);
        }
        Ok(())
    });
}

#[test]
fn gradients_are_the_slopes_of_the_definition() {
    on_every_device(|case, device| {
        let (exact, here) = inputs(case, DType::F32, device)?;
        let (_, found) = gradients(case.fused, &here)?;
        for (index, gradient) in found.iter().enumerate() {
            let direction = crate::numbers(50 + index as u64, gradient.dims())?;
            let step = 1e-6;
            let along = |sign: f64| -> Result<f64> {
                let mut moved = exact.clone();
                moved[index] = (&moved[index] + (&direction * (sign * step))?)?;
                loss(&(case.unfused)(&moved)?)?.to_scalar::<f64>()
            };
            let slope = (along(1.0)? - along(-1.0)?) / (2.0 * step);
            let gradient = gradient.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
            let ours = (gradient * direction)?.sum_all()?.to_scalar::<f64>()?;
            // The slope is good to 1e-8; the gradient's f32 sums leave parts in 10⁵ of its terms.
            assert!(
                (slope - ours).abs() < 3e-5 * (1.0 + slope.abs()),
                "{} on {device:?}: input {index}: slope {slope}, gradient {ours}",
                case.name
            );
        }
        Ok(())
    });
}

#[test]
fn sixteen_bit_storage_is_rounded_once() {
    for dtype in [DType::F16, DType::BF16] {
        // Half a unit of the result, and as much again where an intermediate is stored in the dtype too.
        let unit = if dtype == DType::F16 { 2_f64.powi(-11) } else { 2_f64.powi(-8) };
        on_devices(|device| {
            for case in cases(true) {
                let (exact, here) = inputs(&case, dtype, device).unwrap();
                let (expected, expected_gradients) = gradients(case.unfused, &exact).unwrap();
                // Fixed operands of the case are rounded to the dtype on one side only, and sums of products carry that
                // through: up to sixteen units.
                let allowed = |x: &Tensor| 16.0 * unit * greatest(x).unwrap().max(1.0);
                let vars: Vec<Var> = here.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
                let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
                let y = (case.fused)(&tensors).unwrap();
                let error = difference(&expected, &y).unwrap();
                assert!(error < allowed(&expected), "{} {dtype:?} on {device:?}: {error}", case.name);
                let store = loss(&y).unwrap().backward().unwrap();
                for (var, expected) in vars.iter().zip(&expected_gradients) {
                    let error = difference(expected, store.get(var).unwrap()).unwrap();
                    let allowed = allowed(expected);
                    assert!(error < allowed, "{} {dtype:?} on {device:?}: gradient: {error}", case.name);
                }
            }
        });
    }
}

#[test]
fn indices_of_the_greatest_come_with_them() {
    on_devices(|device| {
        let x = Tensor::new(&[[1_f32, 5.0, 3.0, 5.0], [f32::NAN, -1.0, 0.0, 2.0]], device).unwrap();
        let (values, indices) = x.top_k(2).unwrap();
        assert_eq!(indices.to_vec2::<u32>().unwrap(), [[1, 3], [0, 3]]);
        let values = values.to_vec2::<f32>().unwrap();
        assert_eq!(values[0], [5.0, 5.0]);
        assert!(values[1][0].is_nan() && values[1][1] == 2.0);
    });
}

#[test]
fn infinities_and_nans_propagate() {
    on_devices(|device| {
        let infinity = f32::INFINITY;
        let x = [[0_f32, -infinity, 1.0], [infinity, 0.0, 0.0], [f32::NAN, 0.0, 0.0], [-infinity; 3]];
        let y = Tensor::new(&x, device).unwrap().softmax_fused(1).unwrap().to_vec2::<f32>().unwrap();
        assert!((y[0][2] - 0.731_058_6).abs() < 1e-6 && y[0][1] == 0.0);
        for row in &y[1..] {
            assert!(row.iter().any(|x| x.is_nan()), "{row:?}");
        }
        let w = Tensor::ones(3, DType::F32, device).unwrap();
        for value in [1e-10_f32, 1e10] {
            let x = Tensor::full(value, (2, 3), device).unwrap();
            let y = x.rms_norm_fused(&w, 1e-30).unwrap().to_vec2::<f32>().unwrap();
            assert!(y.iter().flatten().all(|y| (y - 1.0).abs() < 1e-5), "{value}: {y:?}");
        }
    });
}

#[test]
fn empty_tensors_stay_empty() {
    on_devices(|device| {
        let x = Tensor::zeros((0, 8), DType::F32, device).unwrap();
        assert_eq!(x.softmax_fused(1).unwrap().dims(), [0, 8]);
        let w = Tensor::ones(8, DType::F32, device).unwrap();
        assert_eq!(x.rms_norm_fused(&w, 1e-5).unwrap().dims(), [0, 8]);
    });
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let cpu = &Device::Cpu;
    let of = |dims: &[usize]| Tensor::zeros(dims, DType::F32, cpu).unwrap();
    let says = |result: Result<Tensor>, parts: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(of(&[2, 3]).softmax_fused(2), &["softmax", "no axis 2", "[2, 3]"]);
    says(of(&[2, 3]).rms_norm_fused(&of(&[4]), 1e-5), &["rms_norm", "[3]", "[4]"]);
    says(of(&[2, 3]).matmul_fused(&of(&[4, 2])), &["matmul", "inner lengths differ"]);
    says(of(&[2, 3]).cross_entropy_fused(&Tensor::zeros(5, DType::U32, cpu).unwrap()), &["cross_entropy"]);
    let targets = Tensor::new(&[0_u32, 3], cpu).unwrap();
    says(of(&[2, 3]).cross_entropy_fused(&targets), &["target", "3"]);
    says(of(&[2, 3]).top_k(4).map(|(values, _)| values), &["top_k", "k = 4"]);
    says(of(&[2, 3]).rope_fused(&of(&[1, 1]), &of(&[1, 1])), &["rope_fused", "[batch, heads, t, d]"]);
    let (q, k) = (of(&[1, 3, 4, 8]), of(&[1, 2, 4, 8]));
    says(q.attention_fused(&k, &k, AttentionMask::None, 1.0), &["attention_fused", "multiple"]);
    let k = of(&[1, 3, 5, 8]);
    says(q.attention_fused(&k, &k, AttentionMask::Additive(&of(&[4, 4])), 1.0), &["mask", "[1, 3, 4, 5]"]);
    says(
        Tensor::zeros((2, 2), DType::F64, cpu).unwrap().softmax_fused(1),
        &["softmax_fused", "F64", "to_dtype"],
    );
}

#[test]
fn a_gradient_that_would_vanish_is_refused() {
    let cpu = &Device::Cpu;
    let of = |dims: &[usize]| Tensor::zeros(dims, DType::F32, cpu).unwrap();
    let w = Var::from_tensor(&of(&[4, 3])).unwrap();
    let error = of(&[2, 3]).lora_forward_fused(&w, &of(&[2, 3]), &of(&[4, 2]), 1.0).unwrap_err().to_string();
    assert!(error.contains("w gets no gradient") && error.contains("detach"), "{error}");
    let mask = Var::from_tensor(&of(&[2, 2])).unwrap();
    let q = of(&[1, 1, 2, 4]);
    let error = q.attention_fused(&q, &q, AttentionMask::Additive(&mask), 1.0).unwrap_err().to_string();
    assert!(error.contains("the mask gets no gradient"), "{error}");
}
