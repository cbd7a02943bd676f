//! Peers as processes that speak one line of JSON at a time, so that each has threads and memory of its own, and one that
//! ends takes nothing with it.
//!
//! A ratio is given only if the peer's result is ours, and if its results were there when its clock stopped: after every
//! timed part the peer reads all of them twice. A lazy library that had computed one of eight needs longer for the first
//! reading than for the second, by the time of the seven that were not computed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use metal_candle::bench::{COPIES, Case, Kind, Reading};
use serde::Deserialize;
use serde_json::{Value, json};

/// The script of the Python peers, which the tool carries with it.
const SCRIPT: &str = include_str!("../../../../compare/peers.py");

/// The peers that there are, and how each is installed.
const PEERS: [(&str, &str); 4] = [
    ("candle", "it is part of this tool"),
    ("torch", "python3 -m pip install torch numpy"),
    ("mlx", "python3 -m pip install mlx numpy (on Linux: mlx-cpu as well, and apt-get install libopenblas0)"),
    ("flawed", "it is part of this tool: evaluates one result of eight, as the plan's benchmark did"),
];

/// A running peer.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

/// What a peer says when a case is ready.
pub(crate) struct Ready {
    pub(crate) device: String,
    pub(crate) result: Vec<f64>,
}

/// Seconds of a peer's three forms, whole, and of reading all results twice afterwards.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Timed {
    latency: f64,
    throughput: f64,
    chain: Option<f64>,
    after: f64,
    again: f64,
}

impl Timed {
    /// Whether the results were there when the clock stopped.
    pub(crate) fn computed(&self) -> Result<Reading, String> {
        let late = self.after - self.again;
        // Reading twice differs by caches and chance; a fifth of the timed part and 50 µs are more than that.
        let allowed = 0.2 * (self.throughput + self.latency) + 50e-6 + self.again;
        if late > allowed {
            return Err(format!(
                "refused: results were not computed when the clock stopped (reading them took {:.0} µs, again {:.0} µs)",
                1e6 * self.after,
                1e6 * self.again
            ));
        }
        let each = |seconds: f64| seconds / COPIES as f64;
        Ok(Reading { latency: self.latency, throughput: each(self.throughput), chain: self.chain.map(each) })
    }
}

/// The greatest difference of two results relative to the greatest element; an error if it is more than rounding.
pub(crate) fn difference(ours: &[f64], theirs: &[f64], case: &Case) -> Result<f64, String> {
    if ours.len() != theirs.len() {
        return Err(format!("refused: its result has {} elements, ours {}", theirs.len(), ours.len()));
    }
    let scale = ours.iter().fold(0.0_f64, |a, x| a.max(x.abs())).max(1e-30);
    let apart = ours.iter().zip(theirs).fold(0.0_f64, |a, (x, y)| {
        let apart = (x - y).abs();
        if apart.is_nan() { f64::INFINITY } else { a.max(apart) }
    });
    let relative = apart / scale;
    let tolerance = if case.dtype == metal_candle::tensor::DType::F32 { 1e-4 } else { 3e-2 };
    if relative > tolerance {
        return Err(format!(
            "refused: its result differs from ours by {relative:.1e} of the greatest element"
        ));
    }
    Ok(relative)
}

/// The ratio of a peer's reading to ours, reading by reading.
pub(crate) fn ratio(theirs: Reading, ours: Reading) -> Reading {
    Reading {
        latency: theirs.latency / ours.latency,
        throughput: theirs.throughput / ours.throughput,
        chain: theirs.chain.zip(ours.chain).map(|(a, b)| a / b),
    }
}

fn request(case: &Case, out: &std::path::Path) -> Value {
    let (kind, sizes) = match case.kind {
        Kind::MatMul { m, n, k } => ("matmul", json!({"m": m, "n": n, "k": k})),
        Kind::Softmax { rows, n } => ("softmax", json!({"rows": rows, "n": n})),
        Kind::SoftmaxInner { outer, n, inner } => {
            ("softmax_inner", json!({"outer": outer, "n": n, "inner": inner}))
        }
        Kind::RmsNorm { rows, n } => ("rms_norm", json!({"rows": rows, "n": n})),
        Kind::LayerNorm { rows, n } => ("layer_norm", json!({"rows": rows, "n": n})),
        Kind::Lora { rows, d } => ("lora", json!({"rows": rows, "d": d})),
        Kind::Attention { t, heads, kv_heads, d } => {
            ("attention", json!({"t": t, "heads": heads, "kv_heads": kv_heads, "d": d}))
        }
    };
    let scales: Vec<f32> = (0..case.inputs().len()).map(|index| case.scale(index)).collect();
    json!({
        "kind": kind, "sizes": sizes, "dtype": case.dtype.to_string(), "backward": case.backward,
        "inputs": case.inputs(), "scales": scales, "copies": COPIES, "chains": case.chains(), "out": out,
    })
}

/// The case of a request.
pub(crate) fn case_of(request: &Value) -> Option<Case> {
    let size = |name: &str| request["sizes"][name].as_u64().map(|size| size as usize);
    let rows = || Some((size("rows")?, size("n")?));
    let kind = match request["kind"].as_str()? {
        "matmul" => Kind::MatMul { m: size("m")?, n: size("n")?, k: size("k")? },
        "softmax" => rows().map(|(rows, n)| Kind::Softmax { rows, n })?,
        "softmax_inner" => Kind::SoftmaxInner { outer: size("outer")?, n: size("n")?, inner: size("inner")? },
        "rms_norm" => rows().map(|(rows, n)| Kind::RmsNorm { rows, n })?,
        "layer_norm" => rows().map(|(rows, n)| Kind::LayerNorm { rows, n })?,
        "lora" => Kind::Lora { rows: size("rows")?, d: size("d")? },
        "attention" => Kind::Attention {
            t: size("t")?,
            heads: size("heads")?,
            kv_heads: size("kv_heads")?,
            d: size("d")?,
        },
        _ => return None,
    };
    let dtype = request["dtype"].as_str()?.parse().ok()?;
    Some(Case { kind, dtype, backward: request["backward"].as_bool()? })
}

