//! candle as a peer: the same protocol as compare/peers.py, spoken by this tool itself in a process of its own.
//!
//! Forward, the fastest that candle has: its fused kernels, and for attention the composition, which is faster than its
//! flash form on a CPU. With gradients its compositions, since the fused kernels have none.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use metal_candle::bench::{COPIES, Case, Kind, SAMPLES};
use serde_json::{Value, json};

use crate::bench::peers::case_of;
use crate::session::print_line;

const EPS: f32 = 1e-5;
/// How its figures are taken.
const SYNCHRONISED: &str =
    "each call returns with its result; on a GPU the device is synchronised before the clock stops";

fn softmax(x: &Tensor, gradients: bool) -> Result<Tensor> {
    if x.rank() == 2 && !gradients {
        candle_nn::ops::softmax_last_dim(x)
    } else {
        candle_nn::ops::softmax(x, 1)
    }
}

fn attention(t: &[Tensor], groups: usize, mask: &Tensor, scale: f64) -> Result<Tensor> {
    let heads = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads(&t[0])?, heads(&t[1])?, heads(&t[2])?);
    let repeat = |x: &Tensor| -> Result<Tensor> {
        let (b, h, s, d) = x.dims4()?;
        x.unsqueeze(2)?.expand((b, h, groups, s, d))?.reshape((b, h * groups, s, d))
    };
    let (k, v) = (repeat(&k)?, repeat(&v)?);
    let scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?.broadcast_add(mask)?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// A case on candle's tensors.
struct Job {
    case: Case,
    copies: Vec<Vec<Var>>,
    mask: Option<Tensor>,
    device: Device,
    /// True if the layer's weight is stored `[k, n]`: the faster of both is timed.
    turned: bool,
    samples: PathBuf,
}

impl Job {
    fn new(case: Case, device: &Device, samples: &Path) -> Result<Self> {
        let plain = Self::stored(case, device, samples, false)?;
        let frozen = matches!(case.kind, Kind::Lora { .. })
            || matches!(case.kind, Kind::MatMul { .. }) && !case.backward;
        if !frozen {
            return Ok(plain);
        }
        let turned = Self::stored(case, device, samples, true)?;
        let seconds =
            |job: &Self| Ok::<f64, candle_core::Error>(job.times(0.01, || job.run(&job.copies[0]))?.0);
        Ok(if seconds(&turned)? < seconds(&plain)? { turned } else { plain })
    }

    fn stored(case: Case, device: &Device, samples: &Path, turned: bool) -> Result<Self> {
        let dtype = match case.dtype {
            metal_candle::tensor::DType::F16 => DType::F16,
            metal_candle::tensor::DType::BF16 => DType::BF16,
            _ => DType::F32,
        };
        let input = |index: usize, copy: usize| -> Result<Var> {
            let values: Vec<f32> = case.values(index, copy).to_f64().iter().map(|&x| x as f32).collect();
            let tensor =
                Tensor::from_vec(values, case.inputs()[index].as_slice(), device)?.to_dtype(dtype)?;
            if turned && index == 1 {
                return Var::from_tensor(&tensor.t()?.contiguous()?);
            }
            Var::from_tensor(&tensor)
        };
        let count = case.inputs().len();
        let copies = (0..COPIES).map(|copy| (0..count).map(|index| input(index, copy)).collect());
        let mask = match case.kind {
            Kind::Attention { t, .. } => {
                let values: Vec<f32> =
                    (0..t * t).map(|i| if i % t <= i / t { 0.0 } else { f32::NEG_INFINITY }).collect();
                Some(Tensor::from_vec(values, (t, t), device)?.to_dtype(dtype)?)
            }
            _ => None,
        };
        let (copies, device) = (copies.collect::<Result<_>>()?, device.clone());
        Ok(Self { case, copies, mask, device, turned, samples: samples.to_owned() })
    }

