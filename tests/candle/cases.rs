//! Every fused operation beside the same of candle's unfused ones.

use candle_core::{D, DType, Device, Result, Tensor};
use metal_candle::{AttentionMask, CustomMetalOps};

/// One operation at one size.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Shapes of the inputs that have gradients.
    pub(crate) inputs: Vec<Vec<usize>>,
    pub(crate) fused: fn(&[Tensor]) -> Result<Tensor>,
    /// The definition, in whatever dtype and on whatever device the inputs are.
    pub(crate) unfused: fn(&[Tensor]) -> Result<Tensor>,
}

const EPS: f32 = 1e-5;

fn case(
    name: &'static str,
    inputs: &[&[usize]],
    fused: fn(&[Tensor]) -> Result<Tensor>,
    unfused: fn(&[Tensor]) -> Result<Tensor>,
) -> Case {
    Case { name, inputs: inputs.iter().map(|dims| dims.to_vec()).collect(), fused, unfused }
}

fn softmax(x: &Tensor, axis: usize) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(axis)?)
}

fn log_softmax(x: &Tensor, axis: usize) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(axis)?.log()?)
}

fn rms_norm(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?;
    x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(w)
}

fn layer_norm(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?;
    centred.broadcast_div(&variance.sqrt()?)?.broadcast_mul(w)
}

/// A fixed tensor of a like one's dtype and device.
pub(crate) fn fixed(seed: u64, dims: &[usize], like: &Tensor) -> Result<Tensor> {
    crate::numbers(seed, dims)?.to_dtype(like.dtype())?.to_device(like.device())
}

fn rotation(t: usize, half: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
    let angles = (fixed(77, &[t, half], like)? * 3.0)?;
    Ok((angles.cos()?, angles.sin()?))
}

fn rope(x: &Tensor) -> Result<Tensor> {
    let (t, d) = (x.dims()[2], x.dims()[3]);
    let (cos, sin) = rotation(t, d / 2, x)?;
    let (a, b) = (x.narrow(3, 0, d / 2)?, x.narrow(3, d / 2, d / 2)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)
}

/// With keys and values repeated for the heads that share them.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<Tensor>) -> Result<Tensor> {
    let (b, heads, _, d) = q.dims4()?;
    let (_, kv_heads, s, _) = k.dims4()?;
    let repeated = |x: &Tensor| {
        let wide = x.unsqueeze(2)?.broadcast_as((b, kv_heads, heads / kv_heads, s, d))?;
        wide.contiguous()?.reshape((b, heads, s, d))
    };
    let scores = (q.contiguous()?.matmul(&repeated(k)?.t()?.contiguous()?)? * f64::from(SCALE))?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(&mask)?,
        None => scores,
    };
    softmax(&scores, 3)?.matmul(&repeated(v)?)
}

const SCALE: f32 = 0.3;

/// −10⁹ above the diagonal: hidden keys.
fn causal(t: usize, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f64> = (0..t * t).map(|i| if i % t > i / t { -1e9 } else { 0.0 }).collect();
    Tensor::from_vec(values, (t, t), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

fn lora(t: &[Tensor]) -> Result<Tensor> {
    let (x, a, b) = (&t[0], &t[1], &t[2]);
    let w = fixed(5, &[b.dims()[0], a.dims()[1]], x)?;
    let rows = x.flatten_to(x.rank() - 2)?;
    let base = rows.matmul(&w.t()?)?;
    let y = (base + (rows.matmul(&a.t()?)?.matmul(&b.t()?)? * 2.0)?)?;
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("rows") = b.dims()[0];
    y.reshape(dims)
}

fn targets(rows: usize, classes: usize, device: &Device) -> Result<Tensor> {
    let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % classes) as u32).collect();
    Tensor::from_vec(targets, rows, device)
}