impl Process {
    /// Starts a peer by its name. The error says how it is installed.
    pub(crate) fn start(name: &str, threads: usize, device: &str) -> Result<Self, String> {
        let Some((name, install)) = PEERS.into_iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = PEERS.iter().map(|(name, _)| *name).collect();
            return Err(format!("there is no peer '{name}'; there are {}", known.join(", ")));
        };
        let missing = |why: String| format!("{name} is missing ({why}); install it with: {install}");
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = if name == "candle" {
            let tool = std::env::current_exe().map_err(|error| error.to_string())?;
            let mut command = Command::new(tool);
            command.args(["bench", "candle-peer", "--device", device]);
            command
        } else {
            let script = folder.path().join("peers.py");
            std::fs::write(&script, SCRIPT).map_err(|error| error.to_string())?;
            let python = std::env::var_os("METAL_CANDLE_PYTHON").unwrap_or_else(|| "python3".into());
            let mut command = Command::new(python);
            command.arg(script).args([name, device]);
            command
        };
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        if name == "mlx" && cfg!(target_os = "linux") {
            // The wheel's own product is the reference implementation, thirty times slower than this one.
            command.env("LD_PRELOAD", "libopenblas.so.0");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| missing(error.to_string()))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(missing("it cannot be spoken to".into()));
        };
        let mut process = Self { name, child, to, from: BufReader::new(from), folder };
        let hello = process.answer().map_err(missing)?;
        if hello["hello"] != true {
            let why = hello["error"].as_str().unwrap_or("it does not answer").to_owned();
            return Err(missing(why));
        }
        Ok(process)
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err("it has ended".into()),
            Ok(_) => {
                serde_json::from_str(&line).map_err(|error| format!("it says '{}': {error}", line.trim()))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn ask(&mut self, request: &Value) -> Result<Value, String> {
        writeln!(self.to, "{request}").and_then(|()| self.to.flush()).map_err(|error| error.to_string())?;
        let answer = self.answer()?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// Makes a case ready.
    pub(crate) fn prepare(&mut self, case: &Case) -> Result<Ready, String> {
        let out = self.folder.path().join("result");
        let answer = self.ask(&request(case, &out))?;
        let bytes = std::fs::read(&out).map_err(|error| format!("its result: {error}"))?;
        let result =
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
        Ok(Ready { device: answer["device"].as_str().unwrap_or("it does not say where").to_owned(), result })
    }

    /// Times every form for so long.
    pub(crate) fn read(&mut self, seconds: f64) -> Result<Timed, String> {
        let answer = self.ask(&json!({"read": seconds}))?;
        serde_json::from_value(answer).map_err(|error| error.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metal_candle::tensor::DType;

    const SOFTMAX: Case =
        Case { kind: Kind::Softmax { rows: 1, n: 1024 }, dtype: DType::F32, backward: false };

    fn python() -> bool {
        Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    /// The pattern of the plan's benchmark: eight results are asked for, and the clock stops after one.
    #[test]
    fn results_that_were_not_computed_are_refused() {
        if !python() {
            println!("SKIPPED the flawed pattern: no python3");
            return;
        }
        let mut flawed = Process::start("flawed", 1, "cpu").unwrap();
        let ready = flawed.prepare(&SOFTMAX).unwrap();
        let device = metal_candle::backend::Device::cpu(1).unwrap();
        let ours = metal_candle::bench::Subject::new(&SOFTMAX, &device).unwrap().result();
        assert!(difference(&ours, &ready.result, &SOFTMAX).is_ok(), "its result is right");
        let error = flawed.read(0.01).unwrap().computed().unwrap_err();
        assert!(error.starts_with("refused: results were not computed"), "{error}");
    }

    #[test]
    fn what_was_computed_is_taken_and_other_results_are_not() {
        let timed = Timed { latency: 1e-5, throughput: 8e-5, chain: Some(1.6e-4), after: 6e-6, again: 5e-6 };
        let reading = timed.computed().unwrap();
        assert!((reading.throughput - 1e-5).abs() < 1e-12 && (reading.chain.unwrap() - 2e-5).abs() < 1e-12);
        assert!(difference(&[1.0, 2.0], &[1.0, 2.0 + 1e-5], &SOFTMAX).unwrap() < 1e-5);
        for theirs in [vec![1.0, 2.01], vec![1.0], vec![f64::NAN, 2.0]] {
            assert!(
                difference(&[1.0, 2.0], &theirs, &SOFTMAX).unwrap_err().starts_with("refused"),
                "{theirs:?}"
            );
        }
        let twice = ratio(
            Reading { latency: 2.0, throughput: 4.0, chain: Some(6.0) },
            Reading { latency: 1.0, throughput: 2.0, chain: None },
        );
        assert_eq!(twice, Reading { latency: 2.0, throughput: 2.0, chain: None });
    }

    #[test]
    fn every_case_goes_through_the_protocol() {
        for case in metal_candle::bench::cases(DType::BF16) {
            assert_eq!(case_of(&request(&case, std::path::Path::new("x"))), Some(case));
        }
    }

    #[test]
    fn a_peer_that_is_not_there_says_how_it_is_installed() {
        let error = Process::start("jax", 1, "cpu").err().unwrap();
        assert_eq!(error, "there is no peer 'jax'; there are candle, torch, mlx, flawed");
    }
}