    fn forward(&self, t: &[Tensor]) -> Result<Tensor> {
        let gradients = self.case.backward;
        let layer = |t: &[Tensor]| if self.turned { t[0].matmul(&t[1]) } else { t[0].matmul(&t[1].t()?) };
        match self.case.kind {
            Kind::MatMul { .. } => layer(t),
            Kind::Softmax { .. } | Kind::SoftmaxInner { .. } => softmax(&t[0], gradients),
            Kind::RmsNorm { .. } if gradients => candle_nn::ops::rms_norm_slow(&t[0], &t[1], EPS),
            Kind::RmsNorm { .. } => candle_nn::ops::rms_norm(&t[0], &t[1], EPS),
            Kind::LayerNorm { .. } if gradients => candle_nn::ops::layer_norm_slow(&t[0], &t[1], &t[2], EPS),
            Kind::LayerNorm { .. } => candle_nn::ops::layer_norm(&t[0], &t[1], &t[2], EPS),
            Kind::Lora { .. } => layer(t)? + (t[0].matmul(&t[2].t()?)?.matmul(&t[3].t()?)? * 2.0)?,
            Kind::Attention { heads, kv_heads, d, .. } => {
                let mask = self.mask.as_ref().expect("made with the case");
                attention(t, heads / kv_heads, mask, 1.0 / (d as f64).sqrt())
            }
        }
    }