/// The cases. `small` leaves out sizes that take minutes on the software device.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let mut cases = vec![
        case("softmax, last axis", &[&[5, 67]], |t| t[0].softmax_fused(1), |t| softmax(&t[0], 1)),
        case("softmax, first axis", &[&[9, 33]], |t| t[0].softmax_fused(0), |t| softmax(&t[0], 0)),
        case("softmax, middle axis", &[&[2, 5, 7]], |t| t[0].softmax_fused(1), |t| softmax(&t[0], 1)),
        case("fast_softmax", &[&[3, 8]], |t| t[0].fast_softmax(1), |t| softmax(&t[0], 1)),
        case("log_softmax", &[&[4, 5, 31]], |t| t[0].log_softmax_fused(2), |t| log_softmax(&t[0], 2)),
        case("log_softmax, axis 0", &[&[6, 5]], |t| t[0].log_softmax_fused(0), |t| log_softmax(&t[0], 0)),
        case(
            "rms_norm",
            &[&[3, 5, 72], &[72]],
            |t| t[0].rms_norm_fused(&t[1], EPS),
            |t| rms_norm(&t[0], &t[1]),
        ),
        case(
            "add_rms_norm, both results used",
            &[&[6, 40], &[6, 40], &[40]],
            |t| {
                let (norm, sum) = t[0].add_rms_norm_fused(&t[1], &t[2], EPS)?;
                norm + (sum * 0.5)?
            },
            |t| {
                let sum = (&t[0] + &t[1])?;
                rms_norm(&sum, &t[2])? + (sum * 0.5)?
            },
        ),
        case(
            "add_rms_norm, the norm alone",
            &[&[2, 3, 16], &[2, 3, 16], &[16]],
            |t| Ok(t[0].add_rms_norm_fused(&t[1], &t[2], EPS)?.0),
            |t| rms_norm(&(&t[0] + &t[1])?, &t[2]),
        ),
        case(
            "layer_norm",
            &[&[7, 65], &[65], &[65]],
            |t| t[0].layer_norm_fused(&t[1], Some(&t[2]), EPS),
            |t| layer_norm(&t[0], &t[1])?.broadcast_add(&t[2]),
        ),
        case(
            "layer_norm without bias",
            &[&[2, 3, 24], &[24]],
            |t| t[0].layer_norm_fused(&t[1], None, EPS),
            |t| layer_norm(&t[0], &t[1]),
        ),
        case(
            "rope",
            &[&[2, 3, 5, 8]],
            |t| {
                let (cos, sin) = rotation(5, 4, &t[0])?;
                t[0].rope_fused(&cos, &sin)
            },
            |t| rope(&t[0]),
        ),
        case(
            "rope of heads behind tokens",
            &[&[2, 5, 3, 8]],
            |t| {
                let (cos, sin) = rotation(5, 4, &t[0])?;
                t[0].transpose(1, 2)?.rope_fused(&cos, &sin)
            },
            |t| rope(&t[0].transpose(1, 2)?),
        ),
        case("silu_mul", &[&[4, 37], &[4, 37]], |t| t[0].silu_mul_fused(&t[1]), |t| &t[0].silu()? * &t[1]),
        case(
            "attention, all keys",
            &[&[2, 4, 6, 16], &[2, 2, 9, 16], &[2, 2, 9, 16]],
            |t| t[0].attention_fused(&t[1], &t[2], AttentionMask::None, SCALE),
            |t| attention(&t[0], &t[1], &t[2], None),
        ),
        case(
            "attention, causal",
            &[&[1, 3, 13, 32], &[1, 1, 13, 32], &[1, 1, 13, 32]],
            |t| t[0].attention_fused(&t[1], &t[2], AttentionMask::Causal, SCALE),
            |t| attention(&t[0], &t[1], &t[2], Some(causal(13, &t[0])?)),
        ),
        case(
            "attention, a tensor added to the scores",
            &[&[2, 4, 5, 8], &[2, 2, 7, 8], &[2, 2, 7, 8]],
            |t| {
                let mask = fixed(3, &[4, 5, 7], &t[0])?;
                t[0].attention_fused(&t[1], &t[2], AttentionMask::Additive(&mask), SCALE)
            },
            |t| attention(&t[0], &t[1], &t[2], Some(fixed(3, &[4, 5, 7], &t[0])?)),
        ),
        case(
            "lora, one row",
            &[&[1, 48], &[4, 48], &[40, 4]],
            |t| t[0].lora_forward_fused(&fixed(5, &[40, 48], &t[0])?, &t[1], &t[2], 2.0),
            lora,
        ),
        case(
            "lora, a batch of rows",
            &[&[2, 9, 33], &[3, 33], &[20, 3]],
            |t| t[0].lora_forward_fused(&fixed(5, &[20, 33], &t[0])?, &t[1], &t[2], 2.0),
            lora,
        ),
        case(
            "cross_entropy",
            &[&[6, 50]],
            |t| t[0].cross_entropy_fused(&targets(6, 50, t[0].device())?),
            |t| {
                let chosen = targets(6, 50, t[0].device())?.unsqueeze(1)?;
                log_softmax(&t[0], 1)?.gather(&chosen, 1)?.neg()?.mean_all()
            },
        ),
        case("matmul", &[&[7, 33], &[33, 12]], |t| t[0].matmul_fused(&t[1]), |t| t[0].matmul(&t[1])),
        case(
            "matmul of a batch",
            &[&[3, 5, 16], &[3, 16, 9]],
            |t| t[0].matmul_fused(&t[1]),
            |t| t[0].matmul(&t[1]),
        ),
        case(
            "matmul with a transposed side",
            &[&[10, 24], &[14, 24]],
            |t| t[0].matmul_fused(&t[1].t()?),
            |t| t[0].matmul(&t[1].t()?),
        ),
        case("matmul_mps", &[&[16, 24], &[24, 8]], |t| t[0].matmul_mps(&t[1]), |t| t[0].matmul(&t[1])),
        case("fast_matmul", &[&[4, 8], &[8, 4]], |t| t[0].fast_matmul(&t[1]), |t| t[0].matmul(&t[1])),
        case(
            "top_k",
            &[&[5, 40]],
            |t| Ok(t[0].top_k(6)?.0),
            |t| {
                let order = t[0].arg_sort_last_dim(false)?.narrow(1, 0, 6)?.contiguous()?;
                t[0].gather(&order, 1)
            },
        ),
    ];
    if !small {
        cases.extend([
            case("softmax of long rows", &[&[3, 5000]], |t| t[0].softmax_fused(1), |t| softmax(&t[0], 1)),
            case(
                "rms_norm of many rows",
                &[&[300, 576], &[576]],
                |t| t[0].rms_norm_fused(&t[1], EPS),
                |t| rms_norm(&t[0], &t[1]),
            ),
            case(
                "attention of 200 tokens",
                &[&[1, 9, 200, 64], &[1, 3, 200, 64], &[1, 3, 200, 64]],
                |t| t[0].attention_fused(&t[1], &t[2], AttentionMask::Causal, SCALE),
                |t| attention(&t[0], &t[1], &t[2], Some(causal(200, &t[0])?)),
            ),
        ]);
    }
    cases
}

/// The inputs of a case: the same numbers in f64 on the CPU and in a dtype on a device.
pub(crate) fn inputs(case: &Case, dtype: DType, device: &Device) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let exact = case.inputs.iter().zip(1..).map(|(dims, seed)| {
        // What the dtype holds exactly, so that both sides compute from the same numbers.
        crate::numbers(seed, dims)?.to_dtype(dtype)?.to_dtype(DType::F64)
    });
    let exact: Vec<Tensor> = exact.collect::<Result<_>>()?;
    let here = exact.iter().map(|x| x.to_dtype(dtype)?.to_device(device)).collect::<Result<_>>()?;
    Ok((exact, here))
}
