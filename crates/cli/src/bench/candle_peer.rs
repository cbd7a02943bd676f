//! candle as a peer: the same protocol as compare/peers.py, spoken by this tool itself in a process of its own.
//!
//! Forward, the fastest that candle has: its fused kernels, and for attention the composition, which is faster than its
//! flash form on a CPU. With gradients its compositions, since the fused kernels have none.

use std::io::{BufRead, Write};
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use metal_candle::bench::{COPIES, Case, Kind};
use serde_json::{Value, json};

use crate::bench::peers::case_of;
use crate::session::print_line;

const EPS: f32 = 1e-5;

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
}

impl Job {
    fn new(case: Case, device: &Device) -> Result<Self> {
        let dtype = match case.dtype {
            metal_candle::tensor::DType::F16 => DType::F16,
            metal_candle::tensor::DType::BF16 => DType::BF16,
            _ => DType::F32,
        };
        let input = |index: usize, copy: usize| -> Result<Var> {
            let values: Vec<f32> = case.values(index, copy).to_f64().iter().map(|&x| x as f32).collect();
            let tensor =
                Tensor::from_vec(values, case.inputs()[index].as_slice(), device)?.to_dtype(dtype)?;
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
        Ok(Self { case, copies: copies.collect::<Result<_>>()?, mask, device: device.clone() })
    }

    fn forward(&self, t: &[Tensor]) -> Result<Tensor> {
        let gradients = self.case.backward;
        match self.case.kind {
            Kind::MatMul { .. } => t[0].matmul(&t[1].t()?),
            Kind::Softmax { .. } | Kind::SoftmaxInner { .. } => softmax(&t[0], gradients),
            Kind::RmsNorm { .. } if gradients => candle_nn::ops::rms_norm_slow(&t[0], &t[1], EPS),
            Kind::RmsNorm { .. } => candle_nn::ops::rms_norm(&t[0], &t[1], EPS),
            Kind::LayerNorm { .. } if gradients => candle_nn::ops::layer_norm_slow(&t[0], &t[1], &t[2], EPS),
            Kind::LayerNorm { .. } => candle_nn::ops::layer_norm(&t[0], &t[1], &t[2], EPS),
            Kind::Lora { .. } => {
                t[0].matmul(&t[1].t()?)? + (t[0].matmul(&t[2].t()?)?.matmul(&t[3].t()?)? * 2.0)?
            }
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

    /// As `timed` in compare/peers.py.
    fn read(&self, seconds: f64) -> Result<Value> {
        let (latency, ..) = self.times(seconds, || self.run(&self.copies[0]))?;
        let all = || -> Result<Vec<Tensor>> {
            let results: Vec<Vec<Tensor>> =
                self.copies.iter().map(|copy| self.run(copy)).collect::<Result<_>>()?;
            Ok(results.into_iter().flatten().collect())
        };
        let (throughput, after, again) = self.times(seconds, all)?;
        let chain = || -> Result<Vec<Tensor>> {
            let mut inputs: Vec<Tensor> = self.copies[0].iter().map(|var| var.as_detached_tensor()).collect();
            for _ in 0..COPIES {
                inputs[0] = self.forward(&inputs)?;
            }
            inputs.truncate(1);
            Ok(inputs)
        };
        let chain = if self.case.chains() { Some(self.times(seconds, chain)?.0) } else { None };
        Ok(
            json!({"latency": latency, "throughput": throughput, "chain": chain, "after": after, "again": again}),
        )
    }

    /// The median seconds of a call, and of reading its results twice afterwards.
    fn times(&self, seconds: f64, call: impl Fn() -> Result<Vec<Tensor>>) -> Result<(f64, f64, f64)> {
        call()?;
        self.device.synchronize()?;
        let mut kept = [const { Vec::new() }; 3];
        let started = Instant::now();
        while kept[0].len() < 3 || started.elapsed().as_secs_f64() < seconds {
            let begun = Instant::now();
            let results = call()?;
            self.device.synchronize()?;
            kept[0].push(begun.elapsed().as_secs_f64());
            if kept[1].len() < 5 {
                for times in &mut kept[1..] {
                    let begun = Instant::now();
                    for tensor in &results {
                        elements(tensor)?;
                    }
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
        let [call, after, again] = kept.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        Ok((call, after, again))
    }
}

fn elements(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn prepare(request: &Value, device: &Device) -> anyhow::Result<Job> {
    let case = case_of(request).ok_or_else(|| anyhow::anyhow!("no case: {request}"))?;
    let job = Job::new(case, device)?;
    let mut bytes = Vec::new();
    for tensor in job.run(&job.copies[0])? {
        bytes.extend(elements(&tensor)?.into_iter().flat_map(f32::to_le_bytes));
    }
    std::fs::write(request["out"].as_str().unwrap_or_default(), bytes)?;
    Ok(job)
}

/// Answers until nothing is asked any more.
pub(crate) fn serve(device: &str) -> anyhow::Result<()> {
    let device = if device == "metal" { Device::new_metal(0)? } else { Device::Cpu };
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
            prepare(&request, &device).map(|made| {
                let place = if made.device.is_metal() { "metal" } else { "cpu" };
                let threads = candle_core::utils::get_num_threads();
                job = Some(made);
                json!({"device": format!("candle 0.11, {place}, {threads} threads")})
            })
        };
        let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        print_line(&answer.to_string())?;
        std::io::stdout().flush()?;
    }
    Ok(())
}