    fn run(&self, inputs: &[Var]) -> Result<Vec<Tensor>> {
        if !self.case.backward {
            // Without variables nothing is remembered for a gradient.
            let plain: Vec<Tensor> = inputs.iter().map(|var| var.as_detached_tensor()).collect();
            return Ok(vec![self.forward(&plain)?]);
        }
        let tensors: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(index, var)| {
                if self.case.differentiated(index) {
                    var.as_tensor().clone()
                } else {
                    var.as_detached_tensor()
                }
            })
            .collect();
        let y = self.forward(&tensors)?;
        let loss = (y.sqr()?.to_dtype(DType::F32)?.sum_all()? * 0.5)?;
        let gradients = loss.backward()?;
        let wanted = inputs.iter().enumerate().filter(|(index, _)| self.case.differentiated(*index));
        wanted
            .map(|(index, var)| {
                gradients.get(var.as_tensor()).cloned().ok_or_else(|| {
                    candle_core::Error::Msg(format!("candle loses the gradient of input {index}"))
                })
            })
            .collect()
    }

    /// What is timed, for the report.
    fn form(&self) -> &'static str {
        match (self.case.kind, self.case.backward, self.turned) {
            (Kind::MatMul { .. } | Kind::Lora { .. }, _, true) => "matmul, weight stored [k, n]",
            (Kind::MatMul { .. } | Kind::Lora { .. }, _, false) => "matmul",
            (Kind::Attention { .. }, ..) => "keys repeated, matmul, softmax, matmul",
            (Kind::SoftmaxInner { .. }, ..) => "composition: its fused one takes the last axis",
            (_, true, _) => "composition: its fused one has no gradient",
            _ => "fused",
        }
    }

    /// As `Timer` in compare/peers.py.
    fn read(&self, seconds: f64) -> Result<Value> {
        let (latency, ..) = self.times(seconds, || self.run(&self.copies[0]))?;
        let all = || -> Result<Vec<Tensor>> {
            let results: Vec<Vec<Tensor>> =
                self.copies.iter().map(|copy| self.run(copy)).collect::<Result<_>>()?;
            Ok(results.into_iter().flatten().collect())
        };
        let (throughput, least, after, again, mut results) = self.times(seconds, all)?;
        let chain = || -> Result<Vec<Tensor>> {
            let mut inputs: Vec<Tensor> = self.copies[0].iter().map(|var| var.as_detached_tensor()).collect();
            for _ in 0..COPIES {
                inputs[0] = self.forward(&inputs)?;
            }
            inputs.truncate(1);
            Ok(inputs)
        };
        let chain = if self.case.chains() {
            let (chain, .., last) = self.times(seconds, chain)?;
            results.extend(last);
            Some(chain)
        } else {
            None
        };
        let mut bytes = Vec::new();
        for tensor in &results {
            let values = elements(tensor)?;
            bytes.extend((0..SAMPLES).flat_map(|j| values[j * values.len() / SAMPLES].to_le_bytes()));
        }
        std::fs::write(&self.samples, bytes)?;
        Ok(json!({
            "latency": latency, "throughput": throughput, "chain": chain, "least": least, "after": after, "again": again,
        }))
    }

    /// The median seconds of a call, the least of a call and of reading an element of each result twice afterwards, and
    /// the results of the last call.
    fn times(
        &self,
        seconds: f64,
        call: impl Fn() -> Result<Vec<Tensor>>,
    ) -> Result<(f64, f64, f64, f64, Vec<Tensor>)> {
        call()?;
        self.device.synchronize()?;
        let mut kept = [const { Vec::new() }; 3];
        let mut last = Vec::new();
        let started = Instant::now();
        while kept[0].len() < 3 || started.elapsed().as_secs_f64() < seconds {
            last.clear();
            let begun = Instant::now();
            last = call()?;
            self.device.synchronize()?;
            kept[0].push(begun.elapsed().as_secs_f64());
            if kept[1].len() < 15 {
                for times in &mut kept[1..] {
                    let begun = Instant::now();
                    for tensor in &last {
                        let count = tensor.elem_count();
                        tensor
                            .flatten_all()?
                            .narrow(0, count - 1, 1)?
                            .to_dtype(DType::F32)?
                            .to_vec1::<f32>()?;
                    }
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
        let [mut calls, after, again] = kept;
        calls.sort_by(f64::total_cmp);
        let least = |times: Vec<f64>| times.into_iter().fold(f64::INFINITY, f64::min);
        Ok((calls[calls.len() / 2], calls[0], least(after), least(again), last))
    }
}

fn elements(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A job, and where its result is.
fn prepare(request: &Value, device: &Device) -> anyhow::Result<(Job, String)> {
    let case = case_of(request).ok_or_else(|| anyhow::anyhow!("no case: {request}"))?;
    let path = |name: &str| PathBuf::from(request[name].as_str().unwrap_or_default());
    let job = Job::new(case, device, &path("samples"))?;
    let results = job.run(&job.copies[0])?;
    let mut bytes = Vec::new();
    for tensor in &results {
        bytes.extend(elements(tensor)?.into_iter().flat_map(f32::to_le_bytes));
    }
    std::fs::write(path("out"), bytes)?;
    let place = match results[0].device() {
        Device::Cpu => format!("cpu, {} threads", candle_core::utils::get_num_threads()),
        device => format!("{:?}", device.location()).to_lowercase(),
    };
    Ok((job, format!("candle 0.11, {place}")))
}

/// Answers until nothing is asked any more.
pub(crate) fn serve(device: &str) -> anyhow::Result<()> {
    let device = match device {
        "metal" => match Device::new_metal(0) {
            Ok(device) => device,
            Err(error) => return print_line(&json!({"error": error.to_string()}).to_string()),
        },
        _ => Device::Cpu,
    };
    print_line(&json!({"hello": true}).to_string())?;
    let mut job: Option<Job> = None;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = if let Some(seconds) = request["read"].as_f64() {
            match &job {
                Some(job) => job.read(seconds).map_err(anyhow::Error::from),
                None => Err(anyhow::anyhow!("nothing is ready")),
            }
        } else {
            prepare(&request, &device).map(|(made, place)| {
                let form = made.form();
                job = Some(made);
                json!({"device": place, "form": form, "synchronised": SYNCHRONISED})
            })
        };
        let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        print_line(&answer.to_string())?;
        std::io::stdout().flush()?;
    }
    Ok(())
}
